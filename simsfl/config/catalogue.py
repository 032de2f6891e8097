"""What there is to choose from, each choice once: what is known of it, and the code behind it.

Code is named by module and object, and imported when it is asked for, so that ``--help`` needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

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
    predictor: bool = False
    """Whether a predictor follows the projection head."""


OBJECTIVES = {
    "moco": ObjectiveKind(Code("simsfl.objectives.moco:MoCo"), queue=True),
    "byol": ObjectiveKind(Code("simsfl.objectives.byol:BYOL"), whole_batch=True, predictor=True),
    "simclr": ObjectiveKind(Code("simsfl.objectives.simclr:SimCLR"), Targets.ONLINE),
    "simsiam": ObjectiveKind(Code("simsfl.objectives.simsiam:SimSiam"), Targets.ONLINE, predictor=True),
    "barlow-twins": ObjectiveKind(Code("simsfl.objectives.barlow_twins:BarlowTwins"), Targets.ONLINE),
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


SAMPLERS = {
    "uniform": Code("simsfl.samplers:Sampler"),
    "by-images": Code("simsfl.samplers.orders:ByImages"),
    "round-robin": Code("simsfl.samplers.orders:RoundRobin"),
    "availability": Code("simsfl.samplers.availability:Availability"),
}
"""How the cohort of a round is drawn: subclasses of `simsfl.samplers.Sampler`."""


OPTIMIZERS = {
    "sgd": Code("simsfl.optimisers:SGD"),
    "adamw": Code("simsfl.optimisers.adamw:AdamW"),
    "lars": Code("simsfl.optimisers.lars:LARS"),
}
"""How clients and server descend: subclasses of `simsfl.optimisers.Optimiser`."""


DEFENCES = {
    "gaussian": Code("simsfl.defences.noise:Gaussian"),
    "laplacian": Code("simsfl.defences.noise:Laplacian"),
    "clip": Code("simsfl.defences.noise:Clip"),
    "nopeek": Code("simsfl.defences.nopeek:NoPeek"),
    "int8": Code("simsfl.defences.compression:Int8"),
    "fp16": Code("simsfl.defences.compression:Half"),
    "top-k": Code("simsfl.defences.compression:TopK"),
}
"""What clients do with what they send and learn from: subclasses of `simsfl.defences.Defence`."""


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
    """Function of width, image size and style that returns a `simsfl.models.layers.Backbone`."""
    residual: bool = True
    """Whether its blocks have shortcuts that the client's can do without."""
    styled: bool = True
    """Whether the normalisation of its convolutions can be chosen."""
    own_weights: bool = False
    """Whether its layers are used with the weights that they come with, instead of Xavier's."""


ARCHITECTURES = {
    "resnet8": Architecture(16, Code("simsfl.models.resnet:resnet8")),
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
    "vit-tiny": Architecture(192, Code("simsfl.models.vit:vit"), residual=False, styled=False),
    "vit-small": Architecture(384, Code("simsfl.models.vit:vit"), residual=False, styled=False),
    "convnext-tiny": Architecture(96, Code("simsfl.models.convnext:convnext"), residual=False, styled=False),
}
"""Backbones."""

HEADS = {
    "linear": Code("simsfl.models.heads:linear_head"),
    "mlp": Code("simsfl.models.heads:mlp_head"),
    "large-mlp": Code("simsfl.models.heads:large_mlp_head"),
}
"""Projection heads: functions of a backbone and the key dimension that return a module."""


PARTITIONS = {
    "iid": Code("simsfl.data.partition:IID"),
    "shards": Code("simsfl.data.partition:Shards"),
    "dirichlet": Code("simsfl.data.partition:Dirichlet"),
    "natural": Code("simsfl.data.partition:Natural"),
    "given": Code("simsfl.data.partition:Given"),
}
"""How images are divided among clients: subclasses of `simsfl.data.partition.Partitioner`."""


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

DOORS = {
    "objective": OBJECTIVES,
    "aggregation": AGGREGATIONS,
    "sampler": SAMPLERS,
    "optimizer": OPTIMIZERS,
    "defence": DEFENCES,
    "callback": CALLBACKS,
    "arch": ARCHITECTURES,
    "partition": PARTITIONS,
    "dataset": DATASETS,
}
"""What `simsfl.extend` adds to, by the field of a config that chooses from it."""
