"""What simsfl has written is replaced and deleted; nothing else is."""

import hashlib

import pytest

from simsfl.system.outputs import _LIST, Outputs


def held(path):
    return sorted(one.name for one in path.iterdir())


def contents(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_its_own_files_are_replaced_and_deleted(tmp_path):
    out = Outputs(tmp_path / "out")
    assert out.is_empty()
    out.write_text("figures/a.txt", "one")
    out.write_text("figures/a.txt", "two")
    out.write_json("b.json", {"a": 1})
    assert out.owns("figures/a.txt")
    assert (out.path / "figures" / "a.txt").read_text() == "two"
    lines = (out.path / _LIST).read_text().splitlines()
    assert lines[1] == f"{hashlib.sha256(b'two').hexdigest()}  figures/a.txt"
    out.clear("b.json")
    assert held(out.path) == ["figures", _LIST]
    out.clear("figures")
    assert held(out.path) == []


@pytest.mark.parametrize("how", ["theirs", "changed", "replaced by a link"])
def test_files_of_others_stay(how, tmp_path):
    out = Outputs(tmp_path)
    if how != "theirs":
        out.write_text("figures/a.txt", "ours")
    (tmp_path / "figures").mkdir(exist_ok=True)
    file = tmp_path / "figures" / "a.txt"
    if how == "replaced by a link":
        file.rename(tmp_path / "mine.txt")
        file.symlink_to(tmp_path / "mine.txt")
    else:
        file.write_text("mine")
    (tmp_path / "figures" / "b.txt").write_text("mine, too")
    out.write_text("c.txt", "ours")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"out: .*figures/a.txt was not written by simsfl, or has been changed since"):
        out.write_text("figures/a.txt", "new")
    with pytest.raises(ValueError, match="allowed: another place"):
        out.check("c.txt", "figures/a.txt")
    out.check("c.txt", "none.txt")
    assert contents(tmp_path) == before
    assert not out.is_empty()
    out.clear("figures", "c.txt")
    left = set(before) - {"c.txt", _LIST}
    assert contents(tmp_path) == {name: before[name] for name in left}


def test_a_list_that_is_damaged_or_hostile_owns_nothing_more(tmp_path):
    out = Outputs(tmp_path / "out")
    out.write_text("a.txt", "ours")
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    checksum = hashlib.sha256(b"mine").hexdigest()
    with (out.path / _LIST).open("ab") as file:
        file.write(f"\xff\n{checksum}  ../mine.txt\n{checksum}  {mine}\n{checksum}\n{checksum}  b.".encode("latin-1"))
    assert out.owns("a.txt")
    assert not out.owns("../mine.txt")
    assert not out.owns(str(mine))
    out.clear("a.txt", "..", str(mine), "/")
    assert mine.read_text() == "mine"
    assert held(out.path) == []


def test_a_file_that_a_flag_names(tmp_path):
    file = tmp_path / "a.json"
    for _ in range(2):
        Outputs.of(file, "json").write_json(file.name, [1])
    file.write_text("mine")
    with pytest.raises(ValueError, match=r"^json: .*/a.json was not written by simsfl"):
        Outputs.of(file, "json")
    with pytest.raises(ValueError, match=r"^json: .* there is no directory .*/none;"):
        Outputs.of(tmp_path / "none" / "a.json", "json")
    assert file.read_text() == "mine"


def test_an_error_leaves_the_file_as_it_was(tmp_path):
    out = Outputs(tmp_path)
    out.write_text("a.txt", "one")
    with pytest.raises(RuntimeError), out.replacing("a.txt") as temporary:
        raise RuntimeError(temporary.write_text("two"))
    assert (tmp_path / "a.txt").read_text() == "one"
    assert out.owns("a.txt")


def test_files_of_a_directory_without_a_list_are_adopted_once(tmp_path):
    out = Outputs(tmp_path)
    (tmp_path / "a.txt").write_text("an older version's")
    out.adopt(["a.txt", "none.txt"])
    out.write_text("a.txt", "new")
    (tmp_path / "b.txt").write_text("mine")
    out.adopt(["b.txt"])
    assert not out.owns("b.txt")


def test_a_file_is_no_directory_for_outputs(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"^out: .*file is no directory; allowed: a directory, also a new one$"):
        Outputs(tmp_path / "file").check("report.md")
