"""The JSON files of a run directory as typed records, each with a checksum of its content.

The records of ``metrics.jsonl`` and ``live.json``, which change while a run goes on, are in `simsfl.runs.metrics`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeVar

from simsfl.config import RunConfig, plugins
from simsfl.config.plugins import Plugin
from simsfl.data import Dataset
from simsfl.privacy.decoders import Training
from simsfl.runs.metrics import AbsenceCount
from simsfl.system.decoding import Amount, Count, Ordinal, Percent, Range, decode, read_json
from simsfl.system.files import SEAL, checksum, digest, seal_of

__all__ = ["ProbeSummary", "Summary"]

_PLACES = ("device", "precision", "dataset", "data_dir", "aux_dataset", "init_client", "init_backbone", "track")
"""Fields of the config that may differ where a run goes on."""
_SETTLED = ("cohort", "batch_size", "rounds", "syncs_per_round", "width", "image_size", "client_lr")
"""Fields of a config that rules have filled in before it is recorded."""


class PluginError(ValueError):
    """The error that a run's record cannot be decoded, because a plugin has changed since or is not loaded."""


@dataclass(frozen=True)
class DatasetRecord:
    """The images that a run is trained on."""

    sha256: str
    """Checksum of the images (`simsfl.data.Dataset.checksum`)."""
    name: str = ""
    """Name of the data set, or the path where it lay."""
    origin: str = ""
    """Description, for people, of where it came from."""
    listing: str | None = None
    """Checksum of the names of its files alone; None where its images were read at once."""
    mean: list[float] | None = None
    """Mean per channel of pixels in [0, 1], by which images are normalised; None where earlier versions did not record
    it."""
    std: list[float] | None = None
    """Standard deviation per channel, in the same way."""

    @classmethod
    def of(cls, dataset: Dataset) -> DatasetRecord:
        """Return what is recorded of a data set."""
        mean, std = (values.flatten().tolist() for values in (dataset.train.mean, dataset.train.std))
        return cls(dataset.checksum, dataset.name, dataset.origin, dataset.listing, mean, std)

    def is_of(self, dataset: Dataset) -> bool:
        """Return whether these are the images of `dataset`, apart from files of the same names that were mended."""
        return self.sha256 == dataset.checksum or (self.listing is not None and self.listing == dataset.listing)


@dataclass(frozen=True)
class RunRecord:
    """The content of ``config.json``: what is run, on what and with what. It is never changed.

    Raises:
        ValueError: a rule has not been applied to the config.
    """

    config: RunConfig
    """The config with every rule applied, and with an option for each of the `defaults` that has changed since."""
    dataset: DatasetRecord
    """The images."""
    threads: Ordinal
    """Number of threads that the run began with."""
    choices: dict[str, str]
    """Versions of operators in use, by operator and shape."""
    by_rule: list[str] = field(default_factory=list)
    """Names of the fields of the config that rules have filled in."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Why a field of the config has its value, by name."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of Python and of packages, by name."""
    plugins: list[Plugin] = field(default_factory=list)
    """Code from outside simsfl that the run began with."""
    callbacks: list[str] = field(default_factory=list)
    """Classes of callbacks, observers and wires that were given to it in Python when it began."""
    defaults: dict[str, bool | int | float | str | None] = field(default_factory=dict)
    """Defaults of the options that the config does not give, as they were when the run began, by name."""
    files: dict[str, str] = field(default_factory=dict)
    """Checksums of the files that options of the config name, as they were then, by the names of these options."""
    machine: str | None = None
    """Model of the processor, or of the card, that the run began on; None where earlier versions did not record it."""
    git_commit: str | None = None
    """Commit of the source tree; None where it is not known."""
    start: str | None = None
    """Checksum of ``start.safetensors``; None where the run starts from no weights."""
    partition: str | None = None
    """Checksum of the partition in ``partition.npz``; None where the config says how images are divided."""
    sha256: str = ""
    """Checksum of all other entries."""

    @property
    def identity(self) -> str:
        """Return a checksum of what makes it this run and no other, which stays the same wherever it goes on.

        Options that the config has because their defaults have changed since the run began do not count.
        """
        return _identity(self.config.to_dict(), self.defaults, self.dataset, self.start, self.partition)

    def __post_init__(self) -> None:
        object.__setattr__(self, "config", self.config.keeping(self.defaults))
        for name in _SETTLED:
            if getattr(self.config, name) is None:
                raise ValueError(f"config.{name}: null is not what a run has")
        if self.config.precision == "auto":
            raise ValueError("config.precision: 'auto' is not what a run has")


@dataclass(frozen=True)
class ProbeSummary:
    """The result of a probe; see `simsfl.runs.metrics.ProbeRecord`."""

    top1: Percent
    best_top1: Percent
    features: str


