"""All that changes during training: tensors in frozen dataclasses, allocated once.

What persists per client is small. Right after an averaging every client's online model is the
average, so it is stored once; the momentum model and the SGD velocity really differ, and are
gathered for the cohort at the start of a round and scattered back at its end. Until a client first takes part even
they do not, and are not written: memory that is never touched costs nothing on a CPU. Nothing is rebound: functions
that change state end in ``_``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from simsfl.models import FlatModule
from simsfl.system.client_store import Storage
from simsfl.system.tensor_file import Rows, rows_in_block

if TYPE_CHECKING:
    from safetensors import safe_open


LAZY = {"lazy": True}
"""Metadata of a field: a stack with a row per client that holds nothing yet of those that have not taken part,
so that a checkpoint has the rows of participants alone."""
SAME_AS = "same as"
"""In the metadata of a field of `State`: another field, which may be the same object; it is then saved once."""


@dataclass(frozen=True)
class Clients:
    """What persists of M clients with P parameters and S running statistics each."""

    online: Tensor
    """``[P]`` the latest average, the model every client has right after an averaging."""
    online_statistics: Tensor
    """``[S]`` the latest average of the running statistics."""
    initial: Tensor
    """``[P]`` the momentum model of those that have not taken part."""
    initial_statistics: Tensor
    """``[S]`` the running statistics of those that have not taken part."""
    momentum: Tensor = field(metadata=LAZY)
    """``[M, P]`` momentum models of those that have; ``[1, P]`` where they are averaged too (MonAcoSFL)."""
    momentum_statistics: Tensor = field(metadata=LAZY)
    """``[M, S]`` running statistics of the momentum models, or ``[1, S]`` where these are averaged."""
    velocity: Tensor = field(metadata=LAZY)
    """``[M, P]`` SGD velocity."""
    own: Tensor = field(metadata=LAZY)
    """``[M, P]`` online models before the latest averaging, where clients mix it with them; else ``[0, P]``."""
    scale: Tensor
    """``[M, 1]`` factor of each client's divergence in mixing, 0 until it is set; else ``[0, 1]``."""
    participation: Tensor
    """``[M]`` int64, rounds that each client has completed."""
    storage: Storage
    """Where the stacks lie."""

    def participants(self) -> Tensor:
        """Return the ids ``[A]`` of the clients that have taken part."""
        return self.participation.nonzero().flatten()


@dataclass(frozen=True)
class Cohort:
    """The C clients of the current round, stacked."""

    ids: Tensor
    """``[C]`` int64 client ids, in cohort order."""
    online: Tensor
    """``[C, P]`` online models; the leaf that the client gradient is taken of."""
    online_statistics: Tensor
    """``[C, S]``."""
    momentum: Tensor
    """``[C, P]``."""
    momentum_statistics: Tensor
    """``[C, S]``."""
    velocity: Tensor
    """``[C, P]``."""


@dataclass(frozen=True)
class ServerState:
    """The shared model behind the cut and its momentum encoder, Q parameters each."""

    online: Tensor
    """``[Q]``."""
    momentum: Tensor
    """``[Q]``."""
    velocity: Tensor
    """``[Q]``."""
    online_statistics: Tensor
    """``[S]`` running statistics, where it has BatchNorm."""
    momentum_statistics: Tensor
    """``[S]``."""


@dataclass(frozen=True)
class KeyQueue:
    """Keys of earlier steps, a ring of length K for each of G groups of clients."""

    keys: Tensor
    """``[G, K, D]`` unit rows."""
    pointer: Tensor
    """``[G]`` int64, where the next key goes."""


@dataclass(frozen=True)
class Attackers:
    """The simulated attackers of TAResSFL, one for each client (`simsfl.defences.taressfl`).

    A row is an attacker: the R parameters of its decoder, Adam's averages of their gradients and of these squared, and
    how often it has learnt, ``A = 3R + 1`` numbers.
    """

    initial: Tensor
    """``[A]`` the attacker of a client that has not taken part."""
    cohort: Tensor
    """``[C, A]`` attackers of the cohort."""
    own: Tensor = field(metadata=LAZY)
    """``[M, A]`` attackers of clients that have taken part; they lie where the clients' state does."""


@dataclass(frozen=True)
class Sent:
    """What clients sent in each of S steps of the latest round that they sent anything in.

    Kept where the server may train on it again (`simsfl.algorithm.communication`), with the clients' state.
    """

    smashed: Tensor
    """``[S, R, c, h, w]`` activations, as they went over the wire."""
    labels: Tensor
    """``[S, R]`` int64 where training is supervised, else ``[0, R]``."""

    def keep_(self, step: int, smashed: Tensor, labels: Sequence[Tensor] | None) -> None:
        """Put away what was sent in a step."""
        self.smashed[step].copy_(smashed)
        if labels is not None:
            self.labels[step].copy_(torch.cat([own.flatten() for own in labels]))


