"""The commit that runs and measurements name."""

import shutil
import subprocess

import pytest

from simsfl.runs import directory

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Return a checkout with a page and a module, in whose `simsfl` folder the code seems to lie."""
    for name in ("GIT_DIR", "GIT_WORK_TREE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "simsfl").mkdir()
    (tmp_path / "page.md").write_text("old")
    (tmp_path / "simsfl" / "module.py").write_text("old")
    who = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(directory, "__file__", str(tmp_path / "simsfl" / "directory.py"))
    return tmp_path


def test_a_commit_with_other_pages_is_still_that_commit_and_with_other_code_is_not(checkout):
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=True)
    assert directory.git_commit() == head.stdout.strip()
    (checkout / "page.md").write_text("new")
    assert directory.git_commit() == head.stdout.strip()
    (checkout / "simsfl" / "module.py").write_text("new")
    assert directory.git_commit() == head.stdout.strip() + "-dirty"


def test_there_is_no_commit_outside_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(directory, "__file__", str(tmp_path / "directory.py"))
    assert directory.git_commit() is None
