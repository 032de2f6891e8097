"""TAResSFL: the attackers that clients simulate, and the gradients by which clients resist them."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from simsfl import RunConfig, Simulation
from simsfl.config.notation import Decoder
from simsfl.defences import taressfl
from simsfl.defences.taressfl import TAResSFL
from simsfl.privacy import similarity
from simsfl.runs.records import lasting
from simsfl.system.files import checksum
from tests.conftest import TINY, generator


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
    "many": {"ressfl_decoder": "conv_normN1C8", "ssim_borders": "mirror"},
    "own-queues": {"feature_sharing": False, "ressfl_decoder": "custom", "cut_layer": 2},
    "unequal": {"unequal": "0.4_0.6|3|0.5_0.5", "cohort": 4, "ressfl_decoder": "conv_normN0C4"},
    "batch-norm": {"norm": "batch", "client_lr": 0.01, "ressfl_decoder": "conv_normN0C4"},
}
"""Config fields of runs with resisting clients."""


@pytest.mark.parametrize("setting", RESISTING.values(), ids=RESISTING)
def test_resisting_clients_are_the_loops(setting, dataset):
    """Stacked attackers and clients equal ordinary modules with torch.optim.Adam, in float64."""
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
    assert any(record.attackers_ssim > 0.001 for record in stacked)  # some attackers saw enough to be resisted
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=1e-5, atol=1e-6, msg=f"{name}: {{}}".format)


def test_resistance_is_the_gradient_of_the_excess(monkeypatch):
    """Compare the gradient with finite differences of lambda (SSIM - target), for a decoder that has just learnt."""
    monkeypatch.setattr(taressfl, "_RATE", 0.02)
    defence = TAResSFL(2.0, target=0.01, borders="mirror", decoder=Decoder.parse("conv_normN0C4"), rounds=1)
    flat = taressfl.attackers_network(defence.decoder, (2, 4, 4), 8)
    images = torch.rand(2, 3, 3, 8, 8, generator=generator(1), dtype=torch.float64)
    smashed = torch.randn(2, 3, 2, 4, 4, generator=generator(2), dtype=torch.float64)
    row = defence.initial((2, 4, 4), 8, generator()).double().repeat(2, 1)
    now = torch.tensor(0)
    for _ in range(40):  # until the decoder has memorised the images
        defence.add(images, smashed, row, now)
    added = defence.add(images, smashed, row, now)
    direction = torch.randn(2, 3, 2, 4, 4, generator=generator(3), dtype=torch.float64)

    def loss(sent):
        total = 0.0
        for c in range(2):
            own = similarity.ssim(flat.module(row[c, : flat.size])(sent[c]), images[c], "mirror").mean()
            total += 2.0 * max(own.item() - 0.01, 0.0)
        return total

    assert loss(smashed) > 0
    change = (loss(smashed + 1e-6 * direction) - loss(smashed - 1e-6 * direction)) / 2e-6
    assert change == pytest.approx((added.gradient * direction).sum().item(), rel=1e-4)
    quiet = replace(defence, target=0.99).add(images, smashed, row.clone(), now)
    assert not quiet.gradient.any()  # as no attacker reaches this target


def test_the_attackers_rate_falls_after_30_60_and_80_percent_of_the_rounds():
    rates = [taressfl.attackers_lr(torch.tensor(n), 10, torch.float64).item() for n in range(10)]
    assert rates == pytest.approx([1e-3] * 3 + [2e-4] * 3 + [4e-5] * 2 + [8e-6] * 2)


def test_it_is_the_last_defence_unless_it_is_named():
    weighed = {**TINY, "ressfl_lambda": 1.0}
    assert RunConfig(**weighed).defences == ["taressfl"]
    assert RunConfig(**weighed, defence="clip+int8").defences == ["clip", "int8", "taressfl"]
    assert RunConfig(**weighed, defence="taressfl+clip").defences == ["taressfl", "clip"]
    with pytest.raises(ValueError, match=r"^defence: taressfl has no weight .*; allowed: with ressfl_lambda above 0$"):
        RunConfig(**TINY, defence="taressfl")


def test_it_resists_beside_other_defences_and_in_both_views(dataset):
    """Chained behind clipping, and with an objective that learns from both views, it is still the loop's."""
    config = RunConfig(
        **{**TINY, "rounds": 1, "ressfl_lambda": 1.0, "ressfl_target_ssim": 0.001, "ressfl_decoder": "conv_normN0C4"},
        defence="clip",
        objective="simclr",
    )
    ends = []
    for engine in ("vmap", "loop"):
        simulation = Simulation(replace(config, engine=engine), dataset, dtype=torch.float64)
        ends.append((list(simulation.rounds())[-1].attackers_ssim, simulation.state.tensors()))
    assert ends[0][0] == pytest.approx(ends[1][0], rel=1e-6)
    for name, tensor in ends[0][1].items():
        torch.testing.assert_close(tensor, ends[1][1][name], rtol=1e-5, atol=1e-6, msg=f"{name}: {{}}".format)
    learnt = ends[0][1]["attackers.own"][:, -1]  # under this name in the checkpoints of all versions
    assert learnt.tolist() == (2 * simulation.parts.steps * simulation.state.clients.participation).tolist()


def test_a_resisting_run_resumes_and_clients_keep_their_attackers(dataset, tmp_path):
    config = RunConfig(**{**TINY, "ressfl_lambda": 1.0, "ressfl_decoder": "conv_normN0C4"})
    simulation = Simulation(config, dataset)
    steps = simulation.round()
    next(steps)
    simulation.save(tmp_path / "run")
    records = list(simulation.rounds())
    loaded = Simulation.load(tmp_path / "run", dataset)
    assert list(loaded.rounds()) == records
    counts = simulation.state.defence.own[:, -1]
    assert counts.tolist() == (simulation.state.clients.participation * simulation.parts.steps).tolist()


def test_a_run_of_a_version_that_only_mirrored_goes_on_mirrored(dataset, tmp_path):
    """Its ``config.json`` has no `ssim_borders`, and it is the run that it was, as far as its checkpoints know."""
    weighed = {"ressfl_lambda": 2.0, "ressfl_target_ssim": 0.001, "ressfl_decoder": "conv_normN0C4"}
    config, out = RunConfig(**TINY, **weighed, ssim_borders="mirror"), tmp_path / "run"
    simulation = Simulation(config, dataset)
    next(simulation.round())
    simulation.save(out)
    records = list(simulation.rounds())
    content = json.loads((out / "config.json").read_text())
    del content["config"]["ssim_borders"], content["sha256"]
    (out / "config.json").write_text(json.dumps(content | {"sha256": checksum(content)}))
    loaded = Simulation.load(out, dataset)
    assert loaded.config.ssim_borders == RunConfig.load(out / "config.json").ssim_borders == "mirror"
    assert list(loaded.rounds()) == records
    assert "ssim_borders" not in lasting(config) | lasting(RunConfig(**TINY))
    assert lasting(RunConfig(**TINY, **weighed))["ssim_borders"] == "zeros"
    fields = tmp_path / "fields.json"
    fields.write_text(json.dumps(weighed))
    assert RunConfig.load(fields).ssim_borders == "zeros"  # these are no run's
