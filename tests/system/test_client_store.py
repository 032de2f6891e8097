"""Where idle clients' state lies changes nothing but memory."""

import errno
import json
import mmap
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from simsfl import Simulation
from simsfl.system.client_store import Storage
from simsfl.system.paths import cache_directory


@pytest.mark.parametrize("kind", ["host", "mmap"])
@pytest.mark.parametrize("align", [False, True])
def test_every_place_gives_the_same_bits(kind, align, config, dataset):
    config = replace(config, align_momentum=align, feature_sharing=align)
    here, there = Simulation(config, dataset), Simulation(replace(config, client_state=kind), dataset)
    assert list(here.train()) == list(there.train())
    tensors = there.state.tensors()
    for name, tensor in here.state.tensors().items():
        assert torch.equal(tensor, tensors[name]), name


def test_bf16_rounds_what_is_put_away(config, dataset):
    simulation = Simulation(replace(config, client_state_dtype="bf16", cohort=8, rounds=1), dataset)
    list(simulation.rounds())
    clients, cohort = simulation.state.clients, simulation.state.cohort
    assert clients.momentum.dtype == clients.velocity.dtype == torch.bfloat16
    assert torch.equal(clients.momentum[cohort.ids], cohort.momentum.bfloat16())
    assert clients.online.dtype == torch.float32


def test_a_checkpoint_holds_and_restores_the_rows_of_participants_only(config, dataset, tmp_path):
    config = replace(config, client_state="mmap")
    simulation = Simulation(config, dataset)
    rounds = simulation.rounds()
    next(rounds)
    simulation.save(tmp_path / "run")
    entry = json.loads((tmp_path / "run" / "checkpoints" / "manifest.json").read_text())["checkpoints"][0]
    with safe_open(tmp_path / "run" / "checkpoints" / entry["file"], "pt") as file:
        shape = [config.cohort, simulation.model.client.size]
        assert file.get_slice("clients.momentum").get_shape() == shape
        assert file.get_slice("clients.velocity").get_shape() == shape
    loaded = Simulation.load(tmp_path / "run", dataset)
    took_part = simulation.state.clients.participants()
    for name in ("momentum", "velocity"):
        ours, theirs = (getattr(s.state.clients, name) for s in (simulation, loaded))
        assert torch.equal(ours, theirs)
        assert (theirs != 0).any(dim=1).nonzero().flatten().tolist() == took_part.tolist()
    assert [r.loss for r in loaded.rounds()] == [r.loss for r in rounds]


FLAT = """
import resource
import sys
from dataclasses import replace
from pathlib import Path

from tests import conftest
from simsfl import RunConfig, Simulation

settings = {"batch_size": 10, "rounds": 240, "dataset": sys.argv[1]}
sizes = {}
for record in Simulation(RunConfig(**conftest.TINY | settings)).rounds():
    sizes[record.round] = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
print(sizes[240] - sizes[40])
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory in use is read from Linux")
@pytest.mark.slow
def test_memory_is_flat_over_200_rounds(npz):
    """The run is in a process of its own, since memory of earlier tests may be released at any time."""
    argv = [sys.executable, "-c", FLAT, str(npz)]
    done = subprocess.run(argv, cwd=Path(__file__).parents[2], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 1e6


def test_the_file_has_no_name_and_its_pages_come_back():
    storage = Storage("mmap", torch.device("cpu"), torch.float32)
    stack = storage.zeros(1000, 300)
    assert list(cache_directory().iterdir()) == []
    stack[7] = 3.0
    storage.release()
    assert (stack[7] == 3.0).all()
    assert (stack[8] == 0.0).all()
    assert storage.zeros(3, 0).shape == (3, 0)


def failing(number):
    """Return a function that fails with this error of the system."""

    def fail(*_):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("system", ["Linux", "macOS", "a file system that cannot"])
def test_room_on_the_disk_is_reserved_before_a_file_is_mapped(system, monkeypatch):
    """A page that found no room on the disk when it is first written would end the process by SIGBUS."""
    held, mapped = [], mmap.mmap

    def seen(handle, size):
        held.append(512 * os.fstat(handle).st_blocks)
        return mapped(handle, size)

    monkeypatch.setattr(mmap, "mmap", seen)
    if system == "macOS":
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    if system == "a file system that cannot":
        monkeypatch.setattr(os, "posix_fallocate", failing(errno.EOPNOTSUPP), raising=False)
    stack = Storage("mmap", torch.device("cpu"), torch.float32).zeros(3000, 1001)
    assert held[0] >= 3000 * 1001 * 4
    assert stack.shape == (3000, 1001)
    assert not stack.any()


def test_a_file_that_does_not_fit_is_refused(monkeypatch):
    storage = Storage("mmap", torch.device("cpu"), torch.float32)
    with pytest.raises(OSError, match=r"client_state: mmap needs 4,000\.0 GB in .* GB are free\); allowed: --client"):
        storage.zeros(10**9, 1000)
    monkeypatch.setattr(os, "posix_fallocate", failing(errno.ENOSPC), raising=False)
    with pytest.raises(OSError, match=r"client_state: mmap needs 0\.1 GB in .* \(No space left on device\); allowed"):
        storage.zeros(1000, 25_000)
