"""Results as files: what is in them, and what happens when they cannot be written."""

from __future__ import annotations

import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from ptmech import refusal, saving, truth
from ptmech.errors import DataError, PrerequisiteError, StorageError
from ptmech.results import Result

TITLE = "Length of the truth direction of base"


@pytest.fixture(scope="module")
def result(synthetic) -> Result:
    return truth.directions(synthetic, "base")


class Page(HTMLParser):
    """Scripts, titles and addresses of a page, as a browser would find them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.scripts: list[str] = []
        self.title = ""
        self.policy = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.tags.append(tag)
        self.addresses += [named[name] for name in ("src", "href", "data") if name in named]
        if named.get("http-equiv") == "Content-Security-Policy":
            self.policy = named["content"]

    def handle_endtag(self, tag):
        self.tags.append(f"/{tag}")

    def handle_data(self, data):
        match self.tags[-1:]:
            case ["script"]:
                self.scripts.append(data)
            case ["title"]:
                self.title += data


def saved_page(result: Result, folder: Path) -> Page:
    return Page(result.save(folder / "page.html").read_text(encoding="utf-8"))


def test_png_is_a_picture_of_twice_the_size(result, tmp_path):
    path = result.save(tmp_path / "chart.PNG")
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert content[12:16] == b"IHDR"
    width, height = (int.from_bytes(content[at : at + 4]) for at in (16, 20))
    assert width > 2 * 480
    assert height > 2 * 280


def test_svg_is_xml_with_the_title(result, tmp_path):
    path = result.save(str(tmp_path / "chart.svg"))
    assert path == tmp_path / "chart.svg"
    root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert TITLE in "".join(root.itertext())


def test_html_holds_all_it_needs(result, tmp_path):
    page = saved_page(result, tmp_path)
    assert page.addresses == []
    assert not {"link", "iframe", "img", "object", "base"} & set(page.tags)
    assert page.title == f"TruthDirections of {result.artifact}"
    assert page.policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in page.policy
    spec = json.loads(page.scripts[0])
    assert spec["title"] == TITLE
    (rows,) = spec["datasets"].values()
    assert [row["norm"] for row in rows] == pytest.approx(result.frame["norm"].to_list())
    assert len(page.scripts[1]) > 100_000


def test_texts_of_an_artifact_stay_texts_in_a_page(synthetic, tmp_path):
    found = refusal.completions(synthetic)
    wicked = "</script><script>alert(1)</script><!-- &lt; \u2028"
    frame = found.frame.with_columns(completion=pl.lit(wicked))
    page = saved_page(replace(found, frame=frame, artifact="<b>@1"), tmp_path)
    assert page.tags.count("script") == 3
    assert page.title == "RefusalCompletions of <b>@1"
    told = [
        row["completion"]
        for rows in json.loads(page.scripts[0])["datasets"].values()
        for row in rows
        if "completion" in row
    ]
    assert set(told) == {wicked}


def test_parquet_reads_back_with_where_it_comes_from(synthetic, tmp_path):
    result = truth.transfer(synthetic, "base", "instruct", n_bootstrap=5)
    path = result.save(tmp_path / "numbers.parquet")
    assert_frame_equal(pl.read_parquet(path), result.frame, check_exact=True)
    told = json.loads(pl.read_parquet_metadata(path)["ptmech"])
    assert told["artifact"] == synthetic.id
    assert told["result"] == "TruthTransfer"
    assert told["arguments"]["earlier"] == "base"
    assert told["arguments"]["datasets"] == list(result.arguments["datasets"])
    assert told["versions"] == dict(result.versions)


def test_arguments_that_are_no_plain_values_are_told_all_the_same(result, tmp_path):
    odd = replace(result, arguments={"layer": np.int64(3), "where": Path("here")})
    path = odd.save(tmp_path / "numbers.parquet")
    told = json.loads(pl.read_parquet_metadata(path)["ptmech"])
    assert told["arguments"] == {"layer": 3, "where": "here"}


@pytest.mark.parametrize("name", ["chart.pdf", "chart", ".png", "chart.png.txt"])
def test_any_other_name_is_refused_with_those_that_do(result, tmp_path, name):
    expected = r"cannot save '.*': the name has to end in \.png, \.svg, \.html or \.parquet"
    with pytest.raises(DataError, match=expected):
        result.save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_named(result, tmp_path):
    with pytest.raises(StorageError, match=r"there is no folder '.*missing'"):
        result.save(tmp_path / "missing" / "chart.png")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_place_of_the_file_is_left_alone(result, tmp_path):
    (tmp_path / "chart.parquet").mkdir()
    with pytest.raises(StorageError, match=r"cannot save .*chart\.parquet"):
        result.save(tmp_path / "chart.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["chart.parquet"]


def test_a_file_that_was_there_is_replaced(result, tmp_path):
    path = tmp_path / "numbers.parquet"
    path.write_bytes(b"before")
    assert pl.read_parquet(result.save(path)).height == result.frame.height
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_file_that_was_there_survives_a_failure(result, tmp_path, monkeypatch, step):
    path = tmp_path / "numbers.parquet"
    path.write_bytes(b"before")

    def fails(*_):
        raise OSError(28, "No space left on device")

    owner = saving.os if step == "fsync" else Path
    monkeypatch.setattr(owner, step, fails)
    with pytest.raises(StorageError, match="No space left on device"):
        result.save(path)
    monkeypatch.undo()
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("missing", ["altair", "vl_convert"])
def test_numbers_are_saved_without_what_charts_need(result, tmp_path, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(PrerequisiteError, match=re.escape("pip install 'ptmech[report]'")):
        result.save(tmp_path / "chart.svg")
    assert list(tmp_path.iterdir()) == []
    assert result.save(tmp_path / "numbers.parquet").is_file()
