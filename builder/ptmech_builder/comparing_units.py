"""Units that compare stages: causal traces and refusal scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from typing_extensions import override

from ptmech.directions import difference_in_means
from ptmech.manifest import StoredDtype
from ptmech_builder.cards import RefusalCard, TraceCard
from ptmech_builder.prompts import Prompts
from ptmech_builder.units import ExtraKind, ExtraUnit, Made, Output, parquet_bytes
from ptmech_builder.writer import digest

if TYPE_CHECKING:
    from ptmech_builder.trace_pairs import CompletionPair
    from ptmech_builder.workbench import Workbench


@dataclass(frozen=True, kw_only=True)
class TraceUnit(ExtraUnit):
    """Causal tracing on one dataset: one stage's activations patched into another's run."""

    source: str
    settings: TraceCard
    identities: Mapping[str, str]
    """Digest of every stage's weights: the pairs are facts that all stages know."""
    compute_dtype: StoredDtype
    tokenizers: Mapping[str, str]
    """Digest of every stage's tokenizer."""
    rows: pl.DataFrame

    @property
    @override
    def kind(self) -> ExtraKind:
        return "trace"

    @property
    @override
    def name(self) -> str:
        return f"traces.{self.source}-{self.stage}.{self.settings.dataset}"

    @override
    def recipe(self) -> Mapping[str, Any]:
        return {
            "source": self.source,
            "target": self.stage,
            "weights": dict(self.identities),
            "compute_dtype": self.compute_dtype,
            "tokenizers": dict(self.tokenizers),
            "rows": digest(parquet_bytes(self.rows)),
            "settings": self.settings.model_dump(mode="json"),
        }

    @property
    @override
    def expected_files(self) -> int:
        return 7  # the group's description, and description and one shard of three arrays

    @override
    def make(self, bench: Workbench) -> Made:
        from ptmech_builder.grids import grid_files
        from ptmech_builder.trace_pairs import trace_columns
        from ptmech_builder.traces import source_run, trace_grid

        dataset = self.settings.dataset
        pairs, known = bench.shared(("pairs", self.settings), lambda: self._choose_pairs(bench))
        values = bench.shared(
            ("source run", self.settings, self.source),
            lambda: source_run(bench.model(self.source).model, pairs),
        )
        target = bench.model(self.stage)
        grids = trace_grid(
            target.model, pairs, source_values=values, same_model=self.source == self.stage
        )
        columns = trace_columns(pairs, target.tokenizer)
        files = grid_files(
            grids._asdict(),
            {
                "form": self.settings.form,
                "source": self.source,
                "target": self.stage,
                "dataset": dataset,
                "examples": list(self.settings.examples),
                "tokens": [column.token for column in columns],
                "roles": [column.role for column in columns],
                "pairs": [
                    {"true_uid": pair.true_uid, "false_uid": pair.false_uid} for pair in pairs
                ],
                "known": known,
            },
        )
        folder = f"traces/{self.source}-{self.stage}/{dataset}.zarr"
        return Made((Output(f"{folder}/{key}", data) for key, data in files.items()), {})

    def _choose_pairs(self, bench: Workbench) -> tuple[list[CompletionPair], dict[str, float]]:
        """Pair facts that every stage knows; also say which share of all facts each one knows."""
        from ptmech_builder.trace_pairs import choose_pairs, completion_prompts, known_facts

        prompts = completion_prompts(self.rows, examples=self.settings.examples)
        known = {
            stage: known_facts(bench.model(stage).model, bench.model(stage).tokenizer, prompts)
            for stage in self.identities
        }
        pairs = choose_pairs(
            prompts,
            bench.model(next(iter(self.identities))).tokenizer,
            known=np.logical_and.reduce(list(known.values())),
            n_pairs=self.settings.pairs,
            seed=self.settings.seed,
        )
        return pairs, {stage: float(facts.mean()) for stage, facts in known.items()}


@dataclass(frozen=True, kw_only=True)
class ScoresUnit(ExtraUnit):
    """Refusal scores of one stage, bare and under interventions along every stage's direction."""

    settings: RefusalCard
    direction_keys: Mapping[str, str]
    """Digest of the activations from which each stage's direction is computed."""
    identity: str
    compute_dtype: StoredDtype
    tokenizer: str
    """Digest of the tokenizer."""
    prompts: Mapping[str, Prompts]
    """Rows of the harmful and of the harmless dataset that are completed."""
    training: Mapping[str, np.ndarray]
    """Which rows [rows] bool of either dataset make the directions."""
    plain_text: tuple[str, ...]

    @property
    @override
    def kind(self) -> ExtraKind:
        return "scores"

    @property
    @override
    def name(self) -> str:
        return f"scores.{self.stage}"

    @override
    def recipe(self) -> Mapping[str, Any]:
        return {
            "stage": self.stage,
            "weights": self.identity,
            "directions": dict(self.direction_keys),
            "compute_dtype": self.compute_dtype,
            "tokenizer": self.tokenizer,
            "prompts": {kind: prompts.digest for kind, prompts in self.prompts.items()},
            "training": {kind: rows.nonzero()[0].tolist() for kind, rows in self.training.items()},
            "plain_text": digest("\0".join(self.plain_text).encode()),
            "settings": self.settings.model_dump(mode="json"),
        }

    @property
    @override
    def expected_files(self) -> int:
        return 2

    @override
    def make(self, bench: Workbench) -> Made:
        from ptmech.refusal import is_refusal
        from ptmech_builder.scores import refusal_scores

        settings = self.settings
        loaded = bench.model(self.stage)
        prompts = {
            kind: dict(zip(part.uids.tolist(), part.token_ids, strict=True))
            for kind, part in self.prompts.items()
        }
        scores, completions = refusal_scores(
            loaded.model,
            loaded.tokenizer,
            stage=self.stage,
            layer=settings.layer,
            directions={stage: self._direction(bench, stage) for stage in bench.stages},
            harmful=prompts[settings.harmful],
            harmless=prompts[settings.harmless],
            plain_texts=loaded.tokenizer(list(self.plain_text))["input_ids"],
            is_refusal=is_refusal,
            max_new_tokens=settings.max_new_tokens,
            seed=settings.seed,
        )
        folder = f"scores/{self.stage}"
        files = [
            Output(f"{folder}/refusal.parquet", parquet_bytes(scores)),
            Output(f"{folder}/completions.parquet", parquet_bytes(completions)),
        ]
        return Made(iter(files), {})

    def _direction(self, bench: Workbench, stage: str) -> np.ndarray:
        """Return a stage's mean difference [d_model], from its stored activations."""
        harmful, harmless = (
            bench.activations(
                stage,
                kind,
                self.settings.layer,
                self.prompts[kind].positions.index(self.settings.position),
            )[self.training[kind]]
            for kind in (self.settings.harmful, self.settings.harmless)
        )
        return difference_in_means(harmful, harmless)