@dataclass(frozen=True)
class State:
    """Everything a run has learnt. `queues` persists; `queue` is what the cohort sees.

    With a shared queue both are the same object (G = 1); otherwise `queues` has one ring per
    client and `queue` one per cohort position. `sent` and `attackers` are None where nothing needs them.
    """

    clients: Clients
    cohort: Cohort
    server: ServerState
    queues: KeyQueue
    queue: KeyQueue = field(metadata={SAME_AS: "queues"})
    sent: Sent | None
    attackers: Attackers | None

    def tensors(self) -> dict[str, Tensor]:
        """Return every distinct tensor by dotted name."""
        return {name: tensor for name, tensor, _ in self._named()}

    def saved(self, *, sent: bool) -> dict[str, Tensor | Rows]:
        """Return what a checkpoint holds: every tensor, but of lazy stacks only the rows of participants.

        Args:
            sent: whether what clients have sent is needed again.
        """
        rows, release = self.clients.participants(), self.clients.storage.release
        return {
            name: Rows(tensor, rows, release) if lazy and len(tensor) > 1 else tensor
            for name, tensor, lazy in self._named()
            if sent or not name.startswith("sent.")
        }

    def restore_(self, file: safe_open, *, sent: bool) -> None:
        """Take over what `saved` has given.

        Raises:
            ValueError: a tensor has another shape.
        """
        participation = self.clients.participation
        participation.copy_(same_shape(file.get_tensor("clients.participation"), participation))
        for name, held in self.saved(sent=sent).items():
            if isinstance(held, Tensor):
                held.copy_(same_shape(file.get_tensor(name), held))
                continue
            saved, start = file.get_slice(name), 0
            _check_shape(saved.get_shape(), held.shape)
            for rows in held.rows.split(rows_in_block(held.tensor)):
                part = saved[start : start + len(rows)]
                held.tensor[rows] = part.to(held.tensor.device, held.dtype)
                start += len(rows)
                held.done()

    def _named(self) -> Iterator[tuple[str, Tensor, bool]]:
        """Yield the dotted name of every distinct tensor, the tensor, and whether it is a lazy stack."""
        for part in fields(self):
            owner, twin = getattr(self, part.name), part.metadata.get(SAME_AS)
            if owner is None or (twin and owner is getattr(self, twin)):
                continue
            for one in fields(owner):
                value = getattr(owner, one.name)
                if isinstance(value, Tensor):
                    yield f"{part.name}.{one.name}", value.detach(), "lazy" in one.metadata


def same_shape(tensor: Tensor, like: Tensor) -> Tensor:
    """Return `tensor`, or raise a ValueError if it is not shaped as `like`."""
    _check_shape(tensor.shape, like.shape)
    return tensor


def _check_shape(shape: Sequence[int], wanted: Sequence[int]) -> None:
    """Raise a ValueError if a shape is not the wanted one."""
    if list(shape) != list(wanted):
        raise ValueError(f"shape {list(shape)} is not {list(wanted)}")


def initial_clients(
    model: FlatModule,
    clients: int,
    storage: Storage,
    device: torch.device,
    dtype: torch.dtype,
    *,
    align_momentum: bool,
    mixing: bool,
) -> Clients:
    """Allocate what persists of `clients` clients, who all begin with the weights of `model`.

    Args:
        storage: where it is kept, and in which dtype.
        device: of the averages, like `dtype`.
        align_momentum: whether momentum models are averaged, so that one is enough for all.
        mixing: whether clients mix the average with their own models, which are then kept.
    """
    online, statistics = (one.to(device, dtype) for one in (model.initial, model.initial_statistics))

    def persisting(one: Tensor) -> Tensor:
        return _stack(one, 1) if align_momentum or clients == 1 else storage.zeros(clients, len(one))

    return Clients(
        online=online.clone(),
        online_statistics=statistics.clone(),
        initial=online.clone(),
        initial_statistics=statistics.clone(),
        momentum=persisting(online),
        momentum_statistics=persisting(statistics),
        velocity=storage.zeros(clients, len(online)),
        own=storage.zeros(clients if mixing else 0, len(online)),
        scale=torch.zeros(clients if mixing else 0, 1, device=storage.device, dtype=dtype),
        participation=torch.zeros(clients, dtype=torch.long, device=storage.device),
        storage=storage,
    )


def initial_cohort(model: FlatModule, cohort: int, device: torch.device, dtype: torch.dtype) -> Cohort:
    """Allocate a cohort of `cohort` clients, who all begin with the weights of `model`."""
    online, statistics = (one.to(device, dtype) for one in (model.initial, model.initial_statistics))
    return Cohort(
        ids=torch.arange(cohort, device=device),
        online=_stack(online, cohort).requires_grad_(),
        online_statistics=_stack(statistics, cohort),
        momentum=_stack(online, cohort),
        momentum_statistics=_stack(statistics, cohort),
        velocity=torch.zeros(cohort, len(online), device=device, dtype=dtype),
    )


def initial_server(model: FlatModule, device: torch.device, dtype: torch.dtype) -> ServerState:
    """Allocate the server, which takes over the weights of `model`: they may be most of a run's memory."""
    online, statistics = model.take_initial().to(device, dtype), model.initial_statistics.to(device, dtype)
    return ServerState(
        online=online.clone(),
        momentum=online,
        velocity=torch.zeros_like(online),
        online_statistics=statistics.clone(),
        momentum_statistics=statistics.clone(),
    )


