"""Charts of the confidence perspective."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import polars as pl

from ptmech.plots.drawing import INK, NEUTRAL, as_they_come, nothing, rows
from ptmech.plots.registry import COLOURS, chart

_MAX_POINTS: Final = 2000
"""Neurons that are no candidates, drawn for each stage; more than this only makes a chart slow."""
_BINS: Final = 40
"""Of a margin."""
_EFFECTS: Final = {"total": "free", "direct": "frozen"}
"""What the final norm is doing while an effect is measured."""


@chart("ConfidenceComparison", table="neurons")
def _confidence_comparison(result: Any, alt: Any) -> Any:
    """Norm against logit variance of the last MLP's neurons, with margins; and the overlap."""
    stages = [result.arguments["earlier"], result.arguments["later"]]
    drawn = result.neurons.drop("eligible").filter(
        pl.col("logit_variance") > 0, *(pl.col(name).is_finite() for name in _AXES)
    )
    title = "Entropy-neuron candidates"
    if drawn.is_empty():
        return nothing(title, "no neuron has a logit variance above zero", alt)
    colour = alt.Color(
        "stage:N",
        title="candidates",
        scale=alt.Scale(domain=stages, range=COLOURS[:2]),
        legend=alt.Legend(orient="bottom-right", symbolOpacity=1),
    )
    scales = {name: _scale(drawn[name], name, alt) for name in _AXES}
    scatter = _scatter(drawn, stages, colour, scales, alt)
    above, beside = (_margin(drawn, name, stages, scales[name], alt) for name in _AXES)
    return alt.vconcat(
        above.properties(width=440, height=50),
        alt.hconcat(
            scatter.properties(width=440, height=300),
            beside.properties(width=50, height=300),
            spacing=4,
        ).resolve_scale(color="independent"),
        _overlap(result, stages, alt),
        spacing=4,
        title=alt.Title(title, subtitle="with the distribution of all neurons at the margins"),
    ).resolve_scale(color="independent")


_AXES: Final = {"logit_variance": "logit variance", "norm": "norm of the output weights"}


def _scale(values: pl.Series, name: str, alt: Any) -> Any:
    """Return the scale that a margin shares with the scatter."""
    low, high = (float(value) for value in np.quantile(values.to_numpy(), (0, 1)))
    if name == "logit_variance":
        return alt.Scale(type="log", nice=False, domain=[low / 1.1, high * 1.1])
    room = 0.03 * (high - low) or 1.0
    return alt.Scale(nice=False, zero=False, domain=[low - room, high + room])


def _scatter(
    drawn: pl.DataFrame, stages: list[str], colour: Any, scales: dict[str, Any], alt: Any
) -> Any:
    others = [
        found.sample(min(found.height, _MAX_POINTS), seed=0)
        for _, found in drawn.filter(~pl.col("candidate")).group_by("stage", maintain_order=True)
    ]
    axis = alt.Axis(labelOverlap="greedy", labelSeparation=6, format="~g")
    encoding = {
        "x": alt.X(
            "logit_variance:Q",
            title="logit variance, log scale",
            scale=scales["logit_variance"],
            axis=axis,
        ),
        "y": alt.Y("norm:Q", title=_AXES["norm"], scale=scales["norm"]),
        "tooltip": [
            "stage:N",
            "neuron:Q",
            alt.Tooltip("norm:Q", format=".4g"),
            alt.Tooltip("logit_variance:Q", format=".3g"),
            alt.Tooltip("null_space_fraction:Q", format=".3f"),
            alt.Tooltip("ratio:Q", format=".3f"),
        ],
    }
    marked = [
        alt.Chart(rows(drawn.filter(pl.col("candidate"), pl.col("stage") == stage), alt))
        .mark_point(size=size, strokeWidth=2, filled=filled, opacity=1)
        .encode(**encoding, color=colour)
        # A neuron that both stages choose shows as a dot in a ring.
        for stage, size, filled in zip(stages, (110, 24), (False, True), strict=True)
    ]
    crowd = [
        alt.Chart(rows(pl.concat(others).drop("candidate"), alt))
        .mark_point(size=10, filled=True, color=NEUTRAL, opacity=0.35)
        .encode(**encoding)
        for _ in others[:1]
    ]
    return alt.layer(*crowd, *marked)


def _margin(drawn: pl.DataFrame, name: str, stages: list[str], scale: Any, alt: Any) -> Any:
    """Count the neurons of each stage in bins along one axis of the scatter."""
    low, high = scale.domain
    space = np.geomspace if name == "logit_variance" else np.linspace
    edges = space(low, high, _BINS + 1)
    bins = pl.concat(
        pl.DataFrame(
            {
                "stage": [stage] * _BINS,
                "low": edges[:-1],
                "high": edges[1:],
                "neurons": np.histogram(drawn.filter(stage=stage)[name].to_numpy(), edges)[0],
            }
        )
        for stage in stages
    )
    along, across = ("x", "y") if name == "logit_variance" else ("y", "x")
    blank = alt.Axis(labels=False, ticks=False, title=None, grid=False)
    axes = {"x": alt.X, "y": alt.Y}
    return (
        alt.Chart(rows(bins, alt))
        .mark_bar(opacity=0.45)
        .encode(
            **{
                along: axes[along]("low:Q", scale=scale, axis=blank, bin="binned"),
                f"{along}2": "high:Q",
                across: axes[across](
                    "neurons:Q",
                    stack=None,
                    title="neurons",
                    axis=alt.Axis(
                        tickCount=2, grid=False, labelOverlap="greedy", labelSeparation=4
                    ),
                ),
            },
            color=alt.Color(
                "stage:N", scale=alt.Scale(domain=stages, range=COLOURS[:2]), legend=None
            ),
            tooltip=[
                "stage:N",
                alt.Tooltip("low:Q", title=f"{_AXES[name]} from", format=".4g"),
                alt.Tooltip("high:Q", title="to", format=".4g"),
                "neurons:Q",
            ],
        )
    )


