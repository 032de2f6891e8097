"""Replicas of the server: every engine agrees on them, and each is a server of its own.

Whole runs with replicas are held against the oracle in `test_rounds.py`.
"""

from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from simsfl import RunConfig, Simulation
from simsfl.algorithm import step
from simsfl.algorithm.initial import further_replicas
from simsfl.config.constraints import DEVICES, RECORDING, check
from tests.conftest import TINY

NEAR = {"rtol": 1e-7, "atol": 1e-9}
"""Tolerance between what two engines have learnt in float64."""


def config_of(replicas, **fields):
    """Return the config of a run with a cohort of four clients out of eight, which is averaged three times a round."""
    return RunConfig(**TINY | {"cohort": 4, "syncs_per_round": 3, "rounds": 2, "server_replicas": replicas} | fields)


def trained(config, dataset):
    """Return the simulation of a whole run in float64, and the losses of its steps."""
    simulation = Simulation(config, dataset, dtype=torch.float64)
    losses = []
    while simulation.progress.round_index < config.rounds:
        losses += [record.loss for record in simulation.round() if record.event == "step"]
        simulation.progress.finish_round(simulation.parts)
    return simulation, losses


@pytest.mark.parametrize(("replicas", "averaged"), [(1, False), (2, False), (2, True), (4, False), (4, True)])
def test_stacked_engines_equal_the_loop(replicas, averaged, dataset):
    config = config_of(replicas, average_replicas=averaged)
    expected, losses = trained(replace(config, engine="loop"), dataset)
    for engine in ("fused:grouped", "vmap"):
        found, own_losses = trained(replace(config, engine=engine), dataset)
        assert own_losses == pytest.approx(losses, rel=1e-9)
        tensors = found.state.tensors()
        for name, tensor in expected.state.tensors().items():
            torch.testing.assert_close(tensors[name], tensor, **NEAR, msg=f"{engine}, {name}: {{}}".format)


@pytest.mark.parametrize(
    "fields",
    [
        {"objective": "barlow-twins"},
        {"objective": "supervised"},
        {"dropout": 0.5, "straggler": 0.3, "feature_sharing": False},
        {"defence": "clip+gaussian", "ressfl_lambda": 1.0, "ressfl_decoder": "custom", "ssim_borders": "mirror"},
    ],
    ids=lambda fields: next(iter(fields.values())),
)
def test_replicas_go_together_with_other_settings(fields, dataset):
    """With a probability of 0.5 that a client does not come, some replicas have none of their two clients."""
    config = config_of(2, rounds=1, **fields)
    expected, losses = trained(replace(config, engine="loop"), dataset)
    found, own_losses = trained(replace(config, engine="vmap"), dataset)
    assert own_losses == pytest.approx(losses, rel=1e-9)
    for one, other in zip(found.state.servers, expected.state.servers, strict=True):
        torch.testing.assert_close(one.online, other.online, **NEAR)


@pytest.mark.parametrize("averaged", [False, True])
def test_replicas_are_apart_until_they_are_averaged(averaged, dataset):
    """The last averaging ends a round, so that models are equal then; queues and what the optimiser keeps are not."""
    simulation, _ = trained(config_of(4, average_replicas=averaged), dataset)
    for one, other in pairwise(simulation.state.servers):
        assert torch.equal(one.online, other.online) == averaged
        assert torch.equal(one.momentum, other.momentum) == averaged
        assert not torch.equal(one.velocity, other.velocity)
    keys = simulation.state.memories["keys"]
    assert len(keys) == 4
    assert keys.shape[1] == simulation.config.queue_length
    assert all(not torch.equal(one, other) for one, other in pairwise(keys))


def test_each_replica_is_a_server_with_its_part_of_the_cohort(dataset):
    """Servers that begin alike, and get only the rows of their own clients, have the same losses and gradients."""
    apart = Simulation(config_of(2), dataset, dtype=torch.float64)
    batches = apart.parts.hyper.batches
    smashed = torch.randn(2, sum(batches), *apart.model.smashed_shape, dtype=torch.float64)
    lr = torch.tensor(0.1, dtype=torch.float64)
    alone = []
    for number, own in enumerate((slice(0, 4), slice(4, 8))):  # two clients with two images each
        state = Simulation(config_of(1, cohort=2), dataset, dtype=torch.float64).state
        state.memories["keys"].copy_(apart.state.memories["keys"][number : number + 1])
        hyper = replace(apart.parts.hyper, batches=batches[:2])
        part = smashed[:, own].flatten(0, 1)
        alone.append([step.learn_(apart.model, state, part, lr, hyper) for _ in range(2)] + [state])
    for turn in range(2):
        loss, top1, gradient = step.learn_(apart.model, apart.state, smashed.flatten(0, 1), lr, apart.parts.hyper)
        assert loss.item() == pytest.approx(sum(one[turn][0].item() for one in alone) / 2)
        assert top1.item() == pytest.approx(sum(one[turn][1].item() for one in alone) / 2)
        torch.testing.assert_close(gradient, torch.cat([one[turn][2] for one in alone]))
    for server, (*_, state) in zip(apart.state.servers, alone, strict=True):
        torch.testing.assert_close(server.online, state.server.online)
        torch.testing.assert_close(server.momentum, state.server.momentum)
    expected = torch.cat([state.memories["keys"] for *_, state in alone])
    torch.testing.assert_close(apart.state.memories["keys"], expected)


