"""Evaluation of what a run has learnt, and its networks as modules."""

from __future__ import annotations

from torch import nn

from simsfl.evaluation import encoding, percent
from simsfl.evaluation.groups import by_class, by_client
from simsfl.runs.metrics import EvaluationRecord, ProbeRecord
from simsfl.setup.parts import Parts

__all__ = ["client", "encoder", "evaluate", "evaluate_untrained", "probes"]

_LABELLED = (0.1, 0.01)
"""Shares of the labels that semi-supervised probes are trained on."""


def client(parts: Parts) -> nn.Module:
    """Return the averaged client model, which maps images to smashed data, as a frozen module in evaluation mode."""
    clients = parts.state.clients
    return parts.model.client.module(clients.online, clients.online_statistics).eval().requires_grad_(False)


def encoder(parts: Parts, features: str | None = None) -> nn.Module:
    """Return the averaged client model and the server as one module from images to features, in evaluation mode.

    Args:
        parts: the parts of the simulation.
        features: "backbone" or "projector", instead of the config's `eval_features`.
    """
    return _cut(parts, features or parts.config.eval_features)[0]


def _cut(parts: Parts, features: str) -> tuple[nn.Module, nn.Module]:
    """Return the averaged client model and the server up to these features, and what follows them."""
    central = parts.state.server
    server = parts.model.server.module(central.online, central.online_statistics)
    return encoding.encoder(client(parts), server, features)


def evaluate(parts: Parts, finished_rounds: int) -> EvaluationRecord:
    """Return the record of the averaged client model and the server: kNN accuracies, and the spread of outputs.

    In the middle of a round the client model is the latest average.

    Args:
        parts: the parts of the simulation.
        finished_rounds: number of rounds trained so far, for the record.
    """
    evaluation, data = parts.evaluation, parts.dataset
    hits, std = evaluation.monitor(*_cut(parts, parts.config.eval_features))
    tested, found = data.test_labels[evaluation.test].cpu().numpy(), hits.cpu().numpy()
    known = not data.unlabelled  # otherwise nobody knows which classes a client holds
    clients = by_client(found, tested, parts.partition, data.train_labels.cpu().numpy()) if known else None
    return EvaluationRecord(
        finished_rounds,
        percent(hits),
        output_std=std,
        class_top1=by_class(found, tested, len(data.classes)),
        clients_top1=None if clients is None else [clients.mean, clients.worst_tenth, clients.std],
    )


def evaluate_untrained(parts: Parts) -> EvaluationRecord:
    """Return a record of the kNN accuracies that learning has to beat: of the untrained network, and of raw pixels."""
    model, to = parts.untrained(), {"device": parts.device, "dtype": parts.dtype}
    client, server = (half.module(half.initial.to(**to)) for half in (model.client, model.server))
    hits, std = parts.evaluation.monitor(*encoding.encoder(client, server, parts.config.eval_features))
    return EvaluationRecord(0, percent(hits), parts.evaluation.knn(encoding.raw_pixels), std)


def probes(parts: Parts, finished_rounds: int) -> list[ProbeRecord]:
    """Train the probes that the config asks for, test them on all test images, and return a record for each.

    The linear probe is trained on all training images, a semi-supervised one on its share of them.

    Args:
        parts: the parts of the simulation.
        finished_rounds: number of rounds trained so far, for the records.
    """
    config = parts.config
    shares = ([None] if config.linear_probe else []) + (list(_LABELLED) if config.semi_supervised else [])
    if not shares:
        return []
    train, test = parts.evaluation.all_features(encoder(parts))
    records = []
    for share in shares:
        last, best = parts.evaluation.probe(train, test, share=share, epochs=config.probe_epochs)
        kind = "linear" if share is None else f"semi-{share:.0%}"
        records.append(ProbeRecord(finished_rounds, kind, last, best, config.eval_features))
    return records
