"""Attacks on clients that send everything or nothing of an image, and the program that attacks a run."""

import json
from base64 import b64decode, b64encode
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from simsfl import RunConfig, Simulation
from simsfl.attacks import attackers_rows, others, pixels, some, targets, with_published_contrast
from simsfl.attacks.reconstruction import attack
from simsfl.cli import export_checkpoint, run
from simsfl.cli.attack import program as attack_program
from simsfl.cli.report import program as report
from simsfl.cli.report.interactive import pictures_in
from simsfl.cli.report.runs import read_run
from simsfl.config.notation import Decoder
from simsfl.data import Arrays, make_dataset
from simsfl.data.partition import Partition
from simsfl.data.shapes import shapes
from simsfl.defences.noise import Gaussian
from simsfl.runs.records import AttackRecord, Scores, read, to_json
from tests.conftest import TINY, flags, generator


@pytest.fixture(scope="module")
def pictures():
    """Return a data set of 800 training and 100 test images of 16x16, drawn shapes."""
    arrays = shapes(0)
    small = {name: getattr(arrays, name)[:800] for name in ("train_x", "train_y")}
    held = {name: getattr(arrays, name)[:100] for name in ("test_x", "test_y")}
    return make_dataset("few", "made up", Arrays(**small, **held, classes=arrays.classes), image_size=16)


def parts(pictures):
    """Return the target images, and the attacker's own."""
    return some(pictures.train, torch.arange(64)), some(pictures.train, torch.arange(100, 800))


class Noise(nn.Module):
    """A client whose smashed data are noise, which depends on nothing but the number of images."""

    def forward(self, x):
        return torch.randn(len(x), 4, 8, 8, generator=generator(len(x)))


@pytest.mark.parametrize("text", [pytest.param("conv_normN0C32", marks=pytest.mark.slow), None])
def test_a_client_that_sends_the_image_is_seen_through(text, pictures):
    spec = text and Decoder.parse(text)
    result = attack(nn.Identity(), *parts(pictures), decoder=spec, seed=0, epochs=10)
    assert result.ssim > 0.95
    assert result.reconstructions.shape == (64, 3, 16, 16)
    if spec:
        assert result.training.held_out[-1] < result.training.held_out[0]


def test_of_a_client_that_sends_noise_nothing_is_learnt_but_the_mean_image(pictures):
    spec = Decoder.parse("conv_normN0C8")
    result = attack(Noise(), *parts(pictures), decoder=spec, seed=0, epochs=10)
    images = pictures.train.pixels[:64] / 255.0
    assert result.mse > 0.95 * (images - images.mean(dim=0)).square().mean()


@pytest.mark.parametrize("text", ["conv_normN0C8", None])
def test_the_attacker_sees_what_the_server_sees(text, pictures):
    """Noise that is far larger than what is sent hides everything, from a decoder as from descent."""
    spec = text and Decoder.parse(text)
    how = {"decoder": spec, "seed": 0, "epochs": 3}
    noise = Gaussian(deviation=100.0)
    seen, hidden = (
        attack(nn.Identity(), *parts(pictures), **how, protect=protect)
        for protect in (lambda smashed, draws: smashed, noise.protect)
    )
    images = pictures.train.pixels[:64] / 255.0
    blind = (images - images.mean(dim=0)).square().mean()
    assert seen.mse < 0.7 * blind
    assert hidden.mse > 0.95 * blind


def test_the_attackers_images_are_not_those_that_it_reconstructs(dataset):
    simulation = Simulation(RunConfig(**TINY), dataset)
    rows = targets(simulation.parts.partition, 3)
    assert rows.tolist() == [row for c in (3, 4, 5, 6) for row in simulation.parts.partition[c]]
    own = attackers_rows(80, 0.25, rows[:10], 0)
    assert len(own) == 20
    assert not set(own.tolist()) & set(rows[:10].tolist())


