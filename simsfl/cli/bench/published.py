"""MocoSFL's step as the published program does it, which the benchmark compares the engines with.

Each client has one module, one optimiser, one schedule and one pipeline of PIL views, and clients run one after the
other. The server sees the two directions of the loss one after the other; weights are standardised by a mean of means
and torch.std. The step computes the same as `simsfl.algorithm.reference` except for the draws of its views. It trains
models of its own, so that simsfl's state, operators and memory settings do not affect its time.
"""

from __future__ import annotations

import copy
import random

import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torchvision import transforms

from simsfl.algorithm.batch import Clock
from simsfl.config import RunConfig
from simsfl.data import Images
from simsfl.data.views import Recipe
from simsfl.models import SplitModel
from simsfl.models.layers import ConvNorm, ConvNormReLU

_ONLY = {
    "method": "mocosfl",
    "objective": None,
    "supervised": False,
    "symmetric": True,
    "feature_sharing": True,
    "server_replicas": 1,
    "views": "v2",
    "norm": "group",
    "optimizer": "sgd",
    "proximal": 0.0,
    "defence": None,
    "ressfl_lambda": 0.0,
    "dropout": 0.0,
    "straggler": 0.0,
    "fleet": None,
    "unequal": None,
    "divergence_tau": 0.0,
    "measure_divergence": False,
    "loss_threshold": 0.0,
}
"""The only values that `Published` supports, by config field; an objective may also be "moco", which None means. Other
fields it takes into account, or the time of its steps does not depend on them."""


def _pipeline(images: Images, recipe: Recipe) -> transforms.Compose:
    """Return the augmentation recipe v2, from a PIL image to a normalised tensor ``[3, H, H]``.

    Args:
        images: the images to augment, whose size, mean and standard deviation are used.
        recipe: how the views are drawn.
    """
    change, turn = 0.4 * recipe.color_strength, 0.1 * recipe.color_strength
    jitter = transforms.ColorJitter(change, change, change, turn)
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(recipe.image_size, scale=(recipe.crop_scale, 1.0)),
            transforms.RandomApply([jitter], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.RandomApply([_blurred], p=0.5),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(images.mean.flatten().tolist(), images.std.flatten().tolist()),
        ]
    )


def _blurred(image: Image.Image) -> Image.Image:
    """Blur an image with PIL's approximation of a Gaussian, of a random radius from 0.1 to 2 pixels."""
    return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


