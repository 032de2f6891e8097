"""Partitions: which images each client holds. Labels go in, image indices per client come out; needs NumPy only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from simsfl.config.catalogue import PARTITIONS
from simsfl.config.notation import Unequal
from simsfl.system.messages import count_text, unknown
from simsfl.system.randomness import Purpose, numpy_generator

_DRAWS = 10
"""Times that a Dirichlet partition is drawn, at most, while a client has too few images."""


@dataclass(frozen=True)
class Partition:
    """The image indices of M clients, one client after the other; no image belongs to two clients."""

    indices: np.ndarray
    """``[total]`` int64 image indices of all clients."""
    offsets: np.ndarray
    """``[M + 1]`` int64: client c holds ``indices[offsets[c]:offsets[c + 1]]``."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, client: int) -> np.ndarray:
        return self.indices[self.offsets[client] : self.offsets[client + 1]]

    @property
    def sizes(self) -> np.ndarray:
        """Number of images ``[M]`` of each client."""
        return np.diff(self.offsets)

    def sizes_of(self, clients: np.ndarray) -> np.ndarray:
        """Return the number of images ``[C]`` of some clients, given their ids; it takes no time for the others."""
        return self.offsets[clients + 1] - self.offsets[clients]

    def class_counts(self, labels: np.ndarray) -> np.ndarray:
        """Return how many images ``[M, classes]`` of each class each client holds; `labels` are those of all images."""
        classes = int(labels.max()) + 1
        client = np.repeat(np.arange(len(self)), self.sizes)
        flat = np.bincount(client * classes + labels[self.indices], minlength=len(self) * classes)
        return flat.reshape(len(self), classes)

    @classmethod
    def by_owner(cls, owners: np.ndarray, clients: int) -> Partition:
        """Return the partition among this number of clients in which image i belongs to ``owners[i]``."""
        sizes = np.bincount(owners, minlength=clients)
        return cls(np.argsort(owners, kind="stable"), np.concatenate([[0], np.cumsum(sizes)]))

    @classmethod
    def of(cls, parts: list[np.ndarray]) -> Partition:
        """Return the partition in which client c holds the image indices ``parts[c]``."""
        offsets = np.cumsum([0, *map(len, parts)])
        return cls(np.concatenate(parts).astype(np.int64), offsets.astype(np.int64))


def iid(labels: np.ndarray, weights: np.ndarray, rng: np.random.Generator) -> Partition:
    """Shuffle all images and deal them to clients in proportion to `weights`; what does not divide is left out."""
    sizes = np.floor(len(labels) * weights / weights.sum() + 1e-9).astype(np.int64)
    return Partition.of(np.split(rng.permutation(len(labels)), np.cumsum(sizes))[:-1])


def shards(labels: np.ndarray, weights: np.ndarray, rng: np.random.Generator, classes_per_client: int) -> Partition:
    """Sort images by label, cut them into equal shards, and deal `classes_per_client` random shards to each client.

    This is the pathological split of McMahan et al. (2017), as MocoSFL uses it; two shards of one client may be of the
    same class. What does not divide is left out. A client whose weight is k times the smallest gets k times as many
    shards, rounded to a whole number.
    """
    counts = np.rint(classes_per_client * weights / weights.min()).astype(np.int64)
    size = len(labels) // counts.sum()
    by_label = np.argsort(labels, kind="stable")[: size * counts.sum()].reshape(counts.sum(), size)
    dealt = by_label[rng.permutation(counts.sum())]
    return Partition.of([part.ravel() for part in np.split(dealt, np.cumsum(counts)[:-1])])


def dirichlet(labels: np.ndarray, weights: np.ndarray, rng: np.random.Generator, alpha: float) -> Partition:
    """Split each class among the clients in proportions drawn from a Dirichlet distribution.

    Its concentration is `alpha` for a client of average weight, and the mean proportions are those of the weights. As
    in Yurochkin et al. (ICML 2019) and Li et al. (ICDE 2022), clients hold different numbers of images.
    """
    clients = len(weights)
    owner = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        shares = rng.dirichlet(alpha * weights / weights.mean())
        cuts = np.floor(np.cumsum(shares)[:-1] * len(rows)).astype(np.int64)
        owner[rows] = np.searchsorted(cuts, np.arange(len(rows)), side="right")
    return Partition.by_owner(owner, clients)


