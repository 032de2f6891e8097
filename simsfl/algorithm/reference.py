"""The oracle: one step as a plain loop over separate client modules. It is slow, and meant to be read.

`train_step`, `moco_step` and `byol_step` have the signatures of those in `simsfl.algorithm.step` and
`simsfl.algorithm.federated`, and change the same state. They do so with ordinary `nn.Module` and `torch.optim.SGD`
objects, one client after the other, and compute the loss in a plain loop over rows. Tests compare the two.

In shapes, B is the number of images of one client, D the key dimension, K the queue length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simsfl.algorithm.batch import Batch, Clock, Hyperparameters, Outcome, untimed
from simsfl.algorithm.single_client import SingleClient, move_towards
from simsfl.algorithm.state import Cohort, KeyQueue, State
from simsfl.kernels import tie_width
from simsfl.models import FlatModule, SplitModel
from simsfl.privacy.similarity import ssim


def train_step(
    model: SplitModel, state: State, batch: Batch, hyper: Hyperparameters, clock: Clock = untimed
) -> Outcome:
    """Train the cohort's clients and the server on one batch, in place; see `simsfl.algorithm.step.train_step`."""
    cohort = state.cohort
    clients = [_single(model.client, cohort, c) for c in range(len(cohort.online))]
    owned = [
        (pixels[c : c + 1], views.map(lambda t, c=c: t[:, c : c + 1]))
        for pixels, views in zip(batch.pixels, batch.views, strict=True)
        for c in range(len(pixels))
    ]
    seen, queries, keys = [], [], []
    for client, (pixels, views) in zip(clients, owned, strict=True):
        with clock("data"):
            query_images, key_images = batch.images.augmented(pixels, views, cohort.online.dtype)[:, 0]
            seen.append(query_images)
        with clock("client forward"), hyper.autocast(cohort.online.device):
            queries.append(client.query(query_images).detach().to(hyper.precision))
            client.move(hyper.tau)
            if not batch.labels:
                keys.append(client.key(key_images).to(hyper.precision))

    with clock("server"):
        sent, absent = batch.wire.up(torch.cat([*queries, *keys]))
        lengths = [len(own) for own in queries]
        arrived = sent.split([*lengths, *lengths] if keys else lengths)
        there = [c for c in range(len(clients)) if c not in absent]
        query = torch.cat([arrived[c] for c in there]).requires_grad_()
        own_keys = {c: arrived[len(clients) + c] for c in there if keys}
        own_labels = [labels for group in batch.labels for labels in group] if batch.labels else []
        labels = torch.cat([own_labels[c] for c in there]) if batch.labels else None
        loss, top1 = _learn(model, state, query, own_keys, labels, float(batch.server_lr), hyper)
        gradients = [torch.zeros_like(own) for own in queries]
        for c, gradient in zip(there, query.grad.split([lengths[c] for c in there]), strict=True):
            gradients[c] = gradient
        gradients = list(batch.wire.down(torch.cat(gradients)).split(lengths))

    attackers_ssim: tuple[Tensor, ...] = ()
    if hyper.clients_learn and model.attacker:
        with clock("attackers"):
            attackers_ssim = _taressfl_all(model, state, batch, seen, queries, gradients, hyper)

    if hyper.clients_learn:
        with clock("client backward"):
            for client, gradient in zip(clients, gradients, strict=True):
                client.backward(gradient)
            for client, lr in zip(clients, batch.client_lr, strict=True):
                # after all backward passes: clients' weights share a tensor, which those must find unchanged
                client.descend(float(lr), hyper.momentum, hyper.weight_decay)

    return Outcome(loss, top1, sent, torch.cat(gradients), attackers_ssim, absent)


def _learn(
    model: SplitModel,
    state: State,
    query: Tensor,
    keys: Mapping[int, Tensor],
    labels: Tensor | None,
    lr: float,
    hyper: Hyperparameters,
) -> tuple[Tensor, Tensor]:
    """Do the server's part of a step, in place, and return loss and accuracy in percent.

    The gradient with respect to `query` is left in ``query.grad``.

    Args:
        query: ``[n, c, h, w]`` activations of the online models of all clients that are not absent.
        keys: ``[B, c, h, w]`` activations of the momentum model of each such client, by its position in the cohort;
            empty in supervised training.
        labels: ``[n]`` class of each image in supervised training, otherwise None.
        lr: learning rate of the server.
    """
    central, queue = state.server, state.queue
    server = model.server.module(central.online, central.online_statistics)
    server_momentum = model.server.module(central.momentum, central.momentum_statistics)
    autocast = hyper.autocast(query.device)
    move_towards(server_momentum, server, hyper.tau)
    directions = []
    if labels is not None:
        with autocast:
            scores = server(query)
        loss = F.cross_entropy(scores.to(central.online.dtype), labels)
        top1 = 100.0 * (scores.detach().argmax(dim=1) == labels).to(loss.dtype).mean()
    else:
        key = torch.cat(list(keys.values()))
        with autocast:
            q1, k2 = _embed(server, query), _embed(server_momentum, key).detach()
            directions.append((q1, k2))
            if hyper.symmetric:
                q2, k1 = _embed(server, key), _embed(server_momentum, query).detach()
                directions.append((q2, k1))
        shared = len(queue.keys) == 1
        owners = [0 if shared else c for c, rows in keys.items() for _ in rows]
        results = [_contrast(q, k, [queue.keys[row] for row in owners], hyper.temperature) for q, k in directions]
        loss = sum(loss for loss, _ in results)
        top1 = sum(top1 for _, top1 in results) / len(results)
    loss.backward()
    _descend(model.server, server, central.velocity, lr, hyper)
    for _, k in reversed(directions):
        for row, one in zip(owners, k, strict=True):
            _enqueue(queue, row, one)
    return loss.detach(), top1


