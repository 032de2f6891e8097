"""Messages between devices and the server: safetensors with a few words of JSON, never pickle.

A frame is a safetensors file. Its metadata state the version of the protocol, the kind of message, and the run, client,
round and step that it belongs to. Whatever bytes a frame holds, `unpack` either returns a message whose fields have the
declared types, or raises a ValueError.
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

_VERSION = 1
"""Version of the protocol, which both ends must share."""
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
"""Kinds of messages, in the order of a session.

A device says hello, is ready once it has loaded what it needs, and says bye when it leaves. A device that is
dismissed may say hello again; one that is refused may not."""
LARGEST = 1 << 28
"""Largest size of a frame, in bytes."""
_HEADER_LARGEST = 1 << 20
"""Largest size of a frame's header, in bytes."""


@dataclass(frozen=True)
class Message:
    """One message of the protocol."""

    kind: str
    """Kind of the message, one of `KINDS`."""
    run: str = ""
    """Id of the run; empty in a device's first hello."""
    client: int = 0
    """Id of the client that the device is."""
    round: int = 0
    """Index of the round, from 0."""
    step: int = 0
    """Index of the step in its round, from 0."""
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Arrays by name, such as smashed data, gradients or weights."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Further values that JSON can hold, by name."""


def pack(message: Message) -> bytes:
    """Return the message as a frame."""
    words = {
        "version": str(_VERSION),
        "kind": message.kind,
        "run": message.run,
        "client": str(message.client),
        "round": str(message.round),
        "step": str(message.step),
        "about": json.dumps(message.about),
    }
    return save({name: np.ascontiguousarray(array) for name, array in message.arrays.items()}, words)


def unpack(frame: bytes) -> Message:
    """Return the message that a frame holds.

    Raises:
        ValueError: the frame is no message, is of another version of the protocol, or has a malformed field.
    """
    words = _metadata(frame)
    if words.get("version") != str(_VERSION):
        raise ValueError(f"version: {words.get('version')!r} of the protocol is not known; allowed: {_VERSION}")
    if words.get("kind") not in KINDS:
        raise ValueError(f"kind: {words.get('kind')!r} is not known; allowed: {', '.join(KINDS)}")
    counts = {name: _count(words.get(name, "")) for name in ("client", "round", "step")}
    try:
        about = json.loads(words["about"])
        arrays = load(frame)
    except (KeyError, ValueError, RecursionError, SafetensorError, TypeError) as error:
        raise ValueError(f"frame: is malformed ({type(error).__name__})") from error
    if not isinstance(about, dict):
        raise ValueError("about: is no JSON object; allowed: names and values")
    return Message(words["kind"], words.get("run", ""), **counts, arrays=arrays, about=about)


def digest(pixels: np.ndarray) -> str:
    """Return the SHA-256 of images as hexadecimal text, by which both ends check that they have the same images."""
    return hashlib.sha256(np.ascontiguousarray(pixels)).hexdigest()


def _metadata(frame: bytes) -> dict[str, str]:
    """Return the metadata in a safetensors header, all of them text.

    Raises:
        ValueError: the frame or its header is too large, or has no such metadata.
    """
    if not 8 < len(frame) <= LARGEST:
        raise ValueError(f"frame: has {len(frame)} bytes; allowed: 9 to {LARGEST}")
    length = int.from_bytes(frame[:8], "little")
    if length > min(_HEADER_LARGEST, len(frame) - 8):
        raise ValueError(
            f"frame: its header has {length} bytes; allowed: as many as follow, and at most {_HEADER_LARGEST}"
        )
    try:
        words = json.loads(frame[8 : 8 + length])["__metadata__"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise ValueError("frame: has no metadata in its header") from error
    if not isinstance(words, dict) or not all(isinstance(value, str) for value in words.values()):
        raise ValueError("frame: has metadata other than text in its header")
    return words


def _count(text: str) -> int:
    """Return a whole number of 0 or more; raise a ValueError if the text is not one."""
    if not (text.isascii() and text.isdecimal() and len(text) < 16):
        raise ValueError(f"count: {text[:20]!r} is no number; allowed: 0 or more")
    return int(text)
