"""A client's part in a run, recorded: held to a loop over ordinary modules, and read without PyTorch."""

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from simsfl import RunConfig, Simulation
from simsfl.algorithm.single_client import SingleClient
from simsfl.cli import run
from simsfl.runs.client_trace import STATE, VIEWS, Trace, checksums
from tests.conftest import TINY, flags
from tests.simulations import recorder_of

SETTINGS = {
    "plain": {},
    "cut 2, bottleneck": {"cut_layer": 2, "bottleneck": "C4S2"},
    "aligned": {"align_momentum": True},
    "batch norm": {"norm": "batch", "weight_standardisation": False},
    "loop": {"engine": "loop"},
    "mixing": {"divergence_tau": 0.5},
    "supervised": {"supervised": True},
    "frozen": {"client_lr": 0.0, "norm": "batch"},
    "unequal": {"unequal": "0.4_0.6|3|0.5_0.5", "cohort": 4},
    "bf16": {"precision": "bf16", "image_size": 16},
    "saving": {"loss_threshold": 1e6, "cohort": 8, "rounds": 14},
}


def recorded(setting, dataset, path, client=None):
    """Train a run of four rounds and record a client; return the simulation, the recorder and the trace."""
    config = RunConfig(**{**TINY, "rounds": 4, **setting})
    simulation = Simulation(config, dataset)
    with recorder_of(simulation, client, path) as recorder:
        list(simulation.rounds())
    return simulation, recorder, Trace(path)


def replayed(simulation, trace):
    """Replay a trace with ordinary modules and `torch.optim.SGD`; return the largest differences from what it holds."""
    model, optimiser, differences = simulation.model.client, trace.about["optimiser"], []
    precision = simulation.parts.hyper.precision
    for visit in trace.visits:
        state = {name: torch.from_numpy(visit.begin[name].copy()) for name in STATE}
        online = model.module(state["online"], state["online_statistics"])
        momentum = model.module(state["momentum"], state["momentum_statistics"])
        sgd = torch.optim.SGD(
            online.parameters(),
            lr=1.0,
            momentum=optimiser["momentum"],
            weight_decay=optimiser["weight_decay"],
            foreach=False,
        )
        for parameter, velocity in zip(online.parameters(), model.named(state["velocity"]).values(), strict=True):
            sgd.state[parameter]["momentum_buffer"] = velocity
        syncs = {sync.step: sync for sync in visit.syncs}

        def check(names, state=state):
            for name, expected in names.items():
                if expected.size:
                    differences.append(np.abs(state[name].numpy() - expected).max() / max(np.abs(expected).max(), 1e-9))

        for step in range(visit.steps):
            views = simulation.parts.plan(0).groups[0].views
            own = type(views)(**{name: torch.from_numpy(visit.views[name][step])[:, None] for name in VIEWS})
            images = simulation.dataset.train.augmented(torch.from_numpy(visit.pixels[step])[None], own)[:, 0]
            with simulation.parts.hyper.autocast(torch.device("cpu")):
                smashed = online(images[0])
                for m, p in zip(momentum.parameters(), online.parameters(), strict=True):
                    m.data.mul_(optimiser["tau"]).add_(p.data, alpha=1 - optimiser["tau"])
                sent = [smashed, momentum(images[1])] if len(visit.checksums[step]) == 2 else [smashed]
            for view, expected in zip(sent, visit.checksums[step], strict=True):
                found = checksums(view.detach().to(precision).float().numpy())
                differences.append(np.abs(found - expected).max() / np.abs(expected).max())
            if visit.learns:
                sgd.param_groups[0]["lr"] = float(visit.lr[step])
                sgd.zero_grad()
                smashed.backward(torch.from_numpy(visit.gradient(step)).to(smashed.dtype))
                sgd.step()
            if step == visit.steps - 1:
                check(visit.end)
            if step in syncs:
                check(syncs[step].sent)
                for name, array in syncs[step].received.items():
                    state[name].copy_(torch.from_numpy(array))
    return max(differences)


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_the_work_done_again_comes_to_the_same(setting, dataset, arrays, tmp_path):
    if "image_size" in setting:
        from simsfl.data import make_dataset  # noqa: PLC0415

        dataset = make_dataset("tiny", "made up", arrays, image_size=setting["image_size"])
    simulation, recorder, trace = recorded(setting, dataset, tmp_path / "trace")
    assert trace.visits
    assert trace.about["client"] == recorder.client
    assert replayed(simulation, trace) < (0.02 if "precision" in setting else 2e-5)
    if "loss_threshold" in setting:  # in the last rounds no gradients come in, then clients do nothing
        assert {visit.learns for visit in trace.visits} == {True, False}


