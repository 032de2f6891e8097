"""Code behind a name: an object of simsfl that is imported when it is asked for, or one registered from outside."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module
from typing import Any


class RegistrationError(ValueError):
    """The error that something cannot be registered under a name."""


@dataclass(frozen=True)
class Code:
    """A reference to an object, which is imported at first use, so that ``--help`` needs no torch, or is registered.

    >>> Code("math:floor").load()(2.5)
    2
    """

    path: str
    """Module and object, such as ``simsfl.models.resnet:resnet8``."""
    registered: Any = None
    """The object itself, if it has been registered from outside simsfl."""

    def load(self) -> Any:
        """Return the object; import its module if needed."""
        if self.registered is not None:
            return self.registered
        module, _, name = self.path.partition(":")
        return getattr(import_module(module), name)

    @property
    def place(self) -> str:
        """Return where the object is defined: the file or the name of its plugin's module, or "simsfl"."""
        if self.registered is None:
            return "simsfl"
        module = sys.modules[self.registered.__module__]
        return getattr(module, "__file__", None) or module.__name__


def registered(thing: Any) -> Code:
    """Return the code of an object that somebody registers."""
    return Code(f"{thing.__module__}:{thing.__qualname__}", thing)


def code_of(known: Any) -> Code:
    """Return the code behind a name, given what a registry knows of the name: the code itself, or an object with it."""
    return known if isinstance(known, Code) else known.code