class _PublishedConvNorm(ConvNorm):
    """`ConvNorm` with an operator of PyTorch for each operation."""

    def forward(self, x: Tensor, *, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        conv, weight = self.conv, self.conv.weight
        if self.standardise:
            weight = weight - weight.mean(dim=1, keepdim=True).mean(dim=2, keepdim=True).mean(dim=3, keepdim=True)
            weight = weight / (weight.flatten(1).std(dim=1).view(-1, 1, 1, 1) + 1e-5)
        y = self.norm(F.conv2d(x, weight, conv.bias, conv.stride, conv.padding, groups=conv.groups))
        y = y if residual is None else y + residual
        return F.relu(y) if relu else y


class _PublishedConvNormReLU(_PublishedConvNorm):
    """`ConvNormReLU` with an operator of PyTorch for each operation."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x, relu=True)


def _as_published(module: nn.Module) -> nn.Module:
    """Have a module run its `ConvNorm` layers as `_PublishedConvNorm`, in place; return it."""
    for layer in module.modules():
        if isinstance(layer, ConvNorm):
            layer.__class__ = _PublishedConvNormReLU if isinstance(layer, ConvNormReLU) else _PublishedConvNorm
    return module


class _Trainee:
    """A module with its momentum encoder, optimiser and learning-rate schedule."""

    def __init__(self, module: nn.Module, config: RunConfig, lr: float):
        self.online, self.tau = _as_published(module), config.tau
        self.momentum = copy.deepcopy(module)
        self.optimizer = torch.optim.SGD(
            module.parameters(), lr=lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, config.rounds)

    @torch.no_grad()
    def follow(self) -> None:
        """Move the momentum encoder towards the module."""
        for m, p in zip(self.momentum.parameters(), self.online.parameters(), strict=True):
            m.mul_(self.tau).add_(p, alpha=1 - self.tau)

    def descend(self) -> None:
        """Do one step of the optimiser and of its schedule."""
        self.optimizer.step()
        self.schedule.step()


class Published:
    """The clients of a cohort and their server, trained as the published program does.

    Args:
        config: a resolved config.
        model: the network, whose initial weights all clients and the server start from.
        images: the training images.

    Raises:
        ValueError: the config asks for something that is not implemented here, see `_ONLY`.
    """

    def __init__(self, config: RunConfig, model: SplitModel, images: Images):
        for name, value in _ONLY.items():
            if getattr(config, name) != value and (name, config.objective) != ("objective", "moco"):
                raise ValueError(
                    f"{name}: {getattr(config, name)} is not in what the benchmark calls loop; "
                    f"allowed: {value}, or --engines without loop"
                )
        device = images.pixels.device
        self.config, self.images, self.device = config, images, device
        initial = model.client.initial.to(device)
        self.clients = [
            _Trainee(model.client.module(initial.clone()), config, config.client_lr) for _ in range(config.cohort)
        ]
        self.server = _Trainee(model.server.module(model.server.take_initial().to(device)), config, config.lr)
        self.queue = F.normalize(torch.randn(config.queue_length, config.key_dim, device=device), dim=1)
        self.pointer = 0
        self.views = [_pipeline(images, Recipe.of(config)) for _ in self.clients]

    def step(self, indices: Tensor, clock: Clock) -> float:
        """Train one step; return its loss.

        Args:
            indices: rows of the training images, int64 ``[C, B]``: a batch for each client.
            clock: times the phases.
        """
        queries, keys = [], []
        for client, view, rows in zip(self.clients, self.views, indices, strict=True):
            with clock("data"):
                pictures = [Image.fromarray(self.images.pixels[r].permute(1, 2, 0).cpu().numpy()) for r in rows]
                pairs = [(view(picture), view(picture)) for picture in pictures]
                query, key = (torch.stack(side).to(self.device) for side in zip(*pairs, strict=True))
            with clock("client forward"):
                queries.append(client.online(query))
                client.follow()
                with torch.no_grad():
                    keys.append(client.momentum(key))
        with clock("server"):
            query, key = torch.cat([q.detach() for q in queries]).requires_grad_(), torch.cat(keys)
            self.server.follow()
            self.server.optimizer.zero_grad()
            loss_12, k2 = self._contrast(query, key)
            loss_21, k1 = self._contrast(key, query.detach())
            loss = loss_12 + loss_21
            loss.backward()
            self.server.descend()
            self._enqueue(k1)
            self._enqueue(k2)
        with clock("client backward"):
            for client, smashed, gradient in zip(
                self.clients, queries, query.grad.split(indices.shape[1]), strict=True
            ):
                client.optimizer.zero_grad()
                smashed.backward(gradient)
                client.descend()
        return loss.item()

    def _contrast(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of one direction and its keys ``[N, key_dim]``.

        Args:
            query: smashed data of the queries ``[N, ...]``.
            key: smashed data of the keys ``[N, ...]``.
        """
        q = F.normalize(self.server.online(query), dim=1)
        with torch.no_grad():
            k = F.normalize(self.server.momentum(key), dim=1)
        scores = torch.cat([(q * k).sum(dim=1, keepdim=True), q @ self.queue.T], dim=1) / self.config.temperature
        return F.cross_entropy(scores, torch.zeros(len(q), dtype=torch.long, device=self.device)), k

    def _enqueue(self, keys: Tensor) -> None:
        """Write keys ``[N, key_dim]`` over the oldest of the key queue."""
        slots = (self.pointer + torch.arange(len(keys), device=self.device)) % len(self.queue)
        self.queue[slots] = keys
        self.pointer = (self.pointer + len(keys)) % len(self.queue)
