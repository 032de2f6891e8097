"""Power logs as meters, spreadsheets and people write them: each is read as it is meant, or refused in one line."""

import codecs
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from simsfl.hw_profile.meters import Log, choose
from simsfl.hw_profile.meters.board import Machine
from tests.hw_profile.machines import raiser

BEGIN = 1_795_694_400.0
"""2026-11-26 12:00:00 UTC."""
LOCAL = [datetime.fromtimestamp(BEGIN + second).strftime("%Y-%m-%d %H:%M:%S") for second in (0, 1)]
LOGGER = """
timestamp sample_in_packet voltage_V current_A dp_V dn_V temp_C_ema energy_Ws capacity_As
1795694400.000 0 5.00000 1.10000 3.035 0.072 28.200 0.002901 0.000578
1795694401.000 1 5.00000 1.20000 3.036 0.071 28.200 0.005815 0.001158
"""
"""What fnirsi-usb-power-data-logger prints."""


@pytest.fixture
def log_of(tmp_path):
    """A function that returns the log with some content, text or bytes."""

    def make(content):
        file = tmp_path / "log.csv"
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return Log(str(file))

    return make


@pytest.fixture
def read(log_of):
    """A function that returns the readings of the log with some content: seconds after `BEGIN`, and watts."""

    def make(content, span=(BEGIN, BEGIN + 1)):
        return [(at - BEGIN, watts) for at, watts in log_of(content).readings(span)]

    return make


@pytest.fixture
def refused(log_of):
    """A function that returns the line with which the log with some content is refused."""

    def make(content, span=(BEGIN, BEGIN + 1)):
        with pytest.raises(ValueError, match="allowed: ") as raised:
            log_of(content).readings(span)
        assert str(raised.value).startswith("meter: ")
        assert "\n" not in str(raised.value)
        return str(raised.value)

    return make


