"""The whole measurement, in processes of its own: either runtime computes what the trace has recorded."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from simsfl import RunConfig, Simulation
from simsfl.cost.model import client_cost, memory
from simsfl.data import make_dataset
from simsfl.hw_profile.bench import plots
from simsfl.hw_profile.bench import program as pi_bench
from simsfl.hw_profile.bench import replay as replaying
from simsfl.hw_profile.bench import standard as standard_program
from simsfl.hw_profile.bench.findings import duration, session, with_charge
from simsfl.hw_profile.bench.measuring import standard_trace
from simsfl.hw_profile.bench.panel import _LEVELS, LiveView, power_text
from simsfl.hw_profile.bench.worker import tensor_bytes
from simsfl.hw_profile.meters.stopwatch import _SAMPLE, Times
from simsfl.hw_profile.runtimes.client_work import Comparison, difference, make_client, perform
from simsfl.models import split_model
from simsfl.models.described import client_of
from simsfl.runs.client_trace import Trace
from simsfl.setup.assembly import network
from simsfl.setup.defaults import resolve
from tests.conftest import TINY
from tests.simulations import recorder_of

ROOT = Path(__file__).parents[2]
RAIL = "VDD_CORE_A current(7)=2.0A\nVDD_CORE_V volt(15)=0.9V\n"
PAPER = {"arch": "resnet18", "width": 8, "cut_layer": 2}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "1")


@pytest.fixture(scope="module")
def trace(tmp_path_factory, arrays):
    """Return the trace of a client in a run with two averagings per round."""
    dataset = make_dataset("tiny", "made up", arrays, image_size=16)
    path = tmp_path_factory.mktemp("trace") / "trace"
    simulation = Simulation(RunConfig(**{**TINY, **PAPER, "image_size": 16}), dataset)
    with recorder_of(simulation, None, path):
        list(simulation.rounds())
    return path


@pytest.fixture(scope="module")
def standard(tmp_path_factory):
    """Return the path of the standard trace for a client with a bottleneck."""
    path = tmp_path_factory.mktemp("standard") / "trace"
    standard_trace(path, {"cut_layer": 1, "bottleneck": "C4S2", "batch_size": 10})
    return path


def replay(trace, runtime, precision="fp32"):
    """Replay a trace; return the largest difference from what is recorded."""
    compare, trace = Comparison(), Trace(trace)
    client = make_client(trace.about, runtime, precision=precision)
    for visit in trace.visits:
        for _ in perform(client, trace, visit, lambda phase: open(os.devnull), compare):  # noqa: PTH123, SIM115
            pass
    return max(compare.activations, compare.weights)


def test_a_device_builds_what_options_of_the_architecture_ask_for():
    settings = {"arch": "vit-tiny", "width": 4, "image_size": 16, "device": "cpu"}
    config = resolve(RunConfig(**settings, options={"arch.pool": "class"}))
    described = json.loads(json.dumps(config.network()))
    assert client_of(described).shapes == network(config, weights=False).client.shapes
    assert client_of(described).shapes["0.token"] == (4, 1, 1)
    with pytest.raises(ValueError, match=r"^arch.pool: 'max' is not known; allowed: mean, class"):
        client_of(described | {"options": {"arch.pool": "max"}})


@pytest.mark.parametrize("runtime", ["torch", "lean"])
def test_either_runtime_does_the_work_of_a_recorded_client(runtime, trace, standard):
    assert replay(trace, runtime) < 1e-5
    assert replay(standard, runtime) < 1e-5


def test_another_precision_is_further_off(trace):
    assert 1e-4 < replay(trace, "torch", "bf16") < 0.1


def test_a_difference_is_relative_to_the_largest():
    assert difference(np.array([1.0, 2.0, 4.2]), np.array([1.0, 2.0, 4.0])) == pytest.approx(0.05)
    assert difference(np.array([1.0, np.nan]), np.ones(2)) == sys.float_info.max


def test_the_standard_trace_is_what_the_cost_model_says(standard):
    trace = Trace(standard)
    model = split_model(
        "resnet18", width=64, cut_layer=1, image_size=32, head="mlp", key_dim=8, generator=None, bottleneck=_c4s2()
    )
    assert trace.about["shapes"] == {name: list(shape) for name, shape in model.client.shapes.items()}
    cost = client_cost(model, number_bytes=4, align_momentum=False)
    assert trace.steps == 5
    assert trace.about["session"]["steps"] == 200 * 5
    assert trace.about["session"]["bytes_up"] == 200 * (2 * 50 * cost.image_bytes + cost.sync_bytes)
    assert trace.about["session"]["bytes_down"] == 200 * (50 * cost.image_bytes + cost.sync_bytes)


@pytest.mark.slow
def test_the_standard_trace_of_a_deep_cut_is_not_long(tmp_path):
    standard_trace(tmp_path / "trace", {"cut_layer": 6, "bottleneck": None, "batch_size": 1})
    trace = Trace(tmp_path / "trace")
    assert 2 <= trace.steps < 50
    assert trace.about["session"]["steps"] == 200 * 50
    assert (tmp_path / "trace").stat().st_size < 400 << 20


def _c4s2():
    from simsfl.config.notation import Bottleneck  # noqa: PLC0415

    return Bottleneck.parse("C4S2")


def bench(*flags):
    """Run ``pi_bench.py`` on one thread; return the exit code."""
    return pi_bench.main(["--threads", "1", "--dashboard", "off", *map(str, flags)])


@pytest.mark.parametrize("runtime", ["torch", "lean"])
def test_a_result_has_everything(runtime, trace, tmp_path, capsys):
    out = tmp_path / "out"
    assert bench("--replay", trace, "--runtime", runtime, "--seconds", 0.3, "--meter", "none", "--out", out) == 0
    result = json.loads((out / "result.json").read_text())
    assert result["runtime"] == runtime
    assert result["verified"]["weights"] < 1e-5
    assert set(result["latency"]) == {"step", "views", "query", "momentum", "key", "backward", "sgd", "sync"}
    assert result["latency"]["step"]["median"] <= result["latency"]["step"]["p95"]
    assert result["operations"]["per_step"] == 2 * sum(Trace(trace).about["cost"]["flops"].values())
    assert result["memory"]["tensors"] > 0.5 * result["memory"]["estimated"]
    assert result["energy"] is None
    assert result["energy_note"] == "no meter was asked for"
    assert {"report.md", "latency.svg", "memory.svg"} <= {file.name for file in out.iterdir()}
    assert "2.26 W" not in (out / "report.md").read_text()  # the paper's network is another
    output = capsys.readouterr().out
    for heading in ("median [ms]", "p95 [ms]", "GFLOP/s"):
        assert heading in output


@pytest.mark.slow
def test_power_is_shown_with_its_source_although_the_clock_is_set(trace, tmp_path, capsys, monkeypatch):
    tool = tmp_path / "bin" / "vcgencmd"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\n[ "$1" = get_throttled ] && echo throttled=0x0 && exit\ncat <<X\n{RAIL}X\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    monkeypatch.setattr("simsfl.hw_profile.bench.replay.IDLE_SECONDS", 0.5)
    ahead = cycle((0.0, 3600.0))  # from the second look at it on, the clock is an hour ahead
    clock = SimpleNamespace(time=lambda: time.time() + next(ahead), monotonic=time.monotonic)
    monkeypatch.setattr("simsfl.hw_profile.meters.sampler.time", clock)
    out = tmp_path / "out"
    assert bench("--replay", trace, "--seconds", 0.6, "--out", out) == 0
    result = json.loads((out / "result.json").read_text())
    assert result["clock_moved"] == pytest.approx(3600, abs=1)
    spans = [time for span in result["spans"].values() for time in span]
    assert spans == sorted(spans)
    assert spans[-1] == pytest.approx(time.time() + 3600, abs=60)
    found = result["energy"]
    assert found["meter"] == "pmic"
    assert 0.6 <= found["seconds"] < 60
    assert found["mean_watts"] == pytest.approx(1.1451 * 2.0 * 0.9 + 0.5879)
    assert found["above_idle_watts"] == pytest.approx(0.0, abs=1e-6)
    assert found["joules"] == pytest.approx(found["mean_watts"] * found["seconds"])
    assert "1.1451" in (out / "report.md").read_text()
    assert (out / "power.svg").exists()


@pytest.mark.slow
def test_a_log_may_come_later(trace, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    monkeypatch.setenv("PATH", str(tmp_path))  # where there is no meter
    monkeypatch.setattr("simsfl.hw_profile.bench.replay.IDLE_SECONDS", 0.5)
    assert bench("--replay", trace, "--seconds", 0.3, "--out", out) == 0
    file = out / "result.json"
    result = json.loads(file.read_text())
    result["memory"]["reckoned"] = result["memory"].pop("estimated")  # as earlier versions wrote it
    del result["clock_moved"]
    file.write_text(json.dumps(result))
    (out / "written-by-simsfl.txt").unlink()
    begin, log = result["spans"]["work"][0], tmp_path / "log.csv"

    def add(watts):
        rows = [f"{begin - 6 + 0.05 * step:.3f},{watts}\n" for step in range(300)]
        log.write_text("time,power\n" + "".join(rows))
        code = pi_bench.main(["--add-log", str(out), "--meter", f"csv:{log}"])
        return code, json.loads(file.read_text())

    code, found = add(2.0)
    assert code == 0
    assert found["energy"]["mean_watts"] == pytest.approx(2.0)
    assert found["session"]["mah_at_5v"] > 0
    assert found["memory"]["estimated"] == result["memory"]["reckoned"]
    assert "reckoned" not in found["memory"]
    log.write_text("time,power\n1000000000,2\n1000000001,2\n")
    assert pi_bench.main(["--add-log", str(out), "--meter", f"csv:{log}"]) == 2
    assert "and the run was" in capsys.readouterr().err
    assert json.loads(file.read_text()) == found
    code, found = add(-2.5)
    assert code == 0
    assert found["energy"]["mean_watts"] == pytest.approx(-2.5)
    assert [found["session"][name] for name in ("wh", "mah_at_5v", "share_of_10000_mah")] == [None, None, None]
    text = (out / "report.md").read_text()
    assert "-2.50 W" in text
    assert "VIN+ and VIN- may be swapped" in text
    assert "mAh" not in text
    file.write_text(json.dumps({**found, "clock_moved": 37.0}))
    (out / "written-by-simsfl.txt").unlink()
    assert add(2.0)[0] == 2
    assert "this machine's clock was set by +37.0 s during the measurement" in capsys.readouterr().err
    spans = dict(zip(found["spans"], [[begin, begin], [begin, begin + 1], [begin + 1, begin + 1]], strict=True))
    for damage, message in (
        ({"spans": spans}, "add_log: the idle machine was not measured"),
        ({"spans": spans | {"work": [begin + 1, begin]}}, "in order"),
        ({"spans": {}}, "are not the begin and the end of idle before, work, idle after"),
        ({"threads": "two"}, "threads: 'two' is not a whole number"),
        ({"steps": 0}, "steps: 0 is out of range"),
        ({"latency": {}}, "latency: it lacks the time of a step or of a phase"),
        ({"board": found["board"] | {"model": None}}, "board.model: None is not a text"),
        ({"verified": found["verified"] | {"weights": float("nan")}}, "verified.weights: nan is out of range"),
        ({"memory": {}}, "memory.process_idle: is missing"),
    ):
        file.write_text(json.dumps(found | damage))
        (out / "written-by-simsfl.txt").unlink(missing_ok=True)
        assert add(2.0)[0] == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("name", ["report.md", "latency.svg", "memory.svg", "power.svg"])
def test_files_of_a_user_are_not_replaced(name, trace, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine")
    assert bench("--replay", trace, "--seconds", 0.1, "--meter", "none", "--out", out) == 2
    assert f"out: {out} holds a result already, {name}" in capsys.readouterr().err
    assert [(file.name, file.read_text()) for file in out.iterdir()] == [(name, "mine")]


@pytest.mark.slow
def test_a_report_that_a_user_has_edited_is_not_replaced_by_a_later_log(trace, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setenv("PATH", str(tmp_path))  # where there is no meter
    monkeypatch.setattr("simsfl.hw_profile.bench.replay.IDLE_SECONDS", 0.5)
    assert bench("--replay", trace, "--seconds", 0.3, "--out", out) == 0
    (out / "written-by-simsfl.txt").unlink()  # as an older version left it, whose files are known by the result
    begin, _ = json.loads((out / "result.json").read_text())["spans"]["work"]
    log = tmp_path / "log.csv"
    log.write_text("time,power\n" + "".join(f"{begin - 6 + 0.05 * step:.3f},2.0\n" for step in range(300)))
    assert pi_bench.main(["--add-log", str(out), "--meter", f"csv:{log}"]) == 0
    (out / "report.md").write_text("mine")
    assert pi_bench.main(["--add-log", str(out), "--meter", f"csv:{log}"]) == 2
    assert f"add_log: {out / 'report.md'} was not written by simsfl" in capsys.readouterr().err
    assert (out / "report.md").read_text() == "mine"


@pytest.mark.slow
def test_what_differs_from_the_trace_fails(trace, tmp_path, capsys):
    other = tmp_path / "other"
    with zipfile.ZipFile(trace) as source, zipfile.ZipFile(other, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "trace.json":
                about = json.loads(content)
                about["optimiser"]["momentum"] = 0.8
                content = json.dumps(about).encode()
            target.writestr(name, content)
    assert bench("--replay", other, "--seconds", 0.1, "--meter", "none", "--out", tmp_path / "out") == 1
    assert "replay: what is computed here differs by" in capsys.readouterr().err


def test_bad_input(trace, standard, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    damaged, other, fifo = tmp_path / "damaged", tmp_path / "other", tmp_path / "fifo"
    os.mkfifo(fifo)
    damaged.write_bytes(trace.read_bytes()[:-100])
    with zipfile.ZipFile(trace) as source, zipfile.ZipFile(other, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, content.replace(b'"width": 8', b'"width": 12') if name == "trace.json" else content)
    held = tmp_path / "held"
    held.mkdir()
    (held / "result.json").write_text("{}")
    for flags, message in (
        (["--replay", damaged], "replay: "),
        (["--replay", tmp_path / "none"], "replay: "),
        (["--replay", tmp_path], "replay: "),
        (["--replay", fifo], "(not a regular file)"),
        (["--replay", "/dev/zero"], "(not a regular file)"),
        (["--out", damaged / "x"], "out: "),
        (["--threads", 4096], "threads: 4096 are more than the cores that this process may use; allowed: 1"),
        (["--replay", other], "network: is built differently here than where it was described"),
        (["--replay", other, "--runtime", "lean"], "network: is built differently here than where it was described"),
        (["--replay", trace, "--cut-layer", 2], "cut_layer: has no effect on a trace that is replayed"),
        (["--cut-layer", 99], "cut_layer: 99"),
        (["--seconds", "0"], "seconds: 0 is out of range"),
        (["--seconds", "nan"], "seconds: nan"),
        (["--runtime", "lean", "--dtype", "bf16"], "dtype: lean computes in fp32"),
        (["--runtime", "tflite"], "runtime: 'tflite' is not known"),
        (["--meter", "ina219"], "meter: ina219 "),
        (["--meter", "csv:none.csv"], "meter: there is no log none.csv"),
        (["--add-log", tmp_path], "add_log: needs a log"),
        (["--seconds", "86400"], "seconds: 86400 is out of range"),
        (["--out", held], f"out: {held} holds a result already"),
        (["--metre", "rapl"], "flag: '--metre' is not known (did you mean --meter?)"),
        (["--tolerance", "-1"], "tolerance: -1"),
    ):
        assert bench("--meter", "none", *flags) == 2, flags
        error = capsys.readouterr().err
        assert message in error
        assert error.startswith("error: ")
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"bottleneck": "C4S64"}, "bottleneck: stride 64 is more than the maps of 32x32"),
        ({"bottleneck": "C"}, "bottleneck: 'C' is none"),
        ({"batch_size": 51}, "batch_size: 51"),
    ],
)
def test_a_standard_trace_that_cannot_be(setting, message, tmp_path, capsys):
    settings = {"cut_layer": 1, "bottleneck": None, "batch_size": 1} | setting
    assert standard_program.main([str(tmp_path / "trace"), json.dumps(settings)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


@pytest.mark.slow
def test_a_bare_checkout_needs_torch_numpy_and_rich_alone(trace, tmp_path):
    """The checkout is copied, not installed, and no other packages can be imported."""
    copy = tmp_path / "copy"
    for name in ("simsfl", "kernels", "hw_profile"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    missing = ("torchvision", "safetensors", "matplotlib", "scipy", "torchmetrics", "PIL", "pytest", "hypothesis")
    (copy / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({missing}))\n")
    program = copy / "hw_profile" / "pi_bench.py"
    done = run(program, "--seconds", "0.2", "--bottleneck", "C4S2", at=tmp_path, path=copy)
    assert done.returncode == 0, done.stderr
    which = "import simsfl.kernels as k; print(k.__file__)"
    found = run("-c", which, at=tmp_path, path=copy)
    assert Path(found.stdout.split()[0]) == copy / "kernels" / "__init__.py"


def run(*arguments, at, path):
    """Run a program without a meter in the directory `at`, with `path` on Python's search path."""
    return subprocess.run(
        [sys.executable, *arguments, *(() if arguments[0] == "-c" else ("--meter", "none"))],
        env={**os.environ, "PYTHONPATH": str(path)},
        cwd=at,
        capture_output=True,
        text=True,
        check=False,
    )