def _overlap(result: Any, stages: list[str], alt: Any) -> Any:
    """Draw the overlap of the two sets of candidates, and that of chance, from 0 to 1."""
    chosen = [set(result.candidates_earlier), set(result.candidates_later)]
    row = {
        "overlap": result.overlap,
        "chance": result.chance_overlap,
        "both": len(chosen[0] & chosen[1]),
        "only_earlier": len(chosen[0] - chosen[1]),
        "only_later": len(chosen[1] - chosen[0]),
    }
    words = (
        f"{row['both']} candidates in both, {row['only_earlier']} in {stages[0]} alone, "
        f"{row['only_later']} in {stages[1]} alone: overlap {result.overlap:.2f}, "
        f"by chance {result.chance_overlap:.3f}"
    )
    base = alt.Chart(rows(pl.DataFrame([row]), alt)).encode(
        tooltip=[
            alt.Tooltip("overlap:Q", format=".3f"),
            alt.Tooltip("chance:Q", title="overlap by chance", format=".4f"),
            *(f"{name}:Q" for name in ("both", "only_earlier", "only_later")),
        ]
    )
    bar = base.mark_bar(color=COLOURS[2], opacity=0.6).encode(
        x=alt.X(
            "overlap:Q",
            scale=alt.Scale(domain=[0, 1]),
            axis=alt.Axis(grid=False),
            title="candidates in both, of those in either (line: by chance)",
        )
    )
    chance = base.mark_rule(strokeWidth=2, color=INK).encode(x="chance:Q")
    return alt.layer(bar, chance).properties(
        width=440,
        height=20,
        title=alt.Title(words, fontSize=11, fontWeight="normal", anchor="start"),
    )


@chart("NeuronEffects")
def _neuron_effects(result: Any, alt: Any) -> Any:
    """Total beside direct effect on the entropy: the neurons under test, then random ones."""
    drawn = (
        result.frame.filter(
            pl.col("measure") == "entropy",
            pl.col("ablated").is_in(["one", "each"]),
            pl.col("effect").is_in(list(_EFFECTS)),
        )
        .with_columns(
            name=pl.when(pl.col("ablated") == "each")
            .then(pl.col("neurons") + ", mean")
            .otherwise(pl.col("neurons") + " " + pl.col("neuron").cast(pl.String)),
            final_norm=pl.col("effect").replace_strict(_EFFECTS),
        )
        .sort("neurons", pl.col("ablated") == "one", "neuron", maintain_order=True)
    )
    title = "Neurons ablated: what becomes of the entropy"
    if drawn.is_empty():
        return nothing(title, "no effect on the entropy was measured", alt)
    shapes = alt.Scale(domain=list(_EFFECTS.values()), range=["circle", "triangle-right"])
    base = alt.Chart(rows(drawn, alt)).encode(
        y=alt.Y("name:N", title=None, sort=as_they_come(drawn["name"])),
        yOffset=alt.YOffset("final_norm:N", sort=list(_EFFECTS.values())),
        color=alt.Color(
            "neurons:N",
            title="neurons",
            sort=as_they_come(drawn["neurons"]),
            scale=alt.Scale(range=[*COLOURS[:2]]),
        ),
        tooltip=[
            "stage:N",
            "name:N",
            "final_norm:N",
            alt.Tooltip("absolute:Q", title="mean absolute change", format=".5f"),
            alt.Tooltip("absolute_low:Q", format=".5f"),
            alt.Tooltip("absolute_high:Q", format=".5f"),
            alt.Tooltip("change:Q", title="mean change", format="+.5f"),
            "tokens:Q",
        ],
    )
    points = base.mark_point(filled=True, size=45, opacity=1).encode(
        x=alt.X(
            "absolute:Q",
            title="mean absolute change of the entropy, nats, square-root scale",
            scale=alt.Scale(type="sqrt"),
            axis=alt.Axis(labelOverlap="greedy", labelSeparation=4),
        ),
        shape=alt.Shape(
            "final_norm:N",
            title="final norm",
            scale=shapes,
            legend=alt.Legend(symbolFillColor=NEUTRAL, symbolStrokeColor=NEUTRAL),
        ),
    )
    whiskers = base.mark_rule(strokeWidth=1.5).encode(x="absolute_low:Q", x2="absolute_high:Q")
    return (
        alt.layer(whiskers, points)
        .properties(width=320, height={"step": 10})
        .facet(column=alt.Column("stage:N", title=None, sort=as_they_come(drawn["stage"])))
        .resolve_scale(y="independent")
        .properties(
            title=alt.Title(
                title,
                subtitle="an entropy neuron does most of it through the final norm: "
                "much with the norm free, little with its scale frozen",
            )
        )
    )
