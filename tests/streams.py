"""Standard streams that fail, for tests of what programs do then."""

import os
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
"""Mark of tests that write to a disk that is full."""


@contextmanager
def stdout_to(file):
    """Have stdout write into a file, which is a path or a handle."""
    with open(file, "w", encoding="utf-8") as stream, pytest.MonkeyPatch.context() as patched:  # noqa: PTH123
        patched.setattr(sys, "stdout", stream)
        yield


@contextmanager
def stdout_without_a_reader():
    """Have stdout write into a pipe whose reader has ended."""
    reading, writing = os.pipe()
    os.close(reading)
    with stdout_to(writing):
        yield
