"""The oracle: one step as a plain loop over separate client modules. It is slow, and meant to be read.

`train_step` and `federated_step` have the signatures of `simsfl.algorithm.step.train_step` and
`simsfl.algorithm.federated.train_step`, and change the same state. They do so with ordinary `nn.Module` objects,
one client after the other. Tests compare the two.

In shapes, B is the number of images of one client, and D the length of the network's output. A client's position is
that in the cohort.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from simsfl.algorithm.batch import Batch, Clock, Hyperparameters, Outcome, untimed
from simsfl.algorithm.gathering import put_back_, rows_before
from simsfl.algorithm.single_client import SingleClient, move_towards
from simsfl.algorithm.state import Cohort, ServerState, State
from simsfl.config.catalogue import Targets
from simsfl.models import FlatModule, SplitModel
from simsfl.objectives import Memory, let_remember_
from simsfl.optimisers import SGD, take_step_
from simsfl.system.draws import Draws

_Pairs = list[tuple[Tensor, Tensor]]
"""Outputs ``[n, D]`` of the online network, and the objective's targets for them, in each direction of the loss."""


def train_step(
    model: SplitModel, state: State, batch: Batch, hyper: Hyperparameters, clock: Clock = untimed
) -> Outcome:
    """Train the cohort's clients and the server on one batch, in place; see `simsfl.algorithm.step.train_step`."""
    cohort, before = state.cohort, rows_before(state, batch.absent)
    clients = [_single(model.client, cohort, c, hyper) for c in range(len(cohort.online))]
    owned = [
        (pixels[c : c + 1], views.map(lambda t, c=c: t[:, c : c + 1]))
        for pixels, views in zip(batch.pixels, batch.views, strict=True)
        for c in range(len(pixels))
    ]
    draws = [[Draws(keys) for keys in own] for group in batch.noise or () for own in group.unbind(dim=1)]
    protect = hyper.defence.protect
    labels = [own for group in batch.labels for own in group] if batch.labels else []
    seen, queries, keys = [], [], []
    for c, (client, (pixels, views)) in enumerate(zip(clients, owned, strict=True)):
        with clock("data"):
            first, second = batch.images.augmented(pixels, views, cohort.online.dtype)[:, 0]
            seen.append([first, second] if hyper.targets is Targets.ONLINE else [first])
        with clock("client forward"), hyper.autocast(cohort.online.device):
            query = client.query(*seen[c])
            queries.append([protect(own, draws[c][view]) for view, own in enumerate(query)] if draws else query)
            client.move(hyper.tau)
            if hyper.targets is Targets.MOMENTUM:
                key = client.key(second)
                keys.append(protect(key, draws[c][1]) if draws else key)

    with clock("server"):
        graded = [one.detach() for view in zip(*queries, strict=True) for one in view]
        smashed = [one.to(hyper.precision) for one in [*graded, *keys]]
        sent, absent = batch.wire.up(torch.cat(smashed))
        absent = frozenset(absent) | frozenset(batch.absent)
        arrived = sent.split([len(own) for own in smashed])
        there = [c for c in range(len(clients)) if c not in absent]
        views = [{c: arrived[first + c] for c in there} for first in range(0, len(arrived), len(clients))]
        there_labels = {c: labels[c] for c in there} if labels else {}
        loss, top1 = _learn(model, state, views, there_labels, batch.server_lr, hyper)
        gradients = [torch.zeros_like(own) for own in arrived[: len(graded)]]
        for first, view in zip(range(0, len(graded), len(clients)), views, strict=False):
            for c, own in view.items():
                gradients[first + c] = own.grad
        gradients = list(batch.wire.down(torch.cat(gradients)).split([len(own) for own in graded]))

    figures = []
    if hyper.clients_learn and hyper.defence:
        with clock(hyper.defence.phase):
            for c in range(len(clients)):
                own = slice(c, None, len(clients))
                gradients[own], reported = _defended(
                    state.remembered[c : c + 1], batch, seen[c], arrived[own], gradients[own], draws[c], hyper
                )
                figures += reported

    if hyper.clients_learn:
        with clock("client backward"):
            for c in range(len(clients)):
                own = [g.to(q.dtype) for g, q in zip(gradients[c :: len(clients)], queries[c], strict=True)]
                torch.autograd.backward(queries[c], own)
            for c, client in enumerate(clients):
                # after all backward passes: clients' weights share a tensor, which those must find unchanged
                _descend_client(model, state, c, client, batch.client_lr[c, 0], hyper, draws[c] if draws else ())

    put_back_(before, batch.absent)
    means = tuple(torch.stack(figures).mean(dim=0)) if figures else ()
    return Outcome(loss, top1, sent, torch.cat(gradients), means, absent)


