"""Averaging of the cohort's client models, and when it happens."""

from __future__ import annotations

import torch

from simsfl.state import Cohort


def is_sync_step(step: int, steps: int, syncs: int) -> bool:
    """Whether the models are averaged after step `step` (from 0) of a round of `steps`.

    `syncs` averagings are spread evenly, the last at the end; more than one a step makes no sense,
    so at most `steps` take place.
    """
    return (step + 1) * syncs // steps > step * syncs // steps


@torch.no_grad()
def average_(cohort: Cohort, *, align_momentum: bool) -> None:
    """Replace every online model by the cohort's mean (McMahan et al. 2017, equal weights).

    The published program starts its sum from client 0 instead of the cohort's first; here it is
    the plain mean. Momentum models are left alone, as published, unless `align_momentum` (MonAcoSFL,
    Przewiezlikowski et al., ECML-PKDD 2024).
    """
    cohort.online.copy_(cohort.online.mean(dim=0, keepdim=True).expand_as(cohort.online))
    if align_momentum:
        cohort.momentum.copy_(cohort.momentum.mean(dim=0, keepdim=True).expand_as(cohort.momentum))
