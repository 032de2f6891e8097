"""What is kept of a cell's runs: one small JSON file, made from run directories, which are found by their config."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from simsfl import RunConfig
from simsfl.cli.cost.tables import outline_of
from simsfl.cli.report.settings import setting
from simsfl.cli.results.cells import config_of
from simsfl.cli.sweep import launchers, runner
from simsfl.cli.sweep.cells import Attack, Cell
from simsfl.runs.directory import RunDirectory
from simsfl.runs.records import AttackRecord, RunRecord, Summary, read, to_json
from simsfl.system.decoding import Amount, Count, Ordinal, Percent
from simsfl.system.files import write_json
from simsfl.system.messages import shortened
from simsfl.system.programs import door, pasted

RUNS = Path("runs", "results")
"""Directory of the cells' runs, in a checkout."""
_HOW = (
    *("engine", "client_state", "stream", "precision", "measure_divergence"),
    *("linear_probe", "semi_supervised", "probe_epochs", "supervised"),
)
"""Fields of the config that do not change what is learnt, apart from rounding, or that another field says."""

Settings = dict[str, bool | int | float | str | None]


@dataclass(frozen=True)
class Attacked:
    """How close an attack came to the images."""

    mse: Amount
    ssim: float
    """Structural similarity of images that are padded with zeros, as published."""
    ssim_mirrored: float
    """Structural similarity of images that are mirrored at their borders."""


@dataclass(frozen=True)
class SeedRecord:
    """What is kept of a run; accuracies are in percent of the test images."""

    seed: Count
    knn_top1: Percent
    knn_top1_untrained: Percent | None
    knn_top1_pixels: Percent | None
    linear_top1: Percent | None
    loss: float | None
    bytes: Count | None
    """Bytes that all clients together sent and received; None where they were not counted."""
    seconds: Amount
    """Seconds of training."""
    machine: str
    """Model of the processor or of the card."""
    card: bool
    """Whether it was trained on a CUDA device."""
    threads: Ordinal
    """Threads of the processor that it began with."""
    precision: str
    versions: dict[str, str]
    """Versions of Python and of packages."""
    commit: str | None
    date: str
    """Day on which the run ended."""
    attack: Attacked | None = None
    """The attack on the run; None where there is none that the cell asks for."""


@dataclass(frozen=True)
class CellRecord:
    """The content of ``benchmarks/results/CELL.json``."""

    cell: str
    """Name of the cell, for people; `settings` are what it is found by."""
    settings: Settings
    """Resolved fields of the config, and options, that are not as in ``RunConfig()`` (`settings_of`)."""
    arch: str
    width: Ordinal
    cut_layer: Ordinal | None
    """Layers on the client; None in federated learning."""
    clients: Ordinal
    cohort: Ordinal
    batch_size: Ordinal
    """Images of a client and step."""
    steps: Count
    command: str
    """Commands that make the first of the runs."""
    runs: list[SeedRecord]
    """The runs, by seed."""
    sha256: str = ""
    """Checksum of all other entries."""


def settings_of(config: RunConfig) -> Settings:
    """Return what makes the result of a run: fields of its resolved config, and options, that are not as usual."""
    usual, own = (_without_how(setting(one.to_dict())) for one in (RunConfig(), config))
    return {name: value for name, value in own.items() if name not in usual or usual[name] != value}