def _defended(
    memory: Tensor,
    batch: Batch,
    seen: Sequence[Tensor],
    sent: Sequence[Tensor],
    gradients: Sequence[Tensor],
    draws: Sequence[Draws],
    hyper: Hyperparameters,
) -> tuple[list[Tensor], list[Tensor]]:
    """Return what a client uses instead of the gradients that arrive; all lists have an item for each view.

    Args:
        memory: ``[1, A]`` what the defence remembers of the client, changed in place.
        batch: says how images are normalised, and the round.
        seen: ``[B, 3, H, W]`` normalised images.
        sent: ``[B, c, h, w]`` what the client has sent of them.
        gradients: ``[B, c, h, w]`` gradients that arrive.
        draws: random numbers of the defence.
        hyper: the defence.

    Returns:
        The gradients, and the figures that the defence reports, as one vector for each view.
    """
    own, figures = [], []
    for images, smashed, gradient, numbers in zip(seen, sent, gradients, draws, strict=False):
        received = hyper.defence.receive(gradient, numbers)
        shown = batch.images.restore(images)[None], smashed.detach()[None]
        added = hyper.defence.add_alone(*shown, memory, batch.round_index)
        own.append(received + added.gradient[0] if added else received)
        if added and added.figures:
            figures.append(torch.cat(added.figures))
    return own, figures


