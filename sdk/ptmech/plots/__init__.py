"""Charts of results, in altair.

Every result draws itself with :meth:`ptmech.results.Result.plot`. The charts are registered by the
name of the result's class, so that this module needs nothing of the analyses, and altair is only
imported when something is drawn. Colours come from schemes that stay apart for colour-blind eyes;
every mark has a tooltip with its numbers; and all can be read on light and on dark pages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ptmech.errors import DataError, PrerequisiteError
from ptmech.plots import (
    completions,
    confidence,
    knowledge,
    projections,
    refusal,
    summary,
    truth,
)
from ptmech.plots.drawing import nothing
from ptmech.plots.registry import CHARTS, COLOURS, chart

if TYPE_CHECKING:
    import altair as alt

    from ptmech.results import Result

__all__ = [
    "CHARTS",
    "COLOURS",
    "chart",
    "completions",
    "confidence",
    "draw",
    "knowledge",
    "projections",
    "refusal",
    "summary",
    "truth",
]


def draw(result: Result) -> alt.Chart | alt.LayerChart | alt.FacetChart | alt.VConcatChart:
    """Draw a result as an altair chart; one without rows as a chart that says so.

    Parameters
    ----------
    result
        What an analysis returned.

    Raises
    ------
    PrerequisiteError
        If altair is missing.
    DataError
        If there is no chart for results of this class.
    """
    drawing = next(
        (CHARTS[kind.__name__] for kind in type(result).__mro__ if kind.__name__ in CHARTS), None
    )
    if drawing is None:
        known = ", ".join(sorted(CHARTS))
        raise DataError(f"no chart for a {type(result).__name__}; there are charts for: {known}")
    try:
        import altair as alt
    except ImportError as error:
        raise PrerequisiteError("charts need altair: pip install 'ptmech[report]'") from error
    if getattr(result, drawing.table).is_empty():
        return nothing(type(result).__name__, "no rows, nothing to draw", alt)
    return drawing.draw(result, alt)
