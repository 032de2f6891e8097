"""Energy integrated over readings, against closed forms."""

import math

import pytest

from simsfl.hw_profile.meters import energy

SPANS = ((0.0, 4.0), (5.0, 15.0), (16.0, 20.0))


def test_energy_of_constant_power():
    readings = [(at / 10, 7.0 if 5 <= at / 10 <= 15 else 3.0) for at in range(201)]
    found = energy(readings, *SPANS, uncertainty=0.05)
    assert found.seconds == 10
    assert found.joules == pytest.approx(70)
    assert found.mean_watts == pytest.approx(7)
    assert (found.idle_before, found.idle_after) == pytest.approx((3, 3))
    assert found.above_idle_watts == pytest.approx(4)
    assert found.joules_above_idle == pytest.approx(40)
    assert found.uncertainty_joules_above_idle == pytest.approx(3.5)
    assert found.readings == 101
    assert found.below_zero == 0


def test_energy_of_a_ramp_is_exact_between_readings():
    """The trapezoid rule is exact for it, wherever the spans end and however the readings lie."""
    times = (0.0, 0.7, 1.9, 3.3, 4.6, 6.1, 8.4, 11.0, 13.7, 15.2, 16.3, 18.8, 20.0)
    found = energy([(at, 2 + 0.5 * at) for at in times], *SPANS, uncertainty=0.02)
    assert (found.idle_before, found.idle_after) == pytest.approx((3, 11))
    assert found.mean_watts == pytest.approx(7)
    assert found.joules == pytest.approx(70)
    assert found.joules_above_idle == pytest.approx(0, abs=1e-9)
    assert found.uncertainty_joules_above_idle == pytest.approx(math.hypot(0.02 * 70, (11 - 3) / 2 * 10))


def test_readings_below_zero_are_counted_from_the_first_span_to_the_last():
    readings = [(at, -1.0 if at in (-1, 0, 8, 15.5, 20, 21) else 5.0) for at in (half / 2 for half in range(-4, 50))]
    assert energy(readings, *SPANS, uncertainty=0.05).below_zero == 4


@pytest.mark.parametrize(("missing", "word"), [(0, "before"), (1, "during"), (2, "after")])
def test_too_few_readings(missing, word):
    begin, end = SPANS[missing]
    readings = [(at / 2, 1.0) for at in range(41) if not begin + 0.5 <= at / 2 <= end]
    with pytest.raises(ValueError, match=f"meter: 1 reading {word} the work"):
        energy(readings, *SPANS, uncertainty=0.1)


def test_no_readings():
    with pytest.raises(ValueError, match="meter: 0 readings before"):
        energy([], *SPANS, uncertainty=0.1)
