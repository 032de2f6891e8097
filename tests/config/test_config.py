"""The config: the paper's rule, what is refused, and that every field is a flag."""

import json
import subprocess
import sys
from dataclasses import fields, replace

import pytest
import torch

from simsfl import RunConfig
from simsfl.algorithm.schedule import client_lr, decay, server_lr
from simsfl.cli import run
from simsfl.cli.flags import asked_config
from simsfl.config import catalogue
from simsfl.config.presets import PRESETS, automatic, coffee
from simsfl.setup.defaults import left_to_rules, resolve, with_rules


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
    config = resolve(RunConfig(clients=clients))
    assert (config.cohort, config.batch_size, config.syncs_per_round, config.rounds) == (
        cohort,
        batch_size,
        syncs,
        rounds,
    )
    assert resolve(config) == config


def test_defaults_are_the_papers():
    config = PRESETS["paper"]()
    assert (config.arch, config.cut_layer, config.classes_per_client) == ("resnet18", 1, None)
    assert (config.temperature, config.queue_length, config.key_dim) == (0.1, 6000, 1024)
    assert (config.lr, config.momentum, config.weight_decay, config.tau) == (0.06, 0.9, 5e-4, 0.99)


def test_every_field_has_a_flag_with_help_and_presets_are_valid():
    helped = run.parser().format_help()
    for spec in fields(RunConfig):
        if spec.name != "options":
            assert f"--{spec.name.replace('_', '-')}" in helped
    for flag in ("--config", "--resume", "--list", "--out", "--overwrite", "--dashboard"):
        assert flag in helped
    for name, preset in PRESETS.items():
        assert preset().preset == name
        assert resolve(preset())
    name, why = automatic()
    assert name == ("paper" if torch.cuda.is_available() else "coffee")
    assert "CUDA" in why


@pytest.mark.parametrize(
    ("fields", "head"),
    [
        ({}, "mlp"),
        ({"objective": "simclr"}, "mlp"),
        ({"objective": "byol"}, "large-mlp"),
        ({"objective": "byol", "head": "linear"}, "linear"),
        ({"method": "federated", "objective": "simsiam"}, "large-mlp"),
        ({"method": "fl-byol"}, "large-mlp"),
        ({"method": "fl-byol", "head": "mlp"}, "mlp"),
        ({"method": "fl-moco"}, "mlp"),
    ],
)
def test_the_head_is_by_rule_the_objectives(fields, head):
    assert with_rules(RunConfig(**fields)).head == head


def test_a_rule_gives_no_batch_that_a_client_does_not_hold():
    assert with_rules(RunConfig(clients=5), 12).batch_size == 12
    assert with_rules(RunConfig(clients=5), 12).syncs_per_round == 1000 // (12 * 5)
    assert with_rules(RunConfig(clients=5, batch_size=30), 12).batch_size == 30