def test_a_visit_for_each_round_that_the_client_takes_part_in(dataset, tmp_path):
    config = RunConfig(**{**TINY, "rounds": 6})
    simulation = Simulation(config, dataset)
    cohorts = [simulation.parts.plan(index).cohort.tolist() for index in range(6)]
    client = cohorts[1][2]
    with recorder_of(simulation, client, tmp_path / "trace"):
        list(simulation.rounds())
    trace = Trace(tmp_path / "trace")
    assert len(trace.visits) == sum(client in cohort for cohort in cohorts)
    assert trace.steps == len(trace.visits) * simulation.parts.steps
    first = simulation.parts.plan(1).groups[0]
    indices = first.indices[:, 2]
    np.testing.assert_array_equal(
        trace.visits[sum(client in cohort for cohort in cohorts[:1])].pixels,
        simulation.dataset.train.pixels[indices].numpy(),
    )


def test_recording_changes_nothing(dataset, tmp_path):
    plain = Simulation(RunConfig(**TINY), dataset)
    list(plain.rounds())
    simulation, *_ = recorded({"rounds": TINY["rounds"]}, dataset, tmp_path / "trace")
    for name, tensor in plain.state.tensors().items():
        torch.testing.assert_close(simulation.state.tensors()[name], tensor, rtol=0, atol=0)


def test_a_descent_is_that_of_torchs_sgd():
    torch.manual_seed(0)
    module, other = torch.nn.Linear(7, 5), torch.nn.Linear(7, 5)
    other.load_state_dict(module.state_dict())
    velocity = [torch.zeros_like(parameter) for parameter in module.parameters()]
    client = SingleClient(module, module, velocity)
    sgd = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, foreach=False)
    for _ in range(5):
        x = torch.randn(3, 7)
        for one in (module, other):
            one(x).square().sum().backward()
        client.descend(0.1, 0.9, 0.01)
        sgd.step()
        sgd.zero_grad()
    for mine, theirs in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_checksums_are_means_of_interleaved_values():
    smashed = np.arange(2 * 3 * 8 * 8, dtype=np.float32).reshape(2, 3, 8, 8)
    found = checksums(smashed)
    assert found.shape == (2, 64)
    assert found[1, 5] == smashed[1].ravel()[5::64].mean()
    assert checksums(np.ones((1, 3, 5, 5))).shape == (1, 1)


def test_a_trace_is_read_without_torch(dataset, tmp_path):
    recorded({}, dataset, tmp_path / "trace")
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from simsfl.runs.client_trace import Trace\n"
        "print(Trace(sys.argv[1]).visits[0].gradient(0).shape)"
    )
    output = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "trace"], check=True, capture_output=True, text=True
    )
    assert output.stdout.startswith("(2, ")
    with zipfile.ZipFile(tmp_path / "trace") as file:
        assert json.loads(file.read("trace.json"))["network"]["arch"] == "resnet8"


def rewritten(path, change):
    """Write the trace anew after `change`, a function of the content of ``trace.json`` and of the arrays by name."""
    with zipfile.ZipFile(path) as file:
        content = {name: file.read(name) for name in file.namelist()}
    about = json.loads(content.pop("trace.json"))
    change(about, content)
    with zipfile.ZipFile(path, "w") as file:
        for name, own in {**content, "trace.json": json.dumps(about)}.items():
            file.writestr(name, own)


def array_of(name, change):
    """Return a change of one array of the first visit."""

    def apply(about, content):
        file = io.BytesIO()
        np.save(file, change(np.load(io.BytesIO(content[f"visits/0/{name}.npy"]))))
        content[f"visits/0/{name}.npy"] = file.getvalue()

    return apply


