"""Model inversion and what resists it: scores, decoders, attacks on clients of known worth, weights handed around."""

import json
import pickle
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn
from torchmetrics.functional.image import structural_similarity_index_measure

from simsfl import RunConfig, Simulation
from simsfl.cli import attack as attack_program
from simsfl.cli import export_checkpoint, import_checkpoint, presets, run
from simsfl.cli.report import program as report
from simsfl.config.notation import Decoder
from simsfl.data import Arrays, make_dataset, with_auxiliary
from simsfl.data.shapes import shapes
from simsfl.defences import taressfl
from simsfl.models import FlatModule
from simsfl.privacy import inversion, similarity
from simsfl.privacy.attack import attack, attackers_rows, targets
from simsfl.privacy.decoders import decoder
from simsfl.setup.weights import EXPERTS, experts, load_weights, published_names, to_published
from tests.conftest import TINY, flags


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_scores_are_scikit_images():
    """SSIM where its window is inside the image: at the borders the two continue the image differently."""
    images = torch.rand(4, 3, 24, 24, generator=generator(), dtype=torch.float64)
    made = (images + 0.1 * torch.randn(4, 3, 24, 24, generator=generator(1), dtype=torch.float64)).clamp(0, 1)
    _, ours = structural_similarity_index_measure(
        made, images, gaussian_kernel=True, sigma=1.5, data_range=1.0, reduction="none", return_full_image=True
    )
    torch.testing.assert_close(similarity.ssim(made, images), ours.mean(dim=(1, 2, 3)))
    for n in range(4):
        one, other = made[n].numpy(), images[n].numpy()
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
        _, theirs = structural_similarity(one, other, channel_axis=0, full=True, **options)
        np.testing.assert_allclose(ours[n, :, 5:-5, 5:-5], theirs[:, 5:-5, 5:-5], rtol=1e-9)
        assert similarity.psnr(made, images)[n] == pytest.approx(peak_signal_noise_ratio(other, one, data_range=1.0))
        assert similarity.mse(made, images)[n] == pytest.approx(((one - other) ** 2).mean())


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("text", ["custom", "conv_normN0C8", "conv_normN2C12", "res_normN1C8", "res_normN4C64"])
@pytest.mark.parametrize(("side", "size"), [(32, 32), (16, 32), (8, 32), (4, 64), (7, 28), (5, 32), (14, 24)])
def test_decoders_make_images(text, side, size, norm):
    network = decoder(Decoder.parse(text), (6, side, side), size, norm, generator())
    made = network(torch.randn(2, 6, side, side, generator=generator()))
    assert made.shape == (2, 3, size, size)
    assert 0 <= made.min() <= made.max() <= 1
    kinds = [module for module in network.modules() if isinstance(module, nn.ConvTranspose2d)]
    assert len(kinds) == int(np.log2(size // side))


def test_a_residual_decoder_by_hand():
    """Of 16 maps of 16x16: one block in, four behind it, one doubling, one more block, one out."""
    network = decoder(Decoder.parse("res_normN4C64"), (16, 16, 16), 32, "batch", generator())

    def block(i, o):
        shortcut = 0 if i == o else i * o + 2 * o
        return 2 * i + (9 * i + 1) * o + 2 * o + (9 * o + 1) * o + shortcut

    expected = block(16, 64) + 5 * block(64, 64) + (9 * 64 * 64 + 64) + 2 * 64 + block(64, 3)
    assert sum(p.numel() for p in network.parameters()) == expected


@pytest.mark.parametrize("text", ["custom2", "res_normN4", "res_normN4C0", "conv_normC64", "RES_normN4C64", ""])
def test_what_is_no_decoder(text):
    with pytest.raises(ValueError, match=r"decoder: .*; allowed: custom, or such as"):
        Decoder.parse(text)


@pytest.fixture(scope="module")
def pictures():
    """800 shapes of 16x16."""
    arrays = shapes(0)
    small = {name: getattr(arrays, name)[:800] for name in ("train_x", "train_y")}
    held = {name: getattr(arrays, name)[:100] for name in ("test_x", "test_y")}
    return make_dataset("few", "made up", Arrays(**small, **held, classes=arrays.classes), image_size=16)


class Noise(nn.Module):
    """Sends nothing of the image."""

    def forward(self, x):
        return torch.randn(len(x), 4, 8, 8, generator=generator(len(x)))


@pytest.mark.parametrize("text", ["conv_normN0C32", None])
def test_a_client_that_sends_the_image_is_seen_through(text, pictures):
    targets_, own = torch.arange(64), torch.arange(100, 800)
    spec = text and Decoder.parse(text)
    result = attack(nn.Identity(), pictures.train, targets_, own, decoder=spec, seed=0, epochs=60)
    assert result.ssim > 0.95
    assert result.reconstructions.shape == (64, 3, 16, 16)
    if spec:
        assert result.training.held_out[-1] < result.training.held_out[0]


def test_of_a_client_that_sends_noise_nothing_is_learnt_but_the_mean_image(pictures):
    targets_, own = torch.arange(64), torch.arange(100, 800)
    spec = Decoder.parse("conv_normN0C8")
    result = attack(Noise(), pictures.train, targets_, own, decoder=spec, seed=0, epochs=10)
    images = pictures.train.pixels[:64] / 255.0
    assert result.mse > 0.95 * (images - images.mean(dim=0)).square().mean()


def test_the_best_epoch_is_kept():
    """By what is held out: the same decoder, trained to where its error was least."""
    smashed = torch.randn(40, 4, 8, 8, generator=generator())
    images = torch.rand(40, 3, 8, 8, generator=generator(1))

    def train(epochs):
        network = decoder(Decoder.parse("conv_normN0C8"), (4, 8, 8), 8, "batch", generator(2))
        return network, inversion.train_decoder(network, smashed, images, generator(3), epochs=epochs, lr=0.03)

    network, curves = train(30)
    best = int(np.argmin(curves.held_out))
    assert best < 29  # noise is learnt by heart
    other, _ = train(best + 1)
    for one, two in zip(network.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(one, two)


def test_who_knows_what(dataset):
    simulation = Simulation(RunConfig(**TINY), dataset)
    rows = targets(simulation.parts.partition, 3)
    assert rows.tolist() == [row for c in (3, 4, 5, 6) for row in simulation.parts.partition[c]]
    own = attackers_rows(80, 0.25, rows[:10], 0)
    assert len(own) == 20
    assert not set(own.tolist()) & set(rows[:10].tolist())


def test_attackers_learn_as_adam_teaches():
    parameters = torch.randn(3, 5, generator=generator(), dtype=torch.float64)
    modules = [nn.Parameter(row.clone()) for row in parameters]
    optimizers = [torch.optim.Adam([module], lr=0.01) for module in modules]
    first, second, steps = torch.zeros(3, 5).double(), torch.zeros(3, 5).double(), torch.zeros(3, 1).double()
    for n in range(4):
        gradient = torch.randn(3, 5, generator=generator(n), dtype=torch.float64)
        taressfl.adam_(parameters, gradient, first, second, steps, torch.tensor(0.01, dtype=torch.float64))
        for module, optimizer, row in zip(modules, optimizers, gradient, strict=True):
            module.grad = row.clone()
            optimizer.step()
    torch.testing.assert_close(parameters, torch.stack([m.detach() for m in modules]))


RESISTING = {
    "one": {"clients": 1, "cohort": 1, "batch_size": 4, "bottleneck": "C4S2"},
    "many": {"ressfl_decoder": "conv_normN1C8"},
    "own-queues": {"feature_sharing": False, "ressfl_decoder": "custom", "cut_layer": 2},
    "unequal": {"unequal": "0.4_0.6|3|0.5_0.5", "cohort": 4, "ressfl_decoder": "conv_normN0C4"},
    "batch-norm": {"norm": "batch", "client_lr": 0.01, "ressfl_decoder": "conv_normN0C4"},
}


@pytest.mark.parametrize("setting", RESISTING.values(), ids=RESISTING)
def test_resisting_clients_are_the_loops(setting, dataset):
    """Stacked attackers and clients against torch.optim.Adam and ordinary modules, in float64."""
    base = {**TINY, "rounds": 2, "ressfl_lambda": 2.0, "ressfl_target_ssim": 0.001, "engine": "vmap"}
    config = RunConfig(**{**base, "ressfl_decoder": "res_normN0C8", **setting})
    results = []
    for engine in ("vmap", "loop"):
        simulation = Simulation(replace(config, engine=engine), dataset, dtype=torch.float64)
        results.append((list(simulation.rounds()), simulation.state.tensors()))
    (stacked, one), (loop, two) = results
    for ours, theirs in zip(stacked, loop, strict=True):
        assert ours.attackers_ssim == pytest.approx(theirs.attackers_ssim, rel=1e-6)
        assert ours.attackers_ssim_before == pytest.approx(theirs.attackers_ssim_before, rel=1e-6)
    assert any(record.attackers_ssim > 0.001 for record in stacked)  # something was resisted
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=1e-5, atol=1e-6, msg=f"{name}: {{}}".format)


def test_resistance_is_the_gradient_of_the_excess(dataset):
    """Against finite differences of lambda (SSIM - target), at a decoder that has just learnt."""
    network = decoder(Decoder.parse("conv_normN0C4"), (2, 4, 4), 8, "group", generator()).double()
    flat = FlatModule(network)
    images = [torch.rand(2, 3, 3, 8, 8, generator=generator(1), dtype=torch.float64)]
    smashed = torch.randn(6, 2, 4, 4, generator=generator(2), dtype=torch.float64)
    row = torch.cat([flat.initial.double(), torch.zeros(2 * flat.size + 1, dtype=torch.float64)]).repeat(2, 1)
    lr = torch.tensor(0.02, dtype=torch.float64)
    for _ in range(40):  # learnt by heart
        taressfl.resist_(flat, row, images, smashed, lr, 2.0, 0.01)
    result = taressfl.resist_(flat, row, images, smashed, lr, 2.0, 0.01)
    direction = torch.randn(6, 2, 4, 4, generator=generator(3), dtype=torch.float64)

    def loss(sent):
        total = 0.0
        for c in range(2):
            decode = flat.module(row[c, : flat.size])
            own = similarity.ssim(decode(sent[3 * c : 3 * c + 3]), images[0][c]).mean()
            total += 2.0 * max(own.item() - 0.01, 0.0)
        return total

    assert loss(smashed) > 0
    change = (loss(smashed + 1e-6 * direction) - loss(smashed - 1e-6 * direction)) / 2e-6
    assert change == pytest.approx((result.gradient * direction).sum().item(), rel=1e-4)
    quiet = taressfl.resist_(flat, row.clone(), images, smashed, lr, 2.0, 0.99)
    assert not quiet.gradient.any()  # nobody sees enough


def test_a_resisting_run_resumes_and_clients_keep_their_attackers(dataset, tmp_path):
    config = RunConfig(**{**TINY, "ressfl_lambda": 1.0, "ressfl_decoder": "conv_normN0C4"})
    simulation = Simulation(config, dataset)
    steps = simulation.round()
    next(steps)
    simulation.save(tmp_path / "run")
    records = list(simulation.rounds())
    loaded = Simulation.load(tmp_path / "run", dataset)
    assert list(loaded.rounds()) == records
    counts = simulation.state.attackers.own[:, -1]
    assert counts.tolist() == (simulation.state.clients.participation * simulation.parts.steps).tolist()


def test_auxiliary_images_are_half_of_each_batch(dataset, arrays):
    both = with_auxiliary(dataset, make_dataset("other", "made up", arrays))
    config = RunConfig(**{**TINY, "clients": 2, "cohort": 2, "aux_dataset": "other", "data_proportion": 0.5})
    simulation = Simulation(config, both)
    assert simulation.parts.steps == 80 // 2 // 2  # a pass over the larger
    rows = simulation.parts.plan(0).groups[0].indices
    assert rows.shape == (20, 2, 4)
    own, other = rows[:, :, :2], rows[:, :, 2:]
    assert own.max() < 80 <= other.min()
    assert len(own.unique()) == 40
    assert len(other.unique()) == 80
    train, _ = simulation.parts.evaluation.all_features(simulation.encoder())
    assert len(simulation.parts.evaluation.bank) == len(train) == 80
    alone = Simulation(replace(config, data_proportion=0.0), both)
    assert alone.parts.plan(0).groups[0].indices.min() >= 80
    with pytest.raises(ValueError, match=r"aux_dataset: .* supervised"):
        replace(config, supervised=True)
    with pytest.raises(ValueError, match="data_proportion: 0 leaves"):
        RunConfig(data_proportion=0.0)


MODELS = {
    "resnet18": {"arch": "resnet18", "cut_layer": 3, "bottleneck": "C4S2"},
    "resnet50": {"arch": "resnet50", "cut_layer": 2},
    "batch-norm": {"arch": "resnet18", "norm": "batch", "head": "linear"},
    "vgg11": {"arch": "vgg11", "cut_layer": 2},
    "mobilenetv2": {"arch": "mobilenetv2", "cut_layer": 3, "bottleneck": "C8"},
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_weights_go_there_and_back(model, npz, tmp_path, capsys):
    """Out in the published layout, in again, and out again: the same bytes."""
    config = {**TINY, **model, "image_size": 32, "rounds": 1, "eval_every": 0, "knn_test": 1, "knn_bank": 1}
    trained = tmp_path / "run"
    assert run.main([*flags(dataset=npz, out=trained, **config), "--dashboard", "off"]) == 0
    assert export_checkpoint.main([str(trained), "--out", str(tmp_path / "a")]) == 0
    files = [str(tmp_path / "a" / f"{half}.tar") for half in ("client", "server")]
    architecture = {name: config[name] for name in (*model, "width", "key_dim", "image_size")}
    imported = tmp_path / "in.safetensors"
    argv = [*files[::-1], "--preset", "paper", *flags(**architecture), "--out", str(imported)]
    assert import_checkpoint.main(argv) == 0
    assert export_checkpoint.main([str(imported), "--out", str(tmp_path / "b")]) == 0
    alone = tmp_path / "server.safetensors"
    assert import_checkpoint.main([files[1], "--preset", "paper", *flags(**architecture), "--out", str(alone)]) == 0
    assert "a server alone" in capsys.readouterr().out
    assert load_weights(str(alone)).server.keys() == load_weights(str(imported)).server.keys()
    for half in ("client", "server"):
        one, two = (torch.load(tmp_path / where / f"{half}.tar", weights_only=True) for where in "ab")
        assert list(one) == list(two)
        for key in one:
            assert torch.equal(one[key], two[key]), key
    simulation = Simulation.load(trained)
    torch.testing.assert_close(
        torch.cat([load_weights(str(imported)).client[name].flatten() for name in simulation.model.client.shapes]),
        simulation.state.clients.online,
    )
    capsys.readouterr()


def test_published_names_are_those_of_its_modules():
    """As its ``conv3x3_gn``, ``BasicBlock_gn`` and bottleneck convolutions are named in `nn.Sequential`."""
    simulation_model = Simulation(
        RunConfig(**{**TINY, "arch": "resnet18", "cut_layer": 4, "bottleneck": "C4S2", "dataset": "shapes"})
    ).model
    client = list(published_names(simulation_model.client).values())
    assert client[:3] == ["0.conv1.weight", "0.bn1.weight", "0.bn1.bias"]
    assert client[-11:] == [
        *("3.conv1.weight", "3.bn1.weight", "3.bn1.bias", "3.conv2.weight", "3.bn2.weight", "3.bn2.bias"),
        *("3.shortcut.0.weight", "3.shortcut.1.weight", "3.shortcut.1.bias"),
        *("4.weight", "4.bias"),
    ]
    server = list(published_names(simulation_model.server).values())
    assert server[:2] == ["0.weight", "0.bias"]
    assert server[-4:] == ["8.0.weight", "8.0.bias", "8.2.weight", "8.2.bias"]  # behind five blocks and the pooling


def test_clients_start_from_an_expert_and_stay_as_they_are(npz, tmp_path, capsys):
    settings = {**TINY, "bottleneck": "C4S2", "rounds": 2}
    expert = tmp_path / "expert"
    assert run.main([*flags(dataset=npz, out=expert, **settings), "--dashboard", "off"]) == 0
    weights = load_weights(str(expert))
    frozen = {**settings, "init_client": expert, "client_lr": 0.0, "out": tmp_path / "frozen"}
    frozen.pop("syncs_per_round")
    assert run.main([*flags(dataset=npz, init_server=True, **frozen), "--dashboard", "off"]) == 0
    simulation = Simulation.load(tmp_path / "frozen")
    own = torch.cat([weights.client[name].flatten() for name in simulation.model.client.shapes])
    assert torch.equal(simulation.state.clients.online, own)
    assert torch.equal(simulation.state.clients.initial, own)
    summary = json.loads((tmp_path / "frozen" / "summary.json").read_text())
    assert summary["bytes_down_per_client"] == 0
    assert summary["knn_top1_untrained"] == json.loads((expert / "summary.json").read_text())["knn_top1"]
    learning = json.loads((expert / "summary.json").read_text())
    assert summary["client_flops_per_step"] < 0.8 * learning["client_flops_per_step"]  # no backward pass
    capsys.readouterr()
    for wrong, words in (
        ({"width": 8}, "init_client: .* client 0.conv.weight is 4x3x3x3 there, and 8x3x3x3 here"),
        ({"bottleneck": "C2S2"}, "init_client: .* 2x4x3x3 here"),
        ({"init_client": "nobody"}, "init_client: 'nobody' is not known"),
        ({"init_client": npz}, "init_client: .* is no file of weights"),
    ):
        argv = flags(dataset=npz, **{**frozen, "out": tmp_path / "wrong", **wrong})
        assert run.main([*argv, "--dashboard", "off"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert re.search(words, error), error


@pytest.mark.parametrize("name", ["laptop-cifar10", "laptop-shapes"])
def test_experts_that_come_with_simsfl(name, tmp_path):
    """They fit the network they are for, resist, and are small and documented."""
    assert name in experts()
    assert (EXPERTS / f"{name}.safetensors").stat().st_size < 1_000_000
    assert name in (EXPERTS / "README.md").read_text()
    options = {"dataset": "shapes", "bottleneck": "C4S2", "client_lr": 0.0, "init_client": name, "rounds": 1}
    config = replace(presets.laptop(), cohort=2, local_epochs=0.02, device="cpu", **options)
    simulation = Simulation(config)
    weights = load_weights(name)
    own = torch.cat([weights.client[key].flatten() for key in simulation.model.client.shapes])
    list(simulation.rounds())
    assert torch.equal(simulation.state.clients.online, own)


def test_a_run_needs_its_expert_only_to_begin(npz, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {**TINY, "rounds": 1}
    assert run.main([*flags(dataset=npz, out="expert", **settings), "--dashboard", "off"]) == 0
    argv = [*flags(dataset=npz, out="run", init_client="expert", **TINY), "--dashboard", "off"]
    assert run.main(argv) == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    shutil.rmtree("expert")
    manifest = tmp_path / "run" / "checkpoints" / "manifest.json"
    older = json.loads(manifest.read_text())["checkpoints"][1:]
    manifest.write_text(json.dumps({"checkpoints": older}))
    (tmp_path / "run" / "summary.json").unlink()
    assert run.main(["--resume", "run", "--dashboard", "off"]) == 0
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    capsys.readouterr()


def test_an_expert_without_images_of_the_target_is_attacked_on_others(npz, arrays, tmp_path, capsys):
    other = tmp_path / "other.npz"
    names = ("train_x", "train_y", "test_x", "test_y")
    np.savez(other, **{name: getattr(arrays, name)[::-1] for name in names})
    out = tmp_path / "run"
    settings = {**TINY, "clients": 1, "cohort": 1, "aux_dataset": other, "data_proportion": 0, "rounds": 1}
    assert run.main([*flags(dataset=npz, out=out, **settings), "--dashboard", "off"]) == 0
    assert "80 images of" in capsys.readouterr().out
    argv = [str(out), "--decoder", "conv_normN0C4", "--attack-epochs", "1", "--attacker-data", "0.2"]
    assert attack_program.main(argv) == 0
    assert json.loads((out / "attacks" / "conv_normN0C4.json").read_text())["targets"] == 40


def test_auxiliary_images_of_another_size(npz, arrays, tmp_path, capsys):
    other = tmp_path / "large.npz"
    large = {name: getattr(arrays, name).repeat(2, axis=1).repeat(2, axis=2) for name in ("train_x", "test_x")}
    np.savez(other, **large, train_y=arrays.train_y, test_y=arrays.test_y)
    argv = flags(dataset=npz, aux_dataset=other, out=tmp_path / "run", **TINY)
    assert run.main([*argv, "--dashboard", "off"]) == 2
    assert re.search(r"aux_dataset: .*16x16, .*8x8; allowed: one size, give --image-size", capsys.readouterr().err)
    assert run.main([*argv, "--dashboard", "off", "--image-size", "8", "--rounds", "1"]) == 0
    assert run.main([*flags(dataset=npz, aux_dataset="cifar11", out=tmp_path / "x", **TINY), "--dashboard", "off"]) == 2
    assert "aux_dataset: 'cifar11' is not known" in capsys.readouterr().err


def test_what_cannot_be_imported(tmp_path, capsys, npz):
    file = tmp_path / "x.tar"
    torch.save({"0.conv1.weight": torch.zeros(64, 3, 3, 3), "0.bn1.weight": torch.zeros(32)}, file)
    assert import_checkpoint.main([str(file), "--arch", "resnet18"]) == 2
    error = capsys.readouterr().err
    assert "tensor 2 is 0.bn1.weight (32,) in the file, and 0.norm.weight (64,) in the network" in error
    file.write_bytes(b"nothing")
    assert import_checkpoint.main([str(file)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    torch.save({"model": RunConfig()}, file)
    assert import_checkpoint.main([str(file)]) == 2
    assert "or holds more than tensors" in capsys.readouterr().err
    assert import_checkpoint.main([str(tmp_path / "none.tar")]) == 2
    assert "files: there is no file" in capsys.readouterr().err
    for content in (b"build", b"appends", pickle.dumps({"a": print}), pickle.dumps([1], protocol=2)):
        file.write_bytes(content)
        assert import_checkpoint.main([str(file)]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_an_attack_on_a_run_and_its_report(npz, tmp_path, capsys):
    out = tmp_path / "run"
    settings = {**TINY, "rounds": 1, "eval_every": 0}
    assert run.main([*flags(dataset=npz, out=out, **settings), "--dashboard", "off"]) == 0
    argv = [str(out), "--attack-epochs", "2", "--attacker-data", "0.2", "--attack-seeds", "0,1", "--device", "cpu"]
    assert attack_program.main([*argv, "--decoder", "conv_normN0C4"]) == 0
    assert attack_program.main([str(out), "--decoder", "descent", "--device", "cpu"]) == 0
    content = json.loads((out / "attacks" / "conv_normN0C4.json").read_text())
    assert content["seeds"] == [0, 1]
    for score in ("mse", "ssim", "psnr"):
        assert content[score]["mean"] == pytest.approx(np.mean(content["by_seed"][score]))
        assert content[score]["std"] == pytest.approx(np.std(content["by_seed"][score], ddof=1))
    for stem in ("conv_normN0C4", "conv_normN0C4-curves", "descent"):
        assert (out / "attacks" / f"{stem}.png").stat().st_size > 5000
    assert "SSIM" in capsys.readouterr().out
    assert report.main([str(out)]) == 0
    page = (out / "report.md").read_text()
    assert "Privacy against accuracy" in page
    assert "attacks/conv_normN0C4.png" in page
    assert (out / "figures" / "privacy.png").exists()


WRONG = {
    "decoder": (["--decoder", "res_norm"], "decoder: 'res_norm' is none"),
    "share": (["--attacker-data", "0"], "attacker_data: 0 is no share"),
    "seeds": (["--attack-seeds", "1;2"], "attack_seeds: '1;2'"),
    "client": (["--target-client", "8"], "target_client: 8 is no client; allowed: 0 to 7"),
    "descent": (["--decoder", "descent", "--attacker-data", "0.1"], "decoder: descent trains none"),
    "epochs": (["--attack-epochs", "none"], "attack_epochs: 'none'"),
    "device": (["--device", "gpu"], "device: 'gpu'"),
}


@pytest.mark.parametrize(("argv", "message"), WRONG.values(), ids=WRONG)
def test_bad_input_of_attacks(argv, message, npz, tmp_path, capsys):
    out = tmp_path / "run"
    Simulation(RunConfig(**{**TINY, "dataset": str(npz)})).save(out)
    assert attack_program.main([str(out), *argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: " + message)
    assert error.count("\n") == 1
    assert not (out / "attacks").exists()


def test_federated_clients_send_nothing_to_attack(npz, tmp_path, capsys):
    out = tmp_path / "run"
    Simulation(RunConfig(**{**TINY, "dataset": str(npz), "method": "fl-moco"})).save(out)
    assert attack_program.main([str(out)]) == 2
    assert "clients of fl-moco send no smashed data" in capsys.readouterr().err


def test_exported_layout_is_the_published_one_of_a_client():
    """Loaded strictly into modules written down here as the published program has them."""
    simulation = Simulation(RunConfig(**{**TINY, "arch": "resnet18", "cut_layer": 1, "dataset": "shapes"}))
    stem = nn.Module()
    stem.conv1, stem.bn1 = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.GroupNorm(1, 4)
    half = simulation.model.client
    tensors = half.named(half.initial)
    nn.Sequential(stem).load_state_dict(to_published(half, tensors), strict=True)
    assert torch.equal(stem.conv1.weight, tensors["0.conv.weight"])
