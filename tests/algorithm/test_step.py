"""The batched program computes what the plain loop computes: the project's first promise."""

import numpy as np
import pytest
import torch

from simsfl.algorithm import reference, step
from simsfl.algorithm.aggregation import average_, receive_
from simsfl.algorithm.state import gather_, scatter_
from simsfl.algorithm.wire import Wire
from simsfl.config.notation import Bottleneck
from simsfl.data import Images, views
from simsfl.kernels import accelerated
from simsfl.models import Style, split_model
from simsfl.system.randomness import Purpose, numpy_generator, torch_generator
from tests.states import new_state

CLIENTS, BATCH, STEPS, SIZE = 6, 2, 5, 8

SETTINGS = {
    "v2": {"symmetric": True, "head": "mlp", "recipe": "v2"},
    "v1": {"symmetric": False, "head": "linear", "recipe": "v1"},
    "v2-asymmetric": {"symmetric": False, "head": "mlp", "recipe": "v2"},
    "large-v2": {"symmetric": True, "head": "large-mlp", "recipe": "v2"},
    "batch-norm": {"style": Style("batch", standardise=False)},
    "supervised": {"labels": True, "head": "linear"},
    "bottleneck": {"bottleneck": Bottleneck.parse("K5C3S2"), "client_residual": False},
}


ENGINES = {
    "fused": (step, "grouped"),
    "fused-unfold": (step, "unfold"),
    "vmap": (step, None),
    "loop": (reference, None),
}
"""Steps, and versions of the operators: all engines, with nothing left to measuring."""


def train(
    engine,
    *,
    cohort,
    cut_layer,
    shared,
    align,
    symmetric=True,
    head="mlp",
    recipe="v2",
    arch="resnet18",
    width=8,
    size=SIZE,
    labels=False,
    wire=None,
    **options,
):
    """Five steps and a sync, then a round of a second cohort; everything that came of it."""
    seed, dtype = 3, torch.float64
    model = split_model(
        arch,
        width=width,
        cut_layer=cut_layer,
        image_size=size,
        head=head,
        key_dim=12,
        generator=torch_generator(seed, Purpose.MODEL),
        **options,
    )
    state = new_state(
        model,
        clients=CLIENTS,
        cohort=cohort,
        queue_length=54,
        key_dim=12,
        feature_sharing=shared,
        align_momentum=align,
        generator=torch_generator(seed, Purpose.QUEUE),
    )
    rng = numpy_generator(seed, Purpose.SHAPES)
    pixels = torch.from_numpy(rng.integers(0, 256, (40, 3, size, size), dtype=np.uint8))
    images = Images(pixels, mean=torch.full((3, 1, 1), 0.47), std=torch.full((3, 1, 1), 0.2))
    hyper = step.Hyperparameters(
        temperature=0.1,
        symmetric=symmetric,
        tau=0.9,
        momentum=0.9,
        weight_decay=5e-4,
        precision=dtype,
        batches=(BATCH,) * cohort,
        chunk=4,
    )
    wire = wire or Wire()
    module, version = ENGINES[engine]
    losses = []
    for _ in range(2):
        ids = torch.from_numpy(rng.choice(CLIENTS, cohort, replace=False))
        gather_(state, ids)
        receive_(model.client, state, ids, 0.0)
        for _ in range(STEPS):
            uniforms = rng.random((2, cohort, BATCH, views.UNIFORMS))
            batch = step.Batch(
                images,
                [pixels[torch.from_numpy(rng.integers(0, 40, (cohort, BATCH)))]],
                [views.sample(uniforms, recipe, size)],
                server_lr=torch.tensor(0.06, dtype=dtype),
                client_lr=torch.linspace(0.02, 0.08, cohort, dtype=dtype)[:, None],
                labels=[torch.from_numpy(rng.integers(0, 12, (cohort, BATCH)))] if labels else None,
                wire=wire,
            )
            with accelerated(version):
                outcome = module.train_step(model, state, batch, hyper)
            losses.append(torch.stack([outcome.loss, outcome.top1, outcome.smashed.sum(), outcome.gradient.sum()]))
        average_(state, align_momentum=align, absent=wire.models_up())
        scatter_(state)
        receive_(model.client, state, ids, 0.0)
    return {**state.tensors(), "losses": torch.stack(losses)}


