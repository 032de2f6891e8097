"""The README's pictures are of this version, and small."""

import pytest
from PIL import Image
from rich.text import Text

from docs import pictures
from simsfl.cli.report import figures
from simsfl.ui import dashboard


def test_the_pictures_of_the_readme_are_of_this_version():
    assert pictures.outdated() == []  # it says what to run


@pytest.mark.parametrize("name", pictures.CHECKSUMS)
def test_pictures_are_small_and_name_the_version(name):
    file = pictures.DOCS / f"{name}.png"
    assert file.stat().st_size < 300_000
    with Image.open(file) as picture:
        assert picture.text["simsfl"].count(".") == 2


CHANGES = {
    "a text of the live view": (dashboard, "filling", lambda status: "queue half empty", "live"),
    "a colour of the live view": (dashboard, "_header", lambda config, activity: Text("simsfl", "red"), "live"),
    "a legend of the report": (figures, "counted", lambda settings: {"twice": settings["run"]}, "report"),
}
"""What is changed in the code, by what, and the picture that is no longer of this version."""


@pytest.mark.parametrize(("module", "name", "value", "changed"), CHANGES.values(), ids=CHANGES)
def test_a_picture_that_would_look_otherwise_is_to_be_made_anew(module, name, value, changed, monkeypatch):
    monkeypatch.setattr(module, name, value)
    before = {name: pictures._text(name)["shows"] for name in pictures.CHECKSUMS}
    found = [name for name, checksum in pictures.CHECKSUMS.items() if checksum() != before[name]]
    assert found == [changed]
    assert pictures.outdated() == [f"docs/{changed}.png is not of this version: run python docs/pictures.py"]


def test_a_terminal_is_drawn_cell_by_cell():
    """Each character is in its colour and in its column, whatever came before it."""
    image = pictures.terminal(Text.assemble("ab ", ("██", "red"), (" a", "bold")), "title")
    font_height = (image.height - pictures._SIZE) // 3  # title, an empty line and this one
    top = pictures._SIZE // 2 + 2 * font_height
    row = image.crop((0, top, image.width, image.height))
    red = tuple(pictures.THEME.ansi_colors[1])
    columns = [x for x in range(row.width) if row.getpixel((x, font_height // 2)) == red]
    cell = (image.width - pictures._SIZE) / pictures._COLUMNS
    start = pictures._SIZE // 2 + 3 * cell
    assert columns[0] == pytest.approx(start, abs=1)
    assert columns[-1] == pytest.approx(start + 2 * cell, abs=2)
