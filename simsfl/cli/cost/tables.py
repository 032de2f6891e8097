"""The cost of a client by this project's reckoning and by the paper's, and tables of it."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import cache
from math import prod
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from simsfl import RunConfig
from simsfl.algorithm.plan import steps_per_round
from simsfl.cost.measured import training_bytes
from simsfl.cost.model import COLOURS, WEIGHT_BYTES, client_cost, memory, operations, server_flops
from simsfl.data.partition import Partition, held
from simsfl.models import FlatModule, SplitModel
from simsfl.setup import assembly
from simsfl.setup.defaults import resolve

SIZES = {
    "auto": (50_000, 32, 10),
    "cifar10": (50_000, 32, 10),
    "cifar100": (50_000, 32, 100),
    "svhn": (73_257, 32, 10),
    "stl10": (5_000, 96, 10),
    "tiny-imagenet": (100_000, 64, 200),
    "imagenet": (1_281_167, 224, 1000),
    "shapes": (50_000, 32, 10),
}
"""Training images, their size, and classes of public data sets."""
PAPER_NORMALISED = 5
"""Operations that the paper's counter (fvcore) has for a number that is normalised."""
PUBLISHED = {
    "FL-SSL": {"weights": 8269.2, "activations": 0.0, "flops": 1627.8, "memory": 921.4},
    "MocoSFL-1": {"weights": 1.4, "activations": 5000.0, "flops": 6.0, "memory": 0.8},
    "MocoSFL-3": {"weights": 57.9, "activations": 5000.0, "flops": 223.8, "memory": 3.2},
    "MocoSFL-3, TAResSFL": {"weights": 0.0, "activations": 39.1, "flops": None, "memory": None},
}
"""MB over a session, millions of operations for an image, MB of memory."""


