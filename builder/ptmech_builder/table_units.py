"""Tables of an artifact: their content is known before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import polars as pl
from typing_extensions import override

from ptmech_builder.units import ExtraKind, ExtraUnit, Made, Output, parquet_bytes
from ptmech_builder.writer import digest

if TYPE_CHECKING:
    from ptmech_builder.workbench import Workbench


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
