"""One stage of a build: its model, and every prompt as its tokenizer sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ptmech.live.models import (
    ModelIdentity,
    ModelShape,
    load_shape,
    load_tokenizer,
    local_folder,
    model_identity,
    pinned,
    require_quantisation,
    tokenizer_digest,
)
from ptmech.model_sources import ModelSource
from ptmech_builder.cards import CardFile, DatasetCard, StageCard
from ptmech_builder.prompts import Prompts, make_prompts

if TYPE_CHECKING:
    import polars as pl
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One stage of a build: its model, and every prompt as its tokenizer sees it."""

    card: StageCard
    source: ModelSource
    identity: ModelIdentity
    adapter: Path | None
    shape: ModelShape
    tokenizer: PreTrainedTokenizerBase
    tokenizer_sha256: str
    prompts: Mapping[str, Prompts]

    @property
    def without_neurons(self) -> str:
        """Why the last MLP has no neurons with output weights to read; empty if it has."""
        if not self.shape.has_neurons:
            return "its last MLP is a mixture of experts"
        return "its weights are quantised" if self.card.quantisation else ""


def plan_stage(
    card_file: CardFile,
    stage: StageCard,
    datasets: Sequence[DatasetCard],
    rows: Mapping[str, pl.DataFrame],
) -> StagePlan:
    """Find a stage's model and tokenizer, and render its prompts.

    Raises
    ------
    UnsupportedModelError
        If its architecture is not known, or its weights are quantised and the card does not say so.
    ArtifactNotFoundError, AccessError, UnreachableError
        If its files cannot be had.
    """
    adapter = card_file.adapter(stage)
    source = pinned(card_file.model(stage))  # a branch must not move during a build
    require_quantisation(
        local_folder(source, with_weights=False),
        stage.quantisation,
        adapter=adapter,
        name=f"stage {stage.name!r}",
    )
    tokenizer = load_tokenizer(source, add_beginning=stage.add_beginning)
    return StagePlan(
        card=stage,
        source=source,
        identity=model_identity(source, adapter, stage.quantisation),
        adapter=adapter,
        shape=load_shape(source),
        tokenizer=tokenizer,
        tokenizer_sha256=tokenizer_digest(tokenizer),
        prompts={d.name: make_prompts(rows[d.name], d, stage, tokenizer) for d in datasets},
    )
