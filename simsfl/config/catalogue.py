"""What there is to choose from, each choice once: what is known of it, and the code behind it.

Code is named by module and object, and imported when it is asked for, so that ``--help`` needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from simsfl.config.registry import Code


class Targets(Enum):
    """What an objective compares the online network's outputs for a view with."""

    MOMENTUM = "momentum"
    """Outputs of the momentum network for the other view, without gradient."""
    ONLINE = "online"
    """Outputs of the online network itself for the other view, with gradient: clients learn from both views."""
    LABELS = "labels"
    """Labels; clients make one view of each image."""


@dataclass(frozen=True)
class ObjectiveKind:
    """The code of an objective, and what it needs of a run."""

    code: Code
    """A subclass of `simsfl.objectives.Objective`."""
    targets: Targets = Targets.MOMENTUM
    """What the network's outputs are compared with."""
    whole_batch: bool = False
    """Whether the figures of a row depend on other rows of the step, so that these cannot be handled in parts."""
    queue: bool = False
    """Whether it has a queue of keys, of which each client may have its own."""
    labels: bool = False
    """Whether it is told the classes of the images, which its memory then has by the name "labels"."""
    predictor: bool = False
    """Whether a predictor follows the projection head."""
    head: str = "mlp"
    """Name of the projection head, in `HEADS`, that it has unless a config sets another."""
    rows: int = 1
    """Fewest images that it needs at a time: of a step, or in federated learning of a client's batch."""

    @property
    def needs_labels(self) -> bool:
        """Return whether it learns from labels, as targets or beside them."""
        return self.labels or self.targets is Targets.LABELS


_WITH_BATCH_NORM = "large-mlp"
"""Head of objectives that do not learn without BatchNorm in their head, or learn less."""
OBJECTIVES = {
    "moco": ObjectiveKind(Code("simsfl.objectives.moco:MoCo"), queue=True),
    "byol": ObjectiveKind(Code("simsfl.objectives.byol:BYOL"), whole_batch=True, predictor=True, head=_WITH_BATCH_NORM),
    "simclr": ObjectiveKind(Code("simsfl.objectives.simclr:SimCLR"), Targets.ONLINE, rows=2),
    "simsiam": ObjectiveKind(
        Code("simsfl.objectives.simsiam:SimSiam"), Targets.ONLINE, predictor=True, head=_WITH_BATCH_NORM
    ),
    "barlow-twins": ObjectiveKind(
        Code("simsfl.objectives.barlow_twins:BarlowTwins"), Targets.ONLINE, rows=2, head=_WITH_BATCH_NORM
    ),
    "supervised": ObjectiveKind(Code("simsfl.objectives.supervised:Supervised"), Targets.LABELS),
}
"""Objectives by name."""


AGGREGATIONS = {
    "mean": Code("simsfl.aggregations:Aggregation"),
    "by-images": Code("simsfl.aggregations.weighted:ByImages"),
    "trimmed-mean": Code("simsfl.aggregations.weighted:TrimmedMean"),
    "median": Code("simsfl.aggregations.weighted:Median"),
    "fedavgm": Code("simsfl.aggregations.server_step:FedAvgM"),
    "fedadam": Code("simsfl.aggregations.server_step:FedAdam"),
}
"""Aggregations by name: subclasses of `simsfl.aggregations.Aggregation`."""


@dataclass(frozen=True)
class SamplerKind:
    """A way to draw the cohort of a round."""

    code: Code
    """A subclass of `simsfl.samplers.Sampler`."""
    absences: bool = False
    """Whether it says which clients do not come, and so has an effect where all clients are drawn, too."""
    fleet: bool = False
    """Whether it needs to know the clients' devices."""


SAMPLERS = {
    "uniform": SamplerKind(Code("simsfl.samplers:Sampler")),
    "by-images": SamplerKind(Code("simsfl.samplers.orders:ByImages")),
    "round-robin": SamplerKind(Code("simsfl.samplers.orders:RoundRobin")),
    "availability": SamplerKind(Code("simsfl.samplers.availability:Availability"), absences=True),
    "fleet": SamplerKind(Code("simsfl.fleet.selection:FleetSampler"), fleet=True),
}
"""How the cohort of a round is drawn."""


