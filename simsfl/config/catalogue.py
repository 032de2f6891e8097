"""What there is to choose from, each choice once: what is known of it, and the code behind it.

Code is named by module and object, and imported when it is asked for, so that ``--help`` needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Code:
    """An object of a module that is imported when it is asked for.

    >>> Code("math:floor").load()(2.5)
    2
    """

    path: str
    """Module and object, such as ``simsfl.models.resnet:resnet8``."""

    def load(self) -> Any:
        """Import the module and return the object."""
        module, _, name = self.path.partition(":")
        return getattr(import_module(module), name)


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
    queue: bool
    """Whether queries are contrasted with the keys of a queue, which federated clients have one each of."""
    predictor: bool = False
    """Whether BYOL's predictor follows the projection head."""


METHODS = {
    "mocosfl": Method(
        Code("simsfl.algorithm.step:train_step"),
        Code("simsfl.algorithm.reference:train_step"),
        split=True,
        queue=True,
    ),
    "fl-moco": Method(
        Code("simsfl.algorithm.federated:moco_step"),
        Code("simsfl.algorithm.reference:moco_step"),
        split=False,
        queue=True,
    ),
    "fl-byol": Method(
        Code("simsfl.algorithm.federated:byol_step"),
        Code("simsfl.algorithm.reference:byol_step"),
        split=False,
        queue=False,
        predictor=True,
    ),
}
"""Methods of training."""


@dataclass(frozen=True)
class Architecture:
    """A backbone."""

    width: int
    """Channels of the first layer by rule, as published."""
    builder: Code
    """Function of width, image size and style that returns a `simsfl.models.layers.Backbone`."""
    residual: bool = True
    """Whether its blocks have shortcuts."""


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
    """Function of labels ``[n]``, weights of the clients ``[M]``, a NumPy generator, and the settings, by name, that
    returns a `simsfl.data.partition.Partition`."""
    settings: tuple[str, ...] = ()
    """Names of the settings that the function takes: "classes_per_client", "alpha", both or neither."""
    random_sizes: bool = False
    """Whether it draws how many images clients hold: it then divides all, and is drawn again where a client would hold
    too few. Otherwise what does not divide into equal parts is left out."""


PARTITIONS = {
    "iid": PartitionKind(Code("simsfl.data.partition:iid")),
    "shards": PartitionKind(Code("simsfl.data.partition:shards"), ("classes_per_client",)),
    "dirichlet": PartitionKind(Code("simsfl.data.partition:dirichlet"), ("alpha",), random_sizes=True),
}
"""How images are divided among clients."""


@dataclass(frozen=True)
class DataSet:
    """A data set that has a name."""

    loader: Code
    """Function of a `simsfl.data.load.Request` that returns a `simsfl.data.Dataset`."""
    note: str
    """What it is, or where it is taken from."""
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
