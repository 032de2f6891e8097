"""Precision: what "auto" means on a device and why, which arithmetic each one permits, and what a run records of it."""

import json
import re
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from simsfl import RunConfig, Simulation, evaluation
from simsfl.cli import launch, run
from simsfl.cli.bench import program as bench
from simsfl.cli.cost import program as cost
from simsfl.data import make_dataset
from simsfl.engine.precision import arithmetic, automatic
from simsfl.kernels import choice
from simsfl.models.layers import Style, initialise_
from simsfl.models.resnet import resnet8_s1
from simsfl.rounds.steps import replayed_steps
from simsfl.runs.metrics import StepRecord
from simsfl.setup import checks
from simsfl.setup.defaults import left_to_rules, resolve, with_precision
from simsfl.system.signals import Stop
from tests.conftest import TINY, flags
from tests.runs.changing import rewritten
from tests.simulations import trained

LARGER = TINY | {"image_size": 16, "rounds": 2}
"""Config of a run whose images are large enough for bf16 on the CPU."""
IN_TF32 = {"fp32": False, "tf32": True, "bf16": False}
"""Whether PyTorch may use TF32, by the precision of a run."""


def tf32():
    """Return whether TF32 is allowed in products and in convolutions, and the name of it that torch.compile reads."""
    return (
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.get_float32_matmul_precision(),
    )


USUAL = (False, True, "highest")
"""What `tf32` returns in a process that has set nothing."""
WANTED = {False: (False, False, "highest"), True: (True, True, "high")}
"""What `tf32` has to return where TF32 is forbidden, and where it is allowed."""


def newer_switches():
    """Return the objects whose `fp32_precision` PyTorch has from 2.9 on."""
    backends = torch.backends
    return [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul, backends.mkldnn.conv]


needs_newer = pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="needs torch 2.9 or later")


@pytest.fixture
def put_back():
    """Put the switches back to what they were, whatever a test does to them."""
    before = torch.backends.fp32_precision, [switch.fp32_precision for switch in newer_switches()]
    yield
    torch.backends.fp32_precision = before[0]
    torch.set_float32_matmul_precision(USUAL[2])
    torch.backends.cudnn.allow_tf32 = USUAL[1]
    for switch, value in zip(newer_switches(), before[1], strict=True):
        switch.fp32_precision = value
    assert tf32() == USUAL


@pytest.fixture
def gpu(monkeypatch):
    """Return a function that makes this a machine with one CUDA device, of some name and compute capability."""

    def become(name, *, bf16, capability):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16 or including_emulation)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    return become


@pytest.fixture
def bf16_by_rule(monkeypatch):
    """Make "auto" mean bf16 on this machine, as it does on a GPU that has it."""
    monkeypatch.setattr("simsfl.setup.defaults.automatic", lambda device, **_: ("bf16", "a GPU has bf16"))


@pytest.fixture
def bf16_cpu(monkeypatch):
    """Return a function that makes this machine's CPU one that has AVX512-BF16 or not."""

    def become(has_it):
        capabilities = {"avx2": True, "avx512_bf16": has_it, "amx_bf16": False}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)

    return become


@pytest.fixture
def with_tf32(monkeypatch):
    """Make the CPU count as a device that has TF32."""
    monkeypatch.setattr(checks, "has_tf32", lambda device: True)


@pytest.fixture
def larger(arrays):
    """Return a data set whose images are large enough for bf16 on the CPU."""
    return make_dataset("larger", "made up", arrays, image_size=16)


def test_auto_is_bf16_where_the_device_has_it_without_emulation(gpu):
    gpu("NVIDIA H200", bf16=True, capability=(9, 0))
    assert automatic("cuda:0") == ("bf16", "NVIDIA H200 has bf16")
    assert resolve(RunConfig()).precision == resolve(RunConfig(device="cuda")).precision == "bf16"
    assert resolve(RunConfig(device="cpu")).precision == "fp32"
    assert resolve(RunConfig(precision="tf32")).precision == "tf32"
    assert with_precision(RunConfig())[1] == "auto, NVIDIA H200 has bf16"
    assert with_precision(RunConfig(precision="bf16"))[1] == "asked for"
    assert with_precision(RunConfig(), ("fp32", "so we say")) == (RunConfig(precision="fp32"), "auto, so we say")


