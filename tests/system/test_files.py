"""Files appear whole or not at all, and what others have put beside them stays."""

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys

import pytest

from simsfl.system import files
from simsfl.system.files import alone_in, check_writable, claimed, replacing, write_json

certain = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says which system runs")
KILLED = """
import os, signal, sys
from pathlib import Path
from simsfl.system.files import replacing
with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
"""A program that is killed while it writes."""


def held(path):
    """The names of all that a directory holds."""
    return sorted(one.name for one in path.iterdir())


def leftover(path):
    """What a killed process leaves of a file: its temporary directory."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    (found,) = path.parent.glob(".simsfl-*.tmp")
    assert not path.exists()
    return found


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    return leftover(tmp_path_factory.mktemp("left") / "x.json")


def copied(left, directory):
    """A copy of what a killed process left, as if it had been written here."""
    copy = directory / left.name
    shutil.copytree(left, copy)
    with (copy / "lock").open("rb") as file:
        (copy / "lock").write_bytes(files._here(file.fileno()))
    return copy


@certain
def test_what_a_killed_process_left_is_removed(tmp_path):
    left = leftover(tmp_path / "x.json")
    write_json(tmp_path / "y.json", 1)
    assert not left.exists()
    assert held(tmp_path) == ["y.json"]


def test_what_a_process_still_writes_stays(tmp_path):
    with replacing(tmp_path / "x") as temporary:
        write_json(tmp_path / "y.json", 1)
        temporary.write_text("whole")
    assert (tmp_path / "x").read_text() == "whole"
    assert held(tmp_path) == ["x", "y.json"]


@pytest.mark.parametrize("name", [".photos.999999.tmp", f".photos.{10**30}.tmp", ".simsfl-photos.tmp", ".x.1.tmp"])
@pytest.mark.parametrize("lock", [None, b"", b"mine", "pipe", "link"])
def test_directories_of_others_stay(name, lock, tmp_path):
    theirs = tmp_path / name
    theirs.mkdir()
    (theirs / "photo.jpg").write_bytes(b"photo")
    if lock == "pipe":
        os.mkfifo(theirs / "lock")
    elif lock == "link":
        (theirs / "lock").symlink_to(theirs / "photo.jpg")
    elif lock is not None:
        (theirs / "lock").write_bytes(lock)
    write_json(tmp_path / "y.json", 1)
    assert (theirs / "photo.jpg").read_bytes() == b"photo"


def another_system(copy):
    content = (copy / "lock").read_bytes()
    (copy / "lock").write_bytes(content.replace(b"system ", b"system 0"))


def another_mount(copy):
    content = (copy / "lock").read_bytes()
    (copy / "lock").write_bytes(content.replace(b"device ", b"device 1"))


def a_file_of_the_user(copy):
    (copy / "photo.jpg").touch()


@certain
@pytest.mark.parametrize("doubt", [another_system, another_mount, a_file_of_the_user])
def test_what_may_belong_to_others_stays(doubt, left, tmp_path):
    copy = copied(left, tmp_path)
    doubt(copy)
    write_json(tmp_path / "y.json", 1)
    assert (copy / "x.json").read_text() == "half"
    shutil.rmtree(copy)
    copy = copied(left, tmp_path)  # without the doubt it goes
    write_json(tmp_path / "y.json", 1)
    assert not copy.exists()


@certain
def test_without_locks_nothing_is_removed(left, tmp_path, monkeypatch):
    copy = copied(left, tmp_path)

    def unsupported(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", unsupported)
    with replacing(tmp_path / "y") as temporary:
        assert (temporary.parent / "lock").read_bytes() == b""
        temporary.touch()
    assert copy.exists()


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_file_systems_that_cannot_sync_directories(code, tmp_path, monkeypatch):
    """Their refusal counts for directories alone."""
    honest = os.fsync

    def fsync(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(code, os.strerror(code))
        honest(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    write_json(tmp_path / "x.json", [1])
    assert (tmp_path / "x.json").read_text() == "[\n  1\n]\n"
    with replacing(tmp_path / "directory") as temporary:
        temporary.mkdir()

    def nothing_syncs(handle):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", nothing_syncs)
    with pytest.raises(OSError, match=r"x\.json") as caught:
        write_json(tmp_path / "x.json", [2])
    assert caught.value.errno == code
    assert (tmp_path / "x.json").read_text() == "[\n  1\n]\n"


def test_an_error_of_the_disk_names_the_file(tmp_path, monkeypatch):
    with pytest.raises(OSError, match=r"No space left on device: '.*/x'$"), replacing(tmp_path / "x"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(FileNotFoundError, match=rf"'{tmp_path}/x'$"), replacing(tmp_path / "x"):
        pass  # nothing is written
    with pytest.raises(FileNotFoundError, match=rf"'{tmp_path}/none/x'$"), replacing(tmp_path / "none" / "x"):
        pass
    with pytest.raises(FileNotFoundError, match="another"), replacing(tmp_path / "x"):
        (tmp_path / "another").read_text()
    assert held(tmp_path) == []


def test_a_file_that_is_to_be_new_replaces_none(tmp_path):
    def write():
        with replacing(tmp_path / "x", new=True) as temporary:
            temporary.write_text("ours")
            (tmp_path / "x").write_text("theirs")

    with pytest.raises(FileExistsError, match=f"{tmp_path}/x"):
        write()
    assert (tmp_path / "x").read_text() == "theirs"


def test_where_a_file_can_be_made(tmp_path):
    (tmp_path / "held").touch()
    for name in ("x", "held"):
        check_writable(tmp_path / name, "json")
    for name, words in ((".", "is a directory"), ("none/x", "there is no directory"), ("held/x", "no directory")):
        with pytest.raises(ValueError, match=f"json: .*{words}"):
            check_writable(tmp_path / name, "json")
    assert held(tmp_path) == ["held"]


def test_what_was_made_for_results_that_did_not_come_is_removed(tmp_path):
    (tmp_path / "held").mkdir()
    for place in ("new", "a/b/c", "held/d"):
        with pytest.raises(ValueError, match="no result"), claimed(tmp_path / place, "result.json"):
            raise ValueError("no result")
    assert [path.name for path in tmp_path.iterdir()] == ["held"]
    assert list((tmp_path / "held").iterdir()) == []


def test_a_directory_that_a_process_is_alone_in_is_refused_to_others_and_left_as_it_was(tmp_path):
    new = tmp_path / "a" / "new"
    with alone_in(new, wait=False):
        with pytest.raises(BlockingIOError), alone_in(new, wait=False):
            pass
        assert new.is_dir()
    assert not new.parent.exists()
    with alone_in(new, wait=False):
        (new / "file").touch()
    with alone_in(new, wait=True):
        assert [path.name for path in new.iterdir()] == ["file"]
