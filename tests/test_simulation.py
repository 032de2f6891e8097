"""Whole rounds: engines agree, randomness is addressed, state persists, records are as promised."""

import json
import subprocess
import sys
import threading
from collections import deque
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from simsfl import RunConfig, Simulation
from simsfl.setup import parts
from simsfl.algorithm import communication, plan, server, step
from simsfl.algorithm.aggregation import is_sync_step
from simsfl.algorithm.state import scatter_
from simsfl.cli import run
from simsfl.cost.model import client_flops
from simsfl.data import Arrays, make_dataset
from simsfl.data.partition import Partition, make_partition
from simsfl.engine import tuning
from simsfl.kernels import CHOICES
from simsfl.models import split_model
from simsfl.runs.metrics import EvaluationRecord, RoundRecord, StepRecord, read_records, to_dict
from simsfl.setup import assembly
from simsfl.rounds.progress import NonFiniteLossError
from tests.conftest import TINY, flags

SUMMARY_KEYS = [
    "preset",
    "method",
    "dataset",
    "clients",
    "cohort",
    "rounds",
    "steps",
    "loss",
    "contrast_top1",
    "knn_top1",
    "linear_top1",
    "seconds",
    "client_steps_per_second",
    "images_per_second",
    "peak_memory_bytes",
    "bytes_up_per_client",
    "bytes_down_per_client",
    "client_flops_per_step",
]


def trained(config, dataset):
    simulation = Simulation(config, dataset)
    records = list(simulation.train())
    return simulation, records


def assert_same_state(one, two):
    tensors = two.state.tensors()
    for name, tensor in one.state.tensors().items():
        assert torch.equal(tensor, tensors[name]), name


def assert_moved_alike(one, two, start, share):
    """Each tensor of two states differs by at most a share of how far it moved from the start."""
    first, second, origin = (simulation.state.tensors() for simulation in (one, two, start))
    for name, tensor in first.items():
        if tensor.is_floating_point():
            moved = (second[name] - origin[name]).norm()
            assert (tensor - second[name]).norm() <= share * moved, name
        else:
            assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("feature_sharing", [True, False])
def test_engines_agree_over_whole_rounds(config, dataset, feature_sharing):
    config = replace(config, feature_sharing=feature_sharing, rounds=1, lr=0.005)
    start, stacked, loop = (
        Simulation(replace(config, engine=engine), dataset, dtype=torch.float64)
        for engine in (config.engine, config.engine, "loop")
    )
    for simulation in (stacked, loop):
        list(simulation.rounds())
    assert_moved_alike(stacked, loop, start, 1e-6)


def test_the_chunk_size_changes_no_more_than_rounding(config, dataset, monkeypatch):
    config = replace(config, rounds=1, lr=0.005)
    one, _ = trained(config, dataset)
    monkeypatch.setattr(tuning, "CHUNKS", (2,))
    CHOICES.clear()
    two, _ = trained(config, dataset)
    assert (one.hyper.chunk, two.hyper.chunk) == (3, 2)
    assert_moved_alike(one, two, Simulation(config, dataset), 0.05)


def test_the_same_seed_gives_the_same_bits_and_global_generators_do_not_matter(config, dataset):
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - the global generator is what must not matter
    one, records = trained(config, dataset)
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    two, again = trained(config, dataset)
    assert records == again
    assert_same_state(one, two)
    _, other = trained(replace(config, seed=1), dataset)
    assert other != records


def test_records_come_in_order(config, dataset):
    _, records = trained(replace(config, eval_every=2, linear_probe=True, probe_epochs=2), dataset)
    steps = ["step"] * 5
    evaluated = [*steps, "evaluation", "round"]
    first = [*steps, "evaluation", "round"]
    assert [r.event for r in records] == [*first, *evaluated, *evaluated, "probe"]
    first, last = records[5], records[-1]
    assert isinstance(first, EvaluationRecord)
    assert first.round == 0
    assert first.pixel_knn_top1 == 100.0  # the made-up classes differ in colour
    assert last.round == 3
    for r in (1, 2, 3):
        losses = [s.loss for s in records if isinstance(s, StepRecord) and s.round == r]
        (done,) = [d for d in records if isinstance(d, RoundRecord) and d.round == r]
        assert done.loss == pytest.approx(np.mean(losses), rel=1e-6)