def _without_how(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields without those that do not change what is learnt."""
    return {name: value for name, value in fields.items() if name not in _HOW}


def resolved(cell: Cell) -> Settings | None:
    """Return the `settings_of` a cell's runs, None for a cell that is not possible."""
    return None if cell.problem else settings_of(outline_of(config_of(cell), None).config)


class Kept:
    """The files of a directory, each with what is kept of the runs of a cell.

    Cells of equal settings, in several sections, share their file, which is named after the first of them.

    Args:
        path: the directory, such as ``benchmarks/results``.
        cells: all cells of the page.

    Attributes:
        records: what is kept, by the name of the file.

    Raises:
        ValueError: a file is damaged, is of no cell, or of the cell of another file.
    """

    def __init__(self, path: Path, cells: Iterable[Cell]):
        self.path, self.records = path, {}
        self._cells: dict[str, list[Cell]] = {}
        self._settings: dict[str, Settings] = {}
        for cell in cells:
            if (own := resolved(cell)) is not None:
                name = self._found(own) or cell.directory
                self._settings[name] = own
                self._cells.setdefault(name, []).append(cell)
        for file in sorted(path.glob("*.json")):
            record = read(file, CellRecord)
            name = self._found(record.settings)
            if name is None:
                raise ValueError(f"{file} is of no cell: {self._nearest(record.settings)}; allowed: without this file")
            if name != file.stem:
                raise ValueError(f"{file} is of the cell {name}; allowed: to rename it to {name}.json")
            self.records[name] = record

    def _found(self, settings: Settings) -> str | None:
        """Return the name of the file for some settings; None if no cell has them."""
        return next((name for name, own in self._settings.items() if own == settings), None)

    def _nearest(self, settings: Settings) -> str:
        """Return in what settings differ from those of the nearest cell, as text."""

        def apart(own: Settings) -> list[str]:
            return [name for name in {**own, **settings} if own.get(name, ...) != settings.get(name, ...)]

        name = min(self._settings, key=lambda one: len(apart(self._settings[one])))
        own, first = self._settings[name], apart(self._settings[name])[0]
        values = ["the default" if first not in one else shortened(one[first]) for one in (settings, own)]
        return f"{first.replace('_', ' ')} is {values[0]}, in the nearest cell ({name}) {values[1]}"

    def name_of(self, cell: Cell) -> str | None:
        """Return the name of the file of a cell, None for a cell that is not possible."""
        return next((name for name, own in self._cells.items() if cell in own), None)

    def of(self, cell: Cell) -> CellRecord | None:
        """Return what is kept of a cell's runs, None if nothing is."""
        return self.records.get(self.name_of(cell))

    def as_run(self, cell: Cell) -> Cell:
        """Return the cell that is run for a cell: the first of those with the same runs, with the attack of any."""
        together = self._cells[self.name_of(cell)]
        return replace(together[0], attack=next((one.attack for one in together if one.attack), None))

    def missing(self, cell: Cell, seeds: Sequence[int]) -> list[int]:
        """Return those of the seeds that a cell has no complete run of."""
        record, attack = self.of(cell), self.as_run(cell).attack
        have = {run.seed for run in record.runs if run.attack or not attack} if record else set()
        return [seed for seed in seeds if seed not in have]

    def add(self, directories: Sequence[Path]) -> tuple[dict[str, list[int]], list[str]]:
        """Keep what runs have reached; a run takes the place of one of the same seed.

        Args:
            directories: run directories.

        Returns:
            The seeds that were added by the name of the file, and a line for each run that was left out.

        Raises:
            ValueError: two of the runs have the same setting and seed.
        """
        new: dict[str, dict[int, tuple[Path, CellRecord]]] = {}
        left_out = []
        for path in directories:
            try:
                name, record = self._read(path)
            except ValueError as error:
                left_out.append(str(error))
                continue
            seed = record.runs[0].seed
            if seed in new.setdefault(name, {}):
                raise ValueError(f"add: {path} and {new[name][seed][0]} are the same run; allowed: each seed once")
            new[name][seed] = path, record
        for name, by_seed in new.items():
            before = {run.seed: run for run in self.records[name].runs} if name in self.records else {}
            runs = before | {seed: record.runs[0] for seed, (_, record) in by_seed.items()}
            record = next(iter(by_seed.values()))[1]
            self._write(name, replace(record, runs=[runs[seed] for seed in sorted(runs)]))
        return {name: sorted(by_seed) for name, by_seed in new.items()}, left_out

    def _write(self, name: str, record: CellRecord) -> None:
        """Write the file of a cell."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / f"{name}.json", to_json(record))
        self.records[name] = read(self.path / f"{name}.json", CellRecord)

    def _read(self, path: Path) -> tuple[str, CellRecord]:
        """Return the name of the cell of a run, and what is kept of the run.

        Raises:
            ValueError: the run is of no cell, has not ended or has no accuracy, or one of its files is damaged.
        """
        directory = RunDirectory(path)
        content, summary = directory.read_config(), directory.read_summary()
        settings = settings_of(content.config)
        name = self._found(settings)
        if name is None:
            raise ValueError(f"{path} is of no cell: {self._nearest(settings)}")
        if summary is None or summary.knn_top1 is None:
            raise ValueError(f"{path} has not ended with an accuracy; allowed: finished runs")
        directory.check_metrics(summary)
        cell, config = self.as_run(self._cells[name][0]), content.config
        run = _seed_record(directory, content, summary, cell.attack)
        return name, CellRecord(
            cell=cell.name,
            settings=settings,
            arch=config.arch,
            width=config.width,
            cut_layer=config.cut_layer if config.is_split else None,
            clients=config.clients,
            cohort=config.cohort,
            batch_size=config.batch_size,
            steps=summary.steps,
            command=command_of(cell),
            runs=[run],
        )


def _seed_record(directory: RunDirectory, content: RunRecord, summary: Summary, attack: Attack | None) -> SeedRecord:
    """Return what is kept of a run."""
    traffic = (summary.bytes_up_per_client, summary.bytes_down_per_client)
    ended = datetime.fromtimestamp(directory.summary.stat().st_mtime, timezone.utc)
    device = content.config.device
    return SeedRecord(
        seed=content.config.seed,
        knn_top1=summary.knn_top1,
        knn_top1_untrained=summary.knn_top1_untrained,
        knn_top1_pixels=summary.knn_top1_pixels,
        linear_top1=summary.linear_top1,
        loss=summary.loss,
        bytes=None if None in traffic else summary.clients * sum(traffic),
        seconds=summary.seconds,
        machine=content.machine or ("a CPU" if device == "cpu" else "a CUDA device"),
        card=device != "cpu",
        threads=content.threads,
        precision=content.config.precision,
        versions=content.versions,
        commit=content.git_commit,
        date=ended.date().isoformat(),
        attack=_attacked(directory, attack) if attack else None,
    )


def _attacked(directory: RunDirectory, attack: Attack) -> Attacked | None:
    """Return the result of an attack on a run, None if there is none of this kind with both similarities."""
    file = directory.attacks / f"{attack.decoder}.json"
    if not file.exists():
        return None
    found = read(file, AttackRecord)
    what = (found.attack, found.attacker_data, found.epochs, found.attacker_dataset, found.target_images)
    if what != ("decoder", attack.share, attack.epochs, None, None) or found.published_contrast:
        return None
    if found.ssim_mirrored is None:
        return None
    return Attacked(found.mse.mean, found.ssim.mean, found.ssim_mirrored.mean)


def run_directories(path: Path) -> list[Path]:
    """Return the run directories that a directory is or holds.

    Raises:
        ValueError: it is none and holds none.
    """
    found = [path] if (path / "config.json").is_file() else sorted(p.parent for p in path.glob("*/config.json"))
    if not found:
        raise ValueError(f"add: {path} holds no run; allowed: run directories, or directories of them")
    return found


def command_of(cell: Cell) -> str:
    """Return the commands that make the first run of a cell, and the attack on it if it has one, on one line."""
    out = str(RUNS / f"{cell.directory}-seed-0")
    lines = [["python", str(door("run")), *runner.flags_of(config_of(cell)), "--out", out]]
    if cell.attack:
        how = [*launchers.attack_flags(cell.attack), "--attack-epochs", str(cell.attack.epochs)]
        lines.append(["python", str(door("attack")), out, *how])
    return " && ".join(map(pasted, lines))