def test_a_device_has_its_number(monkeypatch):
    """`torch.cuda.set_device` refuses a device without a number."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    devices = ("auto", "cuda", "cuda:1", "cpu")
    assert [resolve(RunConfig(device=device, precision="fp32")).device for device in devices] == [
        "cuda:0",
        "cuda:0",
        "cuda:1",
        "cpu",
    ]
    with pytest.raises(ValueError, match="device: cuda:2 does not exist; allowed: cuda:0 to cuda:1"):
        resolve(RunConfig(device="cuda:2"))
    assert automatic("cpu")[0] == "coffee"


def test_everything_in_the_catalogue_is_there():
    for known in (catalogue.METHODS, catalogue.HEADS, *catalogue.DOORS.values()):
        for name, entry in known.items():
            parts = [entry] if isinstance(entry, catalogue.Code) else vars(entry).values()
            codes = [part for part in parts if isinstance(part, catalogue.Code)]
            assert codes, name
            assert all(callable(code.load()) for code in codes), name
    assert all(callable(code.load()) for code in catalogue.HEADS.values())


def test_help_does_not_wait_for_torch():
    code = "import sys; from simsfl.cli import run; run.parser().format_help(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_help_shows_what_coffee_changes():
    helped = " ".join(run.parser().format_help().split())
    assert "aims at. (default: 200, coffee: 5)" in helped


def test_a_head_goes_with_its_objective():
    config = coffee()
    assert config.with_values({"lr": 0.1, "objective": "moco"}).head_name == "linear"
    assert config.with_values({"objective": "byol"}).head_name == "large-mlp"
    assert config.with_values({"objective": "byol", "head": "mlp"}).head_name == "mlp"
    assert config.with_values({"method": "fl-byol"}).head_name == "large-mlp"
    asked = run.parser().parse(["--preset", "coffee", "--objective", "byol"])
    assert asked_config(asked).head_name == "large-mlp"
    assert asked_config(asked, RunConfig(head="linear")).head_name == "linear"  # of a file, which names it


def test_what_a_rule_set_it_sets_again(tmp_path):
    asked = RunConfig(clients=300, lr=0.1)
    assert left_to_rules(asked)[:3] == ["cohort", "batch_size", "rounds"]
    saved = {"config": resolve(asked).to_dict(), "by_rule": left_to_rules(asked)}
    (tmp_path / "config.json").write_text(json.dumps(saved))
    loaded = RunConfig.load(tmp_path / "config.json")
    assert resolve(loaded) == resolve(asked)
    assert resolve(replace(loaded, lr=0.2)).client_lr == 0.2


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"alpha": 0.1}, "alpha: .* partition is shards; allowed with partition dirichlet"),
        ({"classes_per_client": 3, "partition": "iid"}, "classes_per_client: .* partition is iid"),
        (
            {"momentum": 0.5, "optimizer": "adamw"},
            "momentum: .* optimizer is adamw; allowed with optimizer sgd or lars",
        ),
        ({"sampler": "by-images", "clients": 5, "cohort": 5}, "sampler: .* all clients train in each round"),
        ({"epochs": 3, "rounds": 7}, "epochs: .* rounds is 7; allowed with rounds left to its rule"),
        (
            {"align_momentum": True, "client_lr": 0.0},
            "align_momentum: .* clients do not learn; .* lr or client_lr above 0",
        ),
        ({"syncs_per_round": 2, "client_lr": 0.0}, "syncs_per_round: .* nothing else is averaged"),
        ({"client_lr_schedule": "step", "client_lr": 0.0}, "client_lr_schedule: .*"),
        ({"temperature": 0.2, "supervised": True}, "temperature: .* no key queue; allowed with objective moco"),
        ({"queue_length": 9, "method": "fl-byol"}, "queue_length: .* no key queue; allowed with objective moco"),
        ({"client_residual": False}, "client_residual: .* cut_layer is 1"),
        ({"client_residual": False, "cut_layer": 2, "arch": "vgg11"}, "client_residual: .* vgg11; .* mobilenetv2"),
        ({"measure_divergence": True, "lr": 0.0}, "measure_divergence: .* clients do not learn"),
        ({"lr": 0.1, "method": "fl-moco", "client_lr": 0.2}, "lr: .* client_lr 0.2; allowed with client_lr left to"),
        ({"ressfl_target_ssim": 0.5}, "ressfl_target_ssim: .* ressfl_lambda is 0; allowed with ressfl_lambda above 0"),
        ({"init_server": True}, "init_server: .* no init_client"),
        ({"probe_epochs": 3}, "probe_epochs: .* no probe .* linear_probe or semi_supervised"),
        ({"stream": "always", "dataset": "x.npz"}, "stream: .* x.npz, which is read whole"),
        ({"average_replicas": True}, "average_replicas: .* there is one server; allowed with server_replicas above 1"),
        *(
            ({field: default}, f"{field}: has no effect where ")  # also with the value that it has by default
            for field, default in {
                "alpha": 0.5,
                "init_server": False,
                "probe_epochs": 100,
                "ssim_borders": "zeros",
            }.items()
        ),
    ],
)
def test_what_has_no_effect_is_refused(values, words):
    with pytest.raises(ValueError, match=words):
        RunConfig(**values).check_effect(values)
    RunConfig(**values).check_effect({"partition": 0, "rounds": 0})
    RunConfig(alpha=0.1, partition="dirichlet", epochs=3).check_effect(["alpha", "epochs"])
    RunConfig(method="fl-byol", head="large-mlp", client_lr=0.0).check_effect(["syncs_per_round"])
    RunConfig(sampler="availability", clients=5, cohort=5).check_effect(["sampler"])
    RunConfig(server_replicas=2, average_replicas=True, client_lr=0.0).check_effect(["syncs_per_round"])
    RunConfig(method="fl-moco", loss_threshold=0.0).check_effect(["loss_threshold"])  # 0 is the only value allowed


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"warmup_rounds": 4, "rounds": 3}, "warmup_rounds: 4 is more than the rounds; allowed: 0 to 3"),
        ({"defence": "clip+int8+clip"}, r"defence: clip\+int8\+clip has one of them twice, .*; allowed: each once"),
        *(
            ({"objective": objective, "batch_size": 1} | where, f"batch_size: 1 is too few images for .* {objective}, ")
            for objective in ("simclr", "barlow-twins")
            for where in ({"method": "federated"}, {"clients": 1, "cohort": 1})
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(values, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        RunConfig(**values)


def test_what_rules_make_impossible_is_refused():
    with pytest.raises(ValueError, match=r"^warmup_rounds: 9 is more than the rounds; allowed: 0 to 8$"):
        with_rules(RunConfig(clients=1, epochs=8, warmup_rounds=9))
    with pytest.raises(ValueError, match=r"^batch_size: 1 is too few images for objective simclr, .*: 2 or more$"):
        with_rules(RunConfig(method="federated", objective="simclr"), images_per_client=1)
    RunConfig(warmup_rounds=3, rounds=3)
    RunConfig(objective="simclr", batch_size=1, clients=2, cohort=2)
    with_rules(RunConfig(method="federated", objective="simclr", batch_size=1, aux_dataset="cifar100"))
    RunConfig(method="federated", objective="simsiam", batch_size=1)  # it compares an image with itself alone


def test_round_trip_through_json_types():
    config = resolve(RunConfig(clients=7, lr=1, client_lr=0.5))
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
    for word in (
        *PRESETS,
        "resnet18",
        "--arch.pool mean",
        "shapes",
        "cifar100",
        "stl10",
        "73,257 + 26,032 images",
        "hf:NAME",
    ):
        assert word in output
    headings = [line for line in output.splitlines() if not line.startswith(" ")]
    assert len(set(headings)) == len(headings)
    are_names = [line.startswith(" ") for line in output.splitlines()]
    assert all(heading or after for heading, after in zip(are_names, [*are_names[1:], False], strict=True))
    assert "callbacks" not in output  # without a plugin there are none


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


def test_every_number_has_limits():
    numbers = {spec.name for spec in fields(RunConfig) if spec.type.split(" |")[0] in ("int", "float")}
    limited = {spec.name for spec in fields(RunConfig) if spec.metadata["within"]}
    assert numbers - limited == {"cut_layer"}  # whose limit depends on the architecture
    assert limited < numbers
    assert {"clients", "temperature", "ressfl_target_ssim", "knn_bank"} < numbers
