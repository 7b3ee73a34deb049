"""The documentation as a site: it builds without a warning, and loads nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tests.docs.docstrings import MODULES, public_names
from tests.docs.pages import DOCS, ROOT
from typer.main import get_command
from typing_extensions import override

from ptmech.cli import create_app
from ptmech.model_sources import FolderModel, HubModel, PackagedModel
from ptmech_builder.cards import analyses, schema

FETCHING = {"script", "link", "img", "iframe", "audio", "video", "source", "object", "embed", "use"}
UNSHOWN = {
    "ptmech.__version__",
    "ptmech.results.PACKAGES",
    "ptmech.results.installed_versions",
    *(module for module in MODULES if module.count(".") == 1),
    "ptmech.errors",
}
"""Names that are pages of their own, or of no use by themselves."""
REFERENCES = ("src", "href", "srcset", "data", "poster")


class Elements(HTMLParser):
    """Collects what a page would fetch, its scripts and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.scripts: list[str] = []
        self.texts: list[str] = []
        self._inside = ""
        self.feed(page)

    @override
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        if tag in FETCHING:
            self.fetched += [value or "" for name, value in attrs if name in REFERENCES]

    @override
    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    @override
    def handle_data(self, data: str) -> None:
        (self.scripts if self._inside in {"script", "style"} else self.texts).append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Elements]:
    return {
        path.relative_to(site).as_posix(): Elements(path.read_text(encoding="utf-8"))
        for path in site.rglob("*.html")
    }


def elsewhere(elements: Elements) -> Iterator[str]:
    """Yield what a page would get from another place than the site."""
    yield from (place for place in elements.fetched if re.match(r"(?i)\s*(?:\w+:)?//", place))
    for script in elements.scripts:
        yield from re.findall(
            r"""(?:import\s*\(?|from|url\()\s*["']?(https?://[^"')\s]+)""", script
        )


def test_no_page_fetches_anything_from_elsewhere(pages: dict[str, Elements]):
    assert {name: found for name, page in pages.items() if (found := [*elsewhere(page)])} == {}


def test_no_style_sheet_fetches_anything_from_elsewhere(site: Path):
    fetched = re.compile(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)\"']+")
    found = {path.name: fetched.findall(path.read_text()) for path in site.rglob("*.css")}
    assert {name: places for name, places in found.items() if places} == {}


@pytest.mark.parametrize(
    "page",
    [
        '<script src="https://example.org/a.js"></script>',
        '<img src="//example.org/a.png">',
        '<link rel="stylesheet" href="http://example.org/a.css">',
        '<script type="module">const a = await import("https://example.org/a.mjs")</script>',
        "<style>a { background: url(https://example.org/a.png) }</style>",
    ],
)
def test_what_is_fetched_is_seen(page: str):
    assert list(elsewhere(Elements(page)))


def test_every_page_and_notebook_is_in_the_site(pages: dict[str, Elements]):
    sources = [*DOCS.rglob("*.md"), *DOCS.rglob("*.ipynb")]
    made = {path.relative_to(DOCS).with_suffix(".html").as_posix() for path in sources}
    assert made <= pages.keys()
    assert len(made) > 30


def test_pages_tell_nothing_of_this_machine(pages: dict[str, Elements]):
    home, root = str(Path.home()), str(ROOT)
    for name, page in pages.items():
        said = "".join(page.texts + page.fetched + page.scripts)
        assert root not in said, name
        assert len(home) < 6 or home not in said, name


def test_the_search_index_is_part_of_the_site(site: Path):
    index = (site / "search/search_index.json").read_text()
    assert "MassMeanProbe" in index
    assert len(index) > 100_000


def test_both_palettes_are_there(site: Path):
    front = (site / "index.html").read_text()
    assert 'data-md-color-scheme="default"' in front
    assert 'data-md-color-scheme="slate"' in front


def test_no_role_is_left_in_the_reference(pages: dict[str, Elements]):
    left = re.compile(r":(?:func|class|meth|mod|attr|data):")
    for name, page in pages.items():
        assert not left.search("".join(page.texts)), name


def test_every_public_name_is_in_the_reference(site: Path):
    anchors = {
        anchor
        for path in site.glob("reference/*.html")
        for anchor in re.findall(r'id="(ptmech[\w.]*)"', path.read_text())
    }
    # A function may share the name of the module that it is from.
    shown = anchors | {anchor.rpartition(".")[0] for anchor in anchors if _repeats(anchor)}
    names = {
        f"{module}.{name}"
        for module in MODULES
        if module.split(".")[0] == "ptmech"
        for name in public_names(module)
    }
    assert sorted(names - shown - UNSHOWN) == []


def _repeats(path: str) -> bool:
    return path.split(".")[-1] == path.split(".")[-2] if "." in path else False


def test_every_command_and_option_is_in_the_reference(pages: dict[str, Elements]):
    said = "".join(pages["reference/command-line.html"].texts)
    for name, command in get_command(create_app()).commands.items():
        assert f"ptmech {name}" in said
        for option in (o for p in command.params if p.param_type_name == "option" for o in p.opts):
            assert option in said, f"{name} {option}"


def test_every_key_of_a_card_is_in_the_reference_and_explained(site: Path):
    page = (DOCS / "reference/card.md").read_text()
    schemas = {
        each
        for module in (schema, analyses)
        for each in vars(module).values()
        if isinstance(each, type) and each.__module__ == module.__name__
    } | {FolderModel, HubModel, PackagedModel}
    for each in schemas:
        assert f"<!-- fields: {each.__module__}.{each.__name__} -->" in page
    made = (site / "reference/card.html").read_text()
    row = r"<tr>\s*<td><code>(\w+)</code></td>\s*<td>.*?</td>\s*<td>.*?</td>\s*<td>(.*?)</td>"
    rows = re.findall(row, made, re.DOTALL)
    keys = sorted(key for each in schemas for key in each.model_fields)
    assert sorted(key for key, _ in rows) == keys
    assert [key for key, meaning in rows if not meaning.strip()] == []