@dataclass(frozen=True)
class OptimizerKind:
    """A way in which clients and server descend."""

    code: Code
    """A subclass of `simsfl.optimisers.Optimiser`."""
    settings: tuple[str, ...] = ()
    """Names of the settings that it takes: "momentum" and "weight_decay"."""
    exact: bool = False
    """Whether what it remembers has to be exact, such as a number of steps, so that it cannot be kept in bf16."""


_OF_SGD = ("momentum", "weight_decay")
OPTIMIZERS = {
    "sgd": OptimizerKind(Code("simsfl.optimisers:SGD"), _OF_SGD),
    "adamw": OptimizerKind(Code("simsfl.optimisers.adamw:AdamW"), ("weight_decay",), exact=True),
    "lars": OptimizerKind(Code("simsfl.optimisers.lars:LARS"), _OF_SGD),
}
"""How clients and server descend."""


@dataclass(frozen=True)
class DefenceKind:
    """Something that clients do with what they send and learn from."""

    code: Code
    """A subclass of `simsfl.defences.Defence`."""
    images: int = 1
    """Fewest images of a client's batch that it works with."""


DEFENCES = {
    "gaussian": DefenceKind(Code("simsfl.defences.noise:Gaussian")),
    "laplacian": DefenceKind(Code("simsfl.defences.noise:Laplacian")),
    "clip": DefenceKind(Code("simsfl.defences.noise:Clip")),
    "nopeek": DefenceKind(Code("simsfl.defences.nopeek:NoPeek"), images=3),
    "int8": DefenceKind(Code("simsfl.defences.compression:Int8")),
    "fp16": DefenceKind(Code("simsfl.defences.compression:Half")),
    "top-k": DefenceKind(Code("simsfl.defences.compression:TopK")),
    "taressfl": DefenceKind(Code("simsfl.defences.taressfl:TAResSFL")),
}
"""What clients do with what they send and learn from."""


@dataclass(frozen=True)
class Method:
    """A method of training: its step with the cohort stacked, and with one client after the other.

    See `simsfl.algorithm.step.train_step` for the arguments of both.
    """

    stacked: Code
    """Step with all clients of the cohort as one batched program."""
    looped: Code
    """Step with one client after the other: the oracle."""
    split: bool
    """Whether the network is cut between clients and server; in federated learning, clients have all of it."""
    objective: str
    """Name of the objective, in `OBJECTIVES`, that the method has unless a config sets another."""
    fixed: bool = False
    """Whether a config may set no other objective."""


@dataclass(frozen=True)
class Precision:
    """A precision of forward passes and smashed data."""

    note: str
    """What is computed in it, for people."""
    dtype: str = "float32"
    """Name of PyTorch's type of the numbers."""
    anywhere: bool = True
    """Whether every device has it, so that devices can repeat what a client did in it."""


PRECISIONS = {
    "fp32": Precision("products and convolutions without TF32"),
    "tf32": Precision("TF32 in products and convolutions, all else in fp32", anywhere=False),
    "bf16": Precision("forward passes and smashed data; weights, queue and loss in fp32", "bfloat16"),
}
"""Precisions by name."""

_SPLIT = Code("simsfl.algorithm.step:train_step"), Code("simsfl.algorithm.reference:train_step")
_FEDERATED = Code("simsfl.algorithm.federated:train_step"), Code("simsfl.algorithm.reference:federated_step")
METHODS = {
    "mocosfl": Method(*_SPLIT, split=True, objective="moco"),
    "federated": Method(*_FEDERATED, split=False, objective="moco"),
    "fl-moco": Method(*_FEDERATED, split=False, objective="moco", fixed=True),
    "fl-byol": Method(*_FEDERATED, split=False, objective="byol", fixed=True),
}
"""Methods of training."""