def test_auto_is_fp32_elsewhere(gpu):
    assert automatic("cpu") == ("fp32", "no CUDA device in use")
    assert resolve(RunConfig(device="cpu")).precision == "fp32"
    gpu("Tesla V100", bf16=False, capability=(7, 0))
    assert automatic("cuda:0") == ("fp32", "Tesla V100 has no bf16")
    assert resolve(RunConfig()).precision == "fp32"


def test_auto_on_a_cpu_that_has_bf16_is_what_suits_network_and_images(bf16_cpu, config, larger, dataset, monkeypatch):
    on_cpu = {"device": "cpu", "arch": "resnet8-s1"}
    bf16_cpu(True)
    assert with_precision(RunConfig(**on_cpu)) == (RunConfig(**on_cpu, precision="bf16"), "auto, the CPU has bf16")
    assert resolve(RunConfig(**on_cpu, image_size=16)).precision == "bf16"
    assert resolve(RunConfig(**on_cpu, image_size=15)).precision == "fp32"
    assert resolve(RunConfig(device="cpu", arch="resnet8")).precision == "fp32"
    assert Simulation(replace(config, arch="resnet8-s1", image_size=None), larger).config.precision == "bf16"
    assert Simulation(replace(config, arch="resnet8-s1", image_size=None), dataset).config.precision == "fp32"
    bf16_cpu(False)
    assert with_precision(RunConfig(**on_cpu))[1] == "auto, the CPU has no bf16"
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert resolve(RunConfig(**on_cpu)).precision == "fp32"


def test_a_recorded_trace_is_in_fp32_by_rule(npz, tmp_path, capfd, bf16_cpu):
    bf16_cpu(True)
    asked = flags(dataset=npz, **LARGER | {"arch": "resnet8-s1"})
    trace = ["--record-trace", str(tmp_path / "a.trace")]
    assert run.main([*asked, "--out", str(tmp_path / "without"), "--dashboard", "off"]) == 0
    assert run.main([*asked, "--out", str(tmp_path / "with"), "--dashboard", "off", *trace]) == 0
    assert [saved(tmp_path / name)["config"]["precision"] for name in ("without", "with")] == ["bf16", "fp32"]
    assert "precision fp32  auto, a trace is recorded, for devices that may lack bf16; " in capfd.readouterr().out


def test_what_a_device_lacks_is_refused(gpu):
    gpu("Tesla V100", bf16=False, capability=(7, 0))
    with pytest.raises(ValueError, match=r"^precision: bf16 is not what Tesla V100 has; allowed: fp32$"):
        checks.check_precision(RunConfig(device="cuda:0", precision="bf16"), 32)
    with pytest.raises(ValueError, match=r"^precision: tf32 is not what Tesla V100 has; allowed: fp32, or a CUDA dev"):
        checks.check_precision(RunConfig(device="cuda:0", precision="tf32"), 32)
    checks.check_precision(RunConfig(device="cuda:0", precision="fp32"), 8)
    gpu("NVIDIA A100", bf16=True, capability=(8, 0))
    for precision in IN_TF32:
        checks.check_precision(RunConfig(device="cuda:0", precision=precision), 8)


@pytest.mark.parametrize("precision", IN_TF32)
def test_the_switches_inside_and_after(precision):
    assert tf32() == USUAL
    with arithmetic(precision):
        assert tf32() == WANTED[IN_TF32[precision]]
        with arithmetic("tf32"):
            assert tf32() == WANTED[True]
        assert tf32() == WANTED[IN_TF32[precision]]
    assert tf32() == USUAL
    with pytest.raises(KeyError), arithmetic(precision):
        raise KeyError
    assert tf32() == USUAL


