"""Devices in the loop: the result is the simulation's, whoever comes late, hangs or goes."""

import io
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from simsfl import RunConfig, Simulation
from simsfl.algorithm import step
from simsfl.cli.session import Stopped
from simsfl.engine.cuda_graph import CapturedStep
from simsfl.hw_profile.devices import client
from simsfl.hw_profile.devices.device import Device
from simsfl.hw_profile.devices.loop import about_run, own_images
from simsfl.runs.client_trace import Trace
from simsfl.system.console import Output
from tests.conftest import TINY
from tests.engine.tape import Tape
from tests.hw_profile.serving import (
    CLIENTS,
    EVERYONE,
    LONG,
    Served,
    assert_near,
    finish,
    hub_of,
    wait_for,
    wait_until,
)
from tests.simulations import assert_same_state, recorder_of, trained

SETTINGS = {
    "loop": {"engine": "loop", "cohort": 4},
    "cut 2, aligned": {"engine": "loop", "cut_layer": 2, "align_momentum": True},
    "batch norm": {"engine": "loop", "norm": "batch", "weight_standardisation": False},
    "frozen": {"engine": "loop", "client_lr": 0.0},
    "frozen, batch norm": {"engine": "loop", "client_lr": 0.0, "norm": "batch", "weight_standardisation": False},
    "stacked": {"rounds": 1},
}


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_the_result_is_the_simulations(setting, dataset):
    config = RunConfig(**{**TINY, **setting})
    alone, _ = trained(config, dataset)
    simulation = Simulation(config, dataset)
    with hub_of(simulation) as (hub, loop):
        devices = [Served(simulation, hub.address, number) for number in CLIENTS]
        wait_for(hub, 3)
        list(simulation.rounds())
        assert loop.missed == 0
    finish(*devices)
    if setting.get("engine") == "loop":
        assert_same_state(simulation, alone)
    else:
        assert_near(simulation, alone, ("server.online", "clients.online"))
    assert not loop.missed
    assert not hub.counts.refused
    assert [loop.done[device.device.client] for device in devices] == [device.device.done for device in devices]
    assert loop.done == loop.due
    assert sum(loop.due.values()) > 0


def test_either_runtime_takes_part(dataset):
    config = RunConfig(**{**EVERYONE, "engine": "loop", "rounds": 1})
    alone, _ = trained(config, dataset)
    simulation = Simulation(config, dataset)
    with hub_of(simulation, clients=[3]) as (hub, _):
        device = Served(simulation, hub.address, 3, runtime="lean")
        wait_for(hub, 1)
        list(simulation.rounds())
    finish(device)
    assert_near(simulation, alone, ["server.online"])


def test_bytes_are_the_cost_models_and_a_little_more(dataset):
    simulation = Simulation(RunConfig(**EVERYONE), dataset)
    with hub_of(simulation) as (hub, _):
        devices = [Served(simulation, hub.address, number) for number in CLIENTS]
        wait_for(hub, 3)
        before = hub.counts.up, hub.counts.down
        list(simulation.rounds())
        up, down = hub.counts.up - before[0], hub.counts.down - before[1]
    finish(*devices)
    share, syncs = len(CLIENTS) / 8, simulation.config.syncs_per_round
    frames = 3 * len(CLIENTS) * (simulation.parts.steps + syncs)
    traffic = simulation.progress.traffic
    assert share * traffic.up <= up < share * traffic.up + 500 * frames
    plan = 3 * len(CLIENTS) * 6000  # which images and views a round has, and at first all that a client keeps
    assert (
        share * simulation.progress.traffic.down
        <= down
        < share * simulation.progress.traffic.down + 500 * frames + plan
    )
    assert sum(account.bytes_up for account in hub.accounts.values()) == hub.counts.up
    assert sum(account.bytes_down for account in hub.accounts.values()) == hub.counts.down


