"""A run of MLflow, in a database of the run directory unless the user has set ``MLFLOW_TRACKING_URI``."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TypeVar

from simsfl.runs.tracking import Tracked, Tracker
from simsfl.runs.tracking.mark import Mark
from simsfl.runs.tracking.rows import Row

_METRICS, _PARAMETERS, _LETTERS = 1000, 100, 6000
"""Most metrics and parameters that MLflow takes at a time, and most letters of a parameter's value."""

_WAITING = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""How long a run waits for a server, unless the user says otherwise: by default, MLflow would take four minutes."""

T = TypeVar("T")


class MLflow(Tracker):
    """A run of MLflow in the database RUN/mlflow/mlflow.db, or on the server that MLFLOW_TRACKING_URI names."""

    def __init__(self, run: Tracked):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing leaves the machine unasked
        for name, usual in _WAITING.items():
            os.environ.setdefault(name, usual)
        import mlflow  # noqa: PLC0415  (an extra)

        super().__init__(run)
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)  # they report each table of a new database
        logging.getLogger("urllib3").setLevel(logging.ERROR)  # it warns of each request that it repeats
        place = run.path / "mlflow"
        place.mkdir(exist_ok=True)
        self._mlflow, self._mark = mlflow, Mark(place / "simsfl.json")
        server = os.environ.get("MLFLOW_TRACKING_URI")
        self._client = mlflow.MlflowClient(server or f"sqlite:///{place}/mlflow.db")
        if self._mark.id is None:
            self._mark.named(self._begun(None if server else (place / "artifacts").as_uri()))
        self._id = self._mark.id
        self._client.update_run(self._id, status="RUNNING")

    def _begun(self, artifacts: str | None) -> str:
        """Return the id of a new run, which has the config; see `_experiment`."""
        id = self._client.create_run(self._experiment(artifacts), run_name=self.run.name).info.run_id
        values = [self._mlflow.entities.Param(name, str(value)[:_LETTERS]) for name, value in self.run.config.items()]
        for part in _parts(values, _PARAMETERS):
            self._client.log_batch(id, params=part)
        return id

    def _experiment(self, artifacts: str | None) -> str:
        """Return the id of the experiment that runs belong to, which is made if there is none.

        Args:
            artifacts: where the files of a new one are kept, as a URI; None for where the server keeps them.
        """
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "simsfl")
        known = self._client.get_experiment_by_name(name)
        return known.experiment_id if known else self._client.create_experiment(name, artifacts)

    def log(self, rows: Sequence[Row]) -> None:
        """Log the numbers of those rows that it does not have."""
        now = int(1000 * time.time())
        values = [
            self._mlflow.entities.Metric(name, value, now, row.steps)
            for row in self._mark.new(rows)
            for name, value in row.numbers().items()
        ]
        for part in _parts(values, _METRICS):
            self._client.log_batch(self._id, metrics=part)

    def image(self, name: str, file: Path) -> None:
        """Keep an image among the run's files; one of the same name is replaced."""
        self._client.log_artifact(self._id, str(file), str(PurePosixPath(name).parent))

    def close(self, *, finished: bool) -> None:
        """Say whether the run has finished."""
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")


def _parts(values: Sequence[T], size: int) -> Iterator[list[T]]:
    """Yield the values in parts of this size at most."""
    for first in range(0, len(values), size):
        yield list(values[first : first + size])
