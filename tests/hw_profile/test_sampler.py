"""A meter that is read again and again in the background, while the time of day may be set."""

import time
from types import SimpleNamespace

import pytest

from simsfl.hw_profile.meters import Clipped, Sampler, sampler


class Meter:
    """A meter whose readings are given; those that are errors are raised."""

    name, source, uncertainty, estimated = "made up", "a test", 0.1, False

    def __init__(self, reading_of):
        self.calls, self._reading_of = 0, reading_of

    def watts(self):
        self.calls += 1
        reading = self._reading_of(self.calls)
        if isinstance(reading, Exception):
            raise reading
        return reading


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(sampler, "SECONDS", 0.001)


def until(over):
    """Wait until it is so, at most for a time that no machine should take."""
    deadline = time.monotonic() + 30
    while not over() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert over()


def sampled(reading_of, calls, also=lambda: None):
    meter = Meter(reading_of)
    with Sampler(meter, also) as found:
        until(lambda: meter.calls >= calls)
    return meter, found


def test_failures_are_counted():
    seen, begin = [], time.monotonic()
    reading_of = lambda call: OSError(f"no reading {call}") if call % 2 == 0 else float(call)  # noqa: E731
    meter, found = sampled(reading_of, 6, lambda: seen.append(1))
    assert len(found.readings) + found.failures == meter.calls == len(seen)
    assert found.failures == meter.calls // 2
    assert found.last_error == f"no reading {meter.calls - meter.calls % 2}"
    assert [watts for _, watts in found.readings[:3]] == [1, 3, 5]
    times = [at for at, _ in found.readings]
    assert times == sorted(times)
    assert begin <= times[0]
    assert times[-1] <= time.monotonic()
    assert found.latest[-1] == found.readings[-1][1]
    assert found.clipped == []


def test_readings_beyond_the_range_and_those_that_are_no_numbers():
    readings = {1: Clipped("at full scale"), 2: float("nan"), 3: float("inf")}
    _, found = sampled(lambda call: readings.get(call, 5.0), 5)
    assert found.failures == 3
    assert [text for _, text in found.clipped] == ["at full scale"]
    assert {watts for _, watts in found.readings} == {5.0}
    assert [text for _, text in found.record().clipped] == ["at full scale"]


def test_without_a_meter():
    seen = []
    with Sampler(None, lambda: seen.append(1)) as found:
        until(lambda: len(seen) >= 2)
    assert (found.readings, found.failures) == ([], 0)


@pytest.mark.parametrize("moved", [0.0, 3600.0, -0.75])
def test_times_do_not_depend_on_the_time_of_day_being_set(monkeypatch, moved):
    day, steady = [1_000_000.0], [50.0]

    def read(call):
        steady[0] += 1
        day[0] += 1 + moved * (call == 3)
        return float(call)

    clock = SimpleNamespace(time=lambda: day[0], monotonic=lambda: steady[0])
    monkeypatch.setattr(sampler, "time", clock)
    meter, found = sampled(read, 5)
    record = found.record()
    assert record.clock_moved == pytest.approx(moved)
    assert [at for at, _ in found.readings] == [50.0 + call for call in range(meter.calls)]
    assert [at for at, _ in record.readings] == pytest.approx(
        [day[0] - meter.calls + call for call in range(meter.calls)]
    )
    assert record.in_unix((50.0, steady[0])) == pytest.approx((day[0] - meter.calls, day[0]))
