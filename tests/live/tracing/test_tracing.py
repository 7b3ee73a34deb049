from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from tests.tiny_models import FAMILIES, N_LAYERS, VOCABULARY, blocks, tiny_model, word_tokenizer

from ptmech import knowledge
from ptmech.errors import DataError, UnknownNameError
from ptmech.knowledge import Pairs, PromptPair
from ptmech.knowledge.prompts import make_pairs
from ptmech.live.interventions import ablate
from ptmech.live.model import LiveModel
from ptmech.live.tracing import causal_trace
from ptmech.live.tracing.known import known_facts

WORDS = [
    *["The", "city", "of", "New", "is", "in", ".", "Oslo", "Lima", "Agra", "Kobe", "Nice"],
    *["Norway", "Peru", "India", "Japan", "France"],
]
TOKENIZER = word_tokenizer([*WORDS, *(f"word{n}" for n in range(VOCABULARY - 2 - len(WORDS)))])
EXAMPLE = "The city of Nice is in France. "


def live(family: str = "llama", *, seed: int = 0, tokenizer: Any = TOKENIZER) -> LiveModel:
    return LiveModel(tiny_model(family, seed=seed), tokenizer, f"{family}-{seed}")


def a_pair(
    true: str, false: str, answers: Sequence[Sequence[int]] = ((30,), (31,)), **options: Any
) -> PromptPair:
    true_tokens, false_tokens = (tuple(TOKENIZER(text)["input_ids"]) for text in (true, false))
    first, second = (tuple(answer) for answer in answers)
    return PromptPair(7, 8, true_tokens, false_tokens, first, second, **options)


def some_pairs(answers: Sequence[Sequence[int]] = ((30,), (31,)), lead_in: str = EXAMPLE) -> Pairs:
    begin = len(TOKENIZER(lead_in)["input_ids"])
    spans = {"subject": (begin + 3, begin + 5), "traced_from": begin}
    texts = [("New Oslo", "New Lima"), ("Kobe Agra", "Lima Agra"), ("New Agra", "Oslo Kobe")]
    pairs: list[PromptPair] = []
    for one, other in texts:
        true, false = (f"{lead_in}The city of {name} is in" for name in (one, other))
        pairs.append(a_pair(true, false, answers, **spans))
    return make_pairs("completion", pairs, TOKENIZER)


def preference(model: Any, tokens: Sequence[int], pair: PromptPair) -> float:
    """Logit of the first answer less the second's; log-probability for whole answers."""
    if len(pair.true_answer) == len(pair.false_answer) == 1:
        logits = model(torch.tensor([list(tokens)]), use_cache=False).logits[0, -1]
        return float(logits[pair.true_answer[0]] - logits[pair.false_answer[0]])
    found: list[float] = []
    for answer in (pair.true_answer, pair.false_answer):
        ids = torch.tensor([[*tokens, *answer]])
        chances = model(ids, use_cache=False).logits[0].log_softmax(-1)
        found.append(sum(float(chances[len(tokens) - 1 + k, t]) for k, t in enumerate(answer)))
    return found[0] - found[1]


def outputs_of(model: Any, tokens: Sequence[int]) -> list[torch.Tensor]:
    """Every block's output [tokens, d_model]."""
    caught: list[torch.Tensor] = []
    handles = [
        block.register_forward_hook(lambda _m, _a, output: caught.append(output[0].clone()))
        for block in blocks(model)
    ]
    model(torch.tensor([list(tokens)]), use_cache=False)
    for handle in handles:
        handle.remove()
    return caught


def grid_by_hand(model: Any, pairs: Pairs, source: Any) -> np.ndarray:
    """One plain forward a cell."""
    grids: list[np.ndarray] = []
    for pair in pairs:
        donors = outputs_of(source, pair.true_tokens)
        traced = range(pair.traced_from, len(pair.true_tokens))
        grid = np.zeros((N_LAYERS, len(traced)))
        for layer in range(N_LAYERS):
            for token in traced:

                def put(
                    _module: Any, _args: Any, output: Any, at: int = token, of: int = layer
                ) -> torch.Tensor:
                    changed = output.clone()
                    changed[0, at] = donors[of][at]  # noqa: B023 - removed before the next
                    return changed

                handle = blocks(model)[layer].register_forward_hook(put)
                grid[layer, token - pair.traced_from] = preference(model, pair.false_tokens, pair)
                handle.remove()
        grids.append(grid)
    return np.stack(grids)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trace_equals_one_plain_forward_a_cell(family: str) -> None:
    model, pairs = live(family), some_pairs()
    trace = causal_trace(model, pairs)
    expected = grid_by_hand(model.model, pairs, model.model)
    np.testing.assert_allclose(trace.grid, expected, rtol=1e-4, atol=5e-5)
    assert np.ptp(expected, axis=(1, 2)).min() > 0.01
    for index, pair in enumerate(pairs):
        unpatched = preference(model.model, pair.false_tokens, pair)
        reached = preference(model.model, pair.true_tokens, pair)
        assert trace.unpatched[index] == pytest.approx(unpatched, abs=5e-5)
        assert trace.source_difference[index] == pytest.approx(reached, abs=5e-5)
        assert trace.grid[index, -1, -1] == pytest.approx(reached, abs=5e-5)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_another_models_values_are_patched_at_every_token(family: str) -> None:
    model, other, pairs = live(family), live(family, seed=1), some_pairs()
    trace = causal_trace(model, pairs, other)
    expected = grid_by_hand(model.model, pairs, other.model)
    np.testing.assert_allclose(trace.grid, expected, rtol=1e-4, atol=5e-5)
    # Even the tokens both prompts share differ between two models.
    assert np.abs(trace.grid[:, 0, 0] - trace.unpatched).max() > 1e-3
    assert (trace.source, trace.target) == (f"{family}-1", f"{family}-0")


