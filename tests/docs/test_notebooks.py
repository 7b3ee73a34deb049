"""The notebooks run as stored, and give what is stored."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from tests.docs.notebooks import KERNEL, NOTEBOOKS, executed, texts
from tests.docs.pages import difference

LARGEST = 400_000
"""Bytes of a notebook, its charts included."""


def stored(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


@pytest.mark.demo
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_gives_what_is_stored(path: Path, desk: Path):
    before, now = texts(stored(path)), texts(executed(path, desk))
    for number, (shown, printed) in enumerate(zip(before, now, strict=True), start=1):
        assert difference(shown, printed) is None, f"code cell {number}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_tells_nothing_of_where_it_ran(path: Path):
    notebook = stored(path)
    assert notebook.metadata == {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    assert all(not cell.metadata for cell in notebook.cells)
    kinds = {output.output_type for cell in notebook.cells for output in cell.get("outputs", ())}
    assert kinds <= {"stream", "display_data", "execute_result"}
    streams = {output.get("name") for cell in notebook.cells for output in cell.get("outputs", ())}
    assert streams <= {None, "stdout"}
    said = path.read_text(encoding="utf-8")
    assert re.search(r"(?<![\w.:/<])/(home|root|tmp|work|usr|opt|Users)/", said) is None
    assert re.search(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d", said) is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_has_charts(path: Path):
    assert path.stat().st_size < LARGEST
    drawn = [
        kind
        for cell in stored(path).cells
        for output in cell.get("outputs", ())
        for kind in output.get("data", {})
    ]
    assert {"image/svg+xml", "text/plain"} == set(drawn)


def test_the_laptop_notebook_imports_no_torch():
    [laptop] = (path for path in NOTEBOOKS if path.stem == "laptop")
    code = "\n".join(cell.source for cell in stored(laptop).cells if cell.cell_type == "code")
    assert not re.search(r"\b(torch|transformers|live)\b", code)
