"""Score tables: their columns, what they refer to, and whether counts are what was counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Final

import polars as pl

from ptmech._verification.columns import Rules, fits
from ptmech._verification.inspection import Inspection
from ptmech._verification.rows import Rows
from ptmech.confidence.averages import EFFECTS as NEURON_EFFECTS
from ptmech.manifest import Stage
from ptmech.refusal.candidates import CANDIDATES
from ptmech.refusal.tables import COMPLETIONS, SCORES
from ptmech.truth.steering import EFFECTS as TRUTH_EFFECTS

_ROUNDING: Final = 1e-9
_CONDITION: Final = ("stage", "prompts", "intervention", "direction", "direction_stage", "scale")

_TABLES: Final[Mapping[str, Rules]] = {
    name: replace(rules, exact=False)
    for name, rules in {
        "refusal": Rules(SCORES, frozenset({"direction_stage", "layer", "scale", "length"})),
        "completions": Rules(COMPLETIONS, frozenset({"direction_stage", "scale"})),
        "directions": Rules(
            CANDIDATES, frozenset({"refusal_score", "steering_score", "kl_div_score"})
        ),
        "truth": Rules(
            TRUTH_EFFECTS,
            frozenset({"direction_stage"}),
            undefined=frozenset(name for name in TRUTH_EFFECTS if name.startswith("effect")),
        ),
        "neurons": Rules(
            NEURON_EFFECTS,
            frozenset({"neuron", "share", "share_low", "share_high"}),
            undefined=frozenset({"share", "share_low", "share_high"}),
        ),
    }.items()
}
"""The tables of ``scores/<stage>/`` by their names."""


def check_scores(inspection: Inspection, rows: Rows) -> None:
    """Check every score table, and refusal rates against the completions they count."""
    for entry in inspection.artifact.extras("scores/"):
        path = PurePosixPath(entry.path)
        stage = inspection.manifest.stage(path.parent.name)
        table = inspection.table(entry.path) if path.suffix == ".parquet" else None
        if stage is None or table is None or path.stem not in _TABLES:
            continue
        if fits(inspection, entry.path, table, _TABLES[path.stem]):
            _check_references(inspection, entry.path, table, stage)
            if path.stem == "completions":
                _check_rows(inspection, entry.path, table, rows)
    for stage in inspection.manifest.stages:
        _check_rates(inspection, stage)


def _check_references(inspection: Inspection, path: str, table: pl.DataFrame, stage: Stage) -> None:
    """Check that stages, datasets, layers, positions and neurons exist."""
    manifest = inspection.manifest
    harmful = manifest.dataset(manifest.defaults.harmful)
    known: dict[str, list[object]] = {
        "stage": [stage.name],
        "direction_stage": [each.name for each in manifest.stages],
        "prompts": ["harmful", "harmless"],
        "dataset": [dataset.name for dataset in manifest.datasets],
        "layer": list(range(stage.n_layers)),
    }
    if harmful is not None:
        known["position"] = list(harmful.positions)
    if stage.d_mlp is not None:
        known["neuron"] = list(range(stage.d_mlp))
    for name, names in known.items():
        if name not in table.columns:
            continue
        strangers = sorted(set(table[name].drop_nulls().unique().to_list()) - set(names), key=str)
        if strangers:
            inspection.add(path, f"column {name!r} names {strangers[0]!r}, which is not there")


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
        ((pl.col("refusal_rate") - share).abs() < _ROUNDING)
        & (pl.col("low") <= pl.col("refusal_rate") + _ROUNDING)
        & (pl.col("refusal_rate") <= pl.col("high") + _ROUNDING)
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
