"""Charts of the confidence perspective."""

from __future__ import annotations

from typing import Any

import polars as pl

from ptmech.plots.registry import COLOURS, chart

_MAX_POINTS = 2000
"""Neurons that are no candidates, drawn for each stage; more than this only makes a chart slow."""


@chart("ConfidenceComparison")
def _confidence_comparison(result: Any, alt: Any) -> Any:
    """Norm against logit variance of the last MLP's neurons, the candidates marked."""
    stages = [result.arguments["earlier"], result.arguments["later"]]
    drawn = result.neurons.filter(pl.col("logit_variance") > 0)
    others = pl.concat(
        rows.sample(min(rows.height, _MAX_POINTS), seed=0)
        for _, rows in drawn.filter(~pl.col("candidate")).group_by("stage", maintain_order=True)
    )
    encoding = {
        "x": alt.X(
            "logit_variance:Q", title="logit variance", scale=alt.Scale(type="log", nice=False)
        ),
        "y": alt.Y("norm:Q", title="norm of the output weights", scale=alt.Scale(zero=False)),
        "shape": alt.Shape(
            "stage:N", sort=stages, scale=alt.Scale(domain=stages, range=["circle", "cross"])
        ),
        "tooltip": [
            "stage",
            "neuron",
            alt.Tooltip("norm", format=".4g"),
            alt.Tooltip("logit_variance", format=".3g"),
            alt.Tooltip("null_space_fraction", format=".3f"),
            alt.Tooltip("ratio", format=".3f"),
        ],
    }
    candidates = alt.Chart(drawn.filter("candidate")).mark_point(size=80, strokeWidth=2, opacity=1)
    overlap = f"overlap {result.overlap:.2f}, by chance {result.chance_overlap:.3f}"
    return alt.layer(
        alt.Chart(others).mark_point(size=12, color="#999999", opacity=0.35).encode(**encoding),
        candidates.encode(
            **encoding,
            color=alt.Color(
                "stage:N",
                title="candidates",
                sort=stages,
                scale=alt.Scale(domain=stages, range=COLOURS[:2]),
            ),
        ),
    ).properties(
        title=alt.Title("Entropy-neuron candidates", subtitle=overlap), width=480, height=320
    )
