"""What a report is made of: figures, each a chart, its table and the line that draws it again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from ptmech.errors import DataError, NotStoredError
from ptmech.results import Result

Spec = dict[str, Any]
"""A Vega-Lite specification with its data."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One thing to look at.

    Attributes
    ----------
    title, caption
        What is shown, and how to read it.
    code
        A line of Python that draws it again, where ``artifact`` is the loaded artifact.
    chart
        Vega-Lite specification; None for a figure that is a table, or that cannot be drawn.
    table
        The numbers behind it.
    missing
        Why there is nothing to show; empty if there is.
    """

    title: str
    caption: str
    code: str
    chart: Spec | None = None
    table: pl.DataFrame | None = None
    missing: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """The figures of one perspective.

    Attributes
    ----------
    name
        Of the perspective.
    question
        What it asks of a pair of stages.
    figures
        In the order of reading.
    """

    name: str
    question: str
    figures: Sequence[Figure]


def figure(
    title: str,
    caption: str,
    code: str,
    analyse: Callable[[], Result],
    *,
    table: Callable[[Any], pl.DataFrame] | None = None,
) -> Figure:
    """Run an analysis and draw it; what the artifact does not hold becomes a figure that says so.

    Parameters
    ----------
    title, caption, code
        As in :class:`Figure`.
    analyse
        Computes the result.
    table
        What of the result to list; its frame if None.

    Raises
    ------
    PrerequisiteError
        If altair is missing.
    IntegrityError, FormatError
        If the artifact is damaged: a report must not leave that out.
    """
    try:
        result = analyse()
        chart = result.plot().to_dict()
    except (NotStoredError, DataError) as reason:
        return Figure(title=title, caption=caption, code=code, missing=str(reason))
    frame = result.frame if table is None else table(result)
    return Figure(title=title, caption=caption, code=code, chart=chart, table=frame)
