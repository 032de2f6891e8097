"""Power estimated from utilisation, on recordings of /proc/stat."""

import pytest

from simsfl.hw_profile.meters.board import Machine
from simsfl.hw_profile.meters.estimate import UtilisationModel
from tests.hw_profile.machines import PI_4, PI_5, stat, write


@pytest.mark.parametrize(("model", "idle", "busy"), [(PI_4, 2.286, 4.534), (PI_5, 4.403, 3.458)])
def test_model_is_a_line_over_utilisation(tmp_path, model, idle, busy):
    write(tmp_path, {"proc/device-tree/model": f"{model}\0", "proc/stat": stat(100, 1000, 50)})
    meter = UtilisationModel(Machine(tmp_path))
    assert meter.estimated
    assert "not measured" in meter.source
    write(tmp_path, {"proc/stat": stat(130, 1060, 60)})
    assert meter.watts() == pytest.approx(idle + busy * 0.3)
    write(tmp_path, {"proc/stat": stat(180, 1060, 60)})
    assert meter.watts() == pytest.approx(idle + busy)
    write(tmp_path, {"proc/stat": stat(230, 1060, 59)})  # the time of waiting for a disk may shrink
    assert meter.watts() == pytest.approx(idle + busy)


def test_times_that_stand_still_are_no_reading(tmp_path):
    write(tmp_path, {"proc/device-tree/model": f"{PI_5}\0", "proc/stat": stat(100, 1000, 50)})
    meter = UtilisationModel(Machine(tmp_path))
    for times in ((100, 1000, 50), (90, 1000, 50)):
        write(tmp_path, {"proc/stat": stat(*times)})
        with pytest.raises(OSError, match="stand still"):
            meter.watts()
    write(tmp_path, {"proc/stat": stat(140, 1050, 50)})
    assert meter.watts() == pytest.approx(4.403 + 3.458 * 0.5)


@pytest.mark.parametrize("model", ["Raspberry Pi 400 Rev 1.0", "Raspberry Pi 3 Model B Plus Rev 1.3", "Radxa ROCK 5B"])
def test_model_of_another_board(tmp_path, model):
    write(tmp_path, {"proc/device-tree/model": f"{model}\0", "proc/stat": stat(1, 1, 1)})
    with pytest.raises(ValueError, match=f"model knows Raspberry Pi 4 .*, not {model}"):
        UtilisationModel(Machine(tmp_path))
