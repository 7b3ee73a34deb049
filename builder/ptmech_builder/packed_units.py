"""How the rows of each block run through their stage's model: as trees or in batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ptmech.errors import CardError
from ptmech.live.packing.cost import Choice, choose_packing
from ptmech_builder.activation_units import ActivationUnit

if TYPE_CHECKING:
    from ptmech.manifest import StoredDtype
    from ptmech_builder.cards import DatasetCard, Extraction
    from ptmech_builder.prompts import Prompts
    from ptmech_builder.stage_plan import StagePlan


@dataclass(frozen=True)
class PackedUnit:
    """A block of rows to run, and why it runs the way it does."""

    unit: ActivationUnit
    choice: Choice


def packed_units(
    extraction: Extraction,
    stage: StagePlan,
    dataset: DatasetCard,
    *,
    layers: Mapping[str, tuple[int, ...]],
    dtype: StoredDtype,
    tolerance: float,
) -> list[PackedUnit]:
    """Divide a dataset into blocks of rows and choose how each of them runs.

    Raises
    ------
    CardError
        If the card asks for trees, which the stage's model cannot run.
    """
    step = extraction.rows_per_block
    prompts = stage.prompts[dataset.name]
    every = np.arange(prompts.uids.size)
    starts = range(0, every.size, step)
    packed: list[PackedUnit] = []
    for block, first in enumerate(starts):
        rows = prompts.take(every[first : first + step])
        choice = _choice(extraction, stage, rows)
        unit = ActivationUnit(
            stage=stage.card.name,
            identity=stage.identity.digest,
            tokenizer=stage.tokenizer_sha256,
            prompts=rows,
            block=block,
            n_blocks=len(starts),
            first_row=first,
            layers=layers,
            d_model=stage.shape.d_model,
            compute_dtype=extraction.compute_dtype,
            dtype=dtype,
            packing=choice.packing,
            tokens_per_batch=extraction.tokens_per_batch,
            parity_rows=extraction.parity_rows,
            tolerance=tolerance,
        )
        packed.append(PackedUnit(unit, choice))
    return packed


def _choice(extraction: Extraction, stage: StagePlan, prompts: Prompts) -> Choice:
    refused = stage.shape.without_tree
    found = choose_packing(
        prompts.token_ids,
        stage.shape,
        refused=refused,
        tokens_per_batch=extraction.tokens_per_batch,
    )
    if extraction.packing == "auto":
        return found
    if extraction.packing == "tree" and refused:
        raise CardError(
            f"extraction.packing = 'tree', which stage {stage.card.name!r} cannot run: {refused}; "
            "leave it at 'auto'"
        )
    return replace(found, packing=extraction.packing, why="the card says so")