@dataclass(frozen=True)
class Summary:
    """The content of ``summary.json``: the results of a finished run, None where something was not measured.

    Accuracies are percentages of the test images, and bytes and operations are means over clients.
    """

    preset: str
    method: str
    dataset: str
    clients: Ordinal
    cohort: Ordinal
    rounds: Count
    steps: Count
    loss: float | None
    contrast_top1: Percent | None
    knn_top1: Percent | None
    linear_top1: Percent | None
    probes: dict[str, ProbeSummary]
    knn_top1_untrained: Percent | None
    knn_top1_pixels: Percent | None
    seconds: Amount
    client_steps_per_second: Amount | None
    images_per_second: Amount | None
    peak_memory_bytes: Count
    bytes_up_per_client: Count | None
    bytes_down_per_client: Count | None
    bytes_saved_per_client: int | None
    client_flops_per_step: Count
    class_top1: dict[str, Percent | None] | None = None
    """kNN accuracy of each class, by its name."""
    clients_top1: dict[str, Percent] | None = None
    """"mean", "worst_tenth" and "std" of the clients' kNN accuracies, each on the classes that it holds."""
    output_std: Amount | None = None
    """Spread of the network's outputs; see `simsfl.runs.metrics.EvaluationRecord`."""
    absences: AbsenceCount | None = None
    """How often clients were absent; None where it was not counted from the beginning, as in earlier versions."""
    fleet_hours: Amount | None = None
    """Hours that the run took its fleet; None without one."""
    fleet_wh_per_client: Amount | None = None
    """Energy that a client took, in Wh, averaged over all clients of the run; None if it is not known."""
    fleet_server_wh: Amount | None = None
    """Energy that the server took, in Wh; None if it is not known."""
    metrics_sha256: str | None = None
    """Checksum of ``metrics.jsonl`` at the end of the run."""
    sha256: str = ""
    """Checksum of all other entries."""


@dataclass(frozen=True)
class Scores:
    """A measure of an attack, over its seeds."""

    mean: float
    std: Amount | None
    """Sample standard deviation; None for a single seed."""


LINEAR, KNN = "linear probe", "kNN"
"""Names of the two measures of accuracy that runs are compared by."""


class Measured(Protocol):
    """What has the accuracies of a run, in percent of the test images."""

    @property
    def linear_top1(self) -> float | None:
        """Accuracy of the linear probe; None without one."""

    @property
    def knn_top1(self) -> float | None:
        """Accuracy of kNN."""


def accuracies(runs: Sequence[Measured]) -> tuple[str, list[float]]:
    """Return the measure of runs, which is kNN if one has no linear probe, and their accuracies by it, in percent."""
    linear = [run.linear_top1 for run in runs if run.linear_top1 is not None]
    if len(linear) == len(runs):
        return LINEAR, linear
    return KNN, [run.knn_top1 for run in runs if run.knn_top1 is not None]


@dataclass(frozen=True)
class AttackRecord:
    """The content of ``attacks/NAME.json``: what an attack was, and how well it reconstructed images."""

    decoder: str | None
    """Name of the decoder; None where none is trained, which versions without `attack` have as "descent"."""
    attacker_data: Annotated[float, Range(0, 1)] | None
    """Share of the training images that the attacker has; None where it has none."""
    epochs: Ordinal | None
    """Epochs of the decoder; None where it is not trained in epochs."""
    target_client: Count | None
    """Id of the first client whose images are reconstructed; None where they are no client's."""
    targets: Ordinal
    """Number of images that are reconstructed."""
    seeds: list[Count]
    """Seeds of the attacks."""
    rounds: Count | None
    """Rounds that the run had done, or that clients were trained for by the attacker; None of weights alone."""
    mse: Scores
    """Mean squared error."""
    ssim: Scores
    """Structural similarity, of images that are continued at their borders as `ssim_borders` says."""
    psnr: Scores | None
    """Peak signal-to-noise ratio in dB; None where it has no bound, because an image is reconstructed exactly."""
    by_seed: dict[str, list[float | None]]
    """Each measure by name, for each of the seeds."""
    mean_image_mse: Amount
    """Mean squared error of an attacker who only knows the mean of the images."""
    training: list[Training | None]
    """Errors of the decoder by epoch, for each of the seeds; None where no decoder is trained."""
    target_clients: Ordinal | None = None
    """Number of clients that these images belong to; None in results of versions that did not record it."""
    attack: Literal["decoder", "descent", "fsha"] = "decoder"
    """Kind of the attack."""
    attacker_dataset: str | None = None
    """Data set that the attacker's images are of; None for the run's own."""
    ssim_borders: Literal["zeros", "mirror"] = "mirror"
    """How `ssim` continues images: "zeros" is the published convention; versions that did not record it mirrored."""
    ssim_mirrored: Scores | None = None
    """Structural similarity of images that are mirrored at their borders, beside the published one."""
    published_contrast: bool = False
    """Whether the contrast of the images was lowered, as in the published evaluation."""
    target_images: str | None = None
    """File with the images that are reconstructed; None for those of clients, or of weights, the test images."""
    weights: str | None = None
    """What was attacked: a file, the directory of a run or the name of an expert; None for the run itself."""
    network: dict[str, str | float | bool | None] | None = None
    """Fields of the config that determine the network of these weights."""
    dataset: str | None = None
    """Data set that these weights were attacked on."""
    sha256: str = ""
    """Checksum of all other entries."""

    def __post_init__(self) -> None:
        if (self.ssim_borders == "zeros") != (self.ssim_mirrored is not None):
            raise ValueError(f"ssim_mirrored: is not what an attack has whose ssim_borders is {self.ssim_borders}")

    @property
    def similarities(self) -> dict[str, Scores]:
        """Return the structural similarity by how it continues images: "zeros", "mirror", or both, in this order."""
        found: dict[str, Scores] = {self.ssim_borders: self.ssim}
        return found | ({"mirror": self.ssim_mirrored} if self.ssim_mirrored else {})


