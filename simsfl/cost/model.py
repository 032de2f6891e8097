"""What taking part costs clients: operations, memory and bytes on the wire, from the model and the plan alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod

import torch
from torch import nn

from simsfl.algorithm.communication import Exchange
from simsfl.algorithm.plan import Group
from simsfl.models import FlatModule, SplitModel
from simsfl.models.layers import BatchNorm, ConvNorm

COLOURS = 3
WEIGHT_BYTES = 4
"""Weights travel in fp32."""
NORMALISED, NORMALISED_BACK = 8, 16
"""Operations for each number that is normalised: sums of it and of its square, shift and scale twice; and back."""


@dataclass(frozen=True)
class Traffic:
    """Bytes sent by clients and to them."""

    up: int = 0
    down: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.up + other.up, self.down + other.down)


@dataclass(frozen=True)
class ClientCost:
    """What travels for a client."""

    image_bytes: int
    """Smashed data of one view of one image; as much is the gradient that comes back."""
    sync_bytes: int
    """Weights and running statistics of the client model, each way; of its momentum model, too, if that is averaged."""
    momentum_bytes: int
    """Of them the momentum model's."""
    statistics_bytes: int
    """Its running statistics alone, which clients that do not learn average, too."""

    def round_traffic(
        self,
        groups: Sequence[Group],
        steps: int,
        syncs: int,
        *,
        exchange: Exchange = Exchange.BOTH_WAYS,
        frozen: bool = False,
        views: int = 2,
    ) -> Traffic:
        """Return the bytes of a whole round, of the cohort together.

        A client fetches the average at the start of a round and after each averaging but the last, whose result it
        fetches when it next takes part: as many downloads as averagings. Frozen clients get neither gradients nor
        weights, but average what running statistics they have. Where clients only send activations, the same holds
        but weights are fetched at the start of the round unless all clients take part, and momentum models that are
        averaged are fetched at its end. In a silent round nothing travels.

        Args:
            groups: clients by what they can do.
            steps: steps of the round.
            syncs: averagings of the round.
            exchange: what clients and server exchange in it.
            frozen: whether clients do not learn.
            views: views of an image that are sent; labels of supervised training are not counted.
        """
        if exchange is Exchange.SILENT:
            return Traffic()
        cohort = sum(group.cohort for group in groups)
        activations = steps * self.image_bytes * sum(group.images for group in groups)
        statistics = cohort * min(syncs, steps) * self.statistics_bytes
        if frozen:
            return Traffic(views * activations + statistics, statistics)
        if exchange is Exchange.UP_ONLY:
            everyone = cohort == sum(len(group.clients) for group in groups)
            fetched = cohort * (self.momentum_bytes if everyone else self.sync_bytes)
            return Traffic(views * activations + cohort * self.momentum_bytes + statistics, fetched + statistics)
        weights = cohort * min(syncs, steps) * self.sync_bytes
        return Traffic(views * activations + weights, activations + weights)


