"""The chart of statements along truth directions."""

from __future__ import annotations

from typing import Any, Final

import polars as pl

from ptmech._text import shortened
from ptmech.plots.densities import densities
from ptmech.plots.drawing import INK, as_they_come, rows
from ptmech.plots.registry import COLOURS, chart

_POINTS: Final = 48
"""Of each curve."""
_LABELS: Final = {1: "true", 0: "false"}


@chart("TruthProjections")
def _truth_projections(result: Any, alt: Any) -> Any:
    """Densities of true and false statements: a row a dataset, a column a reading."""
    curves = pl.concat(
        _curves(group).with_columns(
            stage=pl.lit(stage), direction_stage=pl.lit(direction), dataset=pl.lit(dataset)
        )
        for (stage, direction, dataset), group in result.frame.group_by(
            ["stage", "direction_stage", "dataset"], maintain_order=True
        )
    ).join(result.separation, on=["stage", "direction_stage", "dataset"])
    frame = curves.with_columns(
        reading=pl.col("stage") + " along the direction of " + pl.col("direction_stage"),
        words=pl.when(pl.col("flat"))
        .then(pl.lit("no direction"))
        .otherwise(pl.col("auroc").map_elements("AUROC {:.2f}".format, return_dtype=pl.String)),
    )
    data = rows(frame.drop("stage", "direction_stage", "flat"), alt)
    base = alt.Chart().encode(
        x=alt.X(
            "projection:Q",
            title="projection, standard deviations",
            scale=alt.Scale(nice=False),
            axis=alt.Axis(grid=False, tickCount=5),
        ),
        tooltip=[
            "dataset:N",
            "reading:N",
            alt.Tooltip("projection:Q", format="+.2f"),
            *(
                alt.Tooltip(f"{name}:Q", title=f"density of {name} statements", format=".3f")
                for name in _LABELS.values()
            ),
            alt.Tooltip("auroc:Q", format=".3f"),
            alt.Tooltip("n:Q", title="statements"),
        ],
    )
    areas = (
        base.transform_fold(list(_LABELS.values()), as_=["statements", "density"])
        .mark_area(opacity=0.35, line={"strokeWidth": 1.5})
        .encode(
            y=alt.Y("density:Q", title=None, axis=None, stack=None),
            color=alt.Color(
                "statements:N",
                title="statements",
                sort=list(_LABELS.values()),
                scale=alt.Scale(domain=list(_LABELS.values()), range=[COLOURS[0], COLOURS[5]]),
                legend=alt.Legend(orient="top", direction="horizontal", symbolOpacity=0.7),
            ),
        )
    )
    words = (
        alt.Chart()
        .transform_aggregate(groupby=["dataset", "reading", "words", "auroc"])
        .mark_text(align="left", baseline="top", fontSize=10, color=INK)
        .encode(
            x=alt.value(4),
            y=alt.value(3),
            text="words:N",
            tooltip=["dataset:N", "reading:N", alt.Tooltip("auroc:Q", format=".3f")],
        )
    )
    arguments = result.arguments
    return (
        alt.layer(areas, words, data=data)
        .properties(width=200, height=44)
        .facet(
            row=alt.Row(
                "dataset:N",
                title=None,
                sort=as_they_come(frame["dataset"]),
                header=alt.Header(labelAngle=0, labelAlign="left", labelLimit=160),
            ),
            column=alt.Column("reading:N", title=None, sort=as_they_come(frame["reading"])),
            spacing={"row": 4, "column": 12},
        )
        .resolve_scale(y="independent")
        .properties(
            title=alt.Title(
                f"Statements along truth directions, layer {result.layer}",
                subtitle=f"{shortened(arguments['probe'])} directions of the other datasets; "
                "each dataset at mean 0 and standard deviation 1",
            )
        )
    )


def _curves(group: pl.DataFrame) -> pl.DataFrame:
    """Return the densities of one dataset's true and false statements, on one grid."""
    finite = group.filter(pl.col("projection").is_finite())
    samples = [finite.filter(label=label)["projection"].to_numpy() for label in _LABELS]
    flat = not finite["projection"].ne(0).any()
    grid, found = densities(samples, _POINTS)
    return pl.DataFrame(
        {
            "projection": grid.round(4),
            **{
                name: (0 * density if flat else density).round(5)
                for name, density in zip(_LABELS.values(), found, strict=True)
            },
        }
    ).with_columns(flat=pl.lit(flat))
