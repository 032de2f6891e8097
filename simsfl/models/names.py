"""The names that torchvision and timm have for the weights of networks that are built alike.

ResNets are built as in both, apart from the stem of those for small images and from the max-pool behind it; vision
transformers and ConvNeXt as in timm. The names here are those of `simsfl.models.backbone.joined`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from math import isqrt, prod

from torch import Tensor

from simsfl.config.catalogue import ARCHITECTURES
from simsfl.models.convnext import DEPTHS, convnext
from simsfl.models.resnet import ResNet
from simsfl.models.vit import DEPTH, ViT

_RESNET = (
    (r"^conv\.", "conv1."),
    (r"^norm\.", "bn1."),
    (r"\.conv(\d)\.conv\.", r".conv\1."),
    (r"\.conv(\d)\.norm\.", r".bn\1."),
    (r"\.shortcut\.conv\.", ".downsample.0."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
)
_PERCEPTRON = ((r"\.perceptron\.0\.", ".mlp.fc1."), (r"\.perceptron\.2\.", ".mlp.fc2."))
_VIT = (
    (r"^project\.", "patch_embed.proj."),
    (r"^position$", "pos_embed"),
    (r"^token$", "cls_token"),
    (r"\.attention\.mix\.", ".attn.qkv."),
    (r"\.attention\.join\.", ".attn.proj."),
    (r"^blocks\.\d+\.norm3\.", "norm."),
    *_PERCEPTRON,
)
_CONVNEXT = (
    (r"^stages\.3\.2\.1\.", "norm_pre."),
    (r"^(stages\.[1-3])\.0\.([01])\.", r"\1.downsample.\2."),
    (r"^(stages\.[1-3])\.0\.2\.", r"\1.blocks.0."),
    (r"^(stages\.\d)\.(\d)\.0\.", r"\1.blocks.\2."),
    (r"\.spread\.", ".conv_dw."),
    (r"\.scale$", ".gamma"),
    *_PERCEPTRON,
)
"""Patterns, and what replaces them, in names that begin with the place of a layer in the other library's network."""
_TOKENS = ("pos_embed", "cls_token")
"""What there is shaped as tokens ``[1, t, d]``, and here as maps ``[d, h, w]``."""


def known_names(arch: str, names: Iterable[str]) -> dict[str, str]:
    """Return what torchvision or timm calls the weights and running statistics of a backbone, by their names here.

    >>> known_names("resnet18", ["0.norm.bias", "3.shortcut.conv.weight", "narrow0.bias"])
    {'0.norm.bias': 'bn1.bias', '3.shortcut.conv.weight': 'layer2.0.downsample.0.weight'}

    Args:
        arch: a name in `ARCHITECTURES`.
        names: names here. Those without a counterpart, such as of a bottleneck at the cut, are left out.
    """
    build = ARCHITECTURES[arch].code.load()
    if isinstance(build, ResNet):
        places, rules = ["", *_places("layer", enumerate(build.blocks, start=1))], _RESNET
    elif build is ViT:
        places, rules = ["", *(f"blocks.{block}." for block in range(DEPTH))], _VIT
    elif build is convnext:
        places, rules = ["stem.", *_places("stages.", enumerate(DEPTHS))], _CONVNEXT
    else:
        return {}
    found = {}
    for name in names:
        layer, _, other = name.partition(".")
        if layer.isdecimal():
            other = places[int(layer)] + other
            for pattern, replacement in rules:
                other = re.sub(pattern, replacement, other)
            found[name] = other
    return found


def _places(stage: str, counts: Iterable[tuple[int, int]]) -> list[str]:
    """Return the places of blocks, such as "layer1.0.", given the number of each stage and how many blocks it has."""
    return [f"{stage}{number}.{block}." for number, count in counts for block in range(count)]


def as_known(name: str, tensor: Tensor) -> Tensor:
    """Return a weight as the other library shapes it.

    Args:
        name: its name there.
        tensor: the weight as it is shaped here.
    """
    if name == "patch_embed.proj.weight":  # a convolution there
        return tensor.unflatten(1, (3, isqrt(tensor.shape[1] // 3), -1))
    return tensor.flatten(1).T[None] if name in _TOKENS else tensor


def as_here(name: str, tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a weight of the other library as it is shaped here; one that does not fit keeps a shape that says so.

    Args:
        name: its name there.
        tensor: the weight as it is shaped there.
        shape: its shape here.
    """
    if name == "patch_embed.proj.weight":
        return tensor.flatten(1)
    if name not in _TOKENS or tensor.ndim != 3:
        return tensor
    tokens = tensor[0].T
    places = prod(shape[1:])
    tokens = tokens[:, -places:] if tokens.shape[1] == places + 1 else tokens  # its first is that of the class
    return tokens.reshape(len(tokens), *shape[1:]) if tokens.shape[1] == places else tokens


def other_names(name: str) -> list[str]:
    """Return the names that a weight has in timm's networks, which normalise before they pool, or behind it.

    >>> other_names("norm_pre.bias"), other_names("conv1.weight")
    (['norm_pre.bias', 'head.norm.bias'], ['conv1.weight'])
    """
    also = (("norm_pre.", "head.norm."), ("norm.", "fc_norm."))
    return [name, *(behind + name.removeprefix(before) for before, behind in also if name.startswith(before))]
