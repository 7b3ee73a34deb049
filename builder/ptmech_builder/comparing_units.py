"""Units that compare stages with one another: traces, and scores of what directions do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ptmech.errors import CardError
from ptmech_builder.cards import CardFile
from ptmech_builder.plan_checks import require_pairs
from ptmech_builder.score_units import refusal_units
from ptmech_builder.selection import Selection
from ptmech_builder.trace_units import TraceUnit
from ptmech_builder.truth_units import truth_datasets, truth_units
from ptmech_builder.units import Unit

if TYPE_CHECKING:
    import polars as pl

    from ptmech_builder.stage_plan import StagePlan


def comparing_units(
    card_file: CardFile,
    selection: Selection,
    stages: Sequence[StagePlan],
    rows: Mapping[str, pl.DataFrame],
    forward: Sequence[Unit],
) -> tuple[list[Unit], str]:
    """Return the units that compare stages, or why there are none.

    Raises
    ------
    CardError
        If the stages cannot be compared as the card asks.
    """
    card = card_file.card
    if not card.traces and card.refusal is None and not truth_datasets(card):
        return [], ""
    needed = {trace.dataset for trace in card.traces} | truth_datasets(card)
    if card.refusal is not None:
        needed |= {card.refusal.harmful, card.refusal.harmless}
    whole = selection.limit is None and len(stages) == len(card.stages) and needed <= set(rows)
    if not whole:
        return [], "traces and scores need every stage, every row and their datasets"
    for trace in card.traces:
        require_pairs(trace, rows[trace.dataset], stages[0].tokenizer)
        if len({stage.prompts[trace.dataset].digest for stage in stages}) > 1:
            raise CardError(
                f"traces of {trace.dataset!r} patch one stage's tokens into another's, but the "
                "stages' tokenizers split its statements differently"
            )
    identities = {stage.card.name: stage.identity.digest for stage in stages}
    units: list[Unit] = [
        TraceUnit(
            stage=target.card.name,
            source=source.card.name,
            settings=trace,
            identities=identities,
            compute_dtype=card.extraction.compute_dtype,
            tokenizers={stage.card.name: stage.tokenizer_sha256 for stage in stages},
            rows=rows[trace.dataset],
        )
        for source, target in _by_shared_models(stages)
        for trace in card.traces
    ]
    units += refusal_units(card_file, stages, rows, forward)
    units += truth_units(card, stages, rows, forward)
    return units, ""


def _by_shared_models(stages: Sequence[StagePlan]) -> list[tuple[StagePlan, StagePlan]]:
    """Pair each stage with each, also with itself; neighbours share models that are in memory."""
    ordered: list[tuple[StagePlan, StagePlan]] = []
    for number, stage in enumerate(stages):
        ordered.append((stage, stage))
        for earlier in reversed(stages[:number]):
            ordered += [(earlier, stage), (stage, earlier)]
    return ordered
