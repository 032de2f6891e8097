"""The records of a run so far, as the views, the report and the summary need them."""

from __future__ import annotations

from typing import Any


class History:
    """The records so far, as dicts of `to_dict`, as the views, the report and the summary need them.

    Attributes:
        latest: the latest record of each kind, by its "event".
        rounds: all records of rounds.
        evaluations: all records of evaluations.
        probes: the latest record of each probe, by its "kind".
        syncs: all records of averagings, without the divergence of each client.
        changes: all records of changed plugins and files.
        fleet: all records of a fleet's rounds.
    """

    def __init__(self) -> None:
        self.latest: dict[str, dict[str, Any]] = {}
        self.rounds: list[dict[str, Any]] = []
        self.evaluations: list[dict[str, Any]] = []
        self.probes: dict[str, dict[str, Any]] = {}
        self.syncs: list[dict[str, Any]] = []
        self.changes: list[dict[str, Any]] = []
        self.fleet: list[dict[str, Any]] = []

    def clear(self) -> None:
        """Forget everything."""
        self.latest.clear()
        self.rounds.clear()
        self.evaluations.clear()
        self.probes.clear()
        self.syncs.clear()
        self.changes.clear()
        self.fleet.clear()

    def feed(self, record: dict[str, Any]) -> None:
        """Add the next record."""
        self.latest[record["event"]] = record
        if record["event"] == "round":
            self.rounds.append(record)
        elif record["event"] == "evaluation":
            self.evaluations.append(record)
        elif record["event"] == "probe":
            self.probes[record["kind"]] = record
        elif record["event"] == "sync":
            self.syncs.append({name: value for name, value in record.items() if name != "divergence"})
        elif record["event"] == "change":
            self.changes.append(record)
        elif record["event"] == "fleet":
            self.fleet.append(record)

    def untrained(self, key: str) -> Any:
        """Return a value of the untrained network's evaluation, None if it has not been evaluated yet."""
        first = self.evaluations[0] if self.evaluations else {"round": None}
        return first.get(key) if first["round"] == 0 else None

    def trained(self, key: str) -> list[Any]:
        """Return a value of each evaluation of the trained network, in their order."""
        return [record[key] for record in self.evaluations if record["round"]]

    @property
    def best_knn(self) -> float | None:
        """Return the highest kNN accuracy of the trained network in percent; None before its first evaluation."""
        return max(self.trained("knn_top1"), default=None)

    def value(self, event: str, key: str) -> Any:
        """Return a value of the latest record of a kind, None if there is no such record yet."""
        return self.latest.get(event, {}).get(key)
