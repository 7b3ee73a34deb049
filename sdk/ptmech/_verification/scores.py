"""Score tables: their columns, what they refer to, and whether counts are what was counted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, Final

import polars as pl

from ptmech._schemas import ROUNDING, Values
from ptmech._score_tables import score_values
from ptmech._verification.columns import Rules, fits
from ptmech._verification.inspection import Inspection
from ptmech._verification.rows import Rows
from ptmech.confidence.averages import EFFECT_VALUES as NEURON_EFFECT_VALUES
from ptmech.confidence.averages import EFFECTS as NEURON_EFFECTS
from ptmech.manifest import Stage
from ptmech.refusal.candidates import CANDIDATE_VALUES, CANDIDATES
from ptmech.refusal.tables import COMPLETION_VALUES, COMPLETIONS, SCORE_VALUES, SCORES
from ptmech.truth.steering import EFFECT_VALUES as TRUTH_EFFECT_VALUES
from ptmech.truth.steering import EFFECTS as TRUTH_EFFECTS

_CONDITION: Final = ("stage", "prompts", "intervention", "direction", "direction_stage", "scale")

_TABLES: Final[Mapping[str, tuple[Mapping[str, Any], Mapping[str, Values]]]] = {
    "refusal": (SCORES, SCORE_VALUES),
    "completions": (COMPLETIONS, COMPLETION_VALUES),
    "directions": (CANDIDATES, CANDIDATE_VALUES),
    "truth": (TRUTH_EFFECTS, TRUTH_EFFECT_VALUES),
    "neurons": (NEURON_EFFECTS, NEURON_EFFECT_VALUES),
}
"""Columns of the tables of ``scores/<stage>/`` by their names, and what may stand in them."""


def check_scores(inspection: Inspection, rows: Rows) -> None:
    """Check every score table, and refusal rates against the completions they count."""
    for entry in inspection.artifact.extras("scores/"):
        path = PurePosixPath(entry.path)
        stage = inspection.manifest.stage(path.parent.name)
        table = inspection.table(entry.path) if path.suffix == ".parquet" else None
        if stage is None or table is None or path.stem not in _TABLES:
            continue
        columns, values = _TABLES[path.stem]
        values = score_values(inspection.artifact, stage, values)
        inspection.require(entry.path, holds=not table.is_empty(), problem="has no rows")
        if fits(inspection, entry.path, table, Rules(columns, values, exact=False)):
            _check_intervals(inspection, entry.path, table)
            if path.stem == "completions":
                _check_rows(inspection, entry.path, table, rows)
    for stage in inspection.manifest.stages:
        _check_rates(inspection, stage)


def _check_intervals(inspection: Inspection, path: str, table: pl.DataFrame) -> None:
    """Check that intervals begin before they end, and that what they are of is not far from them.

    A bootstrap interval need not hold its estimate; further from it than it is wide, it is another
    number's.
    """
    for name in table.columns:
        ends = f"{name}_low", f"{name}_high"
        if not set(ends) <= set(table.columns):
            continue
        known = table.select(value=name, low=ends[0], high=ends[1]).filter(
            ~pl.any_horizontal(pl.all().is_null() | pl.all().is_nan())
        )
        low, high = pl.col("low"), pl.col("high")
        slack = (high - low) + ROUNDING * (1 + pl.col("value").abs())
        turned = known.filter(low > high + ROUNDING).height
        if turned:
            inspection.add(path, f"{turned} intervals of {name!r} end before they begin")
        elif far := known.filter(~pl.col("value").is_between(low - slack, high + slack)).height:
            inspection.add(path, f"{far} values of {name!r} are far outside of their intervals")


def _check_rows(inspection: Inspection, path: str, table: pl.DataFrame, rows: Rows) -> None:
    """Check that completions are of rows of the dataset they say."""
    defaults = inspection.manifest.defaults
    for prompts, dataset in (("harmful", defaults.harmful), ("harmless", defaults.harmless)):
        if dataset not in rows.listed or dataset in rows.doubtful:
            continue
        completed = table.filter(pl.col("prompts") == prompts)["row_uid"]
        listed = pl.Series(rows.listed[dataset], dtype=pl.UInt64)
        strangers = completed.filter(~completed.is_in(listed.implode()))
        if len(strangers):
            inspection.add(
                path,
                f"{len(strangers)} completions are of no row of {dataset!r}, first row_uid "
                f"{strangers[0]}",
            )


def _check_rates(inspection: Inspection, stage: Stage) -> None:
    path = f"scores/{stage.name}/refusal.parquet"
    table = inspection.table(path)
    if table is None or not set(SCORES) <= set(table.columns):
        return
    share = pl.col("refusals") / pl.col("n")
    sound = (
        ((pl.col("refusal_rate") - share).abs() < ROUNDING)
        & (pl.col("low") <= pl.col("refusal_rate") + ROUNDING)
        & (pl.col("refusal_rate") <= pl.col("high") + ROUNDING)
        & (pl.col("refusals") <= pl.col("n"))
    )
    if wrong := table.filter(~sound).height:
        inspection.add(path, f"{wrong} rates are not what their counts make them")
    completions = inspection.table(f"scores/{stage.name}/completions.parquet")
    if completions is None or not set(COMPLETIONS) <= set(completions.columns):
        return
    counted = completions.group_by(_CONDITION).agg(
        counted=pl.len(), refused=pl.col("refused").sum()
    )
    both = table.select(*_CONDITION, "n", "refusals").join(
        counted, on=_CONDITION, how="full", nulls_equal=True
    )
    agree = pl.col("n").eq_missing(pl.col("counted")) & pl.col("refusals").eq_missing(
        pl.col("refused")
    )
    if wrong := both.filter(~agree).height:
        inspection.add(path, f"{wrong} counts are not those of the completions")
