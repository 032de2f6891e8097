"""The cost of participation for clients, from model and plan alone: operations, memory and bytes on the wire."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, prod

import torch
from torch import nn

from simsfl.algorithm.communication import Exchange
from simsfl.algorithm.plan import Group
from simsfl.defences import NONE, Chain
from simsfl.models import FlatModule, SplitModel
from simsfl.models.layers import BatchNorm, ConvNorm
from simsfl.system.decoding import Count

COLOURS = 3
"""Channels of an image."""
WEIGHT_BYTES = 4
"""Bytes of a weight on the wire and in memory: fp32."""
_NORMALISED, _NORMALISED_BACK = 8, 16
"""Operations per number that is normalised, in the forward pass (sums of the numbers and of their squares, shift and
scale twice), and in the backward pass."""


@dataclass(frozen=True)
class Traffic:
    """Bytes that travel between clients and server.

    >>> Traffic(up=3, down=1) + Traffic(up=2)
    Traffic(up=5, down=1)
    """

    up: Count = 0
    """Bytes that clients send."""
    down: Count = 0
    """Bytes that are sent to clients."""

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.up + other.up, self.down + other.down)


@dataclass(frozen=True)
class Missed:
    """What does not travel in a round because clients are absent."""

    images: Count = 0
    """Images of which nothing is sent, over all steps."""
    models: Count = 0
    """Models that are not averaged, over all averagings."""

    def __add__(self, other: Missed) -> Missed:
        return Missed(self.images + other.images, self.models + other.models)


@dataclass(frozen=True)
class ClientCost:
    """The bytes that travel for one client."""

    image_bytes: int
    """Bytes of the smashed data of one view of one image."""
    gradient_bytes: int
    """Bytes of the gradient that comes back for it."""
    sync_bytes: int
    """Bytes each way, per averaging, of the client model's weights and running statistics, including those of the
    momentum model if it is averaged."""
    momentum_bytes: int
    """Bytes within `sync_bytes` that belong to the momentum model."""
    statistics_bytes: int
    """Bytes of the client model's running statistics alone, which clients average even when they do not learn."""

    def round_traffic(
        self,
        groups: Sequence[Group],
        steps: int,
        syncs: int,
        *,
        exchange: Exchange = Exchange.BOTH_WAYS,
        frozen: bool = False,
        views: int,
        graded: int = 1,
        missed: Missed = Missed(),
    ) -> Traffic:
        """Return the bytes that travel in a whole round, summed over the cohort.

        A client fetches the average at the start of a round and after each averaging except the last, whose result it
        fetches when it takes part again; so there are as many downloads as averagings. Frozen clients get neither
        gradients nor weights, but they average the running statistics that they have. In a round where clients only
        send activations, the same holds, except that weights are fetched at its start unless all clients take part, and
        that momentum models, if they are averaged, are sent, and fetched at its end. In a silent round nothing travels.
        A client whose model is not averaged does not fetch the average either.

        >>> cost = ClientCost(image_bytes=100, gradient_bytes=100, sync_bytes=40, momentum_bytes=0, statistics_bytes=0)
        >>> cost.round_traffic([Group(range(10), cohort=5, batch_size=2)], steps=3, syncs=1, views=2)
        Traffic(up=6200, down=3200)

        Args:
            groups: groups of clients with the same resources.
            steps: steps of the round.
            syncs: averagings of the round.
            exchange: what clients and server exchange in the round.
            frozen: whether clients do not learn.
            views: views of an image that are sent. Labels, which supervised training sends, are not counted.
            graded: views of an image that gradients come back for.
            missed: what clients of the cohort miss.
        """
        if exchange is Exchange.SILENT:
            return Traffic()
        drawn, averagings = sum(group.cohort for group in groups), min(syncs, steps)
        models = drawn * averagings - missed.models
        images = steps * sum(group.images for group in groups) - missed.images
        activations = images * self.image_bytes
        statistics = models * self.statistics_bytes
        if frozen:
            return Traffic(views * activations + statistics, statistics)
        if exchange is Exchange.UP_ONLY:
            everyone = drawn == sum(len(group.clients) for group in groups)
            cohort = drawn - missed.models // averagings
            fetched = cohort * (self.momentum_bytes if everyone else self.sync_bytes)
            return Traffic(views * activations + cohort * self.momentum_bytes + statistics, fetched + statistics)
        weights = models * self.sync_bytes
        return Traffic(views * activations + weights, graded * images * self.gradient_bytes + weights)


