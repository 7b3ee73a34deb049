from __future__ import annotations

import pytest
import torch
from tests.tiny_models import VOCABULARY, tiny_model, word_tokenizer
from torch.utils.flop_counter import FlopCounterMode

from ptmech.errors import DataError
from ptmech.knowledge import PromptPair
from ptmech.knowledge.prompts import make_pairs
from ptmech.live.model import LiveModel
from ptmech.live.tracing import causal_trace
from ptmech.live.tracing.operations import (
    LLAMA_8B,
    TracedShape,
    cell_operations,
    predicted_speedup,
    sweep_operations,
)

TOKENIZER = word_tokenizer([f"word{number}" for number in range(VOCABULARY - 2)])
PREFIX, TRACED = 12, 9


@pytest.fixture
def model() -> LiveModel:
    plain = tiny_model()
    plain.set_attn_implementation("eager")  # torch does not count the fused one of CPUs
    return LiveModel(plain, TOKENIZER, "tiny")


def multiplications(counter: FlopCounterMode) -> float:
    return counter.get_total_flops() / 2


@pytest.mark.parametrize("first", [0, 3, TRACED - 1])
def test_a_sweep_is_counted_as_torch_counts_it(model: LiveModel, first: int) -> None:
    prompt = [2 + at % 30 for at in range(PREFIX + TRACED)]
    other = [*prompt[: PREFIX + first], 35, *prompt[PREFIX + first + 1 :]]
    pair = PromptPair(1, 2, tuple(prompt), tuple(other), (30,), (31,), traced_from=PREFIX)
    pairs = make_pairs("completion", [pair], TOKENIZER)
    with FlopCounterMode(display=False) as counted:
        causal_trace(model, pairs)
    expected = sweep_operations(
        TracedShape.of(model.sites), prefix=PREFIX, traced=TRACED, first=first
    )
    assert expected == pytest.approx(multiplications(counted), rel=0.02)


def test_a_forward_is_counted_as_torch_counts_it(model: LiveModel) -> None:
    ids = torch.arange(2, 2 + PREFIX + TRACED).unsqueeze(0)
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        model.model(ids, use_cache=False)
    cells = model.n_layers * TRACED
    expected = cell_operations(TracedShape.of(model.sites), prefix=PREFIX, traced=TRACED)
    assert expected == pytest.approx(cells * multiplications(counted))


def test_the_ratio_at_the_shape_of_a_large_model() -> None:
    # By the number of tokens that go through blocks: T L L (P + T) against those of the sweep.
    layers, prefix, traced = 32, 80, 14
    tokens = traced * (traced + 1) / 2 * layers * (layers - 1) / 2
    clean = layers * (prefix + 2 * traced)
    by_tokens = traced * layers**2 * (prefix + traced) / (tokens + clean)
    found = predicted_speedup(LLAMA_8B, prefix=prefix, traced=traced)
    assert found == pytest.approx(by_tokens, rel=0.15)
    assert predicted_speedup(LLAMA_8B, prefix=prefix, traced=traced, first=3) > found


@pytest.mark.parametrize("tokens", [(-1, 3, 0), (4, 0, 0), (4, 3, 3), (4, 3, -1)])
def test_numbers_of_tokens_that_cannot_be(tokens: tuple[int, int, int]) -> None:
    prefix, traced, first = tokens
    with pytest.raises(DataError, match="no trace has"):
        predicted_speedup(LLAMA_8B, prefix=prefix, traced=traced, first=first)
