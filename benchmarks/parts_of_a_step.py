"""Measure what ``bench.py`` does not, on a CUDA device: ``python benchmarks/parts_of_a_step.py WHAT``.

``benchmarks/cuda.sh`` calls it. ``records`` trains two rounds with each engine, and compares the losses with those on
the CPU. ``precisions`` compares fp32, TF32 and bf16 over 200 steps. ``parts`` times the parts of a step, in the paper's
setting, in each of the ways in which they could be done. ``profile`` lists a step's kernels by time. ``train`` runs the
paper's setting for a given time, with learning rates that decay over as many rounds as fit into it. ``summary`` prints
the main results of all.

With ``SIMSFL_CUDA_REHEARSAL=1`` everything runs on the CPU at tiny sizes, so that a mistake shows without a device.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise, product
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from simsfl import RunConfig, Simulation
from simsfl.algorithm import clients, step
from simsfl.cost.model import operations
from simsfl.data import Dataset, make_dataset
from simsfl.data.shapes import shapes
from simsfl.engine.precision import arithmetic
from simsfl.kernels import accelerated, group_norm_nhwc, info_nce, reason, sgd_
from simsfl.kernels.choice import replays
from simsfl.models.central import CentralModule

_ROOT = Path(__file__).parent.parent
_REHEARSAL = os.environ.get("SIMSFL_CUDA_REHEARSAL") == "1"
_DEVICE = torch.device("cpu" if _REHEARSAL else "cuda")
_CONTIGUOUS = torch.contiguous_format
_REPEATS = 3 if _REHEARSAL else 50
_PAPER = {
    "clients": 1000,
    "rounds": 2000,
    "eval_every": 0,
    "dataset": "shapes",
    "device": str(_DEVICE),
    **({"clients": 6, "batch_size": 1, "width": 8, "key_dim": 16, "queue_length": 40} if _REHEARSAL else {}),
}
"""Config fields of the paper's setting; all other fields have their defaults."""
_OUT = Path(os.environ.get("OUT", "cuda-results"))

_Json = dict[str, Any]


def main(what: str, *rest: str) -> int:
    """Do what the first argument says; return the exit code."""
    _OUT.mkdir(parents=True, exist_ok=True)
    known = {
        "records": records,
        "precisions": precisions,
        "parts": parts,
        "profile": profile,
        "train": train,
        "summary": summary,
    }
    if what not in known:
        print(f"error: {what!r} is not known; allowed: {', '.join(known)}", file=sys.stderr)
        return 2
    return known[what](*rest)


def _milliseconds(function: Callable[[], object]) -> float:
    """Return the median time of a call in milliseconds.

    On CUDA, replays of a CUDA graph are timed, so that the time to launch the call does not count.
    """
    return _on_host(function) if _REHEARSAL else 1000 * median(replays(function, _REPEATS))


def _on_host(function: Callable[[], object]) -> float:
    """Return the median time of a call on the host, in milliseconds."""
    times = []
    for _ in range(_REPEATS):
        begin = time.perf_counter()
        function()
        times.append(1000 * (time.perf_counter() - begin))
    return median(times)


class _Report:
    """Times by name, printed and written to a file one by one, so that an interruption loses none."""

    def __init__(self, path: Path):
        self.path, self.content = (
            path,
            {"device": _device_name(), "torch": torch.__version__, "times": {}, "failed": {}},
        )

    def time(self, label: str, function: Callable[[], object], *, flops: float = 0.0, moved: float = 0.0) -> None:
        """Time a call, and report which share of the device's peaks it reaches.

        A call that fails is reported, too, and the next one goes on.

        Args:
            label: what is timed.
            function: the call.
            flops: floating-point operations of the call; 0 if its rate is of no interest.
            moved: bytes that the call reads and writes; 0 if their rate is of no interest.
        """
        try:
            ms = _milliseconds(function)
        except Exception as error:  # compilers and libraries raise exceptions of their own types
            self.fail(label, error)
            return
        rates = {"TFLOP/s": flops / ms / 1e9, "TB/s": moved / ms / 1e9}
        rates = {unit: rate for unit, rate in rates.items() if rate}
        self.content["times"][label] = {"ms": ms} | rates
        shares = [self.share(label, unit, rate) for unit, rate in rates.items()]
        print(f"{label:70s} {ms:9.4f} ms {' '.join(shares)}", flush=True)
        self.write()

    def fail(self, label: str, error: Exception) -> None:
        """Print why something could not be timed, and write it to the file."""
        self.content["failed"][label] = reason(error)
        print(f"{label:70s} FAILED {reason(error)}", flush=True)
        self.write()

    def share(self, label: str, unit: str, rate: float) -> str:
        """Return a rate as text, with its share of the peak in the label's precision if that has been measured."""
        precision = next((name for name in ("tf32", "fp32") if name in label), "bf16")
        peak = self.content["times"].get("peak: copy" if unit == "TB/s" else f"peak: product, {precision}")
        if peak is None:
            return f"{rate:7.2f} {unit}"
        self.content["times"][label][f"share of peak {unit}"] = rate / peak[unit]
        return f"{rate:7.2f} {unit} ({rate / peak[unit]:.0%} of the peak)"

    def write(self) -> None:
        """Write the results so far to the file."""
        self.path.write_text(json.dumps(self.content, indent=1), encoding="utf-8")


