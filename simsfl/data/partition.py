"""Partitions: which images each client holds. Labels go in, image indices per client come out; needs NumPy only.

`simsfl.config.catalogue.PARTITIONS` lists the partitioners that come with simsfl.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from simsfl.config import RunConfig
from simsfl.config.notation import Unequal
from simsfl.system.array_zip import ArrayZip
from simsfl.system.messages import count_text, kind_of
from simsfl.system.randomness import Purpose, numpy_generator

__all__ = ["Partition", "Partitioner"]

if TYPE_CHECKING:
    from simsfl.data import Dataset

_DRAWS = 10
"""Times that a Dirichlet partition is drawn, at most, while a client has too few images."""


@dataclass(frozen=True)
class Partition:
    """The image indices of M clients, one client after the other; no image belongs to two clients.

    >>> Partition.of([np.array([3, 0]), np.array([1])]).sizes
    array([2, 1])
    """

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

    @property
    def checksum(self) -> str:
        """SHA-256 of the indices and the offsets, as little-endian int64."""
        content = (np.ascontiguousarray(part, dtype="<i8").tobytes() for part in (self.indices, self.offsets))
        return hashlib.sha256(b"".join(content)).hexdigest()

    def shifted(self, by: int) -> Partition:
        """Return the partition of the same images where their indices begin with `by` instead of 0."""
        return Partition(self.indices + by, self.offsets) if by else self

    def check(self, clients: int, images: int) -> None:
        """Raise a ValueError unless this is a partition of some of `images` images among this number of clients."""
        if any(part.dtype != np.int64 or part.ndim != 1 for part in (self.indices, self.offsets)):
            raise ValueError(
                "partition: its indices and offsets are not both int64 of one dimension; allowed: as "
                "Partition.of(parts) makes them"
            )
        if len(self) != clients:
            raise ValueError(
                f"partition: it has {count_text(max(0, len(self)), 'client')}, and the config {clients:,}; allowed: as "
                "many as `clients`"
            )
        if self.offsets[0] or self.offsets[-1] != len(self.indices) or (self.sizes < 0).any():
            raise ValueError(
                "partition: its offsets do not divide its indices; allowed: as Partition.of(parts) makes them"
            )
        owner = np.repeat(np.arange(clients), self.sizes)
        if len(strange := np.flatnonzero((self.indices < 0) | (self.indices >= images))):
            first = strange[0]
            raise ValueError(
                f"partition: client {owner[first]} holds image {self.indices[first]}; allowed: 0 to {images - 1}"
            )
        order = np.argsort(self.indices, kind="stable")
        if len(twice := np.flatnonzero(np.diff(self.indices[order]) == 0)):
            one, other = owner[order[twice[0] : twice[0] + 2]]
            whom = f"clients {one} and {other} hold" if one != other else f"client {one} holds twice"
            raise ValueError(f"partition: {whom} image {self.indices[order[twice[0]]]}; allowed: each image once")

    def save(self, file: Path) -> None:
        """Write the partition into an uncompressed ``.npz`` file, which `load` reads."""
        with file.open("wb") as stream:
            np.savez(stream, indices=self.indices.astype(np.int64), offsets=self.offsets.astype(np.int64))

    @classmethod
    def load(cls, file: Path) -> Partition:
        """Read a partition from a file that `save` has written.

        Raises:
            ValueError: the file cannot be read, or is something else; the message is the end of a sentence about it.
        """
        try:
            arrays = ArrayZip(file, compressed=False)
            return cls(arrays.array("indices"), arrays.array("offsets"))
        except OSError as error:
            raise ValueError(f"cannot be read ({error.strerror})") from error

    @classmethod
    def by_owner(cls, owners: np.ndarray, clients: int) -> Partition:
        """Return the partition among this number of clients in which image i belongs to ``owners[i]``."""
        sizes = np.bincount(owners, minlength=clients)
        return cls(np.argsort(owners, kind="stable"), np.concatenate([[0], np.cumsum(sizes)]))

    @classmethod
    def of(cls, parts: list[np.ndarray]) -> Partition:
        """Return the partition in which client c holds the image indices ``parts[c]``, integers ``[n]``.

        Raises:
            ValueError: a part is something else.

        >>> Partition.of([[0.5, 1.5], [2]])
        Traceback (most recent call last):
        ValueError: partition: client 0 has a list of float64 of 1 dimension; allowed: indices of images, int64 [n]
        """
        if not isinstance(parts, Iterable):
            raise ValueError(
                f"partition: {kind_of(parts)} is no list of parts; allowed: for each client an array of indices"
            )
        checked = []
        for client, part in enumerate(parts):
            try:
                indices = np.asarray(part)
            except ValueError:  # lists of different lengths
                indices = np.asarray(part, dtype=object)
            if indices.ndim != 1 or (len(indices) and indices.dtype.kind not in "iu"):
                raise ValueError(
                    f"partition: client {client} has {kind_of(part)} of {indices.dtype} of "
                    f"{count_text(indices.ndim, 'dimension')}; allowed: indices of images, int64 [n]"
                )
            checked.append(indices.astype(np.int64))
        offsets = np.cumsum([0, *map(len, checked)])
        return cls(np.concatenate([np.empty(0, dtype=np.int64), *checked]), offsets.astype(np.int64))


@dataclass(frozen=True)
class Partitioner:
    """The base of all partitioners, which divide images among clients.

    A subclass is a frozen dataclass, whose fields with a default are its options.
    """

    needs_labels: ClassVar[bool] = True
    """Whether it cannot divide images without labels."""
    random_sizes: ClassVar[bool] = False
    """Whether clients may hold different numbers of images: it then divides all, and is drawn again where a client
    would hold too few. Otherwise what does not divide into equal parts is left out."""
    fixed: ClassVar[bool] = False
    """Whether it is known beforehand whose each image is, so that there is a single number of clients."""
    remedy: ClassVar[str] = ""
    """What helps where a client would hold too few images, for errors; empty for fewer clients or more images alone."""

    @property
    def parts(self) -> int:
        """Return the number of equal parts that a client gets."""
        return 1

    @classmethod
    def of(cls, config: RunConfig, dataset: Dataset) -> Partitioner:
        """Return the partitioner that a config means, whose `classes_per_client` is set, for the images of a data set.

        Raises:
            ValueError: the config asks for something impossible.
        """
        return cls(**config.options_of("partition", cls))

    def among(self, rows: np.ndarray) -> Partitioner:
        """Return the partitioner of the images at `rows` ``[n]`` alone, to which indices then refer."""
        return self

    def deal(self, labels: np.ndarray, weights: np.ndarray, rng: np.random.Generator) -> Partition:
        """Divide images among clients.

        Args:
            labels: ``[n]`` int64 labels of the images; -1 for all where they have none.
            weights: ``[M]`` how much each client is to hold, relative to the others.
            rng: random numbers that depend on the run's seed alone.
        """
        raise NotImplementedError


class IID(Partitioner):
    """Shuffles all images and deals them in proportion to the clients' weights; what does not divide is left out."""

    needs_labels = False

    def deal(self, labels: np.ndarray, weights: np.ndarray, rng: np.random.Generator) -> Partition:
        sizes = np.floor(len(labels) * weights / weights.sum() + 1e-9).astype(np.int64)
        return Partition.of(np.split(rng.permutation(len(labels)), np.cumsum(sizes))[:-1])


