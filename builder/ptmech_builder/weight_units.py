"""Statistics of the weights that every token passes last: the unembedding and the last MLP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from ptmech.manifest import StoredDtype
from ptmech_builder.units import ExtraKind, ExtraUnit, Made, Output, parquet_bytes
from ptmech_builder.writer import tensor_bytes

if TYPE_CHECKING:
    from ptmech_builder.workbench import Workbench


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