def _device_name() -> str:
    """Return the name of the device that is measured."""
    return torch.cuda.get_device_name() if _DEVICE.type == "cuda" else "cpu (rehearsal)"


@cache
def _images() -> Dataset:
    """Return built-in shapes, as many as CIFAR-10 has images; they are drawn once."""
    return make_dataset("shapes", "built in", shapes(0, train=60 if _REHEARSAL else 50_000, test=100))


def _simulation(**fields: object) -> Simulation:
    """Return a simulation of the paper's setting on the built-in shapes, with these config fields changed."""
    return Simulation(RunConfig(**{**_PAPER, **fields}), _images())


def records() -> int:
    """Train two rounds with each engine and precision; return 1 if losses differ from the loop's on the CPU, else 0."""
    small = {
        "clients": 12, "cohort": 6, "rounds": 2, "arch": "resnet8", "width": 16, "key_dim": 64, "queue_length": 600,
        "dataset": "shapes", "eval_every": 0, "syncs_per_round": 2, "lr": 0.02,
    }  # fmt: skip
    dataset = make_dataset("shapes", "built in", shapes(0, train=240, test=50))

    def losses(engine: str, device: str, precision: str) -> list[float]:
        run = Simulation(RunConfig(**small, engine=engine, device=device, precision=precision), dataset)
        return [record.loss for _ in range(2) for record in run.round() if record.event == "step"]

    expected, failed = losses("loop", "cpu", "fp32"), False
    for engine in ("loop", "vmap", "fused"):
        for precision, near in (("fp32", 2e-3), ("tf32", 1e-2), ("bf16", 5e-2)):
            if (_REHEARSAL and precision != "fp32") or (engine == "loop" and precision == "bf16"):
                continue
            try:
                own = losses(engine, _DEVICE.type, precision)
            except Exception as error:  # the next engine may work
                print(f"{engine:8s} {precision:5s} FAILED {reason(error)}", flush=True)
                failed = True
                continue
            worst = max(abs(a - b) / abs(b) for a, b in zip(own, expected, strict=True))
            failed |= worst > near
            print(f"{engine:8s} {precision:5s} {len(own)} losses within {worst:.1e} of the CPU's", flush=True)
    return int(failed)


def precisions() -> int:
    """Train 200 steps in each precision; return 1 if bf16's mean loss differs from fp32's by 1 % or more, else 0."""
    losses = {}
    for precision in ("fp32",) if _REHEARSAL else ("fp32", "tf32", "bf16"):
        run = _simulation(engine="fused", precision=precision)
        steps = [record.loss for _ in range(1 if _REHEARSAL else 4) for record in run.round() if record.event == "step"]
        losses[precision] = steps
        pairs = zip(steps, losses["fp32"], strict=True)
        apart = max(abs(own - full) / full for own, full in pairs)
        print(
            f"{precision}: mean loss {mean(steps):.4f}, last {steps[-1]:.4f}, single steps within {apart:.2%}",
            flush=True,
        )
    (_OUT / "precisions.json").write_text(json.dumps(losses), encoding="utf-8")
    return int(any(abs(mean(own) / mean(losses["fp32"]) - 1) >= 0.01 for own in losses.values()))


