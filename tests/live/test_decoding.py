"""Rows that have ended leave the batch, and nobody's tokens change by it."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny_models import D_MODEL, FAMILIES, VOCABULARY, blocks, tiny_model, word_tokenizer
from transformers import GenerationConfig

from ptmech.live.effects.variants import VariantAblation, VariantAddition, complete_variants
from ptmech.live.generation import Sampling, generate_tokens
from ptmech.live.interventions import Intervention, add, intervene, patch
from ptmech.live.model import LiveModel

STEPS = 12
TOKENIZER = word_tokenizer([f"word{number}" for number in range(VOCABULARY - 2)])
_random = np.random.default_rng(2)
PROMPTS = [_random.integers(2, VOCABULARY, size=size).tolist() for size in (4, 9, 1, 6, 2, 7, 3)]
VECTORS = torch.from_numpy(np.vstack([np.zeros(D_MODEL), _random.normal(size=(2, D_MODEL)) * 4]))


def alone(model: Any, prompt: Sequence[int], ends: Sequence[int]) -> list[int]:
    """transformers' own greedy completion of one prompt."""
    ids = torch.tensor([list(prompt)])
    settings = GenerationConfig(
        max_new_tokens=STEPS, do_sample=False, eos_token_id=list(ends), pad_token_id=0
    )
    found = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return found[0, ids.shape[1] :].tolist()


def ends_of_some(replies: Sequence[Sequence[int]]) -> list[int]:
    """The tokenizer's end and two tokens by which replies have as many lengths as can be."""

    def lengths(ends: Sequence[int]) -> int:
        cut = [next((at for at, t in enumerate(reply) if t in ends), STEPS) for reply in replies]
        return len(set(cut))

    tokens = sorted({token for reply in replies for token in reply})
    own = TOKENIZER.eos_token_id
    return max(([own, one, two] for one in tokens for two in tokens if one < two), key=lengths)


@contextmanager
def rows_seen(model: Any) -> Generator[list[int]]:
    """How many rows each forward of the first block has."""
    seen: list[int] = []
    handle = blocks(model)[0].register_forward_pre_hook(
        lambda _block, args: seen.append(len(args[0]))
    )
    yield seen
    handle.remove()


@contextmanager
def shifted(model: Any, vector: torch.Tensor, at: Sequence[int] | None = None) -> Generator[None]:
    """A plain hook that adds a vector before block 1: at every token, or at some of the prompt."""

    def shift(_block: Any, args: Any, kwargs: Any) -> Any:
        stream = args[0].clone()
        if at is None:
            stream += vector.to(stream)
        elif stream.shape[1] > 1:
            stream[:, list(at)] += vector.to(stream)
        return (stream, *args[1:]), kwargs

    handle = blocks(model)[1].register_forward_pre_hook(shift, with_kwargs=True)
    yield
    handle.remove()


@pytest.mark.parametrize("family", FAMILIES)
def test_replies_of_a_batch_are_those_of_each_prompt_alone(family: str) -> None:
    model = tiny_model(family)
    ends = ends_of_some([alone(model, prompt, ()) for prompt in PROMPTS])
    expected = [alone(model, prompt, ends) for prompt in PROMPTS]
    model.generation_config.eos_token_id = ends
    with rows_seen(model) as seen:
        found = generate_tokens(model, TOKENIZER, PROMPTS, max_new_tokens=STEPS)
    assert found == expected
    lengths = [len(reply) for reply in expected]
    assert len(set(lengths)) > 2
    # Every token but the last of a reply is read by one forward, which holds nobody who has ended.
    assert seen == [sum(length > step for length in lengths) for step in range(max(lengths))]


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "gemma2", "opt"])
def test_interventions_at_positions_stay_with_their_rows(family: str) -> None:
    model = tiny_model(family)
    prompts = [prompt for prompt in PROMPTS if len(prompt) > 1]
    places = [[len(prompt) - 1, size % len(prompt)] for size, prompt in enumerate(prompts)]

    def by_hand(ends: Sequence[int]) -> list[list[int]]:
        found: list[list[int]] = []
        for prompt, at in zip(prompts, places, strict=True):
            with shifted(model, VECTORS[1], sorted(set(at))):
                found.append(alone(model, prompt, ends))
        return found

    ends = ends_of_some(by_hand(()))
    expected = by_hand(ends)
    model.generation_config.eos_token_id = ends
    # A token named twice is shifted once: both entries read the stream as it was.
    with intervene(model, add(VECTORS[1], 1, positions=places)), rows_seen(model) as seen:
        assert generate_tokens(model, TOKENIZER, prompts, max_new_tokens=STEPS) == expected
    assert len(set(seen)) > 2


