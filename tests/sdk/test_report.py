"""The report: what it says, what it escapes, and that it runs nothing of the artifact's."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.stats import hypergeom
from tests.browser import PHONE, opened
from tests.synthetic import write_synthetic_artifact
from typer.testing import CliRunner
from typing_extensions import override

import ptmech as sdk
from ptmech import report
from ptmech.artifact import Artifact
from ptmech.cli import create_app
from ptmech.errors import (
    DataError,
    IntegrityError,
    PrerequisiteError,
    StorageError,
    UnknownNameError,
)

HOSTILE = (
    "</script><script>window.hacked=1</script><img src=http://127.0.0.1:9/x onerror=hacked=2>"
    "<svg onload=alert(1)>\"'&amp;{{7*7}}"
)


class Reader(HTMLParser):
    """Collects what a page holds."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.data: list[str] = []
        self._in = ""
        self.feed(document)

    @override
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in = dict(attrs).get("type") or tag if tag in ("script", "style") else self._in

    @override
    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._in = ""

    @override
    def handle_data(self, data: str) -> None:
        if not self._in:
            self.text.append(data)
        elif self._in == "application/json":
            self.data.append(data)


@pytest.fixture(scope="module")
def page(synthetic: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report.write(synthetic, tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture(scope="module")
def read(page: Path) -> Reader:
    return Reader(page.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report over an artifact whose every text is an attempt at the page."""
    root = write_synthetic_artifact(tmp_path_factory.mktemp("hostile") / "artifact")
    manifest = json.loads((root / "manifest.json").read_text())
    manifest |= {"title": HOSTILE, "narrowed": HOSTILE, "description": HOSTILE}
    for stage in manifest["stages"]:
        stage |= {"title": HOSTILE, "model": HOSTILE}
    for dataset in manifest["datasets"]:
        dataset["title"] = HOSTILE

    def tokens(data: bytes) -> bytes:
        about = json.loads(data)
        if "tokens" not in about.get("attributes", {}):
            return data
        about["attributes"]["tokens"] = [HOSTILE] * len(about["attributes"]["tokens"])
        return json.dumps(about).encode()

    rewrites: dict[str, Callable[[bytes], bytes]] = {
        "tables/statements.parquet": lambda data: in_column(data, "text"),
        "/completions.parquet": lambda data: in_column(data, "completion"),
        "/zarr.json": tokens,
    }
    for entry in manifest["extras"]:
        for end, rewrite in rewrites.items():
            if entry["path"].endswith(end):
                data = rewrite((root / entry["path"]).read_bytes())
                (root / entry["path"]).write_bytes(data)
                entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (root / "manifest.json").write_text(json.dumps(manifest))
    return report.write(sdk.load(root), root.parent / "report.html")


def in_column(data: bytes, column: str) -> bytes:
    buffer = io.BytesIO()
    frame = pl.read_parquet(io.BytesIO(data))
    frame.with_columns(pl.lit(HOSTILE + " ") + pl.col(column)).write_parquet(buffer)
    return buffer.getvalue()


def test_the_page_needs_nothing_outside_it(page: Path, read: Reader) -> None:
    for tag, attributes in read.tags:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            link = attributes.get(name) or ""
            assert not link or link.startswith(("#", "data:")) or tag == "a", (tag, name, link)
    assert not re.search(r"@import|url\(", page.read_text().split("<script", 1)[0])
    policy = next(a["content"] for t, a in read.tags if a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    assert "unsafe-inline" not in policy.split("style-src")[0]


def test_every_perspective_has_its_charts_with_all_their_numbers(
    synthetic: Artifact, read: Reader
) -> None:
    specs = [json.loads(text) for text in read.data]
    drawn = [figure for section in report.sections(synthetic, *synthetic.stages)
             for figure in section.figures if figure.chart is not None]  # fmt: skip
    assert specs == [figure.chart for figure in drawn]
    ids = {attributes.get("id") for _, attributes in read.tags}
    assert ids >= {"findings", "knowledge", "truthfulness", "refusal", "confidence", "redraw"}
    text = " ".join(read.text)
    for figure in drawn:
        assert figure.code in text
        assert figure.caption in text


def test_the_same_artifact_gives_the_same_bytes(
    synthetic: Artifact, page: Path, tmp_path: Path
) -> None:
    assert report.write(synthetic, tmp_path / "again.html").read_bytes() == page.read_bytes()


def test_the_lines_of_python_draw_the_same(synthetic: Artifact) -> None:
    for section in report.sections(synthetic, *synthetic.stages):
        for figure in section.figures:
            found = eval_line(figure.code, synthetic)
            if figure.chart is not None:
                assert found.to_dict() == figure.chart
            else:
                assert isinstance(found, pl.DataFrame)


def eval_line(code: str, artifact: Artifact) -> Any:
    """Follow a chain of names and calls; the project's tests allow no eval either."""
    scope: dict[str, Any] = {"sdk": sdk, "artifact": artifact}
    exec(compile(f"found = {code}", "<report>", "exec"), scope)
    return scope["found"]


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    root = write_synthetic_artifact(tmp_path / "artifact")
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["extras"] = [
        entry for entry in manifest["extras"] if not entry["path"].startswith(("traces", "scores"))
    ]
    (root / "manifest.json").write_text(json.dumps(manifest))
    artifact = sdk.load(root)
    verdicts = {f.perspective: f for f in report.findings(artifact, *artifact.stages)}
    for missing in ("knowledge", "refusal"):
        assert verdicts[missing].verdict == "not testable here"
        assert not verdicts[missing].number
    document = report.write(artifact, tmp_path / "report.html").read_text()
    assert document.count("Not in this artifact:") >= 3
    assert "holds no refusal scores" in document


def test_a_damaged_artifact_makes_no_report(tmp_path: Path) -> None:
    root = write_synthetic_artifact(tmp_path / "artifact")
    scores = root / "scores/instruct/refusal.parquet"
    scores.write_bytes(scores.read_bytes()[:-1] + b"!")
    with pytest.raises(IntegrityError):
        report.write(sdk.load(root), tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("stages", "error"), [(("base", "none"), UnknownNameError), (("base", "base"), DataError)]
)
def test_stages_that_make_no_pair_are_refused(
    synthetic: Artifact, tmp_path: Path, stages: tuple[str, str], error: type[Exception]
) -> None:
    with pytest.raises(error):
        report.write(synthetic, tmp_path / "report.html", *stages)


def test_a_folder_that_is_not_there_is_named(synthetic: Artifact, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no folder"):
        report.write(synthetic, tmp_path / "none" / "report.html")


@pytest.mark.parametrize("package", ["jinja2", "vl_convert", "altair"])
def test_a_missing_package_is_named(
    synthetic: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    sdk_web = __import__("ptmech._web", fromlist=["_"])
    sdk_web.drawing_library.cache_clear()
    with pytest.raises(PrerequisiteError, match=r"pip install 'ptmech\[report\]'"):
        report.write(synthetic, tmp_path / "report.html")


# The numbers of the findings, computed again -----------------------------------------------------


def test_the_agreement_of_traces_and_its_interval(synthetic: Artifact) -> None:
    finding = report.findings(synthetic, *synthetic.stages)[0]
    grids = [sdk.knowledge.trace(synthetic, s, s, "cities").grid for s in synthetic.stages]
    whole = sdk.knowledge.compare(*(grid.mean(axis=0) for grid in grids)).pearson
    assert finding.number == f"correlation of the tracing grids {whole:.3f}"
    draws = np.random.default_rng(5).integers(len(grids[0]), size=(2000, len(grids[0])))
    found = [
        sdk.knowledge.compare(*(grid[draw].mean(axis=0) for grid in grids)).pearson
        for draw in draws
    ]
    low, high = map(float, re.findall(r"\[([-\d.]+), ([-\d.]+)\]", finding.uncertainty)[0])
    assert [low, high] == pytest.approx(np.quantile(found, [0.025, 0.975]), abs=0.01)


def test_the_overlap_of_candidates_and_its_chance(synthetic: Artifact) -> None:
    finding = report.findings(synthetic, *synthetic.stages)[3]
    found = sdk.confidence.compare(synthetic, *synthetic.stages)
    shared = len(set(found.candidates_earlier) & set(found.candidates_later))
    n = len(found.candidates_earlier)
    eligible = found.neurons.filter(pl.col("eligible"), stage="base").height
    chance = sum(hypergeom.pmf(k, eligible, n, n) for k in range(shared, n + 1))
    assert finding.number.startswith(f"{shared} of {n} candidates")
    assert float(re.findall(r"as many in (\S+) of", finding.uncertainty)[0]) == pytest.approx(
        chance, rel=0.05
    )


# In a browser ------------------------------------------------------------------------------------


def test_texts_of_a_hostile_artifact_are_texts(hostile: Path) -> None:
    read = Reader(hostile.read_text(encoding="utf-8"))
    names = [tag for tag, _ in read.tags]
    assert names.count("script") == 2 + len(read.data)
    assert "img" not in names
    assert not any(name.startswith("on") for _, attributes in read.tags for name in attributes)
    shown = " ".join(read.text)
    assert HOSTILE in shown
    assert "49" not in shown.split(HOSTILE.split("{")[0])[1][:6]


@pytest.mark.parametrize("size", [(1280, 900), PHONE])
def test_a_hostile_artifact_executes_nothing(hostile: Path, size: tuple[int, int]) -> None:
    with opened(hostile, size) as seen:
        assert seen.drawn() == "yes"
        for chart in seen.page.query_selector_all(".chart svg")[:4]:
            chart.hover(force=True)  # tooltips are drawn from the data too
        assert seen.page.evaluate("window.hacked") is None
        assert seen.dialogs == []
        assert seen.asked == [hostile.as_uri()]
        assert seen.errors == []


def test_the_policy_refuses_what_would_get_in(page: Path, tmp_path: Path) -> None:
    """Were a text not escaped, the browser would still not run it."""
    broken = tmp_path / "broken.html"
    document = page.read_text().replace("<main>", f"<main>{HOSTILE}", 1)
    broken.write_text(document)
    with opened(broken) as seen:
        seen.page.wait_for_load_state()
        assert seen.page.evaluate("window.hacked") is None
        assert seen.dialogs == []
        assert any("Content Security Policy" in line for line in seen.said)


# On the command line -----------------------------------------------------------------------------


def test_the_command_writes_it(synthetic_path: Path, page: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.html"
    result = CliRunner().invoke(create_app(), ["report", str(synthetic_path), "-o", str(out)])
    assert result.exit_code == 0, result.output
    assert out.read_bytes() == page.read_bytes()
    assert f"{out}: {out.stat().st_size:,} bytes" in result.stdout
    shutil.rmtree(tmp_path)
