"""What the command line prints: tables for people, JSON for programs."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TextIO

import polars as pl
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from ptmech._output import Discreet
from ptmech._privacy import Private
from ptmech._text import is_plain, visible
from ptmech.results import Result

WIDTH: Final = 200
"""Characters of the widest line. A narrower terminal folds lines; digits are never cut off."""


def print_json(payload: Mapping[str, Any]) -> None:
    """Print one JSON document: frames as lists of objects, NaN and infinities as null.

    What is private is hidden within each text, where it cannot break the document; numbers and all
    other texts are those of the payload. Letters of all scripts stay as they are, where the stream
    has them; what a terminal would obey is escaped, as JSON can.
    """
    hidden = Private.of_this_machine().hidden
    plain = _plain(payload, hidden)
    stream = sys.stdout.beneath() if isinstance(sys.stdout, Discreet) else sys.stdout
    document = json.dumps(plain, ensure_ascii=False, allow_nan=False)
    if not _has_letters_of(document, stream):
        document = json.dumps(plain, allow_nan=False)
    if not is_plain(document):
        document = "".join(
            character if is_plain(character) else f"\\u{ord(character):04x}"
            for character in document
        )
    typer.echo(document, file=stream)


def result_payload(result: Result) -> dict[str, Any]:
    """Return what a program needs of a result: its numbers and the arguments they come from."""
    return {"arguments": result.arguments, "rows": result.frame}


def print_table(frame: pl.DataFrame, title: str, *, lines: bool = False) -> None:
    """Print a frame as a table; in colour only on a terminal.

    Parameters
    ----------
    frame
        Its column names become the headings, with spaces for underscores.
    title
        One line above the table.
    lines
        Whether to rule off every row, for cells of several lines.
    """
    # Sentences fold where the terminal ends; numbers would lose digits.
    narrow = lines and sys.stdout is not None and sys.stdout.isatty()
    width = min(WIDTH, shutil.get_terminal_size().columns) if narrow else WIDTH
    console = Console(width=width, markup=False, highlight=False, emoji=False)
    table = Table(
        box=box.HORIZONTALS if lines else box.SIMPLE_HEAD, show_lines=lines, pad_edge=False
    )
    for name, dtype in frame.schema.items():
        table.add_column(
            cell(name.replace("_", " ")), justify="right" if dtype.is_numeric() else "left"
        )
    for row in frame.iter_rows():
        table.add_row(*map(cell, row))
    with console.capture() as capture:
        console.print(table)
    drawn = [line.rstrip() for line in capture.get().splitlines()]
    typer.echo("\n".join([visible(title), *(line for line in drawn if line), ""]))


def print_line(text: str) -> None:
    """Print text as it is, but for what a terminal would obey."""
    typer.echo(visible(text))


def interval(frame: pl.DataFrame, value: str, low: str, high: str) -> pl.Series:
    """Return a value with its interval as text, ``0.714 [0.660, 0.752]``."""
    texts = [
        f"{cell(middle)} [{cell(bottom)}, {cell(top)}]"
        for middle, bottom, top in frame.select(value, low, high).iter_rows()
    ]
    return pl.Series(value, texts, dtype=pl.String)


def cell(value: object) -> str:
    """Return one value as short text; an empty text for what is missing.

    Examples
    --------
    >>> cell(0.98765), cell(0.0000123), cell(None), cell(True), cell(12)
    ('0.988', '1.23e-05', '', 'yes', '12')
    """
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case float():
            size = abs(value)
            return f"{value:.3g}" if 0 < size < 1e-3 or size >= 1e4 else f"{value:.3f}"
        case _:
            return visible(str(value))


def _has_letters_of(text: str, stream: TextIO | None) -> bool:
    """Whether a stream can write a text; there may be none."""
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _plain(value: Any, hidden: Callable[[str], str]) -> Any:
    match value:
        case pl.DataFrame():
            return [_plain(row, hidden) for row in value.iter_rows(named=True)]
        case Mapping():
            shown: dict[str, Any] = {}
            for key, item in value.items():
                name = hidden(str(key))
                # Two keys that both are hidden stay two.
                shown[f"{name} {len(shown)}" if name in shown else name] = _plain(item, hidden)
            return shown
        case str():
            return hidden(value)
        case float() if not math.isfinite(value):
            return None
        case Sequence():
            return [_plain(item, hidden) for item in value]
        case _:
            return value
