"""Charts of the refusal perspective."""

from __future__ import annotations

from typing import Any

import polars as pl

from ptmech.plots.registry import COLOURS, chart


@chart("RefusalDirections")
def _refusal_directions(result: Any, alt: Any) -> Any:
    """Length of the refusal direction by layer, a line for each position."""
    return (
        alt.Chart(result.frame, title=f"Refusal direction of {result.stage}", width=480, height=280)
        .mark_line(point=True)
        .encode(
            x=alt.X("layer:Q", title="layer (resid_pre)", axis=alt.Axis(tickMinStep=1)),
            y=alt.Y("norm:Q", title="length, activation units"),
            color=_position_colour(alt),
            tooltip=[
                "position",
                "layer",
                alt.Tooltip("norm", format=".4g"),
                "n_harmful",
                "n_harmless",
            ],
        )
    )


@chart("RefusalSimilarity")
def _refusal_similarity(result: Any, alt: Any) -> Any:
    """Cosine between the stages by layer and position, beside what split halves reach."""
    between, within = f"{result.earlier} and {result.later}", "disjoint halves of one stage"
    frame = (
        result.frame.with_columns(
            pl.col("cosine").alias(between),
            ((pl.col("split_half_earlier") + pl.col("split_half_later")) / 2).alias(within),
        )
        .unpivot(
            [between, within],
            index=["position", "layer", "norm_earlier", "norm_later"],
            variable_name="series",
            value_name="value",
        )
        .sort("position", "layer")
    )
    return (
        alt.Chart(frame, title="Agreement of the refusal directions", width=480, height=280)
        .mark_line(point=True)
        .encode(
            x=alt.X("layer:Q", title="layer (resid_pre)", axis=alt.Axis(tickMinStep=1)),
            y=alt.Y("value:Q", title="cosine similarity"),
            color=_position_colour(alt),
            strokeDash=alt.StrokeDash(
                "series:N",
                title=None,
                scale=alt.Scale(domain=[between, within], range=[[1, 0], [4, 3]]),
                legend=alt.Legend(
                    orient="bottom",
                    labelLimit=320,
                    symbolType="stroke",
                    symbolStrokeColor="#333333",
                ),
            ),
            tooltip=[
                "position",
                "layer",
                "series",
                alt.Tooltip("value:Q", title="cosine", format=".3f"),
                alt.Tooltip("norm_earlier", format=".4g"),
                alt.Tooltip("norm_later", format=".4g"),
            ],
        )
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
    base = alt.Chart(frame).encode(
        y=alt.Y(
            "condition:N",
            title=None,
            sort=_as_they_come(
                frame.sort(pl.col("direction").cast(pl.Enum(directions)), maintain_order=True)[
                    "condition"
                ]
            ),
            axis=alt.Axis(labelLimit=240),
        ),
        tooltip=[
            "stage",
            "prompts",
            "condition",
            "direction_stage",
            alt.Tooltip("refusal_rate", format=".3f"),
            alt.Tooltip("low", format=".3f"),
            alt.Tooltip("high", format=".3f"),
            "n",
            alt.Tooltip("plain_text_loss", format=".3f"),
        ],
    )
    bars = base.mark_bar(height={"band": 0.7}).encode(
        x=alt.X(
            "refusal_rate:Q",
            title="share that refuses",
            scale=alt.Scale(domain=[0, 1]),
            stack=None,
        ),
        color=alt.Color(
            "direction:N",
            legend=None,
            scale=alt.Scale(domain=directions, range=["#999999", *COLOURS[:3], COLOURS[4]]),
        ),
    )
    whiskers = base.mark_rule(strokeWidth=1.5).encode(x="low:Q", x2="high:Q")
    return (
        alt.layer(bars, whiskers)
        .properties(width=280, height={"step": 20})
        .facet(
            row=alt.Row("prompts:N", title=None, sort=_as_they_come(frame["prompts"])),
            column=alt.Column("stage:N", title=None, sort=_as_they_come(frame["stage"])),
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
        alt.Chart(frame)
        .mark_line(point=True)
        .encode(
            x=alt.X("layer:Q", title="layer (resid_pre)", axis=alt.Axis(tickMinStep=1)),
            y=alt.Y("value:Q", title="nats"),
            color=_position_colour(alt),
            tooltip=["position", "layer", alt.Tooltip("value:Q", format=".3f"), "norm"],
        )
        .properties(width=220, height=240)
        .facet(column=alt.Column("score:N", title=None, sort=list(titles.values())))
        .resolve_scale(y="independent")
        .properties(title=f"Candidate refusal directions of {result.stage}")
    )


def _as_they_come(values: pl.Series) -> list[str]:
    return values.unique(maintain_order=True).to_list()


def _position_colour(alt: Any) -> Any:
    return alt.Color(
        "position:O", title="position", scale=alt.Scale(scheme="viridis", reverse=True)
    )
