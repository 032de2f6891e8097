"""Which images each client holds: labels in, image indices per client out. NumPy only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from simsfl.config.notation import Unequal
from simsfl.system.messages import count_text, unknown
from simsfl.system.randomness import Purpose, numpy_generator

DIRICHLET_DRAWS = 10
"""How often a Dirichlet partition is drawn anew while a client has too few images."""


@dataclass(frozen=True)
class Partition:
    """Image indices of M clients, one after the other; no image belongs to two."""

    indices: np.ndarray
    """``[total]`` int64."""
    offsets: np.ndarray
    """``[M + 1]`` int64: client c holds ``indices[offsets[c]:offsets[c + 1]]``."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, client: int) -> np.ndarray:
        return self.indices[self.offsets[client] : self.offsets[client + 1]]

    @property
    def sizes(self) -> np.ndarray:
        """``[M]`` images per client."""
        return np.diff(self.offsets)

    def class_counts(self, labels: np.ndarray) -> np.ndarray:
        """``[M, classes]`` images of each class that each client holds."""
        classes = int(labels.max()) + 1
        client = np.repeat(np.arange(len(self)), self.sizes)
        flat = np.bincount(client * classes + labels[self.indices], minlength=len(self) * classes)
        return flat.reshape(len(self), classes)

    @classmethod
    def of(cls, parts: list[np.ndarray]) -> Partition:
        """From one index array per client."""
        offsets = np.cumsum([0, *map(len, parts)])
        return cls(np.concatenate(parts).astype(np.int64), offsets.astype(np.int64))


def iid(labels: np.ndarray, weights: np.ndarray, rng: np.random.Generator) -> Partition:
    """Shuffle and deal by weight; what does not divide is left out."""
    sizes = np.floor(len(labels) * weights / weights.sum() + 1e-9).astype(np.int64)
    return Partition.of(np.split(rng.permutation(len(labels)), np.cumsum(sizes))[:-1])


def shards(labels: np.ndarray, weights: np.ndarray, rng: np.random.Generator, classes_per_client: int) -> Partition:
    """Sort by label, cut into equal shards, deal `classes_per_client` random ones to each client.

    The pathological split of McMahan et al. (2017), as MocoSFL uses it; two shards of one client may be of one class.
    What does not divide is left out. Clients of more than the least weight get as many more shards, to the nearest.
    """
    counts = np.rint(classes_per_client * weights / weights.min()).astype(np.int64)
    size = len(labels) // counts.sum()
    by_label = np.argsort(labels, kind="stable")[: size * counts.sum()].reshape(counts.sum(), size)
    dealt = by_label[rng.permutation(counts.sum())]
    return Partition.of([part.ravel() for part in np.split(dealt, np.cumsum(counts)[:-1])])


def dirichlet(labels: np.ndarray, weights: np.ndarray, rng: np.random.Generator, alpha: float) -> Partition:
    """Split each class among the clients in proportions drawn from Dirichlet(alpha), in the mean those of the weights.

    As Yurochkin et al. (ICML 2019) and Li et al. (ICDE 2022): sizes differ between clients.
    """
    clients = len(weights)
    owner = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        shares = rng.dirichlet(alpha * weights / weights.mean())
        cuts = np.floor(np.cumsum(shares)[:-1] * len(rows)).astype(np.int64)
        owner[rows] = np.searchsorted(cuts, np.arange(len(rows)), side="right")
    sizes = np.bincount(owner, minlength=clients)
    return Partition(np.argsort(owner, kind="stable"), np.concatenate([[0], np.cumsum(sizes)]))