def check_plugins(path: Path) -> None:
    """Raise a ValueError unless the plugins of the run that a ``config.json`` describes are loaded; warn of others.

    Without them its config could not be decoded. What else is wrong with the file is for `read` to say.
    """
    try:
        content = read_json(path)
    except ValueError:
        return
    plugins.check(plugins.plugins_in(content))


def sources(config: RunConfig) -> tuple[list[Plugin], dict[str, str]]:
    """Return the plugins that a config uses, and the checksums of the files that its options name, as they are now."""
    files = {name: Path(file) for name, file in config.files.items()}
    return config.plugins, {name: digest(file) for name, file in files.items() if file.is_file()}


class _Sealed(Protocol):
    """A dataclass with the field `sha256`."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def sha256(self) -> str: ...


R = TypeVar("R", bound=_Sealed)


def lasting(config: RunConfig) -> dict[str, Any]:
    """Return the fields of a config that stay the same wherever a run goes on.

    Device and precision may differ: a run may be resumed on a device that does not support its precision. So may paths,
    for checksums say which images and which weights they lead to. Fields with their defaults are left out, so that
    fields that later versions add do not make it another run. Where earlier versions did otherwise than the default of
    a field that they did not have, this is left out instead.
    """
    return _lasting(config.to_dict())


def _lasting(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `lasting` does of a config whose fields have these values; plugins that it names may be missing."""
    usual = RunConfig(**RunConfig.before(values)).to_dict()
    values = {**usual, **values}
    there = {name: values[name] is None for name in ("aux_dataset", "init_client")}
    changed = {name: value for name, value in values.items() if name not in usual or value != usual[name]}
    return {name: value for name, value in changed.items() if name not in _PLACES} | there


def _identity(
    values: Mapping[str, Any],
    defaults: Mapping[str, Any],
    dataset: DatasetRecord,
    start: str | None,
    partition: str | None,
) -> str:
    """Return `RunRecord.identity` of a run whose config has these values; `defaults` are those of options."""
    options = {name: value for name, value in values.get("options", {}).items() if name not in defaults}
    given = {"partition": partition} if partition else {}  # earlier versions had none
    images = dataset.listing or dataset.sha256
    return checksum({"config": _lasting({**values, "options": options}), "images": images, "start": start} | given)


def identity_in(path: Path) -> str | None:
    """Return the identity of the run that a ``config.json`` describes, None if it describes none.

    Plugins of the run may be missing, or have changed so that its config cannot be decoded.
    """
    try:
        return read(path, RunRecord).identity
    except PluginError:
        content = read_json(path)
        values, dataset = content.get("config"), content.get("dataset")
        if not isinstance(values, dict) or not isinstance(dataset, dict):
            return None
        rest = content.get("start"), content.get("partition")
        return _identity(values, content.get("defaults", {}), decode(DatasetRecord, dataset), *rest)
    except ValueError:
        return None


def to_json(record: R) -> dict[str, Any]:
    """Return a record as its file has it, with its checksum."""
    content = asdict(record)
    return content | {SEAL: seal_of(content)}


def read(path: Path, kind: type[R]) -> R:
    """Return the record in a file.

    Files from before checksums were introduced have none; the record has it all the same. Fields of a config that
    earlier versions did not have are as they were to these.

    Raises:
        PluginError: it is as a run wrote it, but a plugin that the run uses is not as it was.
        ValueError: there is no such file, or it is damaged or edited.
    """
    content = read_json(path)
    try:
        record = decode(kind, _with_before(content) if kind is RunRecord else content)
        own = seal_of(content)
        if record.sha256 not in ("", own):
            raise ValueError("its checksum is not that of its content")
        return replace(record, sha256=own)
    except ValueError as error:
        used = [plugin.name for plugin in plugins.plugins_in(content)] if kind is RunRecord else []
        if used and content.get(SEAL) == seal_of(content):
            which = "which has" if len(used) == 1 else "of which one has"
            raise PluginError(
                f"{path} was written with {' and '.join(used)}, {which} changed since ({error})"
            ) from error
        raise ValueError(f"{path} is damaged, or was edited ({error})") from error


def _with_before(content: Any) -> Any:
    """Return the content of a ``config.json`` with what an earlier version's run lacks (`RunConfig.before`)."""
    values = content.get("config") if isinstance(content, dict) else None
    return content | {"config": RunConfig.before(values) | values} if isinstance(values, dict) else content
