"""Charts of the knowledge perspective."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import polars as pl

from ptmech._text import shortened, visible
from ptmech.plots.drawing import rows, shown_token
from ptmech.plots.registry import chart

_LEAST_DIFFERENCE: Final = 0.1
"""Half the range of a difference map at the least: differences below a hundredth look like none."""


@chart("Trace")
def _trace(result: Any, alt: Any) -> Any:
    """Share of the fact that each patched cell restores: layers upwards, tokens to the right."""
    title = alt.Title(
        visible(f"{result.dataset}: {result.source} into {result.target}".removeprefix(": ")),
        subtitle=_doubt(result.frame) or "share of the true prompt's effect that a patch restores",
    )
    return _map(
        rows(_labelled(result.frame), alt), result.frame, _restored(alt), alt, widest=720
    ).properties(title=title)


@chart("KnowledgeComparison")
def _knowledge_comparison(result: Any, alt: Any) -> Any:
    """Own traces side by side with their difference; below them, the traces across stages."""
    earlier, later = result.arguments["earlier"], result.arguments["later"]
    runs = {f"{source} into {target}": trace for (source, target), trace in result.traces.items()}
    labelled = pl.concat(
        _labelled(trace.frame).with_columns(run=pl.lit(run)) for run, trace in runs.items()
    )
    data = rows(labelled, alt)

    def panel(run: str, shade: Any) -> Any:
        return (
            _map(data, runs[run].frame, shade, alt)
            .transform_filter(alt.datum.run == run)
            .properties(title=run)
        )

    own = [run for run in (f"{earlier} into {earlier}", f"{later} into {later}") if run in runs]
    across = [run for run in runs if run not in own]
    ordered = own + across
    # All share one scale, and the first one tells it.
    panels = {run: panel(run, _restored(alt, told=run == ordered[0])) for run in ordered}
    lines = [[panels[run] for run in own], [panels[run] for run in across]]
    if len(own) == 2:
        lines[0].append(_difference(runs[own[0]], runs[own[1]], f"{later} minus {earlier}", alt))
    doubt = next(filter(None, (_doubt(trace.frame) for trace in runs.values())), "")
    return alt.vconcat(
        *(alt.hconcat(*line).resolve_scale(color="independent") for line in lines if line)
    ).properties(
        title=alt.Title(
            f"{result.arguments['dataset']}: where a patch restores the fact",
            subtitle=doubt or "activations of true prompts, copied from one stage into another",
        )
    )


def _difference(earlier: Any, later: Any, title: str, alt: Any) -> Any:
    """Draw the later stage's own trace minus the earlier one's, cell by cell."""
    difference = later.scaled - earlier.scaled
    frame = _labelled(later.frame).with_columns(
        difference=pl.Series(difference.ravel()),
        scaled_earlier=pl.Series(earlier.scaled.ravel()),
    )
    found = np.abs(difference[np.isfinite(difference)])
    bound = max(_LEAST_DIFFERENCE, found.max(initial=0.0))
    shade = alt.Color(
        "difference:Q",
        title="difference",
        scale=alt.Scale(scheme="purpleorange", domain=[-bound, bound], domainMid=0),
        legend=alt.Legend(orient="bottom", gradientLength=120, tickCount=3),
    )
    numbers = [
        alt.Tooltip("difference:Q", format="+.4f"),
        alt.Tooltip("scaled_earlier:Q", title="earlier", format=".3f"),
        alt.Tooltip("scaled:Q", title="later", format=".3f"),
    ]
    at_most = f", {found.max():.3f} at most" if found.size else ""
    return _map(rows(frame, alt), frame, shade, alt, numbers=numbers).properties(
        title=f"{title}{at_most}"
    )


def _restored(alt: Any, *, told: bool = True) -> Any:
    """Return the colour of what a patch restores."""
    return alt.Color(
        "scaled:Q",
        title="0 unpatched, 1 true prompt",
        scale=alt.Scale(scheme="viridis", domain=[0, 1], clamp=True),
        legend=alt.Legend(orient="bottom", gradientLength=120, tickCount=3) if told else None,
    )


def _map(
    data: Any,
    frame: pl.DataFrame,
    shade: Any,
    alt: Any,
    *,
    numbers: list[Any] | None = None,
    widest: int = 420,
) -> Any:
    """Draw cells by layer and column, of some size as far as a page goes."""
    columns, layers = frame["column"].n_unique(), frame["layer"].n_unique()
    return (
        alt.Chart(data)
        .mark_rect()
        .encode(
            x=alt.X(
                "label:N",
                sort=alt.SortField("column"),
                title="token of the first pair, and its role",
                axis=alt.Axis(labelLimit=200, labelAngle=-90),
            ),
            y=alt.Y(
                "layer:O",
                sort="descending",
                title="layer (resid_post)",
                axis=alt.Axis(labelOverlap=True, labelSeparation=2),
            ),
            color=shade,
            tooltip=[
                "layer:O",
                "label:N",
                *(
                    numbers
                    or [
                        alt.Tooltip("logit_difference:Q", format=".2f"),
                        alt.Tooltip("scaled:Q", format=".3f"),
                    ]
                ),
            ],
        )
        .properties(
            width=_length(columns, least=180, most=widest, cell=36),
            height=_length(layers, least=60, most=420, cell=11),
        )
    )


def _length(cells: int, *, least: int, most: int, cell: int) -> int:
    """Return how many pixels some cells take: whole ones each, or lines show between them."""
    size = max(min(cell, most // cells), 2)
    return cells * max(size, -(-least // cells))


def _labelled(frame: pl.DataFrame) -> pl.DataFrame:
    """Name each column by its place, token and role."""
    token = pl.col("token").map_elements(_shown, return_dtype=pl.String)
    return frame.with_columns(label=pl.format("{} {} ({})", "column", token, "role"))


def _shown(token: str) -> str:
    return shortened(shown_token(token), 20)


def _doubt(frame: pl.DataFrame) -> str:
    """Say why a map is empty; nothing if it is not."""
    if frame["scaled"].is_nan().all():
        return "the true prompt changes nothing: there is nothing to restore, and no scale"
    return ""
