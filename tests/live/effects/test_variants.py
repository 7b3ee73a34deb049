from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny_models import (
    D_MODEL,
    FAMILIES,
    N_LAYERS,
    VOCABULARY,
    blocks,
    complete_by_hand,
    hook_count,
    tiny_model,
    word_tokenizer,
)

from ptmech.errors import DataError
from ptmech.live.effects import variants
from ptmech.live.effects.branching import branching
from ptmech.live.effects.variants import (
    VariantAddition,
    complete_variants,
    logits_of_variants,
    losses_of_variants,
)
from ptmech.live.interventions import add
from ptmech.live.model import LiveModel

TOKENIZER: Any = word_tokenizer([f"word{number}" for number in range(VOCABULARY - 2)])
_random = np.random.default_rng(5)
SHARED = [9, 4, 31, 17]
PROMPTS = [SHARED + _random.integers(2, 40, size=size).tolist() for size in (5, 2, 7, 4, 1, 6)]
VECTORS = torch.tensor(np.vstack([np.zeros(D_MODEL), _random.normal(size=(2, D_MODEL)) * 4]))
STEPS = 4
UNLIKE = ("llama", "gpt2", "gemma2", "smollm3", "opt", "qwen2_moe")
"""Families with blocks of several kinds, or caches, masks and positions of their own."""


def places(layers: Sequence[int], rest: int) -> list[tuple[str, int]]:
    """Every family with a layer: those unlike each other with all of them."""
    return [
        (family, layer)
        for family in FAMILIES
        for layer in (layers if family in UNLIKE else (rest,))
    ]


def live(family: str) -> LiveModel:
    return LiveModel(tiny_model(family), TOKENIZER, family)


def added(layer: int) -> VariantAddition:
    return VariantAddition(vectors=VECTORS, layers=layer, sites=("resid_pre",))


@contextmanager
def adding(model: Any, layer: int, vector: torch.Tensor) -> Generator[None]:
    """A plain hook on one block's input."""

    def add(_block: Any, args: Any, kwargs: Any) -> Any:
        return (args[0] + vector.to(args[0]), *args[1:]), kwargs

    handle = blocks(model)[layer].register_forward_pre_hook(add, with_kwargs=True)
    yield
    handle.remove()


def logits_by_hand(model: Any, prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """One plain forward a prompt."""
    with torch.no_grad():
        return [model(torch.tensor([list(p)]), use_cache=False).logits[0, -1] for p in prompts]


@pytest.mark.parametrize(("family", "layer"), places(range(N_LAYERS), 1))
def test_variants_that_branch_are_plain_forwards(family: str, layer: int) -> None:
    model = live(family)
    with model.intervene(added(layer)):
        found = logits_of_variants(
            model.sites, PROMPTS, len(VECTORS), first_layer=layer, batch_size=9
        )
    for of_variant, vector in zip(found, VECTORS, strict=True):
        with adding(model.model, layer, vector):
            expected = torch.stack(logits_by_hand(model.model, PROMPTS))
        torch.testing.assert_close(of_variant, expected, rtol=1e-4, atol=1e-5)
    assert float((found[1] - found[0]).abs().max()) > 0.01
    assert hook_count(model.model) == 0


@pytest.mark.parametrize(("family", "first_layer"), places([0, 1], 1))
def test_completions_that_branch_are_plain_forwards(
    family: str, first_layer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variants, "READ_AT_ONCE", 6)
    model = live(family)
    with model.intervene(added(1)):
        found = complete_variants(
            model.model,
            TOKENIZER,
            PROMPTS,
            len(VECTORS),
            max_new_tokens=STEPS,
            batch_size=15,
            first_layer=first_layer,
        )
    for texts, vector in zip(found, VECTORS, strict=True):
        with adding(model.model, 1, vector):
            replies = [
                complete_by_hand(model.model, prompt, steps=STEPS, ends={1}) for prompt in PROMPTS
            ]
        assert texts == [TOKENIZER.decode(reply, skip_special_tokens=True) for reply in replies]
    assert found[0] != found[1]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt"])
def test_losses_that_branch_are_plain_forwards(family: str) -> None:
    model = live(family)
    with model.intervene(added(2)):
        found = losses_of_variants(model.sites, PROMPTS, 3, first_layer=2, batch_size=6)
    for loss, vector in zip(found, VECTORS, strict=True):
        total, count = 0.0, 0
        for prompt in PROMPTS:
            ids = torch.tensor([prompt])
            with adding(model.model, 2, vector), torch.no_grad():
                total += float(model.model(ids, labels=ids).loss) * (len(prompt) - 1)
            count += len(prompt) - 1
        assert loss == pytest.approx(total / count, rel=1e-5)


def test_below_the_branch_every_prompt_runs_once() -> None:
    model = live("llama")
    seen: list[int] = []
    for block in blocks(model.model):
        block.mlp.register_forward_hook(lambda _m, _a, output: seen.append(len(output)))
    with branching(model.sites, 4, 1):
        model.model(torch.tensor([PROMPTS[0], PROMPTS[0]]))
    assert seen == [2, 8, 8]


def test_a_loss_needs_two_tokens() -> None:
    model = live("llama")
    with pytest.raises(DataError, match="two tokens"):
        losses_of_variants(model.sites, [[3, 4], [5]], 1)


def test_losses_refuse_edits_at_positions() -> None:
    model = live("llama")
    edit = add(VECTORS[1], 0, positions=-1)
    with model.intervene(edit), pytest.raises(DataError, match="whole forwards"):
        losses_of_variants(model.sites, PROMPTS, 1)
