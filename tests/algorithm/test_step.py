"""The batched program computes what the plain loop computes: the project's first promise.

Each test trains one `Setting` with several engines (`train`), which start from the same weights and get the same draws,
in float64. It compares everything that they have learnt and reported with what the loop has.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from simsfl import RunConfig
from simsfl.aggregations import Aggregation
from simsfl.aggregations.around import Aligned
from simsfl.algorithm import reference, step
from simsfl.algorithm.aggregation import average_, receive_
from simsfl.algorithm.batch import Batch, Hyperparameters
from simsfl.algorithm.gathering import gather_, scatter_
from simsfl.algorithm.wire import Wire
from simsfl.config.catalogue import Targets
from simsfl.config.notation import Bottleneck
from simsfl.data import Images, views
from simsfl.kernels import accelerated
from simsfl.models import Style, split_model
from simsfl.objectives.moco import MoCo
from simsfl.objectives.supervised import Supervised
from simsfl.optimisers import SGD
from simsfl.setup import assembly
from simsfl.setup.outline import Outline
from simsfl.system.randomness import Purpose, numpy_generator, torch_generator

CLIENTS, BATCH, ROUNDS, STEPS = 6, 2, 2, 3
IMAGES, CLASSES, KEY_DIM, QUEUE_LENGTH = 40, 12, 12, 54
SEED, DTYPE = 3, torch.float64

ENGINES = {
    "fused": (step, "grouped"),
    "fused-unfold": (step, "unfold"),
    "vmap": (step, None),
    "loop": (reference, None),
}
"""Module whose `train_step` each engine calls, and a version of the operators, so that none is measured."""


@dataclass(frozen=True)
class Setting:
    """What is trained, whichever engine trains it."""

    cohort: int
    """Number of clients, out of `CLIENTS`, that take part in each round."""
    cut_layer: int
    """Number of layers on the client."""
    shared_queue: bool
    """Whether all clients share one key queue, instead of having one each."""
    align_momentum: bool
    """Whether momentum encoders are averaged, too."""
    symmetric: bool = True
    """Whether the loss has both directions."""
    head: str = "mlp"
    """Projection head."""
    recipe: str = "v2"
    """Recipe that views are drawn by."""
    arch: str = "resnet8"
    """Architecture of the network."""
    width: int = 8
    """Channels of its first convolution."""
    image_size: int = 8
    """Height and width of the images in pixels."""
    supervised: bool = False
    """Whether labels are learnt, instead of contrasting views."""
    style: Style | None = None
    """Normalisation of the convolutions; None for the usual one."""
    bottleneck: Bottleneck | None = None
    """Layers added at the cut."""
    client_residual: bool = True
    """Whether the client's residual blocks have shortcuts."""


VARIANTS = {
    "v2": {"symmetric": True, "head": "mlp", "recipe": "v2"},
    "v1": {"symmetric": False, "head": "linear", "recipe": "v1"},
    "v2-asymmetric": {"symmetric": False, "head": "mlp", "recipe": "v2"},
    "large-v2": {"symmetric": True, "head": "large-mlp", "recipe": "v2"},
    "batch-norm": {"style": Style("batch", standardise=False)},
    "supervised": {"supervised": True, "head": "linear"},
    "bottleneck": {"bottleneck": Bottleneck.parse("K5C3S2"), "client_residual": False},
}
"""Fields of a `Setting` that differ from what is usual."""
ARCHITECTURES = {
    "resnet18": {"arch": "resnet18"},
    "vgg": {"arch": "vgg11", "image_size": 32, "head": "linear"},
    "mobilenet": {"arch": "mobilenetv2", "image_size": 16},
    "resnet50": {"arch": "resnet50", "image_size": 16, "width": 4},
}
"""Fields of a `Setting` for networks that are not a ResNet-8."""


