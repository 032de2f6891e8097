"""Launches of every Triton kernel, at the shapes of all presets, at odd sizes, and with all widths of groups.

A function whose name begins with `launch_` calls the launchers of an operator with tensors that have no values. Their
floating-point numbers have the dtype that it is given. `compile_ahead.py` notes with which constants and types the
kernels are launched, and compiles them. A new kernel needs such a function here, or `test_compiled.py` fails.
"""

import sys
from dataclasses import replace
from functools import cache, partial
from unittest.mock import patch

import numpy as np
import torch

from simsfl.config.notation import Decoder
from simsfl.config.presets import PRESETS
from simsfl.data.views import UNIFORMS, Recipe
from simsfl.defences.taressfl import attackers_network
from simsfl.kernels import standardise
from simsfl.kernels.augment_triton import triton_augment
from simsfl.kernels.conv2d import _triton_backward as conv2d_backward
from simsfl.kernels.conv2d import _triton_forward as conv2d_forward
from simsfl.kernels.conv2d import sides
from simsfl.kernels.group_norm import _triton_backward as group_norm_backward
from simsfl.kernels.group_norm import _triton_forward as group_norm_forward
from simsfl.kernels.memory_format import turned
from simsfl.kernels.sgd_ema import _triton_sgd_
from simsfl.models import layers
from simsfl.models.central import CentralModule
from simsfl.setup import defaults
from simsfl.setup.assembly import network

group_norm_nhwc = sys.modules["simsfl.kernels.group_norm_nhwc"]  # the package has a function of this name

ODD_NORMS = [(1, 1, 1), (2, 5, 3), (3, 17, 19), (8, 33, 35), (16, 32, 32), (32, 32, 32)]
"""Channels per group (4 in presets), height and width of maps, some smaller and some larger than a block of pixels."""


def empty(*shape, dtype=torch.float32):
    """Return a tensor on the meta device, which has a shape and a dtype but no values."""
    return torch.empty(shape, dtype=dtype, device="meta")


@cache
def halves():
    """Return every network of the presets: the module, how many models run together, and the shape of each one's input.

    On the clients, a model per client of the cohort runs on a batch of its own. On the server, one model runs on two
    views of the images of all clients.
    """
    found = {}
    for preset in PRESETS.values():
        config = defaults.resolve(replace(preset(), device="cpu", image_size=32))
        shape = (config.batch_size, 3, 32, 32)
        key = str((config.network(), config.ressfl_decoder if config.ressfl_lambda else None, config.cohort, shape))
        if key not in found:
            model = network(config, weights=False)
            sent = (config.batch_size, *model.smashed_shape)
            found[key] = [(model.client, config.cohort, shape)]
            found[key] += [(model.server, 1, (2 * config.cohort * config.batch_size, *model.smashed_shape))]
            if config.ressfl_lambda:
                attacker = Decoder.parse(config.ressfl_decoder)
                found[key] += [(attackers_network(attacker, model.smashed_shape, 32), config.cohort, sent)]
    return [half for halves in found.values() for half in halves]


@cache
def of_presets():
    """Return the group norms and the convolutions in `halves`, as lists of shapes and settings without repetitions."""
    norms, convolutions = set(), set()

    def group_norm(stack, x, groups, weight, bias, *, residual, relu, eps):
        norms.add(((stack, *x.shape), groups, residual is not None, relu))
        return x

    def conv2d(stack, x, weight, stride, padding, groups, *, standardise):
        convolutions.add(((stack, *x.shape), (stack, *weight.shape), stride, padding))
        return x.new_empty(len(x), len(weight), *sides(x[None], weight[None], stride, padding))

    for half, stack, shape in halves():
        with patch.multiple(layers, group_norm=partial(group_norm, stack), conv2d=partial(conv2d, stack)):
            half.template(empty(*shape))
    return sorted(norms), sorted(convolutions)


def launch_group_norm(dtype):
    """Launch the norms of presets' clients, then other widths of groups and odd sizes with weights of `dtype`, too."""
    for shape, groups, has_residual, relu in (case for case in of_presets()[0] if case[0][0] > 1):
        norm(shape, groups, dtype, has_residual=has_residual, relu=relu)
    for width, *size in ODD_NORMS:
        norm((2, 3, 3 * width, *size), 3, dtype, weights=dtype, has_residual=True, relu=True)