@needs_newer
@pytest.mark.parametrize("precision", IN_TF32)
def test_switches_that_a_program_has_set_are_overridden_and_put_back(precision, put_back):
    wanted = ["tf32" if IN_TF32[precision] else "ieee"] * 5
    for mine in (["tf32", "ieee", "tf32", "ieee", "none"], ["ieee", "tf32", "tf32", "bf16", "bf16"]):
        for switch, value in zip(newer_switches(), mine, strict=True):
            switch.fp32_precision = value
        with arithmetic(precision):
            assert [switch.fp32_precision for switch in newer_switches()] == wanted
            assert tf32() == WANTED[IN_TF32[precision]]  # raises where old and new contradict each other
        assert [switch.fp32_precision for switch in newer_switches()] == mine


@needs_newer
@pytest.mark.parametrize("precision", IN_TF32)
def test_what_is_set_for_all_operators_does_not_reach_a_run(precision, put_back):
    torch.backends.fp32_precision = "tf32"
    with arithmetic(precision):
        assert tf32() == WANTED[IN_TF32[precision]]
        assert len({switch.fp32_precision for switch in newer_switches()}) == 1
    assert {switch.fp32_precision for switch in newer_switches()} == {"tf32"}


def spied(simulation, seen):
    """Return the simulation, made to append what `tf32` returns in each step to `seen`."""
    original = simulation.parts.train_step

    def train_step(*arguments):
        seen.append(tf32())
        return original(*arguments)

    simulation.parts = replace(simulation.parts, train_step=train_step)
    return simulation


def test_each_run_has_its_own_arithmetic(config, dataset, larger, with_tf32, monkeypatch):
    """Runs that take turns keep their arithmetic, also in evaluations; in between, that of the process is back."""
    seen = {precision: [] for precision in IN_TF32}
    runs = {
        precision: spied(Simulation(replace(config, precision=precision), larger), seen[precision])
        for precision in IN_TF32
    }
    for _ in zip(*(simulation.round() for simulation in runs.values()), strict=True):
        assert tf32() == USUAL
    for precision, simulation in runs.items():
        assert set(seen[precision]) == {WANTED[IN_TF32[precision]]}
        evaluated = []
        hits = torch.ones(len(simulation.parts.evaluation.test), dtype=torch.bool)
        spy = partial(lambda seen, result, *given, **how: seen.append(tf32()) or result, evaluated, hits)
        monkeypatch.setattr(evaluation, "knn_hits", spy)
        simulation.evaluate()
        simulation.evaluate_untrained()
        assert evaluated == [WANTED[IN_TF32[precision]]] * 3
    assert tf32() == USUAL


@pytest.mark.parametrize("precision", IN_TF32)
def test_probes_and_replayed_rounds_have_it_too(precision, config, larger, with_tf32, monkeypatch):
    simulation = Simulation(replace(config, precision=precision, linear_probe=True, loss_threshold=1e9), larger)
    seen = []
    monkeypatch.setattr(simulation.parts.evaluation, "all_features", lambda encode: (seen.append(tf32()), None))
    monkeypatch.setattr(simulation.parts.evaluation, "probe", lambda *data, **how: (seen.append(tf32()), 0.0))
    monkeypatch.setattr("simsfl.algorithm.step.learn_", lambda *arguments: seen.append(tf32()) or pytest.fail("stop"))
    simulation.probes()
    assert len(seen) == 2
    with pytest.raises(pytest.fail.Exception, match="stop"):
        next(replayed_steps(simulation.parts, simulation.progress, simulation.clock))
    assert seen == [WANTED[IN_TF32[precision]]] * 3


def test_tf32_is_fp32_but_for_the_switches(config, dataset, with_tf32):
    """Results are the same to the bit, since the CPU has no TF32."""
    exact, tensor = (Simulation(replace(config, precision=precision), dataset) for precision in ("fp32", "tf32"))
    assert tensor.parts.cost.image_bytes == exact.parts.cost.image_bytes
    assert list(map(vars, exact.rounds())) == list(map(vars, tensor.rounds()))


