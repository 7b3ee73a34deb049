"""Charts of the knowledge perspective."""

from __future__ import annotations

from typing import Any

import polars as pl

from ptmech.plots.registry import chart


@chart("Trace")
def _trace(result: Any, alt: Any) -> Any:
    """Share of the fact that each patched cell restores: layers upwards, tokens to the right."""
    title = f"{result.dataset}: {result.source} into {result.target}"
    return _trace_map(result.frame, alt).properties(title=title)


@chart("KnowledgeComparison")
def _knowledge_comparison(result: Any, alt: Any) -> Any:
    """Place the traces that were compared side by side."""
    runs = {f"{source} into {target}": trace for (source, target), trace in result.traces.items()}
    frame = pl.concat(trace.frame.with_columns(run=pl.lit(run)) for run, trace in runs.items())
    return (
        _trace_map(frame, alt)
        .facet(alt.Facet("run:N", title=None, sort=list(runs)), columns=2)
        .properties(title=str(result.arguments["dataset"]))
    )


def _trace_map(frame: pl.DataFrame, alt: Any) -> Any:
    """Draw cells by layer and column; a column is labelled by its place and token."""
    labelled = frame.with_columns(
        label=pl.concat_str("column", pl.col("token").str.strip_chars(), separator=" ")
    ).with_columns(pl.col("scaled").fill_nan(None))
    places = labelled.unique("column").sort("column")
    return (
        alt.Chart(labelled)
        .mark_rect()
        .encode(
            x=alt.X("label:N", sort=places["label"].to_list(), title="token of the first pair"),
            y=alt.Y("layer:O", sort="descending", title="layer (resid_post)"),
            color=alt.Color(
                "scaled:Q",
                title="0 unpatched, 1 true prompt",
                scale=alt.Scale(scheme="viridis", domain=[0, 1], clamp=True),
            ),
            tooltip=[
                "layer",
                "token",
                "role",
                alt.Tooltip("logit_difference", format=".2f"),
                alt.Tooltip("scaled", format=".2f"),
            ],
        )
    )
