"""Opening what may be no file: nothing is waited for."""

import os
import stat

import pytest

from simsfl.system.reading import open_regular


def test_files_and_links_to_them_are_opened(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        with open_regular(tmp_path / name) as file:
            assert file.read() == b"content"


def test_what_is_no_file_is_refused_by_its_path(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("fifo", "zero", "loop", "none", "."):
        with pytest.raises(OSError, match=name) as caught:
            open_regular(tmp_path / name)
        assert caught.value.strerror


def test_a_fifo_that_takes_a_files_place_is_not_waited_for(tmp_path, monkeypatch):
    """Between the look at a path and the opening it may be replaced."""
    os.mkfifo(tmp_path / "fifo")
    monkeypatch.setattr(stat, "S_ISREG", lambda mode: True)
    with open_regular(tmp_path / "fifo") as file:
        assert file.read() == b""
