"""TransformerLens, with the weights as they are.

Its bridge can also fold norms and centre weights; that gives equal probabilities from other
activations, so it stays off. It computes attention eagerly, ptmech as torch's own kernel does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.compare.same_numbers import SITES, Edit, Peer, Place, Rows, SameNumbers
from torch import Tensor

from ptmech.live.models.gguf import quiet_transformers

pytest.importorskip("transformer_lens", reason="TransformerLens is missing: run `make compare`")
from transformer_lens.model_bridge import TransformerBridge

Hook = tuple[str, Callable[..., Tensor | None]]


class TransformerLens:
    """The bridge, behind the two questions of :class:`tests.compare.same_numbers.Peer`."""

    name = "TransformerLens"

    def __init__(self, folder: Path) -> None:
        with quiet_transformers():
            self._bridge: Any = TransformerBridge.boot_transformers(
                str(folder), device="cpu", dtype=torch.float32
            )

    def activations(self, rows: Rows, layers: Sequence[int]) -> Mapping[Place, Tensor]:
        names = {(site, layer): _name(site, layer) for layer in layers for site in SITES}
        ids, mask = _padded_on_the_left(rows)
        _logits, cache = self._bridge.run_with_cache(
            ids, attention_mask=mask, names_filter=list(names.values())
        )
        return {place: cache[name] for place, name in names.items()}

    def logits(self, rows: Rows, edits: Mapping[Place, Edit]) -> Tensor:
        ids, mask = _padded_on_the_left(rows)
        hooks = [hook for place, edit in edits.items() for hook in _hooks(*place, edit)]
        return self._bridge.run_with_hooks(ids, attention_mask=mask, fwd_hooks=hooks)[:, -1]


def _name(site: str, layer: int) -> str:
    return f"blocks.{layer}.hook_{site}"


def _hooks(site: str, layer: int, edit: Edit) -> Iterator[Hook]:
    """Hooks that make an edit act on all that flows on from a place."""

    def change(stream: Tensor, hook: Any) -> Tensor:
        return edit(stream)

    if site != "resid_mid":
        yield _name(site, layer), change
        return
    # What replaces hook_resid_mid reaches the MLP alone, not the residual sum around it. Attention
    # writes into both, so it has to bring the change along.
    before: list[Tensor] = []

    def remember(stream: Tensor, hook: Any) -> None:
        before[:] = [stream]

    def bring_along(added: Tensor, hook: Any) -> Tensor:
        return edit(before[0] + added) - before[0]

    yield f"blocks.{layer}.ln1.hook_in", remember
    yield _name("attn_out", layer), bring_along


def _padded_on_the_left(rows: Rows) -> tuple[Tensor, Tensor]:
    width = max(len(row) for row in rows)
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


@pytest.fixture(scope="module")
def peer(folder: Path) -> Peer:
    return TransformerLens(folder)


class TestTransformerLens(SameNumbers):
    """ptmech.live gives TransformerLens's numbers."""
