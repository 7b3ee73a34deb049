"""Charts of the truthfulness perspective."""

from __future__ import annotations

from math import isnan
from typing import Any

import polars as pl

from ptmech._text import shortened
from ptmech.plots.drawing import (
    INK,
    as_they_come,
    has_numbers,
    layer_axis,
    nothing,
    rows,
    stroke_legend,
)
from ptmech.plots.registry import COLOURS, chart


@chart("TruthDirections")
def _truth_directions(result: Any, alt: Any) -> Any:
    """Length of the truth direction by layer."""
    return (
        alt.Chart(rows(result.frame, alt), width=480, height=280)
        .mark_line(point=True, color=COLOURS[0])
        .encode(
            x=layer_axis(alt),
            y=alt.Y("norm:Q", title="length, activation units"),
            tooltip=["layer:Q", alt.Tooltip("norm:Q", format=".4g"), "n_rows:Q", "n_true:Q"],
        )
        .properties(title=f"Length of the truth direction of {result.arguments['stage']}")
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
    title = "Agreement of the truth directions"
    if not has_numbers(frame["value"]):
        return nothing(title, "no cosine is a number", alt)
    names = list(series.values())
    return (
        alt.Chart(rows(frame, alt), title=title)
        .mark_line(point={"size": 22})
        .encode(
            x=layer_axis(alt),
            y=alt.Y("value:Q", title="cosine similarity", scale=alt.Scale(zero=False)),
            color=alt.Color(
                "series:N",
                title=None,
                scale=alt.Scale(domain=names, range=COLOURS[:4]),
                legend=stroke_legend(alt, columns=2),
            ),
            strokeDash=alt.StrokeDash(
                "series:N",
                title=None,
                scale=alt.Scale(domain=names, range=[[1, 0], [6, 3], [2, 2], [2, 4]]),
            ),
            tooltip=[
                "layer:Q",
                "series:N",
                alt.Tooltip("value:Q", title="cosine", format=".4f"),
            ],
        )
        .properties(width=480, height=280)
    )


@chart("TruthTransfer")
def _truth_transfer(result: Any, alt: Any) -> Any:
    """Accuracy of own and transferred probes on every held-out dataset, as a matrix."""
    columns = {
        **_readings(result),
        "difference": "transferred minus own",
    }
    intervals = [
        f"{_told(low, '.3f')} to {_told(high, '.3f')}".replace("-", "\N{MINUS SIGN}")
        for low, high in result.frame.select("accuracy_low", "accuracy_high").iter_rows()
    ]
    frame = result.frame.with_columns(
        reading=pl.col("probe").replace_strict(columns), interval=pl.Series(intervals)
    )
    cells = alt.Chart(rows(frame, alt)).encode(
        x=alt.X(
            "reading:N",
            sort=list(columns.values()),
            title=None,
            axis=alt.Axis(orient="top", labelAngle=0, labelLimit=180),
        ),
        y=alt.Y("dataset:N", sort=as_they_come(frame["dataset"]), title="dataset left out"),
        tooltip=[
            "dataset:N",
            "reading:N",
            alt.Tooltip("accuracy:Q", format=".3f"),
            alt.Tooltip("interval:N", title="accuracy, 95 %"),
            alt.Tooltip("auroc:Q", format=".3f"),
            alt.Tooltip("auroc_low:Q", format=".3f"),
            alt.Tooltip("auroc_high:Q", format=".3f"),
            "n_test:Q",
            "n_train:Q",
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
            # The cells are light on every page, and so what stands in them is dark.
            cells.mark_text(dy=-6, fontSize=13, color="#111").encode(
                text=alt.Text("accuracy:Q", format=".3f")
            ),
            cells.mark_text(dy=9, fontSize=10, color="#333").encode(text="interval:N"),
        )
        .resolve_scale(color="independent")
        .properties(
            title=f"Leave one dataset out, layer {result.layer}: accuracy and 95 % interval",
            width=600,
            height={"step": 40},
        )
    )


@chart("TruthSweep")
def _truth_sweep(result: Any, alt: Any) -> Any:
    """Accuracy by layer of own and transferred probes, mean over the datasets left out."""
    series = _readings(result)
    frame = result.frame.filter(
        pl.col("dataset") == "mean", pl.col("probe").is_in(list(series))
    ).with_columns(reading=pl.col("probe").replace_strict(series))
    probe = shortened(result.arguments["probe"])
    title = f"{probe} probes, leave one dataset out: mean and 95 % interval"
    if not has_numbers(frame["accuracy"]):
        return nothing(title, "no mean over the datasets left out", alt)
    names = list(series.values())
    base = alt.Chart(rows(frame, alt)).encode(
        x=layer_axis(alt),
        color=alt.Color(
            "reading:N",
            title=None,
            scale=alt.Scale(domain=names, range=COLOURS[:3]),
            legend=stroke_legend(alt),
        ),
        tooltip=[
            "layer:Q",
            "reading:N",
            *(
                alt.Tooltip(f"{measure}{end}:Q", format=".3f")
                for measure in ("accuracy", "auroc")
                for end in ("", "_low", "_high")
            ),
            "n_test:Q",
        ],
    )
    bands = base.mark_area(opacity=0.15).encode(
        y=alt.Y("accuracy_low:Q", title="accuracy", scale=alt.Scale(zero=False)),
        y2="accuracy_high:Q",
    )
    lines = base.mark_line(point={"size": 22}).encode(
        y="accuracy:Q",
        strokeDash=alt.StrokeDash(
            "reading:N",
            title=None,
            scale=alt.Scale(domain=names, range=[[1, 0], [6, 3], [2, 2]]),
        ),
    )
    return alt.layer(bands, lines).properties(title=title, width=480, height=280)


@chart("TruthEffects")
def _truth_effects(result: Any, alt: Any) -> Any:
    """Effect of each direction in each stage, with intervals and the answers it started from."""
    directions = ["own", "transferred", "random"]
    measured = [name for name, kind in result.frame.schema.items() if kind == pl.Float64]
    texts: dict[str, list[str]] = {"model": [], "condition": [], "value": []}
    for row in result.frame.iter_rows(named=True):
        texts["model"].append(
            f"{row['stage']}: before, P is {_told(row['p_true_before'], '+.2f')} for true and "
            f"{_told(row['p_false_before'], '+.2f')} for false statements, "
            f"AUROC {_told(row['auroc_before'], '.2f')}"
        )
        source = f" from {row['direction_stage']}" if row["direction"] == "transferred" else ""
        texts["condition"].append(f"{row['direction']}{source}")
        texts["value"].append(
            f"{_told(row['effect'], '.3f')}  "
            f"[{_told(row['effect_low'], '.3f')}, {_told(row['effect_high'], '.3f')}]"
        )
    frame = result.frame.drop("layers").with_columns(**{k: pl.Series(v) for k, v in texts.items()})
    # The scale always shows a complete effect, so that a small one looks small.
    reached = [0.0, 1.0, *frame["effect_low"], *frame["effect_high"]]
    domain = [
        pick(value for value in reached if value is not None and not isnan(value))
        for pick in (min, max)
    ]
    base = alt.Chart(rows(frame, alt)).encode(
        y=alt.Y(
            "condition:N",
            title=None,
            sort=as_they_come(
                frame.sort(pl.col("direction").cast(pl.Enum(directions)), maintain_order=True)[
                    "condition"
                ]
            ),
            axis=alt.Axis(labelLimit=240),
        ),
        tooltip=[
            "stage:N",
            "condition:N",
            "dataset:N",
            "layer:Q",
            "n:Q",
            *(alt.Tooltip(f"{name}:Q", format=".3f") for name in measured),
        ],
    )
    colour = alt.Color(
        "direction:N",
        legend=None,
        scale=alt.Scale(domain=directions, range=[*COLOURS[:2], COLOURS[4]]),
    )
    bars = base.mark_bar(height={"band": 0.6}, opacity=0.4).encode(
        x=alt.X(
            "effect:Q",
            title="share of the way to the other answer",
            scale=alt.Scale(domain=domain),
            axis=alt.Axis(grid=False),
            stack=None,
        ),
        color=colour,
    )
    whiskers = base.mark_rule(strokeWidth=2).encode(
        x="effect_low:Q", x2="effect_high:Q", color=colour
    )
    points = base.mark_point(filled=True, size=50, opacity=1).encode(x="effect:Q", color=colour)
    numbers = base.mark_text(align="left", dx=6, fontSize=11, color=INK).encode(
        x="effect_high:Q", text="value:N"
    )
    return (
        alt.layer(bars, whiskers, points, numbers)
        .properties(width=480, height={"step": 28})
        .facet(
            row=alt.Row(
                "model:N",
                title=None,
                sort=as_they_come(frame["model"]),
                header=alt.Header(orient="top", labelAngle=0, labelAnchor="start", labelLimit=640),
            )
        )
        .resolve_scale(y="independent")
        .properties(title="Truth directions added to false statements, subtracted from true ones")
    )


def _told(value: float | None, form: str) -> str:
    return "?" if value is None or isnan(value) else format(value, form)


def _readings(result: Any) -> dict[str, str]:
    """Say of each probe which stage it is from and which one it reads."""
    earlier, later = result.arguments["earlier"], result.arguments["later"]
    return {
        "own_earlier": f"{earlier} probe on {earlier}",
        "own_later": f"{later} probe on {later}",
        "transferred": f"{earlier} probe on {later}",
    }
