"""Whole runs against an independent oracle: modules, optimisers and lists, one client at a time (`oracle.py`).

`test_step.py` compares one step of two engines that share the rest. Here nothing of the library computes but the
models and the views: averaging, what each client keeps between its rounds, schedules and queues are written out.
"""

import pytest
import torch

from simsfl import RunConfig, Simulation
from simsfl.algorithm import communication
from tests.algorithm.oracle import Oracle
from tests.conftest import TINY

SETTINGS = {
    "default": {},
    "v1": {
        "symmetric": False,
        "views": "v1",
        "head": "linear",
        "lr_schedule": "step",
        "client_lr_schedule": "step",
        "rounds": 5,
    },
    "own-queues": {"feature_sharing": False, "client_lr": 0.02, "eval_features": "projector"},
    "large-head": {"head": "large-mlp", "client_lr_schedule": "oscillating", "eval_features": "projector"},
    "aligned": {"align_momentum": True, "syncs_per_round": 3, "tau": 0.9, "weight_decay": 0.01, "temperature": 0.2},
    "loop": {"engine": "loop", "feature_sharing": False, "cohort": 2, "momentum": 0.5},
    "batch-norm": {"norm": "batch", "align_momentum": True},
    "unequal": {"unequal": "0.4_0.6|3|0.5_0.5", "cohort": 4, "partition": "shards", "classes_per_client": 1},
    "unequal-loop": {"unequal": "0.4_0.6|3|0.5_0.5", "cohort": 5, "engine": "loop"},
    "unequal-own-queues": {"unequal": "0.4_0.6|3|0.5_0.5", "cohort": 4, "feature_sharing": False},
    "unequal-own-loop": {"unequal": "0.4_0.6|2|0.5_0.5", "cohort": 5, "feature_sharing": False, "engine": "loop"},
    "unequal-own-batch-norm": {
        "unequal": "0.4_0.6|2|0.5_0.5",
        "cohort": 5,
        "feature_sharing": False,
        "norm": "batch",
        "symmetric": False,
    },
    "mixing": {"divergence_tau": 0.7, "rounds": 5, "norm": "batch", "measure_divergence": True},
    "saving": {"loss_threshold": 0.5, "rounds": 5, "feature_sharing": False, "bottleneck": "C4S2"},
    "saving-aligned": {"loss_threshold": 50.0, "rounds": 5, "align_momentum": True, "norm": "batch"},
    "saving-everyone": {"loss_threshold": 50.0, "rounds": 5, "cohort": 8, "align_momentum": True, "batch_size": 1},
    "saving-unequal": {"loss_threshold": 50.0, "rounds": 5, "unequal": "0.4_0.6|3|0.5_0.5", "cohort": 4},
    "frozen": {"client_lr": 0.0, "cohort": 8},
    "frozen-batch-norm": {"client_lr": 0.0, "norm": "batch", "syncs_per_round": 2},
    "replicas": {"server_replicas": 2, "cohort": 4},
    "replicas-loop": {"server_replicas": 4, "cohort": 4, "engine": "loop"},
    "replicas-averaged": {
        "server_replicas": 4,
        "cohort": 4,
        "average_replicas": True,
        "norm": "batch",
        "batch_size": 4,
    },
    "replicas-own-queues": {"server_replicas": 2, "cohort": 4, "feature_sharing": False, "average_replicas": True},
    "replicas-unequal": {"server_replicas": 2, "unequal": "0.4_0.6|3|0.5_0.5", "cohort": 4, "symmetric": False},
    "replicas-saving": {
        "server_replicas": 2,
        "average_replicas": True,
        "syncs_per_round": 3,
        "loss_threshold": 50.0,
        "rounds": 5,
        "cohort": 4,
    },
}
"""Fields of a config that differ from `TINY`."""
NEAR = {"rtol": 0, "atol": 1e-9}
"""Tolerance between what simulation and oracle have learnt in float64."""


