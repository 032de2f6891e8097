"""What a run has learnt, as modules, and what it is worth."""

from __future__ import annotations

from torch import nn

from simsfl import evaluation
from simsfl.runs.metrics import EvaluationRecord, ProbeRecord
from simsfl.setup.parts import Parts

LABELLED = (0.1, 0.01)
"""Shares of the labels that semi-supervised probes have."""


def client(parts: Parts) -> nn.Module:
    """Return the averaged client model as a frozen module: what sends smashed data."""
    clients = parts.state.clients
    return parts.model.client.module(clients.online, clients.online_statistics).eval().requires_grad_(False)


def encoder(parts: Parts, features: str | None = None) -> nn.Module:
    """Return the averaged client model and the server as one frozen module.

    Args:
        features: "backbone" or "projector", instead of the config's.
    """
    clients, central = parts.state.clients, parts.state.server
    client = parts.model.client.module(clients.online, clients.online_statistics)
    server = parts.model.server.module(central.online, central.online_statistics)
    return evaluation.encoder(client, server, features or parts.config.eval_features)


def evaluate(parts: Parts, finished_rounds: int) -> EvaluationRecord:
    """Return the kNN accuracy of what has been learnt in so many rounds.

    In the middle of a round the client model is the latest average.
    """
    return EvaluationRecord(finished_rounds, parts.evaluation.knn(encoder(parts)))


def evaluate_untrained(parts: Parts) -> EvaluationRecord:
    """Return what learning has to beat: kNN accuracy of the network as it began, and of the raw pixels."""
    model, to = parts.untrained(), {"device": parts.device, "dtype": parts.dtype}
    client, server = (half.module(half.initial.to(**to)) for half in (model.client, model.server))
    encode = evaluation.encoder(client, server, parts.config.eval_features)
    knn, pixels = parts.evaluation.knn(encode), parts.evaluation.knn(evaluation.raw_pixels)
    return EvaluationRecord(0, knn, pixel_knn_top1=pixels)


def probes(parts: Parts, finished_rounds: int) -> list[ProbeRecord]:
    """Train the probes that the config asks for, on all training images, and test them on all test images."""
    config = parts.config
    shares = ([None] if config.linear_probe else []) + (list(LABELLED) if config.semi_supervised else [])
    if not shares:
        return []
    train, test = parts.evaluation.all_features(encoder(parts))
    records = []
    for share in shares:
        last, best = parts.evaluation.probe(train, test, share=share, epochs=config.probe_epochs)
        kind = "linear" if share is None else f"semi-{share:.0%}"
        records.append(ProbeRecord(finished_rounds, kind, last, best, config.eval_features))
    return records