def test_bf16_keeps_fp32_weights_and_stays_near_fp32(config, larger):
    single, exact = trained(config, larger)
    half, records = trained(replace(config, precision="bf16"), larger)
    assert half.state.server.online.dtype == half.state.clients.online.dtype == torch.float32
    assert half.parts.cost.image_bytes * 2 == single.parts.cost.image_bytes
    assert all(np.isfinite(r.loss) for r in records if isinstance(r, StepRecord))
    losses = [r.loss for records in (exact, records) for r in records if isinstance(r, StepRecord)][::15]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert losses[0] != losses[1]


@pytest.mark.parametrize("size", [16, 32])
def test_gradients_in_bf16_are_those_of_fp32(size):
    """oneDNN has left part of gradients unset where maps were too small, so all of them are compared."""
    network = nn.Sequential(*resnet8_s1(16, size, Style()).layers)
    initialise_(network, torch.Generator().manual_seed(0))
    images = torch.randn(100, 3, size, size, generator=torch.Generator().manual_seed(1))
    exact, half = {}, {}
    for gradients, enabled in ((exact, False), (half, True)):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            features = network(images).flatten(1).float()
        (features.softmax(1) ** 2).sum().backward()
        gradients |= {name: p.grad.clone() for name, p in network.named_parameters()}
    for name, gradient in exact.items():
        assert torch.cosine_similarity(gradient.flatten(), half[name].flatten(), dim=0) > 0.97, name
        assert half[name].norm().item() == pytest.approx(gradient.norm().item(), rel=0.1), name


def test_bf16_on_images_too_small_for_it(config, dataset):
    with pytest.raises(ValueError, match=r"precision: bf16 .* 8x8; .* 16"):
        Simulation(replace(config, precision="bf16"), dataset)


def test_float64_is_not_halved(config, dataset, bf16_by_rule):
    simulation = Simulation(config, dataset, dtype=torch.float64)
    assert simulation.config.precision == "fp32"
    assert simulation.parts.reasons == {"precision": "auto, everything is float64"}
    assert simulation.parts.hyper.precision == torch.float64


def test_a_choice_in_tf32_is_another():
    class OnCuda:  # what `choice.key` reads of a tensor
        shape, dtype, device = (2, 3), torch.float32, torch.device("cuda")

    with arithmetic("fp32"):
        assert choice.key("op", (OnCuda,), ()) == "op 2x3 () float32 cuda"
        assert choice.key("op", (torch.zeros(2, 3),), ()) == "op 2x3 () float32 cpu"
    with arithmetic("tf32"):
        assert choice.key("op", (OnCuda,), ()) == "op 2x3 () tf32 cuda"
        assert choice.key("op", (torch.zeros(2, 3),), ()) == "op 2x3 () float32 cpu"


def saved(out):
    """Return the content of a run directory's ``config.json``."""
    return json.loads((out / "config.json").read_text())


def test_auto_is_printed_kept_and_resumed_but_asked_again_of_another_run(npz, tmp_path, capfd, monkeypatch):
    out, again = tmp_path / "out", tmp_path / "again"
    with monkeypatch.context() as patch:
        patch.setattr("simsfl.setup.defaults.automatic", lambda device, **_: ("bf16", "a GPU has bf16"))
        assert run.main([*flags(dataset=npz, out=out, **LARGER), "--dashboard", "off"]) == 0
    assert re.search(r"^precision bf16  auto, a GPU has bf16; forward passes", capfd.readouterr().out, re.MULTILINE)
    content = saved(out)
    assert content["config"]["precision"] == "bf16"
    assert "precision" in content["by_rule"]
    assert content["reasons"] == {"precision": "auto, a GPU has bf16"}
    assert Simulation.load(out).config.precision == "bf16"
    assert run.main(["--config", str(out / "config.json"), "--out", str(again), "--dashboard", "off"]) == 0
    assert saved(again)["config"]["precision"] == "fp32"
    assert saved(again)["reasons"] == {"precision": "auto, no CUDA device in use"}