def new_model(setting):
    """Return the network of a setting, cut in two, with its initial weights."""
    return split_model(
        setting.arch,
        width=setting.width,
        cut_layer=setting.cut_layer,
        image_size=setting.image_size,
        head=setting.head,
        key_dim=KEY_DIM,
        generator=torch_generator(SEED, Purpose.MODEL),
        style=setting.style,
        bottleneck=setting.bottleneck,
        client_residual=setting.client_residual,
    )


def initial_state(setting, model):
    """Return the state of a run of a setting before its first round."""
    config = RunConfig(
        clients=CLIENTS,
        cohort=setting.cohort,
        queue_length=QUEUE_LENGTH,
        key_dim=KEY_DIM,
        feature_sharing=setting.shared_queue,
        align_momentum=setting.align_momentum,
        device="cpu",
    )
    return assembly.state(Outline(config, groups=[], steps=0), model, DTYPE)


def hyperparameters(setting):
    """Return what stays the same from step to step; stacked engines run four clients together."""
    length = QUEUE_LENGTH if setting.shared_queue else QUEUE_LENGTH // CLIENTS
    return Hyperparameters(
        objective=Supervised() if setting.supervised else MoCo(0.1, length),
        targets=Targets.LABELS if setting.supervised else Targets.MOMENTUM,
        symmetric=setting.symmetric,
        tau=0.9,
        optimiser=SGD(0.9, 5e-4),
        precision=DTYPE,
        batches=(BATCH,) * setting.cohort,
        chunk=4,
    )


def draw_images(setting, rng):
    """Return random training images."""
    shape = (IMAGES, 3, setting.image_size, setting.image_size)
    pixels = torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8))
    return Images(pixels, mean=torch.full((3, 1, 1), 0.47), std=torch.full((3, 1, 1), 0.2))


def draw_batch(setting, images, rng, wire):
    """Return a random batch for a cohort; each client has a learning rate of its own."""
    per_image = (setting.cohort, BATCH)
    uniforms = rng.random((2, *per_image, views.UNIFORMS))
    return Batch(
        images,
        [images.pixels[torch.from_numpy(rng.integers(0, IMAGES, per_image))]],
        [views.Recipe(setting.recipe, setting.image_size).sample(uniforms)],
        server_lr=torch.tensor(0.06, dtype=DTYPE),
        client_lr=torch.linspace(0.02, 0.08, setting.cohort, dtype=DTYPE)[:, None],
        labels=[torch.from_numpy(rng.integers(0, CLASSES, per_image))] if setting.supervised else None,
        wire=wire,
    )


