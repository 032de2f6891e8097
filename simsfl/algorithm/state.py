"""All that changes during training: tensors in frozen dataclasses, allocated once.

What persists per client is small. Right after an averaging every client's online model is the
average, so it is stored once; the momentum model and the SGD velocity really differ, and are
gathered for the cohort at the start of a round and scattered back at its end. Until a client first takes part even
they do not, and are not written: memory that is never touched costs nothing on a CPU. Nothing is rebound: functions
that change state end in ``_``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from simsfl.models import FlatModule, SplitModel
from simsfl.system.client_store import Storage
from simsfl.system.tensor_file import Rows, rows_in_block

if TYPE_CHECKING:
    from safetensors import safe_open


@dataclass(frozen=True)
class Clients:
    """What persists of M clients with P parameters and S running statistics each."""

    online: Tensor
    """``[P]`` the latest average, the model every client has right after an averaging."""
    online_statistics: Tensor
    """``[S]``."""
    initial: Tensor
    """``[P]`` the momentum model of those that have not taken part."""
    initial_statistics: Tensor
    """``[S]``."""
    momentum: Tensor
    """``[M, P]`` momentum models of those that have; ``[1, P]`` where they are averaged too (MonAcoSFL)."""
    momentum_statistics: Tensor
    """``[M, S]``, or ``[1, S]``."""
    velocity: Tensor
    """``[M, P]`` SGD velocity."""
    own: Tensor
    """``[M, P]`` online models before the latest averaging, where clients mix it with them; else ``[0, P]``."""
    scale: Tensor
    """``[M, 1]`` by which each weighs its divergence then (`simsfl.algorithm.aggregation`), 0 until it is set; else ``[0, 1]``."""
    participation: Tensor
    """``[M]`` int64, rounds that each client has completed. Like the two stacks in `simsfl.system.client_store`."""
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
    """The simulated attackers that clients learn to resist (`simsfl.defences.taressfl`).

    A row is an attacker: the R parameters of its decoder, Adam's averages of their gradients and of these squared, and
    how often it has learnt, ``A = 3R + 1`` numbers.
    """

    initial: Tensor
    """``[A]`` of a client that has not taken part."""
    own: Tensor
    """``[M, A]`` of those that have, with the clients' state."""
    cohort: Tensor
    """``[C, A]``."""


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
    queue: KeyQueue
    sent: Sent | None
    attackers: Attackers | None

    def tensors(self) -> dict[str, Tensor]:
        """Every distinct tensor by dotted name."""
        named: dict[str, Tensor] = {}
        for part in ("clients", "cohort", "server", "queues", "queue", "sent", "attackers"):
            owner = getattr(self, part)
            if owner is None or (part == "queue" and self.queue is self.queues):
                continue
            for field, value in vars(owner).items():
                if isinstance(value, Tensor):
                    named[f"{part}.{field}"] = value.detach()
        return named

    def saved(self, *, sent: bool) -> dict[str, Tensor | Rows]:
        """What a checkpoint holds: every tensor, but of those with a row per client only rows of participants.

        Args:
            sent: whether what clients sent is needed again.
        """
        tensors, rows = self.tensors(), self.clients.participants()
        if not sent:
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("sent.")}
        release = self.clients.storage.release
        return tensors | {name: Rows(tensors[name], rows, release) for name in self._lazy()}

    def restore_(self, file: safe_open, *, sent: bool) -> None:
        """Take over what `saved` gave.

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
            check_shape(saved.get_shape(), held.shape)
            for rows in held.rows.split(rows_in_block(held.tensor)):
                part = saved[start : start + len(rows)]
                held.tensor[rows] = part.to(held.tensor.device, held.dtype)
                start += len(rows)
                held.done()

    def _lazy(self) -> list[str]:
        """Names of the stacks that hold nothing yet of clients which have not taken part."""
        names = ("clients.momentum", "clients.momentum_statistics", "clients.velocity", "clients.own", "attackers.own")
        tensors = self.tensors()
        return [name for name in names if name in tensors and len(tensors[name]) > 1]


def same_shape(tensor: Tensor, like: Tensor) -> Tensor:
    """`tensor`, or a ValueError if it is not shaped as `like`."""
    check_shape(tensor.shape, like.shape)
    return tensor


def check_shape(shape: Sequence[int], wanted: Sequence[int]) -> None:
    """Raise a ValueError if they differ."""
    if list(shape) != list(wanted):
        raise ValueError(f"shape {list(shape)} is not {list(wanted)}")


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
    mixing: bool = False,
    sent: Sent | None = None,
) -> State:
    """Allocate the state of a run: all models equal, velocities zero, the queue random unit keys.

    The server's initial parameters, which may be most of a run's memory, are taken over from the model.

    Args:
        queue_length: K; divided evenly among the clients where `feature_sharing` is off.
        generator: a CPU generator, so that the queue does not depend on the device.
        storage: of what persists per client; on the device, in `dtype`, by default.
        mixing: clients mix the average with their own models.
        sent: where what clients send is kept, if it is.
    """
    storage = storage or Storage("device", device, dtype)
    to = {"device": device, "dtype": dtype}
    client, server = model.client.initial.to(**to), model.server.take_initial().to(**to)
    statistics, central = (half.initial_statistics.to(**to) for half in (model.client, model.server))
    groups = 1 if feature_sharing else clients
    keys = torch.randn(groups, queue_length // groups, key_dim, generator=generator).to(**to)
    queues = KeyQueue(F.normalize(keys, dim=2), torch.zeros(groups, dtype=torch.long, device=device))
    queue = queues if feature_sharing else KeyQueue(queues.keys[:cohort].clone(), queues.pointer[:cohort].clone())

    def stack(one: Tensor, rows: int = cohort) -> Tensor:
        return one.expand(rows, -1).clone()

    def persisting(one: Tensor) -> Tensor:
        return stack(one, 1) if align_momentum or clients == 1 else storage.zeros(clients, len(one))

    return State(
        clients=Clients(
            online=client.clone(),
            online_statistics=statistics.clone(),
            initial=client.clone(),
            initial_statistics=statistics.clone(),
            momentum=persisting(client),
            momentum_statistics=persisting(statistics),
            velocity=storage.zeros(clients, len(client)),
            own=storage.zeros(clients if mixing else 0, len(client)),
            scale=torch.zeros(clients if mixing else 0, 1, device=storage.device, dtype=dtype),
            participation=torch.zeros(clients, dtype=torch.long, device=storage.device),
            storage=storage,
        ),
        cohort=Cohort(
            ids=torch.arange(cohort, device=device),
            online=stack(client).requires_grad_(),
            online_statistics=stack(statistics),
            momentum=stack(client),
            momentum_statistics=stack(statistics),
            velocity=torch.zeros(cohort, len(client), **to),
        ),
        server=ServerState(
            online=server.clone(),
            momentum=server,
            velocity=torch.zeros_like(server),
            online_statistics=central.clone(),
            momentum_statistics=central.clone(),
        ),
        queues=queues,
        queue=queue,
        sent=sent,
        attackers=initial_attackers(model.attacker, clients, cohort, storage, to) if model.attacker else None,
    )


def initial_attackers(
    decoder: FlatModule, clients: int, cohort: int, storage: Storage, to: dict[str, Any]
) -> Attackers:
    """All alike."""
    parameters = decoder.initial.to(**to)
    initial = torch.cat([parameters, parameters.new_zeros(2 * len(parameters) + 1)])
    own = storage.zeros(clients, len(initial), to["dtype"])  # too many steps for bfloat16 to count
    return Attackers(initial, own, initial.repeat(cohort, 1))


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