def test_a_run_is_resumed_in_the_precision_that_it_began_with(npz, tmp_path, capfd, monkeypatch, bf16_by_rule):
    out = tmp_path / "out"
    simulation = Simulation(RunConfig(**LARGER, dataset=str(npz)))
    simulation.save(out)
    before = saved(out)
    monkeypatch.setattr("simsfl.setup.defaults.automatic", automatic)
    assert run.main(["--resume", str(out), "--precision", "fp32"]) == 2
    assert "precision: 'fp32' contradicts the run" in capfd.readouterr().err
    assert run.main(["--resume", str(out), "--precision", "auto", "--dashboard", "off"]) == 0
    assert "precision bf16  as configured; " in capfd.readouterr().out
    assert saved(out) == before


def test_asked_for_is_said_and_kept(npz, tmp_path, capfd):
    out, again = tmp_path / "out", tmp_path / "again"
    argv = [*flags(dataset=npz, out=out, **TINY | {"rounds": 1}), "--precision", "fp32", "--dashboard", "off"]
    assert run.main(argv) == 0
    assert "precision fp32  --precision; products and convolutions without TF32" in capfd.readouterr().out
    assert saved(out)["reasons"] == {"precision": "asked for"}
    assert "precision" not in saved(out)["by_rule"]
    assert run.main(["--config", str(out / "config.json"), "--out", str(again), "--dashboard", "off"]) == 0
    assert f"precision fp32  from {out / 'config.json'}; " in capfd.readouterr().out


def test_a_run_from_before_loads(npz, tmp_path, bf16_by_rule):
    """A run of an earlier version loads: its ``config.json`` has no reasons, and a precision that no rule chose."""
    simulation = Simulation(RunConfig(**LARGER, dataset=str(npz), precision="fp32"))
    simulation.save(tmp_path / "run")
    content = saved(tmp_path / "run")
    del content["reasons"], content["sha256"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(content))
    assert Simulation.load(tmp_path / "run").config.precision == "fp32"
    assert RunConfig.load(tmp_path / "run" / "config.json").precision == "fp32"
    assert run.main(["--resume", str(tmp_path / "run"), "--dashboard", "off"]) == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_run_in_a_precision_that_is_not_here_can_be_opened_and_goes_on_in_fp32(config, dataset, tmp_path, caplog):
    simulation = Simulation(config, dataset)
    next(simulation.rounds())
    simulation.save(tmp_path / "run")
    rewritten(tmp_path / "run", config=lambda content: content["config"].update(precision="tf32"))
    with pytest.raises(ValueError, match="precision: tf32 is not what the CPU has"):
        Simulation.load(tmp_path / "run", dataset)
    opened = Simulation.load(tmp_path / "run", dataset, device="cpu")
    (record,) = caplog.records
    assert record.getMessage().startswith("precision: tf32 is not what the CPU has; ")
    assert record.getMessage().endswith("; it is fp32 from here on")
    assert opened.config.precision == "fp32"
    next(opened.rounds())
    opened.save(tmp_path / "run")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
@pytest.mark.parametrize("precision", ["bf16", "tf32", "fp32"])
def test_a_run_from_a_cuda_machine_is_not_resumed_without_cuda(precision, config, dataset, tmp_path, capfd):
    Simulation(config, dataset).save(tmp_path / "run")
    there = {"precision": precision, "device": "cuda:0"}
    rewritten(tmp_path / "run", config=lambda content: content["config"].update(there))
    for more, wanted in (
        ([], "device: cuda:0 is not available, this machine has no CUDA; allowed: auto, cpu"),
        (["--device", "cuda:x"], "device: 'cuda:x' is not known; allowed: auto, cpu, cuda, cuda:N"),
    ):
        assert run.main(["--resume", str(tmp_path / "run"), *more]) == 2
        assert capfd.readouterr().err == f"error: {wanted}\n"