@dataclass(frozen=True)
class Shards(Partitioner):
    """Sorts images by label, cuts them into equal shards, and deals as many random ones to each client.

    This is the pathological split of McMahan et al. (2017), as MocoSFL uses it; two shards of one client may be of the
    same class. What does not divide is left out. A client whose weight is k times the smallest gets k times as many
    shards, rounded to a whole number.
    """

    classes_per_client: int
    """Shards per client."""

    @property
    def parts(self) -> int:
        return self.classes_per_client

    @classmethod
    def of(cls, config: RunConfig, dataset: Dataset) -> Shards:
        assert config.classes_per_client is not None  # a rule has set it
        return cls(config.classes_per_client)

    def deal(self, labels: np.ndarray, weights: np.ndarray, rng: np.random.Generator) -> Partition:
        counts = np.rint(self.classes_per_client * weights / weights.min()).astype(np.int64)
        size = len(labels) // counts.sum()
        by_label = np.argsort(labels, kind="stable")[: size * counts.sum()].reshape(counts.sum(), size)
        dealt = by_label[rng.permutation(counts.sum())]
        return Partition.of([part.ravel() for part in np.split(dealt, np.cumsum(counts)[:-1])])


@dataclass(frozen=True)
class Dirichlet(Partitioner):
    """Splits each class among the clients in proportions drawn from a Dirichlet distribution.

    Its concentration is `alpha` for a client of average weight, and the mean proportions are those of the weights. As
    in Yurochkin et al. (ICML 2019) and Li et al. (ICDE 2022), clients hold different numbers of images.
    """

    random_sizes = True
    remedy = "a larger alpha"
    alpha: float
    """Concentration; smaller is less even."""

    @classmethod
    def of(cls, config: RunConfig, dataset: Dataset) -> Dirichlet:
        return cls(config.alpha)

    def deal(self, labels: np.ndarray, weights: np.ndarray, rng: np.random.Generator) -> Partition:
        clients = len(weights)
        owner = np.empty(len(labels), dtype=np.int64)
        for label in np.unique(labels):
            rows = rng.permutation(np.flatnonzero(labels == label))
            shares = rng.dirichlet(self.alpha * weights / weights.mean())
            cuts = np.floor(np.cumsum(shares)[:-1] * len(rows)).astype(np.int64)
            owner[rows] = np.searchsorted(cuts, np.arange(len(rows)), side="right")
        return Partition.by_owner(owner, clients)


