"""What is printed of texts that others wrote: shown, never obeyed."""

from __future__ import annotations

import json

import polars as pl
import pytest

from ptmech.console import cell, print_json, print_line, print_table

MARKUP = ("[red]x[/red]", "[link=https://example.org]x[/link]", "[bold", "[/]", ":skull:")
CONTROL = ("\x1b[31mx", "\x1b]8;;https://example.org\x07x", "\x9b31mx", "\rx", "\x08x", "\u202ex")


@pytest.mark.parametrize("text", MARKUP)
@pytest.mark.parametrize("place", ["cell", "column", "title"])
def test_markup_is_printed_as_it_is(
    text: str, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = {"cell": "a", "column": "b", "title": "c", place: text}
    print_table(pl.DataFrame({texts["column"]: [texts["cell"]]}), texts["title"])
    assert text in capsys.readouterr().out


@pytest.mark.parametrize("text", CONTROL)
@pytest.mark.parametrize("place", ["cell", "column", "title"])
@pytest.mark.parametrize("terminal", [False, True])
def test_control_sequences_are_spelled_out(
    text: str,
    place: str,
    terminal: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    texts = {"cell": "a", "column": "b", "title": "c", place: text}
    print_table(pl.DataFrame({texts["column"]: [texts["cell"]]}), texts["title"])
    printed = capsys.readouterr().out
    assert text not in printed
    spelled = text.encode("unicode_escape").decode()
    assert spelled in printed


@pytest.mark.parametrize("text", CONTROL)
def test_a_line_is_spelled_out(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_line(text)
    assert text not in capsys.readouterr().out


@pytest.mark.parametrize("text", [*CONTROL, "\x7f", "\x85", "\u2069"])
def test_json_says_the_same_without_what_a_terminal_obeys(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    print_json({"text": text, "rows": pl.DataFrame({text: [f"é {text}"]})})
    printed = capsys.readouterr().out
    assert text not in printed
    assert "é" in printed
    assert json.loads(printed) == {"text": text, "rows": [{text: f"é {text}"}]}


def test_a_cell_of_several_lines_stays_in_its_cell(capsys: pytest.CaptureFixture[str]) -> None:
    frame = pl.DataFrame({"a": ["first\nok: 7 files"], "b": ["z"]})
    print_table(frame, "Title", lines=True)
    lines = capsys.readouterr().out.splitlines()
    assert not any(line.startswith("ok: ") for line in lines)
    assert cell("x") == "x"
