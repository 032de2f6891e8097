"""What is shown of a run in a fleet: in its report, and in the tables of `simsfl fleet`."""

import pytest

from simsfl.cli import run
from simsfl.cli.fleet import program
from simsfl.cli.fleet.table import fleet_table
from simsfl.cli.report import program as report
from simsfl.cli.report.runs import read_run
from simsfl.system.console import Output
from tests.conftest import TINY, flags
from tests.fleet.conftest import SERVER, group


def _shown(*groups):
    """Return the text of the table about groups: for each, how its times are known, and the error of scaling."""
    usual = {"clients": 5, "device": "a board", "step_seconds": 0.1, "up_mbit_s": 1.0, "down_mbit_s": 1.0}
    watts = {"idle_watts": None, "busy_watts": None}
    told = [{"name": "a group", **usual, **watts, "times": times, "scaling_error": error} for times, error in groups]
    console = Output(record=True, width=120)
    console.print(fleet_table(told))
    return " ".join(console.export_text().split())


def test_the_error_of_scaling_is_not_taken_for_a_bound():
    text = _shown(("measured", 0.3), ("scaled", 0.3), ("scaled", None), ("published", None))
    assert "100.0 measured 1.0" in text
    assert "100.0 scaled (30 %) 1.0" in text
    assert "100.0 scaled 1.0" in text
    assert "100.0 published 1.0" in text
    assert "the largest error that this makes between the device's own measurements" in text
    assert "It is no bound" in text


def test_nothing_is_said_of_scaling_where_all_is_measured():
    assert "scaled" not in _shown(("measured", 0.3))


@pytest.mark.slow
def test_the_report_of_a_run_in_a_fleet(npz, result, tmp_path, capsys, caplog):
    """The slow half misses the deadline, so it is left out; that it is told for another fleet, too, changes nothing."""
    field, other, out = tmp_path / "field.toml", tmp_path / "other.toml", tmp_path / "run"
    field.write_text(SERVER + group(share=0.5) + group(name='"slow"', share=0.5, slowdown=4.0))
    other.write_text(SERVER + group(name='"others"'))
    assert run.main(flags(dataset=npz, out=out, fleet=field, deadline=2.0, dashboard="off", **TINY)) == 0
    shown = capsys.readouterr().out
    assert shown.index("a board") < shown.index("round 1/")  # the table of the fleet comes first
    assert "  fleet 0:" in shown
    clients = read_run(out, "run").fleet_clients
    assert clients.never[clients.group == "slow"].all()
    assert not clients.late[clients.group == "all"].any()
    assert report.main([str(out)]) == 0
    page = (out / "report.md").read_text()
    for stem in ("fleet", "fleet_work", "excluded"):
        assert f"(figures/{stem}.png)" in page
    assert program.main([str(out), "--fleet", str(other)]) == 0
    assert (read_run(out, "run").fleet_clients.never == clients.never).all()
    field.unlink()
    caplog.clear()
    assert report.main([str(out)]) == 0
    (warned,) = (record.getMessage() for record in caplog.records)
    assert warned.startswith(f"fleet: {field} cannot be read (No such file or directory)")
    assert "(figures/fleet.png)" in (out / "report.md").read_text()
    assert run.main(["--resume", str(out)]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: fleet: {field} cannot be read")