@pytest.mark.slow
def test_an_attack_on_a_run_and_its_report(npz, tmp_path, capsys):
    out = tmp_path / "run"
    settings = {**TINY, "rounds": 1, "eval_every": 0}
    assert run.main([*flags(dataset=npz, out=out, **settings), "--dashboard", "off"]) == 0
    argv = [str(out), "--attack-epochs", "2", "--attacker-data", "0.2", "--attack-seeds", "0,1", "--device", "cpu"]
    assert attack_program.main([*argv, "--decoder", "conv_normN0C4"]) == 0
    assert attack_program.main([str(out), "--attack", "descent", "--device", "cpu"]) == 0
    content = json.loads((out / "attacks" / "conv_normN0C4.json").read_text())
    assert content["seeds"] == [0, 1]
    assert content["ssim_borders"] == "zeros"
    for score in ("mse", "ssim", "ssim_mirrored", "psnr"):
        assert content[score]["mean"] == pytest.approx(np.mean(content["by_seed"][score]))
        assert content[score]["std"] == pytest.approx(np.std(content["by_seed"][score], ddof=1))
    for stem in ("conv_normN0C4", "conv_normN0C4-curves", "descent"):
        assert (out / "attacks" / f"{stem}.png").stat().st_size > 5000
    output = capsys.readouterr().out
    assert "SSIM (zeros, as published)" in output
    assert "SSIM (mirrored)" in output
    # 80 images among 8 clients: half of all images are those of four
    assert "conv_normN0C4 against client 0 and the next 3, 40 images" in " ".join(output.split())
    assert content["target_clients"] == 4
    assert report.main([str(out)]) == 0
    page = (out / "report.md").read_text()
    assert "Privacy against accuracy" in page
    assert "SSIM (zeros, as published) of conv_normN0C4" in page
    assert "attacks/conv_normN0C4.png" in page
    assert (out / "figures" / "privacy.png").exists()
    html = (out / "report.html").read_text()
    for stem in ("conv_normN0C4", "descent"):
        sheet = b64encode((out / "attacks" / f"{stem}.png").read_bytes()).decode()
        assert f'<img src="data:image/png;base64,{sheet}" alt="Reconstructions by {stem} of run"' in html
        assert (f"Reconstructions by {stem} of run", b64decode(sheet)) in pictures_in(read_run(out, "run"), 1)


WHOM = [
    ((200, 5), 0, "client 0"),
    ((3, 3, 3), 1, "client 1 and the next one"),
    ((50, 90, 300, 30), 2, "client 2"),
    ((50, 90, 300, 30), 3, "client 3 and the next 2"),  # which are 0 and 1
]
"""Images that clients hold, the target client, and all clients whose images are reconstructed."""


@pytest.mark.parametrize(("sizes", "first", "whom"), WHOM)
def test_whom_an_attack_is_against(sizes, first, whom):
    partition = Partition.of(np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1]))
    rows = targets(partition, first)
    clients = attack_program._clients_of(partition, rows)
    scores = {score: Scores(0.5, None) for score in ("mse", "ssim", "psnr")}
    measured = {**scores, "by_seed": {}, "mean_image_mse": 0.0, "training": [], "target_clients": clients}
    table = attack_program._table("x", AttackRecord("x", 0.1, 1, first, len(rows), [0], 1, **measured))
    assert table.title == f"x against {whom}, {len(rows)} images"


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