def initial_queues(
    rings: int, length: int, dim: int, generator: torch.Generator, device: torch.device, dtype: torch.dtype
) -> KeyQueue:
    """Allocate rings of `length` random unit keys of `dim` numbers each.

    Args:
        generator: on the CPU, so that the keys do not depend on the device.
    """
    keys = torch.randn(rings, length, dim, generator=generator).to(device, dtype)
    return KeyQueue(F.normalize(keys, dim=2), torch.zeros(rings, dtype=torch.long, device=device))


def cohort_queues(queues: KeyQueue, cohort: int) -> KeyQueue:
    """Allocate what a cohort has of `queues` with a ring for each client: a ring for each client of the cohort."""
    return KeyQueue(queues.keys[:cohort].clone(), queues.pointer[:cohort].clone())


def initial_attackers(
    decoder: FlatModule, clients: int, cohort: int, storage: Storage, device: torch.device, dtype: torch.dtype
) -> Attackers:
    """Allocate the simulated attackers of all clients, which all begin with the weights of `decoder`."""
    parameters = decoder.initial.to(device, dtype)
    initial = torch.cat([parameters, parameters.new_zeros(2 * len(parameters) + 1)])
    own = storage.zeros(clients, len(initial), dtype)  # too many steps for bfloat16 to count
    return Attackers(initial=initial, cohort=initial.repeat(cohort, 1), own=own)


def _stack(one: Tensor, rows: int) -> Tensor:
    """Return `rows` copies of a vector."""
    return one.expand(rows, -1).clone()


@torch.no_grad()
def gather_(state: State, ids: Tensor) -> None:
    """Bring the clients `ids` ``[C]`` (on the host) into the cohort, in that order.

    Their online models are those they left with, or the average; `simsfl.algorithm.aggregation.receive_` comes next.
    """
    clients, cohort = state.clients, state.cohort
    cohort.ids.copy_(ids, non_blocking=True)
    rows = rows_of(state, ids)
    new = (completed_rounds(state, ids) == 0)[:, None]
    cohort.online.copy_(clients.online.expand_as(cohort.online))
    if len(clients.own):
        cohort.online.copy_(torch.where(new, cohort.online, clients.own[rows].to(cohort.online)))
    for mine, theirs, initial in (
        (cohort.momentum, clients.momentum, clients.initial),
        (cohort.momentum_statistics, clients.momentum_statistics, clients.initial_statistics),
    ):
        if len(theirs) > 1:
            mine.copy_(theirs[rows])
            mine.copy_(torch.where(new, initial, mine))
        else:
            mine.copy_(theirs.expand_as(mine))
    cohort.velocity.copy_(clients.velocity[rows])
    attackers = state.attackers
    if attackers:
        attackers.cohort.copy_(attackers.own[rows])
        attackers.cohort.copy_(torch.where(new, attackers.initial, attackers.cohort))
    if state.queue is not state.queues:
        state.queue.keys.copy_(state.queues.keys[cohort.ids])
        state.queue.pointer.copy_(state.queues.pointer[cohort.ids])


def rows_of(state: State, ids: Tensor) -> Tensor:
    """The cohort's `ids` (on the host) as an index of the stacks with a row per client, wherever those lie."""
    return state.cohort.ids if state.clients.storage.kind == "device" else ids


def completed_rounds(state: State, ids: Tensor) -> Tensor:
    """``[C]`` rounds that the cohort's clients, `ids` on the host, have completed."""
    return state.clients.participation[rows_of(state, ids)].to(state.cohort.ids.device)


@torch.no_grad()
def scatter_(state: State) -> None:
    """Put the cohort's state back, after the averaging that ends a round and before anyone receives it."""
    clients, cohort = state.clients, state.cohort
    rows = cohort.ids.to(clients.storage.device)
    for mine, theirs in (
        (cohort.momentum, clients.momentum),
        (cohort.momentum_statistics, clients.momentum_statistics),
    ):
        if len(theirs) > 1:
            put_(theirs, rows, mine)
        else:
            theirs.copy_(mine.mean(dim=0, keepdim=True))
    put_(clients.velocity, rows, cohort.velocity)
    if len(clients.own):
        put_(clients.own, rows, cohort.online.detach())
    if state.attackers:
        put_(state.attackers.own, rows, state.attackers.cohort)
    clients.participation.index_add_(0, rows, torch.ones_like(rows))
    clients.storage.release()
    scatter_queue_(state)


def scatter_queue_(state: State) -> None:
    """Put the cohort's own queues back, if it has any."""
    if state.queue is not state.queues:
        put_(state.queues.keys, state.cohort.ids, state.queue.keys)
        put_(state.queues.pointer, state.cohort.ids, state.queue.pointer)


def put_(stack: Tensor, rows: Tensor, values: Tensor) -> None:
    """Write `values` into the rows of a stack, wherever it lies and whatever its dtype."""
    stack.index_copy_(0, rows, values.to(stack.device, stack.dtype))