def reckoned(
    config: RunConfig, images: int | None, number_bytes: int | None = None, *, measured: bool = False
) -> dict[str, Any]:
    """Everything that a client's part in a run costs.

    Args:
        images: of training; None for those of a public data set.
        number_bytes: of a number that is sent; None for as many as a run sends.
        measured: do a client's step, and measure the memory of its tensors.

    Raises:
        ValueError: it is not known how many images there are.
    """
    if config.dataset not in SIZES and images is None:
        raise ValueError(f"images: how many {config.dataset} has is not known; allowed: --images N")
    count, size, classes = SIZES.get(config.dataset, (0, 32, 10))
    count = images or count
    config = replace(
        config,
        image_size=config.image_size or size,
        device="cpu" if config.device == "auto" else config.device,
    )
    least = int(config.data_proportion * count) // config.clients
    if not least:
        raise ValueError(
            f"clients: {config.clients} are more than the {count:,} training images; allowed: 1 to {count}"
        )
    config = resolve(config, least, classes)
    groups = assembly.groups(config)
    used = held(config.partition, int(config.data_proportion * count), config.clients, config.classes_per_client)
    sources = [Partition.of([range(used)])] if used else []
    if config.aux_dataset:
        sources.append(Partition.of([range(images_of_auxiliary(config))]))
    steps = steps_per_round(sources, groups, config.local_epochs)
    model = network(RunConfig(method=config.method, **config.network()))
    learns = config.client_lr > 0
    shape = (COLOURS, config.image_size, config.image_size)
    passes, views = config.passes_per_image, config.views_sent
    one = operations(model.client, shape, of_images=True)
    sent = client_cost(
        model,
        number_bytes=number_bytes or (2 if config.precision == "bf16" else WEIGHT_BYTES),
        weight_bytes=number_bytes or WEIGHT_BYTES,
        align_momentum=config.align_momentum,
    )
    a_round = sent.round_traffic(groups, steps, config.syncs_per_round, frozen=not learns, views=views)
    batch_size = max(group.batch_size for group in groups)
    own = memory(model.client, shape, passes * batch_size, learns=learns)
    return {
        "flops_per_image": {
            "forward": passes * one.forward,
            "momentum_forward": (views - 1) * passes * one.forward,
            "backward": passes * one.backward if learns else 0,
            "all": passes * (one.step(learns=learns) - (2 - views) * one.forward),
            "forward_macs": passes * one.macs,
        },
        "server_flops_per_image": server_work(model, config.symmetric) if model.server.size else 0,
        "memory_bytes": {
            **asdict(own),
            "all": own.total,
            "measured": training_bytes(model.client, shape, passes * batch_size, learns=learns) if measured else None,
        },
        "bytes_per_image": {
            "up": (views if model.smashed_shape[0] else 0) * sent.image_bytes,
            "down": sent.image_bytes if learns else 0,
        },
        "bytes_per_round": {"up": a_round.up // config.cohort, "down": a_round.down // config.cohort},
        "bytes_per_session": {
            "up": round(config.rounds * a_round.up / config.clients),
            "down": round(config.rounds * a_round.down / config.clients),
        },
        "rounds": config.rounds,
        "steps_per_round": steps,
        "images_per_step": sum(group.images for group in groups) / config.cohort,
        "client_parameters": model.client.size,
    }


def images_of_auxiliary(config: RunConfig) -> int:
    """How many images of the auxiliary data set clients hold, all together.

    Raises:
        ValueError: it is not known.
    """
    if config.aux_dataset not in SIZES:
        known = ", ".join(name for name in SIZES if name != "auto")
        raise ValueError(f"aux_dataset: how many images {config.aux_dataset} has is not known; allowed: {known}")
    return held("iid", SIZES[config.aux_dataset][0], config.clients, 1)


@cache
def network(config: RunConfig) -> SplitModel:
    """Of what a config says of it."""
    return assembly.network(config, weights=False)


@cache
def server_work(model: SplitModel, symmetric: bool) -> int:
    """`server_flops`, once for each network."""
    return server_flops(model, symmetric=symmetric)


def own_tables(figures: dict[str, Any], asked: RunConfig, dtype: str) -> list[Table]:
    """Operations and memory; what is sent."""
    what = f"{asked.arch}, {asked.clients:,} clients, {asked.dataset}"
    caption = (
        "of a step for an image; multiply-adds of the forward pass; memory of a batch in MB of 10^6 bytes: weights and "
        "what goes with them, maps; server in GFLOP; measured: memory of tensors in a step"
    )
    title = f"Operations and memory of a client: {what}"
    work = Table(title=title, caption=caption, box=SIMPLE, collapse_padding=True, pad_edge=False)
    measured = any(row["memory_bytes"]["measured"] for row in figures.values())
    columns = ["", "MMAC", "MFLOP", "memory", "weights", "maps", "server"]
    for column in columns + ["measured"] * measured:
        work.add_column(column, justify="right" if column else "left", no_wrap=not column)
    caption = "up / down; a round that it takes part in; the session, mean over all clients"
    traffic = Table(title=f"Sent by a client and to it, in {dtype}", caption=caption, box=SIMPLE)
    for column in ("", "kB an image", "MB a round", "MB a session"):
        traffic.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, row in figures.items():
        flops, own = row["flops_per_image"], row["memory_bytes"]
        weights = own["weights"] + own["momentum"] + own["velocity"] + own["gradients"]
        numbers = (
            flops["forward_macs"] / 1e6,
            flops["all"] / 1e6,
            own["all"] / 1e6,
            weights / 1e6,
            (own["activations"] + own["workspace"]) / 1e6,
            row["server_flops_per_image"] / 1e9,
        )
        work.add_row(name, *map(short, numbers), *([short(own["measured"] / 1e6)] if measured else []))
        spans = (("image", 1e3), ("round", 1e6), ("session", 1e6))
        sent = [[n / unit for n in row[f"bytes_per_{span}"].values()] for span, unit in spans]
        traffic.add_row(name, *(" / ".join(map(short, both)) for both in sent))
    return [work, traffic]


def short(value: float) -> str:
    """A number in a table."""
    return f"{value:,.0f}" if value >= 100 else f"{value:,.2f}"


def paper_tables() -> tuple[list[Table], dict[str, Any]]:
    """The paper's figures, and what its way of reckoning gives here."""
    figures = {name: paper_way(name) for name in PUBLISHED}
    table = Table(
        title="Hardware costs by the paper's reckoning: here / published",
        caption="MB of 1024^2 bytes over the session; operations: multiply-adds of convolutions and products, and 5 "
        "for each normalised number, in 1024^2, times 3 for those who learn. Memory was read off a GPU's allocator: "
        "here it is weights, velocity, gradients and kept maps of one model. Frozen clients (TAResSFL) send no weights",
        box=SIMPLE,
    )
    for column in ("", "weights", "activations", "MFLOPs", "memory"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=not column)
    for name, own in figures.items():
        published = PUBLISHED[name]
        table.add_row(
            name,
            *(
                f"{own[key]:,.1f} / {'-' if published[key] is None else format(published[key], ',.1f')}"
                for key in ("weights", "activations", "flops", "memory")
            ),
        )
    return [table], figures


def paper_way(name: str) -> dict[str, float]:
    """A row of the paper's hardware table, as its program reckons it.

    Multiply-adds called FLOPs; 200 epochs of 50 images, averaged after each, weights counted one way, the query's
    activations up and their gradients down; federated learning: 500 epochs of 10,000 images in batches of 128, averaged
    after every fifth, with the largeV2 head. TAResSFL: a bottleneck C4S2, no weights, no gradients, no backward pass.
    """
    federated, frozen = name == "FL-SSL", "TAResSFL" in name
    config = RunConfig(
        method="fl-moco" if federated else "mocosfl",
        head="large-mlp" if federated else "mlp",
        key_dim=2048 if federated else 1024,
        cut_layer=2 if name.startswith("MocoSFL-3") else 1,
        bottleneck="C4S2" if frozen else None,
        image_size=32,
        device="cpu",
    )
    model = assembly.network(resolve(config), weights=False)
    shape = (COLOURS, 32, 32)
    one = operations(model.client, shape, of_images=True)
    epochs, averaged_after, batch = (500, 5, 128) if federated else (200, 1, 1)
    weights = 0 if frozen else epochs // averaged_after * size_of_state(model.client)
    activations = (1 if frozen else 2) * epochs * 50 * prod(model.smashed_shape)
    kept = memory(model.client, shape, batch, learns=not frozen)
    megabyte = 1024 * 1024
    training = kept.total - kept.momentum - kept.workspace  # one model, between the passes
    return {
        "weights": 4 * weights / megabyte,
        "activations": 4 * activations / megabyte,
        "flops": (1 if frozen else 3) * (one.macs + PAPER_NORMALISED * one.normalised) / megabyte,
        "memory": training / megabyte,
    }


def size_of_state(half: FlatModule) -> int:
    """Numbers of a state dict: parameters, running statistics, and a count of batches for each layer that has them."""
    counts = sum(name.endswith("running_mean") for name in half.statistic_shapes)
    return half.size + len(half.initial_statistics) + counts
