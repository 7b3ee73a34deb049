"""Completions of the later stage, side by side: left alone, and under refusal directions."""

from __future__ import annotations

import polars as pl

from ptmech import refusal
from ptmech.artifact import Artifact
from ptmech.errors import DataError, NotStoredError
from ptmech.refusal.tables import at_own_length, of_stages
from ptmech.report.figures import Figure

EACH = 4
"""Prompts of each kind that are shown."""
WORDS = 12
"""Words of a completion that are shown: whether it refuses is said at its beginning."""

_CONDITIONS = {
    "none": "left alone",
    "own": "own direction",
    "transferred": "direction of {earlier}",
    "random": "random direction",
}


def examples(artifact: Artifact, earlier: str, later: str) -> Figure:
    """Set the beginnings of completions side by side, a row for each prompt.

    Returns
    -------
    Figure
        Without a chart. ``prompts``, ``prompt``, then one column a condition.
    """
    title = f"What {later} says"
    caption = (
        "The first words of completions: left alone, and with a direction added (harmless "
        "prompts) or ablated (harmful ones)."
    )
    code = "sdk.refusal.completions(artifact).frame"
    try:
        table = _side_by_side(artifact, earlier, later)
    except (NotStoredError, DataError) as reason:
        return Figure(title=title, caption=caption, code=code, missing=str(reason))
    return Figure(title=title, caption=caption, code=code, table=table)


def _side_by_side(artifact: Artifact, earlier: str, later: str) -> pl.DataFrame:
    names = {name: words.format(earlier=earlier) for name, words in _CONDITIONS.items()}
    said = refusal.completions(artifact).frame.filter(
        pl.col("stage") == later, pl.col("direction").is_in(list(names))
    )
    said = at_own_length(of_stages(said, [earlier, later]))
    shown = said.unique(["prompts", "row_uid"], maintain_order=True)
    shown = shown.group_by("prompts", maintain_order=True).head(EACH).select("prompts", "row_uid")
    return (
        shown.join(said, on=["prompts", "row_uid"], maintain_order="left")
        .with_columns(
            pl.col("completion").str.split(" ").list.head(WORDS).list.join(" "),
            pl.col("direction").replace_strict(names),
        )
        .pivot("direction", index=["prompts", "prompt"], values="completion")
    )
