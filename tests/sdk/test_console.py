"""What is printed of texts that others wrote: shown, never obeyed."""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stdout
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptmech._output import discreet_output
from ptmech._privacy import Private
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


HONEST: dict[str, Any] = {
    "kind": "statements",
    "bytes": 1512099333,
    "share": 0.7142857142857143,
    "rows": [{"layer": 12, "text": "twelve"}],
}


@pytest.mark.parametrize(
    "secret",
    [
        "1512099333",
        "0.7142857142857143",
        "statements",
        '"kind": ',
        '{"layer": 12',
        '"rows": [{"layer',
    ],
)
def test_no_secret_breaks_a_document(
    secret: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("HF_TOKEN", "SOME_API_KEY", "SOME_PASSWORD"):
        monkeypatch.setenv(name, secret)
    with discreet_output():
        print_json(HONEST)
    assert json.loads(capsys.readouterr().out) == HONEST


@pytest.mark.parametrize(
    "secret", ['1"}open-sesame', "1\\open-sesame", "1é-open-sesame", "open-sesame-1"]
)
def test_secrets_are_hidden_within_the_texts_of_a_document(
    secret: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SOME_TOKEN", secret)
    key = "-----BEGIN PRIVATE KEY-----\nMII\n-----END PRIVATE KEY-----"
    payload = {"a": secret, "b": [f"x {secret}.", 7], f"of {secret}": pl.DataFrame({"k": [key]})}
    with discreet_output():
        print_json(payload)
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"a": "***", "b": ["x ***.", 7], "of ***": [{"k": "***"}]}


def test_keys_that_are_hidden_stay_as_many(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"?token=one": 1, "?token=two": 2, "three": 3})
    assert sorted(json.loads(capsys.readouterr().out).values()) == [1, 2, 3]


LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
)
TEXTS = st.text() | st.sampled_from(
    ["/home/keeper", "?token=1", "https://a:b@c", "bearer a1b2c3d4"]
)


@given(
    st.dictionaries(
        st.text(st.characters(categories=["L"])), LEAVES | TEXTS | st.lists(LEAVES | TEXTS)
    )
)
def test_a_document_is_the_payload_but_for_what_texts_hide(payload: dict[str, Any]) -> None:
    written = io.StringIO()
    with redirect_stdout(written), discreet_output():
        print_json(payload)
    printed = json.loads(written.getvalue())
    hidden = Private.of_this_machine().hidden

    def same(shown: object, stored: object) -> bool:
        if isinstance(stored, list):
            return isinstance(shown, list) and list(map(same, shown, stored)) == [True] * len(
                stored
            )
        return shown == (hidden(stored) if isinstance(stored, str) else stored)

    assert printed.keys() == payload.keys()
    assert all(same(printed[key], payload[key]) for key in payload)


def test_letters_that_a_stream_lacks_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="latin-1"))
    print_json({"é": "\N{SNOWMAN} \ud800"})
    assert json.loads(raw.getvalue()) == {"é": "\N{SNOWMAN} \ud800"}


def test_a_cell_of_several_lines_stays_in_its_cell(capsys: pytest.CaptureFixture[str]) -> None:
    frame = pl.DataFrame({"a": ["first\nok: 7 files"], "b": ["z"]})
    print_table(frame, "Title", lines=True)
    lines = capsys.readouterr().out.splitlines()
    assert not any(line.startswith("ok: ") for line in lines)
    assert cell("x") == "x"
