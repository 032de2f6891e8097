"""Messages take as long as what has passed by then, and files of rates are read as they are meant."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simsfl.fleet.links import BITS, Links, Trace, read_trace

RATES = st.lists(st.floats(0, 100), min_size=1, max_size=6).filter(lambda rates: max(rates) > 1)


def passed(trace, begin, end, most=np.inf):
    """Return the bytes that pass between two times, added up over the pieces in between."""
    edges = {begin, end}
    for number in range(int(begin // trace.times[-1]), int(end // trace.times[-1]) + 1):
        edges |= {t for t in trace.times + number * trace.times[-1] if begin < t < end}
    total = 0.0
    for one, two in zip(ordered := sorted(edges), ordered[1:], strict=False):
        index = np.searchsorted(trace.times, (one + two) / 2 % trace.times[-1], side="right") - 1
        total += min(most, trace.rates[index]) * (two - one)
    return total


@given(RATES, st.floats(0.5, 5000), st.floats(0, 50), st.sampled_from([np.inf, 7.0]))
@settings(deadline=None, max_examples=100)
def test_a_message_has_passed_when_its_bytes_have(rates, size, begin, most):
    trace = Trace(np.cumsum([0.0, *np.linspace(0.5, 1.5, len(rates))]), np.array(rates))
    (seconds,) = trace.seconds(np.array([size]), np.array([begin]), most)
    assert seconds > 0
    assert passed(trace, begin, begin + seconds, most) == pytest.approx(size, rel=1e-6)


def test_messages_that_end_where_a_pause_begins_are_not_lost_to_rounding():
    rng = np.random.default_rng(0)
    for _ in range(300):
        rates = rng.uniform(1, 100, 3) * rng.permutation([1, 0, rng.integers(2)])
        trace = Trace(np.cumsum([0.0, *rng.uniform(0.3, 1.5, 3)]), rates)
        size = np.cumsum(trace.rates * np.diff(trace.times))[-1] * rng.integers(1, 9, 20)
        begin = trace.times[rng.integers(0, 4, 20)] + trace.times[-1] * rng.integers(0, 5, 20)
        for seconds, one, start in zip(trace.seconds(size, begin), size, begin, strict=True):
            assert passed(trace, start, start + seconds) == pytest.approx(one, rel=1e-6)


def test_the_slower_of_both_ends_counts():
    links = Links(np.array([0.5, 0.5]), np.array([10.0, 40.0]), most=20.0)
    np.testing.assert_allclose(links.seconds(np.array([100.0, 100.0]), np.zeros(2)), [10.5, 5.5])
    assert links.seconds(np.zeros(2), np.zeros(2)).tolist() == [0, 0]  # nothing to send is no message


def test_a_trace_repeats_after_its_last_rate(tmp_path):
    (tmp_path / "rates.txt").write_text("# s Mbit/s\n10 5\n\n12, 0\n14 2.5\n")
    trace = read_trace(tmp_path / "rates.txt")
    np.testing.assert_allclose(trace.times, [0, 2, 4, 6])
    np.testing.assert_allclose(trace.rates, np.array([5, 0, 2.5]) * BITS)
    assert trace.mean == pytest.approx(2.5 * BITS)
    at = np.array([1.0])
    np.testing.assert_allclose(trace.seconds(np.array([15.0 * BITS]), at), [6])  # 5, nothing, 5, and 5 from the start


WRONG = {
    "words": ("0 fast\n1 2\n", "line 1 of {} is '0 fast'; allowed: seconds, which increase, and Mbit/s"),
    "backwards": ("1 2\n1 3\n", "line 2 of {} is '1 3'"),
    "negative": ("0 2\n1 -3\n", "line 2 of {} is '1 -3'"),
    "fast": ("0 1e308\n1 2\n", "line 1 of {} is '0 1e308'"),
    "slow": ("0 2\n1 1e-320\n", "line 2 of {} is '1 1e-320'"),
    "far": ("-1e308 2\n1e308 2\n", "line 1 of {} is '-1e308 2'"),
    "soon": ("0 2\n1e-300 2\n", "line 2 of {} is '1e-300 2'"),
    "short": ("0 2\n", "{} has nothing that passes; allowed: two lines or more, with rates above 0"),
    "nothing": ("0 0\n1 0\n", "{} has nothing that passes"),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_a_file_that_is_no_trace_is_one_line(text, message, tmp_path):
    (file := tmp_path / "rates.txt").write_text(text)
    with pytest.raises(ValueError, match=r"^trace: ") as caught:
        read_trace(file)
    assert message.format(file) in str(caught.value)