def client_cost(
    model: SplitModel,
    *,
    number_bytes: int,
    align_momentum: bool,
    weight_bytes: int = WEIGHT_BYTES,
    defence: Chain = NONE,
) -> ClientCost:
    """Return the bytes that travel for one client, from the model alone.

    >>> from simsfl.models import split_model
    >>> shape = {"width": 8, "cut_layer": 1, "image_size": 32, "head": "mlp", "key_dim": 8}
    >>> model = split_model("resnet8", **shape, generator=None)
    >>> model.smashed_shape, client_cost(model, number_bytes=4, align_momentum=False).image_bytes
    ((8, 16, 16), 8192)

    Args:
        model: client and server model.
        number_bytes: bytes of a number in activations and gradients on the wire.
        align_momentum: whether the momentum model is averaged, and therefore travels, too.
        weight_bytes: bytes of a weight on the wire.
        defence: what clients do with their smashed data, which may take fewer bytes then.
    """
    numbers = prod(model.smashed_shape)
    weights = (model.client.size + len(model.client.initial_statistics)) * weight_bytes
    return ClientCost(
        image_bytes=ceil(defence.bytes_up(numbers, number_bytes)) if numbers else 0,
        gradient_bytes=ceil(defence.bytes_down(numbers, number_bytes)) if numbers else 0,
        sync_bytes=weights * (2 if align_momentum else 1),
        momentum_bytes=weights if align_momentum else 0,
        statistics_bytes=len(model.client.initial_statistics) * weight_bytes,
    )


@dataclass(frozen=True)
class Operations:
    """The floating-point operations of half a network for one image; a multiply-add counts as two."""

    forward: int
    """Operations of a forward pass."""
    backward: int
    """Operations of a backward pass."""
    macs: int
    """Multiply-adds of the convolutions and matrix products in a forward pass, without normalisation."""
    normalised: int
    """Count of the numbers that are normalised in a forward pass."""

    def step(self, *, views: int, graded: int) -> int:
        """Return the operations for an image in a step.

        Args:
            views: passes forward: of the online and the momentum model, or with labels of the online model alone.
            graded: passes backward: two where clients learn from both views, none where they do not learn.
        """
        return views * self.forward + graded * self.backward

    def products(self, *, views: int, graded: int) -> int:
        """Return the part of `step` that is convolutions and matrix products."""
        others = (views * _NORMALISED + graded * _NORMALISED_BACK) * self.normalised
        return self.step(views=views, graded=graded) - others


@dataclass(frozen=True)
class Memory:
    """The bytes of memory that training takes on a client, by purpose."""

    weights: int
    """Bytes of the online model: weights and running statistics."""
    momentum: int
    """Bytes of the momentum model: weights and running statistics."""
    velocity: int
    """Bytes of SGD's velocity; 0 for a client that does not learn."""
    gradients: int
    """Bytes of the gradients of the weights; 0 for a client that does not learn."""
    activations: int
    """Bytes that a batch keeps for the backward pass; 0 for a client that does not learn."""
    workspace: int
    """Bytes that a pass works on in addition: a batch of the largest map, and its gradient."""

    @property
    def total(self) -> int:
        """Bytes of all purposes together."""
        return sum(vars(self).values())


