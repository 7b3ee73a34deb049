"""Units that compare stages: causal traces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from typing_extensions import override

from ptmech.manifest import StoredDtype
from ptmech_builder.cards import TraceCard
from ptmech_builder.units import ExtraKind, ExtraUnit, Made, Output, parquet_bytes
from ptmech_builder.writer import digest

if TYPE_CHECKING:
    from ptmech.knowledge import Pairs
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
        from ptmech.live.tracing import causal_trace
        from ptmech_builder.grids import grid_files

        dataset = self.settings.dataset
        pairs, known = bench.shared(("pairs", self.settings), lambda: self._choose_pairs(bench))
        trace = causal_trace(bench.model(self.stage), pairs, bench.model(self.source))
        arrays = {
            "grid": trace.grid,
            "unpatched": trace.unpatched,
            "source": trace.source_difference,
        }
        files = grid_files(
            {name: array.astype(np.float32) for name, array in arrays.items()},
            {
                "form": trace.form,
                "measure": trace.measure,
                "source": self.source,
                "target": self.stage,
                "dataset": dataset,
                "examples": list(pairs.examples),
                "tokens": list(trace.tokens),
                "roles": list(trace.roles),
                "pairs": trace.pairs.to_dicts(),
                "known": known,
            },
        )
        folder = f"traces/{self.source}-{self.stage}/{dataset}.zarr"
        return Made((Output(f"{folder}/{key}", data) for key, data in files.items()), {})

    def _choose_pairs(self, bench: Workbench) -> tuple[Pairs, dict[str, float]]:
        """Pair what is traced.

        Completions are of facts that every stage knows; then also say which share of all facts each
        one knows.
        """
        from ptmech.knowledge import completion_prompts, pairs
        from ptmech.live import known_facts

        settings = self.settings
        tokenizer = bench.model(next(iter(self.identities))).tokenizer
        if settings.form == "true_false":
            return pairs(self.rows, tokenizer, **settings.options), {}
        prompts = completion_prompts(self.rows, examples=settings.examples)
        known = {stage: known_facts(bench.model(stage), prompts) for stage in self.identities}
        by_all = np.logical_and.reduce(list(known.values()))
        known_by_all = prompts["row_uid"].filter(by_all)
        chosen = pairs(self.rows, tokenizer, known=known_by_all, **settings.options)
        return chosen, {stage: float(facts.mean()) for stage, facts in known.items()}
