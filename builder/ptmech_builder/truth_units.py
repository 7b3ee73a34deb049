"""Units that put truth directions to work: what they do to the answers of each stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from typing_extensions import override

from ptmech._statements import Statements
from ptmech.truth.steering import Questions, truth_shift
from ptmech_builder.activation_units import ActivationUnit
from ptmech_builder.cards import Card, TruthCard, TruthInterventionCard
from ptmech_builder.units import Made, MeasuredUnit, Output, Unit, parquet_bytes
from ptmech_builder.writer import digest

if TYPE_CHECKING:
    from ptmech_builder.stage_plan import StagePlan
    from ptmech_builder.workbench import Workbench


@dataclass(frozen=True, kw_only=True)
class TruthEffectsUnit(MeasuredUnit):
    """Answers of one stage, steered along every stage's truth direction and a random one."""

    settings: TruthCard
    intervention: TruthInterventionCard
    direction_keys: Mapping[str, str]
    """Digest of the activations from which each stage's direction is computed."""
    rows: Mapping[str, pl.DataFrame]
    """Of the datasets the directions are found in, and of the one that is asked about."""
    last_token: Mapping[str, int]
    """Index of the last token among the stored positions of each dataset."""

    @property
    @override
    def name(self) -> str:
        return f"truth.{self.stage}"

    @override
    def recipe(self) -> Mapping[str, Any]:
        return {
            **super().recipe(),
            "directions": dict(self.direction_keys),
            "rows": {name: digest(parquet_bytes(rows)) for name, rows in self.rows.items()},
            "settings": self.settings.model_dump(mode="json"),
        }

    @override
    def make(self, bench: Workbench) -> Made:
        from ptmech.live.effects.truth import stage_effects

        settings, intervention = self.settings, self.intervention
        asked = self.rows[intervention.dataset]
        shifts = bench.shared(
            ("truth shifts", settings),
            lambda: {stage: self._shift(bench, stage, asked) for stage in bench.stages},
        )
        effects = stage_effects(
            bench.model(self.stage),
            self.stage,
            shifts,
            questions_of(intervention, asked),
            layer=settings.layer,
            layers=range(intervention.first_layer, settings.layer + 1),
            seed=intervention.seed,
        )
        output = Output(f"scores/{self.stage}/truth.parquet", parquet_bytes(effects))
        return Made(iter([output]), {})

    def _shift(self, bench: Workbench, stage: str, asked: pl.DataFrame) -> np.ndarray:
        """Return what is added along a stage's direction [d_model], from stored activations."""
        training = Statements.stack({name: self.rows[name] for name in self.settings.datasets})
        activations = [
            # Activations are read back as resid_pre: the input of the next layer.
            bench.activations(stage, name, self.settings.layer + 1, self.last_token[name])
            for name in self.settings.datasets
        ]
        return truth_shift(training, np.concatenate(activations).astype(np.float64), asked=asked)


def questions_of(intervention: TruthInterventionCard, rows: pl.DataFrame) -> Questions:
    """Return what models are asked, behind which examples.

    Raises
    ------
    DataError
        Too few statements to ask about.
    """
    return Questions.of(
        rows,
        n=intervention.statements,
        seed=intervention.seed,
        examples=intervention.examples,
    )


def truth_datasets(card: Card) -> set[str]:
    """Return the datasets whose rows a card's truth intervention needs; none without one."""
    if card.truth is None or card.truth.intervention is None:
        return set()
    return {*card.truth.datasets, card.truth.intervention.dataset}


def truth_units(
    card: Card,
    stages: Sequence[StagePlan],
    rows: Mapping[str, pl.DataFrame],
    forward: Sequence[Unit],
) -> list[TruthEffectsUnit]:
    """Return a unit for each stage, or none if the card does not ask for the intervention.

    Raises
    ------
    DataError
        Too few statements to ask about, before any model runs.
    """
    if card.truth is None or card.truth.intervention is None:
        return []
    intervention = card.truth.intervention
    questions_of(intervention, rows[intervention.dataset])
    direction_keys = {
        unit.name: unit.key
        for unit in forward
        if isinstance(unit, ActivationUnit) and unit.prompts.dataset in card.truth.datasets
    }
    return [
        TruthEffectsUnit(
            stage=stage.card.name,
            settings=card.truth,
            intervention=intervention,
            direction_keys=direction_keys,
            identity=stage.identity.digest,
            compute_dtype=card.extraction.compute_dtype,
            tokenizer=stage.tokenizer_sha256,
            rows={name: rows[name] for name in sorted(truth_datasets(card))},
            last_token={
                name: card.dataset(name).positions.index(-1) for name in card.truth.datasets
            },
        )
        for stage in stages
    ]
