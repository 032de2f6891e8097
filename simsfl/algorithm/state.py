"""Everything that changes during training: tensors in frozen dataclasses, allocated once.

What persists per client is small. After an averaging, every client's online model is the average, which is therefore
stored once. Momentum models and SGD velocities do differ between clients: they are gathered for the cohort at the start
of a round, and scattered back at its end. Until a client first takes part, its rows are never written, and memory that
is never touched costs nothing on a CPU. No tensor is rebound: functions that change state in place end in ``_``.

Letters in shapes: M clients, C of them in the cohort, P parameters and S running statistics of a client's model, Q
parameters of the server's model, R numbers that the optimiser remembers of a model (`simsfl.optimisers`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from simsfl.aggregations import Aggregation
from simsfl.models import FlatModule
from simsfl.objectives import Memory
from simsfl.optimisers import Optimiser
from simsfl.system.answers import count_from
from simsfl.system.client_store import Storage
from simsfl.system.tensor_file import Rows, rows_in_block

if TYPE_CHECKING:
    from safetensors import safe_open


_LAZY = "lazy"
"""Key in the metadata of a field whose tensor has a row per client, written once the client takes part: a checkpoint
holds only the rows of participants."""
_SAME_AS = "same as"
"""Key in the metadata of a `State` field: name of another field that may hold the same object, which is saved once."""
_SAVED_AS = "saved as"
"""Key in the metadata of a field: its name in checkpoints, if it is another."""


@dataclass(frozen=True)
class Clients:
    """The state of all M clients, which persists from round to round."""

    online: Tensor
    """``[P]`` the latest average of the online models, which every client has right after an averaging."""
    online_statistics: Tensor
    """``[S]`` the latest average of the online models' running statistics."""
    initial: Tensor
    """``[P]`` the momentum model of clients that have not taken part yet."""
    initial_statistics: Tensor
    """``[S]`` the running statistics of momentum models of clients that have not taken part yet."""
    momentum: Tensor = field(metadata={_LAZY: True})
    """``[M, P]`` momentum models of clients that have taken part; ``[1, P]`` where they are averaged (MonAcoSFL)."""
    momentum_statistics: Tensor = field(metadata={_LAZY: True})
    """``[M, S]`` running statistics of the momentum models, or ``[1, S]`` where these are averaged."""
    velocity: Tensor = field(metadata={_LAZY: True})
    """``[M, R]`` what the optimiser remembers of each client; for SGD its velocity."""
    own: Tensor = field(metadata={_LAZY: True})
    """``[M, P]`` online models before the latest averaging, where clients mix them with it; otherwise ``[0, P]``."""
    received: Tensor = field(metadata={_SAVED_AS: "scale"})
    """``[M, R]`` what clients that mix remember of averagings (`simsfl.aggregations`); otherwise ``[0, 1]``."""
    participation: Tensor
    """``[M]`` int64 rounds that each client has completed."""
    storage: Storage
    """Storage of the tensors with a row per client."""

    def participants(self) -> Tensor:
        """Return the ids of the clients that have completed a round, in ascending order."""
        return self.participation.nonzero().flatten()


@dataclass(frozen=True)
class Cohort:
    """The state of the C clients of the current round, in cohort order."""

    ids: Tensor
    """``[C]`` int64 client ids."""
    online: Tensor
    """``[C, P]`` online models, a leaf of the graph: the clients' gradients are taken with respect to it."""
    online_statistics: Tensor
    """``[C, S]`` running statistics of the online models."""
    momentum: Tensor
    """``[C, P]`` momentum models."""
    momentum_statistics: Tensor
    """``[C, S]`` running statistics of the momentum models."""
    velocity: Tensor
    """``[C, R]`` what the optimiser remembers of each client; for SGD its velocity."""


@dataclass(frozen=True)
class ServerState:
    """The server's model behind the cut layer, which all clients share, and its momentum encoder."""

    online: Tensor
    """``[Q]`` parameters of the model that learns."""
    momentum: Tensor
    """``[Q]`` parameters of the momentum encoder."""
    velocity: Tensor
    """``[R]`` what the optimiser remembers; for SGD its velocity."""
    online_statistics: Tensor
    """Running statistics of the model, flat; empty without BatchNorm."""
    momentum_statistics: Tensor
    """Running statistics of the momentum encoder, flat; empty without BatchNorm."""