def test_tf32_without_cuda(npz, tmp_path, capfd):
    wanted = (
        "error: precision: tf32 is not what the CPU has; allowed: fp32, or a CUDA device of compute capability 8.0 or "
    )
    assert run.main([*flags(dataset=npz, out=tmp_path / "out", **TINY), "--precision", "tf32"]) == 2
    error = capfd.readouterr().err
    assert error.startswith(wanted)
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    small = {name: value for name, value in TINY.items() if name not in bench._NO_MATTER}
    assert bench.main([*flags(dataset=npz, **small), "--steps", "1", "--engines", "fused+tf32"]) == 2
    assert capfd.readouterr().err.startswith(wanted)


def test_what_is_recorded_can_be_done_again(npz, tmp_path, capfd, with_tf32):
    argv = [*flags(dataset=npz, out=tmp_path / "out", **TINY), "--record-trace", str(tmp_path / "a.trace")]
    assert run.main([*argv, "--precision", "tf32"]) == 2
    assert capfd.readouterr().err.startswith("error: record_trace: devices that do it again have no TF32; allowed: ")


def test_devices_are_given_the_precision_that_they_have(npz, tmp_path, capfd, bf16_by_rule):
    pytest.importorskip("zmq")
    from simsfl.hw_profile.devices import server  # noqa: PLC0415  (ends the process without zmq)

    class Guests:
        auto_precision = server.Devices.auto_precision

        def prepare(self, simulation):
            """Wait for nobody, as there are no real devices."""

        def during(self, session):
            return nullcontext()

    argv = [*flags(dataset=npz, out=tmp_path / "out", **LARGER), "--dashboard", "off"]
    with Stop() as stop:
        assert launch.launch(run.parser().parse(argv), stop, Guests()) == 0
    assert "precision fp32  auto, devices compute in fp32; " in capfd.readouterr().out
    assert saved(tmp_path / "out")["config"]["precision"] == "fp32"


@pytest.mark.parametrize(("precision", "bytes_each"), [("auto", 2), ("bf16", 2), ("fp32", 4), ("tf32", 4)])
def test_costs_are_those_of_a_run_here(precision, bytes_each, tmp_path, capfd, bf16_by_rule):
    argv = flags(**{"precision": precision, "json": tmp_path / "cost.json", "arch": "resnet8", "width": 16})
    assert cost.main(argv) == 0
    sent = json.loads((tmp_path / "cost.json").read_text())["as asked"]["bytes_per_image"]
    assert sent["up"] == 2 * 16 * 16 * 16 * bytes_each  # of both views; the stem halves the sides of images
    wanted = "bf16" if precision == "auto" else precision
    assert f"the formats of a run ({wanted})" in " ".join(capfd.readouterr().out.split())


def test_left_to_rules_names_it():
    assert "precision" in left_to_rules(RunConfig())
    assert "precision" not in left_to_rules(RunConfig(precision="fp32"))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("precision", IN_TF32)
def test_what_the_device_computes(precision):
    """TF32 has 10 bits of mantissa and float32 has 23, so the error of products and convolutions shows which it was."""
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("no TF32")
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 256, 256, generator=generator).cuda()
    x, w = torch.randn(8, 64, 16, 16, generator=generator).cuda(), torch.randn(64, 64, 3, 3, generator=generator).cuda()
    with arithmetic(precision):
        found = a @ b, torch.nn.functional.conv2d(x, w, padding=1)
    exact = a.double() @ b.double(), torch.nn.functional.conv2d(x.double(), w.double(), padding=1)
    for ours, theirs in zip(found, exact, strict=True):
        error = ((ours - theirs).norm() / theirs.norm()).item()
        assert (1e-4 < error < 1e-2) if precision == "tf32" else error < 1e-5
