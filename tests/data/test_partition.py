"""Partitions: disjoint, complete, of the shape asked for, and clear about what cannot be."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simsfl import RunConfig, Simulation
from simsfl.config.notation import Unequal
from simsfl.data.load import load_dataset
from simsfl.data.partition import IID, Dirichlet, Shards, make_partition
from tests.conftest import TINY

LABELS = np.random.default_rng(0).permutation(np.arange(5000) % 10)


@settings(max_examples=40, deadline=None)
@given(
    partitioner=st.one_of(st.just(IID()), st.just(Dirichlet(5.0)), st.builds(Shards, st.integers(1, 5))),
    clients=st.integers(1, 120),
    seed=st.integers(0, 2**32),
)
def test_no_image_belongs_to_two_clients(partitioner, clients, seed):
    partition = make_partition(LABELS, clients, partitioner, seed=seed)
    assert len(partition) == clients == len(partition.sizes)
    assert len(np.unique(partition.indices)) == len(partition.indices) <= len(LABELS)
    assert partition.sizes.min() >= 1
    assert sorted(i for c in range(clients) for i in partition[c]) == sorted(partition.indices)
    if isinstance(partitioner, Dirichlet):
        assert len(partition.indices) == len(LABELS)
    else:
        assert partition.sizes.min() == partition.sizes.max()


@pytest.mark.parametrize("partitioner", [IID(), Shards(2), Dirichlet(50.0)])
def test_rich_clients_hold_more_and_a_share_of_the_data_is_a_share(partitioner):
    unequal = Unequal.parse("0.2_0.8|16|0.8_0.2")
    partition = make_partition(LABELS, 20, partitioner, unequal=unequal)
    sizes = partition.sizes
    rich, poor = sizes[:4].mean(), sizes[4:].mean()
    assert rich / poor == pytest.approx(16, rel=0.25)
    half = make_partition(LABELS, 20, partitioner, proportion=0.5)
    assert len(half.indices) <= 2500
    assert len(half.indices) > 2400
    assert len(np.unique(half.indices)) == len(half.indices)
    assert half.indices.max() > 4000  # from all over


def test_shards_give_each_client_few_classes_of_equal_size():
    partition = make_partition(LABELS, 50, Shards(2))
    counts = partition.class_counts(LABELS)
    assert counts.shape == (50, 10)
    assert ((counts > 0).sum(axis=1) <= 2).all()
    assert (counts.sum(axis=1) == 100).all()
    assert (counts.sum(axis=0) == 500).all()


def test_iid_is_a_uniform_deal():
    counts = make_partition(LABELS, 10, IID()).class_counts(LABELS)
    chi_squared = ((counts - 50) ** 2 / 50).sum()
    assert 40 < chi_squared < 140  # 81 degrees of freedom: mean 81, deviation 13


@pytest.mark.parametrize(("alpha", "low", "high"), [(0.05, 0.5, 1.0), (1.0, 0.15, 0.5), (1000.0, 0.1, 0.13)])
def test_alpha_sets_how_mixed_a_client_is(alpha, low, high):
    counts = make_partition(LABELS, 20, Dirichlet(alpha)).class_counts(LABELS)
    largest_share = (counts.max(axis=1) / counts.sum(axis=1)).mean()
    assert low < largest_share < high


def test_the_seed_decides():
    first, again, other = (make_partition(LABELS, 7, Shards(2), seed=seed) for seed in (1, 1, 2))
    assert (first.indices == again.indices).all()
    assert (first.indices != other.indices).any()


@pytest.mark.parametrize(
    ("partitioner", "clients", "batch_size", "words"),
    [
        (IID(), 100, 51, ["batch_size: 51", "50 images", "client 0", "98 clients", "5100 training images"]),
        (Shards(2), 100, 51, ["batch_size: 51", "client 0", "96 clients", "5200 training images"]),
        (Dirichlet(0.1), 3000, 1, ["clients: of 3000, client ", "no image", "clients, or a larger alpha"]),
        (IID(), 5001, 1, ["clients: 5001", "5000 training images"]),
    ],
)
def test_errors_name_the_client_and_what_would_do(partitioner, clients, batch_size, words):
    with pytest.raises(ValueError, match=r"allowed") as error:
        make_partition(LABELS, clients, partitioner, batch_size=batch_size)
    for word in words:
        assert word in str(error.value)
    if not partitioner.random_sizes and "clients, or" in str(error.value):
        most = int(str(error.value).split("at most ")[1].split()[0])
        make_partition(LABELS, most, partitioner, batch_size=batch_size)
        with pytest.raises(ValueError, match="batch_size"):
            make_partition(LABELS, most + 1, partitioner, batch_size=batch_size)


def test_natural_clients_hold_what_is_theirs(arrays, tmp_path):
    owners = np.random.default_rng(0).integers(0, 5, 80) * 10 + 3  # numbered with gaps
    own = {name: getattr(arrays, name) for name in ("train_x", "train_y", "test_x", "test_y")}
    np.savez(tmp_path / "own.npz", **own, train_client=owners)
    np.savez(tmp_path / "nobodys.npz", **own)
    np.savez(tmp_path / "names.npz", **own, train_client=[f"c{owner}" for owner in owners])
    with pytest.raises(ValueError, match=r"^dataset: .* an unusable train_client \(.*\); allowed: integers of sh"):
        load_dataset(str(tmp_path / "names.npz"))
    np.savez(tmp_path / "odd.npz", **own, train_client=owners[:-1])
    fields = TINY | {"clients": 5, "partition": "natural", "cohort": 2}
    simulation = Simulation(RunConfig(**fields, dataset=str(tmp_path / "own.npz")))
    for client in range(5):
        assert simulation.parts.partition[client].tolist() == np.flatnonzero(owners == 10 * client + 3).tolist()
    list(simulation.rounds())
    simulation.save(tmp_path / "run")
    assert Simulation.load(tmp_path / "run").parts.partition.sizes.tolist() == simulation.parts.partition.sizes.tolist()
    fewest = np.bincount(owners)[3::10].min()
    for changes, file, message in (
        ({"clients": 4}, "own", "clients: 4 are not the 5 of the data set; allowed with natural: 5"),
        (
            {},
            "nobodys",
            "partition: natural needs a data set that says whose each image is; allowed: an .npz file with",
        ),
        (
            {},
            "odd",
            r"dataset: .*odd.npz: train_client has dtype int64 and shape \(79,\); it must be integers of shape",
        ),
        (
            {"batch_size": 60},
            "own",
            f"batch_size: 60 is more than the {fewest} images that client . would hold; allowed: 1 t",
        ),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            Simulation(RunConfig(**fields | changes, dataset=str(tmp_path / f"{file}.npz")))