class Shaky(Wire):
    """Client 2 sends other than was computed here, and of client 0, or of 1 and 3, nothing arrives."""

    def __init__(self):
        self.steps, self.gradients = 0, []

    def up(self, smashed_2Nchw):
        self.steps += 1
        self._absent = [frozenset(), frozenset({0}), frozenset({1, 3})][self.steps % 3]
        other = smashed_2Nchw.clone()
        other.unflatten(0, (-1, 4 * BATCH))[:, 2 * BATCH : 3 * BATCH] *= 0.5
        return other, self._absent

    def down(self, gradient_Nchw):
        self.gradients.append(gradient_Nchw)
        return gradient_Nchw

    def models_up(self):
        return self._absent


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("shared", [True, False], ids=["shared-queue", "own-queues"])
def test_what_does_not_arrive_is_learnt_without(shared, settings):
    arguments = dict(cohort=4, cut_layer=1, shared=shared, align=True, **settings)
    wires = {engine: Shaky() for engine in ("loop", "vmap", "fused-unfold")}
    loop, *others = (train(engine, wire=wire, **arguments) for engine, wire in wires.items())
    for stacked in others:
        for name, expected in loop.items():
            torch.testing.assert_close(stacked[name], expected, rtol=1e-9, atol=1e-9, msg=f"{name}: {{}}".format)
    for step_index, gradient in enumerate(wires["loop"].gradients, start=1):
        own = gradient.unflatten(0, (4, BATCH)).flatten(1).abs().amax(dim=1)
        absent = [frozenset(), frozenset({0}), frozenset({1, 3})][step_index % 3]
        assert [client for client in range(4) if own[client] == 0] == sorted(absent)


ARCHITECTURES = {
    "vgg": {"arch": "vgg11", "size": 32, "head": "linear"},
    "mobilenet": {"arch": "mobilenetv2", "size": 16},
    "resnet50": {"arch": "resnet50", "size": 16, "width": 4},
}


@pytest.mark.parametrize("settings", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_every_kind_of_network_equals_the_loop_in_float64(settings):
    arguments = dict(cohort=3, cut_layer=2, shared=True, align=False, **settings)
    loop = train("loop", **arguments)
    for engine in ("vmap", "fused"):
        stacked = train(engine, **arguments)
        for name, expected in loop.items():
            message = f"{engine}, {name}: {{}}".format
            torch.testing.assert_close(stacked[name], expected, rtol=1e-8, atol=1e-8, msg=message)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("shared", [True, False], ids=["shared-queue", "own-queues"])
@pytest.mark.parametrize("cut_layer", [1, 2, 4])
@pytest.mark.parametrize("cohort", [CLIENTS, 3], ids=["all", "sampled"])
def test_stacked_steps_equal_the_loop_in_float64(cohort, cut_layer, shared, settings):
    arguments = dict(cohort=cohort, cut_layer=cut_layer, shared=shared, align=cut_layer == 2, **settings)
    loop = train("loop", **arguments)
    for engine in ("vmap", "fused" if shared else "fused-unfold"):
        stacked = train(engine, **arguments)
        assert stacked.keys() == loop.keys()
        for name, expected in loop.items():
            message = f"{engine}, {name}: {{}}".format
            torch.testing.assert_close(stacked[name], expected, rtol=1e-9, atol=1e-9, msg=message)
        if shared:
            directions = 0 if "labels" in settings else 2 if settings.get("symmetric", True) else 1
            keys = STEPS * 2 * cohort * BATCH * directions
            assert stacked["queues.pointer"].tolist() == [keys % 54]
