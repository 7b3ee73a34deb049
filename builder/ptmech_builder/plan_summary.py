"""A plan in a few numbers: what is done, and how rows run through the models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptmech_builder.plan import Plan
    from ptmech_builder.receipts import Standing

COUNTED = ("units", "finished", "tokens", "files", "bytes")


def unit_rows(made: Plan, found: Mapping[str, Standing]) -> list[dict[str, Any]]:
    """Return one row a kind of unit and stage: units, finished ones, tokens, files, bytes."""
    rows: dict[str, dict[str, Any]] = {}
    for unit in made.units:
        what = f"{unit.kind} {unit.stage}".strip()
        row = rows.setdefault(what, {"what": what, **dict.fromkeys(COUNTED, 0)})
        row["units"] += 1
        row["finished"] += int(found[unit.name].receipt is not None)
        row["tokens"] += unit.tokens
        row["files"] += unit.expected_files
        row["bytes"] += unit.expected_bytes
    return list(rows.values())


def packing_rows(made: Plan) -> list[dict[str, Any]]:
    """Return one row a stage and dataset: how its rows run, and what decided it.

    ``tokens`` are those of the prompts, ``run_tokens`` those that go through the model, and
    ``cost_ratio`` the predicted cost of trees, that of batches being 1.
    """
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    costs: dict[tuple[str, str], tuple[float, float]] = {}
    for unit in made.blocks:
        choice = made.choices[unit.name]
        place = (unit.stage, unit.prompts.dataset)
        first = {"stage": place[0], "dataset": place[1], "packing": choice.packing}
        row = rows.setdefault(place, {**first, "tokens": 0, "run_tokens": 0, "why": choice.why})
        if choice.packing not in row["packing"]:
            row["packing"] += f", {choice.packing}"  # blocks of a dataset may differ
        row["tokens"] += unit.tokens
        row["run_tokens"] += choice.tokens
        tree, batches = costs.get(place, (0.0, 0.0))
        costs[place] = (tree + choice.tree_cost, batches + choice.batch_cost)
        row["cost_ratio"] = costs[place][0] / costs[place][1]
    return list(rows.values())


def packing_lines(made: Plan) -> list[str]:
    """Return a table of how rows run, stages that agree on a dataset in one line."""
    stages: dict[tuple[Any, ...], list[str]] = {}
    for row in packing_rows(made):
        figures = tuple(row[key] for key in ("dataset", "packing", "tokens", "run_tokens"))
        stages.setdefault((*figures, row["cost_ratio"]), []).append(row["stage"])
    lines = [f"{'rows of':<34}{'packing':>13}{'tokens':>14}{'run':>14}{'tree/batches':>14}"]
    for (dataset, packing, tokens, run, ratio), names in stages.items():
        common = len(names) == len(made.stages)
        what = dataset if common else f"{dataset} ({', '.join(names)})"
        lines.append(f"{what:<34}{packing:>13}{tokens:>14,}{run:>14,}{ratio:>14.2f}")
    return [
        *lines,
        *(
            f"no trees for {stage.card.name}: {stage.shape.without_tree}"
            for stage in made.stages
            if stage.shape.without_tree
        ),
    ]
