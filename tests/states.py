"""The state of a small network, for tests that need no simulation."""

import torch

from simsfl.algorithm.state import (
    State,
    cohort_queues,
    initial_clients,
    initial_cohort,
    initial_queues,
    initial_server,
)
from simsfl.system.client_store import Storage


def new_state(model, *, clients, cohort, queue_length, key_dim, generator, feature_sharing=True, align_momentum=False):
    """Return the state of a run of `model` that has not begun, in float64 on the CPU."""
    device, dtype = torch.device("cpu"), torch.float64
    storage = Storage("device", device, dtype)
    rings = 1 if feature_sharing else clients
    queues = initial_queues(rings, queue_length // rings, key_dim, generator, device, dtype)
    return State(
        clients=initial_clients(
            model.client, clients, storage, device, dtype, align_momentum=align_momentum, mixing=False
        ),
        cohort=initial_cohort(model.client, cohort, device, dtype),
        server=initial_server(model.server, device, dtype),
        queues=queues,
        queue=queues if feature_sharing else cohort_queues(queues, cohort),
        sent=None,
        attackers=None,
    )
