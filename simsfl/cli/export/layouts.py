"""The formats of exported networks, and the code that loads each of them without simsfl."""

from __future__ import annotations

import json
from dataclasses import dataclass

from torch import nn

from simsfl.config import RunConfig
from simsfl.config.catalogue import ARCHITECTURES
from simsfl.models.convnext import convnext
from simsfl.models.resnet import ResNet
from simsfl.models.vit import ViT

FORMATS = {
    "safetensors": ".safetensors",
    "torch.export": ".pt2",
    "torchvision": ".safetensors",
    "timm": ".safetensors",
}
"""Names of the formats, and how the names of their files end."""
KNOWN = ("torchvision", "timm")
"""The formats that are other libraries' own."""
_WIDTH = 64
"""Channels behind the stem of torchvision's and timm's ResNets."""
_STEPS = """\
import json, operator
import torch
from safetensors import safe_open

class Network(torch.nn.Module):
    def __init__(self, file):
        super().__init__()
        with safe_open(file, "pt") as opened:
            self.steps, fixed = (json.loads(opened.metadata()[name]) for name in ("steps", "fixed"))
            for name in opened.keys():
                weight = torch.nn.Parameter(opened.get_tensor(name), requires_grad=name not in fixed)
                self.register_parameter(name.replace(".", "/"), weight)

    def forward(self, images):
        values = {{"images": images}} | {{name.replace("/", "."): one for name, one in self.named_parameters()}}
        given = lambda it: values[it["of"]] if type(it) is dict else [*map(given, it)] if type(it) is list else it
        for result, name, arguments, keywords in self.steps:
            call = operator.getitem if name == "getitem" else getattr(torch.ops.aten, name)
            values[result] = call(*given(arguments), **keywords)
        return values[result]

network = Network({file})"""
_PROGRAM = """\
import torch

network = torch.export.load({file}).module()"""
_KNOWN = """\
{imports}

network = {network}
{changes}network.load_state_dict(load_file({file}))
network.eval()"""
"""Code that loads a file into `network`."""


@dataclass(frozen=True)
class Known:
    """A network of torchvision or timm that a backbone's weights are for, as code."""

    imports: str
    """Lines that import what the others need."""
    network: str
    """Expression for the network."""
    about: str
    """Which network it is, and what it has that is not as usual there."""
    changes: str = ""
    """Lines that change it, such as its stem, each with a line break."""


def loader(format: str, known: Known | None, file: str) -> str:
    """Return code that loads a file into a module `network`, from images ``[n, 3, H, H]`` to ``[n, ...]``.

    Args:
        format: a name in `FORMATS`.
        known: the network of torchvision or timm; None for the other formats.
        file: name of the file.
    """
    if known:
        return _KNOWN.format(file=json.dumps(file), **vars(known))
    return (_STEPS if format == "safetensors" else _PROGRAM).format(file=json.dumps(file))


def known(format: str, part: str, config: RunConfig, network: nn.Sequential) -> Known:
    """Return the network of torchvision or timm that is built like a backbone.

    Args:
        format: one of `KNOWN`.
        part: "backbone", or "client", which has none.
        config: config of the network, with every rule applied.
        network: the backbone (`simsfl.models.backbone.joined`).

    Raises:
        ValueError: there is no such network.
    """
    build = ARCHITECTURES[config.arch].code.load()
    is_resnet, others = isinstance(build, ResNet), "safetensors or torch.export"
    if part == "client":
        raise ValueError(f"format: {format} is for whole networks, and not for a client; allowed: {others}")
    if not (is_resnet or (format == "timm" and build in (ViT, convnext))):
        raise ValueError(f"format: {format} has no network like {config.arch}; allowed for it: {others}")
    for wrong, what in (
        (config.bottleneck, f"a bottleneck at the cut ({config.bottleneck})"),
        (not config.client_residual, "no shortcuts on the client"),
        (is_resnet and config.width != _WIDTH, f"width {config.width}, and not {_WIDTH}"),
    ):
        if wrong:
            raise ValueError(f"format: {format} has no such network: this one has {what}; allowed for it: {others}")
    if is_resnet:
        return _resnet(format, config, network)
    return _vit(config, network) if build is ViT else _convnext(config, network)


def _resnet(format: str, config: RunConfig, network: nn.Sequential) -> Known:
    """Return a ResNet of torchvision or timm with the stem and the normalisation of this one."""
    norm = "norm_layer=lambda channels: nn.GroupNorm(channels // 4, channels)" if config.norm == "group" else ""
    stem = network[0].conv
    (kernel, _), (stride, _), (padding, _) = stem.kernel_size, stem.stride, stem.padding
    changes = f"network.conv1 = nn.Conv2d(3, {_WIDTH}, {kernel}, {stride}, {padding}, bias=False)\n" * (kernel != 7)
    own = f"a stem of {kernel}x{kernel} at stride {stride}, " * (kernel != 7) + "GroupNorm, " * (config.norm == "group")
    about = f"{config.arch} of {format}, but with {own}no max-pool and no classifier"
    imports = "from safetensors.torch import load_file\nfrom torch import nn"
    if format == "torchvision":
        imports += f"\nfrom torchvision.models import {config.arch}"
        return Known(
            imports, f"{config.arch}({norm})", about, f"{changes}network.maxpool = network.fc = nn.Identity()\n"
        )
    created = ", ".join(filter(None, (f'timm.create_model("{config.arch}"', "num_classes=0", norm))) + ")"
    return Known(f"import timm\n{imports}", created, about, f"{changes}network.maxpool = nn.Identity()\n")


def _vit(config: RunConfig, network: nn.Sequential) -> Known:
    """Return timm's vision transformer with the sizes of this one."""
    patch, heads, has_token = network[0].patch, network[1].attention.heads, network[0].token is not None
    pooled = 'global_pool="token"' if has_token else 'global_pool="avg", class_token=False, fc_norm=False'
    lines = (
        f"    img_size={config.image_size}, patch_size={patch}, embed_dim={config.width}, num_heads={heads},",
        f"    num_classes=0, {pooled}, norm_layer=partial(nn.LayerNorm, eps=1e-5),",
    )
    return Known(
        "from functools import partial\n\nfrom safetensors.torch import load_file\n"
        "from timm.models.vision_transformer import VisionTransformer\nfrom torch import nn",
        "\n".join(["VisionTransformer(", *lines, ")"]),
        "VisionTransformer of timm, with features that are "
        + ("the token of the class" if has_token else "the mean over normalised tokens"),
    )


def _convnext(config: RunConfig, network: nn.Sequential) -> Known:
    """Return timm's ConvNeXt with the sizes of this one, which normalises before it pools."""
    dims = tuple(config.width * 2**stage for stage in range(4))
    options = f"dims={dims}, patch_size={network[0][0].stride[0]}, head_norm_first=True, norm_eps=1e-5, num_classes=0"
    return Known(
        "from safetensors.torch import load_file\nfrom timm.models.convnext import ConvNeXt",
        f"ConvNeXt({options})",
        "ConvNeXt of timm, which normalises before it pools, and has no classifier",
    )
