"""One MocoSFL step, as one batched program over the cohort (Li et al., ICLR 2023, algorithm 1).

Names of tensors end in their shape: C clients in the cohort, B images each, N = C*B, D key dimension, K queue
length, P client parameters, chw the smashed data of one image.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, is_dataclass, replace

import torch
from torch import Tensor

from simsfl.algorithm import clients, server
from simsfl.algorithm.state import State
from simsfl.algorithm.wire import NOBODY, Wire
from simsfl.data import Images
from simsfl.defences.taressfl import resist_
from simsfl.kernels import ViewParameters, ema_, sgd_
from simsfl.models import SplitModel

Clock = Callable[[str], AbstractContextManager[object]]
"""Called with the name of a phase; the time inside the context that it returns counts towards that phase."""
CONSTANT = "constant"
"""In the metadata of a field of a `Batch`: it is the same in all batches of a run, with the tensors in it."""


@dataclass(frozen=True)
class Batch:
    """What the cohort trains on in one step; everything random about it is already drawn.

    Tensors in its fields, and in the lists and dataclasses in them, differ from batch to batch. `map` and `leaves` find
    them there, so that a step that is replayed (`simsfl.engine.cuda_graph`) gets those of a field that is added, too.
    """

    images: Images = field(metadata={CONSTANT: True})
    """All training images; what is used of them here is how they are normalised."""
    pixels: list[Tensor]
    """``[C', B', 3, H, H]`` uint8 of each group of clients that have the same batch size, in cohort order."""
    views: list[ViewParameters]
    """Parameters of ``[2, C', B']`` views: the queries', then the keys'."""
    server_lr: Tensor
    """Scalar."""
    client_lr: Tensor
    """``[C, 1]``."""
    labels: list[Tensor] | None = None
    """``[C', B']`` of each group, where training is supervised; then there are no keys."""
    attackers_lr: Tensor | None = None
    """Scalar, of simulated attackers, if there are any."""
    wire: Wire = field(default_factory=Wire)
    """How what clients send gets to the server, and back."""

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Return the batch with `function` applied to every tensor that differs from batch to batch."""
        return _mapped(self, lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf)

    def leaves(self) -> list[object]:
        """Return all that the batch holds, in a fixed order: the tensors that `map` sees, constants, and all else."""
        found: list[object] = []
        _mapped(self, lambda leaf: found.append(leaf) or leaf)
        return found


def _mapped(value: object, function: Callable[[object], object]) -> object:
    """`value` with `function` applied to what is in it, or to itself if it is no dataclass, list or tuple."""
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(item, function) for item in value)
    if not is_dataclass(value):
        return function(value)
    new = {}
    for one in fields(value):
        own = getattr(value, one.name)
        new[one.name] = function(own) if CONSTANT in one.metadata else _mapped(own, function)
    return replace(value, **new)


@dataclass(frozen=True)
class Outcome:
    """What is known after a step, still on the device."""

    loss: Tensor
    """Scalar."""
    top1: Tensor
    """Scalar, contrastive accuracy in percent."""
    smashed: Tensor
    """``[2N, c, h, w]`` what the clients sent: of the online models, then of the momentum models, if there are keys."""
    gradient: Tensor
    """``[N, c, h, w]`` what the clients got back, and with TAResSFL what they added to it."""
    attackers_ssim: tuple[Tensor, ...] = ()
    """Scalars: how well simulated attackers reconstruct images, before they learnt from this step and after."""
    absent: Collection[int] = NOBODY
    """Positions in the cohort of clients of whom nothing arrived."""


@dataclass(frozen=True)
class Hyperparameters:
    """What stays the same from step to step; see `RunConfig` for each."""

    temperature: float
    symmetric: bool
    tau: float
    momentum: float
    weight_decay: float
    batches: tuple[int, ...]
    """Images of each client of the cohort, in order."""
    precision: torch.dtype = torch.float32
    """Dtype on the wire, and in bfloat16 of the forward passes; the state keeps its own."""
    resistance: float = 0.0
    """TAResSFL's lambda."""
    target_ssim: float = 0.0
    """From where on attackers are resisted."""
    clients_learn: bool = True
    """Whether clients are sent a gradient, and go by it."""
    chunk: int | None = None
    """Clients that are run together, None for all. How fast it goes depends on it, not what comes of it."""
    block: int | None = None
    """The same of the server: rows of smashed data."""

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """Mixed precision where `precision` asks for it."""
        if self.precision == torch.bfloat16:
            return torch.autocast(device.type, self.precision)
        return nullcontext()


def untimed(phase: str) -> AbstractContextManager[object]:
    """The clock of those who do not ask."""
    return nullcontext()


