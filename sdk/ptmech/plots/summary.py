"""The chart of the four answers."""

from __future__ import annotations

from typing import Any, Final

import polars as pl

from ptmech.plots.drawing import INK, rows
from ptmech.plots.registry import COLOURS, chart
from ptmech.plots.writing import LINE, lines_of, texts

_SHADES: Final = {"yes": COLOURS[2], "in part": COLOURS[1], "no": COLOURS[5]}
"""Colours of answers; any other answer says that it could not be told."""
_UNTOLD: Final = "#a0a0a0"
_PLACES: Final = {"question": (0, 170), "answer": (185, 96), "evidence": (300, 400),
                  "control": (720, 280)}  # fmt: skip
"""Where the columns begin, and how wide they are, in pixels."""


@chart("Summary")
def _summary(result: Any, alt: Any) -> Any:
    """Answer each question in a word, beside the evidence and what to compare it with."""
    pieces: dict[str, list[dict[str, Any]]] = {"bold": [], "plain": [], "answers": [], "rules": []}
    headings = {"answer": "answer", "evidence": "evidence", "control": "to be compared with"}
    pieces["bold"] += [
        {"x": _PLACES[name][0], "y": 0, "text": words} for name, words in headings.items()
    ]
    width = sum(_PLACES["control"])
    y = LINE * 1.6
    for row in result.frame.iter_rows(named=True):
        pieces["rules"].append({"x": 0, "x2": width, "y": y - LINE * 0.4})
        broken = {
            name: lines_of(row[name], _PLACES[name][1], most=12)
            for name in ("question", "evidence", "control")
        }
        pieces["bold"].append({"x": 0, "y": y, "text": row["perspective"]})
        for name, lines in broken.items():
            down = LINE if name == "question" else 0
            pieces["plain"].append({"x": _PLACES[name][0], "y": y + down, "text": "\n".join(lines)})
        x, wide = _PLACES["answer"]
        pieces["answers"].append(
            {
                **{name: row[name] for name in ("perspective", "question", "answer")},
                **{"x": x, "x2": x + wide, "y": y - 3, "y2": y + LINE + 1},
                "shade": _SHADES.get(row["answer"], _UNTOLD),
                "text": row["answer"],
            }
        )
        y += LINE * (max(len(broken["question"]) + 1, *map(len, broken.values())) + 0.9)
    frames = {name: pl.DataFrame(found, strict=False) for name, found in pieces.items()}
    answers = alt.Chart(rows(frames["answers"], alt)).encode(
        x=alt.X("x:Q", scale=None, axis=None),
        y=alt.Y("y:Q", scale=None, axis=None),
        tooltip=["perspective:N", "question:N", "answer:N"],
    )
    sheet = alt.layer(
        alt.Chart(rows(frames["rules"], alt))
        .mark_rule(color=INK, opacity=0.25)
        .encode(x=alt.X("x:Q", scale=None), y=alt.Y("y:Q", scale=None), x2="x2:Q"),
        answers.mark_rect(cornerRadius=4).encode(
            x2="x2:Q", y2="y2:Q", color=alt.Color("shade:N", scale=None)
        ),
        # Dark letters on every page: the shade behind them is the same on all.
        answers.mark_text(
            align="left",
            baseline="top",
            dx=6,
            dy=4,
            fontSize=11,
            fontWeight="bold",
            color="#111",
        ).encode(text="text:N"),
        texts(frames["bold"], alt, bold=True),
        texts(frames["plain"], alt),
    ).properties(
        width=width,
        height=y,
        view=alt.ViewBackground(strokeOpacity=0),
    )
    # As one of several, which no page stretches: what stands at a pixel stays there.
    return alt.vconcat(
        sheet,
        title=f"What changed from {result.arguments['earlier']} to {result.arguments['later']}",
    )