@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
@pytest.mark.parametrize("answers", [((30, 5), (31, 8, 3)), ((30,), (8, 3))])
def test_whole_answers_are_compared_by_their_log_probability(
    family: str, answers: Sequence[Sequence[int]]
) -> None:
    model, pairs = live(family), some_pairs(answers, lead_in="")
    trace = causal_trace(model, pairs)
    assert trace.measure == "log_probability_difference"
    expected = grid_by_hand(model.model, pairs, model.model)
    np.testing.assert_allclose(trace.grid, expected, rtol=1e-4, atol=5e-5)
    reached = [preference(model.model, pair.true_tokens, pair) for pair in pairs]
    np.testing.assert_allclose(trace.source_difference, reached, atol=5e-5)


def test_a_live_trace_reads_like_a_stored_one() -> None:
    pairs = some_pairs()
    trace = causal_trace(live(), pairs, layers=[2, 0])
    assert trace.layers == (0, 2)
    assert trace.grid.shape == (3, 2, 7)
    whole = causal_trace(live(), pairs)
    np.testing.assert_allclose(trace.grid, whole.grid[:, [0, 2]], atol=2e-5)
    assert list(trace.frame.columns) == [
        *["layer", "column", "token", "role", "logit_difference", "scaled"]
    ]
    assert trace.frame["layer"].unique(maintain_order=True).to_list() == [0, 2]
    assert trace.by_role["layer"].to_list() == [0, 2]
    assert trace.roles[3:5] == ("subject", "subject_last")
    assert trace.pairs["differing"].to_list() == [[4], [3], [3, 4]]
    bottom, top = trace.unpatched.mean(), trace.source_difference.mean()
    np.testing.assert_allclose(trace.scaled, (trace.matrix - bottom) / (top - bottom))
    assert (trace.form, trace.measure, trace.artifact) == (
        *("completion", "logit_difference"),
        "llama-0",
    )


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_noise_is_undone_cell_by_cell(family: str) -> None:
    model, pairs = live(family), some_pairs()
    trace = causal_trace(model, pairs, noise=2.0, samples=1, seed=4)
    embedding = model.model.get_input_embeddings()
    subjects = [t for pair in pairs for t in pair.true_tokens[11:13]]
    strength = 2.0 * float(embedding(torch.tensor(subjects)).std())
    for index, pair in enumerate(pairs):
        draws = np.random.default_rng([4, pair.true_uid, pair.false_uid])
        noise = strength * draws.standard_normal((1, 2, 16), dtype=np.float32)[0]
        clean = outputs_of(model.model, pair.true_tokens)
        embedded = embedding(torch.tensor([pair.true_tokens])).clone()
        embedded[0, 11:13] += torch.from_numpy(noise)

        def blurred(embedded: torch.Tensor = embedded, pair: PromptPair = pair) -> float:
            logits = model.model(inputs_embeds=embedded, use_cache=False).logits[0, -1]
            return float(logits[pair.true_answer[0]] - logits[pair.false_answer[0]])

        assert trace.unpatched[index] == pytest.approx(blurred(), abs=5e-5)
        for layer, column in ((0, 3), (1, 4), (1, 6), (2, 6), (2, 2)):

            def restore(
                _m: Any, _a: Any, output: Any, at: int = 8 + column, value: Any = clean[layer]
            ) -> torch.Tensor:
                changed = output.clone()
                changed[0, at] = value[at]
                return changed

            handle = blocks(model.model)[layer].register_forward_hook(restore)
            assert trace.grid[index, layer, column] == pytest.approx(blurred(), abs=5e-5)
            handle.remove()
    reached = [preference(model.model, pair.true_tokens, pair) for pair in pairs]
    np.testing.assert_allclose(trace.source_difference, reached, atol=5e-5)


def test_noise_is_averaged_and_hangs_on_pair_and_seed_alone() -> None:
    model, pairs = live("mistral"), some_pairs()
    each = [causal_trace(model, pairs, noise=3, samples=1, seed=seed).grid for seed in (0, 1)]
    assert np.abs(each[0] - each[1]).max() > 1e-3
    both = causal_trace(model, pairs, noise=3, samples=2, seed=0)
    again = causal_trace(model, pairs, noise=3, samples=2, seed=0)
    np.testing.assert_array_equal(both.grid, again.grid)
    np.testing.assert_allclose(both.grid[:, -1, -1], both.source_difference, atol=2e-5)
    assert both.arguments["samples"] == 2


