"""What the pages say about several ranks is what `docs.scaling` computes, by formulas of collectives that are known."""

import pytest

from docs import scaling
from docs.generate import ROOT


def test_the_model_is_that_of_a_ring_and_of_work_that_is_divided():
    link = scaling.Link("a wire", bytes_per_second=1e9, latency=1e-3)
    alone = scaling.step_seconds(100)
    assert alone == pytest.approx(4.5e-3)  # as measured on one H200
    sends = 0.5 * (2 * scaling.gradient_bytes() + 100 * 2 * 1024 * 4)  # a ring of two devices
    expected = (alone - scaling.FIXED_SECONDS) / 2 + scaling.FIXED_SECONDS + 3e-3 + sends / 1e9
    assert scaling.step_seconds(100, 2, link) == pytest.approx(expected)
    assert scaling.step_seconds(101, 2, link) > scaling.step_seconds(100, 2, link)  # as long as the largest part


def test_the_page_shows_the_model():
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert scaling.PLACE.search(page)[0].count("\n") > len(scaling.COHORTS)
    assert scaling.model() in page, "run: python docs/scaling.py"