def _taressfl_all(
    model: SplitModel,
    state: State,
    batch: Batch,
    seen: Sequence[Tensor],
    queries: Sequence[Tensor],
    gradients: list[Tensor],
    hyper: Hyperparameters,
) -> tuple[Tensor, ...]:
    """Add to each client's gradient, in place, the one that makes its attacker's reconstructions worse (TAResSFL).

    Args:
        seen: for each client the normalised images ``[B, 3, H, W]`` that its query activations were computed from.
        queries: for each client these activations, ``[B, c, h, w]``.
        gradients: for each client the gradient of these activations, ``[B, c, h, w]``.

    Returns:
        SSIM of the attackers' reconstructions, averaged over clients, before and after they learn from this step.
    """
    figures = []
    for c, (images, sent) in enumerate(zip(seen, queries, strict=True)):
        attacker = state.attackers.cohort[c]
        added, *figure = _taressfl(model, attacker, batch.images.restore(images), sent, batch.attackers_lr, hyper)
        gradients[c] = gradients[c] + added
        figures.append(torch.stack(figure))
    return tuple(torch.stack(figures).mean(dim=0))


def _taressfl(
    model: SplitModel, attacker: Tensor, images: Tensor, sent: Tensor, lr: Tensor, hyper: Hyperparameters
) -> tuple[Tensor, Tensor, Tensor]:
    """Let one client's attacker learn from the step, in place (TAResSFL).

    Args:
        attacker: ``[A]`` row of the attacker, see `simsfl.algorithm.state.Attackers`.
        images: ``[B, 3, H, W]`` the client's images, in [0, 1].
        sent: ``[B, c, h, w]`` the client's smashed data of these images.
        lr: scalar learning rate of the attacker.

    Returns:
        The gradient ``[B, c, h, w]`` that makes the attacker's reconstructions worse, and their SSIM before and after
        it learns.
    """
    parameters, first, second = attacker[:-1].chunk(3)
    decoder = model.attacker.module(parameters)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=float(lr), foreach=False)
    averages = (model.attacker.named(average).values() for average in (first, second))
    for parameter, one, two in zip(decoder.parameters(), *averages, strict=True):
        optimizer.state[parameter] = {"step": attacker[-1].clone(), "exp_avg": one, "exp_avg_sq": two}
    smashed = sent.detach().to(attacker.dtype).requires_grad_()
    before = ssim(decoder(smashed.detach()), images).mean()
    (-before).backward()
    optimizer.step()
    attacker[-1] += 1
    after = ssim(decoder(smashed), images).mean()
    if after <= hyper.taressfl_target_ssim:
        return torch.zeros_like(sent), before.detach(), after.detach()
    (hyper.taressfl_lambda * (after - hyper.taressfl_target_ssim)).backward()
    return smashed.grad.to(sent.dtype), before.detach(), after.detach()


