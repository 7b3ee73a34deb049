"""What runs on a device is never waited for half-way: tensors without data would say so.

Nothing can be read back from torch's ``meta`` device, neither a number nor a truth value. A forward
that gets through there, hooks included, is one that lets a device run ahead. transformers itself
looks at the padding once a forward where attention is SDPA, so padded batches are eager here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny_models import D_MLP, D_MODEL, N_LAYERS, tiny_model
from torch import Tensor

from ptmech.live.edits import Placed
from ptmech.live.effects.variants import VariantAblation, VariantAddition
from ptmech.live.generation import pad
from ptmech.live.interventions import (
    Intervention,
    ablate,
    add,
    intervene,
    mean_ablate,
    patch,
    scale,
)
from ptmech.live.layout import running_rows
from ptmech.live.packing.host_copies import HostCopies
from ptmech.live.packing.running import run_packed
from ptmech.live.sites import SITES, ModelSites

ROWS = [[3, 4, 5, 6], [3, 4, 7], [8, 1, 2, 3, 4], [9]]
VECTOR = torch.linspace(-1, 2, D_MODEL)
WANTED = [(site, layer) for site in SITES for layer in range(N_LAYERS)]


def dataless(family: str, attention: str = "eager") -> Any:
    model = tiny_model(family).to("meta")
    model.set_attn_implementation(attention)
    return model


@pytest.mark.parametrize(
    "interventions",
    [
        [ablate(VECTOR), add(VECTOR, 1), scale(0.5, 0, sites=["mlp_out"], direction=VECTOR)],
        [ablate(VECTOR, positions=[0, -1]), add(VECTOR, 1, positions=[[0], [-1], [2], [0]])],
        [patch(torch.ones(4, 2, D_MODEL), 1, [-1, 0]), patch(torch.ones(1, D_MODEL), 2, 0)],
        [mean_ablate([1, 5], torch.ones(D_MLP)), mean_ablate([2], [0.5], positions=-1)],
        [
            VariantAblation(vectors=torch.eye(2, D_MODEL), layers="all", sites="residual"),
            VariantAddition(vectors=torch.eye(2, D_MODEL), layers=1, sites=("resid_pre",)),
        ],
    ],
    ids=["everywhere", "positions", "patches", "neurons", "variants"],
)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_interventions_do_not_wait(family: str, interventions: list[Intervention]) -> None:
    model = dataless(family)
    input_ids, mask = pad(ROWS, side="right")
    with intervene(model, *interventions), running_rows(range(4), 4, mask=mask):
        found = ModelSites.of(model).body(
            input_ids=input_ids.to("meta"), attention_mask=mask.to("meta"), use_cache=False
        )
    assert found.last_hidden_state.shape == (4, 5, D_MODEL)


@pytest.mark.parametrize(
    ("packing", "attention"), [("tree", "sdpa"), ("tree", "eager"), ("batches", "eager")]
)
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_extraction_waits_for_nothing_but_its_values(
    family: str, packing: Any, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[torch.Size] = []

    def put(_copies: object, forward: Any, values: dict[Any, Tensor]) -> None:
        shapes.extend(forward.of_rows(values[place]).shape for place in WANTED)

    monkeypatch.setattr(HostCopies, "put", put)
    model = dataless(family, attention)
    indices = np.array([[0, len(row) - 1] for row in ROWS])
    run_packed(ModelSites.of(model), ROWS, indices, WANTED, packing=packing, take=print)
    assert shapes == [(4, 2, D_MODEL)] * len(WANTED)


def test_a_vector_is_brought_to_a_place_once() -> None:
    placed = Placed(VECTOR)
    wide, half = torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.bfloat16)
    assert placed.like(wide) is placed.like(wide)
    assert placed.like(wide).dtype == torch.float64
    assert placed.like(half) is not placed.like(wide)
    assert torch.equal(placed.like(half), VECTOR.bfloat16())


def test_what_was_placed_in_inference_serves_where_gradients_are_wanted() -> None:
    model = tiny_model().to(torch.float64).requires_grad_(requires_grad=True)
    ids = torch.tensor([ROWS[0]])
    with intervene(model, ablate(VECTOR)):
        with torch.inference_mode():
            before = model(ids).logits.clone()
        after = model(ids).logits
        after.sum().backward()
    assert torch.equal(after.detach(), before)
    assert float(model.lm_head.weight.grad.abs().sum()) > 0
