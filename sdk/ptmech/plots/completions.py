"""The chart of replies, before and after: the first prompts, not chosen ones."""

from __future__ import annotations

from typing import Any, Final

import polars as pl

from ptmech.plots.drawing import NEUTRAL, as_they_come, rows
from ptmech.plots.registry import COLOURS, chart
from ptmech.plots.writing import LINE, lines_of, texts

_PROMPTS: Final = 2
"""Of either kind."""
_LABEL: Final = 190
_REPLY: Final = 340
_GAP: Final = 26
"""Widths in pixels: of the conditions, of a stage's replies, and between replies."""


@chart("RefusalCompletions")
def _refusal_completions(result: Any, alt: Any) -> Any:
    """Lay out the replies of all stages to the first prompts of either kind."""
    stages = as_they_come(result.frame["stage"])
    several = result.frame["scale"].drop_nulls().n_unique() > 1
    factor = pl.when(pl.lit(several)).then(pl.format("times {}", "scale"))
    condition = pl.concat_str(
        "intervention",
        pl.col("direction").str.replace_all("_", " "),
        factor,
        separator=" ",
        ignore_nulls=True,
    )
    frame = result.frame.with_columns(
        condition=pl.when(pl.col("intervention") == "none")
        .then(pl.lit("no intervention"))
        .otherwise(condition)
    )
    columns = {
        stage: _LABEL + _GAP + number * (_REPLY + _GAP) for number, stage in enumerate(stages)
    }
    width = _LABEL + len(stages) * (_REPLY + _GAP)
    return alt.vconcat(
        *(
            _panel(frame.filter(prompts=kind), f"{kind} prompts", columns, width, alt)
            for kind in as_they_come(frame["prompts"])
        )
    ).properties(
        title=alt.Title(
            "Replies without and with refusal directions",
            subtitle=f"to the first {_PROMPTS} prompts of either kind, as far as they were "
            "generated; the dot says how each begins",
        )
    )


def _panel(frame: pl.DataFrame, title: str, columns: dict[str, int], width: int, alt: Any) -> Any:
    """Lay out the replies to prompts of one kind."""
    headings: list[dict[str, Any]] = [
        {"x": x, "y": 0, "text": stage} for stage, x in columns.items()
    ]
    labels: list[dict[str, Any]] = []
    replies: list[dict[str, Any]] = []
    y = LINE * 1.4
    for prompt in as_they_come(frame["prompt"])[:_PROMPTS]:
        lines = lines_of(prompt, width, most=3)
        headings.append({"x": 0, "y": y, "text": "\n".join(lines)})
        y += LINE * (len(lines) + 0.4)
        of_prompt = frame.filter(prompt=prompt)
        for condition in as_they_come(of_prompt["condition"]):
            labels.append({"x": 8, "y": y, "text": condition})
            height = 1
            of_condition = of_prompt.filter(condition=condition)
            for row in of_condition.unique("stage", keep="first").iter_rows(named=True):
                lines = lines_of(row["completion"], _REPLY)
                replies.append(
                    {
                        "x": columns[row["stage"]],
                        "y": y,
                        "text": "\n".join(lines),
                        **{name: row[name] for name in _TOLD},
                        "begins": "like a refusal" if row["refused"] else "otherwise",
                    }
                )
                height = max(height, len(lines))
            y += LINE * (height + 0.3)
        y += LINE * 0.7
    found = pl.DataFrame(replies, infer_schema_length=None)
    dots = (
        alt.Chart(rows(found.with_columns(pl.col("x") - 9, pl.col("y") + 5), alt))
        .mark_point(filled=True, size=45, opacity=1)
        .encode(
            x=alt.X("x:Q", scale=None, axis=None),
            y=alt.Y("y:Q", scale=None, axis=None),
            color=alt.Color(
                "begins:N",
                title="begins",
                scale=alt.Scale(
                    domain=["like a refusal", "otherwise"], range=[COLOURS[1], NEUTRAL]
                ),
                legend=alt.Legend(orient="top", direction="horizontal"),
            ),
            tooltip=[f"{name}:N" for name in (*_TOLD, "begins")],
        )
    )
    return alt.layer(
        texts(pl.DataFrame(headings, strict=False), alt, bold=True),
        texts(pl.DataFrame(labels, strict=False), alt),
        texts(found, alt),
        dots,
    ).properties(
        width=width,
        height=y,
        title=alt.Title(title, anchor="start"),
        view=alt.ViewBackground(strokeOpacity=0),
    )


_TOLD: Final = ("stage", "condition", "direction_stage", "prompt", "completion")