@dataclass(frozen=True)
class Remembered:
    """What the defences remember of each client, a row of A numbers (`simsfl.defences`)."""

    initial: Tensor
    """``[A]`` the row of a client that has not taken part yet."""
    cohort: Tensor
    """``[C, A]`` rows of the cohort's clients, in cohort order."""
    own: Tensor = field(metadata={_LAZY: True})
    """``[M, A]`` rows of clients that have taken part, in the same storage as the clients' state."""


@dataclass(frozen=True)
class Sent:
    """What clients sent in each of the T steps of the latest round in which they sent anything.

    It is kept, in the same storage as the clients' state, where the server may train on it again
    (`simsfl.algorithm.communication`). A step has R rows: those of the online models, then those of the momentum
    models, which supervised training does not have.
    """

    smashed: Tensor
    """``[T, R, c, h, w]`` smashed data as they reached the server."""
    labels: Tensor
    """``[T, N]`` int64 class of each image where the objective needs it, otherwise ``[0, N]``."""

    def keep_(self, step: int, smashed: Tensor, labels: Sequence[Tensor] | None) -> None:
        """Keep the smashed data ``[R, c, h, w]`` of a step and, unless None, the labels of each group of clients."""
        self.smashed[step].copy_(smashed)
        if labels is not None:
            self.labels[step].copy_(torch.cat([own.flatten() for own in labels]))


