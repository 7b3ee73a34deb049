"""The demo's report in a browser: every chart drawn, nothing asked for, at two widths."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.browser import DESKTOP, PHONE, opened

from ptmech import report
from ptmech.artifact import Artifact

pytestmark = pytest.mark.demo

ROOT = Path(__file__).parents[2]
MARKS = ", ".join(f".mark-{kind} > *" for kind in ("rect", "symbol", "line", "area", "text"))
"""What a chart's own data became, whichever way; not its axes."""


@pytest.fixture(scope="module")
def page(demo: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report.write(demo, tmp_path_factory.mktemp("report") / "report.html")


def test_it_is_small(page: Path) -> None:
    assert page.stat().st_size < 5_000_000


@pytest.mark.parametrize(("name", "size"), [("desktop", DESKTOP), ("phone", PHONE)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_chart_is_drawn(page: Path, name: str, size: tuple[int, int], scheme: str) -> None:
    with opened(page, size, color_scheme=scheme) as seen:
        assert seen.drawn() == "yes"
        charts = seen.page.query_selector_all(".chart")
        assert len(charts) >= 12
        for chart in charts:
            assert chart.get_attribute("data-drawn") == "yes"
            box = chart.query_selector("svg")
            assert box is not None
            place = box.bounding_box()
            assert place is not None
            assert min(place["width"], place["height"]) > 60
            assert len(chart.query_selector_all(MARKS)) > 4
        assert seen.page.query_selector(".missing") is None
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= size[0]
        assert seen.asked == [page.as_uri()]
        assert seen.errors == []
        screenshots = ROOT / "build" / "screenshots"
        screenshots.mkdir(parents=True, exist_ok=True)
        seen.page.screenshot(path=screenshots / f"report-{name}-{scheme}.png", full_page=True)
        if (name, scheme) == ("desktop", "light"):
            seen.page.emulate_media(media="print")
            seen.page.pdf(path=screenshots / "report-print.pdf")


def test_the_four_findings_have_a_number_and_its_uncertainty(demo: Artifact) -> None:
    found = report.findings(demo, *demo.stages)
    assert [each.verdict for each in found] == [
        "confirmed", "confirmed", "confirmed", "not confirmed",
    ]  # fmt: skip
    for each in found:
        assert any(digit.isdigit() for digit in each.number)
        assert "95 %" in each.uncertainty