@pytest.fixture
def central_europe(monkeypatch):
    """Local time of Berlin, where clocks go back from 3 to 2 at 01:00 UTC on 2026-10-25, and forth on 2026-03-29."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


# --- columns, separators, units


@pytest.mark.parametrize(
    "text",
    [
        "time,power\n1795694400,5.5\n1795694401,6\n",
        "time,power\n1795694401,6\n1795694400,5.5\n",
        "Timestamp;Power [W]\n1795694400,0;5,5\n1795694401,0;6,0\n",
        "Timestamp;Power {W}\n1795694400.0;5.5\n1795694401.0;6.0\n",
        "timestamp\tpower(mW)\n1795694400000\t5500\n1795694401000\t6000\n",
        "Date,Volts,Amps\n2026-11-26T12:00:00Z,5,1.1\n2026-11-26T12:00:01Z,5,1.2\n",
        "time_ms,voltage_mV,current_mA,energy_Wh\n1795694400000,5000,1100,1\n1795694401000,5000,1200,1\n",
        'time,mA,mV,Ws,VA\n2026/11/26 13:00:00.0+0100,1100,5000,9,9\n"2026-11-26 12:00:01,00Z","1200",5000,9,9\n',
        "\ufeffU (V),I (A),Date Time\r\n5,1.1,2026-11-26 07:00:00-05:00\r\n\r\n5,1.2,2026-11-26 07:00:01-05:00\r\n",
        f"date time,W\n{LOCAL[1]},6\n{LOCAL[0]},5.5\n",
        "Epoch,v,a,w\n1795694400,1,1,5.5\n1795694401,1,1,6\n",
        "Date,Time,W\n2026-11-26,12:00:00Z,5.5\n2026-11-26,12:00:01Z,6\n",
        "time (UTC),w\n2026-11-26 12:00:00,5.5\n2026-11-26 12:00:01,6\n",
        "time,w\n2026-11-26T12:00:00 UTC,5.5\n2026-11-26T14:00:01+02,6\n",
        "time,power\r1795694400,5.5\r1795694401,6\r",
        "time, power\n1795694400, 5.5\n1795694401, 6\n",
        "time|power\n1795694400|5.5\n1795694401|6\n",
        ",time,power\n0,1795694400,5.5\n1,1795694401,6\n",
        "USB meter C4\nfirmware 1.2\n\ntime,power\n1795694400,5.5\n1795694401,6\n",
        "time (ns),P/mW\n1795694400000000000,5500\n1795694401000000000,6000\n",
        '"time","power","note"\n"1795694400","5.5","a, b"\n"1795694401","6",""\n',
        "time,power,temperature\n1795694400,5.5,20\n1795694401,6,\n",
        "time,power\n1795694400,+5.5e0\n1795694401,6.\n",
    ],
)
def test_dialects(read, text):
    assert read(text) == [(0, pytest.approx(5.5)), (1, pytest.approx(6))]


@pytest.mark.parametrize(
    "text",
    [
        LOGGER,
        LOGGER.replace(" ", "   "),
        LOGGER.replace("\n1795694401", f"{LOGGER[: LOGGER.index('179')]}1795694401"),  # started again, and appended
        LOGGER.replace("timestamp", "# timestamp"),
        LOGGER.replace("1795694401", "# battery changed\n1795694401"),
        LOGGER.replace("\n1795694401", "\n\n\n1795694401"),
        LOGGER.replace(" ", "\t"),
        "Date Time  Voltage (V)  Current (mA)\n2026-11-26 12:00:00 Z  5.0  1100\n2026-11-26 12:00:01 Z  5.0  1200\n",
        "time W\n2026-11-26 12:00:00Z 5,5\n2026-11-26 12:00:01Z 6,0\n",
    ],
)
def test_columns_separated_by_blanks(read, text):
    assert read(text) == [(0, pytest.approx(5.5)), (1, pytest.approx(6))]


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\ntime;power\n1795694400;5,5\n1795694401;6,0\n",
        '"sep=,"\ntime,power\n1795694400,5.5\n1795694401,6\n',
        "SEP=;,,\r\ntime;power\r\n1795694400;5,5\r\n1795694401;6,0\r\n",
        "sep=\t\ntime\tpower\n1795694400\t5.5\n1795694401\t6\n",
        "sep=:\ntime:power\n1795694400:5.5\n1795694401:6\n",
        "time,power,,\n1795694400,5.5,,\n1795694401,6,,\n,,,\n",
        "time,power\n1795694400,5.5,,\n1795694401,6,,\n,,\n",
        "time;power;\n1795694400;5,5;\n1795694401;6,0;\n;;\n",
    ],
)
def test_what_spreadsheets_add(read, text):
    assert read(text) == [(0, pytest.approx(5.5)), (1, pytest.approx(6))]


@pytest.mark.parametrize(
    "encoding",
    ["utf-8", "utf-8-sig", "cp1252", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"],
)
def test_encodings(read, encoding):
    marks = {
        f"utf-{bits}-{end}": getattr(codecs, f"BOM_UTF{bits}_{end.upper()}")
        for bits in (16, 32)
        for end in ("le", "be")
    }
    text = "time;power [W];Temperatur [°C]\r\n1795694400;5,5;20\r\n1795694401;6,0;20\r\n"
    assert read(marks.get(encoding, b"") + text.encode(encoding)) == [(0, pytest.approx(5.5)), (1, pytest.approx(6))]


# --- numbers


@pytest.mark.parametrize(
    ("text", "watts"),
    [
        ('time,power (mW)\n1795694400,"2,350"\n1795694401,"2,400"\n', (2.35, 2.4)),
        ('time,power (W)\n1795694400,"2,350"\n1795694401,"2,400"\n', (2.35, 2.4)),
        ('time,power (mW)\n1795694400,"2,350"\n1795694401,950\n', (2.35, 0.95)),
        ('time,power (mW)\n1795694400,"12,350.5"\n1795694401,950\n', (12.3505, 0.95)),
        ('time,power (mW)\n1795694400,"2,35"\n1795694401,"2,400"\n', (0.00235, 0.0024)),
        ("time;power (mW)\n1795694400;2.350\n1795694401;2.400\n", (2.35, 2.4)),
        ("time;power (mW)\n1795694400;2.350,5\n1795694401;2.400\n", (2.3505, 2.4)),
        ("time;power (W)\n1795694400;2.350\n1795694401;2.400\n", (2.35, 2.4)),
        ("time\tpower (mW)\n1795694400\t2,350\n1795694401\t2,400\n", (2.35, 2.4)),
        ("time;mV;mA\n1795694400;5,000;1,100\n1795694401;5,000;1,200\n", (5.5, 6)),
        ("time;V;A\n1795694400;5,000;1,100\n1795694401;5,000;1,200\n", (5.5, 6)),
        ("time;mW\n1795694400;2 350\n1795694401;12\u00a0350,5\n", (2.35, 12.3505)),
        ("time;mW\n1795694400;2'350.0\n1795694401;2\u2019350.5\n", (2.35, 2.3505)),
        ("time;mW\n1795694400,125;2350\n1795694401,125;2,350\n", (2.35, 0.00235)),
        ("time;W\n1795694400;0,350\n1795694401;1,350\n", (0.35, 1.35)),
        ("time,W\n1795694400,.5\n1795694401,-\u22121\n".replace("-\u2212", "\u2212"), (0.5, -1)),
        ('time,mW\n"1,795,694,400","2,350"\n"1,795,694,401","2,350"\n', (2.35, 2.35)),
    ],
)
def test_what_commas_and_points_mean_is_decided_once(read, text, watts):
    assert [own for _, own in read(text)] == pytest.approx(watts)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "time;W\n1795694400;5,5\n1795694401;5.5\n",
            "'5,5' in line 2 and '5.5' in line 3 make the decimal sign ambiguous",
        ),
        ("time;V;A\n1795694400;5.1;0,5\n", "'0,5' in line 2 and '5.1' in line 2 make"),
        ('time,mW\n1795694400,"2,350"\n1795694401,"2,5"\n1795694402,0.5\n', "'2,5' in line 3 and '0.5' in line 4 make"),
        ('time,mW\n1795694400,"250,000"\n', "ambiguous whether its commas or points separate thousands or decimals"),
        ('time,uW,W\n1795694400,1,"200,000"\n', "ambiguous whether"),
        ("time,power,power\n1795694400,5,6\n", "columns 2 and 3 both hold the power, which is ambiguous"),
        ("time,V,A,voltage,current\n1795694400,5,1,5,1\n", "columns 2 and 4 both hold the voltage"),
        ("time;W,A|V\n1795694400;5,5\n", "it has columns"),
        ("time,power,x;time;power\n1;2\n", "the separator may be ',' or ';'"),
    ],
)
def test_what_is_ambiguous_is_refused(refused, text, words):
    assert words in refused(text)


# --- times


def test_fractions_of_seconds(read):
    found = read("time,w\n2026-11-26 12:00:00.5Z,1\n2026-11-26T12:00:00.1234567Z,2\n1795694400.75,3\n")
    assert [at for at, _ in found] == pytest.approx([0.1234567, 0.5, 0.75], abs=1e-6)


def test_readings_with_the_same_time_are_averaged(read):
    rows = [(second, watts) for second in (0, 1, 2) for watts in (1.0, 7.0, 1.0, 3.0)]
    text = "time,power\n" + "".join(f"{BEGIN + second:.0f},{watts}\n" for second, watts in rows)
    assert read(text) == [(0, 3), (1, 3), (2, 3)]
    assert read(text.replace(".0", "")) == [(0, 3), (1, 3), (2, 3)]


def test_lines_that_are_written_a_little_out_of_order_are_sorted(read):
    assert read("time,w\n1795694400.0,1\n1795694400.2,3\n1795694400.1,2\n") == [
        (pytest.approx(at, abs=1e-6), watts) for at, watts in ((0, 1), (0.1, 2), (0.2, 3))
    ]


def test_a_clock_that_was_set_back_is_refused_where_it_matters(refused, read):
    times = [*range(-900, 10), *range(4, 20)]
    text = "time,power\n" + "".join(f"{BEGIN + at:.0f},5\n" for at in times)
    assert "line 912: its time is out of order" in refused(text)
    assert read(text, (BEGIN - 800, BEGIN - 700))
    newest_first = "time,power\n" + "".join(f"{BEGIN + at:.0f},5\n" for at in range(9, -9, -3))
    assert [at for at, _ in read(newest_first)] == [-6, -3, 0, 3, 6, 9]


def stamps(begin, minutes, watts, *, every=10):
    """Lines in the local time of a logger without zones."""
    times = [begin + timedelta(seconds=second) for second in range(0, 60 * minutes, every)]
    return "".join(f"{at.astimezone():%Y-%m-%d %H:%M:%S},{watts}\n" for at in times)


def test_local_times_that_occur_twice(central_europe, refused, read):
    begin = datetime(2026, 10, 24, 23, 30, tzinfo=timezone.utc)  # 01:30; from 02:00 on each time occurs twice
    text = "time,power\n" + stamps(begin, 60, 3) + stamps(begin + timedelta(hours=1), 60, 9.6)
    for after in (45, 75, 100):
        at = (begin + timedelta(minutes=after)).timestamp()
        assert "is ambiguous, because the clock is changed that night" in refused(text, (at, at + 60))
    early = begin.timestamp() + 60
    assert {watts for at, watts in read(text, (early, early + 60)) if early < at + BEGIN < early + 60} == {3}


def test_local_times_that_do_not_exist(central_europe, refused):
    at = datetime(2026, 3, 29, 1, 30, tzinfo=timezone.utc).timestamp()  # 03:30, on a logger that knows no summer time
    assert "ambiguous" in refused("time,power\n2026-03-29 02:30:00,5\n2026-03-29 02:30:10,5\n", (at, at + 10))


def test_times_with_a_zone_occur_once(central_europe, read):
    at = datetime(2026, 10, 25, 0, 30, tzinfo=timezone.utc).timestamp()
    text = "time,power\n2026-10-25 02:30:00+02:00,3\n2026-10-25 02:30:10+02:00,3\n2026-10-25 02:30:10+01:00,9\n"
    assert [watts for _, watts in read(text, (at, at + 10))] == [3, 3, 9]


# --- what is still being written, or damaged


@pytest.mark.parametrize(
    "tail",
    ["1795694402,1", "1795694402,12.3", "17956944", "1795694402,", '"17', "\0\0\0", "1795694402,1\0\0", "\ufffd", " "],
)
def test_a_last_line_without_a_break_is_left_out(read, tail):
    assert read("time,power\n1795694400,5.5\n1795694401,6\n" + tail) == [(0, 5.5), (1, 6)]


def test_a_last_character_that_is_cut_is_left_out(read):
    for encoding, mark in (("utf-8", b""), ("utf-16-le", codecs.BOM_UTF16_LE)):
        text = mark + "time,power,note\n1795694400,5.5,\n1795694401,6,\nä".encode(encoding)
        assert read(text[:-1]) == [(0, 5.5), (1, 6)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it has columns (none); allowed: columns of time, and power, or voltage and current"),
        ("\n\n", "it has columns (none)"),
        ("time,power", "it has columns (none)"),
        ("time,Ws,VA\n1,2,3\n", "it has columns time, Ws, VA"),
        ("time;Ws;VA\n1;2;3\n", "it has columns time, Ws, VA"),
        ("time,voltage [V]\n1,2\n", "it has columns"),
        ("time,apparent power\n1,2\n", "it has columns"),
        ("time,power (kW)\n1,2\n", "it has columns"),
        ("seconds since start,power\n1,2\n", "it has columns"),
        ("1795694400,5.5\n", "it has columns 1795694400, 5.5"),
        ("sep=,\ntime;power\n1795694400;5\n", "it has columns time;power"),
        ("time,power\n", "is empty, and the run was"),
        ("time,power\n1795694400,nan\n", "line 2: 'nan' is no reading"),
        ("time,power\n1795694400,1e999\n", "line 2: '1e999' is no reading"),
        ("time,voltage,current\n1795694400,1e200,1e200\n", "line 2: '1e200' is no reading"),
        ("time,power\n1795694400,1_000\n", "line 2: '1_000' is no reading"),
        ("time,power\n1795694400,\n", "line 2: '' is no reading"),
        ("time,power\ns,W\n1795694400,5\n", "line 2: 's' is no time"),
        ("time,power\n1795694400,5\n1795694401,OL\n", "line 3: 'OL' is no reading"),
        ("time,power\n1795694400,5\n17956944\n", "line 3: 1 field under 2 names"),
        (
            "time,voltage,current\n1795694400,5,1\n1795694401,5\ntime,voltage,current\n",
            "line 3: 2 fields under 3 names",
        ),
        ("time,power\n1795694400,5,5\n", "line 2: 3 fields under 2 names"),
        ("time,power,\n1795694400,5,5\n", "line 2: 3 fields under 2 names"),
        ("time,power\n26.11.2026 12:00:00,5\n", "line 2: '26.11.2026 12:00:00' is no time"),
        ("time,power\n11/26/2026 12:00:00,5\n", "is no time"),
        ("time,power\n2026-13-26 12:00:00,5\n", "line 2: '2026-13-26 12:00:00' is no time"),
        ("time,power\n2026-11-26 12:00:00+99:00,5\n", "is no time"),
        ("time,power\n-99999999999,5\n", "line 2: '-99999999999' is no time"),
        ("time,power\n0001-01-01 00:00:00,5\n", "allowed"),
        ("time,power\n9999-12-31 23:59:59,5\n", "allowed"),
        ('time,power\n1795694400,"5\n1795694401,5\n', "line 2: unexpected end of data"),
        ("time,power\n1795694400,5\n\0\0\0\0\n1795694401,5\n", "line 3 has NUL bytes"),
        ("time,power\n1795694400,5\n".encode("utf-16-le"), "line 1 has NUL bytes"),
        (b"\x81\x8d", "it is no text in UTF-8, UTF-16 with a byte order mark, or Windows-1252"),
        (codecs.BOM_UTF16_LE + b"\x00\xd8\x00\x00", "it is no text"),
        ("time,power\n1795694400,\x1b]0;mine\x07\n", r"line 2: '\x1b]0;mine\x07' is no reading"),
    ],
)
def test_what_is_no_log_is_refused_in_one_line(refused, text, words):
    assert words in refused(text)


def test_log_of_another_time_says_both(refused):
    begin, end = (
        datetime.fromtimestamp(BEGIN + after, timezone.utc).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        for after in (3600, 3660)
    )
    line = refused("time,power\n1795694400,5\n1795694401,5\n", (BEGIN + 3600, BEGIN + 3660))
    assert f"is of {LOCAL[0]} to {LOCAL[1]}, and the run was {begin} to {end}" in line


@pytest.mark.parametrize("spec", ["csv", "csv:", "csv:nowhere.csv", "csv:."])
def test_log_that_is_not_there(spec, tmp_path):
    with pytest.raises(ValueError, match=r"meter: there is no log .*allowed: csv:FILE"):
        choose(spec, Machine(tmp_path))


def test_log_that_may_not_be_read(refused, monkeypatch):
    monkeypatch.setattr(Path, "read_bytes", raiser(PermissionError(13, "Permission denied")))
    assert "cannot be read (Permission denied)" in refused("time,power\n")
