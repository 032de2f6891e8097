"""Costs of a run against numbers counted by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from simsfl import Simulation
from simsfl.cli.cost.tables import estimate
from simsfl.config.catalogue import OBJECTIVES
from simsfl.cost.model import client_flops, operations, server_flops
from simsfl.models import split_model
from simsfl.runs.metrics import RoundRecord
from tests.simulations import trained


def test_traffic_is_counted_to_the_byte(config, dataset):
    simulation, records = trained(replace(config, batch_size=2, syncs_per_round=2), dataset)
    parameters = simulation.model.client.size
    smashed = int(np.prod(simulation.model.smashed_shape))
    up = 5 * 2 * 2 * smashed * 4 + 2 * parameters * 4  # steps * images * views * numbers * bytes, and two averagings
    down = 5 * 2 * smashed * 4 + 2 * parameters * 4
    share = 3 * 3 / 8  # rounds in which a client takes part, on average: rounds * cohort / clients
    last = records[-1]
    assert isinstance(last, RoundRecord)
    assert last.bytes_up_per_client == round(up * share)
    assert last.bytes_down_per_client == round(down * share)


def test_flops_of_a_single_convolution_by_hand():
    model = split_model(
        "resnet18", width=8, cut_layer=1, image_size=16, head="mlp", key_dim=8, generator=torch.Generator()
    )
    convolution, maps = 2 * (8 * 16 * 16) * (3 * 3 * 3), 8 * 16 * 16
    forwards, weights_gradient = 2 * (convolution + 8 * maps), convolution + 16 * maps
    assert client_flops(model, 16, views=2, graded=1) == forwards + weights_gradient
    assert client_flops(model, 16, views=2, graded=0) == forwards


WAYS = {name: {"objective": name} for name in OBJECTIVES} | {"one direction": {"symmetric": False}}


@pytest.mark.parametrize("fields", WAYS.values(), ids=WAYS)
def test_passes_through_the_server_are_those_of_a_step(fields, config, dataset):
    """Rows that go through the server's models in a step are counted, and those of them that keep a graph."""
    simulation = Simulation(replace(config, **fields), dataset)
    server, rows, learning = simulation.model.server, 0, 0

    def counted(tensors, smashed, run=server.run):
        nonlocal rows, learning
        rows += len(smashed)
        learning += len(smashed) * torch.is_grad_enabled()
        return run(tensors, smashed)

    server.run = counted
    next(simulation.round())
    images = config.cohort * config.batch_size
    assert {"views": rows / images, "graded": learning / images} == simulation.config.server_passes
    work = operations(server, simulation.model.smashed_shape)
    found = server_flops(simulation.model, **simulation.config.server_passes)
    assert found * images == rows * work.forward + learning * work.backward
    if simulation.config.objective != "supervised":  # whose head depends on the number of classes
        assert found == estimate(simulation.config, len(dataset.train_labels))["server_flops_per_image"]
