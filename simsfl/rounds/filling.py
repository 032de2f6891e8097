"""How far the key queue is filled with keys of images; before the first step, its keys are random."""

from __future__ import annotations

from simsfl.algorithm.plan import Group
from simsfl.rounds.progress import Progress
from simsfl.setup.parts import Parts


def filled(parts: Parts, progress: Progress) -> float | None:
    """Return the share of the key queue, from 0 to 1, that holds keys of images; None if the objective has no queue.

    Where each client has a queue of its own, it is the mean over all clients of the run, of whom slow ones count as if
    they missed no step. Replicas of the server count as if each had an equal part of the images.

    Args:
        parts: the parts of the simulation.
        progress: how far the run has come.
    """
    config, directions = parts.config, parts.config.views_at_server
    if not config.goal.queue:
        return None
    if config.own_queues:
        queues = [_queues_of(group, parts, progress, directions * group.batch_size) for group in parts.groups]
        return sum(queues) / config.clients
    images = (progress.round_index * progress.steps + progress.step_index) * sum(parts.batches)
    images -= progress.absent.images_missed if progress.absent else 0
    return min(1.0, directions * images / config.server_replicas / config.keys_in_a_queue)


def _queues_of(group: Group, parts: Parts, progress: Progress, keys: int) -> float:
    """Return the shares of the queues of a group's clients that are filled, summed over these clients.

    Args:
        group: clients that share a batch size.
        parts: the parts of the simulation.
        progress: how far the run has come.
        keys: the keys that a client writes in a step.
    """
    clients, ids = parts.state.clients, parts.state.cohort.ids.cpu()
    steps = clients.participation[group.clients.start : group.clients.stop].cpu() * progress.steps
    if not progress.round_is_over:  # otherwise the round is among those that they have taken part in
        here = ids[(ids >= group.clients.start) & (ids < group.clients.stop)]
        steps[here - group.clients.start] += progress.step_index
    return (keys * steps.double() / parts.config.keys_in_a_queue).clamp(max=1.0).sum().item()
