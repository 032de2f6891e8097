"""The baselines, federated learning without a split and training in one place, against independent loops."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from simsfl import RunConfig, Simulation
from simsfl.cli import run
from simsfl.runs.metrics import to_dict
from simsfl.setup.defaults import resolve, with_rules
from tests.algorithm.oracle import mean_of, move_towards
from tests.conftest import TINY, flags

FLOAT64 = {"dtype": torch.float64}


def flat(module):
    """Return all parameters of a module in one row."""
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def views_of(simulation, round_index):
    """Yield both views ``[B, 3, H, H]`` of each client's images, by its id, for each step of a round."""
    plan, images = simulation.parts.plan(round_index), simulation.dataset.train
    (group,) = plan.groups
    for s in range(simulation.parts.steps):
        views = images.augmented(
            images.pixels[group.indices[s]], group.views.map(lambda tensor, s=s: tensor[s]), torch.float64
        )
        yield {client: (views[0, c], views[1, c]) for c, client in enumerate(plan.cohort.tolist())}


def cosine_lr(config, round_index):
    """Return the learning rate in a round, counted from 0."""
    return config.lr * (1 + math.cos(math.pi * round_index / config.rounds)) / 2


class TextbookMoCo:
    """MoCo (He et al., CVPR 2020) with the symmetric loss of its version 3, for one model.

    Args:
        model: the network, which is trained in place.
        queue: initial keys ``[K, D]``, which are copied; there may be none.
        config: tau, temperature, symmetric, and the settings of SGD.
    """

    def __init__(self, model, queue, config):
        self.online, self.momentum, self.config = model, copy.deepcopy(model), config
        self.queue, self.pointer = queue.clone(), 0
        self.optimizer = torch.optim.SGD(
            model.parameters(), lr=1.0, momentum=config.momentum, weight_decay=config.weight_decay
        )

    def step(self, first_view, second_view, lr):
        """Take a step of SGD on both views ``[B, 3, H, H]`` of some images, and return the loss."""
        move_towards(self.momentum, self.online, self.config.tau)
        directions = [(first_view, second_view), (second_view, first_view)]
        losses, keys = zip(*(self.contrast(*pair) for pair in directions[: 1 + self.config.symmetric]), strict=True)
        loss = sum(losses)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()
        self.enqueue(torch.cat(keys[::-1]))
        return loss.item()

    def contrast(self, query, key):
        """Return the loss of one direction, and the new keys ``[B, D]``."""
        q = F.normalize(self.online(query), dim=1)
        with torch.no_grad():
            k = F.normalize(self.momentum(key), dim=1)
        scores = torch.cat([(q * k).sum(1, keepdim=True), q @ self.queue.T], dim=1) / self.config.temperature
        return F.cross_entropy(scores, torch.zeros(len(q), dtype=torch.long)), k

    def enqueue(self, keys):
        """Write new keys over the oldest ones, unless there is no queue."""
        for key in keys if len(self.queue) else ():
            self.queue[self.pointer] = key
            self.pointer = (self.pointer + 1) % len(self.queue)


class TextbookBYOL(TextbookMoCo):
    """BYOL (Grill et al., NeurIPS 2020) for one model, whose network returns projection and prediction side by side."""

    def contrast(self, query, key):
        prediction = F.normalize(self.online(query).chunk(2, dim=1)[1], dim=1)
        with torch.no_grad():
            projection = F.normalize(self.momentum(key).chunk(2, dim=1)[0], dim=1)
        return ((prediction - projection) ** 2).sum(dim=1).mean(), projection


CENTRAL = {
    "fl-moco": {"method": "fl-moco"},
    "fl-moco, asymmetric": {"method": "fl-moco", "symmetric": False},
    "mocosfl, asymmetric": {"symmetric": False, "cut_layer": 3},
}
"""Settings with which one client that has all data is MoCo in one place."""


