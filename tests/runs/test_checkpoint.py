"""Checkpoints: which are kept, which are deleted, and what beside them is not touched."""

import json

import pytest
import torch

from simsfl.algorithm.communication import Communication, Exchange
from simsfl.cost.model import Traffic
from simsfl.runs import checkpoint
from simsfl.runs.checkpoint import Standing, Timed
from simsfl.runs.metrics_log import Extent


def standing(round_index, step=0, run="a"):
    return Standing(round_index, step, Communication(Exchange.UP_ONLY, 1.5), Traffic(7, 9), Extent(), run)


def saved(directory, *places, run="a"):
    for place in places:
        checkpoint.save(
            directory, {"x": torch.tensor([float(place)])}, standing(place, run=run), Timed(place, 5, {"sync": 1.0})
        )


def held(directory):
    return sorted(path.name for path in directory.iterdir())


def test_the_last_two_are_kept_and_come_back(tmp_path):
    saved(tmp_path, 0, 5, 1_000_000)
    names = ["round-000005-step-000000.safetensors", "round-1000000-step-000000.safetensors"]
    assert held(tmp_path) == ["manifest.json", *names]
    found = checkpoint.newest(tmp_path, "a")
    assert (found.path.name, found.standing, found.problems) == (names[1], standing(1_000_000), [])
    assert found.timed == Timed(1_000_000, 5, {"sync": 1.0})
    listed = json.loads((tmp_path / "manifest.json").read_text())["checkpoints"]
    assert [entry["file"] for entry in listed] == names[::-1]
    assert listed[1]["meta"]["round"] == 5


def test_files_of_a_user_stay(tmp_path):
    saved(tmp_path, 1)
    (tmp_path / "best-so-far.safetensors").write_bytes(b"mine")
    (tmp_path / "round-000001-step-000000 (copy).safetensors").write_bytes(b"mine")
    (tmp_path / "notes.txt").write_bytes(b"mine")
    saved(tmp_path / "other", 9, run="b")
    copy = tmp_path / "round-000009-step-000000.safetensors"
    copy.write_bytes((tmp_path / "other" / copy.name).read_bytes())  # of another run
    before = set(held(tmp_path))
    saved(tmp_path, 2, 3, 4)
    assert before - set(held(tmp_path)) == {"round-000001-step-000000.safetensors"}
    assert checkpoint.newest(tmp_path, "a").standing.round == 4
    checkpoint.clear(tmp_path, "a")
    assert set(held(tmp_path)) == before - {"round-000001-step-000000.safetensors", "manifest.json"}


def test_what_a_run_has_left_behind_by_going_back_is_deleted(tmp_path):
    saved(tmp_path, 1, 2)
    (tmp_path / "round-000002-step-000000.safetensors").write_bytes(b"damaged")
    saved(tmp_path, 1)
    assert held(tmp_path) == ["manifest.json", "round-000001-step-000000.safetensors"]


@pytest.mark.parametrize("position", range(0, 400, 7))
def test_every_byte_counts(position, tmp_path):
    saved(tmp_path, 1, 2)
    file = tmp_path / "round-000002-step-000000.safetensors"
    content = bytearray(file.read_bytes())
    content[position * len(content) // 400] ^= 4
    file.write_bytes(content)
    for whole in (True, False):
        found = checkpoint.newest(tmp_path, "a")
        assert found.standing.round == 1
        assert file.name in found.problems[0]
        assert found.problems[0].endswith("the one before is used")
        assert len(found.problems) == (1 if whole else 2)
        (tmp_path / "manifest.json").write_text("{}")


def test_of_which_run_and_which_metrics(tmp_path):
    saved(tmp_path, 1)
    with pytest.raises(ValueError, match=r"resume: .* no usable checkpoint; .* another run .* --config"):
        checkpoint.newest(tmp_path, "b")
    metrics = tmp_path / "metrics.jsonl"
    checkpoint.save(tmp_path, {}, Standing(2, 0, Communication(), Traffic(), Extent(4, "0" * 64), "a"), Timed())
    metrics.write_bytes(b"1234")
    assert checkpoint.newest(tmp_path, "a").standing.round == 2  # metrics do not matter where the run does not go on
    found = checkpoint.newest(tmp_path, "a", metrics)
    assert found.standing.round == 1
    assert found.problems == [f"{metrics} is damaged, or was edited, before byte 4; the one before is used"]
    metrics.unlink()
    with pytest.raises(ValueError, match=r"resume: .* has 0 bytes, but its checkpoint belongs to 4"):
        checkpoint.newest(tmp_path, "a", metrics)
