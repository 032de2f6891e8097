"""Group normalisation of channels-last images, with residual and ReLU, against the formula in float64."""

import pytest
import torch
import torch.nn.functional as F

from simsfl.kernels import gpu, group_norm_nhwc
from tests.kernels.agreement import TRITON, assert_agree, normal

SHAPES = {
    "usual": (3, 8, 5, 3, 2),
    "one-pixel": (2, 8, 1, 1, 2),
    "a-group-per-channel": (1, 6, 4, 4, 6),
    "one-group": (2, 16, 3, 5, 1),
    "pairs": (5, 20, 3, 5, 10),
    "not-a-power-of-two-of-groups": (2, 24, 9, 9, 6),
    "more-than-a-block": (1, 12, 33, 35, 3),
    "a-stage-of-resnet18": (2, 64, 32, 32, 16),
}
"""Images, channels, height, width, groups."""


def formula(groups, residual, relu):
    """Return a function that normalises groups by the formula, adds a residual and applies ReLU if asked to."""

    def normalise(x, weight, bias, *added):
        grouped = x.unflatten(1, (groups, -1))
        centred = grouped - grouped.mean(dim=(2, 3, 4), keepdim=True)
        y = centred / ((centred**2).mean(dim=(2, 3, 4), keepdim=True) + 1e-5) ** 0.5
        y = weight[:, None, None] * y.flatten(1, 2) + bias[:, None, None]
        y = y + added[0] if residual else y
        return y.clamp(min=0.0) if relu else y

    return normalise


def inputs(shape, residual):
    """Return random channels-last images, weights and biases, and a residual if asked for."""
    n, ch, height, width, _ = shape
    x, added = (normal(seed, n, ch, height, width).contiguous(memory_format=torch.channels_last) for seed in (1, 4))
    return [x, normal(2, ch), normal(3, ch), *([added] if residual else [])]


@pytest.mark.parametrize(("residual", "relu"), [(False, False), (False, True), (True, True), (True, False)])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("version", ["pytorch", TRITON])
def test_values_and_gradients(version, shape, residual, relu):
    groups = shape[-1]

    def function(x, weight, bias, added=None):
        return group_norm_nhwc(x, groups, weight, bias, residual=added, relu=relu)

    dtype = torch.float32 if version == "triton" else torch.float64
    assert gpu.usable(torch.empty(0, device=inputs(shape, residual)[0].device, dtype=dtype)) == (version == "triton")
    assert_agree(function, formula(groups, residual, relu), inputs(shape, residual), dtype=dtype)


@pytest.mark.parametrize("version", ["pytorch", TRITON])
def test_weights_that_do_not_lie_beside_each_other(version):
    dtype = torch.float32 if version == "triton" else torch.float64
    x, weight, bias = inputs(SHAPES["usual"], False)
    assert_agree(
        lambda x, w, b: group_norm_nhwc(x, 2, w[::2], b[::2]),
        lambda x, w, b: formula(2, False, False)(x, w[::2], b[::2]),
        [x, weight.repeat_interleave(2) * torch.arange(16), bias.repeat(2)],
        dtype=dtype,
    )


@pytest.mark.parametrize("version", ["pytorch", TRITON])
def test_gradients_of_each_image_add_up_to_those_of_all(version):
    dtype = torch.float32 if version == "triton" else torch.float64
    x, weight, bias, residual = (t.to(dtype) for t in inputs(SHAPES["usual"], True))
    each = [p.expand(len(x), -1).clone().requires_grad_() for p in (weight, bias)]
    together = [p.clone().requires_grad_() for p in (weight, bias)]
    for parameters in (each, together):
        group_norm_nhwc(x, 2, *parameters, residual=residual, relu=True).square().sum().backward()
    for own, summed in zip(each, together, strict=True):
        assert own.grad.shape == (len(x), 8)
        torch.testing.assert_close(own.grad.sum(dim=0), summed.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("version", ["pytorch", TRITON])
def test_three_channels_a_group_are_left_to_pytorch(version):
    dtype = torch.float32 if version == "triton" else torch.float64
    assert_agree(
        lambda x, w, b: group_norm_nhwc(x, 3, w, b, relu=True),
        formula(3, False, True),
        inputs((2, 9, 4, 4, 3), False),
        dtype=dtype,
    )


@pytest.mark.parametrize("version", [TRITON])
def test_what_comes_out_and_goes_back_is_channels_last(version):
    x, weight, bias, residual = (t.float() for t in inputs(SHAPES["usual"], True))
    leaves = [x.requires_grad_(), residual.requires_grad_()]
    y = group_norm_nhwc(x, 2, weight, bias, residual=residual, relu=True)
    gradients = torch.autograd.grad(y, leaves, torch.ones_like(y).contiguous())
    for tensor in (y, *gradients):
        assert tensor.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("version", [TRITON])
def test_half_precision_images_with_full_precision_weights(version):
    """The sums are in float32, so the result is within a unit in bfloat16's last place.

    It is within half a unit on a GPU, but Triton's interpreter truncates instead of rounding.
    """
    x, weight, bias, residual = inputs(SHAPES["a-stage-of-resnet18"], True)
    x, residual = x.bfloat16(), residual.bfloat16()
    exact = formula(16, True, True)(x.double(), weight.float().double(), bias.float().double(), residual.double())
    y = group_norm_nhwc(x, 16, weight.float(), bias.float(), residual=residual, relu=True)
    assert y.dtype == torch.bfloat16
    assert ((y.double() - exact).abs() <= 2**-7 * exact.abs() + 1e-4).all()


@pytest.mark.parametrize("version", [TRITON])
def test_its_shapes_are_known_without_running_it(version):
    x, weight, bias, residual = (t.float() for t in inputs(SHAPES["usual"], True))
    torch.library.opcheck(
        torch.ops.simsfl.group_norm_nhwc.default,
        (x, weight.requires_grad_(), bias, residual, SHAPES["usual"][-1], True, 1e-5),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_pytorch_itself_agrees():
    """The formula, the reference of all tests here, agrees with an independent implementation."""
    x, weight, bias = inputs(SHAPES["usual"], False)
    torch.testing.assert_close(formula(2, False, False)(x, weight, bias), F.group_norm(x, 2, weight, bias))
