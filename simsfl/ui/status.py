"""What the status of a run says of its end, and of its key queue."""

from __future__ import annotations

import time

from simsfl.runs.metrics import ENDINGS, Status
from simsfl.ui.text import time_text

STALE_SECONDS = 120
"""Seconds without news after which a run has probably been killed."""


def time_left(status: Status) -> float | None:
    """Return the seconds until the run ends, if steps and evaluations stay as fast; None before the first step."""
    training = sum(status.phase_seconds.values()) - status.phase_seconds.get("evaluation", 0.0)
    if not status.step_seconds or not training:
        return None
    done = status.round * status.steps + status.step
    evaluations = 1 + status.phase_seconds.get("evaluation", 0.0) / training
    return status.step_seconds * evaluations * (status.rounds * status.steps - done)


def gone(status: Status) -> str:
    """Return that a run has probably been killed, as text; empty if it has ended, or there was news of it lately."""
    silent = time.time() - status.updated
    return (
        f"no news for {time_text(silent)}; killed?" if status.activity not in ENDINGS and silent > STALE_SECONDS else ""
    )


def filling(status: Status) -> str:
    """Return how far the key queue is filled while it is filling, such as "queue filling 37 %"; empty otherwise.

    As long as it holds random keys, it gets harder to tell an image's own key from them, so that the loss may rise.
    """
    share = status.queue_filled
    if share is None or share == 1 or status.activity in ENDINGS:
        return ""
    return f"queue filling {int(100 * share)} %"
