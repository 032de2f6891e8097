"""The config: the paper's rule, what is refused, and that every field is a flag."""

from dataclasses import fields

import pytest
import torch

import run
from presets import PRESETS, automatic
from simsfl import RunConfig
from simsfl.schedule import client_lr, decay, server_lr


@pytest.mark.parametrize(
    ("clients", "cohort", "batch_size", "syncs", "rounds"),
    [
        (1, 1, 100, 10, 200),
        (5, 5, 20, 10, 200),
        (20, 20, 5, 10, 200),
        (50, 50, 2, 10, 200),
        (100, 100, 1, 10, 200),
        (200, 100, 1, 5, 400),
        (1000, 100, 1, 1, 2000),
        (5000, 100, 1, 1, 10000),
    ],
)
def test_auto_rule(clients, cohort, batch_size, syncs, rounds):
    config = RunConfig(clients=clients).resolved()
    assert (config.cohort, config.batch_size, config.syncs_per_round, config.rounds) == (
        cohort,
        batch_size,
        syncs,
        rounds,
    )
    assert config.resolved() == config


def test_defaults_are_the_papers():
    config = PRESETS["paper"]()
    assert (config.arch, config.cut_layer, config.classes_per_client) == ("resnet18", 1, 2)
    assert (config.temperature, config.queue_length, config.key_dim) == (0.1, 6000, 1024)
    assert (config.lr, config.momentum, config.weight_decay, config.tau) == (0.06, 0.9, 5e-4, 0.99)


def test_every_field_has_a_flag_with_help_and_presets_are_valid():
    helped = run.parser().format_help()
    for spec in fields(RunConfig):
        assert f"--{spec.name.replace('_', '-')}" in helped
    for flag in ("--config", "--resume", "--list", "--out", "--overwrite", "--dashboard"):
        assert flag in helped
    for name, preset in PRESETS.items():
        assert preset().preset == name
        assert preset().resolved()
    name, why = automatic()
    assert name == ("paper" if torch.cuda.is_available() else "laptop")
    assert "CUDA" in why


def test_round_trip_through_json_types():
    config = RunConfig(clients=7, lr=1, client_lr=0.5).resolved()
    assert RunConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("clients", 1.5),
        ("clients", True),
        ("lr", "fast"),
        ("symmetric", 1),
        ("dataset", None),
        ("seed", None),
    ],
)
def test_wrong_types_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field}: .*allowed"):
        RunConfig(**{field: value})


def test_list_prints_what_there_is(capsys):
    assert run.main(["--list"]) == 0
    output = capsys.readouterr().out
    for word in (*PRESETS, "resnet18", "shapes", "cifar100", "stl10", "svhn"):
        assert word in output


def test_cosine_and_step_follow_torchs_schedulers():
    rounds = 20
    for schedule, factor in (("cosine", None), ("step", 0.1)):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
        torchs = (
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, rounds)
            if schedule == "cosine"
            else torch.optim.lr_scheduler.MultiStepLR(optimizer, [12, 16], gamma=factor)
        )
        for r in range(rounds):
            assert server_lr(0.3, schedule, r, rounds) == pytest.approx(torchs.get_last_lr()[0], abs=1e-12)
            optimizer.step()
            torchs.step()
    assert decay("step", 19, 20, 0.2) == pytest.approx(0.04)


def test_oscillating_is_torchs_cosine_stepped_at_every_batch():
    rounds, steps = 4, 11
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    torchs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, rounds)
    for t in range(steps):
        ours = client_lr(0.3, "oscillating", 0, rounds, torch.tensor([t]))
        assert ours.item() == pytest.approx(torchs.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        torchs.step()