def test_pairs_in_several_lots_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pairs = live("gpt2"), some_pairs()
    whole = causal_trace(model, pairs)
    monkeypatch.setattr("ptmech.live.tracing.traces.NUMBERS_KEPT", 1)
    np.testing.assert_allclose(causal_trace(model, pairs).grid, whole.grid, atol=2e-5)
    noisy = causal_trace(model, pairs, noise=1, samples=2)
    assert np.isfinite(noisy.grid).all()


def test_models_that_do_not_belong_together_are_refused_before_anything_runs() -> None:
    model, pairs = live(), some_pairs()
    wider = LiveModel(tiny_model("gpt2"), TOKENIZER, "other")
    wider.sites.layers.append(wider.sites.layers[0])
    with pytest.raises(DataError, match="4 layers of 16 against 3 of 16"):
        causal_trace(model, pairs, wider)
    shuffled = word_tokenizer([*reversed(WORDS), *(f"word{n}" for n in range(22))])
    with pytest.raises(DataError, match="do not split these prompts alike"):
        causal_trace(model, pairs, live(seed=1, tokenizer=shuffled))
    with pytest.raises(DataError, match="no other source"):
        causal_trace(model, pairs, live(seed=1), noise=1.0)
    with pytest.raises(UnknownNameError, match="layer 9"):
        causal_trace(model, pairs, layers=[9])
    foreign = some_pairs(((500,), (31,)))
    with pytest.raises(DataError, match="token 500 lies outside"):
        causal_trace(model, foreign)
    unlabelled = make_pairs("true_false", [a_pair("The city", "The Oslo")], TOKENIZER)
    with pytest.raises(DataError, match="noise needs to know the subject"):
        causal_trace(model, unlabelled, noise=1.0)


def test_pairs_that_do_not_share_a_shape_are_refused() -> None:
    with pytest.raises(DataError, match="share one token count"):
        make_pairs("completion", [a_pair("The city", "The city of")], TOKENIZER)
    with pytest.raises(DataError, match="share one token count"):
        make_pairs("completion", [], TOKENIZER)


def test_a_fact_is_known_if_its_first_token_is_the_likeliest() -> None:
    model = live()
    rows: list[tuple[str, str]] = []
    expected: list[bool] = []
    for index, city in enumerate(["Oslo", "Lima", "Agra", "Kobe", "Nice"]):
        ids = TOKENIZER(f"The city of {city} is in")["input_ids"]
        best = int(model.model(torch.tensor([ids])).logits[0, -1].argmax())
        word = str(TOKENIZER.convert_ids_to_tokens(best))
        rows.append((city, word if index % 2 and word.isalnum() else "Peru"))
        expected.append(rows[-1][1] == word)
    statements = pl.DataFrame(
        {
            "row_uid": range(5),
            "text": [f"The city of {city} is in {country}." for city, country in rows],
            "label": [1] * 5,
            "polarity": [1] * 5,
            "subject": [city for city, _ in rows],
            "object": [country for _, country in rows],
        }
    )
    prompts = knowledge.completion_prompts(statements)
    assert known_facts(model, prompts, batch_size=2).tolist() == expected
    assert 0 < sum(expected) < 5


def test_columns_are_grouped_pair_by_pair() -> None:
    pairs = some_pairs()
    trace = causal_trace(live("qwen2"), pairs)
    found = knowledge.grouped(trace)
    expected = np.zeros((N_LAYERS, 3))
    for grid, differing in zip(trace.grid, ([4], [3], [3, 4]), strict=True):
        others = [column for column in range(6) if column not in differing]
        for group, columns in enumerate((differing, others, [6])):
            expected[:, group] += grid[:, columns].mean(axis=1) / len(pairs)
    np.testing.assert_allclose(found, expected)
    assert knowledge.compare(found, found).pearson == pytest.approx(1)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_model_under_an_intervention_is_traced_as_it_then_is(family: str) -> None:
    model, pairs = live(family), some_pairs()
    direction = torch.randn(16, generator=torch.Generator().manual_seed(2))
    with model.intervene(ablate(direction)):
        trace = causal_trace(model, pairs)
        expected = grid_by_hand(model.model, pairs, model.model)
    np.testing.assert_allclose(trace.grid, expected, rtol=1e-4, atol=5e-5)
    assert np.abs(trace.grid - causal_trace(model, pairs).grid).max() > 1e-2


def test_an_intervention_at_positions_cannot_be_traced_and_says_so() -> None:
    model, pairs = live("llama"), some_pairs()
    with (
        pytest.raises(DataError, match="positions='all'"),
        model.intervene(ablate(torch.ones(16), positions=-1)),
    ):
        causal_trace(model, pairs)
