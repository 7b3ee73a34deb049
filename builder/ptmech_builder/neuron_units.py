"""Units that ablate entropy-neuron candidates: the causal test of what the weights suggest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from ptmech.confidence.candidates import candidates_of
from ptmech_builder.cards import CardFile, ConfidenceCard
from ptmech_builder.rows import read_texts
from ptmech_builder.units import Made, MeasuredUnit, Output, parquet_bytes
from ptmech_builder.weight_units import WeightsUnit
from ptmech_builder.writer import digest

if TYPE_CHECKING:
    from ptmech_builder.stage_plan import StagePlan
    from ptmech_builder.workbench import Workbench


@dataclass(frozen=True, kw_only=True)
class NeuronEffectsUnit(MeasuredUnit):
    """What one stage's candidates do to entropy and loss, and what random neurons do."""

    settings: ConfidenceCard
    weights: WeightsUnit
    """The statistics that the candidates are chosen by."""
    texts: tuple[str, ...]

    @property
    @override
    def name(self) -> str:
        return f"neurons.{self.stage}"

    @override
    def recipe(self) -> Mapping[str, Any]:
        return {
            **super().recipe(),
            "statistics": self.weights.key,
            "texts": digest("\0".join(self.texts).encode()),
            "settings": self.settings.model_dump(mode="json"),
        }

    @override
    def make(self, bench: Workbench) -> Made:
        from ptmech.confidence import ablate_neurons

        settings = self.settings
        candidates = candidates_of(
            bench.table(self.weights.name, "neurons.parquet"),
            norm_quantile=settings.norm_quantile,
            n=settings.candidates,
        )
        effects = ablate_neurons(
            bench.model(self.stage),
            candidates,
            self.texts,
            stage=self.stage,
            norm_quantile=settings.norm_quantile,
            seed=settings.seed,
        )
        output = Output(f"scores/{self.stage}/neurons.parquet", parquet_bytes(effects.frame))
        return Made(iter([output]), {})


def neuron_units(
    card_file: CardFile, stage: StagePlan, weights: WeightsUnit
) -> list[NeuronEffectsUnit]:
    """Return the unit of a stage, or none if the card does not ask for the test.

    Raises
    ------
    DataError
        If the card's texts cannot be read.
    """
    card = card_file.card
    if card.confidence is None:
        return []
    return [
        NeuronEffectsUnit(
            stage=stage.card.name,
            settings=card.confidence,
            weights=weights,
            identity=stage.identity.digest,
            compute_dtype=card.extraction.compute_dtype,
            tokenizer=stage.tokenizer_sha256,
            texts=read_texts(card_file, card.confidence.plain_text)[: card.confidence.texts],
        )
    ]
