"""A whole run of MocoSFL, written independently from the papers, one client at a time, in float64 on the CPU.

The oracle takes only three things from the library: the modules of the network with their initial weights, the initial
key queues, and what is drawn at random in a round with the views that follow from it. Everything else is written with
ordinary modules, optimisers and lists: the loss, the queues, momentum encoders, averaging, learning rates, what each
client keeps between its rounds, and what everybody sends.
"""

import copy
import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simsfl.algorithm.plan import GroupPlan
from simsfl.system.randomness import Purpose, numpy_generator

WEIGHT_BYTES, SMASHED_BYTES = 4, 8
"""Bytes of a number in a model, which counts as float32, and in smashed data, which are float64 here."""


def weights_bytes(module):
    """Return the size of a module's parameters and running statistics in bytes."""
    return WEIGHT_BYTES * sum(tensor.numel() for tensor in (*module.parameters(), *module.buffers()))


def statistics_bytes(module):
    """Return the size of a module's running statistics in bytes."""
    return WEIGHT_BYTES * sum(tensor.numel() for tensor in module.buffers())


@torch.no_grad()
def move_towards(momentum, online, tau):
    """Move the parameters of a momentum encoder towards those of the online model: tau is the share of its own."""
    for own, other in zip(momentum.parameters(), online.parameters(), strict=True):
        own.copy_(tau * own + (1 - tau) * other)


@torch.no_grad()
def mean_of(modules):
    """Return a module whose parameters and running statistics are the means of those of `modules`."""
    result = copy.deepcopy(modules[0])
    for mean, *tensors in zip(*(module.state_dict().values() for module in (result, *modules)), strict=True):
        mean.copy_(sum(tensors) / len(tensors))
    return result


@torch.no_grad()
def copy_statistics(module, source):
    """Replace the running statistics of `module` by those of `source`."""
    for own, other in zip(module.buffers(), source.buffers(), strict=True):
        own.copy_(other)


def distance(module, other):
    """Return how far two models are from each other: the sum over their parameters of the L2 norm of the difference."""
    theirs = dict(other.named_parameters())
    return sum((own - theirs[name]).norm().item() for name, own in module.named_parameters())


def sgd(config, module):
    """Return SGD for a module; the learning rate is set in each step."""
    return torch.optim.SGD(module.parameters(), lr=1.0, momentum=config.momentum, weight_decay=config.weight_decay)


def descend(optimizer, output, gradient, lr):
    """Take a step of SGD, given an output of the model and its gradient, which is None for a loss."""
    optimizer.zero_grad()
    output.backward(gradient)
    optimizer.param_groups[0]["lr"] = lr
    optimizer.step()


@dataclass
class Traffic:
    """Bytes that all clients together have exchanged with the server."""

    up: int = 0
    """Bytes sent to the server."""
    down: int = 0
    """Bytes received from the server."""


@dataclass
class Client:
    """What is kept of a client between the rounds in which it takes part."""

    momentum: nn.Module
    """Momentum encoder, up to the cut layer."""
    velocity: list[Tensor] | None = None
    """Velocity of each parameter in SGD; None until the client has learnt."""
    steps: int = 0
    """Steps of SGD that it has done."""
    own: nn.Module | None = None
    """Online model before the last averaging of its latest round; None where models are not mixed with the average."""
    scale: float | None = None
    """Factor from a distance to the share of its own model that it keeps; None until it first differs."""


@dataclass
class Participant:
    """A client of the cohort during a round."""

    id: int
    """Id of the client."""
    client: Client
    """What is kept of the client."""
    online: nn.Module
    """Online model, up to the cut layer."""
    optimizer: torch.optim.SGD
    """Optimiser of the online model."""
    plan: GroupPlan
    """What is drawn for the group of clients with its batch size."""
    position: int
    """Place of the client in that group."""
    activations: Tensor | None = None
    """Query activations of the current step, with their graph."""

    @property
    def batch_size(self):
        """Images per step."""
        return self.plan.indices.shape[2]

    def views(self, images, step):
        """Return both views of the images of a step, ``[2, B, 3, H, H]``."""
        this = slice(self.position, self.position + 1)
        parameters = self.plan.views.map(lambda tensor: tensor[step][:, this])
        return images.augmented(images.pixels[self.plan.indices[step][this]], parameters, torch.float64)[:, 0]