def test_every_clients_online_model_is_the_average_and_the_rest_persists(config, dataset):
    simulation = Simulation(config, dataset)
    before = {name: tensor.clone() for name, tensor in simulation.state.tensors().items()}
    next(simulation.rounds())
    state = simulation.state
    took_part = set(state.cohort.ids.tolist())
    assert len(took_part) == config.cohort
    torch.testing.assert_close(state.cohort.online, state.clients.online.expand_as(state.cohort.online))
    for client in range(config.clients):
        untouched = torch.equal(state.clients.momentum[client], before["clients.momentum"][client])
        assert untouched == (client not in took_part)
        assert (state.clients.velocity[client] == 0).all() == (client not in took_part)
        assert state.clients.participation[client] == (client in took_part)


def test_aligned_momentum_is_one_model_for_all(config, dataset):
    simulation, _ = trained(replace(config, align_momentum=True), dataset)
    state = simulation.state
    assert len(state.clients.momentum) == 1
    torch.testing.assert_close(state.cohort.momentum, state.clients.momentum.expand_as(state.cohort.momentum))


def test_memory_is_flat_nothing_is_rebound(config, dataset):
    simulation = Simulation(config, dataset)
    where = {name: tensor.data_ptr() for name, tensor in simulation.state.tensors().items()}
    list(simulation.rounds())
    assert {name: tensor.data_ptr() for name, tensor in simulation.state.tensors().items()} == where


@pytest.mark.parametrize("cohort", [1, 8])
def test_cohorts_of_one_and_of_all(cohort, config, dataset):
    _, records = trained(replace(config, cohort=cohort), dataset)
    assert all(np.isfinite(r.loss) for r in records if isinstance(r, StepRecord))


def test_bf16_keeps_fp32_weights_and_stays_near_fp32(config, arrays):
    dataset = make_dataset("larger", "made up", arrays, image_size=16)
    single, exact = trained(config, dataset)
    half, records = trained(replace(config, precision="bf16"), dataset)
    assert half.state.server.online.dtype == half.state.clients.online.dtype == torch.float32
    assert half.cost.image_bytes * 2 == single.cost.image_bytes
    assert all(np.isfinite(r.loss) for r in records if isinstance(r, StepRecord))
    losses = [r.loss for records in (exact, records) for r in records if isinstance(r, StepRecord)][::15]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert losses[0] != losses[1]


def test_bf16_on_images_too_small_for_it(config, dataset):
    with pytest.raises(ValueError, match=r"precision: bf16 .* 8x8; .* 16"):
        Simulation(replace(config, precision="bf16"), dataset)


@pytest.mark.parametrize("poisoned", [0, 2])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(npz, tmp_path, capfd, monkeypatch, poisoned):
    honest, calls = step.train_step, []

    def train_step(*arguments):
        outcome = honest(*arguments)
        calls.append(1)
        return replace(outcome, loss=outcome.loss * float("nan")) if len(calls) > 5 + poisoned else outcome

    monkeypatch.setitem(parts.TRAIN_STEPS, "mocosfl", (train_step, None))
    out = tmp_path / "out"
    assert run.main([*flags(dataset=npz, out=out, **TINY), "--dashboard", "off"]) == 1
    error = capfd.readouterr().err
    assert f"round 2, step {poisoned + 1}" in error
    assert error.count("\n") == 1
    manifest = json.loads((out / "checkpoints" / "manifest.json").read_text())
    assert manifest["checkpoints"][0]["meta"]["round"] == 1
    simulation = Simulation.load(out)
    assert simulation.progress.round_index == 1
    assert simulation.damaged == []
    assert json.loads((out / "live.json").read_text())["activity"] == "failed"


@pytest.mark.parametrize(("classes", "shards"), [(3, 1), (10, 2), (12, 2), (100, 20)])
def test_a_client_holds_a_fifth_of_the_classes_by_rule(classes, shards, config):
    rng = np.random.default_rng(0)
    labels = np.arange(8 * 20 * 100) % classes
    images = rng.integers(0, 255, (len(labels), 8, 8, 3)).astype(np.uint8)
    names = tuple(map(str, range(classes)))
    data = make_dataset("many", "made up", Arrays(images, labels, images[:4], labels[:4], names))
    simulation = Simulation(replace(config, partition="shards"), data)
    held = (simulation.parts.partition.class_counts(labels) > 0).sum(axis=1)
    assert simulation.config.classes_per_client == shards
    assert "classes_per_client" in simulation.parts.by_rule
    assert held.max() <= 2 * shards  # a shard may go over into the next class


def test_library_raises_on_divergence(config, dataset):
    simulation = Simulation(replace(config, lr=1e30), dataset)
    with pytest.raises(NonFiniteLossError, match=r"round \d, step \d"):
        list(simulation.rounds())