def natural(labels: np.ndarray, weights: np.ndarray, rng: np.random.Generator, owners: np.ndarray) -> Partition:
    """Give each client the images that belong to it, which are those where `owners` ``[n]`` has its id."""
    return Partition.by_owner(owners, len(weights))


def make_partition(
    labels: np.ndarray,
    clients: int,
    *,
    kind: str = "shards",
    classes_per_client: int = 2,
    alpha: float = 0.5,
    batch_size: int = 1,
    least: int | None = None,
    unequal: Unequal | None = None,
    proportion: float = 1.0,
    owners: np.ndarray | None = None,
    seed: int = 0,
) -> Partition:
    """Partition images among clients so that each holds at least one batch.

    >>> labels = np.array([0, 1, 2, 3] * 25)
    >>> partition = make_partition(labels, clients=5, kind="shards", classes_per_client=2)
    >>> partition.sizes
    array([20, 20, 20, 20, 20])
    >>> partition[0].shape
    (20,)

    Args:
        labels: ``[n]`` integer labels.
        clients: M, the number of clients.
        kind: one of `PARTITIONS`.
        classes_per_client: shards per client, if `kind` is "shards".
        alpha: concentration of the Dirichlet split; smaller is less even. The split is drawn up to `_DRAWS`
            times, until every client holds `batch_size` images.
        batch_size: images in a batch.
        least: number of images that each client must hold, `batch_size` by default.
        unequal: how much more the rich clients hold; they come first. None for equal clients.
        proportion: share of the images, drawn at random, that is divided among clients; the others are left out.
        owners: ``[n]`` client of each image, if `kind` is "natural".
        seed: the run's seed.

    Raises:
        ValueError: the kind is unknown, there are more clients or shards than images, or a client would hold fewer than
            `least` images. The last message names the client, and the fewest images or most clients that would do.
    """
    least = batch_size if least is None else least
    if kind not in PARTITIONS:
        raise unknown("partition", kind, PARTITIONS)
    if kind == "natural":
        _check_owners(owners, clients)
    chosen = _share(len(labels), proportion, seed)
    settings = {
        "classes_per_client": classes_per_client,
        "alpha": alpha,
        "owners": None if owners is None else owners[chosen],
    }
    options = {name: settings[name] for name in PARTITIONS[kind].settings}
    _check_numbers(len(chosen), clients, classes_per_client if kind == "shards" else 1, proportion)

    def draw(count: int) -> Partition:
        weights = np.array(unequal.weights(count) if unequal else [1.0] * count)
        return _drawn(kind, labels[chosen], weights, options, batch_size, seed)

    partition = draw(clients)
    if partition.sizes.min() < least:
        fixed = "owners" in PARTITIONS[kind].settings
        most = 0 if fixed else _most_clients(draw, clients, least, fewest=2 if unequal else 1)
        raise _too_few(partition, least, most, kind, classes_per_client, unequal=bool(unequal))
    return Partition(chosen[partition.indices], partition.offsets)


def _share(count: int, proportion: float, seed: int) -> np.ndarray:
    """Return the rows ``[n]`` of a random share of `count` images, in ascending order; all of them for a share of 1."""
    if proportion == 1:
        return np.arange(count)
    rng = numpy_generator(seed, Purpose.PROPORTION)
    return np.sort(rng.permutation(count)[: int(proportion * count)])


def _check_owners(owners: np.ndarray | None, clients: int) -> None:
    """Raise a ValueError unless `owners` ``[n]`` says whose each image is, and has this number of clients."""
    if owners is None:
        raise ValueError(
            "partition: natural needs a data set that says whose each image is; allowed: an .npz file with train_client"
        )
    if clients != (found := int(owners.max()) + 1):
        raise ValueError(f"clients: {clients} are not the {found} of the data set; allowed with natural: {found}")


