"""Charts of the refusal perspective."""

from __future__ import annotations

from typing import Any

import polars as pl

from ptmech.plots.drawing import (
    INK,
    NEUTRAL,
    as_they_come,
    layer_axis,
    position_colour,
    rows,
    stroke_legend,
)
from ptmech.plots.registry import COLOURS, chart


@chart("RefusalDirections")
def _refusal_directions(result: Any, alt: Any) -> Any:
    """Length of the refusal direction by layer, a line for each position."""
    return (
        alt.Chart(rows(result.frame, alt), width=480, height=280)
        .mark_line(point={"size": 22})
        .encode(
            x=layer_axis(alt, "layer (resid_pre)"),
            y=alt.Y("norm:Q", title="length, activation units"),
            color=position_colour(result.frame["position"], alt),
            tooltip=[
                "position:O",
                "layer:Q",
                alt.Tooltip("norm:Q", format=".4g"),
                "n_harmful:Q",
                "n_harmless:Q",
            ],
        )
        .properties(title=f"Length of the refusal direction of {result.stage}")
    )


@chart("RefusalSimilarity")
def _refusal_similarity(result: Any, alt: Any) -> Any:
    """Cosine between the stages by layer, beside what split halves reach, a panel a position."""
    between, within = f"{result.earlier} and {result.later}", "disjoint halves of one stage"
    halves = f"{between}, disjoint halves"
    names = [between, halves, within]
    frame = (
        result.frame.with_columns(
            pl.col("cosine").alias(between),
            pl.col("split_half_between").alias(halves),
            ((pl.col("split_half_earlier") + pl.col("split_half_later")) / 2).alias(within),
        )
        .unpivot(
            names,
            index=["position", "layer", "norm_earlier", "norm_later"],
            variable_name="series",
            value_name="value",
        )
        .sort(pl.col("position"), "layer", descending=[True, False])
        .with_columns(place=pl.format("position {}", "position"))
    )
    alone = frame["position"].n_unique() == 1
    return (
        alt.Chart(rows(frame, alt))
        .mark_line(point={"size": 18})
        .encode(
            x=layer_axis(alt, "layer (resid_pre)"),
            y=alt.Y("value:Q", title="cosine similarity"),
            color=alt.Color(
                "series:N",
                title=None,
                scale=alt.Scale(domain=names, range=COLOURS[:3]),
                legend=stroke_legend(alt),
            ),
            strokeDash=alt.StrokeDash(
                "series:N",
                title=None,
                scale=alt.Scale(domain=names, range=[[1, 0], [6, 3], [2, 2]]),
            ),
            tooltip=[
                "position:O",
                "layer:Q",
                "series:N",
                alt.Tooltip("value:Q", title="cosine", format=".3f"),
                alt.Tooltip("norm_earlier:Q", format=".4g"),
                alt.Tooltip("norm_later:Q", format=".4g"),
            ],
        )
        .properties(width=480 if alone else 220, height=280 if alone else 160)
        .facet(
            alt.Facet("place:N", title=None, sort=as_they_come(frame["place"])),
            columns=3,
        )
        .properties(title="Agreement of the refusal directions, by token position")
    )


@chart("RefusalScores")
def _refusal_scores(result: Any, alt: Any) -> Any:
    """Share of completions that refuse, with 95 % intervals, by stage, prompts and direction."""
    directions = ["none", "own", "transferred", "transferred_own_length", "random"]
    origin = pl.when(pl.col("direction").str.starts_with("transferred")).then(
        pl.lit("from ") + pl.col("direction_stage")
    )
    several = result.frame["scale"].drop_nulls().n_unique() > 1
    factor = pl.when(pl.lit(several)).then(pl.lit("times ") + pl.col("scale").cast(pl.String))
    condition = pl.concat_str(
        "intervention",
        pl.col("direction").str.replace_all("_", " "),
        origin,
        factor,
        separator=" ",
        ignore_nulls=True,
    )
    frame = result.frame.with_columns(
        prompts=pl.col("prompts") + " prompts",
        condition=pl.when(pl.col("intervention") == "none")
        .then(pl.lit("no intervention"))
        .otherwise(condition),
    )
    base = alt.Chart(rows(frame, alt)).encode(
        y=alt.Y(
            "condition:N",
            title=None,
            sort=as_they_come(
                frame.sort(pl.col("direction").cast(pl.Enum(directions)), maintain_order=True)[
                    "condition"
                ]
            ),
            axis=alt.Axis(labelLimit=280),
        ),
        color=alt.Color(
            "direction:N",
            legend=None,
            scale=alt.Scale(domain=directions, range=[NEUTRAL, *COLOURS[:3], COLOURS[4]]),
        ),
        tooltip=[
            "stage:N",
            "prompts:N",
            "condition:N",
            "direction_stage:N",
            alt.Tooltip("refusal_rate:Q", format=".3f"),
            alt.Tooltip("low:Q", format=".3f"),
            alt.Tooltip("high:Q", format=".3f"),
            "n:Q",
            alt.Tooltip("plain_text_loss:Q", format=".3f"),
        ],
    )
    bars = base.mark_bar(height={"band": 0.7}, opacity=0.4).encode(
        x=alt.X(
            "refusal_rate:Q",
            title="share that refuses, 95 % interval",
            scale=alt.Scale(domain=[0, 1]),
            stack=None,
        )
    )
    whiskers = base.mark_rule(strokeWidth=2).encode(x="low:Q", x2="high:Q")
    points = base.mark_point(filled=True, size=50, opacity=1).encode(x="refusal_rate:Q")
    numbers = base.mark_text(align="left", dx=6, fontSize=10, color=INK).encode(
        x="high:Q", text=alt.Text("refusal_rate:Q", format=".2f"), color=alt.value(INK)
    )
    return (
        alt.layer(bars, whiskers, points, numbers)
        .properties(width=280, height={"step": 20})
        .facet(
            # Beside the panels it would lie on the names of the conditions.
            row=alt.Row(
                "prompts:N",
                title=None,
                sort=as_they_come(frame["prompts"]),
                header=alt.Header(orient="top", labelAngle=0, labelAnchor="start"),
            ),
            column=alt.Column("stage:N", title=None, sort=as_they_come(frame["stage"])),
        )
        .resolve_scale(y="independent")
        .properties(title="Completions that refuse")
    )


@chart("DirectionScores")
def _direction_scores(result: Any, alt: Any) -> Any:
    """Scores of each candidate by layer, a line for each position."""
    titles = {
        "refusal_score": "refusal score, ablated (harmful)",
        "steering_score": "refusal score, added (harmless)",
        "kl_div_score": "KL divergence, ablated (harmless)",
    }
    frame = result.frame.unpivot(
        list(titles), index=["position", "layer", "norm"], variable_name="score"
    ).with_columns(pl.col("score").replace_strict(titles))
    return (
        alt.Chart(rows(frame, alt))
        .mark_line(point={"size": 22})
        .encode(
            x=layer_axis(alt, "layer (resid_pre)"),
            y=alt.Y("value:Q", title="nats"),
            color=position_colour(result.frame["position"], alt),
            tooltip=[
                "position:O",
                "layer:Q",
                alt.Tooltip("value:Q", title="nats", format=".3f"),
                alt.Tooltip("norm:Q", format=".4g"),
            ],
        )
        .properties(width=220, height=240)
        .facet(column=alt.Column("score:N", title=None, sort=list(titles.values())))
        .resolve_scale(y="independent")
        .properties(title=f"Candidate refusal directions of {result.stage}")
    )