@pytest.mark.parametrize("averaged", [False, True])
def test_a_run_that_is_resumed_in_the_middle_of_a_round_ends_like_one_that_was_not(averaged, dataset, tmp_path):
    config = config_of(2, average_replicas=averaged)
    whole, stopped = (Simulation(config, dataset) for _ in range(2))
    next(stopped.rounds())
    next(stopped.round())
    stopped.save(tmp_path / "run")
    resumed = Simulation.load(tmp_path / "run", dataset)
    for simulation in (whole, resumed):
        assert list(simulation.rounds())
    expected = whole.state.tensors()
    assert "replicas.1.online" in expected
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.state.tensors().items())


def test_the_first_replica_is_evaluated(dataset):
    simulation = Simulation(config_of(2, rounds=1), dataset)
    before = simulation.evaluate()
    simulation.state.replicas[0].online.normal_()
    assert simulation.evaluate() == before
    simulation.state.server.online.normal_()
    assert simulation.evaluate() != before


def test_a_single_server_is_stored_as_in_earlier_versions(config, dataset):
    state = Simulation(config, dataset).state
    assert further_replicas(state.server, 0) == state.replicas == ()
    names = {name for name in state.tensors() if name.startswith(("server", "replicas", "queue"))}
    parts = ("online", "momentum", "velocity", "online_statistics", "momentum_statistics")
    assert names == {f"server.{part}" for part in parts} | {"queues.keys", "queues.pointer"}
    assert state.server.online.ndim == 1
    assert len(state.memories["keys"]) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cohort": 6, "server_replicas": 4}, "equal parts of a cohort of 6; allowed: 1, or another divisor of it"),
        ({"cohort": 2, "server_replicas": 4}, "equal parts of a cohort of 2; allowed"),
        ({"method": "federated", "server_replicas": 2}, "not for federated; allowed: 1"),
    ],
)
def test_what_cannot_be_divided_is_refused(fields, message):
    with pytest.raises(ValueError, match=f"^server_replicas: .*{message}"):
        RunConfig(**fields)


def test_a_cohort_by_rule_is_checked_too(dataset):
    with pytest.raises(ValueError, match=r"^server_replicas: 3 cannot have equal parts of a cohort of 8"):
        Simulation(RunConfig(**TINY | {"cohort": None, "server_replicas": 3}), dataset)


def test_a_replica_with_a_single_image_cannot_have_batch_norm(dataset):
    fields = {"batch_size": 1, "head": "large-mlp"}
    with pytest.raises(ValueError, match=r"^batch_size: 1 leaves BatchNorm a single value of a step's images"):
        Simulation(config_of(4, **fields), dataset)
    Simulation(config_of(2, **fields), dataset)


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        ({"cohort": 8, "server_replicas": 1, "dropout": 0.02, "straggler": 0.02}, False),
        ({"cohort": 8, "server_replicas": 4, "dropout": 0.02}, True),
        ({"cohort": 8, "server_replicas": 1, "straggler": 0.5}, True),
        ({"cohort": 1, "server_replicas": 1, "batch_size": 2, "dropout": 0.5}, False),
    ],
)
def test_batch_norm_is_refused_where_the_images_of_a_single_client_may_arrive(fields, refused, dataset):
    config = RunConfig(**TINY | {"batch_size": 1, "head": "large-mlp"} | fields)
    with (
        pytest.raises(ValueError, match="if only one client comes, to normalise; allowed") if refused else nullcontext()
    ):
        Simulation(config, dataset)


@pytest.mark.parametrize(("rules", "field"), [(RECORDING, "record_trace"), (DEVICES, "server_replicas")])
def test_neither_traces_nor_devices_go_together_with_replicas(rules, field):
    check(config_of(1, precision="fp32"), rules)
    with pytest.raises(ValueError, match=f"^{field}: .*; allowed: "):
        check(config_of(2, precision="fp32"), rules)
