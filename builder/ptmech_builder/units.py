"""Units of work: what a build consists of, each done whole or not at all.

A unit knows its files before it runs and carries a key: the sha256 over everything that decides
their content. Same key, never redone; other key, never reused.
"""

from __future__ import annotations

import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl
from typing_extensions import override

from ptmech.errors import IntegrityError
from ptmech.manifest import (
    ActivationFile,
    Extra,
    FileEntry,
    StoredDtype,
    canonical_json,
)
from ptmech.manifest import ActivationUnit as FinishedBlock
from ptmech_builder.prompts import Prompts
from ptmech_builder.receipts import Receipt, recipe_digests
from ptmech_builder.writer import digest, tensor_bytes

if TYPE_CHECKING:
    from ptmech_builder.workbench import Workbench

ExtraKind = Literal["table", "weights", "adapter", "trace", "scores"]
Kind = ExtraKind | Literal["activations"]

SEMANTICS: Mapping[Kind, int] = {
    "table": 1,
    "activations": 2,
    "weights": 2,
    "adapter": 1,
    "trace": 3,
    "scores": 3,
}
"""Raised whenever the code of a kind of unit changes what it computes."""


@dataclass(frozen=True)
class Output:
    """One file a unit made; `site` and `layer` only for activations."""

    path: str
    data: bytes
    site: str = ""
    layer: int = 0


@dataclass
class Made:
    """What running a unit yields: its files, one at a time, and what is worth remembering."""

    files: Iterator[Output]
    facts: dict[str, Any]
    parity: float = 0.0
    rows: int = 0


@dataclass(frozen=True, kw_only=True)
class Unit(ABC):
    """A piece of work that is done whole or not at all."""

    stage: str
    """The stage whose model does the work; empty if none does."""

    @property
    @abstractmethod
    def kind(self) -> Kind:
        """What sort of unit it is."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Unique within a build; letters, digits, dots, dashes and underscores."""

    @abstractmethod
    def recipe(self) -> Mapping[str, Any]:
        """Everything that decides the content of its files, as plain values."""

    @abstractmethod
    def make(self, bench: Workbench) -> Made:
        """Do the work."""

    @abstractmethod
    def entry(self, output: Output, file: FileEntry) -> ActivationFile | Extra:
        """Return what the manifest says of one of its files."""

    def finished(self, made: Made) -> FinishedBlock | None:  # noqa: ARG002 - most have none
        """Return what a part manifest says of the finished unit, if it is a block of rows."""
        return None

    def accepts(self, receipt: Receipt) -> bool:  # noqa: ARG002 - for units that ask for more
        """Tell whether finished work under the same key is good enough."""
        return True

    @property
    def tokens(self) -> int:
        """Tokens that go through a model, as far as they can be told beforehand."""
        return 0

    @property
    def expected_files(self) -> int:
        """Number of files."""
        return 1

    @property
    def expected_bytes(self) -> int:
        """Bytes of the files, as far as they can be told beforehand."""
        return 0

    @property
    def demand(self) -> str:
        """What it asks of finished work beyond the key; see :meth:`accepts`."""
        return ""

    @property
    def reads_units(self) -> bool:
        """Whether it reads files of units that come before it."""
        return False

    @cached_property
    def key(self) -> str:
        """The sha256 over the recipe."""
        return digest(canonical_json(self._whole_recipe))

    @property
    def way(self) -> str:
        """Key and demand in one text: live builds whose texts differ do not share the unit."""
        return f"{self.key} {self.demand}".rstrip()

    @cached_property
    def recipe_digests(self) -> Mapping[str, str]:
        """A short digest of each entry of the recipe: what changed, when the key does."""
        return recipe_digests(self._whole_recipe)

    @cached_property
    def _whole_recipe(self) -> Mapping[str, Any]:
        about = {"unit": self.name, "kind": self.kind, "code": SEMANTICS[self.kind]}
        return {**about, **self.recipe()}


@dataclass(frozen=True, kw_only=True)
class ExtraUnit(Unit):
    """A unit whose files are not activations."""

    @property
    @override
    @abstractmethod
    def kind(self) -> ExtraKind:
        """What sort of unit, and of file, it is."""

    @override
    def entry(self, output: Output, file: FileEntry) -> Extra:
        return Extra(**file.model_dump(), kind=self.kind, unit=self.key)


