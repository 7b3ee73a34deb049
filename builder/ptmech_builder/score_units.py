"""Units that run models under refusal directions: completions, and scores of the candidates."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from typing_extensions import override

from ptmech.directions import difference_in_means
from ptmech.errors import DataError
from ptmech.refusal.interventions import PLAIN_TEXT
from ptmech.refusal.selection import unpruned
from ptmech_builder.activation_units import ActivationUnit
from ptmech_builder.cards import CardFile, RefusalCard
from ptmech_builder.prompts import Prompts
from ptmech_builder.rows import read_texts
from ptmech_builder.table_units import TableUnit
from ptmech_builder.units import Made, MeasuredUnit, Output, Unit, parquet_bytes
from ptmech_builder.writer import digest

if TYPE_CHECKING:
    from ptmech_builder.stage_plan import StagePlan
    from ptmech_builder.workbench import Workbench


@dataclass(frozen=True, kw_only=True)
class RefusalUnit(MeasuredUnit):
    """What both have in common: a model, directions from stored activations, and prompts."""

    settings: RefusalCard
    direction_keys: Mapping[str, str]
    """Digest of the activations from which directions are computed."""
    prompts: Mapping[str, Prompts]
    """Rows of the harmful and of the harmless dataset that the model is run on."""
    training: Mapping[str, np.ndarray]
    """Which rows [rows] bool of either dataset make the directions."""

    @property
    @override
    @abstractmethod
    def name(self) -> str:
        """Unique within a build."""

    @override
    def recipe(self) -> Mapping[str, Any]:
        return {
            **super().recipe(),
            "directions": dict(self.direction_keys),
            "prompts": {kind: prompts.digest for kind, prompts in self.prompts.items()},
            "training": {kind: rows.nonzero()[0].tolist() for kind, rows in self.training.items()},
        }

    def direction(self, bench: Workbench, stage: str, layer: int, position: int) -> np.ndarray:
        """Return a stage's mean difference [d_model] float64, from its stored activations."""
        harmful, harmless = (
            bench.activations(
                stage, kind, layer, self.prompts[kind].positions.index(position)
            ).astype(np.float64)[self.training[kind]]
            for kind in (self.settings.harmful, self.settings.harmless)
        )
        return difference_in_means(harmful, harmless)


@dataclass(frozen=True, kw_only=True)
class ScoresUnit(RefusalUnit):
    """Refusal scores of one stage, bare and under interventions along every stage's direction."""

    plain_text: tuple[str, ...]

    @property
    @override
    def name(self) -> str:
        return f"scores.{self.stage}"

    @override
    def recipe(self) -> Mapping[str, Any]:
        return {
            **super().recipe(),
            "plain_text": digest("\0".join(self.plain_text).encode()),
            "settings": self.settings.model_dump(mode="json", exclude={"candidates"}),
        }

    @property
    @override
    def expected_files(self) -> int:
        return 2

    @override
    def make(self, bench: Workbench) -> Made:
        from ptmech.live.effects.refusal import refusal_effects

        settings = self.settings
        places = {stage: settings.place(stage) for stage in bench.stages}
        model = bench.model(self.stage)
        prompts = {
            kind: dict(zip(part.uids.tolist(), part.token_ids, strict=True))
            for kind, part in self.prompts.items()
        }
        scores, completions = refusal_effects(
            model,
            stage=self.stage,
            layer={stage: layer for stage, (layer, _) in places.items()},
            directions={
                stage: self.direction(bench, stage, *place) for stage, place in places.items()
            },
            harmful=prompts[settings.harmful],
            harmless=prompts[settings.harmless],
            plain_texts=model.tokens(list(self.plain_text)),
            scales=settings.factors(self.stage),
            unit_length=settings.unit_length,
            sites=settings.sites,
            max_new_tokens=settings.max_new_tokens,
            seed=settings.seed,
        )
        folder = f"scores/{self.stage}"
        files = [
            Output(f"{folder}/refusal.parquet", parquet_bytes(scores)),
            Output(f"{folder}/completions.parquet", parquet_bytes(completions)),
        ]
        return Made(iter(files), {})


