"""Randomness that is addressed, not consumed.

Every draw is a function of the run's seed, its purpose, and its address (such as round and client). So it does not
depend on engine, chunking or device, nor on whether a run was interrupted, and nothing that a user draws from the
global generators can change a run, or be changed by it.
"""

from __future__ import annotations

import enum
import random

import numpy as np
import torch


class Purpose(enum.IntEnum):
    """What a draw is for. The numbers are part of every recorded result, so never reuse one."""

    PARTITION = 0
    MODEL = 1
    QUEUE = 2
    COHORT = 3
    SHUFFLE = 4
    VIEWS = 5
    EVALUATION = 6
    SHAPES = 7
    PROBE = 8
    PROPORTION = 9
    REPLAY = 10
    LABELLED = 11
    ATTACKER = 12
    DECODER = 13
    FIGURE = 14
    ABSENCE = 15
    NOISE = 16
    FLEET = 17


def numpy_generator(seed: int, purpose: Purpose, *address: int) -> np.random.Generator:
    """Return the NumPy generator at an address, such as a round and a client id."""
    return np.random.default_rng([seed, purpose, *address])


def torch_generator(seed: int, purpose: Purpose) -> torch.Generator:
    """Return the torch generator for a purpose; it is on the CPU, so that its draws do not depend on the device."""
    key = int(numpy_generator(seed, purpose).integers(2**63))
    return torch.Generator().manual_seed(key)


def global_generators() -> list[bytes]:
    """Return the states of the global generators of PyTorch on each device, of NumPy and of Python, to be compared."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states += torch.cuda.get_rng_state_all()
    _, numbers, position, *_ = np.random.get_state()  # noqa: NPY002  (it is not drawn from)
    own = [repr(random.getstate()).encode(), numbers.tobytes() + position.to_bytes(4, "little")]
    return [state.numpy().tobytes() for state in states] + own
