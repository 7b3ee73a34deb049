"""What charts have in common: their rows, their layer axis, and ink for light and dark pages."""

from __future__ import annotations

from typing import Any, Final

import polars as pl
import polars.selectors as cs

from ptmech._text import visible
from ptmech.plots.registry import COLOURS

NEUTRAL: Final = "#808080"
"""A grey that can be seen on white and on black."""

_ON_A_DARK_PAGE: Final = "luminance(background) < 0.4 ? '#dddddd' : '#222222'"
INK: Final = {
    "expr": f"!background || background == 'transparent' ? '{NEUTRAL}' : {_ON_A_DARK_PAGE}"
}
"""Colour of text and rules: it follows the background that a chart is shown on."""

_SPACE: Final = "\N{MIDDLE DOT}"
"""What stands for a space at an end: every font has it."""
_DIGITS: Final = 8
"""Significant ones, of the numbers in a chart."""


def rows(frame: pl.DataFrame, alt: Any) -> Any:
    """Return the data of a chart, with every row.

    Numbers have eight significant digits. What is not a number is missing, row ids are texts (they
    are too large for the numbers of a web page), and characters that a page would obey are spelled
    out. Rows given like this have no types for altair to find: every encoding names its own, as in
    ``"layer:Q"``. In turn there may be as many rows as there are.
    """
    plain = frame.with_columns(
        pl.when(cs.float().is_finite()).then(cs.float().round_sig_figs(_DIGITS)),
        cs.by_dtype(pl.UInt64).cast(pl.String),
        cs.string().map_elements(visible, return_dtype=pl.String),
    )
    return alt.InlineData(values=plain.to_dicts())


def has_numbers(values: pl.Series) -> bool:
    """Whether there is any finite number: without one, an axis would have no ends."""
    return bool(values.is_finite().any())


def shown_token(token: str) -> str:
    r"""Return a token with its spaces at both ends, and its line breaks, to be seen.

    Examples
    --------
    >>> shown_token(" Paris"), shown_token("\n")
    ('·Paris', '\\n')
    """
    inner = token.strip(" ")
    ahead = len(token) - len(token.lstrip(" ")) if inner else len(token)
    behind = len(token) - len(token.rstrip(" ")) if inner else 0
    spelled = visible(inner).replace("\n", "\\n").replace("\t", "\\t")
    return _SPACE * ahead + spelled + _SPACE * behind


def as_they_come(values: pl.Series) -> list[Any]:
    """Return the distinct values of a column, in the order of their first rows."""
    return values.unique(maintain_order=True).to_list()


def layer_axis(alt: Any, title: str = "layer") -> Any:
    """Return the horizontal axis of a chart over layers: whole numbers, from first to last."""
    return alt.X(
        "layer:Q",
        title=title,
        axis=alt.Axis(tickMinStep=1, format="d"),
        scale=alt.Scale(nice=False, padding=6),
    )


def stroke_legend(alt: Any, **options: Any) -> Any:
    """Return a legend below the chart that shows lines as lines, whatever the marks are."""
    return alt.Legend(
        orient="bottom",
        labelLimit=320,
        symbolType="stroke",
        symbolOpacity=1,
        symbolStrokeWidth=2,
        **options,
    )


def position_colour(positions: pl.Series, alt: Any) -> Any:
    """Return a colour for each token position, the last token first."""
    ordered = positions.unique().sort(descending=True).to_list()
    few = len(ordered) <= len(COLOURS)
    return alt.Color(
        "position:O",
        title="position",
        sort=ordered,
        scale=alt.Scale(domain=ordered, range=COLOURS[: len(ordered)])
        if few
        # Neither end is too dark or too light for a page.
        else alt.Scale(domain=ordered, scheme={"name": "viridis", "extent": [0.3, 0.85]}),
    )


def nothing(title: str, reason: str, alt: Any) -> Any:
    """Return a chart that says why there is nothing in it."""
    return (
        alt.Chart(alt.InlineData(values=[{"reason": visible(reason)}]), title=title)
        .mark_text(color=INK, fontSize=12)
        .encode(text="reason:N", tooltip="reason:N")
        .properties(width=480, height=80)
    )
