from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny_models import (
    D_MODEL,
    FAMILIES,
    VOCABULARY,
    blocks,
    complete_by_hand,
    tiny_model,
    word_tokenizer,
)

from ptmech.errors import DataError
from ptmech.live.generation import generate_texts, next_token_logits, next_token_loss
from ptmech.live.interventions import add, intervene

STEPS = 7
PROMPTS = [[3, 7, 11, 2, 30, 8, 5, 12, 4], [9, 14], [21, 6, 6, 40, 17], [5], [9, 14, 33]]
TOKENIZER = word_tokenizer([f"word{number}" for number in range(VOCABULARY - 2)])
VECTOR = torch.from_numpy(np.random.default_rng(3).normal(size=D_MODEL) * 4).float()


@pytest.fixture(params=FAMILIES, scope="module")
def model(request: pytest.FixtureRequest) -> Any:
    return tiny_model(request.param)


def expected_texts(model: Any, *, ends: set[int]) -> list[str]:
    completions = [complete_by_hand(model, row, steps=STEPS, ends=ends) for row in PROMPTS]
    return [TOKENIZER.decode(new, skip_special_tokens=True) for new in completions]


def completions(model: Any, **options: Any) -> list[str]:
    return generate_texts(model, TOKENIZER, PROMPTS, max_new_tokens=STEPS, **options)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_completions_are_the_likeliest_tokens_one_by_one(model: Any, batch_size: int) -> None:
    expected = expected_texts(model, ends={TOKENIZER.eos_token_id})
    assert completions(model, batch_size=batch_size) == expected
    assert len(set(expected)) > 1


def test_completions_stop_where_tokenizer_or_model_says() -> None:
    model = tiny_model()
    free = [complete_by_hand(model, row, steps=STEPS, ends={1}) for row in PROMPTS]
    longest = max(free, key=lambda new: len(set(new)))
    end = list(dict.fromkeys(longest))[2]  # the third token of its kind ends this completion
    model.generation_config.eos_token_id = [end]
    expected = expected_texts(model, ends={end, 1})
    assert completions(model) == expected
    cut = longest[: longest.index(end)]
    assert expected[free.index(longest)] == TOKENIZER.decode(cut, skip_special_tokens=True)


def test_settings_that_came_with_the_model_do_not_bend_greedy_decoding() -> None:
    model = tiny_model()
    expected = expected_texts(model, ends={1})
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.do_sample = True
    model.generation_config.temperature = 3.0
    own = model.generation_config
    assert completions(model) == completions(model) == expected
    assert model.generation_config is own


def test_completions_feel_the_active_interventions(model: Any) -> None:
    def push(_module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0] + VECTOR, *args[1:])

    plain = completions(model)
    handle = blocks(model)[1].register_forward_pre_hook(push)
    expected = expected_texts(model, ends={1})
    handle.remove()
    with intervene(model, add(VECTOR, 1)):
        assert completions(model) == expected
    assert completions(model) == plain
    assert plain != expected


@pytest.mark.parametrize("batch_size", [2, 16])
def test_next_token_logits_are_those_of_each_prompt_alone(model: Any, batch_size: int) -> None:
    logits = next_token_logits(model, PROMPTS, batch_size=batch_size)
    assert logits.shape == (len(PROMPTS), VOCABULARY)
    for row, prompt in zip(logits, PROMPTS, strict=True):
        assert torch.allclose(row, model(torch.tensor([prompt])).logits[0, -1], atol=1e-5)


def test_next_token_logits_never_unembed_a_whole_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = tiny_model(), []
    model.lm_head.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    next_token_logits(model, PROMPTS, batch_size=3)
    assert [tuple(rows.shape) for rows in seen] == [(3, D_MODEL), (2, D_MODEL)]
    assert all(rows.is_contiguous() for rows in seen)


@pytest.mark.parametrize("tokens_at_once", [3, 512])
def test_the_loss_is_the_mean_over_all_predicted_tokens(model: Any, tokens_at_once: int) -> None:
    texts = [prompt for prompt in PROMPTS if len(prompt) > 1]
    losses: list[float] = []
    for text in texts:
        logits = model(torch.tensor([text])).logits[0, :-1].double()
        chances = torch.softmax(logits, dim=1)
        losses += [-float(chances[at, token].log()) for at, token in enumerate(text[1:])]
    found = next_token_loss(model, texts, batch_size=2, tokens_at_once=tokens_at_once)
    assert found == pytest.approx(np.mean(losses), rel=1e-5)


def test_prompts_that_cannot_be_run_are_refused() -> None:
    model = tiny_model()
    with pytest.raises(DataError, match="at least one token"):
        next_token_logits(model, [[1, 2], []])
    with pytest.raises(DataError, match="at least one token"):
        generate_texts(model, TOKENIZER, [], max_new_tokens=2)
    with pytest.raises(DataError, match="at least two tokens"):
        next_token_loss(model, [[1, 2], [3]])
