"""Units of work: what a build consists of, each done whole or not at all.

A unit knows its files before it runs and carries a key: the sha256 over everything that decides
their content. Same key, never redone; other key, never reused.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import polars as pl
from typing_extensions import override

from ptmech.manifest import (
    ActivationFile,
    Extra,
    FileEntry,
    StoredDtype,
    canonical_json,
)
from ptmech.manifest import ActivationUnit as FinishedBlock
from ptmech_builder.receipts import Receipt, recipe_digests
from ptmech_builder.writer import digest

if TYPE_CHECKING:
    from ptmech_builder.workbench import Workbench

ExtraKind = Literal["table", "weights", "adapter", "trace", "scores"]
Kind = ExtraKind | Literal["activations"]

SEMANTICS: Mapping[Kind, int] = {
    "table": 1,
    "activations": 3,
    "weights": 3,
    "adapter": 1,
    "trace": 3,
    "scores": 4,
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
        """Whether it reads files of units that come before it, and that read none themselves."""
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


def parquet_bytes(frame: pl.DataFrame) -> bytes:
    """Serialise a table, the same bytes for the same content."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd", statistics=True)
    return buffer.getvalue()
