"""The cost of a client, estimated as this project does and as the paper does, and tables of it."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import cache
from math import prod
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from simsfl import RunConfig
from simsfl.config.catalogue import DATASETS, PARTITIONS
from simsfl.cost.measured import training_bytes
from simsfl.cost.model import COLOURS, WEIGHT_BYTES, client_cost, memory, operations, server_flops
from simsfl.data.partition import IID, held
from simsfl.data.validation import held_out
from simsfl.models import FlatModule, SplitModel
from simsfl.setup import assembly
from simsfl.setup.checks import check_machine
from simsfl.setup.defaults import classes_per_client, resolve, with_precision
from simsfl.setup.outline import Outline, outline

__all__ = ["estimate"]

_PAPER_NORMALISED = 5
"""Operations that the paper's counter (fvcore) assumes for a number that is normalised."""
_PUBLISHED = {
    "FL-SSL": {"weights": 8269.2, "activations": 0.0, "flops": 1627.8, "memory": 921.4},
    "MocoSFL-1": {"weights": 1.4, "activations": 5000.0, "flops": 6.0, "memory": 0.8},
    "MocoSFL-3": {"weights": 57.9, "activations": 5000.0, "flops": 223.8, "memory": 3.2},
    "MocoSFL-3, TAResSFL": {"weights": 0.0, "activations": 39.1, "flops": None, "memory": None},
}
"""The paper's table of hardware costs.

Weights and activations sent over a session in MB, operations per image in millions, memory in MB.
"""