def parts(*names: str) -> int:
    """Time the named parts of a step, or all; return 1 if one of them failed, else 0."""
    report = _Report(_OUT / "parts.json")
    torch.backends.cudnn.benchmark = True  # as in steps that are recorded
    all_of_them = (peaks, _server_parts, _losses_and_optimiser, convolutions, _client_parts, norms, compiled)
    for part in all_of_them:
        if not names or part.__name__ in (*names, "peaks"):
            part(report)
    return int(bool(report.content["failed"]))


def peaks(report: _Report) -> None:
    """Time large matrix products and a large copy, which show the device's peak rates."""
    size = 256 if _REHEARSAL else 8192
    a, b = (torch.randn(size, size, device=_DEVICE) for _ in range(2))
    flops = 2 * size**3
    half = [t.bfloat16() for t in (a, b)]
    report.time("peak: product, bf16", lambda: half[0] @ half[1], flops=flops)
    for precision in ("fp32",) if _REHEARSAL else ("tf32", "fp32"):
        with arithmetic(precision):
            report.time(f"peak: product, {precision}", lambda: a @ b, flops=flops)
    big = torch.randn(1 << (16 if _REHEARSAL else 29), device=_DEVICE)
    target = torch.empty_like(big)
    report.time("peak: copy", lambda: target.copy_(big), moved=2 * big.nbytes)


def _server_flops(run: Simulation) -> float:
    """Return the floating-point operations of the server in a step: two forward passes and a backward pass."""
    rows = 2 * run.config.cohort * run.config.batch_size
    return rows * operations(run.model.server, run.model.smashed_shape).products(views=2, graded=1)


def _server_parts(report: _Report) -> None:
    """Time the server's part of a step in each of the ways in which it could be done."""
    run = _simulation(engine="vmap", precision="fp32")
    plain = run.model.server
    rows, flops = 2 * run.config.cohort * run.config.batch_size, _server_flops(run)
    smashed = torch.randn(rows, *run.model.smashed_shape, device=_DEVICE).relu()

    def whole(model: object, dtype: torch.dtype, layout: torch.memory_format = _CONTIGUOUS) -> Callable[[], object]:
        split, hyper = replace(run.model, server=model), replace(run.parts.hyper, precision=dtype)
        rate, sent = torch.full((), 1e-4, device=_DEVICE), smashed.to(dtype, memory_format=layout)
        return lambda: step.learn_(split, run.state, sent, rate, hyper)

    for precision in ("bf16", "fp32") if _REHEARSAL else ("bf16", "tf32", "fp32"):
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        with arithmetic(precision):
            own = CentralModule(plain, dtype, _DEVICE)
            with accelerated("fastest"):
                report.time(f"server: own operators, channels-last, {precision}", whole(own, dtype), flops=flops)
                report.time(f"server: stacked operators, {precision}", whole(plain, dtype), flops=flops)
            for layout in (_CONTIGUOUS, torch.channels_last):
                label = f"server: PyTorch's operators, {str(layout).removeprefix('torch.')}, {precision}"
                report.time(label, whole(plain, dtype, layout), flops=flops)
    dtype = torch.bfloat16
    own = CentralModule(plain, dtype, _DEVICE)
    sent, central = own.received(smashed), run.state.server
    report.time("server: standardise all weights", lambda: own.weights(central.online), moved=6 * own.size)
    weights = own.weights(central.online)

    def forward() -> Tensor:
        with torch.no_grad():
            return own.run(weights, sent)

    def both_ways() -> Tensor:
        leaves, x = own.leaves(central.online), sent.detach().requires_grad_()
        own.run(leaves.tensors, x).float().square().sum().backward()
        return leaves.gradient()

    report.time("server: forward without graph, bf16", forward, flops=flops / 4)
    report.time("server: forward and back, bf16", both_ways, flops=flops * 3 / 4)


def compiled(report: _Report) -> None:
    """Time the server's passes in bf16 and channels-last, compiled by TorchInductor from PyTorch's operators."""
    run = _simulation(engine="vmap", precision="fp32")
    plain, flat = run.model.server, run.state.server.online
    sent = _channels_last(_ROWS, *run.model.smashed_shape[:2])
    backend = "eager" if _REHEARSAL else "inductor"
    program = torch.compile(plain.run, dynamic=False, fullgraph=True, backend=backend)

    def passes() -> Tensor:
        parameters = flat.detach().requires_grad_()
        with accelerated(None), torch.autocast(_DEVICE.type, torch.bfloat16):
            with torch.no_grad():
                program(plain.named(flat), sent)
            out = program(plain.named(parameters), sent.detach().requires_grad_())
        out.float().square().sum().backward()
        return parameters.grad

    begin = time.perf_counter()
    report.time("server: compiled, channels-last, three passes, bf16", passes, flops=_server_flops(run))
    print(f"  compiling and timing took {time.perf_counter() - begin:.1f} s", flush=True)