@dataclass(frozen=True, kw_only=True)
class CandidatesUnit(RefusalUnit):
    """What every candidate direction of one stage does to the first token of a reply."""

    layers: tuple[int, ...]

    @property
    @override
    def name(self) -> str:
        return f"scores.{self.stage}.candidates"

    @override
    def recipe(self) -> Mapping[str, Any]:
        return {**super().recipe(), "candidates": list(self.layers)}

    @override
    def make(self, bench: Workbench) -> Made:
        from ptmech.live.effects.candidates import candidate_table

        harmful, harmless = (
            self.prompts[kind] for kind in (self.settings.harmful, self.settings.harmless)
        )
        positions = sorted({*harmful.positions} & {*harmless.positions})
        places = [(position, layer) for position in positions for layer in self.layers]
        table = candidate_table(
            bench.model(self.stage),
            places,
            [self.direction(bench, self.stage, layer, position) for position, layer in places],
            harmful=harmful.token_ids,
            harmless=harmless.token_ids,
        )
        path = f"scores/{self.stage}/directions.parquet"
        return Made(iter([Output(path, parquet_bytes(table))]), {})


def candidate_layers(settings: RefusalCard | None, n_layers: int) -> tuple[int, ...]:
    """Return the layers whose directions are scored as candidates, for a model of some depth."""
    if settings is None or settings.candidates is None:
        return ()
    if settings.candidates.layers is None:
        return tuple(range(unpruned(n_layers)))
    return tuple(sorted(set(settings.candidates.layers)))


def refusal_units(
    card_file: CardFile,
    stages: Sequence[StagePlan],
    rows: Mapping[str, pl.DataFrame],
    forward: Sequence[Unit],
) -> list[Unit]:
    """Return the units of a card's refusal interventions, or none if it has none.

    Raises
    ------
    DataError
        A set of prompts lacks a split that is needed, or the plain text cannot be read.
    """
    settings = card_file.card.refusal
    if settings is None:
        return []
    kinds = (settings.harmful, settings.harmless)
    training, validation, test = (
        {kind: (rows[kind]["split"] == split).fill_null(value=False).to_numpy() for kind in kinds}
        for split in ("train", "validation", "test")
    )
    needed = {"train": training, "test": test}
    if settings.candidates is not None:
        needed["validation"] = validation
    for split, chosen in needed.items():
        for kind in kinds:
            if not chosen[kind].any():
                raise DataError(f"refusal scores need rows of split {split!r} in {kind!r}")
    plain_text = read_texts(card_file, settings.plain_text)[: settings.scored_texts]

    def common(
        stage: StagePlan, prompts: Mapping[str, np.ndarray], n: int, sources: Sequence[str]
    ) -> dict[str, Any]:
        return {
            "stage": stage.card.name,
            "settings": settings,
            "direction_keys": {
                unit.name: unit.key
                for unit in forward
                if isinstance(unit, ActivationUnit)
                and unit.prompts.dataset in kinds
                and unit.stage in sources
            },
            "identity": stage.identity.digest,
            "compute_dtype": card_file.card.extraction.compute_dtype,
            "tokenizer": stage.tokenizer_sha256,
            "prompts": {
                kind: stage.prompts[kind].take(prompts[kind].nonzero()[0][:n]) for kind in kinds
            },
            "training": training,
        }

    names = [stage.card.name for stage in stages]
    units: list[Unit] = [
        TableUnit(stage="", path=PLAIN_TEXT, frame=pl.DataFrame({"text": plain_text}))
    ]
    for stage in stages:
        scored = common(stage, test, settings.scored_prompts, names)
        units.append(ScoresUnit(**scored, plain_text=plain_text))
        if settings.candidates is not None:
            tried = common(stage, validation, settings.candidates.prompts, [stage.card.name])
            layers = candidate_layers(settings, stage.shape.n_layers)
            units.append(CandidatesUnit(**tried, layers=layers))
    return units