@dataclass(frozen=True)
class Architecture:
    """A backbone."""

    width: int
    """Channels of the first layer by rule, as published."""
    code: Code
    """Function of width, image size and style that returns a `simsfl.models.layers.Backbone`, or a frozen dataclass
    whose objects are called so, and whose fields are options."""
    residual: bool = True
    """Whether its blocks have shortcuts that the client's can do without."""
    styled: bool = True
    """Whether the normalisation of its convolutions can be chosen."""
    own_weights: bool = False
    """Whether its layers are used with the weights that they come with, instead of Xavier's."""
    bf16_on_cpu: bool = False
    """Whether precision "auto" is bf16 on CPUs that have it, because there it was tested, and found to be faster."""


ARCHITECTURES = {
    "resnet8": Architecture(16, Code("simsfl.models.resnet:resnet8")),
    "resnet8-s1": Architecture(16, Code("simsfl.models.resnet:resnet8_s1"), bf16_on_cpu=True),
    "resnet18": Architecture(64, Code("simsfl.models.resnet:resnet18")),
    "resnet34": Architecture(64, Code("simsfl.models.resnet:resnet34")),
    "resnet50": Architecture(64, Code("simsfl.models.resnet:resnet50")),
    "resnet101": Architecture(64, Code("simsfl.models.resnet:resnet101")),
    "resnet152": Architecture(64, Code("simsfl.models.resnet:resnet152")),
    "vgg11": Architecture(64, Code("simsfl.models.vgg:vgg11"), residual=False),
    "vgg13": Architecture(64, Code("simsfl.models.vgg:vgg13"), residual=False),
    "vgg16": Architecture(64, Code("simsfl.models.vgg:vgg16"), residual=False),
    "vgg19": Architecture(64, Code("simsfl.models.vgg:vgg19"), residual=False),
    "mobilenetv2": Architecture(32, Code("simsfl.models.mobilenetv2:mobilenetv2")),
    "vit-tiny": Architecture(192, Code("simsfl.models.vit:ViT"), residual=False, styled=False),
    "vit-small": Architecture(384, Code("simsfl.models.vit:ViT"), residual=False, styled=False),
    "convnext-tiny": Architecture(96, Code("simsfl.models.convnext:convnext"), residual=False, styled=False),
}
"""Backbones."""

HEADS = {
    "linear": Code("simsfl.models.heads:linear_head"),
    "mlp": Code("simsfl.models.heads:mlp_head"),
    "large-mlp": Code("simsfl.models.heads:large_mlp_head"),
}
"""Projection heads: functions of a backbone and the key dimension that return a module."""


@dataclass(frozen=True)
class PartitionKind:
    """A way to divide images among clients."""

    code: Code
    """A subclass of `simsfl.data.partition.Partitioner`."""
    settings: tuple[str, ...] = ()
    """Names of the config's fields that it takes, which may be "classes_per_client" and "alpha"."""


PARTITIONS = {
    "iid": PartitionKind(Code("simsfl.data.partition:IID")),
    "shards": PartitionKind(Code("simsfl.data.partition:Shards"), ("classes_per_client",)),
    "dirichlet": PartitionKind(Code("simsfl.data.partition:Dirichlet"), ("alpha",)),
    "natural": PartitionKind(Code("simsfl.data.partition:Natural")),
    "given": PartitionKind(Code("simsfl.data.partition:Given")),
}
"""How images are divided among clients."""


@dataclass(frozen=True)
class DataSet:
    """A data set that has a name."""

    code: Code
    """Function of a `simsfl.data.load.Request` that returns a `simsfl.data.Dataset`."""
    note: str
    """What the images show, or where their files have to lie."""
    images: int | None
    """Training images; None where their number is not known."""
    test_images: int | None
    """Test images; None where their number is not known."""
    image_size: int = 32
    """Height and width of its images."""
    classes: int = 10
    """Number of classes."""
    labelled: bool = True
    """Whether the images that clients hold have labels."""
    in_files: bool = False
    """Whether its pictures lie in files, and may be decoded when they are needed."""

    @property
    def about(self) -> str:
        """Return one line for ``--list``."""
        count = f"{self.images:,} + {self.test_images:,} images" if self.images else "images"
        return f"{count} of {self.image_size}x{self.image_size}, {self.classes:,} classes: {self.note}"