def _check_numbers(images: int, clients: int, parts: int, proportion: float) -> None:
    """Raise a ValueError if there are fewer images than parts to divide them into.

    Args:
        images: images that are divided among the clients.
        clients: number of clients.
        parts: parts for each client: its shards, or 1.
        proportion: share of all images that the images are.
    """
    if proportion < 1 and clients > images:
        raise ValueError(
            f"data_proportion: {proportion:g} leaves {count_text(images, 'training image')} for "
            f"{count_text(clients, 'client')}; allowed: a larger share, or fewer clients"
        )
    if clients > images:
        raise ValueError(f"clients: {clients} are more than the {images} training images; allowed: 1 to {images}")
    if clients * parts > images:
        raise ValueError(
            f"classes_per_client: {parts} shards for each of {clients} clients are more than the {images} training "
            f"images; allowed: 1 to {images // clients}"
        )


def _drawn(
    kind: str, labels: np.ndarray, weights: np.ndarray, options: dict[str, Any], batch_size: int, seed: int
) -> Partition:
    """Draw a partition of a kind, up to `_DRAWS` times if its sizes are random, until all clients hold a batch.

    If no draw will do, return the most even one: with the batch size that the error suggests, it is found again.

    Args:
        weights: ``[M]`` how much each client holds, relative to the others.
        options: settings of this kind of partition.
    """
    known, best = PARTITIONS[kind], None
    for attempt in range(_DRAWS if known.random_sizes else 1):
        rng = numpy_generator(seed, Purpose.PARTITION, attempt)
        partition = known.code.load()(labels, weights, rng, **options)
        if best is None or partition.sizes.min() > best.sizes.min():
            best = partition
        if best.sizes.min() >= batch_size:
            break
    return best


def _too_few(
    partition: Partition, least: int, most: int, kind: str, classes_per_client: int, *, unequal: bool
) -> ValueError:
    """Return the error that a client would hold fewer than `least` images, with all that would help.

    Args:
        partition: the partition that is not possible.
        most: the most clients that would each hold enough images; 0 if no number would do.
        unequal: whether there are rich and poor clients.
    """
    clients, client = len(partition), int(partition.sizes.argmin())
    held = int(partition.sizes[client])
    allowed = [f"1 to {held} images a batch"] if held else []
    if most:
        allowed.append(f"at most {count_text(most, 'client')}")
    if kind == "natural":
        allowed = allowed or ["a larger --data-proportion"]
    elif kind == "dirichlet":
        allowed.append("a larger alpha")
    elif unequal:
        allowed.append("clients that are less unequal")
    else:
        parts = classes_per_client if kind == "shards" else 1
        allowed.append(f"at least {clients * parts * -(-least // parts)} training images")
    wrong = f"batch_size: {least} is more than the {count_text(held, 'image')} that client {client} would hold"
    if not held:
        wrong = f"clients: of {clients}, client {client} would hold no image"
    return ValueError(f"{wrong}; allowed: {', or '.join(allowed)}")


def held(kind: str, images: int, clients: int, classes_per_client: int) -> int:
    """Return how many of `images` images equal clients hold together; what does not divide is left out.

    Args:
        kind: kind of partition, one of `PARTITIONS`.
        images: number of images that are divided.
        clients: number of clients.
        classes_per_client: shards per client, if `kind` is "shards".
    """
    known = PARTITIONS[kind]
    if known.random_sizes:
        return images
    parts = clients * (classes_per_client if "classes_per_client" in known.settings else 1)
    return images // parts * parts


def _most_clients(draw: Callable[[int], Partition], clients: int, least: int, fewest: int) -> int:
    """Return the most clients, from `fewest` to below `clients`, of which each would hold `least` images, or 0."""
    low, high = fewest - 1, clients
    while high - low > 1:
        middle = (low + high) // 2
        if draw(middle).sizes.min() >= least:
            low = middle
        else:
            high = middle
    return low if low >= fewest else 0