WRONG = {
    "no network": lambda about, content: about.pop("network"),
    "no width": lambda about, content: about["network"].pop("width"),
    "no shapes": lambda about, content: about.update(shapes=[]),
    "visits": lambda about, content: about.update(visits="all"),
    "too many visits": lambda about, content: about.update(visits=about["visits"] + 1),
    "no pixels": lambda about, content: content.pop("visits/0/pixels.npy"),
    "no gradient": lambda about, content: content.pop("visits/0/gradients/1.npy"),
    "other views": lambda about, content: content.update({"visits/0/views/crop.npy": content["visits/0/lr.npy"]}),
    "other weights": lambda about, content: content.update(
        {"visits/0/begin/online.npy": content["visits/0/begin/online_statistics.npy"]}
    ),
    "an unknown precision": lambda about, content: about["optimiser"].update(precision="fp8"),
    "words for counts": lambda about, content: about["session"].update(steps="many"),
    "other averages": lambda about, content: content.update(
        {"visits/0/sync-4/sent/online.npy": content["visits/0/begin/online_statistics.npy"]}
    ),
    "strange averages": lambda about, content: content.update(
        {"visits/0/sync-4/sent/colour.npy": content["visits/0/begin/online.npy"]}
    ),
    "pickled": lambda about, content: content.update({"visits/0/learns.npy": pickled()}),
    "a thousand million visits": lambda about, content: about.update(visits=10**9),
    "no number of visits": lambda about, content: about.update(visits=-1),
    "half a visit": lambda about, content: about.update(visits=0.5),
    "nan for counts": lambda about, content: about["session"].update(steps=float("nan")),
    "negative counts": lambda about, content: about["session"].update(bytes_up=-1),
    "counts beyond all numbers": lambda about, content: about["cost"]["flops"].update(query=10**400),
    "names that are none": lambda about, content: about["cost"]["memory"].update({"\x1b]0;title\x07": 1}),
    "infinite momentum": lambda about, content: about["optimiser"].update(momentum=float("inf")),
    "words for tau": lambda about, content: about["optimiser"].update(tau="0.99"),
    "no deviation": lambda about, content: about["images"].update(std=[0, 1, 1]),
    "four channels": lambda about, content: about["images"].update(mean=[0.5] * 4),
    "no architecture": lambda about, content: about["network"].update(arch="resnet7"),
    "an endless network": lambda about, content: about["network"].update(width=10**9),
    "a list of options": lambda about, content: about["network"].update(options=[1]),
    "huge images": lambda about, content: about["network"].update(image_size=10**6),
    "a list for a network": lambda about, content: about.update(network=[]),
    "negative shapes": lambda about, content: about["shapes"].update({next(iter(about["shapes"])): [-1, -4]}),
    "shapes of text": lambda about, content: about["shapes"].update({next(iter(about["shapes"])): ["4"]}),
    "nan for weights": array_of("begin/online", lambda array: array * np.nan),
    "infinite gradients": array_of("gradients/1", lambda array: array + np.float32(np.inf)),
    "doubled gradients": array_of("gradients/1", lambda array: array.astype(np.float64)),
    "nan for checksums": array_of("checksums", lambda array: array * np.nan),
    "negative rate": array_of("lr", lambda array: -1 - array),
    "no steps": array_of("lr", lambda array: array[:0]),
    "more steps": array_of("lr", lambda array: np.tile(array, 2)),
    "negative averagings": array_of("syncs", lambda array: array - 10),
    "averagings behind the end": array_of("syncs", lambda array: array + 10),
    "averagings twice": array_of("syncs", lambda array: array * 0),
    "averagings at half steps": array_of("syncs", lambda array: array + 0.5),
    "pixels of floats": array_of("pixels", lambda array: array.astype(np.float32)),
    "pixels without colours": array_of("pixels", lambda array: array[:, :, 0]),
    "crops outside": array_of("views/crop", lambda array: array + 1000),
    "crops of nothing": array_of("views/crop", lambda array: array * 0),
    "nan for crops": array_of("views/crop", lambda array: array * np.nan),
    "other blends": array_of("views/blends", lambda array: array + 1),
    "other slots": array_of("views/hue_slot", lambda array: array - 4),
    "negative blur": array_of("views/sigma", lambda array: array - 10),
    "flips of floats": array_of("views/flip", lambda array: array.astype(np.float32)),
    "two truths": array_of("learns", lambda array: np.array([True, False])),
    "truths of numbers": array_of("learns", lambda array: np.array([2.0])),
}
"""What is changed in a trace, by name."""