def test_patches_of_rows_stay_with_their_rows() -> None:
    model = tiny_model()
    values = torch.from_numpy(_random.normal(size=(len(PROMPTS), 1, D_MODEL))).float() * 3

    def by_hand(ends: Sequence[int]) -> list[list[int]]:
        found: list[list[int]] = []
        for prompt, value in zip(PROMPTS, values, strict=True):

            def put(_block: Any, _args: Any, output: Any, value: Any = value) -> Any:
                changed = output.clone()
                if put.first:
                    changed[:, -1] = value
                put.first = False
                return changed

            put.first = True
            handle = blocks(model)[0].register_forward_hook(put)
            found.append(alone(model, prompt, ends))
            handle.remove()
        return found

    ends = ends_of_some(by_hand(()))
    expected = by_hand(ends)
    model.generation_config.eos_token_id = ends
    with intervene(model, patch(values, 0, -1)), rows_seen(model) as seen:
        assert generate_tokens(model, TOKENIZER, PROMPTS, max_new_tokens=STEPS) == expected
    assert len(set(seen)) > 2


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_drawn_reply_does_not_hang_on_who_has_ended(batch_size: int) -> None:
    model = tiny_model()
    options: dict[str, Any] = {
        "max_new_tokens": STEPS,
        "sampling": Sampling(temperature=1.5, top_p=0.9, seed=4),
    }
    endless = generate_tokens(model, SimpleNamespace(eos_token_id=None), PROMPTS, **options)
    ends = ends_of_some(endless)
    model.generation_config.eos_token_id = ends
    expected = [
        reply[: next((at + 1 for at, token in enumerate(reply) if token in ends), STEPS)]
        for reply in endless
    ]
    with rows_seen(model) as seen:
        found = generate_tokens(model, TOKENIZER, PROMPTS, batch_size=batch_size, **options)
    assert found == expected
    assert (len(set(seen)) > 1) == (batch_size > 1)


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "gemma2", "opt", "qwen2_moe"])
@pytest.mark.parametrize("ablating", [False, True])
def test_rows_of_every_variant_leave_by_themselves(family: str, *, ablating: bool) -> None:
    model = LiveModel(tiny_model(family), TOKENIZER, family)
    units = torch.nn.functional.normalize(VECTORS[1:], dim=1)
    edit: Intervention = (
        VariantAblation(vectors=units, layers=1, sites=("resid_pre",))
        if ablating
        else VariantAddition(vectors=VECTORS, layers=1, sites=("resid_pre",))
    )
    vectors = units if ablating else VECTORS

    def by_hand(ends: Sequence[int]) -> list[list[list[int]]]:
        found: list[list[list[int]]] = []
        for vector in vectors:

            def change(_block: Any, args: Any, kwargs: Any, vector: Any = vector) -> Any:
                stream, along = args[0], vector.to(args[0])
                change = -(stream @ along).unsqueeze(-1) * along if ablating else along
                return (stream + change, *args[1:]), kwargs

            handle = blocks(model.model)[1].register_forward_pre_hook(change, with_kwargs=True)
            found.append([alone(model.model, prompt, ends) for prompt in PROMPTS])
            handle.remove()
        return found

    ends = ends_of_some([reply for replies in by_hand(()) for reply in replies])
    expected = by_hand(ends)
    model.model.generation_config.eos_token_id = ends
    with model.intervene(edit), rows_seen(model.model) as seen:
        texts = complete_variants(
            model.model,
            TOKENIZER,
            PROMPTS,
            len(vectors),
            max_new_tokens=STEPS,
            batch_size=100,
            first_layer=1,
        )
    assert texts == [
        [
            TOKENIZER.decode([t for t in reply if t not in ends], skip_special_tokens=True)
            for reply in replies
        ]
        for replies in expected
    ]
    assert len(set(seen)) > 3