PARTITIONS: dict[str, Callable[..., Partition]] = {"iid": iid, "shards": shards, "dirichlet": dirichlet}


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
    seed: int = 0,
) -> Partition:
    """Partition images among clients so that each holds at least one batch.

    Args:
        labels: ``[n]`` integer labels.
        kind: one of `PARTITIONS`.
        classes_per_client: shards per client.
        alpha: concentration of the Dirichlet split; smaller is less even. It is drawn up to
            `DIRICHLET_DRAWS` times until every client holds a batch.
        least: images that each client must hold, `batch_size` by default.
        unequal: how much more the rich clients hold, who come first.
        proportion: share of the images, drawn at random, that are divided at all.

    Raises:
        ValueError: unknown kind, or a client would hold fewer than `least` images. The message
            names the client, and the fewest images or most clients that would do.
    """
    least = batch_size if least is None else least
    if kind not in PARTITIONS:
        raise unknown("partition", kind, PARTITIONS)
    options = {"iid": {}, "shards": {"classes_per_client": classes_per_client}, "dirichlet": {"alpha": alpha}}[kind]

    def draw(count: int) -> Partition:
        weights = np.array(unequal.weights(count) if unequal else [1.0] * count)
        best = None
        for attempt in range(DIRICHLET_DRAWS if kind == "dirichlet" else 1):
            partition = PARTITIONS[kind](labels, weights, numpy_generator(seed, Purpose.PARTITION, attempt), **options)
            if best is None or partition.sizes.min() > best.sizes.min():
                best = partition
            if best.sizes.min() >= batch_size:
                break
        return best  # where none will do the most even one, which a batch size set to what it allows finds, too

    chosen = None
    if proportion < 1:
        rng = numpy_generator(seed, Purpose.PROPORTION)
        chosen = np.sort(rng.permutation(len(labels))[: int(proportion * len(labels))])
        labels = labels[chosen]
    if proportion < 1 and clients > len(labels):
        raise ValueError(
            f"data_proportion: {proportion:g} leaves {count_text(len(labels), 'training image')} for "
            f"{count_text(clients, 'client')}; allowed: a larger share, or fewer clients"
        )
    if clients > len(labels):
        raise ValueError(
            f"clients: {clients} are more than the {len(labels)} training images; allowed: 1 to {len(labels)}"
        )
    if kind == "shards" and clients * classes_per_client > len(labels):
        raise ValueError(
            f"classes_per_client: {classes_per_client} shards for each of {clients} clients are more than the "
            f"{len(labels)} training images; allowed: 1 to {len(labels) // clients}"
        )
    partition = draw(clients)
    client = int(partition.sizes.argmin())
    held = int(partition.sizes[client])
    if held < least:
        allowed = [f"1 to {held} images a batch"] if held else []
        if most := most_clients(draw, clients, least, fewest=2 if unequal else 1):
            allowed.append(f"at most {count_text(most, 'client')}")
        if kind == "dirichlet":
            allowed.append("a larger alpha")
        elif unequal:
            allowed.append("clients that are less unequal")
        else:
            parts = classes_per_client if kind == "shards" else 1
            allowed.append(f"at least {clients * parts * -(-least // parts)} training images")
        wrong = f"batch_size: {least} is more than the {count_text(held, 'image')} that client {client} would hold"
        if not held:
            wrong = f"clients: of {clients}, client {client} would hold no image"
        raise ValueError(f"{wrong}; allowed: {', or '.join(allowed)}")
    return partition if chosen is None else Partition(chosen[partition.indices], partition.offsets)


def held(kind: str, images: int, clients: int, classes_per_client: int) -> int:
    """How many of so many images clients of one kind hold together: what does not divide is left out."""
    parts = {"iid": clients, "shards": clients * classes_per_client, "dirichlet": 1}[kind]
    return images // parts * parts


def most_clients(draw: Callable[[int], Partition], clients: int, least: int, fewest: int) -> int:
    """The largest number of clients, from `fewest` to below `clients`, that each hold `least` images; 0 if none."""
    low, high = fewest - 1, clients
    while high - low > 1:
        middle = (low + high) // 2
        if draw(middle).sizes.min() >= least:
            low = middle
        else:
            high = middle
    return low if low >= fewest else 0
