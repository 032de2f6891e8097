"""Everything that changes during training: tensors in frozen dataclasses, allocated once.

What persists per client is small. After an averaging, every client's online model is the average, which is therefore
stored once. Momentum models and SGD velocities do differ between clients: they are gathered for the cohort at the start
of a round, and scattered back at its end. Until a client first takes part, its rows are never written, and memory that
is never touched costs nothing on a CPU. No tensor is rebound: functions that change state in place end in ``_``.

Several ranks (`simsfl.system.world`) share a run: each has a part of all clients, by their ids, and a part of each
cohort, by position; what has one of the server, or of all clients together, is the same on all of them.

Letters in shapes: M clients, C of them in the cohort, of which a rank has M' and C', P parameters and S running
statistics of a client's model, Q parameters of the server's model, R numbers that the optimiser remembers of a model
(`simsfl.optimisers`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from simsfl.objectives import Memory
from simsfl.system.client_store import Storage
from simsfl.system.tensor_file import Rows, rows_in_block
from simsfl.system.world import World

if TYPE_CHECKING:
    from safetensors import safe_open


class _Spread(Enum):
    """Which rows of a tensor a rank has."""

    SAME = "same"
    """Every rank has the same tensor."""
    COHORT = "cohort"
    """A rank has the rows of its part of the cohort."""
    CLIENTS = "clients"
    """A rank has the rows of its clients."""
    PARTICIPANTS = "participants"
    """A rank has the rows of its clients, which are written once these take part: a checkpoint holds only those."""


_SPREAD = "spread"
"""Key in the metadata of a field whose tensors are not the same on every rank: their `_Spread`."""
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
    momentum: Tensor = field(metadata={_SPREAD: _Spread.PARTICIPANTS})
    """``[M', P]`` momentum models of clients that have taken part; ``[1, P]`` where they are averaged (MonAcoSFL)."""
    momentum_statistics: Tensor = field(metadata={_SPREAD: _Spread.PARTICIPANTS})
    """``[M', S]`` running statistics of the momentum models, or ``[1, S]`` where these are averaged."""
    velocity: Tensor = field(metadata={_SPREAD: _Spread.PARTICIPANTS})
    """``[M', R]`` what the optimiser remembers of each client; for SGD its velocity."""
    own: Tensor = field(metadata={_SPREAD: _Spread.PARTICIPANTS})
    """``[M', P]`` online models before the latest averaging, where clients mix them with it; otherwise ``[0, P]``."""
    received: Tensor = field(metadata={_SAVED_AS: "scale", _SPREAD: _Spread.CLIENTS})
    """``[M', R]`` what clients that mix remember of averagings (`simsfl.aggregations`); otherwise ``[0, 1]``."""
    participation: Tensor
    """``[M]`` int64 rounds that each client has completed."""
    averaged: bool
    """Whether momentum models are averaged, so that a single row is all clients'."""
    storage: Storage
    """Storage of the tensors with a row per client."""
    world: World
    """The ranks."""

    @property
    def count(self) -> int:
        """Return M, the number of clients of all ranks."""
        return len(self.participation)

    def participants(self) -> Tensor:
        """Return the ids of the clients that have completed a round, in ascending order."""
        return self.participation.nonzero().flatten()


@dataclass(frozen=True)
class Cohort:
    """The state of the clients of the current round, in cohort order."""

    ids: Tensor
    """``[C]`` int64 ids of the cohort's clients, those of other ranks included."""
    online: Tensor = field(metadata={_SPREAD: _Spread.COHORT})
    """``[C', P]`` online models, a leaf of the graph: the clients' gradients are taken with respect to it."""
    online_statistics: Tensor = field(metadata={_SPREAD: _Spread.COHORT})
    """``[C', S]`` running statistics of the online models."""
    momentum: Tensor = field(metadata={_SPREAD: _Spread.COHORT})
    """``[C', P]`` momentum models."""
    momentum_statistics: Tensor = field(metadata={_SPREAD: _Spread.COHORT})
    """``[C', S]`` running statistics of the momentum models."""
    velocity: Tensor = field(metadata={_SPREAD: _Spread.COHORT})
    """``[C', R]`` what the optimiser remembers of each client; for SGD its velocity."""


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
    cohort: Tensor = field(metadata={_SPREAD: _Spread.COHORT})
    """``[C', A]`` rows of the cohort's clients, in cohort order."""
    own: Tensor = field(metadata={_SPREAD: _Spread.PARTICIPANTS})
    """``[M', A]`` rows of clients that have taken part, in the same storage as the clients' state."""


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
    absent: Tensor
    """``[T, C]`` bool, whether each client of the cohort was absent and sent nothing: its rows are not used."""

    def keep_(self, step: int, smashed: Tensor, labels: Sequence[Tensor] | None, absent: Collection[int]) -> None:
        """Keep what reached the server in a step.

        Args:
            step: the step of the round, counted from 0.
            smashed: ``[R, c, h, w]`` smashed data.
            labels: the labels of each group of clients, or None.
            absent: positions in the cohort of clients that sent nothing.
        """
        self.smashed[step].copy_(smashed)
        self.absent[step] = False
        self.absent[step, list(absent)] = True
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
    memories: Memory = field(metadata={_SAVED_AS: "queues", _SPREAD: _Spread.CLIENTS})
    """What the objective remembers, such as key queues: in a group that all clients of a server share (one for each of
    its replicas), or one for each client."""
    memory: Memory = field(metadata={_SAVED_AS: "queue", _SAME_AS: "memories", _SPREAD: _Spread.COHORT})
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
        """Return what the defences remember of the cohort's clients, ``[C', A]``; A may be 0."""
        return self.defence.cohort if self.defence else self.cohort.online.new_empty(len(self.cohort.online), 0)

    @property
    def world(self) -> World:
        """Return the ranks."""
        return self.clients.world

    @property
    def own_memory(self) -> bool:
        """Return whether each client has what the objective remembers for itself."""
        return self.memory is not self.memories

    def of_cohort(self, own: Tensor) -> Tensor:
        """Return the rows ``[C, ...]`` of the whole cohort, given those ``[C', ...]`` of this rank's part of it."""
        return self.world.gather(own, [len(part) for part in self.world.parts(len(self.cohort.ids))])

    def tensors(self) -> dict[str, Tensor]:
        """Return every distinct tensor by its dotted name, such as ``"clients.online"``."""
        return {name: tensor for name, tensor, _ in self._named()}

    def saved(self, *, sent: bool) -> dict[str, Tensor | Rows]:
        """Return what a checkpoint holds, by dotted name: every tensor, with the rows of all ranks.

        Of tensors with a row for each client, these may be the rows of participants (`_Spread.PARTICIPANTS`).

        Args:
            sent: whether what clients have sent is included.
        """
        clients, world = self.clients, self.world
        held = self if sent else replace(self, sent=None)
        rows = {_Spread.PARTICIPANTS: clients.participants(), _Spread.CLIENTS: torch.arange(clients.count)}

        def whole(tensor: Tensor, spread: _Spread) -> Tensor | Rows:
            if spread is _Spread.COHORT:
                return self.of_cohort(tensor)
            if spread is _Spread.SAME or (spread is _Spread.CLIENTS and world.alone):
                return tensor
            return Rows(tensor, rows[spread].to(tensor.device), clients.storage.release, world, clients.count)

        return {name: whole(tensor, spread) for name, tensor, spread in held._named()}

    def own(self, *, sent: bool) -> dict[str, Tensor | Rows]:
        """Return this rank's part of what `saved` returns, by the same names; ranks tell each other nothing for it."""
        clients, mine = self.clients, self.world.part(self.clients.count)
        ids = clients.participants()
        rows = ids[(ids >= mine.start) & (ids < mine.stop)] - mine.start
        held = self if sent else replace(self, sent=None)
        return {
            name: Rows(tensor, rows.to(tensor.device), clients.storage.release)
            if spread is _Spread.PARTICIPANTS
            else tensor
            for name, tensor, spread in held._named()
        }

    def restore_(self, file: safe_open, *, sent: bool) -> None:
        """Read what `saved` returned from a file into this state.

        Args:
            file: an open safetensors file.
            sent: whether the file includes what clients have sent.

        Raises:
            ValueError: a tensor in the file does not have the shape that it has here.
        """
        clients, world = self.clients, self.world
        participation = clients.participation
        participation.copy_(same_shape(file.get_tensor("clients.participation"), participation))
        mine, position = world.part(clients.count), world.part(len(self.cohort.ids))
        ids = clients.participants()
        first, last = torch.searchsorted(ids, torch.tensor([mine.start, mine.stop], device=ids.device)).tolist()
        # of each kind: rows in the file, those of them that are this rank's, and where these belong
        places = {
            _Spread.COHORT: (len(self.cohort.ids), position, torch.arange(len(position))),
            _Spread.CLIENTS: (clients.count, mine, torch.arange(len(mine))),
            _Spread.PARTICIPANTS: (len(ids), range(first, last), ids[first:last] - mine.start),
        }
        held = self if sent else replace(self, sent=None)
        for name, tensor, spread in held._named():
            if spread is _Spread.SAME:
                tensor.copy_(same_shape(file.get_tensor(name), tensor))
                continue
            count, own, rows = places[spread]
            saved, start = file.get_slice(name), own.start
            _check_shape(saved.get_shape(), (count, *tensor.shape[1:]))
            for part in rows.to(tensor.device).split(rows_in_block(tensor)):
                block = saved[start : start + len(part)]
                _check_kind(block, tensor)
                tensor[part] = block.to(tensor.device, tensor.dtype)
                start += len(part)
                clients.storage.release()

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

    def _named(self) -> Iterator[tuple[str, Tensor, _Spread]]:
        """Yield the dotted name of every distinct tensor, the tensor, and which rows of it a rank has."""
        for part in fields(self):
            owner, twin = getattr(self, part.name), part.metadata.get(_SAME_AS)
            if owner is None or (twin and owner is getattr(self, twin)):
                continue
            if isinstance(owner, tuple):
                owner = {f"{i}.{name}": one for i, own in enumerate(owner, 1) for name, one in vars(own).items()}
            about = {} if isinstance(owner, dict) else {one.name: one.metadata for one in fields(owner)}
            for name, value in (owner if isinstance(owner, dict) else vars(owner)).items():
                if isinstance(value, Tensor):
                    own = about.get(name, part.metadata)
                    full = f"{part.metadata.get(_SAVED_AS, part.name)}.{about.get(name, {}).get(_SAVED_AS, name)}"
                    yield full, value.detach(), self._spread_of(name, value, own.get(_SPREAD, _Spread.SAME))

    def _spread_of(self, name: str, tensor: Tensor, spread: _Spread) -> _Spread:
        """Return which rows of a tensor a rank has, given what its field says."""
        clients = self.clients
        if tensor is getattr(clients, name, None) and clients.averaged and name.startswith("momentum"):
            return _Spread.SAME
        if spread is _Spread.CLIENTS and not (len(tensor) and (tensor is clients.received or self.own_memory)):
            return _Spread.SAME
        if spread is _Spread.PARTICIPANTS and (clients.count == 1 or not len(tensor)):
            return _Spread.SAME
        return spread


def same_shape(tensor: Tensor, like: Tensor) -> Tensor:
    """Return `tensor`; raise a ValueError if its shape differs from that of `like`, or one alone has whole numbers."""
    _check_shape(tensor.shape, like.shape)
    _check_kind(tensor, like)
    return tensor


def _check_kind(tensor: Tensor, like: Tensor) -> None:
    """Raise a ValueError if only one of two tensors has whole numbers."""
    if tensor.is_floating_point() != like.is_floating_point():
        raise ValueError(f"dtype {tensor.dtype} is not {like.dtype}")


def _check_shape(shape: Sequence[int], wanted: Sequence[int]) -> None:
    """Raise a ValueError unless `shape` equals `wanted`."""
    if list(shape) != list(wanted):
        raise ValueError(f"shape {list(shape)} is not {list(wanted)}")
