"""All that changes during training: tensors in frozen dataclasses, allocated once.

What persists per client is small. Right after an averaging every client's online model is the
average, so it is stored once; the momentum model and the SGD velocity really differ, and are
gathered for the cohort at the start of a round and scattered back at its end. Until a client first takes part even
they do not, and are not written: memory that is never touched costs nothing on a CPU. Nothing is rebound: functions
that change state end in ``_``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from simsfl.models import SplitModel
from simsfl.storage import Storage


@dataclass(frozen=True)
class Clients:
    """What persists of M clients with P parameters each."""

    online: Tensor
    """``[P]`` the model every client has right after an averaging."""
    initial: Tensor
    """``[P]`` the momentum model of those that have not taken part."""
    momentum: Tensor
    """``[M, P]`` momentum models of those that have; ``[1, P]`` where they are averaged too (MonAcoSFL)."""
    velocity: Tensor
    """``[M, P]`` SGD velocity."""
    participation: Tensor
    """``[M]`` int64, rounds that each client has completed. Like the two stacks in `simsfl.storage`."""
    storage: Storage

    def participants(self) -> Tensor:
        """Ids ``[A]`` of the clients that have taken part."""
        return self.participation.nonzero().flatten()


@dataclass(frozen=True)
class Cohort:
    """The C clients of the current round, stacked."""

    ids: Tensor
    """``[C]`` int64 client ids, in cohort order."""
    online: Tensor
    """``[C, P]`` online models; the leaf that the client gradient is taken of."""
    momentum: Tensor
    """``[C, P]``."""
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
    online_buffers: Mapping[str, Tensor]
    """Running statistics by name, where the head has BatchNorm."""
    momentum_buffers: Mapping[str, Tensor]


@dataclass(frozen=True)
class KeyQueue:
    """Keys of earlier steps, a ring of length K for each of G groups of clients."""

    keys: Tensor
    """``[G, K, D]`` unit rows."""
    pointer: Tensor
    """``[G]`` int64, where the next key goes."""


@dataclass(frozen=True)
class State:
    """Everything a run has learnt. `queues` persists; `queue` is what the cohort sees.

    With a shared queue both are the same object (G = 1); otherwise `queues` has one ring per
    client and `queue` one per cohort position.
    """

    clients: Clients
    cohort: Cohort
    server: ServerState
    queues: KeyQueue
    queue: KeyQueue

    def tensors(self) -> dict[str, Tensor]:
        """Every distinct tensor by dotted name."""
        named: dict[str, Tensor] = {}
        for part in ("clients", "cohort", "server", "queues", "queue"):
            if part == "queue" and self.queue is self.queues:
                continue
            for field, value in vars(getattr(self, part)).items():
                if isinstance(value, Mapping):
                    named |= {f"{part}.{field}.{name}": buffer for name, buffer in value.items()}
                elif isinstance(value, Tensor):
                    named[f"{part}.{field}"] = value.detach()
        return named

    def saved(self) -> dict[str, Tensor]:
        """What a checkpoint holds: every tensor, but of those with a row per client only rows of participants."""
        tensors, rows = self.tensors(), self.clients.participants()
        return tensors | {name: tensors[name][rows] for name in self._lazy()}

    def restore_(self, read: Callable[[str], Tensor]) -> None:
        """Take over what `saved` gave, read by name.

        Raises:
            ValueError: a tensor has another shape.
        """
        self.clients.participation.copy_(same_shape(read("clients.participation"), self.clients.participation))
        rows = self.clients.participants()
        for name, tensor in self.tensors().items():
            if name in self._lazy():
                tensor[rows] = same_shape(read(name), tensor[rows]).to(tensor.device, tensor.dtype)
            else:
                tensor.copy_(same_shape(read(name), tensor))
        self.clients.storage.release()

    def _lazy(self) -> list[str]:
        """Names of the stacks that hold nothing yet of clients which have not taken part."""
        stacks = {"clients.momentum": self.clients.momentum, "clients.velocity": self.clients.velocity}
        return [name for name, stack in stacks.items() if len(stack) > 1]


def same_shape(tensor: Tensor, like: Tensor) -> Tensor:
    """`tensor`, or a ValueError if it is not shaped as `like`."""
    if tensor.shape != like.shape:
        raise ValueError(f"shape {list(tensor.shape)} is not {list(like.shape)}")
    return tensor


def initial_state(
    model: SplitModel,
    *,
    clients: int,
    cohort: int,
    queue_length: int,
    key_dim: int,
    feature_sharing: bool,
    align_momentum: bool,
    generator: torch.Generator,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    storage: Storage | None = None,
) -> State:
    """Allocate the state of a run: all models equal, velocities zero, the queue random unit keys.

    The server's initial parameters, which may be most of a run's memory, are taken over from the model.

    Args:
        queue_length: K; divided evenly among the clients where `feature_sharing` is off.
        generator: a CPU generator, so that the queue does not depend on the device.
        storage: of what persists per client; on the device, in `dtype`, by default.
    """
    storage = storage or Storage("device", device, dtype)
    to = {"device": device, "dtype": dtype}
    client, server = model.client.initial.to(**to), model.server.take_initial().to(**to)
    groups = 1 if feature_sharing else clients
    keys = torch.randn(groups, queue_length // groups, key_dim, generator=generator).to(**to)
    queues = KeyQueue(F.normalize(keys, dim=2), torch.zeros(groups, dtype=torch.long, device=device))
    queue = queues if feature_sharing else KeyQueue(queues.keys[:cohort].clone(), queues.pointer[:cohort].clone())

    def stack(rows: int) -> Tensor:
        return client.expand(rows, -1).clone()

    def own_buffers() -> dict[str, Tensor]:
        return {
            name: buffer.to(device, dtype if buffer.is_floating_point() else buffer.dtype, copy=True)
            for name, buffer in model.server.initial_buffers.items()
        }

    return State(
        clients=Clients(
            online=client.clone(),
            initial=client.clone(),
            momentum=stack(1) if align_momentum or clients == 1 else storage.zeros(clients, len(client)),
            velocity=storage.zeros(clients, len(client)),
            participation=torch.zeros(clients, dtype=torch.long, device=storage.device),
            storage=storage,
        ),
        cohort=Cohort(
            ids=torch.arange(cohort, device=device),
            online=stack(cohort).requires_grad_(),
            momentum=stack(cohort),
            velocity=torch.zeros(cohort, len(client), **to),
        ),
        server=ServerState(
            online=server.clone(),
            momentum=server,
            velocity=torch.zeros_like(server),
            online_buffers=own_buffers(),
            momentum_buffers=own_buffers(),
        ),
        queues=queues,
        queue=queue,
    )


@torch.no_grad()
def gather_(state: State, ids: Tensor) -> None:
    """Bring the clients `ids` ``[C]`` (on the host) into the cohort, in that order."""
    clients, cohort = state.clients, state.cohort
    cohort.ids.copy_(ids, non_blocking=True)
    rows = rows_of(state, ids)
    cohort.online.copy_(clients.online.expand_as(cohort.online))
    if len(clients.momentum) > 1:
        new = completed_rounds(state, ids) == 0
        cohort.momentum.copy_(clients.momentum[rows])
        cohort.momentum.copy_(torch.where(new[:, None], clients.initial, cohort.momentum))
    else:
        cohort.momentum.copy_(clients.momentum.expand_as(cohort.momentum))
    cohort.velocity.copy_(clients.velocity[rows])
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
    """Put the cohort's state back, after the averaging that ends a round."""
    clients, cohort = state.clients, state.cohort
    rows = cohort.ids.to(clients.storage.device)
    clients.online.copy_(cohort.online[0])
    if len(clients.momentum) > 1:
        put_(clients.momentum, rows, cohort.momentum)
    else:
        clients.momentum.copy_(cohort.momentum[:1])
    put_(clients.velocity, rows, cohort.velocity)
    clients.participation.index_add_(0, rows, torch.ones_like(rows))
    clients.storage.release()
    if state.queue is not state.queues:
        put_(state.queues.keys, cohort.ids, state.queue.keys)
        put_(state.queues.pointer, cohort.ids, state.queue.pointer)


def put_(stack: Tensor, rows: Tensor, values: Tensor) -> None:
    """Write `values` into the rows of a stack, wherever it lies and whatever its dtype."""
    stack.index_copy_(0, rows, values.to(stack.device, stack.dtype))
