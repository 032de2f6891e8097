"""Convolutions with weights for each client: every version against torch's in float64, one client after the other."""

import logging
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from torch.func import vmap

from simsfl.kernels import CHOICES, CannotRunError, accelerated, choosing, conv2d, fastest, gpu
from tests.kernels.agreement import DEVICE, TRITON, assert_agree, normal

choice = sys.modules[accelerated.__module__]
SHAPES = {
    "stem": (4, 1, 3, 8, 9, 9, 3, 1, 1),
    "one-client": (1, 5, 4, 6, 7, 8, 3, 2, 1),
    "one-channel": (3, 2, 1, 1, 5, 4, 3, 1, 1),
    "1x1-strided": (2, 5, 7, 3, 7, 5, 1, 2, 0),
    "7x7": (2, 1, 3, 4, 12, 11, 7, 2, 3),
    "wider-than-a-tile": (1, 1, 5, 40, 3, 17, 3, 1, 1),
    "single-pixels": (2, 2, 3, 4, 1, 1, 3, 2, 1),
    "depthwise": (3, 2, 4, 4, 6, 5, 3, 2, 1, 4),
    "in-groups": (2, 1, 4, 6, 5, 5, 3, 1, 1, 2),
}
"""Clients, images, channels in and out, height, width, kernel, stride, padding, and groups (1 if left out)."""
VERSIONS = ["grouped", "unfold", "fastest", None, TRITON]
"""Versions of the operator; None is the plain PyTorch reference."""