def moco_step(model: SplitModel, state: State, batch: Batch, hyper: Hyperparameters, clock: Clock = untimed) -> Outcome:
    """Train each client with MoCo by itself, in place; see `simsfl.algorithm.federated.moco_step`."""

    def own_loss(c: int, online: nn.Module, target: nn.Module, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        q = _embed(online, query)
        with torch.no_grad():
            k = _embed(target, key)
        return *_contrast(q, k, [state.queue.keys[c]] * len(q), hyper.temperature), k

    return _federated_step(own_loss, model, state, batch, hyper, clock)


def byol_step(model: SplitModel, state: State, batch: Batch, hyper: Hyperparameters, clock: Clock = untimed) -> Outcome:
    """Train each client with BYOL by itself, in place; see `simsfl.algorithm.federated.byol_step`."""

    def own_loss(c: int, online: nn.Module, target: nn.Module, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        prediction = online(query).to(state.cohort.online.dtype).chunk(2, dim=1)[1]
        with torch.no_grad():
            projection = target(key).to(prediction).chunk(2, dim=1)[0]
        hits = []
        for own, row in enumerate(prediction):
            similar = F.cosine_similarity(row[None], projection)
            lead = similar[own] - torch.cat([similar[:own], similar[own + 1 :]])
            hits.append((lead > tie_width(projection)).all())
        top1 = 100.0 * torch.stack(hits).to(prediction.dtype).mean()
        return (2.0 - 2.0 * F.cosine_similarity(prediction, projection)).mean(), top1, projection

    return _federated_step(own_loss, model, state, batch, hyper, clock)


def _federated_step(
    own_loss: Callable[..., tuple[Tensor, Tensor, Tensor]],
    model: SplitModel,
    state: State,
    batch: Batch,
    hyper: Hyperparameters,
    clock: Clock,
) -> Outcome:
    """Train each client of the cohort by itself, in place.

    Args:
        own_loss: function of a client's position, its online and momentum models, and the images ``[B, 3, H, W]`` of
            the view for each. It returns the client's loss, its accuracy in percent, and its keys ``[B, D]``.
    """
    cohort, (pixels,), (views,) = state.cohort, batch.pixels, batch.views
    losses, top1s = [], []
    for c in range(len(pixels)):
        client = _single(model.client, cohort, c)
        with clock("data"):
            own_views = views.map(lambda t, c=c: t[:, c : c + 1])
            first, second = batch.images.augmented(pixels[c : c + 1], own_views, cohort.online.dtype)[:, 0]
        with clock("client forward"), hyper.autocast(cohort.online.device):
            client.move(hyper.tau)
            pairs = [(first, second), (second, first)] if hyper.symmetric else [(first, second)]
            results = [own_loss(c, client.online, client.momentum, query, key) for query, key in pairs]
        loss = sum(loss for loss, _, _ in results)
        with clock("client backward"):
            if hyper.clients_learn:
                loss.backward()
                client.descend(float(batch.client_lr[c]), hyper.momentum, hyper.weight_decay)
            for _, _, keys in reversed(results):
                for key in keys if state.queue.keys.numel() else ():
                    _enqueue(state.queue, c, key)
        losses.append(loss.detach())
        top1s.append(sum(top1 for _, top1, _ in results) / len(results))
    nothing = cohort.online.new_empty(0)
    return Outcome(torch.stack(losses).mean(), torch.stack(top1s).mean(), nothing, nothing)


def _single(model: FlatModule, cohort: Cohort, c: int) -> SingleClient:
    """Return the client at position `c` of the cohort by itself; its weights are views into the cohort's tensors."""
    return SingleClient(
        model.module(cohort.online[c], cohort.online_statistics[c]),
        model.module(cohort.momentum[c], cohort.momentum_statistics[c]),
        model.named(cohort.velocity[c]).values(),
    )


def _embed(module: nn.Module, smashed: Tensor) -> Tensor:
    """Return a network's output for smashed data or images, as unit rows ``[n, D]`` in the dtype of its weights."""
    return F.normalize(module(smashed).to(next(module.parameters()).dtype), dim=1)


def _enqueue(queue: KeyQueue, row: int, key: Tensor) -> None:
    """Write a key ``[D]`` into ring `row` of the queue, and move the ring's pointer on."""
    slot = int(queue.pointer[row])
    queue.keys[row, slot] = key
    queue.pointer[row] = (slot + 1) % queue.keys.shape[1]


def _contrast(query: Tensor, key: Tensor, queues: Sequence[Tensor], temperature: float) -> tuple[Tensor, Tensor]:
    """Return the mean InfoNCE loss and the accuracy in percent, row by row.

    A row's loss is minus the logarithm of its positive's share of the sum of exponentials. It is a hit if its positive
    scores higher than every negative, and not if one of them scores the same.

    Args:
        query: ``[n, D]`` unit rows.
        key: ``[n, D]`` unit rows, the positive of each query.
        queues: negatives ``[K, D]`` of each query.
        temperature: T, which scores are divided by.
    """
    losses, hits = [], []
    for q, k, queue in zip(query, key, queues, strict=True):
        positive = torch.dot(q, k) / temperature
        scores = torch.cat([positive[None], queue @ q / temperature])
        losses.append(torch.logsumexp(scores, dim=0) - positive)
        hits.append((scores[0] - scores[1:] > tie_width(query) / temperature).all())
    return torch.stack(losses).mean(), 100.0 * torch.stack(hits).to(query.dtype).mean()


def _descend(model: FlatModule, module: nn.Module, velocity: Tensor, lr: float, hyper: Hyperparameters) -> None:
    """Take one step of `torch.optim.SGD`, whose momentum buffers are views into `velocity`.

    Args:
        model: the network's `FlatModule`, which knows where each parameter lies in `velocity`.
        module: the network that learns.
        velocity: ``[Q]`` SGD's velocity, changed in place.
        lr: learning rate.
        hyper: momentum and weight decay.
    """
    optimizer = torch.optim.SGD(
        module.parameters(), lr=lr, momentum=hyper.momentum, weight_decay=hyper.weight_decay, foreach=False
    )
    for parameter, buffer in zip(module.parameters(), model.named(velocity).values(), strict=True):
        optimizer.state[parameter]["momentum_buffer"] = buffer
    optimizer.step()