def operations(half: FlatModule, shape: Sequence[int], *, of_images: bool = False) -> Operations:
    """Count the operations of half a network for one image, or for its smashed data.

    Convolutions and matrix products are counted by the formulas of `torch.utils.flop_counter`; normalisation of
    activations is added. A backward pass gives the gradients of weights and inputs, except of inputs that are images.
    The shapes of layers are found with one image of zeros, because counting on PyTorch's meta device takes a second of
    imports.

    Args:
        half: client or server model.
        shape: ``(channels, height, width)`` of its input.
        of_images: whether its inputs are images, which need no gradient.
    """
    macs = normalised = spared = 0
    image = torch.zeros(1, *shape, requires_grad=not of_images)

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal macs, normalised, spared
        layer = module.conv if isinstance(module, ConvNorm) else module
        own = _multiply_adds(layer, inputs[0], output)
        macs += own
        if not inputs[0].requires_grad:  # it is made of images alone, such as their patches
            spared += own
        if isinstance(module, (BatchNorm, nn.LayerNorm)) or isinstance(getattr(module, "norm", None), nn.GroupNorm):
            normalised += output.numel()

    with _shapes_of(half, count) as module, torch.enable_grad():
        module.eval()(image)
    return Operations(
        forward=2 * macs + _NORMALISED * normalised,
        backward=4 * macs - 2 * spared + _NORMALISED_BACK * normalised,
        macs=macs,
        normalised=normalised,
    )


def _multiply_adds(layer: nn.Module, x: torch.Tensor, y: torch.Tensor) -> int:
    """Return the multiply-adds of a convolution or matrix product with input `x` and output `y`; 0 for other layers."""
    if isinstance(layer, nn.ConvTranspose2d):
        return x.numel() * layer.weight[0].numel()
    if hasattr(layer, "products"):
        return layer.products(x)
    return y.numel() * layer.weight[0].numel() if isinstance(layer, (nn.Conv2d, nn.Linear)) else 0


@contextmanager
def _shapes_of(half: FlatModule, hook: Callable[..., None]) -> Iterator[nn.Module]:
    """Yield half a network with weights of zero; its modules call `hook` with themselves, their inputs and output."""
    module = half.module(torch.zeros(half.size), torch.zeros(sum(map(prod, half.statistic_shapes.values()))))
    for part in module.modules():
        part.register_forward_hook(hook)
    yield module


def memory(half: FlatModule, shape: Sequence[int], batch_size: int, *, learns: bool = True) -> Memory:
    """Estimate the memory that training half a network takes in fp32.

    A client that does not learn keeps its weights, twice, and the maps that a pass works on.

    Args:
        half: client model.
        shape: ``(channels, height, width)`` of an input.
        batch_size: images in a batch.
        learns: whether the client learns.
    """
    few = 2  # BatchNorm needs more than one image
    (fixed, largest), (more, _) = (_kept_bytes(half, shape, batch) for batch in (few, few + 1))
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


def _kept_bytes(half: FlatModule, shape: Sequence[int], batch_size: int) -> tuple[int, int]:
    """Return the bytes that a batch keeps for the backward pass, and those of an image's largest map and its gradient.

    Weights do not count. `shape` is ``(channels, height, width)`` of an input.
    """
    kept: dict[int, torch.UntypedStorage] = {}
    largest = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    def measure(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        nonlocal largest
        largest = max(largest, output.numel() // batch_size)

    with _shapes_of(half, measure) as module, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = module(torch.zeros(batch_size, *shape))
    weights = {parameter.untyped_storage()._cdata for parameter in module.parameters()}
    del output
    return sum(own.nbytes() for key, own in kept.items() if key not in weights), 2 * largest * WEIGHT_BYTES


def client_flops(model: SplitModel, image_size: int, *, views: int, graded: int) -> int:
    """Return the operations of a client for one image in a step; see `Operations.step`."""
    return operations(model.client, (COLOURS, image_size, image_size), of_images=True).step(views=views, graded=graded)


def server_flops(model: SplitModel, *, views: int, graded: int) -> int:
    """Return the operations of the server for one image in a step.

    Args:
        model: client and server model.
        views: how often the image goes forward through one of the server's models.
        graded: how often it goes backward through the online model.
    """
    return operations(model.server, model.smashed_shape).step(views=views, graded=graded)
