"""Federated learning without a split, and training in one place, against loops written anew."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from simsfl import RunConfig, Simulation
from simsfl.cli import run
from simsfl.runs.metrics import to_dict
from simsfl.setup.defaults import resolve
from tests.conftest import TINY, flags

FLOAT64 = {"dtype": torch.float64}


def flat(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def views_of(simulation, r):
    """Of each step the images of both views by client, ``{id: ([B, 3, H, H], [B, 3, H, H])}``."""
    plan = simulation.parts.plan(r)
    (group,) = plan.groups
    for s in range(simulation.parts.steps):
        pixels = simulation.dataset.train.pixels[group.indices[s]]
        views = simulation.dataset.train.augmented(pixels, group.views.map(lambda t, s=s: t[s]), torch.float64)
        yield {i: (views[0, c], views[1, c]) for c, i in enumerate(plan.cohort.tolist())}


def follow(average, online, tau):
    with torch.no_grad():
        for m, p in zip(average.parameters(), online.parameters(), strict=True):
            m.copy_(tau * m + (1 - tau) * p)


class TextbookMoCo:
    """MoCo (He et al., CVPR 2020), the symmetric loss of its v3, for one model."""

    def __init__(self, model, queue, config):
        self.online, self.momentum, self.c = model, copy.deepcopy(model), config
        self.queue, self.pointer = queue.clone(), 0
        self.optimizer = torch.optim.SGD(
            model.parameters(), lr=1.0, momentum=config.momentum, weight_decay=config.weight_decay
        )

    def step(self, x1, x2, lr):
        follow(self.momentum, self.online, self.c.tau)
        loss, keys = 0.0, []
        for query, key in ((x1, x2), (x2, x1)) if self.c.symmetric else ((x1, x2),):
            one, own = self.loss(query, key)
            loss, keys = loss + one, [own, *keys]
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()
        for own in torch.cat(keys):
            if len(self.queue):
                self.queue[self.pointer] = own
                self.pointer = (self.pointer + 1) % len(self.queue)
        return loss.item()

    def loss(self, query, key):
        q = F.normalize(self.online(query), dim=1)
        with torch.no_grad():
            k = F.normalize(self.momentum(key), dim=1)
        scores = torch.cat([(q * k).sum(1, keepdim=True), q @ self.queue.T], dim=1) / self.c.temperature
        return F.cross_entropy(scores, torch.zeros(len(q), dtype=torch.long)), k


class TextbookBYOL(TextbookMoCo):
    """BYOL (Grill et al., NeurIPS 2020), whose network gives projection and prediction side by side."""

    def loss(self, query, key):
        p = F.normalize(self.online(query).chunk(2, dim=1)[1], dim=1)
        with torch.no_grad():
            z = F.normalize(self.momentum(key).chunk(2, dim=1)[0], dim=1)
        return ((p - z) ** 2).sum(dim=1).mean(), z


CENTRAL = {
    "fl-moco": {"method": "fl-moco"},
    "fl-moco, asymmetric": {"method": "fl-moco", "symmetric": False},
    "mocosfl, asymmetric": {"symmetric": False, "cut_layer": 3},
}


@pytest.mark.parametrize("settings", CENTRAL.values(), ids=CENTRAL)
def test_one_client_with_all_data_is_moco(dataset, settings):
    """In one direction of the loss it makes no difference that the network is cut."""
    config = RunConfig(**TINY | {"clients": 1, "cohort": 1, "batch_size": 10, "rounds": 2} | settings)
    config = replace(config, syncs_per_round=1)
    simulation = Simulation(config, dataset, **FLOAT64)
    client = simulation.model.client.module(simulation.model.client.initial.double())
    server = simulation.model.server.module(simulation.state.server.online.clone())
    expected = TextbookMoCo(torch.nn.Sequential(client, server), simulation.state.queues.keys[0], config)
    losses = [
        expected.step(*views[0], config.lr * (1 + math.cos(math.pi * r / config.rounds)) / 2)
        for r in range(config.rounds)
        for views in views_of(simulation, r)
    ]
    records = [record for record in simulation.train() if record.event == "step"]
    assert [record.loss for record in records] == pytest.approx(losses, rel=1e-9)
    learnt = torch.cat([simulation.state.clients.online, simulation.state.server.online])
    torch.testing.assert_close(learnt, flat(expected.online), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(simulation.state.queues.keys[0], expected.queue, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(("method", "kind"), [("fl-moco", TextbookMoCo), ("fl-byol", TextbookBYOL)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_federated_averaging_by_the_book(dataset, method, kind, symmetric):
    """Every client trains by itself for two epochs, starting from the average, with its own queue and velocity."""
    config = RunConfig(**TINY | {"method": method, "symmetric": symmetric, "cohort": 3, "local_epochs": 2})
    config = replace(config, rounds=3, syncs_per_round=1, queue_length=7)
    simulation = Simulation(config, dataset, **FLOAT64)
    average = simulation.model.client.module(simulation.model.client.initial).double()
    own = [kind(copy.deepcopy(average), queue, config) for queue in simulation.state.queues.keys]
    losses = []
    for r in range(config.rounds):
        cohort = simulation.parts.plan(r).cohort.tolist()
        for i in cohort:
            own[i].online.load_state_dict(average.state_dict())
        lr = config.lr * (1 + math.cos(math.pi * r / config.rounds)) / 2
        losses += [sum(own[i].step(*views[i], lr) for i in cohort) / len(cohort) for views in views_of(simulation, r)]
        states = [own[i].online.state_dict() for i in cohort]
        average.load_state_dict({name: sum(s[name] for s in states) / len(states) for name in states[0]})
    assert simulation.parts.steps == 2 * (80 // (8 * 2))
    records = [record for record in simulation.train() if record.event == "step"]
    assert [record.loss for record in records] == pytest.approx(losses, rel=1e-9)
    torch.testing.assert_close(simulation.state.clients.online, flat(average), rtol=1e-8, atol=1e-9)
    for client, momentum in enumerate(simulation.state.clients.momentum):
        if simulation.state.clients.participation[client]:
            torch.testing.assert_close(momentum, flat(own[client].momentum), rtol=1e-8, atol=1e-9)


CALM = {"batch_size": 10, "lr": 0.003}
"""BatchNorm of a few values amplifies rounding."""
SETTINGS = {
    "moco": {"method": "fl-moco"},
    "moco, asymmetric, batch norm": {"method": "fl-moco", "symmetric": False, "norm": "batch", **CALM},
    "byol": {"method": "fl-byol"},
    "fedema": {"method": "fl-byol", "divergence_tau": 0.7, "measure_divergence": True},
    "byol, large head": {"method": "fl-byol", "head": "large-mlp", "align_momentum": True, **CALM},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_stacked_clients_equal_the_loop_in_float64(dataset, settings):
    config = RunConfig(**TINY | settings | {"rounds": 2, "linear_probe": True, "probe_epochs": 1})
    loop = Simulation(replace(config, engine="loop"), dataset, **FLOAT64)
    expected = [to_dict(record) for record in loop.train()]
    for engine in ("vmap", "fused:grouped"):
        stacked = Simulation(replace(config, engine=engine), dataset, **FLOAT64)
        for one, other in zip(map(to_dict, stacked.train()), expected, strict=True):
            assert one.keys() == other.keys()
            for name, value in one.items():
                exact = value is None or isinstance(value, str)
                wanted = value if exact else pytest.approx(value, rel=1e-6, abs=1e-9)
                assert other[name] == wanted
        for name, tensor in loop.state.tensors().items():
            torch.testing.assert_close(stacked.state.tensors()[name], tensor, rtol=1e-6, atol=1e-8)


def test_only_weights_travel(dataset):
    config = RunConfig(**TINY | {"method": "fl-moco", "rounds": 2})
    simulation = Simulation(config, dataset)
    last = list(simulation.rounds())[-1]
    weights = 4 * simulation.model.client.size
    syncs = min(config.syncs_per_round, simulation.parts.steps)
    assert last.bytes_up_per_client == last.bytes_down_per_client == 2 * syncs * weights * config.cohort // 8


def test_rules():
    federated = resolve(RunConfig(method="fl-byol", clients=5), 10_000)
    assert (federated.batch_size, federated.syncs_per_round, federated.rounds) == (128, 1, 200)
    assert resolve(replace(federated, rounds=None, local_epochs=5)).rounds == 40
    assert resolve(RunConfig(method="fl-moco", clients=100), 40).batch_size == 40


WRONG = {
    "cut": (["--cut-layer", "2"], "cut_layer: has no effect where method is fl-byol; allowed with method mocosfl"),
    "queue": (["--queue-length", "9"], "queue_length: has no effect where method is fl-byol"),
    "unequal": (["--unequal", "0.5_0.5|2|0.5_0.5"], "unequal: "),
    "supervised": (["--supervised"], "supervised: True is for mocosfl, not for fl-byol; allowed: False"),
    "name": (["--method", "fl-byo"], "method: 'fl-byo' is not known (did you mean fl-byol?)"),
}


@pytest.mark.parametrize(("argv", "message"), WRONG.values(), ids=WRONG)
def test_bad_input(npz, tmp_path, capfd, argv, message):
    settings = {name: value for name, value in TINY.items() if name != "queue_length"}
    argv = [*flags(dataset=npz, out=tmp_path / "out", **settings), "--method", "fl-byol", *argv]
    assert run.main(argv) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: " + message)
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_run_by_name(npz, tmp_path, capfd):
    settings = {name: value for name, value in TINY.items() if name != "queue_length"}
    out = tmp_path / "out"
    assert run.main([*flags(dataset=npz, out=out, **settings), "--method", "fl-byol", "--dashboard", "off"]) == 0
    assert run.main(["--resume", str(out), "--dashboard", "off"]) == 0