def test_a_round_goes_on_without_a_device_that_leaves_and_it_may_return(dataset):
    simulation = Simulation(RunConfig(**{**EVERYONE, "rounds": 3}), dataset)
    with hub_of(simulation) as (hub, loop):
        gone = Served(simulation, hub.address, 1, leave_after=simulation.parts.steps + 1)
        devices = [Served(simulation, hub.address, number) for number in (3, 5)]
        wait_for(hub, 3)
        records = [record for _ in range(2) for record in simulation.round()]
        absences = [(r.round, r.step, r.clients) for r in records if r.event == "absence"]
        assert (loop.done[1], loop.due[1]) == (simulation.parts.steps + 2, 2 * simulation.parts.steps)
        assert absences == [(2, 3, [1])]  # it has sent what the second step begins with
        finish(gone)
        assert hub.present() == {3, 5}
        assert loop.missed == 1
        devices.append(Served(simulation, hub.address, 1))
        wait_for(hub, 3)
        assert "absence" not in {record.event for record in simulation.round()}
        assert loop.missed == 1
        assert {status.client: status.presence for status in loop.devices()} == dict.fromkeys(CLIENTS, "here")
    finish(*devices)


def test_devices_end_when_the_run_ends_in_the_middle_of_a_round(dataset):
    simulation = Simulation(RunConfig(**EVERYONE), dataset)
    with hub_of(simulation) as (hub, _):
        devices = [Served(simulation, hub.address, number) for number in CLIENTS]
        wait_for(hub, 3)
        next(simulation.round())
    finish(*devices)
    assert {device.device.done for device in devices} <= {1, 2}


def test_a_device_that_hangs_is_dismissed_and_comes_back_at_an_averaging(dataset):
    simulation = Simulation(RunConfig(**{**EVERYONE, "rounds": 2, "syncs_per_round": 4}), dataset)
    assert simulation.parts.steps == 5
    hung, woken = threading.Event(), threading.Event()

    def hang(device):
        if (device.round, device.step) == (0, 1) and not hung.is_set():
            hung.set()
            assert woken.wait(LONG)

    with hub_of(simulation) as (hub, loop):
        honest = hub.collect

        def collect(clients, timeout, meanwhile):
            if 1 in clients and simulation.progress.step_index == 1:
                assert hung.wait(LONG)
                wait_until(hub, lambda: hub.accounts[3].steps == 2)
                timeout = 0.0  # all but the hanging device have answered
            return honest(clients, timeout, meanwhile)

        hub.collect = collect
        devices = [Served(simulation, hub.address, 1, before_step=hang), Served(simulation, hub.address, 3)]
        wait_for(hub, 2)
        records = []
        for record in simulation.round():
            records.append(record)
            if record.event == "step" and record.step == 2:
                woken.set()
                wait_for(hub, 2)  # it has said hello again
        absences = [(r.step, r.clients) for r in records if r.event == "absence"]
        assert absences == [(1, [5]), (2, [1, 5]), (4, [5])]  # averagings are behind steps 2, 3, 4 and 5
        assert loop.missed == 1
        assert {account.steps for client, account in hub.accounts.items() if client != 5} == {5, 3}
    finish(*devices)


def test_a_run_waits_between_steps_while_all_clients_are_gone(dataset):
    """The simulation's own results replace those that were lost in a step: the result is as if no device had gone."""
    config = RunConfig(**{**TINY, "clients": 2, "cohort": 2, "rounds": 2, "engine": "loop"})
    alone, _ = trained(config, dataset)
    simulation = Simulation(config, dataset)
    with hub_of(simulation, clients=[0, 1]) as (hub, loop):
        gone, back = [Served(simulation, hub.address, number, leave_after=2) for number in (0, 1)], []
        wait_for(hub, 2)
        steps = simulation.round()
        while not all(device.left.is_set() for device in gone):
            next(steps)
        finish(*gone)

        def waiting():
            if not back:
                back.extend(Served(simulation, hub.address, number) for number in (0, 1))
                wait_for(hub, 2)

        loop.waiting = waiting
        records = [record for record in steps if record.event == "step"]
        assert records[-1].step == simulation.parts.steps
        assert back
        list(simulation.round())
    finish(*back)
    assert loop.missed == 2
    assert_same_state(simulation, alone)


