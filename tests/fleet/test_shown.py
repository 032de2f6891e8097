"""What the tables of `simsfl fleet` say of times that were not measured."""

from simsfl.cli.fleet import program
from simsfl.system.console import Output


def _shown(*groups):
    """Return the text of the tables about groups: for each, whether it was measured, and the error of scaling."""
    usual = {"clients": 5, "device": "a board", "step_seconds": 0.1, "up_mbit_s": 1.0, "down_mbit_s": 1.0, "wh": None}
    spent = {"compute_seconds": 1.0, "transfer_seconds": 1.0, "wait_seconds": 1.0}
    watts = {"idle_watts": None, "busy_watts": None}
    told = [
        {"name": "a group", **usual, **spent, **watts, "published": False, "measured": measured, "scaling_error": error}
        for measured, error in groups
    ]
    console = Output(record=True, width=120)
    for table in program._tables({"groups": told}):
        console.print(table)
    return " ".join(console.export_text().split())


def test_the_error_of_scaling_is_not_taken_for_a_bound():
    text = _shown((True, 0.3), (False, 0.3), (False, None))
    assert "100.0 measured 1.0" in text
    assert "100.0 scaled (30 %) 1.0" in text
    assert "100.0 scaled 1.0" in text
    assert "the largest error that this makes between the device's own measurements" in text
    assert "It is no bound" in text


def test_nothing_is_said_of_scaling_where_all_is_measured():
    assert "scaled" not in _shown((True, 0.3))