def flat(tensors):
    """Return all values of some tensors in one row."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def assert_same_traffic(config, records, oracle):
    """Compare the bytes that a client sent and received on average over the whole run."""
    last = [record for record in records if record.event == "round"][-1]
    assert [last.bytes_up_per_client, last.bytes_down_per_client] == [
        round(total / config.clients) for total in (oracle.traffic.up, oracle.traffic.down)
    ]


def assert_same_divergences(config, records, oracle):
    """Compare how far clients were from the average in each averaging; nothing is recorded unless asked for."""
    syncs = [record for record in records if record.event == "sync"]
    assert len(syncs) == config.measure_divergence * len(oracle.divergences)
    for record, expected in zip(syncs, oracle.divergences, strict=False):
        assert dict(zip(record.clients, record.divergence, strict=True)) == pytest.approx(expected, rel=1e-9)
        assert record.divergence_mean == pytest.approx(sum(expected.values()) / len(expected), rel=1e-9)


def assert_same_clients(simulation, oracle):
    """Compare the averaged online model, and what is kept of each client: momentum encoder, velocity and steps."""
    config, clients = simulation.config, simulation.state.clients
    torch.testing.assert_close(clients.online, flat(oracle.average.parameters()), **NEAR)
    for i, expected in enumerate(oracle.clients):
        momentum = clients.momentum[0 if config.align_momentum else i]
        if clients.participation[i] == 0 and not config.align_momentum:
            momentum = clients.initial
        torch.testing.assert_close(momentum, flat(expected.momentum.parameters()), **NEAR)
        if expected.velocity is None:
            assert (clients.velocity[i] == 0).all()
        else:
            torch.testing.assert_close(clients.velocity[i], flat(expected.velocity), **NEAR)
    if config.loss_threshold == 0 and config.client_lr > 0:
        steps = [client.steps for client in oracle.clients]
        assert (clients.participation * simulation.parts.steps).tolist() == steps


def assert_same_server(simulation, oracle):
    """Compare the models of the server, or of each of its replicas, and the key queues."""
    for server, expected in zip(simulation.state.servers, oracle.servers, strict=True):
        torch.testing.assert_close(server.online, flat(expected.online.parameters()), **NEAR)
        torch.testing.assert_close(server.momentum, flat(expected.momentum.parameters()), **NEAR)
    queues = simulation.state.memories
    torch.testing.assert_close(queues["keys"], torch.stack([torch.stack(own.keys) for own in oracle.queues]), **NEAR)
    assert queues["pointer"].tolist() == [queue.pointer for queue in oracle.queues]


def assert_same_statistics(simulation, oracle):
    """Compare the running statistics of BatchNorm, where there are any."""
    pairs = [(simulation.state.clients.online_statistics, oracle.average)]
    for server, expected in zip(simulation.state.servers, oracle.servers, strict=True):
        pairs += [(server.online_statistics, expected.online), (server.momentum_statistics, expected.momentum)]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, flat([ours[:0], *theirs.buffers()]), **NEAR)


LATER = (
    *("unequal-loop", "unequal-own-loop", "unequal-own-batch-norm", "saving-aligned", "v1", "large-head"),
    *("replicas-unequal", "replicas-own-queues"),
)
"""Names of settings that are left to the slow tests."""


@pytest.mark.parametrize(
    "setting",
    [pytest.param(own, id=name, marks=pytest.mark.slow if name in LATER else ()) for name, own in SETTINGS.items()],
)
def test_a_whole_run_with_evaluations_equals_the_oracles(setting, dataset, monkeypatch):
    monkeypatch.setattr(communication, "WARM_UP", 0)
    config = RunConfig(**{**TINY, "queue_length": 42, **setting})
    simulation = Simulation(config, dataset, dtype=torch.float64)
    oracle = Oracle(simulation)
    records = list(simulation.train())
    exchanges = ""
    for index in range(config.rounds):
        exchanges += oracle.exchange
        oracle.round(index)
    assert exchanges == "".join(record.communication for record in records if record.event == "round")
    assert ("ABCC" in exchanges) == (config.loss_threshold > 0)
    assert_same_traffic(config, records, oracle)
    assert_same_divergences(config, records, oracle)
    losses = [record.loss for record in records if record.event == "step"]
    assert losses == pytest.approx(oracle.losses, rel=0, abs=NEAR["atol"])
    assert_same_clients(simulation, oracle)
    assert_same_server(simulation, oracle)
    assert_same_statistics(simulation, oracle)
