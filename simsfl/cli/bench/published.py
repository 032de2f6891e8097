"""MocoSFL's step in the way of the published program: what the benchmark compares with.

One module, one optimiser, one schedule and one pipeline of PIL views per client, run one after the other; the server
sees the two directions of the loss one after the other; weights are standardised by mean of means and torch.std. It
computes what `simsfl.algorithm.reference` does but for the draws of its views, and trains models of its own, so that
nothing of simsfl's state, operators or memory settings is in its way.
"""

from __future__ import annotations

import copy
import random

import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torchvision import transforms

from simsfl.algorithm.step import Clock
from simsfl.config import RunConfig
from simsfl.data import Images
from simsfl.models import SplitModel
from simsfl.models.layers import ConvNorm, ConvNormReLU

ONLY = {
    "symmetric": True,
    "feature_sharing": True,
    "views": "v2",
    "norm": "group",
    "supervised": False,
    "unequal": None,
    "divergence_tau": 0.0,
    "loss_threshold": 0.0,
}
"""Settings that it is written for; what else can be set makes no difference to how long a step takes, or is heeded."""


def pipeline(images: Images, crop_scale: float) -> transforms.Compose:
    """Recipe v2 of a PIL image."""
    size = images.pixels.shape[-1]
    jitter = transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=(crop_scale, 1.0)),
            transforms.RandomApply([jitter], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.RandomApply([blurred], p=0.5),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(images.mean.flatten().tolist(), images.std.flatten().tolist()),
        ]
    )


def blurred(image: Image.Image) -> Image.Image:
    """PIL's approximation of a Gaussian blur."""
    return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


class PublishedConvNorm(ConvNorm):
    """`ConvNorm`, operation by operation."""

    def forward(self, x: Tensor, *, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        conv, weight = self.conv, self.conv.weight
        if self.standardise:
            weight = weight - weight.mean(dim=1, keepdim=True).mean(dim=2, keepdim=True).mean(dim=3, keepdim=True)
            weight = weight / (weight.flatten(1).std(dim=1).view(-1, 1, 1, 1) + 1e-5)
        y = self.norm(F.conv2d(x, weight, conv.bias, conv.stride, conv.padding, groups=conv.groups))
        y = y if residual is None else y + residual
        return F.relu(y) if relu else y


class PublishedConvNormReLU(PublishedConvNorm):
    """`ConvNormReLU`, operation by operation."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x, relu=True)


def as_published(module: nn.Module) -> nn.Module:
    """The same module with its layers run as `PublishedConvNorm`."""
    for layer in module.modules():
        if isinstance(layer, ConvNorm):
            layer.__class__ = PublishedConvNormReLU if isinstance(layer, ConvNormReLU) else PublishedConvNorm
    return module


class Trainee:
    """A module, its momentum encoder, its optimiser and its schedule."""

    def __init__(self, module: nn.Module, config: RunConfig, lr: float):
        self.online, self.tau = as_published(module), config.tau
        self.momentum = copy.deepcopy(module)
        self.optimizer = torch.optim.SGD(
            module.parameters(), lr=lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, config.rounds)

    @torch.no_grad()
    def follow(self) -> None:
        """Move the momentum encoder."""
        for m, p in zip(self.momentum.parameters(), self.online.parameters(), strict=True):
            m.mul_(self.tau).add_(p, alpha=1 - self.tau)

    def descend(self) -> None:
        """One step of the optimiser and of its schedule."""
        self.optimizer.step()
        self.schedule.step()


class Published:
    """A cohort and its server.

    Args:
        config: resolved.

    Raises:
        ValueError: it asks for what is not in here (`ONLY`).
    """

    def __init__(self, config: RunConfig, model: SplitModel, images: Images):
        for name, value in ONLY.items():
            if getattr(config, name) != value:
                raise ValueError(
                    f"{name}: {getattr(config, name)} is not in what the benchmark calls loop; "
                    f"allowed: {value}, or --engines without loop"
                )
        device = images.pixels.device
        self.config, self.images, self.device = config, images, device
        initial = model.client.initial.to(device)
        self.clients = [
            Trainee(model.client.module(initial.clone()), config, config.client_lr) for _ in range(config.cohort)
        ]
        self.server = Trainee(model.server.module(model.server.take_initial().to(device)), config, config.lr)
        self.queue = F.normalize(torch.randn(config.queue_length, config.key_dim, device=device), dim=1)
        self.pointer = 0
        self.views = [pipeline(images, config.crop_scale) for _ in self.clients]

    def step(self, indices: Tensor, clock: Clock) -> float:
        """Train on images ``[C, B]``; the loss."""
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
            loss_12, k2 = self.contrast(query, key)
            loss_21, k1 = self.contrast(key, query.detach())
            loss = loss_12 + loss_21
            loss.backward()
            self.server.descend()
            self.enqueue(k1)
            self.enqueue(k2)
        with clock("client backward"):
            for client, smashed, gradient in zip(
                self.clients, queries, query.grad.split(indices.shape[1]), strict=True
            ):
                client.optimizer.zero_grad()
                smashed.backward(gradient)
                client.descend()
        return loss.item()

    def contrast(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """One direction's loss, and its keys."""
        q = F.normalize(self.server.online(query), dim=1)
        with torch.no_grad():
            k = F.normalize(self.server.momentum(key), dim=1)
        scores = torch.cat([(q * k).sum(dim=1, keepdim=True), q @ self.queue.T], dim=1) / self.config.temperature
        return F.cross_entropy(scores, torch.zeros(len(q), dtype=torch.long, device=self.device)), k

    def enqueue(self, keys: Tensor) -> None:
        """Write keys into the ring."""
        slots = (self.pointer + torch.arange(len(keys), device=self.device)) % len(self.queue)
        self.queue[slots] = keys
        self.pointer = (self.pointer + len(keys)) % len(self.queue)