def test_lean_runs_without_torch(trace, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['torch'] = None\n")
    program = ROOT / "hw_profile" / "pi_bench.py"
    done = run(program, "--replay", trace, "--seconds", "0.2", "--runtime", "lean", at=tmp_path, path=tmp_path)
    assert done.returncode == 0, done.stderr
    refused = run(program, "--replay", trace, "--out", "other", at=tmp_path, path=tmp_path)
    assert refused.returncode == 2
    standard = run(program, "--runtime", "lean", "--out", "third", at=tmp_path, path=tmp_path)
    assert standard.returncode == 2
    assert standard.stderr.startswith("error: replay: the standard trace needs torch")
    assert refused.stderr == "error: runtime: torch needs torch, which is not installed; allowed: lean\n"


@pytest.mark.parametrize("runtime", ["torch", "lean"])
def test_a_frozen_client_keeps_nothing_for_a_backward_pass(runtime, tmp_path, arrays):
    dataset, taken = make_dataset("tiny", "made up", arrays, image_size=32), {}
    for client_lr in (0.0, 0.06):
        simulation = Simulation(RunConfig(**{**TINY, **PAPER, "rounds": 1, "client_lr": client_lr}), dataset)
        path = tmp_path / f"trace-{client_lr}"
        with recorder_of(simulation, None, path):
            list(simulation.rounds())
        assert replay(path, runtime) < 1e-5
        trace = Trace(path)
        taken[client_lr] = tensor_bytes(make_client(trace.about, runtime, precision="fp32"), trace, runtime)
    kept = memory(simulation.model.client, (3, 32, 32), TINY["batch_size"]).activations
    assert taken[0.0] < taken[0.06] - kept / 2


def test_nothing_else_goes_with_a_log(tmp_path, capsys):
    (tmp_path / "log.csv").write_text("time,power\n")
    log = f"csv:{tmp_path / 'log.csv'}"
    for content, flags, message in (
        ("[]", [], "is no result"),
        ('{"spans": null}', [], "is no result"),
        ("{", [], "is no result"),
        ("{}", ["--seconds", "3"], "seconds: has no effect on an earlier result"),
        ("{}", ["--seconds", "10"], "seconds: has no effect on an earlier result"),  # as by default
        ("[" * 10**5, [], "is no result (cannot be read as JSON (it is nested too deeply))"),
    ):
        (tmp_path / "result.json").write_text(content)
        assert pi_bench.main(["--add-log", str(tmp_path), "--meter", log, *flags]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_a_sample_of_times_is_bounded():
    times = Times()
    for index in range(3 * _SAMPLE):
        times.add(float(index))
    found = times.spread()
    assert found["count"] == 3 * _SAMPLE
    assert found["mean"] == pytest.approx((3 * _SAMPLE - 1) / 2)
    assert found["median"] == pytest.approx(1.5 * _SAMPLE, rel=0.01)
    assert len(times._sample) < _SAMPLE


def test_sessions():
    about = {"session": {"steps": 7200, "bytes_up": 1, "bytes_down": 2}}
    whole = with_charge(session(about, 0.5), 5.0, "rapl ±5%")
    assert whole["seconds"] == 3600
    assert whole["wh"] == pytest.approx(5.0)
    assert whole["mah_at_5v"] == pytest.approx(1000.0)
    assert whole["share_of_10000_mah"] == pytest.approx(5 / 37)
    assert [duration(seconds) for seconds in (5.0, 90.0, 5400.0)] == ["5.0 s", "1.5 min", "1.5 h"]


@pytest.mark.parametrize(
    ("environment", "cores", "threads", "warns"),
    [
        ({}, 4, None, False),  # the runtime uses all four by itself
        ({}, 2, 2, False),
        ({"OMP_NUM_THREADS": "2"}, 2, None, False),
        ({"OMP_NUM_THREADS": "3"}, 2, None, True),
        ({"MKL_NUM_THREADS": "many", "OPENBLAS_NUM_THREADS": "8"}, 1, None, True),
    ],
)
def test_threads_are_at_most_the_cores_that_the_process_may_use(
    monkeypatch, caplog, environment, cores, threads, warns
):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(replaying, "usable_cores", lambda machine: cores)
    for name in replaying.THREADS:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert replaying._default_threads(None) == threads
    warned = [record.getMessage() for record in caplog.records]
    assert len(warned) == warns
    assert all(f"may use {cores} core" in text for text in warned)


def test_more_threads_than_pinned_cores_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0}, raising=False)
    assert bench("--threads", 2, "--meter", "none") == 2
    expected = "error: threads: 2 are more than the cores that this process may use; allowed: 1\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    "watts", [[-2.0], [-2.0, -3.0], [5.0, -1.0], [0.0, 0.0], [0.0, -0.01], [1e-9, -100.0], [5.0], [0, -1e-3]]
)
def test_power_of_any_sign_is_drawn(watts):
    shown, latest = power_text(watts, "ina219 ±2%"), "0.00 W" if watts[-1] == -1e-3 else f"{watts[-1]:.2f} W"
    assert shown.startswith(f"{latest:>8}")
    assert ("VIN+ and VIN- swapped?" in shown) == (min(watts) < 0)
    line = shown.split()[2]
    heights = [_LEVELS.index(block) for block in line]
    assert len(heights) == len(watts)
    assert heights.index(max(heights)) == watts.index(max(watts))
    places = re.findall(
        r"[-\d.]+,([-\d.]+)", plots.curve("power", list(enumerate(watts)), "W", {}).split("<polyline")[-1]
    )
    assert all(44 <= float(y) <= 210 for y in places)
    view = LiveView(Console(file=io.StringIO(), width=80), "title", 10.0, "ina219 ±2%")
    view.show("working", watts=watts, seconds=1.0, steps=1)
    view._live.console.print(view._render())
    assert f" {latest}" in view._live.console.file.getvalue()


