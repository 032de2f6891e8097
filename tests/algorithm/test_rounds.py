"""Whole runs against a simulator written anew: modules, optimisers and dictionaries, one client at a time.

`test_step.py` compares one step of two engines that share the rest. Here nothing of the library computes but the
models and the views: averaging, what each client keeps between its rounds, schedules and queues are written out.
"""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from simsfl import RunConfig, Simulation
from simsfl.algorithm import communication
from simsfl.algorithm.plan import Group, plan_round
from simsfl.system.randomness import Purpose, numpy_generator
from tests.conftest import TINY


class Oracle:
    """MocoSFL (Li et al., ICLR 2023) by the book, for the same draws as a simulation's."""

    def __init__(self, simulation):
        self.s, self.c = simulation, simulation.config
        client = simulation.model.client.module(simulation.model.client.initial.double())
        self.server = simulation.model.server.module(simulation.state.server.online.clone()).double()
        self.server_momentum = copy.deepcopy(self.server)
        self.optimizer = self.sgd(self.server)
        self.average = client
        everyone = range(self.c.clients)
        self.momentum = {i: copy.deepcopy(client) for i in everyone}
        self.velocity = dict.fromkeys(everyone)
        self.own_steps = dict.fromkeys(everyone, 0)
        self.queues = [list(rows) for rows in simulation.state.queues.keys.clone()]
        self.pointers = [0] * len(self.queues)
        self.losses, self.divergences = [], []
        self.own, self.scale = {}, {}
        self.state, self.before = "A", None
        self.up = self.down = 0  # numbers that went over the wire, in bytes

    def weights(self, statistics=False):
        """Bytes of a client model, or of its running statistics alone; 4 each."""
        own = self.average.buffers() if statistics else (*self.average.parameters(), *self.average.buffers())
        return 4 * sum(tensor.numel() for tensor in own)

    def sgd(self, module):
        return torch.optim.SGD(module.parameters(), lr=1.0, momentum=self.c.momentum, weight_decay=self.c.weight_decay)

    def rate(self, base, schedule, r, factor):
        if schedule == "cosine":
            return base * (1 + math.cos(math.pi * r / self.c.rounds)) / 2
        return base * factor ** ((r >= int(0.6 * self.c.rounds)) + (r >= int(0.8 * self.c.rounds)))

    def client_rate(self, i, r):
        if self.c.client_lr_schedule == "oscillating":
            return self.c.client_lr * (1 + math.cos(math.pi * self.own_steps[i] / self.c.rounds)) / 2
        return self.rate(self.c.client_lr, self.c.client_lr_schedule, r, 0.2)

    @torch.no_grad()
    def follow(self, average, online):
        for m, p in zip(average.parameters(), online.parameters(), strict=True):
            m.copy_(self.c.tau * m + (1 - self.c.tau) * p)

    def queue_of(self, i):
        return 0 if self.c.feature_sharing else i

    def round(self, r):
        first = len(self.losses)
        if self.state == "C":
            for step in numpy_generator(self.c.seed, Purpose.REPLAY, r).permutation(len(self.sent)):
                self.serve(r, self.cohort, self.sizes, *self.sent[step])
        else:
            self.train(r)
        loss = sum(self.losses[first:]) / (len(self.losses) - first)
        small = self.before is not None and max(self.before - loss, 0) < self.c.loss_threshold
        self.state = {"A": "B", "B": "C", "C": "C"}[self.state] if small else "A"
        self.before = loss

    def train(self, r):
        c, s = self.c, self.s
        plan = s.parts.plan(r)
        self.cohort = cohort = plan.cohort.tolist()
        self.sent = []
        online = {i: copy.deepcopy(self.own.get(i, self.average)) for i in cohort}
        copies = 2 if c.align_momentum else 1
        changed = len(cohort) < c.clients or self.state == "A"  # the average since they saw it, as far as they know
        if c.client_lr > 0 and changed:
            self.down += len(cohort) * copies * self.weights()
        for i in cohort:
            self.receive(i, online[i])
        optimizers = {i: self.sgd(online[i]) for i in cohort}
        for i in cohort:
            for p, v in zip(online[i].parameters(), self.velocity[i] or [], strict=self.velocity[i] is not None):
                optimizers[i].state[p]["momentum_buffer"] = v
        steps = len(plan.groups[0].indices)
        owned = [(group, position) for group in plan.groups for position in range(group.indices.shape[1])]
        self.sizes = {i: group.indices.shape[2] for i, (group, _) in zip(cohort, owned, strict=True)}
        syncs = min(c.syncs_per_round, steps)
        sync_after = {math.ceil(k * steps / syncs) for k in range(1, syncs + 1)}
        for step in range(steps):
            views = {}
            for i, (group, position) in zip(cohort, owned, strict=True):
                parameters = group.views.map(lambda t, p=position, n=step: t[n][:, p : p + 1])
                pixels = s.dataset.train.pixels[group.indices[step][position : position + 1]]
                views[i] = s.dataset.train.augmented(pixels, parameters, torch.float64)[:, 0]
            self.step(r, cohort, online, optimizers, views)
            if step + 1 in sync_after and self.state == "A" and c.client_lr > 0:
                self.synchronise(cohort, online, last=step + 1 == steps)
            elif step + 1 in sync_after:
                self.average_statistics(list(online.values()))
        for i in cohort:
            state = optimizers[i].state
            self.velocity[i] = [state[p]["momentum_buffer"] for p in online[i].parameters()] if state else None
        if c.align_momentum:
            mean = self.mean([self.momentum[i] for i in cohort])
            self.momentum = {i: copy.deepcopy(mean) for i in self.momentum}
            if self.state == "B":
                self.up += len(cohort) * self.weights()
                self.down += 0 if changed else len(cohort) * self.weights()

    def synchronise(self, cohort, online, last):
        sent = len(cohort) * (2 if self.c.align_momentum else 1) * self.weights()
        self.up += sent
        self.down += 0 if last else sent  # the last is fetched when a client next takes part
        self.average = self.mean(list(online.values()))
        own = dict(self.average.named_parameters())
        self.divergences.append(
            {i: sum((p - own[n]).norm().item() for n, p in online[i].named_parameters()) for i in cohort}
        )
        if self.c.align_momentum:
            mean = self.mean([self.momentum[i] for i in cohort])
            for i in cohort:
                self.momentum[i] = copy.deepcopy(mean)
        if last and self.c.divergence_tau:
            self.own.update({i: copy.deepcopy(online[i]) for i in cohort})
        for i in cohort:
            self.receive(i, online[i])

    @torch.no_grad()
    def average_statistics(self, modules):
        """Even where nothing is learnt."""
        self.up += len(modules) * self.weights(statistics=True)
        self.down += len(modules) * self.weights(statistics=True)
        mean = self.mean(modules)
        for module in (self.average, *modules):
            for b, own in zip(module.buffers(), mean.buffers(), strict=True):
                b.copy_(own)

    @torch.no_grad()
    def mean(self, modules):
        result = copy.deepcopy(modules[0])
        for mean, *tensors in zip(*(m.state_dict().values() for m in (result, *modules)), strict=True):
            mean.copy_(sum(tensors) / len(tensors))
        return result

    @torch.no_grad()
    def receive(self, i, module):
        average = dict(self.average.named_parameters())
        apart = sum((p - average[name]).norm().item() for name, p in module.named_parameters())
        if self.c.divergence_tau and apart > 0:
            self.scale.setdefault(i, self.c.divergence_tau / apart)
        share = min(self.scale.get(i, 0.0) * apart, 1.0)
        for name, p in module.named_parameters():
            p.copy_(share * p + (1 - share) * average[name])
        for b, mean in zip(module.buffers(), self.average.buffers(), strict=True):
            b.copy_(mean)

    def step(self, r, cohort, online, optimizers, views):
        c = self.c
        activations = {i: online[i](views[i][0]) for i in cohort}
        for i in cohort:
            self.follow(self.momentum[i], online[i])
        query = torch.cat([activations[i].detach() for i in cohort]).requires_grad_()
        with torch.no_grad():
            key = torch.cat([self.momentum[i](views[i][1]) for i in cohort])
        self.sent.append((query.detach(), key))
        gradient = self.serve(r, cohort, self.sizes, query, key)
        self.up += 8 * (query.numel() + key.numel())
        if self.state == "B" or c.client_lr == 0:
            return
        self.down += 8 * gradient.numel()
        for i, own in zip(cohort, gradient.split([self.sizes[i] for i in cohort]), strict=True):
            optimizers[i].zero_grad()
            activations[i].backward(own)
            optimizers[i].param_groups[0]["lr"] = self.client_rate(i, r)
            optimizers[i].step()
            self.own_steps[i] += 1

    def serve(self, r, cohort, sizes, query, key):
        c = self.c
        query = query.detach().requires_grad_()
        self.follow(self.server_momentum, self.server)
        pairs = [(query, key), (key, query.detach())] if c.symmetric else [(query, key)]
        q = [F.normalize(self.server(a), dim=1) for a, _ in pairs]
        with torch.no_grad():
            k = [F.normalize(self.server_momentum(b), dim=1) for _, b in pairs]
        rows = [self.queue_of(i) for i in cohort for _ in range(sizes[i])]
        loss = 0.0
        for a, b in zip(q, k, strict=True):
            for n, row in enumerate(rows):
                positive = torch.exp(a[n] @ b[n] / c.temperature)
                negative = sum(torch.exp(a[n] @ old / c.temperature) for old in self.queues[row])
                loss = loss - torch.log(positive / (positive + negative)) / len(rows)
        self.losses.append(loss.item())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.param_groups[0]["lr"] = self.rate(c.lr, c.lr_schedule, r, 0.1)
        self.optimizer.step()
        for keys in reversed(k):
            for row, one in zip(rows, keys, strict=True):
                self.queues[row][self.pointers[row]] = one
                self.pointers[row] = (self.pointers[row] + 1) % len(self.queues[row])
        return query.grad


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


