"""nnsight: each comparison written as its traces are, statements in the order of the forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.compare.same_numbers import Edit, Peer, Place, Rows, SameNumbers
from torch import Tensor

from ptmech.live.models.gguf import quiet_transformers

nnsight = pytest.importorskip("nnsight", reason="nnsight is missing: run `make compare`")

PLACES: dict[str, Callable[[Any], Tensor]] = {
    "resid_pre": lambda block: block.input,
    "attn_out": lambda block: block.self_attn.output[0],
    "resid_mid": lambda block: block.post_attention_layernorm.input,
    "mlp_out": lambda block: block.mlp.output,
    "resid_post": lambda block: block.output,
}
"""The sites in the order in which a block comes by them; a trace cannot go back."""


class Nnsight:
    """nnsight, behind the two questions of :class:`tests.compare.same_numbers.Peer`."""

    name = "nnsight"

    def __init__(self, folder: Path) -> None:
        with quiet_transformers():
            self._model: Any = nnsight.TransformersModel(
                str(folder), task="text-generation", dtype=torch.float32, dispatch=True
            )

    def activations(self, rows: Rows, layers: Sequence[int]) -> Mapping[Place, Tensor]:
        model = self._model
        with model.trace([list(row) for row in rows]):
            found = nnsight.save({})
            for layer in layers:
                for site, tensor_of in PLACES.items():
                    found[site, layer] = tensor_of(model.model.layers[layer]).clone()
        return found

    def logits(self, rows: Rows, edits: Mapping[Place, Edit]) -> Tensor:
        model = self._model
        with model.trace([list(row) for row in rows]):
            for layer, block in enumerate(model.model.layers):
                for site, tensor_of in PLACES.items():
                    if (site, layer) in edits:
                        # In place: a new input of the norm would reach the MLP alone, not the
                        # residual sum around it.
                        tensor = tensor_of(block)
                        tensor[:] = edits[site, layer](tensor)
            logits = nnsight.save(model.output.logits[:, -1])
        return logits  # noqa: RET504 - the body of a trace is no place to return from


@pytest.fixture(scope="module")
def peer(folder: Path) -> Peer:
    return Nnsight(folder)


class TestNnsight(SameNumbers):
    """ptmech.live gives nnsight's numbers."""
