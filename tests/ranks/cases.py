"""Configs of runs that several ranks have to train as one process does."""

from pathlib import Path

from simsfl import RunConfig
from tests.doors.conftest import BASE

SIZE = {"clients": 12, "cohort": 6, "batch_size": 2, "rounds": 2, "eval_every": 1, "engine": "vmap"}
"""Two rounds with an evaluation each, whose cohort is not a multiple of 4 ranks."""
ABSENT = {"dropout": 0.5, "straggler": 0.3}
"""Absences of so many clients that in some steps all of a rank are absent."""
FEDERATED = {"batch_size": 4}
"""A batch of federated clients."""
CASES = {
    "symmetric": {},
    "asymmetric": {"symmetric": False},
    "own queues": {"feature_sharing": False},
    "aligned momentum": {"align_momentum": True},
    "unequal clients": {"unequal": "0.25_0.75|2|0.4_0.6"},
    "unequal and absent": {"unequal": "0.25_0.75|2|0.4_0.6", **ABSENT},
    "frozen clients": {"client_lr": 0.0},
    "absent": ABSENT,
    "absent with own queues": ABSENT | {"feature_sharing": False},
    "absent, whole batch": ABSENT | {"objective": "simclr"},
    "deep cut": {"cut_layer": 3},
    "BatchNorm on clients": {"norm": "batch", "cut_layer": 4, "head": "linear", "batch_size": 5},
    "labels": {"supervised": True},
    "AdamW": {"optimizer": "adamw"},
    "LARS": {"optimizer": "lars"},
    "proximal": {"proximal": 0.1},
    "mixing": {"divergence_tau": 0.5, "measure_divergence": True},
    "noise": {"defence": "gaussian"},
    "Laplacian noise, clipped": {"defence": "laplacian+clip"},
    "NoPeek": {"defence": "nopeek", "batch_size": 4},
    "int8": {"defence": "int8"},
    "fp16": {"defence": "fp16"},
    "top-k, absent": ABSENT | {"defence": "top-k"},
    "TAResSFL": {"defence": "taressfl", "ressfl_lambda": 1.0},
    "SimCLR": {"objective": "simclr"},
    "BYOL": {"objective": "byol", "head": "mlp"},
    "SimSiam": {"objective": "simsiam", "head": "mlp"},
    "Barlow Twins": {"objective": "barlow-twins", "head": "mlp"},
    "by images": {"aggregation": "by-images", "unequal": "0.25_0.75|2|0.4_0.6"},
    "trimmed mean": {"aggregation": "trimmed-mean"},
    "median": {"aggregation": "median"},
    "FedAvgM": {"aggregation": "fedavgm"},
    "FedAdam": {"aggregation": "fedadam"},
    "federated": FEDERATED | {"method": "federated"},
    "FL-BYOL": FEDERATED | {"method": "fl-byol"},
    "in a fleet": {"fleet": str(Path(__file__).parent / "fleet.toml"), "over_select": 1.5, "sampler": "fleet"},
    "FedEMA": FEDERATED | {"method": "fl-byol", "divergence_tau": 0.5},
    "FL-MoCo, absent": FEDERATED | ABSENT | {"method": "fl-moco"},
}
"""What differs from `SIZE`, by name."""
FEW = ("symmetric", "own queues", "unequal and absent", "absent, whole batch", "mixing", "in a fleet")
"""Cases that are tested each time."""


def config_of(case: str) -> RunConfig:
    """Return the config of a case."""
    return RunConfig(**BASE | SIZE | CASES[case])