def test_run_directory(npz, tmp_path, capfd):
    out = tmp_path / "out"
    assert run.main([*flags(dataset=npz, out=out, **TINY), "--dashboard", "off", "--linear-probe"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert set(SUMMARY_KEYS) <= summary.keys()
    assert summary["steps"] == 15
    assert 0 <= summary["linear_top1"] <= 100
    records = [record for record, _ in read_records(out / "metrics.jsonl")]
    assert {record["event"] for record in records} == {"step", "round", "evaluation", "probe"}
    assert records[-2]["loss"] == summary["loss"]
    recorded = json.loads((out / "config.json").read_text())
    config = RunConfig.load(out / "config.json")
    assert config.cohort == 3
    assert config.dataset == str(npz)
    assert recorded["versions"]["torch"] == torch.__version__
    assert len(recorded["dataset"]["sha256"]) == 64
    output = capfd.readouterr().out
    for word in ("preset", "dataset", "device", "engine", str(out / "summary.json")):
        assert word in output
    assert sum(line.startswith("round ") for line in output.splitlines()) == 3

    again = tmp_path / "again"
    assert run.main(["--config", str(out / "config.json"), "--out", str(again), "--dashboard", "off"]) == 0
    assert (again / "metrics.jsonl").read_bytes() == (out / "metrics.jsonl").read_bytes()


def test_a_profile_names_the_phases(npz, tmp_path, capfd):
    out = tmp_path / "out"
    argv = [*flags(dataset=npz, out=out, **TINY), "--dashboard", "off", "--profile", "4"]
    assert run.main(argv) == 0
    names = [event.get("name") for event in json.loads((out / "trace.json").read_text())["traceEvents"]]
    assert [names.count(phase) for phase in ("client forward", "server", "client backward")] == [4] * 3
    assert names.count("data") >= 4  # and the planning of a round
    assert "trace.json" in capfd.readouterr().out


def test_the_phases_explain_the_time(config, dataset):
    simulation = Simulation(config, dataset)
    list(simulation.rounds())
    assert sum(simulation.clock.seconds().values()) > 0.95 * simulation.progress.seconds


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("feature_sharing", [True, False])
def test_a_replayed_step_is_the_eager_one_and_never_waits(config, dataset, feature_sharing):
    config = replace(config, device="cuda", precision="fp32", engine="fused", rounds=2, lr=0.005)
    config = replace(config, feature_sharing=feature_sharing)
    eager, captured = Simulation(config, dataset), Simulation(config, dataset)
    eager.parts.train_step = step.train_step
    list(eager.rounds())
    next(captured.rounds())  # records
    assert captured.parts.train_step.recordings
    torch.cuda.set_sync_debug_mode("error")
    try:
        deque(captured._client_steps(), maxlen=0)  # a round, with its draws and averagings, but for reading its losses
    finally:
        torch.cuda.set_sync_debug_mode("default")
    replayed, _ = trained(config, dataset)
    assert_moved_alike(eager, replayed, Simulation(config, dataset), 0.05)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_what_is_evaluated_on_cuda_is_the_network_that_a_cpu_would_load(config, dataset, tmp_path):
    simulation = Simulation(replace(config, device="cuda", precision="fp32", engine="fused", rounds=1), dataset)
    list(simulation.rounds())
    simulation.save(tmp_path / "run")
    loaded = Simulation.load(tmp_path / "run", dataset, device="cpu")
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = loaded.encoder()(images)
    torch.testing.assert_close(simulation.encoder()(images.cuda()).cpu(), expected, rtol=1e-3, atol=1e-4)


@pytest.fixture
def drawn(monkeypatch):
    """Notes which rounds are drawn, and in which thread: "MainThread" or "plan_0"."""
    rounds, honest = [], parts.plan_round

    def plan_round(sources, round_index, **how):
        rounds.append((round_index, threading.current_thread().name))
        return honest(sources, round_index, **how)

    monkeypatch.setattr(parts, "plan_round", plan_round)
    return rounds


def ahead(rounds):
    """Draws ahead as on CUDA."""
    return plan.PlanAhead(torch.device("cpu"), rounds, threaded=True)


def test_rounds_drawn_ahead_are_the_same(config, dataset, drawn, tmp_path):
    """As on CUDA. A run that is resumed, or goes on from another round, draws that one itself."""
    expected, records = trained(config, dataset)
    assert drawn == [(r, "MainThread") for r in range(3)]
    del drawn[:]
    simulation = Simulation(config, dataset)
    simulation._plans = ahead(config.rounds)
    assert list(simulation.train()) == records
    assert_same_state(simulation, expected)
    assert drawn == [(0, "MainThread"), (1, "plan_0"), (2, "plan_0")]  # and none after the last
    del drawn[:]
    simulation = Simulation(config, dataset)
    simulation._plans = ahead(config.rounds)
    steps = simulation.round()
    for _ in range(2):
        next(steps)
    simulation.save(tmp_path / "run")
    loaded = Simulation.load(tmp_path / "run", dataset)
    loaded._plans = ahead(config.rounds)
    list(loaded.rounds())
    assert_same_state(loaded, expected)
    assert [one for one in drawn if one[1] == "MainThread"] == [(0, "MainThread")] * 2
    assert [r for r, thread in drawn if thread == "plan_0"] == [1, 1, 2]


def test_another_round_than_the_one_begun_is_drawn_at_once():
    plans, calls = ahead(9), []

    def draw(index):
        calls.append((index, threading.current_thread().name))
        return f"round {index}"

    for begun, taken in ((4, 4), (5, 8), (6, 6), (9, 9)):
        plans.begin(draw, begun)
        plans.begin(draw, begun)
        assert plans.take(draw, taken) == f"round {taken}"
    assert plans.take(draw, 6) == "round 6"  # each is given once
    (by_thread, at_once) = ([r for r, name in calls if name == thread] for thread in ("plan_0", "MainThread"))
    assert [r for r in by_thread if r != 5] == [4, 6]  # the thread may have begun with 5, or not
    assert at_once == [8, 9, 6]  # 9 is behind the last


def test_what_goes_wrong_in_drawing_ahead_is_raised_where_the_plan_is_used():
    plans = ahead(9)
    plans.begin(lambda index: 1 / index, 0)
    with pytest.raises(ZeroDivisionError):
        plans.take(lambda index: 1 / index, 0)
    assert plans.take(lambda index: "drawn", 0) == "drawn"


@pytest.mark.parametrize("seconds", [0.0, 0.5], ids=["idle", "at work"])
def test_a_program_ends_though_a_round_has_been_drawn_ahead(seconds):
    code = f"""
import time, torch
from simsfl.plan import PlanAhead
PlanAhead(torch.device("cpu"), 9, threaded=True).begin(lambda index: time.sleep({seconds}), 1)
time.sleep(0.2)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True)
    assert done.stderr == ""


def test_save_and_load_in_python(config, dataset, tmp_path):
    simulation = Simulation(config, dataset)
    steps = simulation.round()
    for _ in range(2):
        next(steps)  # in the middle of a round
    simulation.save(tmp_path / "run")
    rest = [to_dict(r) for r in simulation.rounds()]
    loaded = Simulation.load(tmp_path / "run", dataset)
    assert (loaded.progress.round_index, loaded.progress.step_index, loaded.damaged) == (0, 2, [])
    assert [to_dict(r) for r in loaded.rounds()] == rest
    assert_same_state(simulation, loaded)


@pytest.mark.parametrize(("steps", "syncs"), [(50, 1), (50, 10), (5, 2), (7, 3), (4, 9), (1, 1), (500, 10)])
def test_syncs_are_even_and_the_last_at_the_end(steps, syncs):
    at = [s + 1 for s in range(steps) if is_sync_step(s, steps, syncs)]
    assert len(at) == min(steps, syncs)
    assert at[-1] == steps
    gaps = np.diff([0, *at])
    assert gaps.max() - gaps.min() <= 1


def test_a_clients_draws_do_not_depend_on_the_others():
    partition = make_partition(np.arange(60) % 3, 6, kind="iid")

    def draw(cohort, batch_size=2):
        return plan.plan_round(
            [partition],
            4,
            groups=[plan.Group(range(6), cohort, batch_size)],
            steps=5,
            recipe="v2",
            image_size=8,
            crop_scale=0.2,
            seed=3,
            device=torch.device("cpu"),
        )

    some, everyone = draw(3), draw(6)
    for position, client in enumerate(some.cohort.tolist()):
        other = everyone.cohort.tolist().index(client)
        (one,), (two,) = some.groups, everyone.groups
        assert torch.equal(one.indices[:, position], two.indices[:, other])
        assert torch.equal(one.views.crop[:, :, position], two.views.crop[:, :, other])


def test_a_round_goes_once_through_a_clients_images_and_unequal_clients_keep_step():
    partition = Partition.of([np.arange(0, 4), np.arange(10, 16), np.arange(20, 28)])
    steps = plan.steps_per_round([partition], [plan.Group(range(3), 3, 2)])
    assert steps == 3  # of six images in the mean
    rng = np.random.default_rng(0)
    assert sorted(plan.passes(rng, partition[1], 6)) == list(range(10, 16))
    small = plan.passes(rng, partition[0], 6).tolist()
    assert sorted(small[:4]) == [0, 1, 2, 3]
    assert len(set(small[4:])) == 2
    large = plan.passes(rng, partition[2], 6).tolist()
    assert len(set(large)) == 6


def test_traffic_is_counted_to_the_byte(config, dataset):
    simulation, records = trained(replace(config, batch_size=2, syncs_per_round=2), dataset)
    parameters = simulation.model.client.size
    smashed = int(np.prod(simulation.model.smashed_shape))
    up = 5 * 2 * 2 * smashed * 4 + 2 * parameters * 4  # steps, images, views; averagings
    down = 5 * 2 * smashed * 4 + 2 * parameters * 4
    share = 3 * 3 / 8  # rounds * cohort / clients
    last = records[-1]
    assert isinstance(last, RoundRecord)
    assert last.bytes_up_per_client == round(up * share)
    assert last.bytes_down_per_client == round(down * share)


def test_what_supervised_clients_sent_is_learnt_again_with_its_labels(config, dataset, monkeypatch):
    monkeypatch.setattr(communication, "WARM_UP", 0)
    lessons, honest = [], server.classify

    def classify(model, central, smashed, labels, **how):
        lessons.append((smashed.sum().item(), labels.tolist()))
        return honest(model, central, smashed, labels, **how)

    monkeypatch.setattr(server, "classify", classify)
    config = replace(config, supervised=True, loss_threshold=50.0, rounds=4)
    simulation, records = trained(config, dataset)
    assert [r.communication for r in records if isinstance(r, RoundRecord)] == ["A", "A", "B", "C"]
    steps = simulation.parts.steps
    assert sorted(lessons[2 * steps : 3 * steps]) == sorted(lessons[3 * steps :])
    sent = [dataset.train_labels[rows].flatten().tolist() for rows in simulation.parts.plan(2).groups[0].indices]
    assert sent == [labels for _, labels in lessons[2 * steps : 3 * steps]]


def test_a_checkpoint_holds_what_was_sent_only_where_it_is_needed(config, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(communication, "WARM_UP", 0)
    simulation = Simulation(replace(config, loss_threshold=50.0, rounds=4), dataset)
    held = ""
    for done, _ in enumerate(simulation.rounds()):
        simulation.save(tmp_path / str(done))
        (file,) = (tmp_path / str(done)).glob("checkpoints/*.safetensors")
        with safe_open(file, framework="pt") as tensors:
            held += "y" if "sent.smashed" in tensors.keys() else "n"  # noqa: SIM118 - it is no dictionary
    assert held == "nnyy"  # the last two are before a round that sends nothing, and behind it
    loaded = Simulation.load(tmp_path / "2", dataset)
    list(loaded.rounds())
    assert_same_state(loaded, simulation)


def test_saving_needs_room_for_what_is_sent(config, dataset, monkeypatch):
    monkeypatch.setattr(assembly, "free_memory", lambda: 1000)
    with pytest.raises(ValueError, match=r"loss_threshold: 1 keeps the .* GB .* --client-state mmap"):
        Simulation(replace(config, loss_threshold=1.0), dataset)


def test_flops_of_a_single_convolution_by_hand():
    model = split_model(
        "resnet18", width=8, cut_layer=1, image_size=16, head="mlp", key_dim=8, generator=torch.Generator()
    )
    convolution, maps = 2 * (8 * 16 * 16) * (3 * 3 * 3), 8 * 16 * 16
    forwards, weights_gradient = 2 * (convolution + 8 * maps), convolution + 16 * maps
    assert client_flops(model, 16) == forwards + weights_gradient
    assert client_flops(model, 16, learns=False) == forwards


def test_scatter_after_gather_changes_nothing_for_others(config, dataset):
    simulation = Simulation(replace(config, feature_sharing=False), dataset)
    next(simulation.rounds())
    queues = simulation.state.queues.keys.clone()
    scatter_(simulation.state)
    assert torch.equal(queues, simulation.state.queues.keys)


def test_setting_up_does_not_import_the_compiler():
    """It takes a second and 200 MB; what runs on the meta device brings it in."""
    code = """
import sys
from tests import conftest
from simsfl import RunConfig, Simulation
Simulation(RunConfig(**conftest.TINY | {"dataset": "shapes"}))
sys.exit("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False).returncode == 0