class KeyQueue:
    """A queue of keys of a fixed length; a new key takes the place of the oldest one."""

    def __init__(self, keys):
        self.keys, self.pointer = list(keys), 0

    def push(self, key):
        """Write a key over the oldest one."""
        self.keys[self.pointer] = key
        self.pointer = (self.pointer + 1) % len(self.keys)


class Server:
    """A server: the network behind the cut layer, its momentum encoder, and the key queues."""

    def __init__(self, config, online, queues):
        self.config, self.online, self.momentum = config, online, copy.deepcopy(online)
        self.optimizer = sgd(config, online)
        self.queues = queues

    def queue_of(self, client):
        """Return the queue that a client's queries are contrasted with, given the client's id."""
        return self.queues[0 if self.config.feature_sharing else client]

    def learn(self, query, key, owners, lr):
        """Take a step on the smashed data of its clients; return the gradient of the query activations, and the loss.

        Args:
            query: query activations ``[N, c, h, w]``.
            key: key activations ``[N, c, h, w]``.
            owners: id of the client whose image is in each row.
            lr: learning rate.
        """
        query = query.detach().requires_grad_()
        move_towards(self.momentum, self.online, self.config.tau)
        pairs = [(query, key), (key, query.detach())] if self.config.symmetric else [(query, key)]
        embedded = [self.embed(one, other) for one, other in pairs]
        loss = sum(self.contrast(queries, keys, owners) for queries, keys in embedded)
        descend(self.optimizer, loss, None, lr)
        for _, keys in reversed(embedded):
            for owner, own in zip(owners, keys, strict=True):
                self.queue_of(owner).push(own)
        return query.grad, loss.item()

    def embed(self, query, key):
        """Return the normalised queries of the online model, and the normalised keys of the momentum encoder."""
        queries = F.normalize(self.online(query), dim=1)
        with torch.no_grad():
            return queries, F.normalize(self.momentum(key), dim=1)

    def contrast(self, queries, keys, owners):
        """Return the InfoNCE loss (He et al., CVPR 2020, eq. 1), averaged over all rows."""
        temperature, loss = self.config.temperature, 0.0
        for query, key, owner in zip(queries, keys, owners, strict=True):
            positive = torch.exp(query @ key / temperature)
            negative = sum(torch.exp(query @ old / temperature) for old in self.queue_of(owner).keys)
            loss = loss - torch.log(positive / (positive + negative)) / len(owners)
        return loss