WRONG = {
    "decoder": (
        ["--decoder", "foo"],
        "decoder: 'foo' is none; allowed: custom, or such as conv_normN4C64 or res_normN4C64 (N blocks, C channels); "
        "or --attack descent, which needs none",
    ),
    "an attack for a decoder": (
        ["--decoder", "descent"],
        "decoder: descent is an attack, which has no decoder; allowed: --attack descent",
    ),
    "network": (["--cut-layer", "2"], "cut_layer: has no effect with a run directory; allowed with --weights"),
    "out": (["--out", "x"], "out: has no effect with a run directory; allowed with --weights"),
    "option": (["--arch.pool", "class"], "arch.pool: has no effect with a run directory; allowed with --weights"),
    "both": (["--weights", "laptop-shapes"], "run: "),
    "targets": (["--target-images", "no.npz"], "target_images: no.npz cannot be read"),
    "two targets": (
        ["--target-images", "no.npz", "--target-client", "1"],
        "target_client: has no effect with --target-images; allowed: one of the two",
    ),
    "share": (["--attacker-data", "0"], "attacker_data: 0 is no share"),
    "seeds": (["--attack-seeds", "1;2"], "attack_seeds: '1;2'"),
    "client": (["--target-client", "8"], "target_client: 8 is no client; allowed: 0 to 7"),
    "descent": (
        ["--attack", "descent", "--attacker-data", "0.1"],
        "attacker_data: has no effect with attack descent; allowed with --attack decoder or --attack fsha",
    ),
    "rounds": (
        ["--attack-rounds", "3"],
        "attack_rounds: has no effect with attack decoder; allowed with --attack fsha",
    ),
    "attack": (["--attack", "descend"], "attack: 'descend'"),
    "data set": (["--attacker-dataset", "cifar11"], "attacker_dataset: 'cifar11'"),
    "epochs": (["--attack-epochs", "none"], "attack_epochs: 'none'"),
    "device": (["--device", "gpu"], "device: 'gpu'"),
}
"""Flags of the program that are refused, and how its error begins."""