HUB = "hf:"
"""Beginning of the names of data sets of the Hugging Face hub."""

DATASETS = {
    "auto": DataSet(
        Code("simsfl.data.load:automatic"),
        "CIFAR-10 if it is in the cache, in DATA_DIR, or can be downloaded, else the built-in shapes",
        50_000,
        10_000,
    ),
    "cifar10": DataSet(Code("simsfl.data.load:cifar10"), "objects and animals", 50_000, 10_000),
    "cifar100": DataSet(Code("simsfl.data.load:cifar100"), "objects and animals", 50_000, 10_000, classes=100),
    "svhn": DataSet(Code("simsfl.data.load:svhn"), "digits of house numbers", 73_257, 26_032),
    "stl10": DataSet(Code("simsfl.data.load:stl10"), "objects and animals", 5_000, 8_000, image_size=96),
    "stl10-unlabelled": DataSet(
        Code("simsfl.data.load:stl10_unlabelled"),
        "those of STL-10 without labels, for clients; its others serve evaluation",
        100_000,
        8_000,
        image_size=96,
        labelled=False,
    ),
    "tiny-imagenet": DataSet(
        Code("simsfl.data.load:tiny_imagenet"),
        "its archive, unpacked in DATA_DIR",
        100_000,
        10_000,
        image_size=64,
        classes=200,
        in_files=True,
    ),
    "imagenet12": DataSet(
        Code("simsfl.data.load:imagenet12"),
        "a part of ImageNet, in DATA_DIR/imagenet-12; prepare-imagenet12 makes it",
        None,
        None,
        image_size=224,
        classes=12,
        in_files=True,
    ),
    "imagenet": DataSet(
        Code("simsfl.data.load:imagenet"),
        "ImageNet-1k, in DATA_DIR/imagenet: train/CLASS/* and val/CLASS/*",
        1_281_167,
        50_000,
        image_size=224,
        classes=1000,
        in_files=True,
    ),
    "shapes": DataSet(Code("simsfl.data.load:built_in"), "built in, drawn from the seed", 50_000, 10_000),
}
"""What ``--dataset`` takes besides the path of an ``.npz`` file or an ImageFolder directory."""


CALLBACKS: dict[str, Code] = {}
"""Callbacks by name, all of them from plugins: subclasses of `simsfl.rounds.callback.Callback`."""


@dataclass(frozen=True)
class TrackerKind:
    """A program of others that gets the records of a run."""

    code: Code
    """A subclass of `simsfl.runs.tracking.Tracker`."""
    package: str | None = None
    """Name of the package that it needs, an extra; None for none."""


TRACKERS = {
    "tensorboard": TrackerKind(Code("simsfl.runs.tracking.tensorboard_events:TensorBoard"), "tensorboard"),
    "wandb": TrackerKind(Code("simsfl.runs.tracking.wandb_run:WandB"), "wandb"),
    "mlflow": TrackerKind(Code("simsfl.runs.tracking.mlflow_run:MLflow"), "mlflow"),
    "csv": TrackerKind(Code("simsfl.runs.tracking.csv_files:Csv")),
}
"""Trackers by name."""

DOORS: dict[str, dict[str, Any]] = {
    "objective": OBJECTIVES,
    "aggregation": AGGREGATIONS,
    "sampler": SAMPLERS,
    "optimizer": OPTIMIZERS,
    "defence": DEFENCES,
    "callback": CALLBACKS,
    "arch": ARCHITECTURES,
    "head": HEADS,
    "partition": PARTITIONS,
    "dataset": DATASETS,
}
"""What `simsfl.extend` adds to, by the field of a config that chooses from it."""