def _client_parts(report: _Report) -> None:
    """Time the clients' passes by version of the convolution, the views, and the draws of a round."""
    versions = ("grouped", "unfold") if _REHEARSAL else ("grouped", "unfold", "triton", None)
    for cut, precision, version in product((1, 2), ("fp32",) if _REHEARSAL else ("bf16", "fp32"), versions):
        _client_passes(report, cut, precision, version)
    run = _simulation(engine="vmap", precision="fp32")
    plan, images = run.parts.plan(0), run.dataset.train
    group = plan.groups[0]
    pixels, views = images.pixels[group.indices[0]], group.views.map(lambda t: t[0])
    for version, label in ((None, "PyTorch"), ("fastest", "kernel")):
        with accelerated(version):
            report.time(f"views: {label}", lambda: images.augmented(pixels, views, torch.float32))
    report.content["plan_ms"] = _on_host(lambda: run.parts.plan(1))
    print(f"{'a round drawn and sent, on the host':70s} {report.content['plan_ms']:9.4f} ms", flush=True)
    report.write()


def _client_passes(report: _Report, cut: int, precision: str, version: str | None) -> None:
    """Time the clients' two forward passes and their backward pass with a version of the convolution.

    A `version` of None is that of the engine ``vmap``.
    """
    label = f"clients: cut {cut}, {version or 'vmap'}, {precision}, forward twice and back"
    try:
        run = _simulation(engine=f"fused:{version}" if version else "vmap", precision=precision, cut_layer=cut)
    except Exception as error:  # a version may be unable to run here, for any reason
        report.fail(label, error)
        return
    cohort, model = run.state.cohort, run.model.client
    images = [torch.randn(run.config.cohort, 1, 3, 32, 32, device=_DEVICE)]

    def passes() -> Tensor:
        with accelerated(run.parts.version):
            with run.parts.hyper.autocast(_DEVICE):
                sent = clients.forward(model, cohort.online, cohort.online_statistics, images)
                with torch.no_grad():
                    clients.forward(model, cohort.momentum, cohort.momentum_statistics, images)
            grad = torch.cat(sent).flatten(0, 1).detach()
            return clients.backward(cohort.online, sent, grad)

    with arithmetic(precision):
        report.time(label, passes)


_STAGES = ((64, 32), (128, 16), (256, 8), (512, 4))
"""Channels and height of the maps in each stage of ResNet-18."""
_ROWS = 4 if _REHEARSAL else 200
"""Images that go through the server in a step."""


def norms(report: _Report) -> None:
    """Time GroupNorm with residual and ReLU on channels-last maps: ours with several tile sizes, and PyTorch's."""
    own = sys.modules["simsfl.kernels.group_norm_nhwc"]
    usual = own.TILE, own.WARPS, own.NARROWEST
    others = [(2048, 4, 16), (4096, 8, 32), (4096, 8, 64), (1024, 4, 32)]
    for (ch, side), setting in product(_STAGES, [usual] if _REHEARSAL else [usual, *others]):
        own.TILE, own.WARPS, own.NARROWEST = setting
        _norm_of_stage(report, ch, side, "tile {}, {} warps, {} channels".format(*setting))
    own.TILE, own.WARPS, own.NARROWEST = usual