@dataclass(frozen=True, kw_only=True)
class MeasuredUnit(ExtraUnit):
    """Something measured on one stage's running model, under interventions."""

    identity: str
    """Digest of weights and adapter."""
    compute_dtype: StoredDtype
    tokenizer: str
    """Digest of the tokenizer."""

    @property
    @override
    def kind(self) -> ExtraKind:
        return "scores"

    @property
    @override
    def reads_units(self) -> bool:
        return True

    @override
    def recipe(self) -> Mapping[str, Any]:
        return {
            "stage": self.stage,
            "weights": self.identity,
            "compute_dtype": self.compute_dtype,
            "tokenizer": self.tokenizer,
        }


@dataclass(frozen=True, kw_only=True)
class TableUnit(ExtraUnit):
    """A Parquet table of the artifact."""

    path: str
    frame: pl.DataFrame

    @property
    @override
    def kind(self) -> ExtraKind:
        return "table"

    @property
    @override
    def name(self) -> str:
        return self.path.removesuffix(".parquet").replace("/", ".")

    @override
    def recipe(self) -> Mapping[str, Any]:
        return {"path": self.path, "content": digest(self._bytes)}

    @property
    @override
    def expected_bytes(self) -> int:
        return len(self._bytes)

    @override
    def make(self, bench: Workbench) -> Made:
        return Made(iter([Output(self.path, self._bytes)]), {})

    @cached_property
    def _bytes(self) -> bytes:
        return parquet_bytes(self.frame)


@dataclass(frozen=True, kw_only=True)
class ActivationUnit(Unit):
    """A block of rows of one dataset through one stage: one pass, all sites and layers."""

    identity: str
    """Digest of weights and adapter."""
    tokenizer: str
    """Digest of the tokenizer."""
    prompts: Prompts
    """The rows of this block."""
    block: int
    n_blocks: int
    first_row: int
    layers: Mapping[str, tuple[int, ...]]
    d_model: int
    compute_dtype: StoredDtype
    dtype: StoredDtype
    tokens_per_batch: int
    """Padded tokens of one forward pass; who shares a batch decides the lowest bits."""
    parity_rows: int
    tolerance: float

    @property
    @override
    def kind(self) -> Kind:
        return "activations"

    @property
    @override
    def name(self) -> str:
        return f"acts.{self.stage}.{self.prompts.dataset}.{self.block:05d}"

    @override
    def recipe(self) -> Mapping[str, Any]:
        return {
            "weights": self.identity,
            "tokenizer": self.tokenizer,
            "rows": digest(self.prompts.uids.astype("<u8").tobytes()),
            "template": digest("".join(self.prompts.rendered_sha256).encode()),
            "token_ids": digest(canonical_json({"": [*map(list, self.prompts.token_ids)]})),
            "positions": list(self.prompts.positions),
            "sites": {site: list(layers) for site, layers in self.layers.items()},
            "blocks": [self.block, self.n_blocks, self.first_row],
            "compute_dtype": self.compute_dtype,
            "dtype": self.dtype,
            "tokens_per_batch": self.tokens_per_batch,
        }

    @property
    @override
    def demand(self) -> str:
        return f"{self.parity_rows} rows within {self.tolerance}"

    @override
    def accepts(self, receipt: Receipt) -> bool:
        block = receipt.activation
        checked = int(receipt.facts.get("parity_rows", 0))
        wanted = min(self.parity_rows, self.prompts.uids.size)
        return block is not None and block.parity <= self.tolerance and checked >= wanted

    @property
    @override
    def tokens(self) -> int:
        return self.prompts.tokens

    @property
    @override
    def expected_files(self) -> int:
        return sum(len(layers) for layers in self.layers.values())

    @property
    @override
    def expected_bytes(self) -> int:
        width = 2 if self.dtype != "float32" else 4
        rows, positions = self.prompts.indices.shape
        return self.expected_files * rows * (positions * self.d_model * width + 8)

    @override
    def make(self, bench: Workbench) -> Made:
        from ptmech_builder.extract import check_parity, extract

        sites = bench.sites(self.stage)
        wanted = [(site, layer) for site, layers in self.layers.items() for layer in layers]
        with bench.progress.bar(self.tokens, f"{self.stage} {self.prompts.dataset}") as bar:
            found = extract(
                sites,
                self.prompts,
                wanted,
                dtype=self.dtype,
                tokens_per_batch=self.tokens_per_batch,
                advance=bar.update,
            )
        bench.check_sites(self.stage, self.prompts.token_ids[0], self.tolerance)
        parity = check_parity(
            sites, self.prompts, found, n_rows=self.parity_rows, tolerance=self.tolerance
        )
        files = (
            Output(self._path(site, layer), self._bytes(site, layer, values), site, layer)
            for (site, layer), values in found.items()
        )
        return Made(files, bench.stage_facts(self.stage), parity.worst, parity.rows)

    @override
    def entry(self, output: Output, file: FileEntry) -> ActivationFile:
        return ActivationFile(
            **file.model_dump(),
            site=output.site,
            layer=output.layer,
            block=self.block,
            rows=self.prompts.uids.size,
        )

    @override
    def finished(self, made: Made) -> FinishedBlock:
        return FinishedBlock(
            key=self.key,
            block=self.block,
            first_row=self.first_row,
            rows=self.prompts.uids.size,
            parity=made.parity,
        )

    def _path(self, site: str, layer: int) -> str:
        several = f".{self.block:05d}-of-{self.n_blocks:05d}" if self.n_blocks > 1 else ""
        folder = f"acts/{self.stage}/{self.prompts.dataset}/{site}"
        return f"{folder}/L{layer:02d}{several}.safetensors"

    def _bytes(self, site: str, layer: int, values: np.ndarray) -> bytes:
        about = {
            "stage": self.stage,
            "dataset": self.prompts.dataset,
            "site": site,
            "layer": layer,
            "positions": list(self.prompts.positions),
        }
        uids = self.prompts.uids.astype(np.uint64)
        return tensor_bytes({"activations": values, "row_uid": uids}, about)


