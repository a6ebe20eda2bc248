"""The page in a real browser: no complaint, no request, nothing wider than the screen."""

from pathlib import Path

import pytest

from tests.support.chromium import chromium, find_chromium

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="no chromium on the PATH"),
]

OUTSIDE = """
Array.from(document.querySelectorAll(".js-plotly-plot .main-svg, section, table, dd")).filter(
  (part) => part.getBoundingClientRect().right > innerWidth + 1 && !part.closest(".wide")).length
"""
CLICKED = """
Array.from(document.querySelectorAll("#buttons button")).map((button) => {
  button.click(); return [button.textContent, document.querySelectorAll("#map-legend li").length];
})
"""


@pytest.mark.parametrize("width", [1280, 400])
def test_a_page_opens_without_a_complaint_and_fits_the_screen(written: Path, tmp_path: Path, width: int) -> None:
    page = written / "report.html"
    with chromium(tmp_path / "profile") as tab:
        tab.open(page, width)
        assert tab.run("document.documentElement.scrollWidth") == width
        assert tab.run(OUTSIDE) == 0
        assert tab.run("document.querySelectorAll('.js-plotly-plot').length") >= 10
        assert tab.run(CLICKED) == [["cluster", 4], ["odd", 4], ["donor", 3], ["confidence", 0]]
        assert tab.run("document.querySelector('#map-legend li, #map .colorbar') !== null")
        assert tab.complaints == []
        assert tab.requests == [page.as_uri()]