@pytest.mark.parametrize(("argv", "message"), WRONG.values(), ids=WRONG)
def test_bad_input_of_attacks(argv, message, npz, tmp_path, capsys):
    out = tmp_path / "run"
    Simulation(RunConfig(**{**TINY, "dataset": str(npz)})).save(out)
    assert attack_program.main([str(out), *argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: " + message)
    assert error.count("\n") == 1
    assert not (out / "attacks").exists()


def test_the_attackers_images_may_be_of_another_data_set(npz, arrays, tmp_path, capsys):
    """The attacker then has images of that data set alone, and the run's own data set is refused."""
    other, out = tmp_path / "other set.npz", tmp_path / "run"
    larger = {name: getattr(arrays, name).repeat(2, axis=1).repeat(2, axis=2) for name in ("train_x", "test_x")}
    np.savez(other, **larger, train_y=arrays.train_y, test_y=arrays.test_y)
    Simulation(RunConfig(**{**TINY, "dataset": str(npz)})).save(out)
    argv = [str(out), "--decoder", "conv_normN0C4", "--attack-epochs", "1", "--attacker-data", "1", "--device", "cpu"]
    assert attack_program.main([*argv, "--attacker-dataset", str(other)]) == 0
    assert "conv_normN0C4-other-set against client 0" in " ".join(capsys.readouterr().out.split())
    content = json.loads((out / "attacks" / "conv_normN0C4-other-set.json").read_text())
    assert content["attacker_dataset"] == str(other)
    assert attack_program.main([*argv, "--attacker-dataset", str(npz)]) == 2
    assert "is the run's own; allowed: another, or without it" in capsys.readouterr().err


def test_a_run_is_hijacked_from_the_command_line(npz, tmp_path, capsys):
    out = tmp_path / "run"
    Simulation(RunConfig(**{**TINY, "dataset": str(npz)})).save(out)
    argv = [str(out), "--attack", "fsha", "--decoder", "conv_normN0C4", "--attacker-data", "0.2", "--device", "cpu"]
    assert attack_program.main([*argv, "--attack-rounds", "2"]) == 0
    content = json.loads((out / "attacks" / "fsha-conv_normN0C4.json").read_text())
    assert (content["attack"], content["rounds"], content["epochs"]) == ("fsha", 2, None)
    assert len(content["training"][0]["held_out"]) == 2
    assert content["training"][0]["held_out"][-1] == pytest.approx(content["mse"]["mean"])
    assert report.main([str(out)]) == 0
    assert "attacks/fsha-conv_normN0C4.png" in (out / "report.md").read_text()
    frozen = tmp_path / "frozen"
    Simulation(RunConfig(**{**TINY, "dataset": str(npz), "client_lr": 0.0})).save(frozen)
    assert attack_program.main([str(frozen), *argv[1:]]) == 2
    assert "its clients do not learn, so that no server can lead them" in capsys.readouterr().err


def test_federated_clients_send_nothing_to_attack(npz, tmp_path, capsys):
    out = tmp_path / "run"
    Simulation(RunConfig(**{**TINY, "dataset": str(npz), "method": "fl-moco"})).save(out)
    assert attack_program.main([str(out)]) == 2
    assert "clients of fl-moco send no smashed data" in capsys.readouterr().err


def test_a_result_of_an_earlier_version_is_of_mirrored_images(tmp_path):
    scores = {score: Scores(0.5, None) for score in ("mse", "ssim", "psnr")}
    record = AttackRecord("x", 0.1, 1, 0, 8, [0], 1, **scores, by_seed={}, mean_image_mse=0.0, training=[])
    later = ("ssim_borders", "ssim_mirrored", "published_contrast", "target_images", "weights", "network", "dataset")
    content = {name: value for name, value in to_json(record).items() if name not in (*later, "sha256")}
    (tmp_path / "x.json").write_text(json.dumps(content))
    assert read(tmp_path / "x.json", AttackRecord).similarities == {"mirror": Scores(0.5, None)}


def test_published_contrast_is_normalising_by_one_deviation_and_back_by_another(pictures):
    """The client gets what it got in the published evaluation, which shows images with less contrast."""
    cifar = replace(pictures.train, std=torch.tensor([0.2023, 0.1994, 0.2010]).view(3, 1, 1))
    lowered, rows = with_published_contrast(some(cifar, torch.arange(4))), torch.arange(4)
    theirs = replace(cifar, std=torch.tensor([0.2470, 0.2435, 0.2616]).view(3, 1, 1)).plain(rows)
    torch.testing.assert_close(lowered.plain(rows), theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pixels(lowered), cifar.restore(theirs), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def weights(npz, tmp_path_factory):
    """Return a directory with a run, and in `exported` a file of its weights and the client's in the published layout.

    The file `mine.npz` has five images, each of which the data set has as well.
    """
    out = tmp_path_factory.mktemp("weights")
    Simulation(RunConfig(**{**TINY, "dataset": str(npz), "cut_layer": 2, "bottleneck": "C4S2"})).save(out / "run")
    assert export_checkpoint.main([str(out / "run"), "--out", str(out / "exported")]) == 0
    with np.load(npz) as arrays:
        np.savez(out / "mine.npz", images=arrays["train_x"][:5])
    return out


NETWORK = ["--arch", "resnet8", "--width", "4", "--cut-layer", "2", "--bottleneck", "C4S2"]
"""Flags of the network of `weights`, which a published file does not say."""
SHORT = ["--decoder", "conv_normN0C4", "--attack-epochs", "1", "--attacker-data", "0.5", "--device", "cpu"]
"""Flags of an attack that takes less than a second."""


def test_weights_are_attacked_without_a_run(weights, npz, tmp_path, monkeypatch, capsys):
    """Whatever they come from, the attack is the same: on test images, or on others, such as those of a file."""
    monkeypatch.setattr(attack_program, "_SHOWN", 1)  # as most of the time is that of drawing
    found = []
    sources = {"run": [], "exported/weights.safetensors": ["--bottleneck", "C4S2"], "exported/client.tar": NETWORK}
    for number, (source, network) in enumerate(sources.items()):
        out = tmp_path / str(number)
        argv = ["--weights", str(weights / source), "--dataset", str(npz), "--out", str(out), *network, *SHORT]
        assert attack_program.main(argv) == 0
        record = read(out / "conv_normN0C4.json", AttackRecord)
        found.append(record.by_seed)
        assert (record.weights, record.dataset, record.targets) == (str(weights / source), str(npz), 30)
        assert record.network | {"arch": "resnet8", "width": 4, "cut_layer": 2, "image_size": 8} == record.network
        assert (out / "conv_normN0C4.png").exists()
    assert found[0] == found[1] == found[2]
    output = capsys.readouterr().out
    files = ", ".join(str(tmp_path / "0" / f"conv_normN0C4{end}") for end in (".json", ".png", "-curves.png"))
    assert f"wrote {files}" in " ".join(output.split())
    assert output.startswith(f"reconstructing 30 images of {weights / 'run'} by conv_normN0C4, 1 seed\n")
    assert "client, 30 test images of tiny" in " ".join(output.split())
    argv += ["--target-images", str(weights / "mine.npz"), "--published-contrast"]
    assert attack_program.main(argv) == 0
    assert "client, 5 images of mine.npz" in " ".join(capsys.readouterr().out.split())
    lowered = read(out / "conv_normN0C4-on-mine-published-contrast.json", AttackRecord)
    assert (lowered.targets, lowered.published_contrast) == (5, True)
    argv = [str(weights / "run"), "--target-images", str(weights / "mine.npz"), *SHORT]
    assert attack_program.main(argv) == 0
    assert "against 5 images of mine.npz" in " ".join(capsys.readouterr().out.split())
    plain = read(weights / "run" / "attacks" / "conv_normN0C4-on-mine.json", AttackRecord)
    assert 0.6 < lowered.mean_image_mse / plain.mean_image_mse < 0.7


def test_the_attacker_has_none_of_the_images_of_a_file(dataset):
    own = others(some(dataset.train, torch.arange(10)), some(dataset.train, torch.tensor([3, 50, 7])))
    kept = torch.tensor([0, 1, 2, 4, 5, 6, 8, 9])
    assert torch.equal(own.pixels, dataset.train.pixels[kept])


UNFIT = {
    "neither": ([], "run: is missing; allowed: the directory of a run, or --weights"),
    "no such": (["--weights", "laptop-shape"], "weights: 'laptop-shape' is not known (did you mean laptop-shapes?)"),
    "fsha": (
        ["--weights", "x", "--attack", "fsha"],
        "attack: fsha trains the clients of a run, and --weights has none",
    ),
    "client": (
        ["--weights", "x", "--target-client", "1"],
        "target_client: has no effect with --weights; allowed with a",
    ),
    "other network": (
        ["--weights", "laptop-shapes", "--cut-layer", "2"],
        "cut_layer: 2 is not what the network of laptop-shapes has, 1; allowed: without it",
    ),
    "published network": (["--weights", "exported/client.tar", *NETWORK[:-2]], "exported/client.tar: tensor "),
    "server": (["--weights", "exported/server.tar", *NETWORK], "exported/server.tar: tensor "),
    "no images": (["--weights", "laptop-shapes", "--target-images", "text.npz"], "target_images: text.npz is no"),
    "labels": (
        ["--weights", "laptop-shapes", "--target-images", "labels.npz"],
        "target_images: labels.npz: y has dtype",
    ),
    "one image": (
        ["--weights", "laptop-shapes", "--target-images", "one.npz"],
        "target_images: one.npz: images has shape (32, 32, 3), which is one image; it must be (n, height, width, 3)",
    ),
}
"""Flags of the program with weights, and how its error begins."""


@pytest.mark.parametrize(("argv", "message"), UNFIT.values(), ids=UNFIT)
def test_bad_input_of_attacks_on_weights(argv, message, weights, npz, monkeypatch, capsys):
    monkeypatch.chdir(weights)
    (weights / "text.npz").write_text("text")
    np.savez(weights / "labels.npz", y=np.arange(3))
    np.savez(weights / "one.npz", images=np.zeros((32, 32, 3), np.uint8))
    assert attack_program.main([*argv, "--dataset", str(npz), "--out", "new"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: " + message)
    assert error.count("\n") == 1
    assert "a server of" not in error  # which is not what is attacked
    assert not (weights / "new").exists()
