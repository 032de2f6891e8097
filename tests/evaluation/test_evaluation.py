"""kNN against a naive vote, the linear probe on data that it must separate and on data that it cannot."""

import math
from collections import defaultdict
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from simsfl import Simulation, evaluation
from simsfl.data.partition import Partition
from simsfl.evaluation import knn, percent
from simsfl.evaluation.groups import by_class, by_client
from simsfl.evaluation.spread import output_std


def naive_knn(bank, bank_labels, test, k, temperature):
    """Return predicted classes, found by sorting the neighbours of one test row at a time."""
    bank = bank / np.linalg.norm(bank, axis=1, keepdims=True)
    predictions = []
    for row in test / np.linalg.norm(test, axis=1, keepdims=True):
        similarity = bank @ row
        votes = defaultdict(float)
        for i in sorted(range(len(bank)), key=lambda i: -similarity[i])[:k]:
            votes[bank_labels[i]] += math.exp(similarity[i] / temperature)
        predictions.append(max(votes, key=votes.get))
    return predictions


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (7, 0.1), (7, 5.0), (200, 0.1)])
def test_knn(k, temperature, monkeypatch):
    monkeypatch.setattr(knn, "_CHUNK", 7)  # several blocks, the last one short
    rng = np.random.default_rng(0)
    bank, test = rng.normal(size=(60, 5)), rng.normal(size=(25, 5))
    bank_labels, test_labels = rng.integers(0, 4, 60), rng.integers(0, 4, 25)
    expected = naive_knn(bank, bank_labels, test, k, temperature) == test_labels
    tensors = [torch.from_numpy(a) for a in (bank, bank_labels, test, test_labels)]
    found = knn.knn_hits(*tensors, k=k, temperature=temperature)
    assert found.tolist() == expected.tolist()
    assert percent(found) == pytest.approx(100 * np.mean(expected))


def test_knn_of_a_collapsed_network_names_one_class():
    """The most frequent class of the bank, the first if there are several, so that the accuracy is chance."""
    for labels, named in (([2, 2, 1, 1, 0], 1), ([0, 2, 2, 1], 2)):
        bank, test = torch.ones(len(labels), 1), torch.ones(10, 1)
        of_test = torch.arange(10) % 4
        expected = 100.0 * (of_test == named).double().mean().item()
        assert percent(knn.knn_hits(bank, torch.tensor(labels), test, of_test)) == expected


def test_linear_probe_separates_what_can_be_separated():
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, 3, 600))
    centres = torch.from_numpy(rng.normal(size=(3, 10)) * 4)
    features = (centres[labels] + torch.from_numpy(rng.normal(size=(600, 10)))).float()
    generator = torch.Generator().manual_seed(0)
    last, best = evaluation.train_probe(
        features[:500], labels[:500], features[500:], labels[500:], generator, classes=3, epochs=60, batch_size=8
    )
    assert best >= last > 95
    noise = torch.randn(600, 10, generator=generator)
    last, _ = evaluation.train_probe(
        noise[:500], labels[:500], noise[500:], labels[500:], generator, classes=3, epochs=60, batch_size=8
    )
    assert last < 55


@pytest.mark.parametrize(("epochs", "steps"), [(1, 1), (1, 2), (1, 5), (2, 1), (2, 5), (3, 1), (7, 3), (100, 2)])
def test_rates_of_the_semi_supervised_probe_fall_after_60_and_80_percent_of_its_steps(epochs, steps, monkeypatch):
    """However few epochs it has: a step counts towards the share of all steps that came before it."""
    rates = []
    monkeypatch.setattr(
        torch.optim.Adam, "step", lambda optimizer, closure=None: rates.append(optimizer.param_groups[0]["lr"])
    )
    features, labels = torch.randn(4 * steps, 3), torch.arange(4 * steps) % 2
    generator = torch.Generator().manual_seed(0)
    sizes = {"classes": 2, "hidden": 5, "epochs": epochs, "batch_size": 4}
    evaluation.train_probe(features, labels, features, labels, generator, **sizes)
    before = [Fraction(step, epochs * steps) for step in range(epochs * steps)]
    expected = [1e-3 if share < Fraction(3, 5) else 1e-4 if share < Fraction(4, 5) else 1e-5 for share in before]
    assert rates == pytest.approx(expected)


def test_semi_supervised_probes_see_their_share_of_the_labels(config, dataset, monkeypatch):
    """A probe sees a random share of the images, each with its own label; rates fall at 60 and 80 % of the epochs."""
    simulation = Simulation(replace(config, semi_supervised=True, probe_epochs=10), dataset)
    seen, rates, original = [], [], evaluation.train_probe

    def train_probe(train, labels, *arguments, **options):
        seen.append((train, labels))
        return original(train, labels, *arguments, **options)

    def step(optimizer, closure=None):
        rates.append(optimizer.param_groups[0]["lr"])

    monkeypatch.setattr(evaluation, "train_probe", train_probe)
    monkeypatch.setattr(torch.optim.Adam, "step", step)
    probes = simulation.probes()
    assert [probe.kind for probe in probes] == ["semi-10%", "semi-1%"]
    everything, _ = simulation.parts.evaluation.all_features(simulation.encoder())
    for (features, labels), count in zip(seen, (8, 2), strict=True):  # 10 % and 1 % of 80 images, but at least two
        assert len(features) == count
        rows = [(everything == own).all(dim=1).nonzero()[0].item() for own in features]
        assert len(set(rows)) == count
        assert rows != list(range(count))
        assert labels.tolist() == dataset.train_labels[rows].tolist()
    assert rates == pytest.approx(([1e-3] * 6 + [1e-4] * 2 + [1e-5] * 2) * 2)