def client_cost(
    model: SplitModel, *, number_bytes: int, align_momentum: bool, weight_bytes: int = WEIGHT_BYTES
) -> ClientCost:
    """What travels for a client, from the model alone.

    Args:
        number_bytes: of a number of activations and gradients on the wire; `weight_bytes` of weights.
        align_momentum: the momentum model is averaged, and so travels, too.
    """
    weights = (model.client.size + len(model.client.initial_statistics)) * weight_bytes
    return ClientCost(
        image_bytes=prod(model.smashed_shape) * number_bytes,
        sync_bytes=weights * (2 if align_momentum else 1),
        momentum_bytes=weights if align_momentum else 0,
        statistics_bytes=len(model.client.initial_statistics) * weight_bytes,
    )


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of half a network for one image, two per multiply-add."""

    forward: int
    backward: int
    macs: int
    """Multiply-adds of the convolutions and matrix products of a forward pass, without normalisation."""
    normalised: int
    """Numbers that are normalised in a forward pass."""

    def step(self, *, learns: bool = True) -> int:
        """Of what a client does with an image: online and momentum model forward, and backward if it `learns`."""
        return 2 * self.forward + (self.backward if learns else 0)

    def products(self) -> int:
        """The same of convolutions and matrix products alone, forward twice and back."""
        return self.step() - (2 * NORMALISED + NORMALISED_BACK) * self.normalised


@dataclass(frozen=True)
class Memory:
    """Bytes that training takes on a client, by what they are for."""

    weights: int
    momentum: int
    """Of the momentum model."""
    velocity: int
    gradients: int
    activations: int
    """Kept for the backward pass, of a batch."""
    workspace: int
    """The largest map and its gradient: what a pass works on besides."""

    @property
    def total(self) -> int:
        """Of all of them."""
        return sum(vars(self).values())


def operations(half: FlatModule, shape: Sequence[int], *, of_images: bool = False) -> Operations:
    """Of half a network for an image, or its smashed data, of so many channels, height and width.

    Convolutions and matrix products by the formulas of `torch.utils.flop_counter`, and normalisation of activations;
    a backward pass is that of weights and inputs, but for inputs that are images. The layers' shapes are found with one
    image of zeros, for to count on PyTorch's meta device takes a second of imports.

    Args:
        of_images: the half's inputs are images, which need no gradient.
    """
    macs = normalised = spared = 0
    image = torch.zeros(1, *shape)

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal macs, normalised, spared
        layer = module.conv if isinstance(module, ConvNorm) else module
        own = multiply_adds(layer, inputs[0], output)
        macs += own
        if own and of_images and inputs[0] is image:
            spared += own
        if isinstance(module, BatchNorm) or isinstance(getattr(module, "norm", None), nn.GroupNorm):
            normalised += output.numel()

    with shapes_of(half, count) as module, torch.no_grad():
        module.eval()(image)
    return Operations(
        forward=2 * macs + NORMALISED * normalised,
        backward=4 * macs - 2 * spared + NORMALISED_BACK * normalised,
        macs=macs,
        normalised=normalised,
    )


def multiply_adds(layer: nn.Module, x: torch.Tensor, y: torch.Tensor) -> int:
    """Of a convolution or matrix product from `x` to `y`; 0 of other layers."""
    if isinstance(layer, nn.ConvTranspose2d):
        return x.numel() * layer.weight[0].numel()
    return y.numel() * layer.weight[0].numel() if isinstance(layer, (nn.Conv2d, nn.Linear)) else 0


@contextmanager
def shapes_of(half: FlatModule, hook: Callable[..., None]) -> Iterator[nn.Module]:
    """Half a network with weights of zero, whose modules call `hook` with what goes in and what comes out."""
    module = half.module(torch.zeros(half.size), torch.zeros(sum(map(prod, half.statistic_shapes.values()))))
    for part in module.modules():
        part.register_forward_hook(hook)
    yield module


def memory(half: FlatModule, shape: Sequence[int], batch_size: int, *, learns: bool = True) -> Memory:
    """Of training half a network on batches of images of such a `shape`, in fp32.

    What a client that does not learn keeps is its weights, twice, and the maps that a pass works on.
    """
    few = 2  # BatchNorm takes no single image
    (fixed, largest), (more, _) = (kept_bytes(half, shape, batch) for batch in (few, few + 1))
    activations = fixed + (batch_size - few) * (more - fixed)
    own = half.size * WEIGHT_BYTES
    state = own + len(half.initial_statistics) * WEIGHT_BYTES
    return Memory(
        weights=state,
        momentum=state,
        velocity=own if learns else 0,
        gradients=own if learns else 0,
        activations=activations if learns else 0,
        workspace=batch_size * largest,
    )


def kept_bytes(half: FlatModule, shape: Sequence[int], batch_size: int) -> tuple[int, int]:
    """Bytes that are kept for the backward pass, but for weights; those of an image's largest map, and its gradient."""
    kept: dict[int, torch.UntypedStorage] = {}
    largest = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    def measure(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        nonlocal largest
        largest = max(largest, output.numel() // batch_size)

    with shapes_of(half, measure) as module, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = module(torch.zeros(batch_size, *shape))
    weights = {parameter.untyped_storage()._cdata for parameter in module.parameters()}
    del output
    return sum(own.nbytes() for key, own in kept.items() if key not in weights), 2 * largest * WEIGHT_BYTES


def client_flops(model: SplitModel, image_size: int, *, learns: bool = True) -> int:
    """Operations of a client for one image; see `operations`."""
    return operations(model.client, (COLOURS, image_size, image_size), of_images=True).step(learns=learns)


def server_flops(model: SplitModel, *, symmetric: bool) -> int:
    """Operations of the server for one image: of either network for one view or for both, and back."""
    server = operations(model.server, model.smashed_shape)
    return (2 if symmetric else 1) * (2 * server.forward + server.backward)
