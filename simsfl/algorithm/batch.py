"""What a step is given and what it returns: the batch, the hyperparameters, the clock, and the outcome.

Shapes: C clients in the cohort, B images each, N = C*B, H height and width of images, chw the smashed data of an image;
C' and B' are the clients of a group that shares a batch size, and that size.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, is_dataclass, replace

import torch
from torch import Tensor

from simsfl.algorithm.wire import NOBODY, Wire
from simsfl.config.catalogue import Targets
from simsfl.data import Images
from simsfl.defences import NONE, Chain
from simsfl.kernels import ViewParameters
from simsfl.objectives import Objective
from simsfl.optimisers import Optimiser
from simsfl.system.draws import Draws
from simsfl.system.world import ALONE, World

Clock = Callable[[str], AbstractContextManager[object]]
"""Function that takes the name of a phase; the time spent in the context that it returns counts towards that phase."""
_CONSTANT = "constant"
"""Key in the metadata of a `Batch` field whose value, with all tensors in it, is the same in all batches of a run."""


@dataclass(frozen=True)
class Everyone:
    """How many rows each rank has in a step, and what ranks do with all of them."""

    world: World
    """The ranks."""
    counts: tuple[int, ...]
    """Rows of each rank in a direction of the loss."""

    @classmethod
    def alone(cls, rows: int) -> Everyone:
        """Return the rows of a single process."""
        return cls(ALONE, (rows,))

    @property
    def rows(self) -> int:
        """Return N, the number of rows of all ranks."""
        return sum(self.counts)

    def gather(self, own: Tensor) -> Tensor:
        """Return the rows ``[N, ...]`` of all ranks, in the order of the cohort, given this rank's own."""
        return self.world.gather(own, self.counts)

    def around(self, own: Tensor) -> Tensor:
        """Return what `gather` does, in which this rank's rows keep their graph."""
        if self.world.alone:
            return own
        start = sum(self.counts[: self.world.rank])
        rows = self.gather(own.detach())
        return torch.cat([rows[:start], own, rows[start + len(own) :]])


