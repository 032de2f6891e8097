"""A plugin, runs with it, and doors that are closed again after each test."""

from unittest.mock import patch

import pytest

from simsfl.cli import run
from simsfl.config import plugins
from simsfl.config.catalogue import DOORS
from tests.conftest import TINY, flags

OBJECTIVE = """
from dataclasses import dataclass
from simsfl import extend


@extend.objective("apart", targets=extend.Targets.ONLINE)
@dataclass(frozen=True)
class Apart(extend.Objective):
    \"\"\"The squared distance of two views.\"\"\"

    weight: float = extend.option(1.0, "Weight.", within=(0, 10))
    squared: bool = extend.option(True, "Square it.")
    most: int | None = extend.option(None, "Most.")

    @classmethod
    def of(cls, config):
        if config.tau == 0:
            raise ValueError("objective: apart needs a momentum; allowed: --tau above 0")
        return super().of(config)

    def loss(self, outputs, targets, memory):
        loss = self.weight * (outputs - targets).square().mean()
        return loss, loss.detach()
"""


@pytest.fixture(autouse=True)
def closed(monkeypatch):
    """Close the doors after each test, and forget plugins that it has named."""
    monkeypatch.setenv("SIMSFL_PLUGINS", "")
    monkeypatch.setattr(plugins, "_warned", set())
    for names in DOORS.values():
        patched = patch.dict(names)
        patched.start()
    yield
    patch.stopall()


@pytest.fixture
def file(tmp_path):
    """Return the path of a plugin."""
    path = tmp_path / "apart.py"
    path.write_text(OBJECTIVE)
    return path


def train(npz, out, *argv):
    """Train a tiny run with flags; return the exit code."""
    settings = {name: value for name, value in TINY.items() if name != "queue_length"} | {"rounds": 1, "eval_every": 0}
    return run.main([*flags(dataset=npz, out=out, dashboard="off", **settings), *map(str, argv)])
