"""Costs of a run against numbers counted by hand."""

from dataclasses import replace

import numpy as np
import torch

from simsfl.cost.model import client_flops
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
    assert client_flops(model, 16) == forwards + weights_gradient
    assert client_flops(model, 16, learns=False) == forwards
