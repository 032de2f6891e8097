"""Config, images and an objective of runs that are short enough to be trained in both ways."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from simsfl.config.values import option
from simsfl.objectives import Objective, nearest
from simsfl.objectives.moco import MoCo
from simsfl.testing import _images
from tests.conftest import TINY

BASE = TINY | {"clients": 6, "batch_size": 4, "rounds": 2, "eval_every": 0, "knn_bank": 6, "knn_test": 6}
"""Config fields of a run of two rounds of two steps, each with an averaging."""


@pytest.fixture(scope="session")
def pictures():
    """Return 60 training and 6 test images of 16x16 in three classes."""
    return _images()


@dataclass(frozen=True)
class Hard(MoCo):
    """MoCo against the nearest of the queue's keys alone."""

    negatives: int = option(3, "Number of keys.", within=(1, 40))

    @classmethod
    def of(cls, config):
        plain = MoCo.of(config)
        return cls(plain.temperature, plain.queue_length, **config.options_of("objective"))

    def losses(self, outputs_GnD, targets_GnD, memory):
        return Objective.losses(self, outputs_GnD, targets_GnD, memory)

    def loss(self, outputs_nD, targets_nD, memory):
        query_nD, key_nD = F.normalize(outputs_nD, dim=1), F.normalize(targets_nD, dim=1)
        others_nK = (query_nD @ memory["keys"].T).topk(self.negatives).values
        score_nK = torch.cat([(query_nD * key_nD).sum(dim=1, keepdim=True), others_nK], dim=1) / self.temperature
        return -score_nK.log_softmax(dim=1)[:, 0].mean(), nearest(query_nD, key_nD)
