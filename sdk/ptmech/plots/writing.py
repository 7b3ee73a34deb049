"""Charts that are read: texts at places, lines broken beforehand."""

from __future__ import annotations

import textwrap
from typing import Any, Final

import polars as pl

from ptmech._text import visible
from ptmech.plots.drawing import INK, rows

LINE: Final = 15
"""Height of a line, in pixels."""
_LETTER: Final = 6.1
"""Width of a letter to count with, in pixels: most are narrower."""


def lines_of(text: str, width: float, most: int = 6) -> list[str]:
    """Break a text into lines of some width in pixels; what is too long ends in an ellipsis.

    Examples
    --------
    >>> lines_of("to be or not to be", 60)
    ['to be or', 'not to be']
    """
    plain = " ".join(visible(text).replace("\n", " \\n ").split())
    return textwrap.wrap(
        plain, max(int(width / _LETTER), 8), max_lines=most, placeholder=" \N{HORIZONTAL ELLIPSIS}"
    )


def texts(pieces: pl.DataFrame, alt: Any, *, bold: bool = False, colour: Any = INK) -> Any:
    """Return texts, each with its upper left corner at a place in pixels.

    Parameters
    ----------
    pieces
        ``x``, ``y`` and ``text``, its lines divided by line breaks; every other column is told in
        the tooltip.
    alt
        The altair module.
    bold
        Whether the letters are.
    colour
        Of the letters.
    """
    told = [name for name in pieces.columns if name not in {"x", "y", "text"}] or ["text"]
    return (
        alt.Chart(rows(pieces, alt))
        .mark_text(
            align="left",
            baseline="top",
            lineBreak="\n",
            lineHeight=LINE,
            fontSize=11,
            fontWeight="bold" if bold else "normal",
            color=colour,
        )
        .encode(
            x=alt.X("x:Q", scale=None, axis=None),
            y=alt.Y("y:Q", scale=None, axis=None),
            text="text:N",
            tooltip=[f"{name}:N" for name in told],
        )
    )