@dataclass(frozen=True)
class State:
    """Everything that a run has learnt."""

    clients: Clients
    """The state of all clients."""
    cohort: Cohort
    """The state of the clients of the current round."""
    server: ServerState
    """The state of the server; where it has replicas, that of the first, which is the one that is evaluated."""
    memories: Memory = field(metadata={_SAVED_AS: "queues"})
    """What the objective remembers, such as key queues: in a group that all clients of a server share (one for each of
    its replicas), or one for each client."""
    memory: Memory = field(metadata={_SAVED_AS: "queue", _SAME_AS: "memories"})
    """What the objective remembers for the cohort: the same object as `memories` if clients share a memory, otherwise a
    group for each position in the cohort."""
    sent: Sent | None
    """Smashed data that the server may train on again; None where it never does."""
    defence: Remembered | None = field(metadata={_SAVED_AS: "attackers"})
    """What the defences remember, such as TAResSFL's simulated attackers; None where that is nothing."""
    aggregation: Memory = field(default_factory=dict)
    """What the aggregation of models remembers (`simsfl.aggregations`)."""
    replicas: tuple[ServerState, ...] = ()
    """The states of the server's further replicas, each of which trains with an equal part of the cohort."""

    @property
    def servers(self) -> tuple[ServerState, ...]:
        """Return the states of all replicas of the server, in the order of their parts of the cohort."""
        return self.server, *self.replicas

    def of_replica(self, number: int) -> State:
        """Return the state as replica `number` of the server, counted from 0, has it: with no server but itself.

        Of what the objective remembers for the cohort, it has its own group, or the groups of its own clients. The
        tensors are those of this state.
        """
        count = len(self.servers)
        memory = {name: one.unflatten(0, (count, -1))[number] for name, one in self.memory.items()}
        return replace(self, server=self.servers[number], replicas=(), memory=memory)

    @property
    def remembered(self) -> Tensor:
        """Return what the defences remember of the cohort's clients, ``[C, A]``; A may be 0."""
        return self.defence.cohort if self.defence else self.cohort.online.new_empty(len(self.cohort.ids), 0)

    def tensors(self) -> dict[str, Tensor]:
        """Return every distinct tensor by its dotted name, such as ``"clients.online"``."""
        return {name: tensor for name, tensor, _ in self._named()}

    def saved(self, *, sent: bool) -> dict[str, Tensor | Rows]:
        """Return what a checkpoint holds, by dotted name: every tensor, but only participants' rows of lazy ones.

        Lazy tensors are those in fields that are marked `_LAZY`.

        Args:
            sent: whether what clients have sent is included.
        """
        rows, release = self.clients.participants(), self.clients.storage.release
        held = self if sent else replace(self, sent=None)
        return {
            name: Rows(tensor, rows, release) if lazy and len(tensor) > 1 else tensor
            for name, tensor, lazy in held._named()
        }

    def restore_(self, file: safe_open, *, sent: bool) -> None:
        """Read what `saved` returned from a file into this state.

        Args:
            file: an open safetensors file.
            sent: whether the file includes what clients have sent.

        Raises:
            ValueError: a tensor in the file does not have the shape that it has here.
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

    def check(self, rounds: int, classes: int) -> None:
        """Raise a ValueError unless what counts or numbers something is in range, as it may not be in a foreign file.

        Args:
            rounds: rounds of the run.
            classes: classes of the data set.
        """
        length = self.memories["keys"].shape[1] if "keys" in self.memories else 1
        counts = {
            "clients.participation": rounds + 1,
            "cohort.ids": len(self.clients.participation),
            "queues.pointer": length,
            "queue.pointer": length,
            "sent.labels": classes,
        }
        for name, tensor, _ in self._named():
            if name in counts and tensor.numel() and not 0 <= tensor.min() <= tensor.max() < counts[name]:
                raise ValueError(f"{name} is out of range; allowed: 0 to {counts[name] - 1:,}")

    def _named(self) -> Iterator[tuple[str, Tensor, bool]]:
        """Yield the dotted name of every distinct tensor, the tensor, and whether only participants have rows in it."""
        for part in fields(self):
            owner, twin = getattr(self, part.name), part.metadata.get(_SAME_AS)
            if owner is None or (twin and owner is getattr(self, twin)):
                continue
            if isinstance(owner, tuple):
                owner = {f"{i}.{name}": one for i, own in enumerate(owner, 1) for name, one in vars(own).items()}
            about = {} if isinstance(owner, dict) else {one.name: one.metadata for one in fields(owner)}
            for name, value in (owner if isinstance(owner, dict) else vars(owner)).items():
                if isinstance(value, Tensor):
                    own = about.get(name, {})
                    full = f"{part.metadata.get(_SAVED_AS, part.name)}.{own.get(_SAVED_AS, name)}"
                    yield full, value.detach(), _LAZY in own


def same_shape(tensor: Tensor, like: Tensor) -> Tensor:
    """Return `tensor`; raise a ValueError if its shape differs from that of `like`, or one alone has whole numbers."""
    _check_shape(tensor.shape, like.shape)
    if tensor.is_floating_point() != like.is_floating_point():
        raise ValueError(f"dtype {tensor.dtype} is not {like.dtype}")
    return tensor


def _check_shape(shape: Sequence[int], wanted: Sequence[int]) -> None:
    """Raise a ValueError unless `shape` equals `wanted`."""
    if list(shape) != list(wanted):
        raise ValueError(f"shape {list(shape)} is not {list(wanted)}")


def initial_clients(
    model: FlatModule,
    clients: int,
    storage: Storage,
    device: torch.device,
    dtype: torch.dtype,
    *,
    optimiser: Optimiser,
    aggregation: Aggregation,
) -> Clients:
    """Allocate the state of `clients` clients, who all begin with the weights of `model`.

    Args:
        model: the clients' network.
        clients: number of clients.
        storage: what allocates the tensors with a row per client, in its own dtype.
        device: device of the averages.
        dtype: dtype of the averages.
        optimiser: says how much it remembers.
        aggregation: says whether momentum models are combined, so that a single row is enough for all, and whether
            clients mix the average with their own models, which are then kept.
    """
    online, statistics = (one.to(device, dtype) for one in (model.initial, model.initial_statistics))
    numbers = count_from(aggregation.remembered(len(online)), "aggregation", "remembered", aggregation)
    received = (clients, numbers) if aggregation.mixes else (0, 1)

    def persisting(one: Tensor) -> Tensor:
        return _stack(one, 1) if aggregation.aligns_momentum or clients == 1 else storage.zeros(clients, len(one))

    return Clients(
        online=online.clone(),
        online_statistics=statistics.clone(),
        initial=online.clone(),
        initial_statistics=statistics.clone(),
        momentum=persisting(online),
        momentum_statistics=persisting(statistics),
        velocity=storage.zeros(clients, _remembered(optimiser, online)),
        own=storage.zeros(clients if aggregation.mixes else 0, len(online)),
        received=storage.zeros(*received, dtype),
        participation=torch.zeros(clients, dtype=torch.long, device=storage.device),
        storage=storage,
    )


def _remembered(optimiser: Optimiser, weights: Tensor) -> int:
    """Return how many numbers an optimiser remembers of these weights ``[P]``; raise a ValueError if it is no count."""
    return count_from(optimiser.size(len(weights)), "optimizer", "size", optimiser)


def initial_cohort(
    model: FlatModule, cohort: int, device: torch.device, dtype: torch.dtype, *, optimiser: Optimiser
) -> Cohort:
    """Allocate the state of a cohort of `cohort` clients, who all begin with the weights of `model`."""
    online, statistics = (one.to(device, dtype) for one in (model.initial, model.initial_statistics))
    return Cohort(
        ids=torch.arange(cohort, device=device),
        online=_stack(online, cohort).requires_grad_(),
        online_statistics=_stack(statistics, cohort),
        momentum=_stack(online, cohort),
        momentum_statistics=_stack(statistics, cohort),
        velocity=torch.zeros(cohort, _remembered(optimiser, online), device=device, dtype=dtype),
    )


def initial_server(model: FlatModule, device: torch.device, dtype: torch.dtype, *, optimiser: Optimiser) -> ServerState:
    """Allocate the server's state, which takes the initial weights out of `model` (see `FlatModule.take_initial`).

    They may be most of a run's memory, so the model does not keep a copy.
    """
    online, statistics = model.take_initial().to(device, dtype), model.initial_statistics.to(device, dtype)
    return ServerState(
        online=online.clone(),
        momentum=online,
        velocity=online.new_zeros(_remembered(optimiser, online)),
        online_statistics=statistics.clone(),
        momentum_statistics=statistics.clone(),
    )


def further_replicas(server: ServerState, count: int) -> tuple[ServerState, ...]:
    """Allocate the states of `count` further replicas of a server, which begin as it does."""
    return tuple(ServerState(**{name: one.clone() for name, one in vars(server).items()}) for _ in range(count))


def cohort_memory(memories: Memory, cohort: int) -> Memory:
    """Allocate what an objective remembers for a cohort of `cohort` clients, given what it does for all clients."""
    return {name: one[:cohort].clone() for name, one in memories.items()}


def initial_remembered(
    initial: Tensor, clients: int, cohort: int, storage: Storage, device: torch.device, dtype: torch.dtype
) -> Remembered:
    """Allocate what the defences remember of `clients` clients, who all begin with the row `initial` ``[A]``."""
    initial = initial.to(device, dtype)
    own = storage.zeros(clients, len(initial), dtype)  # a row may count steps, and bfloat16 stops at 256
    return Remembered(initial=initial, cohort=initial.repeat(cohort, 1), own=own)


def _stack(one: Tensor, rows: int) -> Tensor:
    """Return `rows` copies of a vector."""
    return one.expand(rows, -1).clone()


def _persisting(state: State) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Yield what clients take from round to round.

    Yields:
        The cohort's tensor ``[C, ...]``; that of all clients ``[M, ...]``, or ``[1, ...]`` where it is averaged; and
        the row ``[...]`` of a client that has not taken part yet, or None where it is zeros.
    """
    clients, cohort, defence = state.clients, state.cohort, state.defence
    yield cohort.momentum, clients.momentum, clients.initial
    yield cohort.momentum_statistics, clients.momentum_statistics, clients.initial_statistics
    yield cohort.velocity, clients.velocity, None
    if defence:
        yield defence.cohort, defence.own, defence.initial


