"""What devices and the server say to each other: safetensors with a few words of JSON, never pickle.

A frame is a safetensors file. Its metadata say which version of the protocol it is of, what kind it is, of which run,
client, round and step. Whatever a frame holds, `unpack` gives a message whose fields have the types they should have,
or raises a ValueError.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

VERSION = 1
KINDS = (
    "hello",
    "welcome",
    "ready",
    "round",
    "smashed",
    "gradient",
    "weights",
    "average",
    "dismissed",
    "refused",
    "bye",
)
"""In the order of a session. A device says hello, is ready once it has loaded what it needs, and says bye when it
leaves; one that is dismissed may say hello again, one that is refused may not."""
LARGEST = 1 << 28
"""Bytes of a frame."""
HEADER_LARGEST = 1 << 20


@dataclass(frozen=True)
class Message:
    """One of them."""

    kind: str
    """Of `KINDS`."""
    run: str = ""
    """The run's id; empty in a first hello."""
    client: int = 0
    round: int = 0
    step: int = 0
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    """What else is to be said, as JSON takes it."""


def pack(message: Message) -> bytes:
    """As a frame."""
    words = {
        "version": str(VERSION),
        "kind": message.kind,
        "run": message.run,
        "client": str(message.client),
        "round": str(message.round),
        "step": str(message.step),
        "about": json.dumps(message.about),
    }
    return save({name: np.ascontiguousarray(array) for name, array in message.arrays.items()}, words)


def unpack(frame: bytes) -> Message:
    """What a frame says.

    Raises:
        ValueError: it is none, of another version, or has something that is not as it should be.
    """
    words = metadata(frame)
    if words.get("version") != str(VERSION):
        raise ValueError(f"version: {words.get('version')!r} is not spoken here; allowed: {VERSION}")
    if words.get("kind") not in KINDS:
        raise ValueError(f"kind: {words.get('kind')!r} is not known; allowed: {', '.join(KINDS)}")
    counts = {name: count(words.get(name, "")) for name in ("client", "round", "step")}
    try:
        about = json.loads(words["about"])
        arrays = load(frame)
    except (KeyError, ValueError, RecursionError, SafetensorError, TypeError) as error:
        raise ValueError(f"frame: is not as it should be ({type(error).__name__})") from error
    if not isinstance(about, dict):
        raise ValueError("about: is no object; allowed: names and values")
    return Message(words["kind"], words.get("run", ""), **counts, arrays=arrays, about=about)


def digest(pixels: np.ndarray) -> str:
    """By which both ends see whether they mean the same images."""
    return hashlib.sha256(np.ascontiguousarray(pixels)).hexdigest()


def metadata(frame: bytes) -> dict[str, str]:
    """The words in a safetensors header, all of them text."""
    if not 8 < len(frame) <= LARGEST:
        raise ValueError(f"frame: has {len(frame)} bytes; allowed: 9 to {LARGEST}")
    length = int.from_bytes(frame[:8], "little")
    if length > min(HEADER_LARGEST, len(frame) - 8):
        raise ValueError(f"frame: its header would have {length} bytes; allowed: what is there, and {HEADER_LARGEST}")
    try:
        words = json.loads(frame[8 : 8 + length])["__metadata__"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise ValueError("frame: has no header of words") from error
    if not isinstance(words, dict) or not all(isinstance(value, str) for value in words.values()):
        raise ValueError("frame: has other than words in its header")
    return words


def count(text: str) -> int:
    """A whole number from 0."""
    if not (text.isascii() and text.isdecimal() and len(text) < 16):
        raise ValueError(f"count: {text[:20]!r} is none; allowed: 0 or more")
    return int(text)