def test_where_nobody_is_there_the_run_may_be_stopped(dataset, tmp_path):
    config = RunConfig(**{**TINY, "clients": 2, "cohort": 2, "rounds": 2})
    simulation = Simulation(config, dataset)
    with hub_of(simulation, clients=[0, 1]) as (_, loop):
        loop.is_over = lambda: True
        with pytest.raises(Stopped):
            list(simulation.round())
        simulation.save(tmp_path / "run")
    (alone, _), again = trained(config, dataset), Simulation.load(tmp_path / "run", dataset)
    list(again.rounds())
    assert_same_state(again, alone)


def test_a_device_is_there_once_it_has_loaded_what_it_needs(dataset):
    simulation = Simulation(RunConfig(**TINY), dataset)
    with hub_of(simulation) as (hub, _):
        held = [about_run(simulation, client)["held"]["sha256"] for client in CLIENTS]
        device = Device(hub.address, None, None, LONG, images=held[2])
        device.connect()
        assert device.client == CLIENTS[2]  # whose images it has
        assert hub.present() == set()
        device._ready()
        wait_for(hub, 1)
        device.close()


def test_a_device_that_is_still_loading_learns_that_the_run_has_ended(dataset):
    simulation = Simulation(RunConfig(**TINY), dataset)
    with hub_of(simulation) as (hub, _):
        device, late = (Device(hub.address, None, client, LONG) for client in (1, 3))
        device.connect()
        ending = threading.Thread(target=hub.end, args=("finished",))
        ending.start()
        late.connect()
        for one in (device, late):
            one.work(None, None, None)
            assert one.ended == "finished"
            one.close()
        ending.join(LONG)
        assert not ending.is_alive()


def test_where_the_time_of_a_step_goes(dataset, monkeypatch):
    """By a clock that moves only where the device computes, the network carries its answer, and the server works."""
    simulation, now = Simulation(RunConfig(**{**EVERYONE, "rounds": 1}), dataset), [0.0]

    def passes(seconds):
        now[0] += seconds

    def carry(message):
        passes(0.02 if message.kind == "smashed" else 0.0)
        return [message]

    clock = SimpleNamespace(perf_counter=lambda: now[0], monotonic=time.monotonic)
    for end in ("device", "hub"):
        monkeypatch.setattr(f"simsfl.hw_profile.devices.{end}.time", clock)
    with hub_of(simulation, clients=[3]) as (hub, _):
        honest = hub.send

        def send(client, message, *others, **options):
            passes(0.1 if message.kind == "gradient" else 0.0)
            return honest(client, message, *others, **options)

        hub.send = send
        device = Served(simulation, hub.address, 3, before_step=lambda device: passes(0.05), says=carry)
        wait_for(hub, 1)
        list(simulation.rounds())
        account = hub.accounts[3]
    finish(device)
    assert device.device.seconds == pytest.approx({"compute": 0.05, "network": 0.02, "server": 0.1})
    found = account.compute_seconds, account.network_seconds, account.step_seconds
    assert found == pytest.approx((0.05, 0.02, 0.17))


def test_a_trace_can_be_recorded_meanwhile(dataset, tmp_path):
    simulation = Simulation(RunConfig(**{**EVERYONE, "engine": "loop", "rounds": 1}), dataset)
    with hub_of(simulation, clients=[3]) as (hub, loop):
        device = Served(simulation, hub.address, 3)
        wait_for(hub, 1)
        with recorder_of(simulation, 3, tmp_path / "client.trace"):
            list(simulation.rounds())
        assert simulation.observers == [loop]
    finish(device)
    assert Trace(tmp_path / "client.trace").steps == simulation.parts.steps


