"""Group normalisation with weights for each client: every version against the formula in float64."""

import pytest
import torch
from torch.func import vmap

from simsfl.kernels import accelerated, group_norm
from tests.kernels.agreement import TRITON, assert_agree, normal

SHAPES = {
    "usual": (3, 2, 8, 5, 3, 2),
    "one-client": (1, 5, 4, 7, 7, 1),
    "one-channel": (2, 1, 1, 3, 3, 1),
    "a-group-per-channel": (2, 1, 6, 4, 4, 6),
    "three-channels-a-group": (2, 5, 9, 3, 5, 3),
    "more-than-a-block": (1, 1, 4, 33, 35, 2),
}
"""Clients, images, channels, height, width, groups."""
VERSIONS = ["native", "fastest", None, TRITON]
"""Versions of the operator; None is the plain PyTorch reference."""


def formula(groups, residual, relu):
    """Return a function that normalises groups by the formula, adds a residual and applies ReLU if asked to."""

    def normalise(x, weight, bias, *added):
        grouped = x.unflatten(2, (groups, -1))
        centred = grouped - grouped.mean(dim=(3, 4, 5), keepdim=True)
        y = centred / ((centred**2).mean(dim=(3, 4, 5), keepdim=True) + 1e-5) ** 0.5
        y = weight[:, None, :, None, None] * y.flatten(2, 3) + bias[:, None, :, None, None]
        y = y + added[0] if residual else y
        return y.clamp(min=0.0) if relu else y

    return normalise


def inputs(shape, residual):
    """Return random images, weights and biases of each client, and a residual if asked for."""
    c, b, ch, height, width, _ = shape
    x = normal(1, c, b, ch, height, width, strided=True)
    return [x, normal(2, c, ch), normal(3, c, ch), *([normal(4, c, b, ch, height, width)] if residual else [])]


@pytest.mark.parametrize(("residual", "relu"), [(False, False), (False, True), (True, True), (True, False)])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("version", VERSIONS)
def test_values_and_gradients(version, shape, residual, relu):
    groups = shape[-1]

    def one(x, weight, bias, added=None):
        return group_norm(x, groups, weight, bias, residual=added, relu=relu)

    def stacked(*tensors):
        with accelerated(version):
            return one(*tensors)

    def mapped(*tensors):
        with accelerated(version):
            return vmap(one)(*tensors)

    for function in (stacked, mapped):
        for dtype in (torch.float32,) if version == "triton" else (torch.float64, torch.float32):
            assert_agree(function, formula(groups, residual, relu), inputs(shape, residual), dtype=dtype)


@pytest.mark.parametrize("version", ["native", TRITON])
def test_bfloat16(version):
    with accelerated(version):
        assert_agree(
            lambda x, w, b: group_norm(x, 2, w, b, relu=True),
            formula(2, False, True),
            inputs(SHAPES["usual"], False),
            dtype=torch.bfloat16,
        )


def test_gradcheck():
    tensors = [tensor.requires_grad_() for tensor in inputs((2, 1, 4, 2, 3, 2), True)]
    with accelerated("native"):
        assert torch.autograd.gradcheck(
            lambda x, w, b, r: group_norm(x, 2, w, b, residual=r, relu=True), [t.clone() for t in tensors]
        )


def test_its_shapes_are_known_without_running_it():
    x, weight, bias, residual = inputs(SHAPES["usual"], True)
    torch.library.opcheck(
        torch.ops.simsfl.group_norm.default,
        (x.contiguous(), weight.requires_grad_(), bias, residual, SHAPES["usual"][-1], True, 1e-5),
        test_utils=("test_schema", "test_faketensor"),
    )