@pytest.mark.parametrize("settings", CENTRAL.values(), ids=CENTRAL)
def test_one_client_with_all_data_is_moco(dataset, settings):
    """MocoSFL is among them, as the cut makes no difference if the loss has one direction."""
    config = RunConfig(**TINY | {"clients": 1, "cohort": 1, "batch_size": 10, "rounds": 2} | settings)
    config = replace(config, syncs_per_round=1)
    simulation = Simulation(config, dataset, **FLOAT64)
    client = simulation.model.client.module(simulation.model.client.initial.double())
    server = simulation.model.server.module(simulation.state.server.online.clone())
    expected = TextbookMoCo(torch.nn.Sequential(client, server), simulation.state.memories["keys"][0], config)
    losses = [
        expected.step(*views[0], cosine_lr(config, index))
        for index in range(config.rounds)
        for views in views_of(simulation, index)
    ]
    records = [record for record in simulation.train() if record.event == "step"]
    assert [record.loss for record in records] == pytest.approx(losses, rel=1e-9)
    learnt = torch.cat([simulation.state.clients.online, simulation.state.server.online])
    torch.testing.assert_close(learnt, flat(expected.online), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(simulation.state.memories["keys"][0], expected.queue, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(("method", "textbook"), [("fl-moco", TextbookMoCo), ("fl-byol", TextbookBYOL)])
@pytest.mark.parametrize("symmetric", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_federated_averaging_by_the_book(dataset, method, textbook, symmetric):
    """Each client trains alone for two epochs, starting from the average, with a queue and a velocity of its own."""
    settings = {"method": method, "head": "mlp", "symmetric": symmetric, "cohort": 3, "local_epochs": 2}
    config = RunConfig(**TINY | settings)
    config = replace(config, rounds=3, syncs_per_round=1, queue_length=7)
    simulation = Simulation(config, dataset, **FLOAT64)
    average = simulation.model.client.module(simulation.model.client.initial).double()
    queues = simulation.state.memories.get("keys", torch.zeros(config.clients, 0, 1))
    clients = [textbook(copy.deepcopy(average), queue, config) for queue in queues]
    losses = []
    for index in range(config.rounds):
        cohort = simulation.parts.plan(index).cohort.tolist()
        for i in cohort:
            clients[i].online.load_state_dict(average.state_dict())
        for views in views_of(simulation, index):
            own_losses = [clients[i].step(*views[i], cosine_lr(config, index)) for i in cohort]
            losses.append(sum(own_losses) / len(cohort))
        average = mean_of([clients[i].online for i in cohort])
    assert simulation.parts.steps == 2 * (80 // (8 * 2))
    records = [record for record in simulation.train() if record.event == "step"]
    assert [record.loss for record in records] == pytest.approx(losses, rel=1e-9)
    torch.testing.assert_close(simulation.state.clients.online, flat(average), rtol=1e-8, atol=1e-9)
    for client, momentum in enumerate(simulation.state.clients.momentum):
        if simulation.state.clients.participation[client]:
            torch.testing.assert_close(momentum, flat(clients[client].momentum), rtol=1e-8, atol=1e-9)


CALM = {"batch_size": 10, "lr": 0.003}
"""Settings for BatchNorm, which amplifies rounding if it is over a few values."""
SETTINGS = {
    "moco": {"method": "fl-moco"},
    "moco, asymmetric, batch norm": {"method": "fl-moco", "symmetric": False, "norm": "batch", **CALM},
    "byol, no batch norm": {"method": "fl-byol", "head": "mlp"},
    "fedema, no batch norm": {"method": "fl-byol", "head": "mlp", "divergence_tau": 0.7, "measure_divergence": True},
    "byol": {"method": "fl-byol", "align_momentum": True, **CALM},
}
"""Settings in which engines are compared."""


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
    federated = with_rules(RunConfig(method="fl-byol", clients=5), 10_000)
    assert (federated.batch_size, federated.syncs_per_round, federated.rounds) == (128, 1, 200)
    assert resolve(replace(federated, rounds=None, local_epochs=5)).rounds == 40
    assert with_rules(RunConfig(method="fl-moco", clients=100), 40).batch_size == 40


WRONG = {
    "cut": (["--cut-layer", "2"], "cut_layer: has no effect where method is fl-byol; allowed with method mocosfl"),
    "queue": (["--queue-length", "9"], "queue_length: has no effect where the objective has no key queue"),
    "unequal": (["--unequal", "0.5_0.5|2|0.5_0.5"], "unequal: "),
    "supervised": (["--supervised"], "method: fl-byol has an objective of its own"),
    "name": (["--method", "fl-byo"], "method: 'fl-byo' is not known (did you mean fl-byol?)"),
}
"""Flags that are refused, and how the error begins."""


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
