"""The adapter of a stage: what it adds to its model, so that it can be opened live."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from ptmech.errors import IntegrityError
from ptmech.manifest import canonical_json
from ptmech_builder.units import ExtraKind, ExtraUnit, Made, Output
from ptmech_builder.writer import digest

if TYPE_CHECKING:
    from ptmech_builder.workbench import Workbench


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