@dataclass(frozen=True)
class Batch:
    """What the cohort trains on in one step; everything random about it is already drawn.

    Tensors in its fields, and in the lists and dataclasses that the fields hold, differ from batch to batch. `map` and
    `leaves` find all of them. A step that is replayed (`simsfl.engine.cuda_graph`) therefore also gets the tensors of
    fields that are added here later.
    """

    images: Images = field(metadata={_CONSTANT: True})
    """All training images; a step uses only how they are normalised."""
    pixels: list[Tensor]
    """Images ``[C', B', 3, H, H]`` uint8 of each group of clients that share a batch size, in cohort order."""
    views: list[ViewParameters]
    """Parameters of the views ``[2, C', B']`` of each group: the view that queries are made of, then that of keys."""
    server_lr: Tensor
    """Scalar learning rate of the server."""
    client_lr: Tensor
    """``[C, 1]`` learning rate of each client, in cohort order."""
    labels: list[Tensor] | None = None
    """Class ``[C', B']`` of each image, group by group, where the objective needs them; None otherwise."""
    noise: list[Tensor] | None = None
    """Keys ``[2, C', B', 2]`` of the random numbers that defences draw, group by group; None without defences."""
    round_index: Tensor | None = None
    """The round, counted from 0, scalar int64; not used without defences."""
    absent: frozenset[int] = NOBODY
    """Positions in the cohort of the clients that miss this step, and stay as they are. Not all do."""
    everyone: Everyone | None = field(default=None, metadata={_CONSTANT: True})
    """Rows of each rank that are there in this step; None in a single process."""
    wire: Wire = field(default_factory=Wire)
    """What carries smashed data to the server, and their gradients back to the clients."""

    def draws(self) -> Draws | None:
        """Return random numbers for defences, None without any: those of each row of the first view, then the second.

        The rows of a view are in the order of the cohort.
        """
        if self.noise is None:
            return None
        return Draws(torch.cat([keys[view].flatten(0, 1) for view in range(2) for keys in self.noise]))

    def draws_of_clients(self) -> Draws:
        """Return random numbers for what defences do with the gradient of each client."""
        return Draws(torch.cat([keys[0, :, 0] for keys in self.noise]))

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Return the batch with `function` applied to every tensor that differs from batch to batch."""
        return _mapped(self, lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf)

    def leaves(self) -> list[object]:
        """Return everything that the batch holds, in a fixed order: the tensors that `map` sees, and all else."""
        found: list[object] = []
        _mapped(self, lambda leaf: found.append(leaf) or leaf)
        return found


def _mapped(value: object, function: Callable[[object], object]) -> object:
    """Return `value` with `function` applied to everything in it, or to itself if it isn't a dataclass, list or tuple.

    Fields that are marked as constant count as one thing, whatever they hold.
    """
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(item, function) for item in value)
    if not is_dataclass(value):
        return function(value)
    new = {}
    for one in fields(value):
        own = getattr(value, one.name)
        new[one.name] = function(own) if _CONSTANT in one.metadata else _mapped(own, function)
    return replace(value, **new)


@dataclass(frozen=True)
class Outcome:
    """The results of a step, still on the device."""

    loss: Tensor
    """Scalar loss, summed over both directions if it is symmetric."""
    top1: Tensor
    """Scalar accuracy in percent: how often the own key scores higher than all others, where a tie is no hit; or in
    supervised training how often the label scores highest."""
    smashed: Tensor
    """``[2N, c, h, w]`` smashed data as they reached the server: those of the queries, then those of the keys, which
    training on labels does not have. Empty where clients send none (`simsfl.algorithm.federated`)."""
    gradient: Tensor
    """Gradients of the smashed data that clients received, with what their defences have changed and added:
    ``[N, c, h, w]``, or ``[2N, c, h, w]`` where they learn from both views. Empty where clients receive none."""
    figures: tuple[Tensor, ...] = ()
    """Figures that the defences report (`simsfl.defences.Defence.figures`), scalars, averaged over clients."""
    absent: Collection[int] = NOBODY
    """Positions in the cohort of the clients from which nothing arrived."""


@dataclass(frozen=True)
class Hyperparameters:
    """What stays the same from step to step; `simsfl.config.RunConfig` has most of it under the same names."""

    objective: Objective
    """The objective, whose loss is minimised."""
    symmetric: bool
    """Whether the loss has a second direction, in which the two views swap their roles; only where targets are the
    momentum models' outputs."""
    tau: float
    """Share of its own weights that a momentum model keeps in each step."""
    optimiser: Optimiser
    """How clients and server descend."""
    batches: tuple[int, ...]
    """Images per step of each client, in cohort order."""
    defence: Chain = NONE
    """What clients do with what they send and learn from."""
    targets: Targets = Targets.MOMENTUM
    """What the objective compares outputs with."""
    whole_batch: bool = False
    """Whether the objective's figures of a row depend on other rows of the step."""
    shared: bool = True
    """Whether all clients share what the objective remembers."""
    labels: bool = False
    """Whether the objective finds the class of each row in its memory, by the name "labels"."""
    precision: torch.dtype = torch.float32
    """Dtype of smashed data on the wire; with bfloat16 it is also that of forward passes. The state keeps its own."""
    clients_learn: bool = True
    """Whether clients receive gradients and learn from them."""
    chunk: int | None = None
    """Clients that run together; None for all. It affects the speed of a step, not its result."""
    block: int | None = None
    """Most rows of smashed data that go through the server together; None for no limit. It affects speed and memory."""

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """Return a context for forward passes on `device`: mixed precision if `precision` is bfloat16."""
        if self.precision == torch.bfloat16:
            return torch.autocast(device.type, self.precision)
        return nullcontext()


def untimed(phase: str) -> AbstractContextManager[object]:
    """Return a context that does nothing: the `Clock` of callers who measure no time."""
    return nullcontext()