SETTINGS = {
    "default": {},
    "v1": {
        "symmetric": False,
        "views": "v1",
        "head": "linear",
        "lr_schedule": "step",
        "client_lr_schedule": "step",
        "rounds": 5,
    },
    "own-queues": {"feature_sharing": False, "client_lr": 0.02, "eval_features": "projector"},
    "large-head": {"head": "large-mlp", "client_lr_schedule": "oscillating", "eval_features": "projector"},
    "aligned": {"align_momentum": True, "syncs_per_round": 3, "tau": 0.9, "weight_decay": 0.01, "temperature": 0.2},
    "loop": {"engine": "loop", "feature_sharing": False, "cohort": 2, "momentum": 0.5},
    "batch-norm": {"norm": "batch", "align_momentum": True},
    "unequal": {"unequal": "0.4_0.6|3|0.5_0.5", "cohort": 4, "partition": "shards", "classes_per_client": 1},
    "unequal-loop": {"unequal": "0.4_0.6|3|0.5_0.5", "cohort": 5, "engine": "loop"},
    "unequal-own-queues": {"unequal": "0.4_0.6|3|0.5_0.5", "cohort": 4, "feature_sharing": False},
    "unequal-own-loop": {"unequal": "0.4_0.6|2|0.5_0.5", "cohort": 5, "feature_sharing": False, "engine": "loop"},
    "unequal-own-batch-norm": {
        "unequal": "0.4_0.6|2|0.5_0.5",
        "cohort": 5,
        "feature_sharing": False,
        "norm": "batch",
        "symmetric": False,
    },
    "mixing": {"divergence_tau": 0.7, "rounds": 5, "norm": "batch", "measure_divergence": True},
    "saving": {"loss_threshold": 0.5, "rounds": 5, "feature_sharing": False, "bottleneck": "C4S2"},
    "saving-aligned": {"loss_threshold": 50.0, "rounds": 5, "align_momentum": True, "norm": "batch"},
    "saving-everyone": {"loss_threshold": 50.0, "rounds": 5, "cohort": 8, "align_momentum": True, "batch_size": 1},
    "saving-unequal": {"loss_threshold": 50.0, "rounds": 5, "unequal": "0.4_0.6|3|0.5_0.5", "cohort": 4},
    "frozen": {"client_lr": 0.0, "cohort": 8},
    "frozen-batch-norm": {"client_lr": 0.0, "norm": "batch", "syncs_per_round": 2},
}


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_a_whole_run_with_evaluations_equals_the_oracles(setting, dataset, monkeypatch):
    monkeypatch.setattr(communication, "WARM_UP", 0)
    config = RunConfig(**{**TINY, "queue_length": 42, **setting})
    simulation = Simulation(config, dataset, dtype=torch.float64)
    oracle = Oracle(simulation)
    records = list(simulation.train())
    losses = [record.loss for record in records if record.event == "step"]
    states = ""
    for r in range(config.rounds):
        states += oracle.state
        oracle.round(r)
    assert states == "".join(record.communication for record in records if record.event == "round")
    assert ("ABCC" in states) == (config.loss_threshold > 0)
    last = [record for record in records if record.event == "round"][-1]
    assert [last.bytes_up_per_client, last.bytes_down_per_client] == [
        round(total / config.clients) for total in (oracle.up, oracle.down)
    ]
    syncs = [record for record in records if record.event == "sync"]
    assert len(syncs) == config.measure_divergence * len(oracle.divergences)
    for record, expected in zip(syncs, oracle.divergences, strict=False):
        assert dict(zip(record.clients, record.divergence, strict=True)) == pytest.approx(expected, rel=1e-9)
        assert record.divergence_mean == pytest.approx(sum(expected.values()) / len(expected), rel=1e-9)
    near = {"rtol": 0, "atol": 1e-9}
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(oracle.losses), **near)
    clients, server, queues = simulation.state.clients, simulation.state.server, simulation.state.queues
    torch.testing.assert_close(clients.online, flat(oracle.average.parameters()), **near)
    for i in range(config.clients):
        momentum = clients.momentum[0 if config.align_momentum else i]
        if clients.participation[i] == 0 and not config.align_momentum:
            momentum = clients.initial
        torch.testing.assert_close(momentum, flat(oracle.momentum[i].parameters()), **near)
        if oracle.velocity[i] is None:
            assert (clients.velocity[i] == 0).all()
        else:
            torch.testing.assert_close(clients.velocity[i], flat(oracle.velocity[i]), **near)
    torch.testing.assert_close(server.online, flat(oracle.server.parameters()), **near)
    torch.testing.assert_close(server.momentum, flat(oracle.server_momentum.parameters()), **near)
    for ours, theirs in (
        (clients.online_statistics, oracle.average),
        (server.online_statistics, oracle.server),
        (server.momentum_statistics, oracle.server_momentum),
    ):
        torch.testing.assert_close(ours, flat([ours[:0], *theirs.buffers()]), **near)
    torch.testing.assert_close(queues.keys, torch.stack([torch.stack(rows) for rows in oracle.queues]), **near)
    assert queues.pointer.tolist() == oracle.pointers
    if config.loss_threshold == 0 and simulation.config.client_lr > 0:
        assert (clients.participation * simulation.parts.steps).tolist() == list(oracle.own_steps.values())


def test_no_two_draws_are_the_same(config, dataset):
    """Rounds differ in cohort, order and views; steps and the two views of an image in their parameters."""
    s = Simulation(config, dataset)

    def draw(r):
        return plan_round(
            s.parts.sources,
            r,
            groups=[Group(range(8), 8, 2)],
            steps=s.parts.steps,
            recipe="v2",
            image_size=8,
            crop_scale=0.08,
            seed=0,
            device=s.parts.device,
        )

    first, second = draw(0), draw(1)
    one, two = first.groups[0], second.groups[0]
    assert first.cohort.tolist() != second.cohort.tolist()
    assert sorted(first.cohort.tolist()) == sorted(second.cohort.tolist())
    back = first.cohort.argsort(), second.cohort.argsort()
    assert not torch.equal(one.indices[:, back[0]], two.indices[:, back[1]])
    everything = torch.cat([plan.views.jitter[..., 0].flatten() for plan in (one, two)])
    drawn = everything[everything != 1]
    assert len(drawn.unique()) == len(drawn)
