"""What comes out of JSON is what the annotations of a record say, or an error that names the place."""

import math
import os
import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Literal

import pytest

from simsfl.config import RunConfig
from simsfl.system.decoding import Amount, Count, Range, decode, parse_json, read_json


class Letter(str, Enum):
    A = "a"


@dataclass(frozen=True)
class Inner:
    count: Count
    letter: Letter = Letter.A


@dataclass(frozen=True)
class Outer:
    inner: Inner
    share: Annotated[float, Range(0, 1)] | None
    names: dict[str, list[Amount]] = field(default_factory=dict)
    kind: Literal["x", "y"] = "x"
    any_of: bool | int | str | None = None


def test_what_is_right_is_taken_over():
    value = {"inner": {"count": 3, "letter": "a"}, "share": 1, "names": {"a": [0, 2.5]}, "kind": "y", "any_of": True}
    found = decode(Outer, value)
    assert found == Outer(Inner(3), 1, {"a": [0, 2.5]}, "y", True)
    assert found.any_of is True
    assert found.inner.letter is Letter.A
    assert decode(Outer, {"inner": {"count": 0}, "share": None}) == Outer(Inner(0), None)


DEEP = parse_json("[" * 900 + "]" * 900)
WRONG = {
    "not an object": ([], "a list is not an object"),
    "missing": ({"share": 1}, "inner: is missing"),
    "unknown": ({"inner": {"count": 1, "cuont": 1}, "share": 1}, "inner.cuont: is not known"),
    "fraction": ({"inner": {"count": 2.5}, "share": 1}, "inner.count: 2.5 is not a whole number"),
    "true": ({"inner": {"count": True}, "share": 1}, "inner.count: True is not a whole number"),
    "text": ({"inner": {"count": "1"}, "share": 1}, "inner.count: '1' is not a whole number"),
    "negative": ({"inner": {"count": -1}, "share": 1}, "inner.count: -1 is out of range; allowed: 0 or more"),
    "huge": ({"inner": {"count": 10**40}, "share": 1}, "inner.count: a number of 133 bits is out of range"),
    "share": ({"inner": {"count": 1}, "share": 1.5}, "share: 1.5 is out of range; allowed: 0 to 1"),
    "infinite": ({"inner": {"count": 1}, "share": math.inf}, "share: inf is out of range"),
    "nan": ({"inner": {"count": 1}, "share": math.nan}, "share: nan is out of range"),
    "item": ({"inner": {"count": 1}, "share": 1, "names": {"a": [1, None]}}, "names.a.1: None is not a number"),
    "enumeration": ({"inner": {"count": 1, "letter": "b"}, "share": 1}, "inner.letter: 'b' is not known; allowed: a"),
    "literal": ({"inner": {"count": 1}, "share": 1, "kind": ["x"]}, "kind: a list is not known; allowed: x, y"),
    "union": ({"inner": {"count": 1}, "share": 1, "any_of": 1.5}, "any_of: 1.5 is not true or false"),
    "deep": ({"inner": {"count": DEEP}, "share": 1}, "inner.count: a list is not a whole number"),
    "long": ({"inner": {"count": 1}, "share": 1, "x" * 500: 1}, f"{'x' * 77}...: is not known"),
}


@pytest.mark.parametrize(("value", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named(value, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        decode(Outer, value)


def test_records_that_check_themselves():
    assert decode(RunConfig, RunConfig(clients=5).to_dict()) == RunConfig(clients=5)
    with pytest.raises(ValueError, match=r"^c: clients: 0 is out of range; allowed: 1 to 1,000,000,000$"):
        decode(dict[str, RunConfig], {"c": {"clients": 0}})


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a": 1' + b"0" * 5000 + b"}"])
def test_what_is_no_json(content, tmp_path):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"x.json cannot be read as JSON \(.+\)"):
        read_json(tmp_path / "x.json")


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    for name, reason in (("none", "No such file"), (".", "not a regular file"), ("pipe", "not a regular file")):
        with pytest.raises(ValueError, match=reason):
            read_json(tmp_path / name)
