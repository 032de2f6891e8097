"""Preparation of all weights of a network at once, against the formula layer by layer in float64."""

import pytest
import torch

from simsfl.kernels import gpu
from simsfl.kernels.standardise import Layout, Matrix, prepare, prepare_backward_
from tests.kernels.agreement import DEVICE, TRITON, normal

MATRICES = [
    Matrix(5, (6, 3, 3, 3), True),
    Matrix(171, (4, 7), False),
    Matrix(300, (8, 5, 1, 1), True),
    Matrix(400, (9,), False),
    Matrix(500, (2, 64, 7, 7), True),  # rows longer than a block
    Matrix(7000, (4, 2, 3, 2), False),
]
"""Weights in a network of 7,100 parameters; those between them are not prepared."""
VERSIONS = ["pytorch", TRITON]


def dtype_of(version):
    """Return the dtype that selects a version of the operator, which is checked."""
    dtype = torch.float32 if version == "triton" else torch.float64
    assert gpu.usable(torch.empty(0, device=DEVICE, dtype=dtype)) == (version == "triton")
    return dtype


def formula(flat):
    """Return the prepared weights of each layer."""
    tensors = []
    for matrix in MATRICES:
        w = flat[matrix.start : matrix.start + matrix.size].view(matrix.shape)
        if matrix.standardised:
            rows = w.flatten(1)
            centred = rows - rows.mean(dim=1, keepdim=True)
            std = ((centred**2).sum(dim=1, keepdim=True) / (rows.shape[1] - 1)) ** 0.5
            w = (centred / (std + 1e-5)).view(matrix.shape)
        tensors.append(w)
    return tensors


def near(version):
    """Return the tolerance for a version's dtype."""
    return {"rtol": 1e-10, "atol": 1e-10} if version == "pytorch" else {"rtol": 2e-4, "atol": 2e-5}


@pytest.mark.parametrize("version", VERSIONS)
def test_values(version):
    flat, layout = normal(1, 7100).to(dtype_of(version)), Layout(MATRICES, DEVICE)
    weights, _ = prepare(flat, layout, flat.dtype)
    for ours, theirs in zip(layout.split(weights), formula(flat.double()), strict=True):
        torch.testing.assert_close(ours.double(), theirs, **near(version))
        if ours.ndim == 4:
            assert ours.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("version", VERSIONS)
def test_gradient(version):
    flat, layout = normal(2, 7100).to(dtype_of(version)), Layout(MATRICES, DEVICE)
    exact = flat.double().clone().requires_grad_()
    wanted = formula(exact)
    gradients = [normal(10 + i, *tensor.shape) for i, tensor in enumerate(wanted)]
    (expected,) = torch.autograd.grad(wanted, exact, gradients)
    _, moments = prepare(flat, layout, flat.dtype)
    result = torch.full_like(flat, 7.0)
    prepare_backward_(result, layout.join([g.to(flat.dtype) for g in gradients]), flat, moments, layout)
    own = torch.zeros(7100, dtype=torch.bool, device=DEVICE)
    for matrix in MATRICES:
        own[matrix.start : matrix.start + matrix.size] = True
    torch.testing.assert_close(result[own].double(), expected[own], **near(version))
    assert (result[~own] == 7.0).all()  # parameters outside the layout stay as they were


@pytest.mark.parametrize("version", VERSIONS)
def test_equal_weights_give_zeros_and_no_gradient_through_their_deviation(version):
    dtype, layout = dtype_of(version), Layout([Matrix(0, (2, 3, 1, 1), True)], DEVICE)
    flat = torch.full((6,), 0.5, device=DEVICE, dtype=dtype)
    weights, moments = prepare(flat, layout, dtype)
    assert (weights == 0.0).all()
    result = torch.empty_like(flat)
    prepare_backward_(result, torch.arange(6.0, device=DEVICE, dtype=dtype), flat, moments, layout)
    torch.testing.assert_close(result * 1e-5, torch.tensor([-1.0, 0, 1, -1, 0, 1], device=DEVICE, dtype=dtype))


@pytest.mark.parametrize("version", [TRITON])
def test_half_precision_weights_are_those_rounded(version):
    flat, layout = normal(3, 7100).to(dtype_of(version)), Layout(MATRICES, DEVICE)
    half, full = (prepare(flat, layout, dtype)[0] for dtype in (torch.bfloat16, torch.float32))
    assert (half.float() - full).abs().le(2**-7 * full.abs()).all()


def test_split_and_join_are_inverse():
    layout = Layout(MATRICES, DEVICE)
    flat = normal(4, layout.size)
    torch.testing.assert_close(layout.join(layout.split(flat)), flat, rtol=0, atol=0)
