"""Statistics of weights, and adapters."""

from __future__ import annotations

import numpy as np

from ptmech._verification.activations import check_finite
from ptmech._verification.columns import NEURON_RULES, fits
from ptmech._verification.inspection import Inspection
from ptmech.manifest import Stage


def check_weights(inspection: Inspection) -> None:
    """Check the statistics of every stage's unembedding and neurons, and every adapter."""
    for entry in inspection.manifest.extras:
        if entry.path.endswith(".safetensors"):
            tensors = inspection.tensors(entry)
            if tensors is not None:
                check_finite(inspection, entry, tensors)
    for stage in inspection.manifest.stages:
        _check_neurons(inspection, stage)
        _check_unembedding(inspection, stage)


def _check_neurons(inspection: Inspection, stage: Stage) -> None:
    path = f"weights/{stage.name}/neurons.parquet"
    table = inspection.table(path)
    if table is None or not fits(inspection, path, table, NEURON_RULES):
        return
    if not inspection.require(
        path,
        holds=table.height == stage.d_mlp,
        problem=f"has {table.height} neurons where the last MLP has {stage.d_mlp or 'none'}",
    ):
        return
    inspection.require(
        path,
        holds=table["neuron"].to_list() == list(range(table.height)),
        problem="its neurons are not numbered from 0 in their order",
    )


def _check_unembedding(inspection: Inspection, stage: Stage) -> None:
    path = f"weights/{stage.name}/unembedding.safetensors"
    entry = inspection.artifact.extra(path)
    tensors = None if entry is None else inspection.tensors(entry)
    if tensors is None:
        return
    vector = ("float64", (stage.d_model,))
    expected = {"singular_values": vector, "mean_row": vector}
    found = {name: (array.dtype.name, array.shape) for name, array in tensors.items()}
    if found != expected:
        inspection.add(path, f"holds {found} where it should hold {expected}")
        return
    values = tensors["singular_values"]
    if (values < 0).any() or (np.diff(values) > 0).any():
        inspection.add(path, "singular values are not in order from the largest down to 0")