def _learn(
    model: SplitModel,
    state: State,
    views: Sequence[Mapping[int, Tensor]],
    labels: Mapping[int, Tensor],
    lr: Tensor,
    hyper: Hyperparameters,
) -> tuple[Tensor, Tensor]:
    """Do the server's part of a step, in place, and return loss and accuracy in percent, which are means over all rows.

    Gradients with respect to the activations that clients learn from are left in their ``grad``.

    Args:
        views: ``[B, c, h, w]`` activations of each view, by the positions of all clients that are not absent.
        labels: ``[B]`` class of each image, by position, if the objective needs them.
        lr: learning rate of the server.
    """
    replicas, rows = len(state.servers), sum(len(own) for own in views[0].values())
    loss = top1 = 0.0
    for number, central in enumerate(state.servers):
        mine = [c for c in views[0] if c * replicas // len(state.cohort.ids) == number]
        if not mine:
            continue
        memory = {name: one[number : number + 1] if len(one) == replicas else one for name, one in state.memory.items()}
        own_views = [{c: view[c] for c in mine} for view in views]
        own_labels = {c: labels[c] for c in mine} if labels else {}
        own_loss, own_top1 = _learn_alone(model, central, memory, own_views, own_labels, lr, hyper)
        share = sum(len(own) for own in own_views[0].values()) / rows
        loss, top1 = loss + share * own_loss, top1 + share * own_top1
    return loss, top1


def _learn_alone(
    model: SplitModel,
    central: ServerState,
    remembered: Memory,
    views: Sequence[Mapping[int, Tensor]],
    labels: Mapping[int, Tensor],
    lr: Tensor,
    hyper: Hyperparameters,
) -> tuple[Tensor, Tensor]:
    """Do what `_learn` does for the clients of one replica of the server, or of the only one.

    Args:
        central: the replica's state.
        remembered: what the objective remembers in a group for all of them, or in a row for each position in the
            cohort.
    """
    server = model.server.module(central.online, central.online_statistics)
    server_momentum = model.server.module(central.momentum, central.momentum_statistics)
    move_towards(server_momentum, server, hyper.tau)
    for view in views if hyper.targets is Targets.ONLINE else views[:1]:
        for smashed in view.values():
            smashed.requires_grad_()
    with hyper.autocast(central.online.device):
        pairs = _pairs(
            server, server_momentum, [torch.cat(list(view.values())) for view in views], list(labels.values()), hyper
        )
    pairs = [(outputs.to(central.online.dtype), _like(targets, central.online)) for outputs, targets in pairs]
    groups = _groups(remembered, {c: len(own) for c, own in views[0].items()})
    loss = top1 = 0.0
    for outputs, targets in pairs:
        for rows, memory in groups:
            told = {"labels": torch.cat(list(labels.values()))[rows][None]} if hyper.labels else {}
            own_loss, own_top1 = hyper.objective.losses(outputs[rows][None], targets[rows][None], memory | told)
            share = len(outputs[rows]) / len(outputs)
            loss, top1 = loss + share * own_loss, top1 + share * own_top1 / len(pairs)
    loss.backward()
    take_step_(hyper.optimiser, model.server, central.online, _gradient(server), central.velocity, lr)
    for _, targets in reversed(pairs):
        for rows, memory in groups:
            let_remember_(hyper.objective, memory, targets[rows][None].detach())
    return loss.detach(), top1


def _pairs(
    online: nn.Module, momentum: nn.Module, views: Sequence[Tensor], labels: Sequence[Tensor], hyper: Hyperparameters
) -> _Pairs:
    """Return outputs and targets in each direction of the loss.

    Args:
        online: the network that learns.
        momentum: its momentum network.
        views: images or smashed data of each view.
        labels: classes of each client's images; empty where the objective does not need them.
        hyper: which targets the objective has.
    """
    if hyper.targets is Targets.LABELS:
        return [(online(views[0]), torch.cat(list(labels)))]
    if hyper.targets is Targets.ONLINE:
        return [(online(views[0]), online(views[1]))]
    pairs = []
    for query, key in [views, views[::-1]] if hyper.symmetric else [views]:
        outputs = online(query)
        with torch.no_grad():
            pairs.append((outputs, momentum(key)))
    return pairs


def _like(targets: Tensor, weights: Tensor) -> Tensor:
    """Return targets in the dtype of the weights, unless they are labels."""
    return targets.to(weights.dtype) if targets.is_floating_point() else targets


def _groups(memory: Memory, rows: Mapping[int, int]) -> list[tuple[slice, Memory]]:
    """Return the rows of each group of clients that are trained together, and what the objective remembers for it.

    Args:
        memory: what it remembers for all of them, or in a row for each position in the cohort.
        rows: number of rows of each client, by its position.
    """
    if all(len(one) == 1 for one in memory.values()):
        return [(slice(0, sum(rows.values())), memory)]
    groups, first = [], 0
    for c, count in rows.items():
        groups.append((slice(first, first + count), {name: one[c : c + 1] for name, one in memory.items()}))
        first += count
    return groups


def federated_step(
    model: SplitModel, state: State, batch: Batch, hyper: Hyperparameters, clock: Clock = untimed
) -> Outcome:
    """Train each client of the cohort by itself, in place; see `simsfl.algorithm.federated.train_step`."""
    cohort, (pixels,), (views,) = state.cohort, batch.pixels, batch.views
    losses, top1s = [], []
    for c in (position for position in range(len(pixels)) if position not in batch.absent):
        client = _single(model.client, cohort, c, hyper)
        memory = {name: one[c : c + 1] for name, one in state.memory.items()}
        labels = [batch.labels[0][c]] if batch.labels else []
        with clock("data"):
            own_views = views.map(lambda t, c=c: t[:, c : c + 1])
            images = batch.images.augmented(pixels[c : c + 1], own_views, cohort.online.dtype)[:, 0]
        with clock("client forward"), hyper.autocast(cohort.online.device):
            client.move(hyper.tau)
            pairs = _pairs(client.online, client.momentum, list(images), labels, hyper)
        pairs = [(outputs.to(cohort.online.dtype), _like(targets, cohort.online)) for outputs, targets in pairs]
        told = {"labels": torch.cat(labels)[None]} if hyper.labels else {}
        results = [hyper.objective.losses(outputs[None], targets[None], memory | told) for outputs, targets in pairs]
        loss = sum(loss for loss, _ in results)
        with clock("client backward"):
            if hyper.clients_learn:
                loss.backward()
                _descend_client(model, state, c, client, batch.client_lr[c, 0], hyper)
            for _, targets in reversed(pairs):
                let_remember_(hyper.objective, memory, targets[None].detach())
        losses.append(loss.detach())
        top1s.append(sum(top1 for _, top1 in results) / len(results))
    nothing = cohort.online.new_empty(0)
    return Outcome(torch.stack(losses).mean(), torch.stack(top1s).mean(), nothing, nothing, absent=batch.absent)


def _single(model: FlatModule, cohort: Cohort, c: int, hyper: Hyperparameters) -> SingleClient:
    """Return the client at position `c` of the cohort by itself; its weights are views into the cohort's tensors."""
    velocity = model.named(cohort.velocity[c]).values() if isinstance(hyper.optimiser, SGD) else ()
    return SingleClient(
        model.module(cohort.online[c], cohort.online_statistics[c]),
        model.module(cohort.momentum[c], cohort.momentum_statistics[c]),
        velocity,
    )


def _descend_client(
    model: SplitModel,
    state: State,
    c: int,
    client: SingleClient,
    lr: Tensor,
    hyper: Hyperparameters,
    draws: Sequence[Draws] = (),
) -> None:
    """Let the client at position `c` of the cohort take a step.

    Args:
        model: the network.
        state: the state of the cohort, which changes, and the average that the client got last.
        c: the client's position.
        client: its model, with gradients.
        lr: learning rate, a scalar.
        hyper: defence and optimiser.
        draws: random numbers of the defence, for each view of each image.
    """
    sgd = hyper.optimiser
    if isinstance(sgd, SGD) and not hyper.defence.learns:  # as real devices do it, to the bit
        client.descend(float(lr), sgd.momentum, sgd.weight_decay)
        return
    weights, gradient = state.cohort.online.detach()[c], _gradient(client.online)
    if hyper.defence.learns:
        gradient = hyper.defence.learn(gradient[None], draws[0].rows(0, 1))[0]
    velocity, received = state.cohort.velocity[c], state.clients.online
    take_step_(hyper.optimiser, model.client, weights, gradient, velocity, lr, received)


def _gradient(module: nn.Module) -> Tensor:
    """Return the gradient of a module's parameters as one vector ``[P]``."""
    return torch.cat([parameter.grad.flatten() for parameter in module.parameters()])