def train(setting, engine, wire=None):
    """Train two rounds of three steps, each with a cohort of its own and one averaging at its end.

    Returns:
        the tensors of the final state by name, and under "outcomes" what the steps reported: loss, accuracy, and the
        sums of the smashed data and of their gradients, ``[6, 4]``.
    """
    train_step, version = ENGINES[engine][0].train_step, ENGINES[engine][1]
    wire = wire or Wire()
    model, hyper = new_model(setting), hyperparameters(setting)
    state = initial_state(setting, model)
    aggregation = Aligned(Aggregation()) if setting.align_momentum else Aggregation()
    rng = numpy_generator(SEED, Purpose.SHAPES)
    images = draw_images(setting, rng)
    outcomes = []
    for _ in range(ROUNDS):
        cohort = torch.from_numpy(rng.choice(CLIENTS, setting.cohort, replace=False))
        gather_(state, cohort)
        receive_(model.client, state, cohort, aggregation)
        for _ in range(STEPS):
            batch = draw_batch(setting, images, rng, wire)
            with accelerated(version):
                outcome = train_step(model, state, batch, hyper)
            outcomes.append(torch.stack([outcome.loss, outcome.top1, outcome.smashed.sum(), outcome.gradient.sum()]))
        images_of = torch.full((setting.cohort,), IMAGES // CLIENTS)
        average_(state, aggregation, images_of, absent=wire.models_up())
        scatter_(state)
        receive_(model.client, state, cohort, aggregation)
    return {**state.tensors(), "outcomes": torch.stack(outcomes)}


def assert_equal_but_for_rounding(engine, found, expected, tolerance):
    """Raise an AssertionError, which names the engine and the tensor, where an engine's results are not the loop's."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        message = f"{engine}, {name}: {{}}".format
        torch.testing.assert_close(found[name], tensor, rtol=tolerance, atol=tolerance, msg=message)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("shared", [True, False], ids=["shared-queue", "own-queues"])
@pytest.mark.parametrize(
    ("cohort", "cut_layer"),
    [
        pytest.param(CLIENTS, 1, id="all-1"),
        pytest.param(3, 2, id="sampled-2"),
        *(pytest.param(*which, marks=pytest.mark.slow) for which in ((CLIENTS, 2), (CLIENTS, 4), (3, 1), (3, 4))),
    ],
)
def test_stacked_steps_equal_the_loop_in_float64(cohort, cut_layer, shared, variant):
    arch = "resnet8" if cut_layer < 4 else "resnet18"  # where its maps are not single pixels yet
    setting = Setting(cohort, cut_layer, shared, align_momentum=cut_layer == 2, arch=arch, **variant)
    loop = train(setting, "loop")
    for engine in ("vmap", "fused" if shared else "fused-unfold"):
        stacked = train(setting, engine)
        assert_equal_but_for_rounding(engine, stacked, loop, 1e-9)
        if shared:
            directions = 0 if setting.supervised else 2 if setting.symmetric else 1
            keys = ROUNDS * STEPS * cohort * BATCH * directions
            assert stacked["queues.pointer"].tolist() == [keys % QUEUE_LENGTH]


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_every_kind_of_network_equals_the_loop_in_float64(architecture):
    setting = Setting(cohort=3, cut_layer=2, shared_queue=True, align_momentum=False, **architecture)
    loop = train(setting, "loop")
    for engine in ("vmap", "fused"):
        assert_equal_but_for_rounding(engine, train(setting, engine), loop, 1e-8)


class UnreliableWire(Wire):
    """A wire for a cohort of four, on which smashed data are changed or get lost.

    What client 2 sends arrives halved. Of every three steps, client 0 is absent from one, and clients 1 and 3 are
    absent from another. Of clients that were absent from the latest step, models do not arrive either.
    """

    COHORT = 4
    ABSENT = (frozenset(), frozenset({0}), frozenset({1, 3}))

    def __init__(self):
        self.steps, self.gradients = 0, []

    @classmethod
    def absent(cls, step_number):
        """Return the positions of the clients that are absent from a step, counted from 1."""
        return cls.ABSENT[step_number % 3]

    def up(self, smashed_2Nchw):
        self.steps += 1
        changed = smashed_2Nchw.clone()
        changed.unflatten(0, (-1, self.COHORT * BATCH))[:, 2 * BATCH : 3 * BATCH] *= 0.5
        return changed, self.absent(self.steps)

    def down(self, gradient_Nchw):
        self.gradients.append(gradient_Nchw)
        return gradient_Nchw

    def models_up(self):
        return self.absent(self.steps)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("shared", [True, False], ids=["shared-queue", "own-queues"])
def test_what_does_not_arrive_is_learnt_without(shared, variant):
    cohort = UnreliableWire.COHORT
    setting = Setting(cohort, cut_layer=1, shared_queue=shared, align_momentum=True, **variant)
    wire = UnreliableWire()
    loop = train(setting, "loop", wire)
    for engine in ("vmap", "fused-unfold"):
        assert_equal_but_for_rounding(engine, train(setting, engine, UnreliableWire()), loop, 1e-9)
    for step_number, gradient in enumerate(wire.gradients, start=1):
        largest = gradient.unflatten(0, (cohort, BATCH)).flatten(1).abs().amax(dim=1)
        assert [client for client in range(cohort) if largest[client] == 0] == sorted(wire.absent(step_number))