def by_torch(stride, padding, standardise, groups=1):
    """Return a function that uses torch's convolution and standard deviation, one client after the other."""

    def convolve(x, w):
        if standardise:
            std, mean = torch.std_mean(w, dim=(2, 3, 4), keepdim=True)
            w = (w - mean) / (std + 1e-5)
        return torch.stack([F.conv2d(a, b, None, stride, padding, 1, groups) for a, b in zip(x, w, strict=True)])

    return convolve


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("version", VERSIONS)
def test_values_and_gradients(version, shape, standardise):
    c, b, i, o, height, width, kernel, stride, padding, groups = (*shape, 1)[:10]
    inputs = normal(1, c, b, i, height, width, strided=True), normal(2, c, o, i // groups, kernel, kernel)

    def stacked(x, w):
        with accelerated(version):
            return conv2d(x, w, stride, padding, groups, standardise=standardise)

    def mapped(x, w):
        with accelerated(version):
            return vmap(lambda x, w: conv2d(x, w, stride, padding, groups, standardise=standardise))(x, w)

    for function in (stacked, mapped):
        for dtype in (torch.float32,) if version == "triton" else (torch.float64, torch.float32):
            assert_agree(function, by_torch(stride, padding, standardise, groups), inputs, dtype=dtype)


@pytest.mark.parametrize("version", ["grouped", "unfold", TRITON])
def test_bfloat16(version):
    """Triton's interpreter cannot multiply bfloat16, so it gets float32, in which a product of two is exact."""

    def convolve(x, w):
        if version == "triton" and gpu._INTERPRETED:
            return conv2d(x.float(), w.float(), 1, 1).bfloat16()
        return conv2d(x, w, 1, 1)

    inputs = normal(1, 3, 2, 4, 8, 8), normal(2, 3, 4, 4, 3, 3) / 6
    with accelerated(version):
        assert_agree(convolve, by_torch(1, 1, False), inputs, dtype=torch.bfloat16)


def test_gradcheck_and_weights_shared_by_all_clients():
    x, w = normal(1, 2, 1, 2, 4, 3).requires_grad_(), normal(2, 3, 2, 3, 3).requires_grad_()

    def shared(x, w):
        with accelerated("unfold"):
            return vmap(lambda x, w: conv2d(x, w, 1, 1, standardise=True), in_dims=(0, None))(x, w)

    assert torch.autograd.gradcheck(shared, (x, w))


def test_autocast_convolves_in_bfloat16_and_images_need_no_gradient():
    x, w = normal(1, 2, 1, 3, 8, 8, dtype=torch.float32), normal(2, 2, 4, 3, 3, 3, dtype=torch.float32).requires_grad_()
    with accelerated("grouped"), torch.autocast(DEVICE.type, torch.bfloat16):
        y = conv2d(x, w, 1, 1, standardise=True)
    assert y.dtype == torch.bfloat16
    (gradient,) = torch.autograd.grad(y.float().sum(), w)
    assert gradient.dtype == torch.float32


def test_a_choice_is_measured_once_and_abided_by(monkeypatch):
    x, w = normal(1, 2, 1, 3, 13, 13), normal(2, 2, 4, 3, 3, 3)
    with accelerated(), choosing() as used:
        conv2d(x, w, 1, 1)
    (key,) = used
    assert CHOICES[key] == used[key]
    assert used[key] in ("grouped", "unfold", "triton")
    for name in ("grouped", "unfold"):
        monkeypatch.setitem(CHOICES, key, name)
        with accelerated(name):
            forced = conv2d(x, w, 1, 1)
        with accelerated():
            assert torch.equal(conv2d(x, w, 1, 1), forced)


def raising(error):
    """Return a version of an operator that raises `error`."""

    def version(*arguments):
        raise error

    return version


def test_a_version_that_cannot_run_is_reported_once(monkeypatch, caplog):
    """One warning in one line names the version, the shape and the reason, whatever the type of the error."""
    versions = {
        "usual": lambda x, y: "usual",
        "broken": raising(OverflowError("\nshared memory: 300 of 200 KB\nsee the manual")),
        "large": raising(torch.OutOfMemoryError("out of memory")),
    }
    monkeypatch.setattr(choice, "CHOICES", {})
    monkeypatch.setattr(choice, "_WARNED", set())
    with accelerated():
        for rows in (3, 5):
            assert fastest("stack", versions, (torch.zeros(rows, 2),), 7) == "usual"
        assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
        assert [record.getMessage() for record in caplog.records] == [
            "version broken of stack 3x2 (7,) float32 cpu cannot run, and another is used: "
            "OverflowError: shared memory: 300 of 200 KB",
            "version large of stack 3x2 (7,) float32 cpu cannot run, and another is used: "
            "OutOfMemoryError: out of memory",
        ]
        fastest("heap", versions, (torch.zeros(3, 2),), 7)
    assert len(caplog.records) == 4


def test_a_kept_choice_that_can_no_longer_run_is_replaced(monkeypatch, caplog):
    versions = {"usual": lambda x: "usual", "other": raising(RuntimeError("made on another machine"))}
    x = torch.zeros(3, 2)
    monkeypatch.setattr(choice, "CHOICES", {choice.key("stack", (x,), ()): "other"})
    monkeypatch.setattr(choice, "_WARNED", set())
    monkeypatch.setattr(choice, "_FAILED", set())
    with accelerated(), choosing() as used:
        assert [fastest("stack", versions, (x,)) for _ in range(2)] == ["usual", "usual"]
    assert set(used.values()) == {"usual"}
    assert len(caplog.records) == 1


def test_triton_that_does_not_work_at_all_is_given_up_with_one_warning(monkeypatch, caplog):
    monkeypatch.setattr(gpu, "_broken", False)
    monkeypatch.setattr(choice, "turned", raising(OSError("no C compiler\nis found")))
    for _ in range(2):
        choice.try_triton(torch.device("cpu"))
    assert not gpu.runs_on(torch.device("cuda"))
    message = "Triton cannot run, and PyTorch's operators are used: OSError: no C compiler"
    assert [record.getMessage() for record in caplog.records] == [message]


def test_no_version_can_run_or_not_the_one_that_was_asked_for(monkeypatch, caplog):
    monkeypatch.setattr(choice, "CHOICES", {})
    one, other, x = raising(KeyError("one")), raising(torch.OutOfMemoryError()), torch.zeros(3, 2)
    with accelerated(), pytest.raises(CannotRunError) as none:
        fastest("stack", {"a": one, "b": other}, (x,))
    assert str(none.value) == "no version of stack 3x2 () float32 cpu can run: a: KeyError: 'one'; b: OutOfMemoryError"
    assert not choice.CHOICES
    with accelerated("b"), pytest.raises(CannotRunError, match=r"version b of stack 3x2 .*OutOfMemoryError"):
        fastest("stack", {"a": lambda x: x, "b": other}, (x,))
    with accelerated(), pytest.raises(CannotRunError, match="version a of stack 3x2"):
        fastest("stack", {"a": one}, (x,))
    assert not caplog.records
    with accelerated(), pytest.raises(KeyboardInterrupt):
        fastest("stack", {"a": lambda x: x, "b": raising(KeyboardInterrupt)}, (x,))


def test_its_shapes_are_known_without_running_it():
    """Known shapes let it be part of a larger compiled program."""
    x, w = normal(1, 2, 3, 4, 5, 6), normal(2, 2, 3, 4, 3, 3)
    arguments = (x, w.requires_grad_(), 2, 1, 1, True)
    torch.library.opcheck(torch.ops.simsfl.conv2d.default, arguments, test_utils=("test_schema", "test_faketensor"))


def test_a_backward_pass_in_another_thread_uses_the_same_version(monkeypatch):
    """On CUDA, autograd has threads of its own."""
    x, w = normal(1, 2, 1, 3, 11, 11), normal(2, 2, 4, 3, 3, 3).requires_grad_()
    with accelerated("unfold"):
        y = conv2d(x, w, 1, 1)
    monkeypatch.setattr(choice, "measure", lambda *arguments: pytest.fail("measured"))
    thread = threading.Thread(target=lambda: y.sum().backward())
    thread.start()
    thread.join()
    assert w.grad is not None


def test_equal_weights_have_a_finite_gradient():
    x, w = normal(1, 2, 1, 3, 5, 5), torch.full((2, 4, 3, 3, 3), 0.7, dtype=torch.float64, device=DEVICE)
    gradients = []
    for version in ("grouped", None):
        leaf = w.clone().requires_grad_()
        with accelerated(version):
            conv2d(x, leaf, 1, 1, standardise=True).square().sum().backward()
        gradients.append(leaf.grad)
    assert gradients[0].isfinite().all()
    torch.testing.assert_close(gradients[0], gradients[1])
