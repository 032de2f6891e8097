"""The configuration of a run: one documented field per decision, validated on construction.

Every field is also a flag of ``experiments/run.py``. Library functions take plain arguments; only
`Simulation` and the programs in ``experiments/`` see a `RunConfig`. Nothing here imports torch, so that ``--help``
answers at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from simsfl.config.constraints import (
    AVERAGED,
    EXCLUSIONS,
    EXPERT,
    INFINITY,
    KEYS,
    LEARNING,
    PROBED,
    RANGES,
    RESISTANCE,
    SERVED,
    SHORTCUTS,
    SPLIT,
    STREAMABLE,
    Condition,
    unless,
    when,
)
from simsfl.config.notation import Bottleneck, Decoder, Unequal
from simsfl.system.messages import shortened, unknown

METHODS = ("mocosfl", "fl-moco", "fl-byol")
ENGINES = ("fused", "fused:grouped", "fused:unfold", "fused:triton", "vmap", "loop")
PRECISIONS = ("fp32", "tf32", "bf16")
STATE_DTYPES = ("fp32", "bf16")
CLIENT_STATES = ("device", "host", "mmap")
ARCHITECTURES = {
    "resnet8": 16,
    **dict.fromkeys(("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"), 64),
    **dict.fromkeys(("vgg11", "vgg13", "vgg16", "vgg19"), 64),
    "mobilenetv2": 32,
}
"""Each with the channels that its first layer has by rule: as published."""
NORMS = ("group", "batch")
HEADS = ("linear", "mlp", "large-mlp")
PARTITIONS = ("iid", "shards", "dirichlet")
RECIPES = ("v1", "v2")
STREAMS = ("auto", "always", "never")
SCHEDULES = ("cosine", "step")
CLIENT_SCHEDULES = (*SCHEDULES, "oscillating")
FEATURES = ("backbone", "projector")
DATASETS = {
    "auto": "CIFAR-10 from the cache, from files or by download; the built-in shapes where it cannot be had",
    "cifar10": "50,000 + 10,000 images of 32x32, 10 classes",
    "cifar100": "50,000 + 10,000 images of 32x32, 100 classes",
    "svhn": "73,257 + 26,032 house numbers of 32x32, 10 classes",
    "stl10": "5,000 + 8,000 images of 96x96, 10 classes",
    "tiny-imagenet": "100,000 + 10,000 images of 64x64, 200 classes: the archive, unpacked in DATA_DIR",
    "imagenet12": "12 classes of ImageNet, at 224x224, in DATA_DIR/imagenet-12: see prepare_imagenet12.py",
    "imagenet": "ImageNet-1k, at 224x224, in DATA_DIR/imagenet: train/CLASS/* and val/CLASS/*",
    "shapes": "built in, drawn from the seed: 50,000 + 10,000 images of 32x32, 10 classes",
}
"""What ``--dataset`` takes besides the path of an ``.npz`` file or an ImageFolder directory."""


def setting(
    default: Any,
    group: str,
    text: str,
    choices: Iterable[str] | None = None,
    *,
    only: Condition | tuple[Condition, ...] = (),
) -> Any:
    """A field of the config.

    Args:
        group: its heading in ``--help``.
        text: its help.
        choices: allowed values, where they are names.
        only: with what it has an effect.
    """
    only = (only,) if isinstance(only, Condition) else only
    return field(
        default=default, metadata={"group": group, "help": text, "choices": choices and tuple(choices), "only": only}
    )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that determines a run. None means "by rule"; `simsfl.setup.defaults` fills those in.

    Raises:
        ValueError: a value that cannot work, with the field, the value and what is allowed.
    """

    preset: str = setting("custom", "", "Name of the preset that the run started from; only recorded.")

    method: str = setting(
        "mocosfl",
        "clients",
        "mocosfl splits the network between clients and server; fl-moco and fl-byol are federated learning with all "
        "of it, and a loss of its own, on each client.",
        METHODS,
    )
    clients: int = setting(1000, "clients", "Number of clients.")
    cohort: int | None = setting(
        None, "clients", "Clients that train in a round; by rule 100 from 200 clients on, else all."
    )
    batch_size: int | None = setting(
        None,
        "clients",
        "Images per client and step; by rule 100 // clients up to 50 clients, else 1; in federated learning 128.",
    )
    rounds: int | None = setting(
        None,
        "clients",
        "Rounds; by rule `epochs` times clients / cohort / local epochs, so each client makes as many passes.",
    )
    epochs: int = setting(
        200, "clients", "Passes over the data that the rule for `rounds` aims at.", only=when("rounds", None)
    )
    local_epochs: float = setting(1.0, "clients", "Passes over its images that a client makes in a round.")
    syncs_per_round: int | None = setting(
        None,
        "clients",
        "Averagings of client models per round; by rule 1000 // (batch_size * clients), at least 1, in federated "
        "learning 1.",
        only=AVERAGED,
    )
    align_momentum: bool = setting(
        False,
        "clients",
        "Average the clients' momentum models too (MonAcoSFL); published MocoSFL does not.",
        only=(LEARNING, unless("supervised", True)),
    )
    divergence_tau: float = setting(
        0.0,
        "clients",
        "Divergence-aware mixing (Zhuang et al.): the share of its own model that a client keeps when it first "
        "receives the average, later in proportion to its divergence; 0 for none.",
    )
    measure_divergence: bool = setting(
        False, "clients", "Record how far clients' models are from their average, at each averaging.", only=LEARNING
    )
    unequal: str | None = setting(
        None,
        "clients",
        "Rich and poor clients: 0.2_0.8|16|0.8_0.2 is 20 % with batches 16 times as large, who hold 80 % of the data.",
        only=SPLIT,
    )
    loss_threshold: float = setting(
        0.0,
        "clients",
        "Save communication after rounds whose loss fell by less: first no gradients, then no activations either; "
        "0 for never.",
        only=SPLIT,
    )

    dataset: str = setting(
        "auto",
        "data",
        "Data set by name, an .npz file, or an ImageFolder directory; auto is CIFAR-10, else the built-in shapes.",
    )
    data_dir: str = setting("data", "data", "Where torchvision's files may lie already.")
    image_size: int | None = setting(None, "data", "Resize images to this height and width; by rule their own.")
    partition: str = setting("shards", "data", "How images are divided among clients.", PARTITIONS)
    classes_per_client: int | None = setting(
        None, "data", "Shards per client; by rule a fifth of the classes.", only=when("partition", "shards")
    )
    alpha: float = setting(0.5, "data", "Concentration of the Dirichlet split.", only=when("partition", "dirichlet"))
    stream: str = setting(
        "auto",
        "data",
        "Decode the pictures of a directory when they are needed: auto is where there are too many to read them all.",
        STREAMS,
        only=STREAMABLE,
    )
    data_proportion: float = setting(1.0, "data", "Share of the training images, drawn at random, that clients hold.")
    views: str = setting("v2", "data", "Recipe of the two augmented views; v1 has no blur.", RECIPES)
    crop_scale: float = setting(0.08, "data", "Smallest share of the image area that a crop may have.")

    arch: str = setting("resnet18", "model", "Architecture.", ARCHITECTURES)
    width: int | None = setting(
        None, "model", "Channels of the first layer, a multiple of 4; by rule the architecture's own."
    )
    norm: str = setting("group", "model", "Normalisation: GroupNorm in groups of 4 channels, or BatchNorm.", NORMS)
    weight_standardisation: bool | None = setting(
        None, "model", "Standardise convolutions' weights; by rule with GroupNorm only."
    )
    cut_layer: int = setting(1, "model", "Layers on the client; the stem is 1, each block one more.", only=SPLIT)
    bottleneck: str | None = setting(
        None,
        "model",
        "Narrow the smashed data at the cut and widen them again: C4S2 is 4 channels at stride 2, K3C4S2 a kernel of "
        "3; noReLU behind it leaves out the ReLUs.",
        only=SPLIT,
    )
    client_residual: bool = setting(True, "model", "Shortcuts in the client's residual blocks.", only=SHORTCUTS)
    head: str = setting(
        "mlp",
        "model",
        "Projection head: linear is MoCo v1's, mlp v2's.",
        HEADS,
        only=unless("supervised", True),
    )
    key_dim: int = setting(1024, "model", "Dimension of keys and queries.", only=unless("supervised", True))

    supervised: bool = setting(
        False,
        "contrast",
        "Train on the labels instead, with a linear head whatever `head` says: an upper bound.",
        only=SPLIT,
    )
    queue_length: int = setting(6000, "contrast", "Keys in the queue.", only=KEYS)
    feature_sharing: bool = setting(
        True,
        "contrast",
        "One queue for all clients; otherwise each has its own share of the length.",
        only=(SPLIT, *KEYS),
    )
    temperature: float = setting(0.1, "contrast", "Temperature of the InfoNCE loss.", only=KEYS)
    symmetric: bool = setting(
        True, "contrast", "Add the loss with the roles of the two views swapped.", only=unless("supervised", True)
    )
    tau: float = setting(
        0.99,
        "contrast",
        "Momentum encoders keep this share of themselves at each step.",
        only=unless("supervised", True),
    )

    ressfl_lambda: float = setting(
        0.0,
        "privacy",
        "TAResSFL: how much clients resist simulated attackers, who learn to reconstruct their images; 0 for none.",
        only=SPLIT,
    )
    ressfl_target_ssim: float = setting(
        0.6, "privacy", "Similarity of reconstructions that is resisted from.", only=RESISTANCE
    )
    ressfl_decoder: str = setting(
        "res_normN4C64", "privacy", "The attackers' networks: custom, conv_normN4C64, ...", only=RESISTANCE
    )
    aux_dataset: str | None = setting(
        None,
        "privacy",
        "A second data set that clients hold images of, besides their share of the first; as many of either a step.",
    )
    init_client: str | None = setting(
        None,
        "privacy",
        "Clients start from this expert: a run's directory, a file of weights, or one that comes with simsfl.",
        only=SPLIT,
    )
    init_server: bool = setting(False, "privacy", "The server starts from it, too.", only=EXPERT)

    lr: float = setting(0.06, "optimiser", "Learning rate of the server.", only=SERVED)
    client_lr: float | None = setting(None, "optimiser", "Learning rate of the clients; by rule the server's.")
    lr_schedule: str = setting(
        "cosine", "optimiser", "Over rounds: cosine to 0, or x0.1 at 60 and 80 %.", SCHEDULES, only=SPLIT
    )
    client_lr_schedule: str = setting(
        "cosine",
        "optimiser",
        "As lr_schedule (step: x0.2); oscillating is the published program's, stepped per batch.",
        CLIENT_SCHEDULES,
        only=LEARNING,
    )
    momentum: float = setting(0.9, "optimiser", "Momentum of SGD.")
    weight_decay: float = setting(5e-4, "optimiser", "Weight decay of SGD.")

    eval_every: int = setting(10, "evaluation", "Rounds between kNN evaluations; 0 only at start and end.")
    knn_bank: int | None = setting(None, "evaluation", "Training images in the kNN bank; by rule all, up to 100,000.")
    knn_test: int | None = setting(None, "evaluation", "Test images that kNN classifies; by rule all, up to 100,000.")
    eval_features: str = setting("backbone", "evaluation", "Features that are evaluated.", FEATURES)
    linear_probe: bool = setting(False, "evaluation", "Train a linear probe on all training images at the end.")
    semi_supervised: bool = setting(
        False, "evaluation", "Train probes with a hidden layer on 10 % and on 1 % of the labels at the end."
    )
    probe_epochs: int = setting(100, "evaluation", "Epochs of these probes.", only=PROBED)

    seed: int = setting(0, "run", "Seed of every draw.")
    device: str = setting("auto", "run", "cpu, cuda or cuda:N; auto is CUDA where there is one.")
    precision: str = setting(
        "auto",
        "run",
        "Of forward passes and smashed data; weights, queue and loss stay fp32. auto is bf16 on CUDA devices that have "
        "it, else fp32; tf32 is fp32 whose products and convolutions may use TF32.",
        ("auto", *PRECISIONS),
    )
    engine: str = setting(
        "fused",
        "run",
        "fused stacks the cohort, with the fastest version of each operator or the one named; vmap stacks it with "
        "PyTorch's operators; loop runs clients one by one.",
        ENGINES,
    )
    client_state: str = setting(
        "device",
        "run",
        "Where the state of clients that do not take part is kept: device, host memory, or a file (mmap).",
        CLIENT_STATES,
    )
    client_state_dtype: str = setting("fp32", "run", "How it is kept there; bf16 halves it.", STATE_DTYPES)
    checkpoint_every: int = setting(10, "run", "Rounds between checkpoints.")

    def __post_init__(self) -> None:
        for spec in fields(self):
            self._check_type(spec.name, spec.type, getattr(self, spec.name))
            choices = spec.metadata["choices"]
            if choices and getattr(self, spec.name) not in choices:
                raise unknown(spec.name, getattr(self, spec.name), choices)
        for name, low, high in RANGES:
            value = getattr(self, name)
            if value is not None and not (low <= value <= high and value < INFINITY):
                bounds = f"{low:,} to {high:,}" if high < INFINITY else f"{low:,} or more"
                raise ValueError(f"{name}: {shortened(value)} is out of range; allowed: {bounds}")
        if self.bottleneck is not None:
            Bottleneck.parse(self.bottleneck)
        if self.unequal is not None:
            Unequal.parse(self.unequal)
        Decoder.parse(self.ressfl_decoder, "ressfl_decoder")
        for wrong, message in EXCLUSIONS:
            if wrong(self):
                raise ValueError(message.format(**self.to_dict()))

    @staticmethod
    def _check_type(name: str, annotation: str, value: Any) -> None:
        """Raise a ValueError unless `value` is of the field's type (an int may stand for a float)."""
        wanted, _, optional = annotation.partition(" | ")
        allowed = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}[wanted]
        right = isinstance(value, allowed) and (wanted == "bool" or not isinstance(value, bool))
        if value == "":
            raise ValueError(f"{name}: is empty; allowed: a name or path")
        if not (right or (optional and value is None)):
            raise ValueError(f"{name}: {value!r} is not of type {wanted}; allowed: {annotation.replace('|', 'or')}")

    def check_effect(self, names: Iterable[str]) -> None:
        """Raise a ValueError if a field that was asked for, and is not as usual, has no effect beside the others."""
        for spec in fields(self):
            asked = spec.name in names and getattr(self, spec.name) != spec.default
            for condition in spec.metadata["only"] if asked else ():
                if not condition.holds(self):
                    reason = condition.reason.format(**self.to_dict())
                    raise ValueError(f"{spec.name}: has no effect where {reason}; allowed with {condition.allowed}")

    def changed_from(self, other: RunConfig) -> dict[str, Any]:
        """The fields that are something else in another config."""
        usual = other.to_dict()
        return {name: value for name, value in self.to_dict().items() if value != usual[name]}

    @property
    def views_sent(self) -> int:
        """Return how many views of an image are used in a step: query and key, or the query alone with labels."""
        return 1 if self.supervised else 2

    @property
    def passes_per_image(self) -> int:
        """Return how often a client runs each of its models for an image in a step.

        In symmetric federated learning either view goes through both models; on the clients of split learning, each
        view goes through one.
        """
        return 2 if self.method != "mocosfl" and self.symmetric else 1

    def network(self) -> dict[str, Any]:
        """The fields that say how the network is made, but for what the method adds."""
        return {
            spec.name: getattr(self, spec.name)
            for spec in fields(self)
            if spec.metadata["group"] == "model" or spec.name == "image_size"
        }

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """From what `to_dict` gave, or a part of it.

        Raises:
            ValueError: a name that is no field, or a value that cannot work.
        """
        names = [spec.name for spec in fields(cls)]
        for name in values:
            if name not in names:
                raise unknown("config", name, names)
        return cls(**values)

    @classmethod
    def load(cls, path: Path) -> RunConfig:
        """From a saved ``config.json``, or a JSON object of fields. What was set by rule is so again.

        Raises:
            ValueError: the file cannot be read, or does not hold a config.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"config: {path} cannot be read as JSON ({error})") from error
        values = content.get("config", content) if isinstance(content, dict) else None
        by_rule = content.get("by_rule", []) if isinstance(content, dict) else None
        if not isinstance(values, dict) or not isinstance(by_rule, list):
            raise ValueError(f"config: {path} holds no JSON object of fields; allowed: a config.json of a run")
        return cls.from_dict({name: value for name, value in values.items() if name not in by_rule})