def test_evaluation_is_of_the_averaged_model_and_disturbs_nothing(config, dataset):
    simulation = Simulation(config, dataset)
    next(simulation.rounds())
    before = {name: tensor.clone() for name, tensor in simulation.state.tensors().items()}
    torch.manual_seed(7)
    generator = torch.random.get_rng_state()
    assert simulation.evaluate() == simulation.evaluate()
    simulation.probes()
    assert torch.equal(torch.random.get_rng_state(), generator)
    for name, tensor in simulation.state.tensors().items():
        assert torch.equal(tensor, before[name]), name

    encode = simulation.encoder()
    images = dataset.test.plain(torch.arange(5))
    client = simulation.model.client.module(simulation.state.clients.online)
    server = simulation.model.server.module(simulation.state.server.online)
    torch.testing.assert_close(encode(images), server.backbone(client(images)).mean(dim=(2, 3)))
    projector = simulation.encoder("projector")
    torch.testing.assert_close(projector(images), server(client(images)))


@pytest.mark.parametrize(("count", "part"), [(1, 1), (50, 50), (50, 7), (100, 1)])
def test_spread_of_outputs(count, part):
    """The standard deviation of rows of length 1, which does not depend on their original length."""
    rng = np.random.default_rng(count)
    outputs = rng.normal(size=(count, 6)) + 0.5
    unit = outputs / np.linalg.norm(outputs, axis=1, keepdims=True)
    parts = torch.from_numpy(outputs * rng.uniform(1, 9, (count, 1))).split(part)
    assert output_std(parts) == pytest.approx(unit.std(axis=0).mean())


def test_spread_of_outputs_is_0_if_all_are_alike_and_highest_if_they_are_even():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        alike = torch.randn(1, 33, generator=torch.Generator().manual_seed(0)).to(dtype).expand(70, 33)
        assert output_std(alike.split(20)) == 0.0
        assert output_std([torch.zeros(5, 4, dtype=dtype)]) == 0.0
    everywhere = torch.cat([torch.eye(16), -torch.eye(16)])
    assert output_std([everywhere]) == pytest.approx(16**-0.5)
    assert output_std([everywhere.double() + 1e-9 * torch.randn(32, 16)]) <= 16**-0.5


@pytest.mark.parametrize("settings", [{}, {"method": "fl-byol", "syncs_per_round": 1}, {"head": "large-mlp"}])
@pytest.mark.parametrize("features", ["backbone", "projector"])
def test_spread_is_that_of_the_projection_whatever_features_are_evaluated(settings, features, config, dataset):
    simulation = Simulation(replace(config, eval_features=features, knn_test=20, **settings), dataset)
    next(simulation.rounds())
    for record, trained in ((simulation.evaluate_untrained(), False), (simulation.evaluate(), True)):
        one = simulation if trained else Simulation(simulation.config, dataset)
        outputs = one.encoder("projector")(dataset.test.plain(simulation.parts.evaluation.test))
        assert outputs.shape == (20, config.key_dim)
        unit = outputs / outputs.norm(dim=1, keepdim=True)
        assert record.output_std == pytest.approx(unit.detach().numpy().std(axis=0).mean(), rel=1e-4)


def test_the_spread_shows_that_a_network_has_collapsed(config, dataset, black):
    assert Simulation(config, black).evaluate().output_std == 0.0
    assert Simulation(config, dataset).evaluate().output_std > 0.01


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_what_is_evaluated_on_cuda_is_the_network_that_a_cpu_would_load(config, dataset, tmp_path):
    simulation = Simulation(replace(config, device="cuda", precision="fp32", engine="fused", rounds=1), dataset)
    list(simulation.rounds())
    simulation.save(tmp_path / "run")
    loaded = Simulation.load(tmp_path / "run", dataset, device="cpu")
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = loaded.encoder()(images)
    torch.testing.assert_close(simulation.encoder()(images.cuda()).cpu(), expected, rtol=1e-3, atol=1e-4)


def test_accuracies_by_class_and_client_are_those_of_naive_loops():
    rng = np.random.default_rng(1)
    labels, hits, train = rng.integers(0, 5, 60), rng.random(60) < 0.6, rng.integers(0, 6, 90)
    partition = Partition.of(np.array_split(rng.permutation(90), 23))
    classes = {k: [hit for hit, label in zip(hits, labels, strict=True) if label == k] for k in range(6)}
    expected = [100 * np.mean(own) if own else None for own in classes.values()]
    assert by_class(hits, labels, 6) == pytest.approx(expected)
    accuracies = []
    for client in range(23):
        own = [expected[k] for k in train[partition[client]] if expected[k] is not None]
        accuracies += [np.mean(own)] if own else []
    found = by_client(hits, labels, partition, train)
    assert found.mean == pytest.approx(np.mean(accuracies))
    assert found.std == pytest.approx(np.std(accuracies))
    assert found.worst_tenth == pytest.approx(np.mean(sorted(accuracies)[:3]))
    assert by_client(hits, labels, Partition.of([np.array([0])]), np.array([5])) is None


def test_a_runs_records_have_them(config, dataset):
    simulation = Simulation(replace(config, knn_k=3, knn_temperature=0.5, rounds=1), dataset)
    untrained, evaluated = [record for record in simulation.train() if record.event == "evaluation"]
    assert (untrained.class_top1, untrained.clients_top1) == (None, None)
    tested = torch.bincount(dataset.test_labels[simulation.parts.evaluation.test])
    assert np.average(evaluated.class_top1, weights=tested) == pytest.approx(evaluated.knn_top1)
    assert simulation.parts.evaluation.knn(simulation.encoder()) == evaluated.knn_top1
    mean, worst, std = evaluated.clients_top1
    assert worst <= mean
    assert std >= 0