@dataclass(frozen=True)
class Given(Partitioner):
    """Is passed from Python, as in Simulation(config, partition=...)."""

    needs_labels, random_sizes, fixed, remedy = False, True, True, "a partition in which each client holds images"
    partition: Partition
    """The partition."""

    def deal(self, labels: np.ndarray, weights: np.ndarray, rng: np.random.Generator) -> Partition:
        return self.partition


@dataclass(frozen=True)
class Natural(Partitioner):
    """Gives each client the images that belong to it, as the data set says."""

    needs_labels, random_sizes, fixed, remedy = False, True, True, "a larger --data-proportion"
    owners: np.ndarray
    """``[n]`` int64 client of each image."""

    @classmethod
    def of(cls, config: RunConfig, dataset: Dataset) -> Natural:
        owners = dataset.train_client
        if owners is None:
            raise ValueError(
                "partition: natural needs a data set that says whose each image is; allowed: an .npz file with "
                "train_client, or a column of clients with hf:NAME"
            )
        if config.clients != (found := int(owners.max()) + 1):
            raise ValueError(
                f"clients: {config.clients} are not the {found} of the data set; allowed with natural: {found}"
            )
        return cls(owners)

    def among(self, rows: np.ndarray) -> Natural:
        return replace(self, owners=self.owners[rows])

    def deal(self, labels: np.ndarray, weights: np.ndarray, rng: np.random.Generator) -> Partition:
        return Partition.by_owner(self.owners, len(weights))


def make_partition(
    labels: np.ndarray,
    clients: int,
    partitioner: Partitioner,
    *,
    batch_size: int = 1,
    least: int | None = None,
    unequal: Unequal | None = None,
    proportion: float = 1.0,
    seed: int = 0,
) -> Partition:
    """Partition images among clients so that each holds at least one batch.

    >>> labels = np.array([0, 1, 2, 3] * 25)
    >>> partition = make_partition(labels, 5, Shards(2))
    >>> partition.sizes
    array([20, 20, 20, 20, 20])
    >>> partition[0].shape
    (20,)

    Args:
        labels: ``[n]`` integer labels; -1 for all where images have none.
        clients: M, the number of clients.
        partitioner: how images are divided. If the sizes are random, it is drawn up to `_DRAWS` times, until every
            client holds `batch_size` images.
        batch_size: images in a batch.
        least: number of images that each client must hold, `batch_size` by default.
        unequal: how much more the rich clients hold; they come first. None for equal clients.
        proportion: share of the images, drawn at random, that is divided among clients; the others are left out.
        seed: the run's seed.

    Raises:
        ValueError: there are more clients or shards than images, or a client would hold fewer than `least` images. The
            last message names the client, and the fewest images or most clients that would do.
    """
    least = batch_size if least is None else least
    chosen = _share(len(labels), proportion, seed)
    partitioner = partitioner.among(chosen)
    _check_numbers(len(chosen), clients, partitioner.parts, proportion)

    def draw(count: int) -> Partition:
        weights = np.array(unequal.weights(count) if unequal else [1.0] * count)
        return _drawn(partitioner, labels[chosen], weights, batch_size, seed)

    partition = draw(clients)
    if partition.sizes.min() < least:
        most = 0 if partitioner.fixed else _most_clients(draw, clients, least, fewest=2 if unequal else 1)
        raise _too_few(partition, partitioner, least, most, unequal=bool(unequal))
    return Partition(chosen[partition.indices], partition.offsets)


