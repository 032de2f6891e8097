"""The server's network as CUDA devices run it computes what the plain network does, in float64 on the CPU."""

import logging
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from simsfl import Simulation
from simsfl.algorithm import server
from simsfl.algorithm.batch import Hyperparameters
from simsfl.algorithm.state import ServerState
from simsfl.config.notation import Bottleneck
from simsfl.engine import tuning
from simsfl.models import split_model
from simsfl.models.central import CentralModule
from simsfl.models.layers import Style
from simsfl.objectives.moco import MoCo
from simsfl.optimisers import SGD
from simsfl.setup import assembly

NETWORKS = {
    "resnet8": {},
    "bottleneck": {"bottleneck": Bottleneck.parse("C4S2")},
    "resnet50": {"arch": "resnet50"},
    "mobilenetv2": {"arch": "mobilenetv2", "width": 8},
    "batch-norm": {"style": Style("batch", False)},
    "vgg-with-the-large-head": {"arch": "vgg11", "width": 8, "head": "large-mlp", "cut_layer": 3},
    "not-standardised": {"style": Style("group", False)},
    "token-of-the-class": {"arch": "vit-tiny", "width": 8, "cut_layer": 9, "options": {"pool": "class"}},
}
"""Arguments of `split_model` that differ from the usual ones."""


@pytest.mark.parametrize("block", [None, 4])
@pytest.mark.parametrize("settings", NETWORKS.values(), ids=NETWORKS)
def test_loss_keys_and_gradients_are_those_of_the_plain_network(settings, block):
    usual = {"arch": "resnet8", "width": 4, "cut_layer": 1, "head": "mlp"}
    generator = torch.Generator().manual_seed(0)
    model = split_model(**{**usual, **settings}, image_size=32, key_dim=16, generator=generator)
    flat, statistics = model.server.initial.double(), model.server.initial_statistics.double()
    smashed = torch.randn(8, *model.smashed_shape, generator=generator, dtype=torch.float64)
    keys = F.normalize(torch.randn(1, 50, 16, generator=generator, dtype=torch.float64), dim=2)

    def learn(network):
        """Return by name the loss, gradients, statistics and keys of a step with this network on the server."""
        state = ServerState(flat, 0.9 * flat, torch.zeros_like(flat), statistics.clone(), statistics.clone())
        queue = {"keys": keys, "pointer": torch.zeros(1, dtype=torch.long)}
        hyper = Hyperparameters(MoCo(0.1, 50), True, 0.99, SGD(0.9, 0.0), (4,), block=block)
        result = server.gradients(network, state, smashed, queue, hyper)
        return {**vars(result), "statistics": state.online_statistics, "targets": torch.cat(result.targets)}

    ours, theirs = learn(CentralModule(model.server, torch.float64, flat.device)), learn(model.server)
    for name, wanted in theirs.items():
        torch.testing.assert_close(ours[name], wanted, rtol=1e-8, atol=1e-11, msg=name)


def test_an_ordinary_module_made_of_it_is_the_plain_network():
    """Evaluation, attacks and export use ordinary modules, which standardise their weights themselves."""
    generator = torch.Generator().manual_seed(0)
    model = split_model("resnet8", width=4, cut_layer=1, image_size=32, head="mlp", key_dim=16, generator=generator)
    flat = torch.randn(model.server.size, generator=generator, dtype=torch.float64)
    central = CentralModule(model.server, torch.float64, flat.device)
    smashed = torch.randn(3, *model.smashed_shape, generator=generator, dtype=torch.float64)
    expected = model.server.run(model.server.named(flat), smashed)
    torch.testing.assert_close(central.module(flat)(smashed), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(central.run(central.weights(flat), smashed), expected, rtol=1e-8, atol=1e-10)


RUNS = {
    "usual": {},
    "supervised": {"supervised": True},
    "queues of their own": {"feature_sharing": False},
    "one direction": {"symmetric": False},
    "BatchNorm": {"norm": "batch", "head": "large-mlp"},
    "bottleneck": {"bottleneck": "C4S2"},
    "rich and poor": {"unequal": "0.5_0.5|2|0.5_0.5", "cohort": 4, "batch_size": 1},
    "frozen clients": {"client_lr": 0.0},
    "attackers": {"ressfl_lambda": 1.0, "ressfl_decoder": "custom"},
    "saving communication": {"loss_threshold": 100.0, "rounds": 3},
    "federated": {"method": "fl-moco", "queue_length": 8},
}
"""Fields of a config that the server's part of a step depends on."""


def use_server_of_cuda(monkeypatch):
    """Make simulations use the server's network that they use on CUDA devices."""

    def as_run(config, model, precision):
        server = CentralModule(model.server, precision, torch.device("cpu")) if model.server.size else model.server
        return replace(model, server=server)

    monkeypatch.setattr(assembly, "as_run", as_run)


@pytest.mark.parametrize("settings", RUNS.values(), ids=RUNS)
def test_runs_learn_and_are_evaluated_as_with_the_plain_network(settings, config, dataset, monkeypatch):
    config = replace(config, **{"rounds": 1, "knn_bank": 40, "knn_test": 20, **settings})
    plain = Simulation(config, dataset, dtype=torch.float64)
    use_server_of_cuda(monkeypatch)
    ours = Simulation(config, dataset, dtype=torch.float64)
    for simulation in (plain, ours):
        list(simulation.rounds())
    for name, tensor in plain.state.tensors().items():
        torch.testing.assert_close(ours.state.tensors()[name], tensor, rtol=1e-8, atol=1e-10, msg=name)
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(ours.encoder()(images), plain.encoder()(images), rtol=1e-8, atol=1e-10)
    record, expected = ours.evaluate(), plain.evaluate()
    assert record.output_std == pytest.approx(expected.output_std, rel=1e-8)
    assert record == replace(expected, output_std=record.output_std)


def test_where_its_kernels_cannot_run_the_plain_network_is_used_with_one_warning(config, dataset, monkeypatch, caplog):
    def broken(self, tensors, x):
        raise RuntimeError("no compiler\nand more")

    monkeypatch.setattr(CentralModule, "run", broken)
    simulation = Simulation(config, dataset)
    plain = simulation.model.server
    central = CentralModule(plain, torch.float32, torch.device("cpu"))
    smashed = torch.zeros(4, *simulation.model.smashed_shape)
    with caplog.at_level(logging.WARNING):
        network = tuning.working_server(central, simulation.parts.hyper, simulation.state.server.online, smashed)
    assert network is plain
    assert [record.getMessage() for record in caplog.records] == [
        "the server's own kernels cannot run, and PyTorch's operators are used: RuntimeError: no compiler"
    ]