def train_step(
    model: SplitModel, state: State, batch: Batch, hyper: Hyperparameters, clock: Clock = untimed
) -> Outcome:
    """Train cohort and server on one batch, in place."""
    cohort = state.cohort
    autocast = hyper.autocast(cohort.online.device)

    with clock("data"):
        views = [
            batch.images.augmented(pixels, views, cohort.online.dtype)
            for pixels, views in zip(batch.pixels, batch.views, strict=True)
        ]
        query_CB3HW, key_CB3HW = zip(*views, strict=True)

    with clock("client forward"), autocast:
        with nullcontext() if hyper.clients_learn else torch.no_grad():
            queries = clients.forward(model.client, cohort.online, cohort.online_statistics, query_CB3HW, hyper.chunk)
        ema_(cohort.momentum, cohort.online, hyper.tau)
        keys = []
        if batch.labels is None:
            with torch.no_grad():
                keys = clients.forward(
                    model.client, cohort.momentum, cohort.momentum_statistics, key_CB3HW, hyper.chunk
                )

    with clock("server"):
        smashed_2Nchw, absent = batch.wire.up(cut([*queries, *keys], hyper.precision))
        del keys  # they are large
        labels_N = None if batch.labels is None else torch.cat([labels.flatten() for labels in batch.labels])
        gradients = learn_(model, state, smashed_2Nchw, batch.server_lr, hyper, labels_N, absent)

    gradient_Nchw, attackers_ssim = batch.wire.down(gradients.smashed), ()
    if hyper.clients_learn and model.attacker:
        with clock("attackers"):
            images_CB3HW = [batch.images.restore(images) for images in query_CB3HW]
            resistance = resist_(
                model.attacker,
                state.attackers.cohort,
                images_CB3HW,
                smashed_2Nchw[: len(gradient_Nchw)],
                batch.attackers_lr,
                hyper.resistance,
                hyper.target_ssim,
            )
            gradient_Nchw = gradient_Nchw + resistance.gradient
            attackers_ssim = resistance.before, resistance.after

    if hyper.clients_learn:
        with clock("client backward"):
            gradient_CP = clients.backward(cohort.online, queries, gradient_Nchw)
            sgd_(cohort.online, gradient_CP, cohort.velocity, batch.client_lr, hyper.momentum, hyper.weight_decay)

    return Outcome(gradients.loss, gradients.top1, smashed_2Nchw, gradient_Nchw, attackers_ssim, absent)


def learn_(
    model: SplitModel,
    state: State,
    smashed_2Nchw: Tensor,
    server_lr: Tensor,
    hyper: Hyperparameters,
    labels_N: Tensor | None = None,
    absent: Collection[int] = NOBODY,
) -> server.Gradients:
    """Do the server's part of a step, in place: momentum model, loss and gradients, SGD, queue.

    Args:
        smashed_2Nchw: what has arrived.
        labels_N: class of each image in supervised training, else None.
        absent: positions of clients whose rows are not used; their gradient is 0.
    """
    if absent:
        return _learn_without_(model, state, smashed_2Nchw, server_lr, hyper, labels_N, absent)
    central = state.server
    ema_(central.momentum, central.online, hyper.tau)
    how = {"block": hyper.block, "autocast": hyper.autocast(central.online.device)}
    if labels_N is None:
        outcome = server.contrast(
            model.server,
            central,
            smashed_2Nchw,
            state.queue,
            hyper.temperature,
            symmetric=hyper.symmetric,
            batches=hyper.batches,
            **how,
        )
    else:
        outcome = server.classify(model.server, central, smashed_2Nchw, labels_N, **how)
    gradients = outcome.gradients
    sgd_(central.online, gradients.parameters, central.velocity, server_lr, hyper.momentum, hyper.weight_decay)
    for keys_ND in outcome.keys:
        server.enqueue_(state.queue, keys_ND, hyper.batches)
    return gradients


def _learn_without_(
    model: SplitModel,
    state: State,
    smashed_2Nchw: Tensor,
    server_lr: Tensor,
    hyper: Hyperparameters,
    labels_N: Tensor | None,
    absent: Collection[int],
) -> server.Gradients:
    """Do what `learn_` does with the rows of those clients that are there; the gradient of the others is 0."""
    batches = tuple(0 if client in absent else rows for client, rows in enumerate(hyper.batches))
    there_N = torch.tensor([client not in absent for client, rows in enumerate(hyper.batches) for _ in range(rows)])
    rows = there_N.nonzero().flatten().to(smashed_2Nchw.device)
    some = smashed_2Nchw.unflatten(0, (-1, len(there_N)))[:, rows].flatten(0, 1)
    labels_n = None if labels_N is None else labels_N[rows]
    gradients = learn_(model, state, some, server_lr, replace(hyper, batches=batches), labels_n)
    every = torch.zeros_like(smashed_2Nchw[: len(there_N)]).index_copy_(0, rows, gradients.smashed)
    return replace(gradients, smashed=every)


def cut(smashed: Sequence[Tensor], precision: torch.dtype) -> Tensor:
    """What crosses the wire: ``[C', B, c, h, w]`` each -> ``[2N, c, h, w]``, off the clients' graph."""
    return torch.cat([chunk.detach().flatten(0, 1).to(precision) for chunk in smashed])