def test_plots_are_svg():
    from xml.etree import ElementTree  # noqa: PLC0415

    now = time.time()
    for picture in (
        plots.bars("a & b", {"one": 1.0, "none": 0.0}, "ms", {"one": 2.0}),
        plots.curve("power", [(now, 1.0), (now + 2, 3.0)], "W", {"work": (now + 0.5, now + 1)}),
    ):
        root = ElementTree.fromstring(picture)
        assert root.tag.endswith("svg")
    bars = ElementTree.fromstring(plots.bars("t", {"one": 1.0, "two": 2.0}, "ms"))
    page, *widths = (float(box.get("width")) for box in bars.iter("{http://www.w3.org/2000/svg}rect"))
    assert widths[1] < page
    assert widths[1] == pytest.approx(2 * widths[0], rel=1e-3)


@pytest.mark.parametrize(
    ("before", "after", "flags"),
    [
        ([], [], []),
        (None, None, None),
        (["throttled", "throttled since boot"], ["throttled", "throttled since boot"], ["throttled"]),
        (["throttled", "throttled since boot"], ["throttled since boot"], ["throttled"]),
        (["under-voltage since boot"], ["under-voltage since boot", "throttled since boot"], ["throttled since boot"]),
    ],
)
def test_what_limits_the_board_before_and_after_the_work_limits_it_in_between(before, after, flags):
    assert replaying._new_flags(SimpleNamespace(throttling_before=before, throttling=after)) == flags