@torch.no_grad()
def gather_(state: State, ids: Tensor) -> None:
    """Copy the state of the clients `ids` ``[C]``, given on the host, into the cohort, in that order.

    Where clients mix the average with their own models, the cohort's online models are those that the clients left
    with; otherwise they are the average. `simsfl.algorithm.aggregation.receive_` has to follow.
    """
    clients, cohort = state.clients, state.cohort
    cohort.ids.copy_(ids, non_blocking=True)
    rows = rows_of(state, ids)
    new = (completed_rounds(state, ids) == 0)[:, None]
    cohort.online.copy_(clients.online.expand_as(cohort.online))
    if len(clients.own):
        cohort.online.copy_(torch.where(new, cohort.online, clients.own[rows].to(cohort.online)))
    for mine, theirs, initial in _persisting(state):
        if len(theirs) < len(clients.participation):
            mine.copy_(theirs.expand_as(mine))
            continue
        mine.copy_(theirs[rows])
        if initial is not None:
            mine.copy_(torch.where(new, initial, mine))
    if state.memory is not state.memories:
        for name, one in state.memory.items():
            one.copy_(state.memories[name][cohort.ids])


def rows_of(state: State, ids: Tensor) -> Tensor:
    """Return the cohort's ids ``[C]`` on the device of the tensors with a row per client, to index them.

    Args:
        state: a state whose cohort has been gathered.
        ids: the same ids on the host.
    """
    return state.cohort.ids if state.clients.storage.kind == "device" else ids


