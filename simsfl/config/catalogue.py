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


METHODS = {
    "mocosfl": Method(Code("simsfl.algorithm.step:train_step"), Code("simsfl.algorithm.reference:train_step")),
    "fl-moco": Method(Code("simsfl.algorithm.federated:moco_step"), Code("simsfl.algorithm.reference:moco_step")),
    "fl-byol": Method(Code("simsfl.algorithm.federated:byol_step"), Code("simsfl.algorithm.reference:byol_step")),
}
"""Methods of training."""


@dataclass(frozen=True)
class Architecture:
    """A backbone."""

    width: int
    """Channels of the first layer by rule, as published."""
    builder: Code
    """Function of width, image size and style that returns a `simsfl.models.layers.Backbone`."""


ARCHITECTURES = {
    "resnet8": Architecture(16, Code("simsfl.models.resnet:resnet8")),
    "resnet18": Architecture(64, Code("simsfl.models.resnet:resnet18")),
    "resnet34": Architecture(64, Code("simsfl.models.resnet:resnet34")),
    "resnet50": Architecture(64, Code("simsfl.models.resnet:resnet50")),
    "resnet101": Architecture(64, Code("simsfl.models.resnet:resnet101")),
    "resnet152": Architecture(64, Code("simsfl.models.resnet:resnet152")),
    "vgg11": Architecture(64, Code("simsfl.models.vgg:vgg11")),
    "vgg13": Architecture(64, Code("simsfl.models.vgg:vgg13")),
    "vgg16": Architecture(64, Code("simsfl.models.vgg:vgg16")),
    "vgg19": Architecture(64, Code("simsfl.models.vgg:vgg19")),
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
    """Whether it draws how many images clients hold: it is then drawn again where a client would hold too few."""


PARTITIONS = {
    "iid": PartitionKind(Code("simsfl.data.partition:iid")),
    "shards": PartitionKind(Code("simsfl.data.partition:shards"), ("classes_per_client",)),
    "dirichlet": PartitionKind(Code("simsfl.data.partition:dirichlet"), ("alpha",), random_sizes=True),
}
"""How images are divided among clients."""


@dataclass(frozen=True)
class DataSet:
    """A data set that has a name."""

    about: str
    """One line for ``--list``."""
    loader: Code
    """Function of a `simsfl.data.load.Request` that returns a `simsfl.data.Dataset`."""
    images: int | None = None
    """Training images; None where that is not known."""
    image_size: int = 32
    """Height and width of its images."""
    classes: int = 10
    """Number of classes."""
    in_files: bool = False
    """Whether its pictures lie in files, and may be decoded when they are needed."""


DATASETS = {
    "auto": DataSet(
        "CIFAR-10 from the cache, from files or by download; the built-in shapes where it cannot be had",
        Code("simsfl.data.load:automatic"),
        50_000,
    ),
    "cifar10": DataSet("50,000 + 10,000 images of 32x32, 10 classes", Code("simsfl.data.load:cifar10"), 50_000),
    "cifar100": DataSet(
        "50,000 + 10,000 images of 32x32, 100 classes", Code("simsfl.data.load:cifar100"), 50_000, classes=100
    ),
    "svhn": DataSet("73,257 + 26,032 house numbers of 32x32, 10 classes", Code("simsfl.data.load:svhn"), 73_257),
    "stl10": DataSet("5,000 + 8,000 images of 96x96, 10 classes", Code("simsfl.data.load:stl10"), 5_000, image_size=96),
    "tiny-imagenet": DataSet(
        "100,000 + 10,000 images of 64x64, 200 classes: the archive, unpacked in DATA_DIR",
        Code("simsfl.data.load:tiny_imagenet"),
        100_000,
        image_size=64,
        classes=200,
        in_files=True,
    ),
    "imagenet12": DataSet(
        "12 classes of ImageNet, at 224x224, in DATA_DIR/imagenet-12, which `simsfl prepare-imagenet12` makes",
        Code("simsfl.data.load:imagenet12"),
        image_size=224,
        classes=12,
        in_files=True,
    ),
    "imagenet": DataSet(
        "ImageNet-1k, at 224x224, in DATA_DIR/imagenet: train/CLASS/* and val/CLASS/*",
        Code("simsfl.data.load:imagenet"),
        1_281_167,
        image_size=224,
        classes=1000,
        in_files=True,
    ),
    "shapes": DataSet(
        "built in, drawn from the seed: 50,000 + 10,000 images of 32x32, 10 classes",
        Code("simsfl.data.load:built_in"),
        50_000,
    ),
}
"""What ``--dataset`` takes besides the path of an ``.npz`` file or an ImageFolder directory."""
