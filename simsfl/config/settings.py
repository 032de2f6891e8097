"""The fields of a run's configuration: one for each decision, with its default, help text, limits and conditions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from simsfl.config.catalogue import (
    AGGREGATIONS,
    ARCHITECTURES,
    HEADS,
    METHODS,
    OBJECTIVES,
    OPTIMIZERS,
    PARTITIONS,
    PRECISIONS,
    SAMPLERS,
    TRACKERS,
)
from simsfl.config.constraints import (
    AVERAGED,
    EXPERT,
    IN_FLEET,
    KEYS,
    LEARNING,
    MOMENTUM,
    PROBED,
    REPLICATED,
    SAMPLED,
    SERVED,
    SHORTCUTS,
    SMALLEST,
    SPLIT,
    STRAGGLING,
    STREAMABLE,
    STYLED,
    SYNCED,
    TARESSFL,
    UNLABELLED,
    Condition,
    taken,
    when,
)
from simsfl.config.values import INFINITY

ENGINES = ("fused", "fused:grouped", "fused:unfold", "fused:triton", "vmap", "loop")
_STATE_DTYPES = ("fp32", "bf16")
_CLIENT_STATES = ("device", "host", "mmap")
NORMS = ("group", "batch")
BORDERS = ("zeros", "mirror")
RECIPES = ("v1", "v2")
_STREAMS = ("auto", "always", "never")
_SCHEDULES = ("cosine", "step")
_CLIENT_SCHEDULES = (*_SCHEDULES, "oscillating")
_FEATURES = ("backbone", "projector")
_LARGE = 10**9
"""Highest value of numbers that have no limit of their own."""


def _setting(
    default: Any,
    group: str,
    text: str,
    choices: Iterable[str] | None = None,
    *,
    within: tuple[float, float] | None = None,
    only: Condition | tuple[Condition, ...] = (),
    path: bool = False,
    several: bool = False,
) -> Any:
    """Return a field of the config.

    Args:
        default: its default; None if a rule sets it, or if it is off.
        group: the group of flags in ``--help`` that it belongs to; empty to make no flag of it.
        text: its help text.
        choices: the values that are allowed, if they are names.
        within: the lowest and the highest value that are allowed, if they are numbers.
        only: conditions under which it has an effect; `RunConfig.check_effect` checks them.
        path: whether its value may be a path, in which ``~`` is replaced by the home directory.
        several: whether its value may be several names, separated by commas, which in a sweep are one value.
    """
    only = (only,) if isinstance(only, Condition) else only
    about = _about(group, text, choices, within=within, only=only, path=path, several=several)
    return field(default=default, metadata=about)


def _about(
    group: str,
    text: str,
    choices: Iterable[str] | None = None,
    *,
    within: tuple[float, float] | None = None,
    only: tuple[Condition, ...] = (),
    path: bool = False,
    several: bool = False,
) -> dict[str, Any]:
    """Return the metadata of a field; see `_setting`."""
    limits = {"choices": choices, "within": within, "only": only}
    return {"group": group, "help": text, **limits, "path": path, "several": several}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The fields of a `RunConfig`, which are checked there.

    Where a help text says "by rule", None leaves the field to the rules in `simsfl.setup.defaults`.
    """

    preset: str = _setting("custom", "", "Name of the preset that the run started from; only recorded.")

    method: str = _setting(
        "mocosfl",
        "clients",
        "Method of training: mocosfl splits the network between clients and server; federated trains the whole network "
        "on each client; fl-moco and fl-byol are federated with the loss of the paper's baselines.",
        METHODS,
    )
    clients: int = _setting(1000, "clients", "Number of clients.", within=(1, _LARGE))
    cohort: int | None = _setting(
        None,
        "clients",
        "Number of clients that train in a round; by rule 100 of 200 clients or more, else all.",
        within=(1, _LARGE),
    )
    sampler: str = _setting(
        "uniform",
        "clients",
        "How the cohort of a round is drawn from the clients.",
        SAMPLERS,
        only=SAMPLED,
    )
    dropout: float = _setting(
        0.0, "clients", "Probability that a client of the cohort does not come in a round.", within=(0, 0.999)
    )
    straggler: float = _setting(
        0.0, "clients", "Probability that a client of the cohort is slow in a round, and misses steps.", within=(0, 1)
    )
    straggler_factor: float = _setting(
        2.0,
        "clients",
        "How many times as long a slow client takes for a step; it misses the steps in between.",
        within=(1, 1e6),
        only=STRAGGLING,
    )
    batch_size: int | None = _setting(
        None,
        "clients",
        "Images per client and step; by rule 100 // clients for up to 50 clients, else 1; 128 in federated learning.",
        within=(1, _LARGE),
    )
    rounds: int | None = _setting(
        None,
        "clients",
        "Number of rounds; by rule epochs * clients / (cohort * local_epochs), so that each client makes `epochs` "
        "passes over its images on average.",
        within=(1, _LARGE),
    )
    epochs: int = _setting(
        200,
        "clients",
        "Passes over the data that the rule for `rounds` aims at.",
        within=(1, _LARGE),
        only=when("rounds", None),
    )
    local_epochs: float = _setting(
        1.0, "clients", "Passes over its images that a client makes in a round.", within=(1e-9, _LARGE)
    )
    syncs_per_round: int | None = _setting(
        None,
        "clients",
        "Number of averagings of the client models in a round; by rule 1000 // (batch_size * clients), at least 1; 1 "
        "in federated learning.",
        within=(1, _LARGE),
        only=SYNCED,
    )
    aggregation: str = _setting(
        "mean",
        "clients",
        "How the server combines the cohort's models: by their mean, another combination, or a step of its own towards "
        "one.",
        AGGREGATIONS,
        only=AVERAGED,
    )
    align_momentum: bool = _setting(
        False,
        "clients",
        "Average the clients' momentum encoders as well (MonAcoSFL); published MocoSFL does not.",
        only=(LEARNING, MOMENTUM),
    )
    divergence_tau: float = _setting(
        0.0,
        "clients",
        "Divergence-aware mixing (Zhuang et al.): share of its own model that a client keeps when it first receives "
        "the average; later shares are in proportion to its divergence. 0 turns mixing off.",
        within=(0, 1),
    )
    measure_divergence: bool = _setting(
        False, "clients", "Record at each averaging how far the clients' models are from their average.", only=LEARNING
    )
    unequal: str | None = _setting(
        None,
        "clients",
        "Rich and poor clients: with 0.2_0.8|16|0.8_0.2, 20 % of the clients have batches 16 times as large as the "
        "others, and hold 80 % of the data.",
        only=SPLIT,
    )
    loss_threshold: float = _setting(
        0.0,
        "clients",
        "Save communication after a round whose loss fell by less than this: first, clients get no gradients; after "
        "the next such round, they send no smashed data either. 0 turns this off.",
        within=(0, INFINITY),
    )

    fleet: str | None = _setting(
        None,
        "clients",
        "TOML file of the clients' devices, links and batteries (docs/fleet.md): what each round would take them is "
        "recorded, and who is not available does not come.",
        path=True,
    )
    deadline: float | None = _setting(
        None,
        "clients",
        "Seconds of a step, without the server's; a client of the fleet that takes longer does not come.",
        within=(1e-9, 1e9),
        only=IN_FLEET,
    )
    over_select: float = _setting(
        1.0,
        "clients",
        "How many times as many clients as a cohort has are drawn from the fleet, of which the fastest are kept.",
        within=(1, 1e6),
        only=(IN_FLEET, SAMPLED),
    )
    server_replicas: int = _setting(
        1,
        "clients",
        "Number of servers, each with a model and a key queue of its own, and an equal part of the cohort: what one "
        "server on each of several GPUs does that they do not exchange. The first of them is evaluated.",
        within=(1, _LARGE),
    )
    average_replicas: bool = _setting(
        False,
        "clients",
        "Average the models of the server's replicas whenever those of the clients are averaged; their key queues stay "
        "apart.",
        only=REPLICATED,
    )

    dataset: str = _setting(
        "auto",
        "data",
        "Name of a data set, an .npz file, an ImageFolder directory, or hf:NAME of the Hugging Face hub; auto is "
        "CIFAR-10 if it is available, else the built-in shapes.",
        path=True,
    )
    data_dir: str = _setting("data", "data", "Directory that is searched for the files of public data sets.", path=True)
    image_size: int | None = _setting(
        None,
        "data",
        "Height and width in pixels that images are resized to; by rule their own.",
        within=(SMALLEST, 1024),
    )
    partition: str = _setting("shards", "data", "How images are divided among clients.", PARTITIONS)
    classes_per_client: int | None = _setting(
        None,
        "data",
        "Shards per client; by rule a fifth of the number of classes.",
        within=(1, _LARGE),
        only=taken("classes_per_client", "partition", PARTITIONS),
    )
    alpha: float = _setting(
        0.5,
        "data",
        "Concentration of the Dirichlet split; smaller is less even.",
        within=(1e-6, 1e6),
        only=taken("alpha", "partition", PARTITIONS),
    )
    stream: str = _setting(
        "auto",
        "data",
        "Decode the pictures of a directory only when they are needed; auto does so if there are too many to read all.",
        _STREAMS,
        only=STREAMABLE,
    )
    validation: float = _setting(
        0.0,
        "data",
        "Share of the training images that are held out, and evaluated instead of the test images: to choose settings "
        "by. They are the same for all seeds.",
        within=(0, 0.9),
    )
    data_proportion: float = _setting(
        1.0, "data", "Share of the training images, drawn at random, that clients hold.", within=(0, 1)
    )
    views: str = _setting("v2", "data", "Recipe of the two augmented views; v1 has no blur.", RECIPES)
    crop_scale: float = _setting(
        0.08, "data", "Smallest share of the image area that a crop may have.", within=(0.001, 1)
    )
    color_strength: float = _setting(
        1.0,
        "data",
        "Strength of the colour jitter: brightness, contrast and saturation change by up to 40 % times this, the hue "
        "by up to 36 degrees times this.",
        within=(0, 2.5),
    )

    arch: str = _setting("resnet18", "model", "Architecture of the network.", ARCHITECTURES)
    width: int | None = _setting(
        None, "model", "Channels of the first layer, a multiple of 4; by rule the architecture's own.", within=(4, 4096)
    )
    norm: str = _setting(
        "group", "model", "Normalisation layers: GroupNorm in groups of 4 channels, or BatchNorm.", NORMS, only=STYLED
    )
    weight_standardisation: bool | None = _setting(
        None, "model", "Standardise the weights of convolutions; by rule with GroupNorm only.", only=STYLED
    )
    cut_layer: int = _setting(
        1, "model", "Number of layers on the client: the stem is the first, and each block is one more.", only=SPLIT
    )
    bottleneck: str | None = _setting(
        None,
        "model",
        "Narrow the smashed data at the cut layer, and widen them again on the server: C4S2 is 4 channels at stride 2, "
        "K5C4S2 the same with kernels of 5 instead of 3; noReLU at the end leaves out the ReLUs.",
        only=SPLIT,
    )
    client_residual: bool = _setting(
        True, "model", "Keep the shortcuts in the client's residual blocks.", only=SHORTCUTS
    )
    head: str | None = _setting(
        None,
        "model",
        "Projection head: linear is that of MoCo v1, mlp that of v2; large-mlp has 4,096 hidden units with BatchNorm. "
        "By rule that of the objective: with BatchNorm for BYOL, SimSiam and Barlow Twins, else mlp.",
        HEADS,
        only=UNLABELLED,
    )
    key_dim: int = _setting(1024, "model", "Dimension of keys and queries.", within=(1, 65_536), only=UNLABELLED)

    objective: str | None = _setting(
        None,
        "contrast",
        "Objective whose loss is minimised; by rule the method's own, which is MoCo, or BYOL with fl-byol.",
        OBJECTIVES,
    )
    supervised: bool = _setting(
        False,
        "contrast",
        "Train on the labels instead, as an upper bound, which is objective supervised; the head is linear, whatever "
        "`head` is.",
    )
    queue_length: int = _setting(
        6000, "contrast", "Number of keys in the key queue.", within=(1, 10_000_000), only=KEYS
    )
    feature_sharing: bool = _setting(
        True,
        "contrast",
        "Share one key queue among all clients; otherwise each client has its own, with its share of the length.",
        only=(SPLIT, KEYS),
    )
    temperature: float = _setting(
        0.1, "contrast", "Temperature of the InfoNCE loss.", within=(1e-6, INFINITY), only=KEYS
    )
    symmetric: bool = _setting(True, "contrast", "Add the loss with the roles of the two views swapped.", only=MOMENTUM)
    tau: float = _setting(
        0.99,
        "contrast",
        "Share of its own weights that a momentum encoder keeps at each step.",
        within=(0, 1),
        only=MOMENTUM,
    )

    defence: str | None = _setting(
        None,
        "privacy",
        "What clients do with their smashed data and gradients, or several in this order, such as clip+gaussian; a "
        "flag such as --defence.where sets the option of all that have it.",
        only=SPLIT,
    )
    ressfl_lambda: float = _setting(
        0.0,
        "privacy",
        "Weight of TAResSFL (defence taressfl): clients resist simulated attackers, which learn to reconstruct their "
        "images. 0 turns it off.",
        within=(0, INFINITY),
    )
    ressfl_target_ssim: float = _setting(
        0.6,
        "privacy",
        "TAResSFL: SSIM up to which the reconstructions of simulated attackers do not count.",
        within=(0.001, 0.999),
        only=TARESSFL,
    )
    ssim_borders: str = _setting(
        "zeros",
        "privacy",
        "TAResSFL: what SSIM finds beyond the borders of images: zeros, as published, which gives higher similarities, "
        "or mirror, the image itself.",
        BORDERS,
        only=TARESSFL,
    )
    ressfl_decoder: str = _setting(
        "res_normN4C64",
        "privacy",
        "TAResSFL: network of the simulated attackers, such as custom, conv_normN4C64 or res_normN4C64.",
        only=TARESSFL,
    )
    aux_dataset: str | None = _setting(
        None,
        "privacy",
        "Second data set, whose images clients hold besides their share of the first; a batch has batch_size of each.",
        path=True,
    )
    init_client: str | None = _setting(
        None,
        "privacy",
        "Expert whose weights the clients start from: a run directory, a file of weights, or the name of one that "
        "comes with simsfl.",
        only=SPLIT,
        path=True,
    )
    init_server: bool = _setting(
        False, "privacy", "Start the server from the weights of init_client, too.", only=EXPERT
    )

    init_backbone: str | None = _setting(
        None,
        "optimiser",
        "File of weights (.safetensors, .pt, .pth) of torchvision, timm or simsfl export: clients, server and "
        "their momentum models start from it as far as it fits.",
        path=True,
    )
    optimizer: str = _setting("sgd", "optimiser", "How clients and server descend.", OPTIMIZERS)
    proximal: float = _setting(
        0.0,
        "optimiser",
        "FedProx: weight with which clients stay close to the average that they got last. 0 turns it off.",
        within=(0, INFINITY),
        only=LEARNING,
    )
    warmup_rounds: int = _setting(
        0, "optimiser", "Rounds in which learning rates rise to their full size.", within=(0, _LARGE)
    )
    lr: float = _setting(0.06, "optimiser", "Learning rate of the server.", within=(0, INFINITY), only=SERVED)
    client_lr: float | None = _setting(
        None,
        "optimiser",
        "Learning rate of the clients, 0 for frozen clients; by rule the server's.",
        within=(0, INFINITY),
    )
    lr_schedule: str = _setting(
        "cosine",
        "optimiser",
        "Schedule of the server's learning rate over the rounds: cosine falls to 0, step is x0.1 at 60 % and at 80 %.",
        _SCHEDULES,
        only=SPLIT,
    )
    client_lr_schedule: str = _setting(
        "cosine",
        "optimiser",
        "Schedule of the clients' learning rate: as lr_schedule, but step is x0.2; oscillating is the published "
        "program's cosine, stepped per batch.",
        _CLIENT_SCHEDULES,
        only=LEARNING,
    )
    momentum: float = _setting(
        0.9,
        "optimiser",
        "Momentum of SGD and LARS.",
        within=(0, 1),
        only=taken("momentum", "optimizer", OPTIMIZERS),
    )
    weight_decay: float = _setting(
        5e-4,
        "optimiser",
        "Weight decay.",
        within=(0, INFINITY),
        only=taken("weight_decay", "optimizer", OPTIMIZERS),
    )

    eval_every: int = _setting(
        10,
        "evaluation",
        "Rounds between kNN evaluations; 0 evaluates only at the start and at the end.",
        within=(0, _LARGE),
    )
    knn_bank: int | None = _setting(
        None,
        "evaluation",
        "Number of training images in the kNN bank; by rule all, but at most 100,000.",
        within=(1, _LARGE),
    )
    knn_test: int | None = _setting(
        None,
        "evaluation",
        "Number of test images that kNN classifies; by rule all, but at most 100,000.",
        within=(1, _LARGE),
    )
    knn_k: int = _setting(
        200, "evaluation", "Number of nearest images in the kNN bank that vote on an image.", within=(1, _LARGE)
    )
    knn_temperature: float = _setting(
        0.1, "evaluation", "Temperature of their votes, which weigh exp(cosine / temperature).", within=(0.01, INFINITY)
    )
    eval_features: str = _setting(
        "backbone",
        "evaluation",
        "Features that are evaluated: the backbone's, or the output of the projection head.",
        _FEATURES,
    )
    linear_probe: bool = _setting(False, "evaluation", "Train a linear probe on all training images at the end.")
    semi_supervised: bool = _setting(
        False, "evaluation", "Train probes with a hidden layer on 10 % and on 1 % of the labels at the end."
    )
    probe_epochs: int = _setting(
        100,
        "evaluation",
        "Epochs that linear and semi-supervised probes are trained for.",
        within=(1, _LARGE),
        only=PROBED,
    )

    seed: int = _setting(0, "run", "Seed of all random draws.", within=(0, 2**63 - 1))
    device: str = _setting(
        "auto",
        "run",
        "Device to compute on: cpu, cuda or cuda:N; auto is the first CUDA device if there is one, else the CPU.",
    )
    precision: str = _setting(
        "auto",
        "run",
        "Precision of forward passes and smashed data; weights, key queue and loss stay in fp32. auto is bf16 on CUDA "
        "devices that support it, and for resnet8-s1 on CPUs that do, else fp32; tf32 is fp32 in which matrix products "
        "and convolutions may use TF32.",
        ("auto", *PRECISIONS),
    )
    engine: str = _setting(
        "fused",
        "run",
        "How clients are computed: fused stacks the cohort, with the fastest version of each operator or the version "
        "that is named; vmap stacks it with PyTorch's operators; loop runs one client after another.",
        ENGINES,
    )
    client_state: str = _setting(
        "device",
        "run",
        "Where the state of clients outside the cohort is kept: on the device, in host memory, or in a file (mmap).",
        _CLIENT_STATES,
    )
    client_state_dtype: str = _setting(
        "fp32",
        "run",
        "Precision in which the state of clients outside the cohort is kept; bf16 halves its size.",
        _STATE_DTYPES,
    )
    options: dict[str, bool | int | float | str | None] = field(
        default_factory=dict,
        hash=False,
        metadata=_about("", "Options of what is chosen, by names such as objective.temperature."),
    )
    callback: str | None = _setting(
        None, "run", "Callback of a plugin that follows the run's records, or several, such as first+second."
    )
    track: str | None = _setting(
        None,
        "run",
        f"Trackers that get the run's records: {', '.join(TRACKERS)}, or several, separated by commas. Each has a "
        "folder of its name in the run directory (pip install simsfl[track]).",
        several=True,
    )
    checkpoint_every: int = _setting(10, "run", "Rounds between checkpoints.", within=(1, _LARGE))
