"""Charts of the truthfulness perspective."""

from __future__ import annotations

from typing import Any

import polars as pl

from ptmech.plots.registry import COLOURS, chart


@chart("TruthDirections")
def _truth_directions(result: Any, alt: Any) -> Any:
    """Length of the truth direction by layer."""
    return (
        alt.Chart(result.frame, title=f"Truth direction of {result.arguments['stage']}")
        .mark_line(point=True, color=COLOURS[0])
        .encode(
            x=alt.X("layer:Q", title="layer", axis=alt.Axis(tickMinStep=1)),
            y=alt.Y("norm:Q", title="length, activation units"),
            tooltip=["layer", alt.Tooltip("norm", format=".4g"), "n_rows", "n_true"],
        )
    )


@chart("TruthSimilarity")
def _truth_similarity(result: Any, alt: Any) -> Any:
    """Cosine between the stages by layer, beside what split halves of one stage reach."""
    earlier, later = result.arguments["earlier"], result.arguments["later"]
    series = {
        "cosine": f"{earlier} and {later}",
        "split_half_between": f"{earlier} and {later}, disjoint halves",
        "split_half_earlier": f"{earlier}, disjoint halves",
        "split_half_later": f"{later}, disjoint halves",
    }
    frame = result.frame.unpivot(
        list(series), index="layer", variable_name="series", value_name="value"
    ).with_columns(pl.col("series").replace_strict(series))
    names = list(series.values())
    return (
        alt.Chart(frame, title="Agreement of the truth directions", width=480, height=280)
        .mark_line(point=True)
        .encode(
            x=alt.X("layer:Q", title="layer", axis=alt.Axis(tickMinStep=1)),
            y=alt.Y("value:Q", title="cosine similarity", scale=alt.Scale(zero=False)),
            color=alt.Color(
                "series:N",
                title=None,
                scale=alt.Scale(domain=names, range=COLOURS[:4]),
                legend=alt.Legend(orient="bottom", columns=2, labelLimit=320, symbolType="stroke"),
            ),
            strokeDash=alt.StrokeDash(
                "series:N",
                title=None,
                scale=alt.Scale(domain=names, range=[[1, 0], [6, 3], [2, 2], [2, 2]]),
            ),
            tooltip=["layer", "series", alt.Tooltip("value:Q", title="cosine", format=".4f")],
        )
    )


@chart("TruthTransfer")
def _truth_transfer(result: Any, alt: Any) -> Any:
    """Accuracy of own and transferred probes on every held-out dataset, as a matrix."""
    earlier, later = result.arguments["earlier"], result.arguments["later"]
    columns = {
        "own_earlier": f"{earlier} probe on {earlier}",
        "own_later": f"{later} probe on {later}",
        "transferred": f"{earlier} probe on {later}",
        "difference": "transferred minus own",
    }
    intervals = [
        f"{low:.3f} to {high:.3f}"
        for low, high in result.frame.select("accuracy_low", "accuracy_high").iter_rows()
    ]
    frame = result.frame.with_columns(
        reading=pl.col("probe").replace_strict(columns), interval=pl.Series(intervals)
    )
    cells = alt.Chart(
        frame, title=f"Leave one dataset out, layer {result.layer}: accuracy and 95 % interval"
    ).encode(
        x=alt.X(
            "reading:N",
            sort=list(columns.values()),
            title=None,
            axis=alt.Axis(orient="top", labelAngle=0, labelLimit=180),
        ),
        y=alt.Y(
            "dataset:N", sort=frame["dataset"].unique(maintain_order=True).to_list(), title=None
        ),
        tooltip=[
            "dataset",
            "reading",
            alt.Tooltip("accuracy", format=".3f"),
            alt.Tooltip("interval", title="accuracy, 95 %"),
            alt.Tooltip("auroc", format=".3f"),
            alt.Tooltip("auroc_low", format=".3f"),
            alt.Tooltip("auroc_high", format=".3f"),
            "n_test",
            "n_train",
        ],
    )
    is_difference = alt.datum.probe == "difference"
    shade = alt.Color(
        "accuracy:Q",
        legend=None,
        scale=alt.Scale(domain=[0.5, 1], range=["#f7fbff", "#6baed6"], clamp=True),
    )
    tilt = alt.Color(
        "accuracy:Q",
        legend=None,
        scale=alt.Scale(scheme="purpleorange", domain=[-0.5, 0.5], reverse=True, clamp=True),
    )
    return (
        alt.layer(
            cells.transform_filter(~is_difference).mark_rect(stroke="white").encode(color=shade),
            cells.transform_filter(is_difference).mark_rect(stroke="white").encode(color=tilt),
            cells.mark_text(dy=-6, fontSize=13).encode(text=alt.Text("accuracy:Q", format=".3f")),
            cells.mark_text(dy=9, fontSize=10, color="#444").encode(text="interval:N"),
        )
        .resolve_scale(color="independent")
        .properties(width=560, height={"step": 40})
    )
