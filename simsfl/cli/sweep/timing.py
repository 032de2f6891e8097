"""What the parts of a run cost, in seconds: a few steps of it are timed, which is its timing probe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

import torch

from simsfl import RunConfig, Simulation
from simsfl.algorithm.plan import steps_per_round
from simsfl.attacks.inversion import train_decoder
from simsfl.cli.sweep.cells import Attack
from simsfl.config.notation import Decoder
from simsfl.engine.precision import arithmetic
from simsfl.privacy.decoders import decoder
from simsfl.rounds.progress import NonFiniteLossError

_STEPS = 3
"""Steps timed in a timing probe, after one that warms up."""
_PROBE_STEP_SECONDS = 0.0005
"""Seconds assumed for a step of a linear probe."""
PROCESS = 4.0
"""Seconds from the start of a process until it begins to set up its run."""
MARGIN = 1.1
"""Factor on estimated times: a machine may be slower in a run than in its timing probe."""
_NO_MATTER = (
    *("preset", "seed", "clients", "partition", "classes_per_client", "alpha", "data_proportion"),
    *("rounds", "epochs", "local_epochs", "syncs_per_round", "checkpoint_every", "track"),
    *("lr", "client_lr", "lr_schedule", "client_lr_schedule", "warmup_rounds", "momentum", "weight_decay"),
    *("tau", "temperature", "crop_scale", "color_strength"),
    *("eval_every", "knn_bank", "knn_test", "knn_k", "knn_temperature"),
    *("linear_probe", "semi_supervised", "probe_epochs"),
)
"""Config fields that the time of a step, and that of encoding an image, hardly depend on."""


@dataclass(frozen=True)
class Cost:
    """Seconds that the parts of a run take, and how often each occurs."""

    start: float
    """Seconds to set the run up."""
    step: float
    """Seconds per training step."""
    image: float
    """Seconds to encode one image."""
    steps: int
    """Steps in a round."""
    steps_of_pass: int
    """Steps in a round of one pass over the data."""
    train: int
    """Number of training images."""
    images: int
    """Number of training and test images."""
    compared: int
    """Number of images that a kNN evaluation encodes."""
    attack: float = 0.0
    """Seconds per epoch of an attack; 0 where the run is not attacked."""

    def probe(self, config: RunConfig) -> float:
        """Return the estimated seconds of a linear probe."""
        return self.image * self.images + _PROBE_STEP_SECONDS * config.probe_epochs * self.train / 128

    def total(self, config: RunConfig, steps: int) -> float:
        """Return the estimated seconds of a run of `steps` steps with its evaluations, without an attack."""
        evaluations = 2 + (config.rounds // config.eval_every if config.eval_every else 0)
        seconds = PROCESS + self.start + steps * self.step + evaluations * self.image * self.compared
        return MARGIN * (seconds + (self.probe(config) if config.linear_probe else 0.0))


Known = dict[str, tuple[float, float]]
"""Seconds per step and per image, by the work that they are."""


def measured(config: RunConfig, known: Known, attack: Attack | None) -> tuple[RunConfig, Cost]:
    """Return a run's resolved config and its cost, found by a timing probe.

    Args:
        config: the config.
        known: what has been measured before; what is measured here is added, for runs of the same work.
        attack: the attack that will be made on the run, None for none.

    Raises:
        ValueError: the run is not possible.
    """
    begin = time.perf_counter()
    simulation = Simulation(config)
    simulation.pace.flush_seconds = 0.0
    start = time.perf_counter() - begin
    config = simulation.config
    fields = {name: value for name, value in config.to_dict().items() if name not in _NO_MATTER}
    work = str((fields, config.client_lr > 0, sum(group.images for group in simulation.parts.groups)))
    if work not in known:
        known[work] = _step_seconds(simulation), _image_seconds(simulation)
    pass_ = steps_per_round([len(source.indices) for source in simulation.parts.sources], simulation.parts.groups)
    data, evaluation = simulation.dataset, simulation.parts.evaluation
    images, compared = len(data.train_labels) + len(data.test), len(evaluation.bank) + len(evaluation.test)
    epoch = _attack_seconds(simulation, attack) if attack else 0.0
    return config, Cost(
        start, *known[work], simulation.parts.steps, pass_, len(data.train_labels), images, compared, epoch
    )


def _step_seconds(simulation: Simulation) -> float:
    """Return the seconds of the fastest of a few steps, without the first, which allocates memory and draws a round.

    Training may diverge meanwhile, which the run itself will tell.
    """

    def steps() -> Iterator[object]:
        while simulation.progress.round_index < simulation.config.rounds:
            yield from (record for record in simulation.round() if record.event == "step")

    times, begin = [], time.perf_counter()
    with suppress(NonFiniteLossError):
        for _ in islice(steps(), 1 + _STEPS):
            end = time.perf_counter()
            times.append(end - begin)
            begin = end
    return min(times[1:] or times or [time.perf_counter() - begin])


def _image_seconds(simulation: Simulation) -> float:
    """Return the seconds to encode one image for an evaluation."""
    images, encode = simulation.dataset.test, simulation.encoder()
    rows = torch.arange(min(200, len(images)))

    def features() -> torch.Tensor:
        with arithmetic(simulation.config.precision):
            return simulation.parts.evaluation.features(encode, images, rows).cpu()

    return min(_timed(features) for _ in range(_STEPS)) / len(rows)


def _timed(function: Callable[[], object]) -> float:
    """Call a function and return the seconds that it took."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def _attack_seconds(simulation: Simulation, attack: Attack) -> float:
    """Return the seconds per epoch of an attack."""
    size, shape = simulation.dataset.image_size, simulation.model.smashed_shape
    form, device = Decoder.parse(attack.decoder), simulation.parts.device
    network = decoder(form, shape, size, "batch", torch.Generator()).to(device)
    smashed, images = (torch.zeros(32, *s, device=device) for s in (shape, (3, size, size)))
    steps = attack.share * len(simulation.dataset.train_labels) / 32

    def step() -> float:
        return train_decoder(network, smashed, images, torch.Generator(), epochs=1).train[0]

    return steps * min(_timed(step) for _ in range(2))