def pickled():
    """Return the bytes of an ``.npy`` file that can be read only with pickle."""
    file = io.BytesIO()
    np.save(file, np.array([{}], dtype=object))
    return file.getvalue()


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory):
    """Return the path of a trace, not to be changed."""
    path = tmp_path_factory.mktemp("whole") / "trace"
    recorded({}, dataset, path)
    return path


def refused(path, words=""):
    with pytest.raises(
        ValueError, match=r"^replay: .*; allowed: a file that simsfl run --record-trace wrote$"
    ) as caught:
        Trace(path)
    assert words in str(caught.value)


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_a_trace_that_does_not_fit_together_is_refused(change, whole, tmp_path):
    shutil.copy(whole, tmp_path / "trace")
    rewritten(tmp_path / "trace", change)
    refused(tmp_path / "trace")


def test_a_trace_that_is_written_anew_is_the_same(whole, tmp_path):
    """What is refused above is not refused for being rewritten."""
    shutil.copy(whole, tmp_path / "trace")
    rewritten(tmp_path / "trace", lambda about, content: content.update({"visits/0/begin/extra.npy": b"ignored"}))
    again, trace = Trace(tmp_path / "trace"), Trace(whole)
    for one, other in zip(trace.visits, again.visits, strict=True):
        assert list(other.begin) == list(STATE)
        for name, array in one.begin.items():
            np.testing.assert_array_equal(array, other.begin[name])


TEXTS = ("[" * 100_000, "[]", "{", '{"format": NaN}', '{"format": 1, "client": 1e999}', "9" * 9000)


@pytest.mark.parametrize("text", TEXTS)
def test_hostile_json(text, tmp_path):
    with zipfile.ZipFile(tmp_path / "trace", "w") as file:
        file.writestr("trace.json", text)
    refused(tmp_path / "trace")


def test_nothing_large_is_read_from_a_trace(whole, tmp_path):
    """Neither what a file with holes holds, nor what a small one would hold if it were unpacked."""
    path = tmp_path / "trace"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("trace.json", b" " * 10_000_000)
    assert path.stat().st_size < 20_000
    refused(path, "compressed entry 'trace.json'")

    size = 1 << 33
    entry = zipfile.ZipInfo("trace.json")
    with path.open("wb") as stream, zipfile.ZipFile(stream, "w") as file:
        with file.open(entry, "w", force_zip64=True) as member:
            member.write(b"{")
        start = stream.tell()
        stream.truncate(start + size)
        entry.file_size = entry.compress_size = size + 1
        file.start_dir = start + size
    assert path.stat().st_size > size
    refused(path, f"{size + 1:,} bytes, and {1 << 24:,} at most are possible")


def test_an_array_beyond_all_machines(whole, tmp_path):
    """A file with holes that holds a batch of a thousand million images."""
    path, size = tmp_path / "trace", 10**12
    shutil.copy(whole, path)
    rewritten(path, lambda about, content: content.pop("visits/0/pixels.npy"))
    header = str({"descr": "|u1", "fortran_order": False, "shape": (1, size)}).ljust(117).encode() + b"\n"
    with path.open("r+b") as stream, zipfile.ZipFile(stream, "a") as file:
        entry = zipfile.ZipInfo("visits/0/pixels.npy")
        with file.open(entry, "w", force_zip64=True) as member:
            member.write(b"\x93NUMPY\1\0v\0" + header)
        start = stream.tell()
        stream.truncate(start + size)
        entry.file_size = entry.compress_size = size + 128
        file.start_dir = start + size
    refused(path, f"{size:,} bytes, and {1 << 33:,} at most are possible")


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero"), tmp_path):
        with pytest.raises(OSError, match="not a regular file"):
            Trace(path)