def test_replayed_steps_are_eager_while_there_are_devices(dataset):
    """Steps that are replayed, as on CUDA, are ordinary ones while devices take part, and are replayed again after."""
    config = RunConfig(**{**EVERYONE, "rounds": 2})
    eager, captured = Simulation(config, dataset), Simulation(config, dataset)
    captured.parts = replace(captured.parts, train_step=CapturedStep(step.train_step, Tape))
    for simulation in (eager, captured):
        rounds = simulation.rounds()
        with hub_of(simulation, clients=[3]) as (hub, loop):
            device = Served(simulation, hub.address, 3)
            wait_for(hub, 1)
            next(rounds)
            assert loop.done == {3: simulation.parts.steps}
        finish(device)
        assert not captured.parts.train_step.recordings
    for simulation in (eager, captured):
        next(simulation.rounds())
    assert captured.parts.train_step.recordings
    assert_same_state(captured, eager)


class BusyMeter:
    """A meter that reads 5 W while `busy` returns true and 2 W otherwise, and that can be waited for."""

    name, source, uncertainty, estimated = "bench", "made up", 0.05, False

    def __init__(self, busy):
        self.busy, self.readings = busy, threading.Semaphore(0)

    def watts(self):
        self.readings.release()
        return 5.0 if self.busy() else 2.0

    def wait(self):
        """Wait until it has been read five times more."""
        while self.readings.acquire(blocking=False):
            pass
        for _ in range(5):
            assert self.readings.acquire(timeout=LONG)


def mean_between(readings, begin, end):
    """Return the mean power in a span of time, given times and watts of readings, with straight lines between them."""
    times, watts = np.array(readings).T
    corners = np.array([begin, *times[(times > begin) & (times < end)], end])
    heights = np.interp(corners, times, watts)
    return ((heights[1:] + heights[:-1]) / 2 * np.diff(corners)).sum() / (end - begin)


def test_energy_is_recorded_meanwhile(dataset, monkeypatch):
    """A meter reads 5 W while the device is there, and 2 W before and after."""
    simulation, found, honest = Simulation(RunConfig(**{**EVERYONE, "rounds": 1}), dataset), {}, client.idle
    with hub_of(simulation, clients=[3]) as (hub, _):
        meter = BusyMeter(hub.present)

        def idle(seconds, watch):
            begin, _ = honest(0.0, watch)
            meter.wait()
            return begin, honest(0.0, watch)[1]

        monkeypatch.setattr(client, "idle", idle)
        arguments = client.parser().parse(["--server", hub.address, "--insecure", "--images", "own.npy"])
        monkeypatch.setattr(client, "_from_file", lambda file: own_images(simulation, 3))
        console, stop = Output(file=io.StringIO()), SimpleNamespace(received=None)

        def take_part():
            found.update(client._take_part(console, arguments, None, meter, stop))

        device = threading.Thread(target=take_part, daemon=True)
        device.start()
        wait_for(hub, 1)
        meter.wait()
        list(simulation.rounds())
    device.join(LONG)
    energy, (begin, end) = found["energy"], found["spans"]["work"]
    assert not found["problem"]
    assert found["ended"] == "the server has stopped the run"
    idle = energy["idle_before"], energy["idle_after"]
    means = [mean_between(found["readings"], *span) for span in found["spans"].values()]
    assert (idle[0], energy["mean_watts"], idle[1]) == pytest.approx(means)
    assert 2.0 <= max(idle) < energy["mean_watts"] <= 5.0
    assert energy["joules"] == pytest.approx(energy["mean_watts"] * (end - begin))
    assert energy["joules_above_idle"] == pytest.approx((energy["mean_watts"] - sum(idle) / 2) * (end - begin))
    assert "bench ±5%" in energy["label"]
    assert found["steps"] == simulation.parts.steps
