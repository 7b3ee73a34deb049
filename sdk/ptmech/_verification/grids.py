"""Causal traces: every grid decodes, and is of the pairs, layers and tokens it names."""

from __future__ import annotations

from collections import defaultdict

from ptmech._verification.inspection import Inspection
from ptmech._verification.rows import Rows
from ptmech.knowledge.traces import Trace, trace


def check_grids(inspection: Inspection, rows: Rows) -> None:
    """Decode every grid, and compare it with the stages, the rows and the other grids."""
    groups: dict[str, list[str]] = defaultdict(list)
    for entry in inspection.artifact.extras("traces/"):
        groups[entry.path.partition(".zarr/")[0] + ".zarr"].append(entry.path)
    chosen: dict[str, Trace] = {}
    for folder, paths in groups.items():
        found = _read(inspection, folder, paths)
        if found is None:
            continue
        _check(inspection, folder, found, rows)
        first = chosen.setdefault(found.dataset, found)
        if not found.pairs.equals(first.pairs):
            inspection.add(
                folder, f"is of other pairs than the trace from {first.source} into {first.target}"
            )


def _read(inspection: Inspection, folder: str, paths: list[str]) -> Trace | None:
    _, between, *rest = folder.split("/")
    source, dash, target = between.partition("-")
    dataset = "/".join(rest).removesuffix(".zarr")
    if not dash or not {source, target} <= set(inspection.artifact.stages):
        inspection.add(folder, "is not between two stages that the manifest names")
        return None
    if dataset not in inspection.artifact.datasets:
        inspection.add(folder, "is of no dataset that the manifest names")
        return None
    return inspection.attempt(
        folder, lambda: trace(inspection.artifact, source, target, dataset), of=paths
    )


def _check(inspection: Inspection, folder: str, found: Trace, rows: Rows) -> None:
    stage = inspection.manifest.stage(found.target)
    layers = found.grid.shape[1]
    if stage is not None and layers != stage.n_layers:
        inspection.add(folder, f"has {layers} layers where {stage.name!r} has {stage.n_layers}")
    for name in sorted(set(found.known) - set(inspection.artifact.stages)):
        inspection.add(folder, f"says what {name!r} knows, a stage that is not there")
    if found.dataset in rows.listed and found.dataset not in rows.doubtful:
        listed = set(rows.listed[found.dataset].tolist())
        traced = [*found.pairs["true_uid"], *found.pairs["false_uid"]]
        missing = [uid for uid in traced if uid not in listed]
        if missing:
            inspection.add(
                folder,
                f"{len(missing)} of its prompts are no rows of {found.dataset!r}, first row_uid "
                f"{missing[0]}",
            )