@pytest.mark.parametrize("damage", ["cut off", "flipped", "no zip", "other format"])
def test_a_damaged_trace_is_refused(damage, whole, tmp_path):
    path = tmp_path / "trace"
    content = bytearray(whole.read_bytes())
    if damage == "cut off":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[2000] ^= 1
        path.write_bytes(content)
    elif damage == "no zip":
        path.write_bytes(b"hello")
    else:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("trace.json", json.dumps({"format": 99}))
    refused(path)


def test_an_interrupted_round_is_recorded_as_far_as_it_went(dataset, tmp_path):
    simulation = Simulation(RunConfig(**TINY), dataset)
    with recorder_of(simulation, None, tmp_path / "trace"):
        steps = simulation.round()
        next(steps), next(steps)
    trace = Trace(tmp_path / "trace")
    assert trace.steps == simulation.progress.step_index
    assert replayed(simulation, trace) < 2e-5


def test_nothing_is_left_of_a_recording_that_failed(dataset, tmp_path):
    simulation = Simulation(RunConfig(**TINY), dataset)
    with pytest.raises(RuntimeError), recorder_of(simulation, None, tmp_path / "trace"):
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_a_full_disk_ends_the_recording_and_not_the_run(dataset, tmp_path, monkeypatch):
    def full(self, name, array):
        raise OSError(28, "No space left on device")

    simulation = Simulation(RunConfig(**TINY), dataset)
    with recorder_of(simulation, None, tmp_path / "trace") as recorder:
        next(simulation.round())
        monkeypatch.setattr("simsfl.runs.client_trace.TraceWriter.put", full)
        list(simulation.rounds())
    assert simulation.progress.round_index == TINY["rounds"]
    assert "No space left" in str(recorder.problem)
    assert not list(tmp_path.iterdir())


def test_a_poor_clients_trace_is_of_the_poor(dataset, tmp_path):
    simulation, _, trace = recorded({**SETTINGS["unequal"], "rounds": 2}, dataset, tmp_path / "trace", client=7)
    rich, poor = simulation.parts.groups
    assert trace.visits[0].batch_size == poor.batch_size < rich.batch_size
    assert trace.about["session"]["steps"] == round(2 * poor.cohort / len(poor.clients) * simulation.parts.steps)


def test_the_program(npz, tmp_path, capsys):
    file = tmp_path / "trace"
    argv = flags(dataset=npz, out=tmp_path / "out", **TINY, dashboard="off", record_trace=file)
    assert run.main(argv) == 0
    assert Trace(file).steps
    capsys.readouterr()
    for changed, message in (
        ({"record_trace": file}, f"record_trace: {file} exists already"),
        ({"record_trace": tmp_path / "none" / "trace"}, "cannot be written: there is no directory"),
        ({"trace_client": 3}, "trace_client: has no effect"),
        ({"record_trace": tmp_path / "a", "trace_client": 8}, "trace_client: 8 is no client; allowed: 0 to 7"),
        ({"record_trace": tmp_path / "a", "ressfl_lambda": 1.0}, "record_trace: what simulated attackers"),
        ({"record_trace": tmp_path / "a", "method": "fl-byol"}, "record_trace: clients of fl-byol"),
        ({"record_trace": tmp_path / "a", "rounds": 1, "cohort": 1, "trace_client": 0}, "takes part in none"),
    ):
        settings = {**TINY, "out": tmp_path / "other", **changed}
        if "method" in changed:
            settings.pop("queue_length")
        if "trace_client" in changed and changed.get("cohort") == 1:
            simulation = Simulation(replace(RunConfig(**TINY), rounds=1, cohort=1, dataset=str(npz)))
            taken = simulation.parts.plan(0).cohort.tolist()
            settings["trace_client"] = (taken[0] + 1) % 8
        assert run.main(flags(dataset=npz, **settings)) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not (tmp_path / "other").exists()