def estimate(
    config: RunConfig, images: int | None, number_bytes: int | None = None, *, measured: bool = False
) -> dict[str, Any]:
    """Estimate what a client's part in a run costs: operations, memory and traffic.

    Args:
        config: the config of the run, resolved or not.
        images: number of training images; None for that of a public data set.
        number_bytes: bytes of a number that is sent; None for those of a run.
        measured: whether to do a client's step, too, and measure the memory of its tensors.

    Returns:
        Figures by name, as ``cost.py --json`` writes them.

    Raises:
        ValueError: the number of images is not known, or is less than that of the clients.
    """
    size = outline_of(config, images)
    config = size.config
    model = _network(RunConfig(method=config.method, objective=config.objective, **config.network()))
    learns = config.client_lr > 0
    shape = (COLOURS, config.image_size, config.image_size)
    passes, views, graded = config.passes_per_image, config.views_sent, config.views_graded
    one = operations(model.client, shape, of_images=True)
    sent = client_cost(
        model,
        number_bytes=number_bytes or (2 if config.precision == "bf16" else WEIGHT_BYTES),
        weight_bytes=number_bytes or WEIGHT_BYTES,
        align_momentum=assembly.aggregation(config).aligns_momentum,
        defence=assembly.defence(config),
    )
    a_round = sent.round_traffic(
        size.groups, size.steps, config.syncs_per_round, frozen=not learns, views=views, graded=graded
    )
    batch_size = max(group.batch_size for group in size.groups)
    own = memory(model.client, shape, passes * batch_size, learns=learns)
    return {
        "flops_per_image": {
            "forward": graded * passes * one.forward,
            "momentum_forward": (views - graded) * passes * one.forward,
            "backward": learns * graded * passes * one.backward,
            "all": passes * one.step(views=views, graded=learns * graded),
            "forward_macs": passes * one.macs,
        },
        "server_flops_per_image": _server_work(model, **config.server_passes) if model.server.size else 0,
        "memory_bytes": {
            **asdict(own),
            "all": own.total,
            "measured": training_bytes(model.client, shape, passes * batch_size, learns=learns) if measured else None,
        },
        "bytes_per_image": {
            "up": (views if model.smashed_shape[0] else 0) * sent.image_bytes,
            "down": graded * sent.gradient_bytes if learns else 0,
        },
        "bytes_per_round": {"up": a_round.up // config.cohort, "down": a_round.down // config.cohort},
        "bytes_per_session": {
            "up": round(config.rounds * a_round.up / config.clients),
            "down": round(config.rounds * a_round.down / config.clients),
        },
        "rounds": config.rounds,
        "steps_per_round": size.steps,
        "images_per_step": sum(group.images for group in size.groups) / config.cohort,
        "client_parameters": model.client.size,
    }


def outline_of(config: RunConfig, images: int | None) -> Outline:
    """Return the outline of a run; see `estimate` for the arguments and errors."""
    known = DATASETS.get(config.dataset)
    count = images or (known and known.images)
    if not count:
        raise ValueError(f"images: how many {config.dataset} has is not known; allowed: --images N")
    asked, _ = with_precision(
        replace(
            config,
            image_size=config.image_size or (known.image_size if known else 32),
            device="cpu" if config.device == "auto" else config.device,
        )
    )
    check_machine(asked)
    classes = known.classes if known else 10
    drawn = int(config.data_proportion * (count - held_out(count, config.validation)))
    shards = config.classes_per_client or classes_per_client(classes)
    parts = shards if config.partition == "shards" else 1
    own = held(PARTITIONS[config.partition].code.load(), drawn, config.clients, parts)
    if config.data_proportion and own < config.clients:
        raise ValueError(
            f"clients: {config.clients} are more than the {drawn:,} training images allow; allowed: fewer clients"
        )
    together = [number for number in (own, _images_of_auxiliary(config)) if number]
    smallest = min(number // config.clients for number in together)
    return outline(asked, together, smallest=smallest, classes=classes)


def _images_of_auxiliary(config: RunConfig) -> int:
    """Return how many images of the auxiliary data set all clients together hold, 0 if there is none.

    Raises:
        ValueError: the size of that data set is not known.
    """
    if not config.aux_dataset:
        return 0
    known = {name: one.images for name, one in DATASETS.items() if one.images and name != "auto"}
    if config.aux_dataset not in known:
        allowed = ", ".join(known)
        raise ValueError(f"aux_dataset: how many images {config.aux_dataset} has is not known; allowed: {allowed}")
    return held(IID, known[config.aux_dataset], config.clients, 1)


@cache
def _network(config: RunConfig) -> SplitModel:
    """Return the network of a config, without weights; it is kept, since rows of a table share networks."""
    return assembly.network(config, weights=False)


@cache
def _server_work(model: SplitModel, views: int, graded: int) -> int:
    """Return `server_flops`, computed once for each network."""
    return server_flops(model, views=views, graded=graded)


def own_tables(figures: dict[str, Any], asked: RunConfig, dtype: str) -> list[Table]:
    """Return two tables of estimates: operations and memory, and what a client sends and receives.

    Args:
        figures: what `estimate` returned, by the name of the row.
        asked: the config that the user asked for.
        dtype: the format of what is sent, as text.
    """
    what = f"{asked.arch}, {asked.clients:,} clients, data set {asked.dataset}"
    caption = (
        "MMAC: forward pass of one image; MFLOP, and server: step of one image; memory in MB of 10^6 bytes, for a "
        "batch: weights (with momentum encoder, velocity and gradients) and maps; measured: tensors in a step"
    )
    title = f"Operations and memory of a client: {what}"
    work = Table(title=title, caption=caption, box=SIMPLE, collapse_padding=True, pad_edge=False)
    measured = any(row["memory_bytes"]["measured"] for row in figures.values())
    columns = ["", "MMAC", "MFLOP", "memory [MB]", "weights [MB]", "maps [MB]", "server [GFLOP]"]
    for column in columns + ["measured [MB]"] * measured:
        work.add_column(column, justify="right" if column else "left", no_wrap=not column)
    caption = "up / down; a round is one that the client takes part in, a session the mean over all clients"
    traffic = Table(title=f"Bytes that a client sends and receives, in {dtype}", caption=caption, box=SIMPLE)
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
        work.add_row(name, *map(_short, numbers), *([_short(own["measured"] / 1e6)] if measured else []))
        spans = (("image", 1e3), ("round", 1e6), ("session", 1e6))
        sent = [[n / unit for n in row[f"bytes_per_{span}"].values()] for span, unit in spans]
        traffic.add_row(name, *(" / ".join(map(_short, both)) for both in sent))
    return [work, traffic]


def _short(value: float) -> str:
    """Format a number for a table, with decimals if it is less than 100."""
    return f"{value:,.0f}" if value >= 100 else f"{value:,.2f}"


def paper_tables() -> tuple[list[Table], dict[str, Any]]:
    """Return tables of the paper's figures beside those of `_paper_way`, and the latter by the name of the row."""
    figures = {name: _paper_way(name) for name in _PUBLISHED}
    table = Table(
        title="Hardware costs, counted as in the paper: here / published",
        caption="MB of 1024^2 bytes over the session; operations: multiply-adds of convolutions and products, and 5 "
        "for each normalised number, in 1024^2, times 3 for clients that learn. The paper read memory off a GPU's "
        "allocator; here it is weights, velocity, gradients and kept maps of one model. Frozen clients (TAResSFL) send "
        "no weights",
        box=SIMPLE,
    )
    for column in ("", "weights [MB]", "activations [MB]", "operations [M]", "memory [MB]"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=not column)
    for name, own in figures.items():
        published = _PUBLISHED[name]
        table.add_row(
            name,
            *(
                f"{own[key]:,.1f} / {'-' if published[key] is None else format(published[key], ',.1f')}"
                for key in ("weights", "activations", "flops", "memory")
            ),
        )
    return [table], figures


def _paper_way(name: str) -> dict[str, float]:
    """Compute a row of the paper's table of hardware costs as the published program does.

    Multiply-adds are called FLOPs there. A client trains 200 epochs on 50 images, and models are averaged after each
    epoch. Weights are counted in one direction; activations are those of the query, sent up, and their gradients, sent
    down. Federated learning trains 500 epochs on 10,000 images in batches of 128, averages after every fifth epoch and
    has the largeV2 head. TAResSFL has a bottleneck C4S2 and sends no weights and no gradients; it has no backward pass.

    Args:
        name: a key of `_PUBLISHED`.
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
    weights = 0 if frozen else epochs // averaged_after * _size_of_state(model.client)
    activations = (1 if frozen else 2) * epochs * 50 * prod(model.smashed_shape)
    kept = memory(model.client, shape, batch, learns=not frozen)
    megabyte = 1024 * 1024
    training = kept.total - kept.momentum - kept.workspace  # one model, between the passes
    return {
        "weights": 4 * weights / megabyte,
        "activations": 4 * activations / megabyte,
        "flops": (1 if frozen else 3) * (one.macs + _PAPER_NORMALISED * one.normalised) / megabyte,
        "memory": training / megabyte,
    }


def _size_of_state(half: FlatModule) -> int:
    """Return how many numbers the state dict of half a network holds.

    They are its parameters, its running statistics, and a count of batches for each layer that has such statistics.
    """
    counts = sum(name.endswith("running_mean") for name in half.statistic_shapes)
    return half.size + len(half.initial_statistics) + counts
