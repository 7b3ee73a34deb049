"""Charts of the confidence perspective."""

from __future__ import annotations

from typing import Any

import polars as pl

from ptmech.plots.registry import COLOURS, chart

_MAX_POINTS = 2000
"""Neurons that are no candidates, drawn for each stage; more than this only makes a chart slow."""

_EFFECTS = {"total": "free", "direct": "frozen"}
"""What the final norm is doing while an effect is measured."""


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
    base = alt.Chart(drawn).encode(
        y=alt.Y("name:N", title=None, sort=drawn["name"].unique(maintain_order=True).to_list()),
        yOffset=alt.YOffset("final_norm:N", sort=list(_EFFECTS.values())),
        color=alt.Color("neurons:N", title=None, scale=alt.Scale(range=[*COLOURS[:2]])),
        tooltip=[
            "stage",
            "name",
            "final_norm",
            alt.Tooltip("absolute", title="mean absolute change", format=".5f"),
            alt.Tooltip("absolute_low", format=".5f"),
            alt.Tooltip("absolute_high", format=".5f"),
            alt.Tooltip("change", title="mean change", format="+.5f"),
            "tokens",
        ],
    )
    bars = base.mark_bar().encode(
        x=alt.X("absolute:Q", title="mean absolute change of the entropy, nats", stack=None),
        opacity=alt.Opacity(
            "final_norm:N",
            title="final norm",
            sort=list(_EFFECTS.values()),
            scale=alt.Scale(domain=list(_EFFECTS.values()), range=[1.0, 0.45]),
        ),
    )
    whiskers = base.mark_rule(strokeWidth=1.5).encode(
        x="absolute_low:Q", x2="absolute_high:Q", color=alt.value("#333333")
    )
    return (
        alt.layer(bars, whiskers)
        .properties(width=320, height={"step": 11})
        .facet(column=alt.Column("stage:N", title=None, sort=_stages(drawn)))
        .resolve_scale(y="independent")
        .properties(
            title=alt.Title(
                "Neurons ablated: what becomes of the entropy",
                subtitle="an entropy neuron does most of it through the final norm: "
                "a long bar with the norm free, a short one with its scale frozen",
            )
        )
    )


def _stages(frame: pl.DataFrame) -> list[str]:
    return frame["stage"].unique(maintain_order=True).to_list()
