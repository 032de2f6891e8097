"""Changes between the contiguous and the channels-last memory format, which move values and keep them."""

import pytest
import torch

from simsfl.kernels import channels_last, contiguous, gpu
from tests.kernels.agreement import DEVICE, TRITON, normal

SHAPES = [(2, 3, 5, 7), (1, 64, 8, 8), (3, 70, 9, 9), (2, 1, 4, 4), (2, 8, 1, 1), (0, 4, 2, 2)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("version", ["pytorch", TRITON])
def test_values_stay_and_places_change(version, dtype, shape):
    dtype = torch.float64 if version == "pytorch" and dtype == torch.float32 else dtype
    if version == "triton":
        assert gpu.usable(torch.empty(0, device=DEVICE, dtype=dtype))
    images = normal(1, *shape, dtype=dtype)
    last = channels_last(images)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, images)
    back = contiguous(last)
    assert back.is_contiguous()
    assert torch.equal(back, images)


@pytest.mark.parametrize("version", ["pytorch", TRITON])
def test_images_that_need_a_gradient_get_one(version):
    images = normal(3, 2, 3, 4, 4, dtype=torch.float32).requires_grad_()
    contiguous(channels_last(images)).square().sum().backward()
    torch.testing.assert_close(images.grad, 2 * images.detach())


@pytest.mark.parametrize("version", ["pytorch", TRITON])
def test_what_is_in_neither_format_is_copied(version):
    images = normal(2, 3, 4, 6, 5).transpose(2, 3)
    assert torch.equal(channels_last(images), images)
    assert torch.equal(contiguous(images), images)
    assert channels_last(images).is_contiguous(memory_format=torch.channels_last)
