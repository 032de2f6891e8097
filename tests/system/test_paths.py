"""Paths as users write them, and a cache for users without a home directory."""

import os
import pwd
from pathlib import Path

import pytest

from simsfl.config import RunConfig
from simsfl.hw_profile.meters import choose
from simsfl.hw_profile.meters.board import Machine
from simsfl.system.paths import cache_directory, expanded


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Give the user a home directory, and no variable that names a cache."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("SIMSFL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def homeless(home, monkeypatch):
    """Take it away again, and the user's entry in the list of users, as in a container."""

    def unknown(user):
        raise KeyError(f"getpwuid(): uid not found: {user}")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def test_a_tilde_is_the_home_directory_at_the_start_alone(home):
    assert expanded("~") == str(home)
    assert expanded("~/a b/~c") == f"{home}/a b/~c"
    assert expanded("~root/x") == os.path.join(pwd.getpwnam("root").pw_dir, "x")  # noqa: PTH118
    for text in ("./~x", "a~", "/a/~/b", "shapes", "./shapes", "", "a//b/"):
        assert expanded(text) == text
    with pytest.raises(ValueError, match=r"for .~nobody-at-all/x.; allowed: a whole path, or \./~nobody"):
        expanded("~nobody-at-all/x")


def test_a_tilde_needs_a_home_directory(homeless):
    with pytest.raises(ValueError, match="no home directory for '~/x'"):
        expanded("~/x")


def test_a_tilde_in_a_config_and_in_the_name_of_a_log(home):
    config = RunConfig(dataset="~/d.npz", data_dir="~", aux_dataset="~/aux", init_client="~/run")
    assert (config.dataset, config.data_dir) == (f"{home}/d.npz", str(home))
    assert (config.aux_dataset, config.init_client) == (f"{home}/aux", f"{home}/run")
    assert RunConfig(dataset="./shapes").dataset == "./shapes"
    with pytest.raises(ValueError, match=r"^dataset: there is no home directory for '~nobody-at-all/x'"):
        RunConfig(dataset="~nobody-at-all/x")
    (home / "log.csv").write_text("time,power\n1700000000,2\n1700000001,3\n")
    assert choose("csv:~/log.csv", Machine()).path == home / "log.csv"


def test_the_cache_is_where_the_user_wants_it(home, monkeypatch):
    assert cache_directory() == home / ".cache" / "simsfl"
    monkeypatch.setenv("XDG_CACHE_HOME", "~/xdg")
    assert cache_directory() == home / "xdg" / "simsfl"
    monkeypatch.setenv("SIMSFL_CACHE", "~/own")
    assert cache_directory() == home / "own"
    monkeypatch.setenv("SIMSFL_CACHE", "~nobody-at-all/own")
    with pytest.raises(ValueError, match=r"^SIMSFL_CACHE: there is no home directory"):
        cache_directory()
    assert not any(home.iterdir())


def test_without_a_home_directory_the_cache_is_temporary(homeless, monkeypatch, caplog):
    monkeypatch.setenv("SIMSFL_CACHE", "")
    directory = cache_directory()
    assert directory.is_dir()
    assert directory.stat().st_mode & 0o777 == 0o700
    assert cache_directory() == directory == Path(os.environ["SIMSFL_CACHE"])  # processes that it starts share it
    assert len(caplog.messages) == 1
    assert "there is no home directory: the cache is temporary" in caplog.text
    directory.rmdir()


def test_without_a_home_directory_a_cache_may_be_named(homeless, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("SIMSFL_CACHE", str(tmp_path / "own"))
    assert cache_directory() == tmp_path / "own"
    monkeypatch.delenv("SIMSFL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "simsfl"
    assert not caplog.messages


def test_a_home_directory_that_cannot_be_written(home, monkeypatch, caplog):
    """A cache that is there already can be read."""
    monkeypatch.setenv("SIMSFL_CACHE", "")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    directory = cache_directory()
    directory.rmdir()
    assert home not in directory.parents
    assert f"{home / '.cache'} cannot be written: the cache is temporary" in caplog.text
    monkeypatch.setenv("SIMSFL_CACHE", "")
    (home / ".cache" / "simsfl").mkdir(parents=True)
    assert cache_directory() == home / ".cache" / "simsfl"