def completed_rounds(state: State, ids: Tensor) -> Tensor:
    """Return the rounds that each client of the cohort has completed, ``[C]`` int64; `ids` are theirs, on the host."""
    return state.clients.participation[rows_of(state, ids)].to(state.cohort.ids.device)


@torch.no_grad()
def scatter_(state: State, missing: Collection[int] = ()) -> None:
    """Copy the cohort's state back to all clients' and count the round as completed.

    This has its place after the averaging that ends a round, and before clients receive the average.

    Args:
        state: the state.
        missing: positions of the cohort's clients that did not come, for whom the round does not count.
    """
    clients, cohort = state.clients, state.cohort
    rows = cohort.ids.to(clients.storage.device)
    for mine, theirs, _ in _persisting(state):
        if len(theirs) < len(clients.participation):
            theirs.copy_(mine.mean(dim=0, keepdim=True))
        else:
            put_(theirs, rows, mine)
    if len(clients.own):
        put_(clients.own, rows, cohort.online.detach())
    came = torch.tensor([position not in missing for position in range(len(rows))])
    clients.participation.index_add_(0, rows, came.to(rows))
    clients.storage.release()
    scatter_memory_(state)


def scatter_memory_(state: State) -> None:
    """Copy what the objective remembers for the cohort back to all clients', unless they share it."""
    if state.memory is not state.memories:
        for name, one in state.memory.items():
            put_(state.memories[name], state.cohort.ids, one)


def rows_before(state: State, positions: Collection[int]) -> list[tuple[Tensor, Tensor]]:
    """Return what the cohort's clients at these positions have: each tensor of the cohort, and a copy of their rows.

    What the objective remembers is among it, unless all clients share that.
    """
    if not positions:
        return []
    cohort, defence = state.cohort, state.defence
    tensors = [cohort.online.detach(), cohort.online_statistics, cohort.momentum, cohort.momentum_statistics]
    tensors += [cohort.velocity, *([defence.cohort] if defence else [])]
    tensors += [] if state.memory is state.memories else state.memory.values()
    return [(tensor, tensor[sorted(positions)]) for tensor in tensors]


@torch.no_grad()
def put_back_(before: Sequence[tuple[Tensor, Tensor]], positions: Collection[int]) -> None:
    """Give the cohort's clients at these positions what they had when `rows_before` was called."""
    for tensor, rows in before:
        tensor[sorted(positions)] = rows


def put_(stack: Tensor, rows: Tensor, values: Tensor) -> None:
    """Write `values` ``[n, ...]`` into the given rows ``[n]`` of `stack`, converted to its device and dtype."""
    stack.index_copy_(0, rows.to(stack.device), values.to(stack.device, stack.dtype))
