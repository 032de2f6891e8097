"""The Pi 5's power management chip, against recorded output, and output that is damaged."""

import pytest

from simsfl.hw_profile.meters import Blocked
from simsfl.hw_profile.meters.board import Machine
from simsfl.hw_profile.meters.pmic import Pmic, _rails
from tests.hw_profile.machines import PI_4, PI_5, no_command, raiser, write

PMIC = """\
 3V7_WL_SW_A current(0)=0.09368929A
   3V3_SYS_A current(1)=0.08783370A
   1V8_SYS_A current(2)=0.18054710A
  DDR_VDD2_A current(3)=0.22543980A
  DDR_VDDQ_A current(4)=0.06666720A
   1V1_SYS_A current(5)=0.17566740A
    0V8_SW_A current(6)=0.37670900A
  VDD_CORE_A current(7)=6.22421000A
   3V3_DAC_A current(17)=0.00006105A
   3V3_ADC_A current(18)=0.00036630A
   0V8_AON_A current(16)=0.00305250A
      HDMI_A current(22)=0.02417580A
 3V7_WL_SW_V volt(8)=3.69977600V
   3V3_SYS_V volt(9)=3.31003300V
   1V8_SYS_V volt(10)=1.80512600V
  DDR_VDD2_V volt(11)=1.10476100V
  DDR_VDDQ_V volt(12)=0.60146460V
   1V1_SYS_V volt(13)=1.11025500V
    0V8_SW_V volt(14)=0.80146440V
  VDD_CORE_V volt(15)=0.86173300V
   3V3_DAC_V volt(20)=3.31318300V
   3V3_ADC_V volt(21)=3.30677300V
   0V8_AON_V volt(19)=0.80029220V
      HDMI_V volt(23)=5.08664000V
     EXT5V_V volt(24)=5.09066000V
      BATT_V volt(25)=0.00000000V
"""
"""Of a Raspberry Pi 5 with four busy cores."""


def test_rails_with_a_current_and_a_voltage_are_summed():
    products = (
        0.09368929 * 3.699776,
        0.0878337 * 3.310033,
        0.1805471 * 1.805126,
        0.2254398 * 1.104761,
        0.0666672 * 0.6014646,
        0.1756674 * 1.110255,
        0.376709 * 0.8014644,
        6.22421 * 0.861733,
        0.00006105 * 3.313183,
        0.0003663 * 3.306773,
        0.0030525 * 0.8002922,
        0.0241758 * 5.08664,
    )
    assert sum(_rails(PMIC).values()) == pytest.approx(sum(products))
    asked = []
    meter = Pmic(Machine(run=lambda command: asked.append(list(command)) or PMIC))
    assert meter.watts() == pytest.approx(1.1451 * sum(products) + 0.5879)
    assert asked[0] == ["vcgencmd", "pmic_read_adc"]
    assert "community" in meter.source
    assert not meter.estimated


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (PMIC, "", "does not report current and voltage of any rail"),
        ("  VDD_CORE_V volt(15)=0.86173300V\n", "", "of VDD_CORE"),
        ("6.22421000A", "-6.22421000A", "VDD_CORE_A is '-6.22421000A'"),
        ("6.22421000A", "nanA", "VDD_CORE_A is 'nanA'"),
        ("6.22421000A", "infA", "VDD_CORE_A is 'infA'"),
        ("6.22421000A", "6,22421000A", "VDD_CORE_A is"),
        ("6.22421000A", "", "VDD_CORE_A is ''"),
        ("      BATT_V volt(25)=0.00000000V\n", "      BATT_V volt(25)=0.0", "BATT_V is '0.0'"),
    ],
)
def test_output_that_is_damaged_is_no_reading(before, after, words):
    assert before in PMIC
    with pytest.raises(OSError, match=words):
        _rails(PMIC.replace(before, after))


def test_rails_that_are_all_at_zero_are_no_reading():
    with pytest.raises(OSError, match="all its rails are at 0 W"):
        _rails("VDD_CORE_A current(7)=0.0A\nVDD_CORE_V volt(15)=0.9V\n")


def test_a_reading_with_fewer_rails_than_the_first_is_none():
    printed = [PMIC]
    meter = Pmic(Machine(run=lambda command: printed[-1]))
    printed.append("".join(line for line in PMIC.splitlines(keepends=True) if "HDMI" not in line))
    with pytest.raises(OSError, match="the rails are not those of the first reading: HDMI"):
        meter.watts()


@pytest.mark.parametrize("model", [PI_4, "Radxa ROCK 5B", None])
@pytest.mark.parametrize(
    "run",
    [
        no_command,
        raiser(OSError("VCHI initialization failed")),
        lambda command: 'error=1 error_msg="Command not registered"',
    ],
)
def test_other_boards_have_no_such_chip(tmp_path, model, run):
    write(tmp_path, {"proc/device-tree/model": f"{model}\0"} if model else {})
    with pytest.raises(ValueError, match="pmic is not here") as raised:
        Pmic(Machine(tmp_path, run))
    assert not isinstance(raised.value, Blocked)


@pytest.mark.parametrize("model", [PI_5, "Raspberry Pi 500 Rev 1.0", "Raspberry Pi Compute Module 5 Rev 1.0"])
@pytest.mark.parametrize(
    ("run", "words"),
    [
        (no_command, "sudo apt install raspi-utils"),
        (raiser(PermissionError(13, "Permission denied")), r"group video \(sudo usermod -aG video \$USER"),
        (raiser(OSError("Can't open device file: /dev/vcio")), r"/dev/vcio\): it is for members of the group video"),
        (lambda command: "VCHI initialization failed", "group video"),
    ],
)
def test_a_user_who_may_not_ask_is_told_how_to(tmp_path, model, run, words):
    write(tmp_path, {"proc/device-tree/model": f"{model}\0"})
    with pytest.raises(Blocked, match=f"^pmic cannot be asked .*{words}") as raised:
        Pmic(Machine(tmp_path, run))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda command: PMIC.replace("6.22421000A", "nanA"), "VDD_CORE_A is 'nanA'"),
        (lambda command: "VDD_CORE_A current(7)=0.0A\nVDD_CORE_V volt(15)=0.9V\n", "all its rails are at 0 W"),
        (raiser(TimeoutError("vcgencmd takes more than two seconds")), "vcgencmd takes more than two seconds"),
    ],
)
def test_a_chip_that_answers_wrongly_is_not_a_matter_of_groups(tmp_path, run, words):
    write(tmp_path, {"proc/device-tree/model": f"{PI_5}\0"})
    with pytest.raises(Blocked, match=rf"^pmic does not measure \(vcgencmd pmic_read_adc: {words}\)$"):
        Pmic(Machine(tmp_path, run))