@dataclass
class Sent:
    """What the clients have sent in a round, which the server may learn from again."""

    owners: list[int]
    """Id of the client whose image is in each row of a step's smashed data."""
    steps: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Query and key activations of each step."""


class Oracle:
    """MocoSFL (Li et al., ICLR 2023, algorithm 1), for the draws of a simulation that has not begun.

    Optional parts are from other papers: averaging of momentum encoders (MonAcoSFL, Przewiezlikowski et al., ECML-PKDD
    2024), and mixing of the average with a client's own model (Zhuang et al., ICLR 2022).

    Attributes:
        average: the clients' online model, averaged.
        clients: what is kept of each client, by its id.
        servers: what each replica of the server learns; usually there is one.
        queues: key queues, one of each server or one of each client.
        losses: losses of all steps.
        traffic: bytes that were sent.
        divergences: how far each client of the cohort was from the average in each averaging, by its id.
        exchange: what clients and server exchange in the next round: "A", both ways; "B", no gradients; "C", nothing.
    """

    def __init__(self, simulation):
        self.config, self.images, self.plan = simulation.config, simulation.dataset.train, simulation.parts.plan
        client, server = simulation.model.client, simulation.model.server
        self.average = client.module(client.initial.double())
        self.clients = [Client(copy.deepcopy(self.average)) for _ in range(self.config.clients)]
        online = server.module(simulation.state.server.online.clone()).double()
        self.queues = [KeyQueue(keys) for keys in simulation.state.memories["keys"].clone()]
        self.servers = [
            Server(self.config, copy.deepcopy(online), [self.queues[i]] if self.config.feature_sharing else self.queues)
            for i in range(self.config.server_replicas)
        ]
        self.losses = []
        self.traffic = Traffic()
        self.divergences = []
        self.exchange, self.last_loss = "A", None
        self.sent = None

    def round(self, index):
        """Do a round, and decide what the next one exchanges."""
        losses_before = len(self.losses)
        if self.exchange == "C":
            self.replay(index)
        else:
            self.train(index)
        losses = self.losses[losses_before:]
        self.decide_exchange(sum(losses) / len(losses))

    def decide_exchange(self, loss):
        """Exchange less in the next round if the mean loss of this one has fallen by less than the threshold."""
        has_hardly_fallen = self.last_loss is not None and max(self.last_loss - loss, 0) < self.config.loss_threshold
        self.exchange = {"A": "B", "B": "C", "C": "C"}[self.exchange] if has_hardly_fallen else "A"
        self.last_loss = loss

    def replay(self, index):
        """Have the server learn from what was sent in the latest round that was not silent, in a new order."""
        order = numpy_generator(self.config.seed, Purpose.REPLAY, index).permutation(len(self.sent.steps))
        for number, step in enumerate(order):
            self.learn(*self.sent.steps[step], self.server_lr(index))
            if number + 1 in self.steps_before_a_sync(len(order)):
                self.average_servers()

    def learn(self, query, key, lr):
        """Have each server learn from its part of the cohort, in cohort order; return the gradient of all queries."""
        owners = self.sent.owners
        cohort = list(dict.fromkeys(owners))
        each = len(cohort) // len(self.servers)
        gradients, loss = [], 0.0
        for i, server in enumerate(self.servers):
            rows = [row for row, owner in enumerate(owners) if owner in cohort[i * each : (i + 1) * each]]
            gradient, own_loss = server.learn(query[rows], key[rows], [owners[row] for row in rows], lr)
            gradients.append(gradient)
            loss += own_loss * len(rows) / len(owners)
        self.losses.append(loss)
        return torch.cat(gradients)

    def steps_before_a_sync(self, steps):
        """Return after how many of a round's steps something is averaged."""
        syncs = min(self.config.syncs_per_round, steps)
        return {math.ceil(number * steps / syncs) for number in range(1, syncs + 1)}

    def average_servers(self):
        """Replace the models of all servers by their means, where they are averaged."""
        for half in ("online", "momentum") if self.config.average_replicas else ():
            own = [getattr(server, half) for server in self.servers]
            mean = mean_of(own).state_dict()
            for module in own:
                module.load_state_dict(mean)

    def train(self, index):
        """Do a round with clients: they receive the average, learn with the server, and are averaged now and then."""
        cohort = self.begin_round(index)
        steps = len(cohort[0].plan.indices)
        for step in range(steps):
            self.step(index, step, cohort)
            if step + 1 in self.steps_before_a_sync(steps):
                self.average_servers()
                self.synchronise(cohort, last=step + 1 == steps)
        self.end_round(cohort)

    def begin_round(self, index):
        """Return the round's cohort, whose clients have the average, or have mixed it with their own models."""
        plan = self.plan(index)
        places = [(group, position) for group in plan.groups for position in range(group.indices.shape[1])]
        cohort = []
        for client_id, (group, position) in zip(plan.cohort.tolist(), places, strict=True):
            client = self.clients[client_id]
            online = copy.deepcopy(self.average if client.own is None else client.own)
            self.receive_average(client, online)
            optimizer = sgd(self.config, online)
            if client.velocity is not None:
                for parameter, velocity in zip(online.parameters(), client.velocity, strict=True):
                    optimizer.state[parameter]["momentum_buffer"] = velocity
            cohort.append(Participant(client_id, client, online, optimizer, group, position))
        if self.config.client_lr > 0 and self.average_is_new(cohort):
            self.traffic.down += len(cohort) * self.models_bytes()
        self.sent = Sent([one.id for one in cohort for _ in range(one.batch_size)])
        return cohort

    def average_is_new(self, cohort):
        """Return whether the average may have changed since these clients saw it, as far as they know."""
        return len(cohort) < self.config.clients or self.exchange == "A"

    def models_bytes(self):
        """Return the size of the models that a client exchanges in an averaging."""
        return (2 if self.config.align_momentum else 1) * weights_bytes(self.average)

    @torch.no_grad()
    def receive_average(self, client, online):
        """Give a client the average, of which it takes less the further its own model is away (eq. 4 and 5)."""
        apart = distance(online, self.average)
        if client.scale is None and self.config.divergence_tau and apart > 0:
            client.scale = self.config.divergence_tau / apart
        share = min((client.scale or 0.0) * apart, 1.0)
        for own, average in zip(online.parameters(), self.average.parameters(), strict=True):
            own.copy_(share * own + (1 - share) * average)
        copy_statistics(online, self.average)

    def step(self, index, step, cohort):
        """Do a step of algorithm 1: forward passes, the server's part, and the clients' backward passes."""
        query, key = self.forward(step, cohort)
        self.sent.steps.append((query, key))
        self.traffic.up += SMASHED_BYTES * (query.numel() + key.numel())
        gradient = self.learn(query, key, self.server_lr(index))
        if self.clients_learn():
            self.traffic.down += SMASHED_BYTES * gradient.numel()
            self.backward(index, cohort, gradient)

    def forward(self, step, cohort):
        """Return what the cohort sends: query activations, then key activations, ``[N, c, h, w]`` each."""
        keys = []
        for one in cohort:
            query_view, key_view = one.views(self.images, step)
            one.activations = one.online(query_view)
            move_towards(one.client.momentum, one.online, self.config.tau)
            with torch.no_grad():
                keys.append(one.client.momentum(key_view))
        return torch.cat([one.activations.detach() for one in cohort]), torch.cat(keys)

    def backward(self, index, cohort, gradient):
        """Have each client learn from the gradient of its own query activations."""
        rows = gradient.split([one.batch_size for one in cohort])
        for one, own in zip(cohort, rows, strict=True):
            descend(one.optimizer, one.activations, own, self.client_lr(index, one.client))
            one.client.steps += 1

    def clients_learn(self):
        """Return whether clients receive gradients in this round."""
        return self.exchange == "A" and self.config.client_lr > 0

    def synchronise(self, cohort, last):
        """Average the cohort's models; where clients do not learn, only their running statistics.

        Args:
            cohort: the clients of this round.
            last: whether this is the end of the round.
        """
        if self.clients_learn():
            self.average_models(cohort, last)
        else:
            self.average_statistics(cohort)

    def average_models(self, cohort, last):
        """Average the cohort's models with equal weights, and give the average to each of its clients.

        What the last averaging of a round brings is fetched when a client next takes part.
        """
        sent = len(cohort) * self.models_bytes()
        self.traffic.up += sent
        self.traffic.down += 0 if last else sent
        self.average = mean_of([one.online for one in cohort])
        self.divergences.append({one.id: distance(one.online, self.average) for one in cohort})
        if self.config.align_momentum:
            self.align_momentum(cohort, [one.client for one in cohort])
        for one in cohort:
            if last and self.config.divergence_tau:
                one.client.own = copy.deepcopy(one.online)
            self.receive_average(one.client, one.online)

    @torch.no_grad()
    def average_statistics(self, cohort):
        """Average the running statistics of the cohort's online models."""
        modules = [one.online for one in cohort]
        mean = mean_of(modules)
        for module in (self.average, *modules):
            copy_statistics(module, mean)
        self.traffic.up += len(cohort) * statistics_bytes(mean)
        self.traffic.down += len(cohort) * statistics_bytes(mean)

    def align_momentum(self, cohort, receivers):
        """Replace the momentum encoders of `receivers` by the average of the cohort's."""
        mean = mean_of([one.client.momentum for one in cohort])
        for client in receivers:
            client.momentum = copy.deepcopy(mean)

    def end_round(self, cohort):
        """Keep what clients need when they next take part; where momentum encoders are aligned, all have the same."""
        for one in cohort:
            state = one.optimizer.state
            if state:
                one.client.velocity = [state[parameter]["momentum_buffer"] for parameter in one.online.parameters()]
        if self.config.align_momentum:
            self.align_momentum(cohort, self.clients)
            if self.exchange == "B":  # nothing was averaged on the way
                self.traffic.up += len(cohort) * weights_bytes(self.average)
                self.traffic.down += 0 if self.average_is_new(cohort) else len(cohort) * weights_bytes(self.average)

    def server_lr(self, index):
        """Return the server's learning rate in a round."""
        return self.scheduled(self.config.lr, self.config.lr_schedule, index, factor=0.1)

    def client_lr(self, index, client):
        """Return a client's learning rate in a round; it may depend on how many steps the client has done."""
        if self.config.client_lr_schedule == "oscillating":
            return self.config.client_lr * (1 + math.cos(math.pi * client.steps / self.config.rounds)) / 2
        return self.scheduled(self.config.client_lr, self.config.client_lr_schedule, index, factor=0.2)

    def scheduled(self, base, schedule, index, factor):
        """Return a learning rate in a round: a cosine, or steps by `factor` after 60 and 80 percent of the rounds."""
        rounds = self.config.rounds
        if schedule == "cosine":
            return base * (1 + math.cos(math.pi * index / rounds)) / 2
        return base * factor ** ((index >= int(0.6 * rounds)) + (index >= int(0.8 * rounds)))
