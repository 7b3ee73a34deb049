"""A build without models: real plans, units and files, and numbers out of thin air.

What a build does to its folder does not depend on where the numbers come from. Here they come from
a digest of what decides them, so that a build takes a tenth of a second and needs no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import polars as pl
from typing_extensions import override

from ptmech._schemas import STATEMENT_COLUMNS, TOKEN_COLUMNS
from ptmech.alignment import row_uid
from ptmech.live.models.files import ModelIdentity
from ptmech.live.models.loading import ModelShape
from ptmech.manifest import StoredDtype
from ptmech.model_sources import FolderModel
from ptmech_builder.activation_units import ActivationUnit
from ptmech_builder.build import BuildReport, run
from ptmech_builder.cards import Card
from ptmech_builder.dataset_files import Origin
from ptmech_builder.plan import Plan
from ptmech_builder.progress import Progress
from ptmech_builder.prompts import Prompts
from ptmech_builder.stage_plan import StagePlan
from ptmech_builder.table_units import TableUnit
from ptmech_builder.units import ExtraKind, ExtraUnit, Made, Output, Unit, parquet_bytes
from ptmech_builder.workbench import Workbench

DATASET = "facts"
STAGES = ("base", "tuned")
LAYERS: Mapping[str, tuple[int, ...]] = {"resid_pre": (0,), "resid_post": (0, 1)}
D_MODEL = 4
ROWS_PER_BLOCK = 3
_DTYPES: dict[StoredDtype, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}


@dataclass(frozen=True)
class Recipe:
    """What may change between two builds of one folder."""

    dtype: StoredDtype = "float32"
    rows: int = 5
    last_statement: str = "Milk is white."
    tuned: int = 0
    """Stands for the weights of the later stage."""

    @property
    def statements(self) -> list[str]:
        """One text a row."""
        rows = [f"Thing {row} is {'true' if row % 2 else 'false'}." for row in range(self.rows)]
        return [*rows[:-1], self.last_statement]


@cache
def pretend_plan(recipe: Recipe) -> Plan:
    """Return the plan of a recipe."""
    texts = recipe.statements
    uids = np.array([row_uid(DATASET, str(n), text) for n, text in enumerate(texts)], np.uint64)
    prompts = Prompts(
        dataset=DATASET,
        uids=uids,
        token_ids=[[0, *text.encode()] for text in texts],
        positions=(-1,),
        rendered_sha256=[hashlib.sha256(text.encode()).hexdigest() for text in texts],
    )
    card = _card()
    stages = tuple(
        StagePlan(
            card=stage,
            source=FolderModel(path=Path("model")),
            identity=_identity(recipe.tuned if stage.name == "tuned" else 0),
            adapter=None,
            shape=ModelShape(n_layers=2, d_model=D_MODEL),
            tokenizer=None,  # pyright: ignore[reportArgumentType] - nothing is left to tokenize
            tokenizer_sha256=_sha("bytes"),
            prompts={DATASET: prompts},
        )
        for stage in card.stages
    )
    units: list[Unit] = [
        TableUnit(stage="", path="tables/statements.parquet", frame=_statements(texts, uids)),
        *(
            TableUnit(stage="", path=f"tables/tokens/{name}.parquet", frame=_tokens(prompts))
            for name in STAGES
        ),
    ]
    for stage in stages:
        blocks = _blocks(stage, prompts, recipe.dtype)
        units += [*blocks, MeansUnit(stage=stage.card.name, blocks=tuple(b.key for b in blocks))]
    return Plan(
        card=card,
        card_sha256=_sha(repr(recipe)),
        device="cpu",
        device_map=None,
        dtype=recipe.dtype,
        stages=stages,
        datasets=card.datasets,
        origins={DATASET: Origin(sha256=_sha(*texts), source="facts.csv")},
        layers=LAYERS,
        tolerance=1e-4,
        units=tuple(units),
        narrowed="",
        left_out="",
    )


def pretend_build(recipe: Recipe, root: Path) -> BuildReport:
    """Build a recipe silently."""
    return run(pretend_plan(recipe), root, Progress(quiet=True))


@dataclass(frozen=True, kw_only=True)
class PretendBlock(ActivationUnit):
    """A block of rows whose activations no model computed."""

    @override
    def make(self, bench: Workbench) -> Made:
        files = (
            Output(self._path(site, layer), self._bytes(site, layer, values), site, layer)
            for site, layers in self.layers.items()
            for layer in layers
            for values in [self._values(site, layer)]
        )
        facts = {
            "architecture": "llama",
            "n_layers": 2,
            "d_model": D_MODEL,
            "d_mlp": 8,
            "vocabulary": 256,
        }
        return Made(files, facts, parity=1e-6, rows=self.prompts.uids.size)

    def _values(self, site: str, layer: int) -> np.ndarray:
        decided_by = _sha(self.stage, self.identity, self.prompts.digest, site, str(layer))
        shape = (self.prompts.uids.size, len(self.prompts.positions), self.d_model)
        values = np.random.default_rng(int(decided_by[:16], 16)).normal(size=shape)
        return values.astype(_DTYPES[self.dtype])


@dataclass(frozen=True, kw_only=True)
class MeansUnit(ExtraUnit):
    """A table computed from finished activations, as directions are."""

    blocks: tuple[str, ...]

    @property
    @override
    def kind(self) -> ExtraKind:
        return "scores"

    @property
    @override
    def name(self) -> str:
        return f"means.{self.stage}"

    @property
    @override
    def reads_units(self) -> bool:
        return True

    @override
    def recipe(self) -> Mapping[str, Any]:
        return {"stage": self.stage, "blocks": list(self.blocks)}

    @override
    def make(self, bench: Workbench) -> Made:
        means = [
            bench.activations(self.stage, DATASET, layer, 0).mean(axis=0).tolist()
            for layer in range(3)
        ]
        table = parquet_bytes(pl.DataFrame({"layer": [0, 1, 2], "mean": means}))
        return Made(iter([Output(f"scores/{self.stage}/means.parquet", table)]), {})


def _blocks(stage: StagePlan, prompts: Prompts, dtype: StoredDtype) -> list[PretendBlock]:
    starts = range(0, prompts.uids.size, ROWS_PER_BLOCK)
    every = np.arange(prompts.uids.size)
    return [
        PretendBlock(
            stage=stage.card.name,
            identity=stage.identity.digest,
            tokenizer=stage.tokenizer_sha256,
            prompts=prompts.take(every[first : first + ROWS_PER_BLOCK]),
            block=number,
            n_blocks=len(starts),
            first_row=first,
            layers=LAYERS,
            d_model=D_MODEL,
            compute_dtype="float32",
            dtype=dtype,
            tokens_per_batch=256,
            parity_rows=1,
            tolerance=1e-4,
        )
        for number, first in enumerate(starts)
    ]


def _card() -> Card:
    return Card.model_validate(
        {
            "format": 1,
            "name": "pretended",
            "title": "A pretended family",
            "description": "Numbers out of thin air: for tests only.",
            "licence": "CC0-1.0",
            "stages": [
                {"name": name, "title": name.title(), "model": {"path": "model"}} for name in STAGES
            ],
            "datasets": [
                {"name": DATASET, "title": "Facts", "kind": "statements", "file": "facts.csv"}
            ],
        }
    )


def _identity(weights: int) -> ModelIdentity:
    return ModelIdentity(
        source="folder:model", weights={"model.safetensors": _sha("weights", str(weights))}
    )


def _statements(texts: list[str], uids: np.ndarray) -> pl.DataFrame:
    known = {
        "row_uid": pl.Series(uids, dtype=pl.UInt64),
        "dataset": [DATASET] * len(texts),
        "row": range(len(texts)),
        "source_id": [str(row) for row in range(len(texts))],
        "text": texts,
        "label": [row % 2 for row in range(len(texts))],
        "split": ["train", "test"] * (len(texts) // 2) + ["train"] * (len(texts) % 2),
    }
    return pl.DataFrame(
        {
            name: pl.Series(name, known.get(name, [None] * len(texts)), dtype=dtype)
            for name, dtype in STATEMENT_COLUMNS.items()
        }
    )


def _tokens(prompts: Prompts) -> pl.DataFrame:
    columns = {
        "row_uid": prompts.uids.tolist(),
        "dataset": [DATASET] * prompts.uids.size,
        "token_ids": [list(ids) for ids in prompts.token_ids],
        "tokens": [[str(token) for token in ids] for ids in prompts.token_ids],
        "positions": prompts.indices.tolist(),
        "rendered_sha256": list(prompts.rendered_sha256),
    }
    return pl.DataFrame(columns, schema=TOKEN_COLUMNS)


def _sha(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
