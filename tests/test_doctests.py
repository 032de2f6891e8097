"""The examples in docstrings are right."""

import doctest
from importlib import import_module

import pytest

from docs.generate import modules

EXAMPLES = [name for _, name, file in modules() if ">>> " in file.read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(name):
    result = doctest.testmod(import_module(name))
    assert result.attempted > 0
    assert result.failed == 0