def _share(count: int, proportion: float, seed: int) -> np.ndarray:
    """Return the rows ``[n]`` of a random share of `count` images, in ascending order; all of them for a share of 1."""
    if proportion == 1:
        return np.arange(count)
    rng = numpy_generator(seed, Purpose.PROPORTION)
    return np.sort(rng.permutation(count)[: int(proportion * count)])


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


def _drawn(partitioner: Partitioner, labels: np.ndarray, weights: np.ndarray, batch_size: int, seed: int) -> Partition:
    """Draw a partition, up to `_DRAWS` times if its sizes are random, until all clients hold a batch.

    If no draw will do, return the most even one: with the batch size that the error suggests, it is found again.

    Args:
        weights: ``[M]`` how much each client holds, relative to the others.

    Raises:
        ValueError: what the partitioner returns is no partition of the images.
    """
    best = None
    for attempt in range(_DRAWS if partitioner.random_sizes and not partitioner.fixed else 1):
        partition = partitioner.deal(labels, weights, numpy_generator(seed, Purpose.PARTITION, attempt))
        if not isinstance(partition, Partition):
            raise ValueError(
                f"partition: {type(partitioner).__name__} returns {kind_of(partition)}; allowed: a Partition, "
                "as Partition.of(parts) makes it"
            )
        partition.check(len(weights), len(labels))
        if best is None or partition.sizes.min() > best.sizes.min():
            best = partition
        if best.sizes.min() >= batch_size:
            break
    assert best is not None  # there is one attempt at least
    return best


def _too_few(partition: Partition, partitioner: Partitioner, least: int, most: int, *, unequal: bool) -> ValueError:
    """Return the error that a client would hold fewer than `least` images, with all that would help.

    Args:
        partition: the partition that is not possible.
        partitioner: what has made it.
        most: the most clients that would each hold enough images; 0 if no number would do.
        unequal: whether there are rich and poor clients.
    """
    clients, client = len(partition), int(partition.sizes.argmin())
    held = int(partition.sizes[client])
    allowed = [f"1 to {held} images a batch"] if held else []
    if most:
        allowed.append(f"at most {count_text(most, 'client')}")
    if partitioner.fixed:
        allowed = allowed or [partitioner.remedy]
    elif partitioner.remedy:
        allowed.append(partitioner.remedy)
    elif unequal:
        allowed.append("clients that are less unequal")
    else:
        parts = partitioner.parts
        allowed.append(f"at least {clients * parts * -(-least // parts)} training images")
    wrong = f"batch_size: {least} is more than the {count_text(held, 'image')} that client {client} would hold"
    if not held:
        wrong = f"clients: of {clients}, client {client} would hold no image"
    return ValueError(f"{wrong}; allowed: {', or '.join(allowed)}")


def held(partitioner: type[Partitioner], images: int, clients: int, parts: int) -> int:
    """Return how many of `images` images equal clients hold together; what does not divide is left out.

    Args:
        partitioner: what divides them.
        images: number of images that are divided.
        clients: number of clients.
        parts: equal parts that each client gets.
    """
    return images if partitioner.random_sizes else images // (clients * parts) * clients * parts


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