@dataclass(frozen=True, kw_only=True)
class AdapterUnit(ExtraUnit):
    """The adapter of a stage: with it the stage can be opened as a live model.

    Weights are copied byte for byte; of the configuration the name of the model it was trained on
    is left out, which is often a path of the machine that trained it.
    """

    folder: Path
    sha256: Mapping[str, str]
    """Digest of each file, by name."""

    @property
    @override
    def kind(self) -> ExtraKind:
        return "adapter"

    @property
    @override
    def name(self) -> str:
        return f"adapter.{self.stage}"

    @override
    def recipe(self) -> Mapping[str, Any]:
        return {"adapter": dict(self.sha256)}

    @property
    @override
    def expected_files(self) -> int:
        return len(self.sha256)

    @property
    @override
    def expected_bytes(self) -> int:
        return sum((self.folder / name).stat().st_size for name in self.sha256)

    @override
    def make(self, bench: Workbench) -> Made:
        files: list[Output] = []
        for name, promised in self.sha256.items():
            data = (self.folder / name).read_bytes()
            if digest(data) != promised:
                raise IntegrityError(f"{name} of stage {self.stage!r} changed during the build")
            if name.endswith(".json"):
                data = canonical_json({**json.loads(data), "base_model_name_or_path": None})
            files.append(Output(f"adapters/{self.stage}/{name}", data))
        return Made(iter(files), {})


@dataclass(frozen=True, kw_only=True)
class WeightsUnit(ExtraUnit):
    """Statistics of one stage's unembedding and last MLP."""

    identity: str
    compute_dtype: StoredDtype
    null_space_k: int
    neurons: bool = True
    """Whether the last MLP has neurons; a mixture of experts has not."""

    @property
    @override
    def kind(self) -> ExtraKind:
        return "weights"

    @property
    @override
    def name(self) -> str:
        return f"weights.{self.stage}"

    @override
    def recipe(self) -> Mapping[str, Any]:
        return {
            "weights": self.identity,
            "compute_dtype": self.compute_dtype,
            "null_space_k": self.null_space_k,
            "neurons": self.neurons,
        }

    @property
    @override
    def expected_files(self) -> int:
        return 1 + self.neurons

    @override
    def make(self, bench: Workbench) -> Made:
        from ptmech.live.weight_statistics import (
            neuron_statistics,
            unembedding_statistics,
            unembedding_tensors,
        )

        sites = bench.sites(self.stage)
        about = {"convention": "folded_centered", "null_space_k": self.null_space_k}
        folder = f"weights/{self.stage}"
        statistics = unembedding_statistics(sites)
        files: list[Output] = []
        if self.neurons:
            neurons = neuron_statistics(sites, statistics, self.null_space_k)
            files.append(Output(f"{folder}/neurons.parquet", parquet_bytes(neurons)))
        tensors = unembedding_tensors(statistics)
        files.append(Output(f"{folder}/unembedding.safetensors", tensor_bytes(tensors, about)))
        return Made(iter(files), bench.stage_facts(self.stage))


def parquet_bytes(frame: pl.DataFrame) -> bytes:
    """Serialise a table, the same bytes for the same content."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd", statistics=True)
    return buffer.getvalue()