def _norm_of_stage(report: _Report, ch: int, side: int, setting: str) -> None:
    """Time our norm in one setting, and PyTorch's, on the maps of one stage."""
    x, residual, grad = (_channels_last(_ROWS, ch, side) for _ in range(3))
    weight, bias = torch.ones(ch, device=_DEVICE), torch.zeros(ch, device=_DEVICE)
    label = f"norm {ch}x{side}x{side}"

    def forward() -> Tensor:
        return group_norm_nhwc(x, ch // 4, weight, bias, residual=residual, relu=True)

    def theirs() -> Tensor:
        return F.group_norm(x, ch // 4, weight.to(x.dtype), bias.to(x.dtype)).add_(residual).relu_()

    report.time(f"{label}: {setting}, forward", forward, moved=3 * x.nbytes)

    def both_ways() -> tuple[Tensor, ...]:  # a graph cannot record the backward pass of a forward pass outside it
        leaves = [tensor.detach().requires_grad_() for tensor in (x, weight, bias, residual)]
        y = group_norm_nhwc(leaves[0], ch // 4, leaves[1], leaves[2], residual=leaves[3], relu=True)
        return torch.autograd.grad(y, leaves, grad)

    report.time(f"{label}: {setting}, forward and back", both_ways, moved=8 * x.nbytes)
    if f"{label}: PyTorch, forward" not in report.content["times"]:
        report.time(f"{label}: PyTorch, forward", theirs, moved=3 * x.nbytes)


def _channels_last(rows: int, ch: int, side: int) -> Tensor:
    """Return random maps ``[rows, ch, side, side]`` in bfloat16 and the channels-last memory format."""
    images = torch.randn(rows, ch, side, side, device=_DEVICE, dtype=torch.bfloat16)
    return images.contiguous(memory_format=torch.channels_last)


def convolutions(report: _Report) -> None:
    """Time cuDNN's convolutions of each stage, forward and backward, which ours cannot beat.

    The strided ones are also timed while cuDNN may try all its algorithms, instead of the ten that PyTorch lets it try.
    On an H200, for 64 to 128 channels, it chose one that converts its images to the contiguous format and back.
    """
    for (ch, side), layout in product(_STAGES, (torch.channels_last, _CONTIGUOUS)):
        _convolution(report, _ROWS, ch, ch, side, layout)
    before = torch.backends.cudnn.benchmark_limit
    for rows, limit in (
        (_ROWS, before),
        (_ROWS + 1, 0),
    ):  # cuDNN keeps a choice for each shape, so the second limit needs another
        torch.backends.cudnn.benchmark_limit = limit
        for (ch, side), (outputs, _) in pairwise(_STAGES):
            _convolution(report, rows, ch, outputs, side, torch.channels_last, f"{limit or 'all'} algorithms tried, ")
    torch.backends.cudnn.benchmark_limit = before


def _convolution(
    report: _Report, rows: int, inputs: int, outputs: int, side: int, layout: torch.memory_format, how: str = ""
) -> None:
    """Time a 3x3 convolution, which has stride 2 if it changes the number of channels, and its two gradients."""
    stride = 1 if inputs == outputs else 2
    shapes = (rows, inputs, side, side), (outputs, inputs, 3, 3), (rows, outputs, side // stride, side // stride)
    x, w, grad = (torch.randn(s, device=_DEVICE, dtype=torch.bfloat16).contiguous(memory_format=layout) for s in shapes)
    flops = 2 * grad.numel() * inputs * 9
    label = f"conv {inputs}x{side}x{side} to {outputs}, {how}{str(layout).removeprefix('torch.')}"

    def back(*mask: bool) -> tuple[Tensor, ...]:
        settings = None, [stride, stride], [1, 1], [1, 1], False, [0, 0], 1, list(mask)
        return torch.ops.aten.convolution_backward(grad, x, w, *settings)

    report.time(f"{label}, forward", lambda: F.conv2d(x, w, None, stride, 1), flops=flops)
    report.time(f"{label}, images' gradient", lambda: back(True, False, False), flops=flops)
    report.time(f"{label}, weights' gradient", lambda: back(False, True, False), flops=flops)


def _losses_and_optimiser(report: _Report) -> None:
    """Time the InfoNCE loss of a step, the server's SGD and its moving average."""
    run = _simulation(engine="vmap", precision="fp32")
    rows, dim = 2 * run.config.cohort, run.config.key_dim
    query, key = (F.normalize(torch.randn(rows, dim, device=_DEVICE), dim=1) for _ in range(2))
    keys = F.normalize(torch.randn(1, run.config.queue_length, dim, device=_DEVICE), dim=2)

    def loss() -> Tensor:
        leaf = query.detach().requires_grad_()
        info_nce(leaf, key, keys, 0.1)[0].backward()
        return leaf.grad

    report.time("info_nce: PyTorch's cross-entropy, forward and back", loss)
    with accelerated("fastest"):
        report.time("info_nce: ours, forward and back", loss)
    central, rate = run.state.server, torch.full((), 1e-4, device=_DEVICE)
    grad = torch.randn_like(central.online) * 1e-3
    for version, label in ((None, "PyTorch's operations"), ("fastest", "a kernel")):
        with accelerated(version):
            report.time(
                f"server's descent: {label}",
                lambda: sgd_(central.online, grad, central.velocity, rate, 0.9, 5e-4),
                moved=20 * len(grad),
            )
    report.time("server's moving average", lambda: central.momentum.lerp_(central.online, 0.01), moved=12 * len(grad))


def profile() -> int:
    """List the kernels of a step by time, and time steps of whole rounds."""
    run = _simulation(engine="fused", precision="auto", rounds=8)
    run.pace.flush_seconds = 1e9
    times = []
    for _ in range(1 if _REHEARSAL else 5):
        begin = time.perf_counter()
        list(run.round())
        if _DEVICE.type == "cuda":
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - begin) / run.parts.steps)
    print("ms per step of whole rounds:", " ".join(f"{t:.3f}" for t in times), run.clock.seconds(), flush=True)
    activities = [torch.profiler.ProfilerActivity.CPU if _REHEARSAL else torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        list(run.round())
        if _DEVICE.type == "cuda":
            torch.cuda.synchronize()
    key = "self_cpu_time_total" if _REHEARSAL else "self_device_time_total"
    events = sorted(profiler.key_averages(), key=lambda e: -getattr(e, key))
    total = sum(getattr(e, key) for e in events)
    lines = [f"{run.parts.steps} steps, {total / run.parts.steps:.1f} us of kernels a step"]
    lines += [
        f"{getattr(e, key) / run.parts.steps:9.2f} us {e.count / run.parts.steps:7.2f} x {e.key[:110]}" for e in events
    ]
    (_OUT / "kernels.txt").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines[:60]), flush=True)
    return 0


def train(seconds: str, *flags: str) -> int:
    """Train the paper's setting for `seconds`, with schedules over as many rounds as fit, then a linear probe."""
    run = _simulation(engine="fused", precision="auto", rounds=100)
    list(run.round())
    begin = time.perf_counter()
    list(run.round())
    pace = time.perf_counter() - begin
    rounds = 2 if _REHEARSAL else max(10, min(2000, int(float(seconds) / pace)))
    print(f"{pace:.2f} s a round of shapes; {rounds} rounds", flush=True)
    fields = _PAPER | {"clients": 5000, "cohort": 4, "knn_bank": 200, "knn_test": 50} if _REHEARSAL else {}
    small = [part for name, value in fields.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    out = Path(os.environ.get("RUN") or Path(tempfile.mkdtemp()) / "run")
    new = [
        *("--preset", "paper", *small, "--rounds", str(rounds), "--out", str(out)),
        *("--eval-every", str(max(1, rounds // 2)), "--checkpoint-every", str(max(1, rounds // 20))),
        *("--no-linear-probe" if _REHEARSAL else "--linear-probe", *flags),
    ]
    what = ["--resume", str(out)] if out.exists() else new
    signal.signal(signal.SIGTERM, lambda *_: None)  # the run stops at this signal; its files are still collected below
    run_py = str(_ROOT / "experiments" / "run.py")
    code = subprocess.run([sys.executable, run_py, *what, "--dashboard", "off"], check=False).returncode
    paper = {}
    for name in ("config", "summary", "live"):
        if (out / f"{name}.json").exists():
            paper[name] = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
    if (out / "metrics.jsonl").exists():
        lines = map(json.loads, (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        paper["records"] = [record for record in lines if record["event"] != "step"]
    (_OUT / "paper.json").write_text(json.dumps(paper), encoding="utf-8")
    print(f"the run is in {out}", flush=True)
    return code


def summary(*sections: str) -> int:
    """Print the main figures of the sections that were run."""
    file = _OUT / "parts.json"
    known = "parts" in sections and file.exists()
    times = json.loads(file.read_text(encoding="utf-8"))["times"] if known else {}
    for label in (label for label in times if label.startswith(("peak", "server", "views", "clients: cut 1"))):
        print(f"{label:70s} {times[label]['ms']:9.4f} ms")
    file = _OUT / "engines.json"
    known = "engines" in sections and file.exists()
    for name, run in (json.loads(file.read_text(encoding="utf-8"))["engines"] if known else {}).items():
        print(f"step of {name:20s} {1000 * run['seconds']['step']['median']:9.3f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main(*(sys.argv[1:] or ["nothing"])))