def norm(shape, groups, dtype, *, weights=torch.float32, has_residual=False, relu=False):
    """Launch the forward and backward pass of a group norm."""
    x, weight = empty(*shape, dtype=dtype), empty(shape[0], shape[2], dtype=weights)
    y, mean, rstd = group_norm_forward(x, weight, weight, x if has_residual else None, groups, relu, 1e-5)
    group_norm_backward(y, x, weight, mean, rstd, groups)


def launch_conv2d(dtype):
    """Launch the convolutions of presets' clients, and one of an odd size."""
    for shape, weight, stride, padding in (case for case in of_presets()[1] if case[0][0] > 1):
        convolution(shape, weight, stride, padding, dtype)
    convolution((2, 3, 5, 11, 9), (2, 7, 5, 7, 7), 2, 3, dtype)


def convolution(shape, weight, stride, padding, dtype):
    """Launch the forward and backward pass of a convolution."""
    x, weight = empty(*shape, dtype=dtype), empty(*weight, dtype=dtype)
    y = conv2d_forward(x, weight, stride, padding, 1)
    conv2d_backward(y, x, weight, stride, padding, 1, True)


def launch_group_norm_nhwc(dtype):
    """Launch the norms of presets' servers, then other widths of groups and odd sizes with weights of `dtype`, too."""
    for (stack, *shape), groups, has_residual, relu in of_presets()[0]:
        if stack == 1:
            central_norm(shape, groups, dtype, has_residual=has_residual, relu=relu)
    for width, *size in ODD_NORMS:
        if width != 3:  # which the operator leaves to PyTorch
            central_norm((2, 3 * width, *size), 3, dtype, weights=dtype, has_residual=True, relu=True)


def central_norm(shape, groups, dtype, *, weights=torch.float32, has_residual=False, relu=False):
    """Launch the forward and backward pass of a group norm of channels-last images."""
    x = empty(*shape, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight = empty(shape[1], dtype=weights).expand(len(x), -1)
    y, mean, rstd = group_norm_nhwc.forward(x, weight, weight, x if has_residual else None, groups, relu, 1e-5)
    group_norm_nhwc.backward(y, y, x, weight, weight, mean, rstd, groups, relu, has_residual)


def launch_standardise(dtype):
    """Launch what prepares all weights of each preset's server, and its backward pass."""
    for half, stack, _ in halves():
        if stack == 1 and dtype == torch.float32:
            layout, flat = CentralModule(half, dtype, torch.device("meta")).layout, empty(half.size)
            for prepared in (torch.float32, torch.bfloat16):
                weights, moments = empty(layout.size, dtype=prepared), empty(len(layout.rows), 2)
                standardise._triton_prepare_(flat, layout, weights, moments)
                standardise._triton_prepare_backward_(flat, weights, flat, moments, layout)


def launch_memory_format(dtype):
    """Launch the changes of memory format, both ways, for maps as they are at the cut layer and of an odd size."""
    for shape in ((200, 64, 32, 32), (3, 7, 5, 9)):
        images = empty(*shape, dtype=dtype)
        turned(turned(images, torch.channels_last), torch.contiguous_format)


def launch_augment(dtype):
    """Launch the views of images of a usual size, of a size smaller than a block, and of an odd one."""
    for size in (8, 32, 33):
        pixels = empty(4, 2, 3, size, size, dtype=torch.uint8)
        views = Recipe("v2", size).sample(np.zeros((2, 4, 2, UNIFORMS)))
        out = empty(2, 4, 2, 3, size, size, dtype=dtype)
        triton_augment(pixels, views.map(lambda t: t.to("meta")), empty(3, 1, 1), empty(3, 1, 1), out)


def launch_sgd(dtype):
    """Launch SGD for clients with a learning rate each and for one model, also with an odd number of parameters."""
    for count in (1728, 1001):
        stack, row = empty(100, count, dtype=dtype), empty(count, dtype=dtype)
        _triton_sgd_(stack, stack, stack, empty(100, 1), 0.9, 5e-4)
        _triton_sgd_(row, row, row, empty(), 0.9, 5e-4)
