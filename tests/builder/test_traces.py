from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from tests.tiny_models import (
    FAMILIES,
    N_LAYERS,
    VOCABULARY,
    blocks,
    hook_count,
    tiny_model,
    word_tokenizer,
)

from ptmech.errors import DataError
from ptmech_builder.trace_pairs import (
    CompletionPair,
    choose_pairs,
    completion_prompts,
    known_facts,
    trace_columns,
)
from ptmech_builder.traces import source_run, trace_grid

CITIES = ["Lyon", "Nice", "Oslo", "Bergen", "Turin", "Lima", "Cusco", "Osaka", "Kobe", "Delhi"]
CITIES += ["Agra", "Quito"]
COUNTRIES = ["France", "Norway", "Italy", "Peru", "Japan", "India", "Ecuador"]
FRAME = ["The", "city", "of", "New", "is", "in", "the", ".", "United", "States"]
WORDS = [*FRAME, *CITIES, *COUNTRIES]
TOKENIZER = word_tokenizer([*WORDS, *(f"word{n}" for n in range(VOCABULARY - 2 - len(WORDS)))])
EXAMPLE = "The city of Lyon is in France."


def statements(rows: Sequence[tuple[str, str]], **columns: Any) -> pl.DataFrame:
    texts = [f"The city of {city} is in {country}." for city, country in rows]
    frame = pl.DataFrame(
        {
            "row_uid": pl.Series(range(100, 100 + len(rows)), dtype=pl.UInt64),
            "text": texts,
            "label": [1] * len(rows),
            "polarity": [1] * len(rows),
            "subject": [city for city, _ in rows],
            "object": [country for _, country in rows],
        }
    )
    return frame.with_columns(**columns)


LONG = [
    ("New Oslo", "Norway"),
    ("New Bergen", "Norway"),
    ("New Turin", "Italy"),
    ("New Lima", "Peru"),
    ("New Osaka", "Japan"),
    ("New Delhi", "India"),
    ("New Agra", "India"),
]
SHORT = [("Kobe", "Japan"), ("Quito", "Ecuador"), ("Cusco", "Peru")]


def a_pair(true: str, false: str, answers: tuple[int, int], **options: Any) -> CompletionPair:
    true_tokens, false_tokens = (tuple(TOKENIZER(text)["input_ids"]) for text in (true, false))
    return CompletionPair(1, 2, true_tokens, false_tokens, *answers, **options)


PAIRS = [
    a_pair("The city of New Oslo is in", "The city of New Lima is in", (30, 31), subject=(3, 5)),
    a_pair("The city of Turin Agra is in", "The city of Kobe Nice is in", (8, 33), subject=(3, 5)),
]
PAIRS_AFTER_EXAMPLE = [
    a_pair(f"{EXAMPLE} {true}", f"{EXAMPLE} {false}", (30, 29), subject=(11, 12), traced_from=8)
    for true, false in [
        ("The city of Oslo is in", "The city of Lima is in"),
        ("The city of Delhi is in", "The city of Turin is in"),
    ]
]


def answer_gap(model: Any, tokens: Sequence[int], pair: CompletionPair) -> float:
    logits = model(torch.tensor([list(tokens)]), use_cache=False).logits[0, -1]
    return float(logits[pair.true_answer] - logits[pair.false_answer])


def grid_by_hand(model: Any, pairs: Sequence[CompletionPair], source: Any) -> np.ndarray:
    """One plain forward a cell, the values taken and put with hooks written out here."""
    grids: list[np.ndarray] = []
    for pair in pairs:
        tokens = range(pair.traced_from, len(pair.true_tokens))
        grid = np.zeros((N_LAYERS, len(tokens)))
        for layer in range(N_LAYERS):
            outputs: list[torch.Tensor] = []
            handle = blocks(source)[layer].register_forward_hook(
                lambda _module, _args, output, kept=outputs: kept.append(output.clone())
            )
            source(torch.tensor([pair.true_tokens]))
            handle.remove()
            for token in tokens:

                def put(_module: Any, _args: Any, output: Any, at: int = token) -> torch.Tensor:
                    changed = output.clone()
                    changed[0, at] = outputs[0][0, at]  # noqa: B023 - removed before the next
                    return changed

                handle = blocks(model)[layer].register_forward_hook(put)
                gap = answer_gap(model, pair.false_tokens, pair)
                grid[layer, token - pair.traced_from] = gap
                handle.remove()
        grids.append(grid)
    return np.stack(grids)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size", [3, 64])
def test_a_grid_equals_one_plain_forward_a_cell(family: str, batch_size: int) -> None:
    model = tiny_model(family)
    values = source_run(model, PAIRS, batch_size=1)
    found = trace_grid(model, PAIRS, source_values=values, same_model=True, batch_size=batch_size)
    expected = grid_by_hand(model, PAIRS, model)
    assert found.grid.dtype == np.float32
    np.testing.assert_allclose(found.grid, expected, rtol=1e-4, atol=2e-5)
    for index, pair in enumerate(PAIRS):
        unpatched = answer_gap(model, pair.false_tokens, pair)
        source = answer_gap(model, pair.true_tokens, pair)
        assert found.unpatched[index] == pytest.approx(unpatched, abs=2e-5)
        assert found.source[index] == pytest.approx(source, abs=2e-5)
        assert found.grid[index, -1, -1] == pytest.approx(source, abs=2e-5)
        assert np.ptp(expected[index]) > 0.01
    assert hook_count(model) == 0


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_another_models_values_are_patched_at_every_traced_token(family: str) -> None:
    model, other = tiny_model(family), tiny_model(family, seed=1)
    values = source_run(other, PAIRS_AFTER_EXAMPLE)
    found = trace_grid(model, PAIRS_AFTER_EXAMPLE, source_values=values, same_model=False)
    expected = grid_by_hand(model, PAIRS_AFTER_EXAMPLE, other)
    np.testing.assert_allclose(found.grid, expected, rtol=1e-4, atol=2e-5)
    # Even the tokens both prompts share differ between two models.
    assert np.abs(found.grid[:, 0, 0] - found.unpatched).max() > 1e-3


def test_skipped_cells_are_those_that_cannot_differ() -> None:
    model = tiny_model("qwen3")
    values = source_run(model, PAIRS_AFTER_EXAMPLE)
    arguments = {"source_values": values, "batch_size": 5}
    every = trace_grid(model, PAIRS_AFTER_EXAMPLE, same_model=False, **arguments)
    some = trace_grid(model, PAIRS_AFTER_EXAMPLE, same_model=True, **arguments)
    np.testing.assert_allclose(some.grid, every.grid, atol=2e-5)
    assert (some.grid[:, :, :3] == some.unpatched[:, None, None]).all()


def test_source_values_are_the_blocks_outputs_after_the_examples() -> None:
    model = tiny_model("gemma2")
    values = source_run(model, PAIRS_AFTER_EXAMPLE, batch_size=1)
    pair = PAIRS_AFTER_EXAMPLE[1]
    with torch.inference_mode():
        ids = torch.tensor([pair.true_tokens])
        states = model(ids, output_hidden_states=True).hidden_states
    assert values.shape == (2, N_LAYERS, len(pair.true_tokens) - 8, 16)
    for layer in range(N_LAYERS - 1):
        assert torch.allclose(values[1, layer], states[layer + 1][0, 8:], atol=1e-5)


def test_what_cannot_be_traced_together_is_refused() -> None:
    model = tiny_model()
    values = source_run(model, PAIRS)
    with pytest.raises(DataError, match="do not fit"):
        trace_grid(model, PAIRS, source_values=values[:, :-1], same_model=False)
    with pytest.raises(DataError, match="share one token count"):
        source_run(model, [PAIRS[0], PAIRS_AFTER_EXAMPLE[0]])
    with pytest.raises(DataError, match="share one token count"):
        source_run(model, [])


def test_columns_are_named_by_token_and_role() -> None:
    columns = trace_columns(PAIRS, TOKENIZER)
    assert [column.token for column in columns] == ["The", "city", "of", "New", "Oslo", "is", "in"]
    roles = ["prefix"] * 3 + ["subject", "subject_last", "relation", "last"]
    assert [column.role for column in columns] == roles
    after = trace_columns(PAIRS_AFTER_EXAMPLE, TOKENIZER)
    assert [column.token for column in after] == ["The", "city", "of", "Oslo", "is", "in"]


def test_prompts_end_where_the_object_begins() -> None:
    rows = [("Mexico City", "Mexico"), ("Miami", "the United States"), ("Lima", "Peru")]
    found = completion_prompts(statements(rows))
    assert found.drop("row_uid").rows() == [
        ("Mexico City", "The city of Mexico City is in", "Mexico", " Mexico", 0),
        ("Miami", "The city of Miami is in the", "United States", " United States", 0),
        ("Lima", "The city of Lima is in", "Peru", " Peru", 0),
    ]
    assert found["row_uid"].dtype == pl.UInt64
    quoted = statements([("a", "to")], text=pl.lit("The Spanish word 'a' means 'to'."))
    expected = ("a", "The Spanish word 'a' means '", "to", "to", 0)
    assert completion_prompts(quoted).drop("row_uid").row(0) == expected


def test_only_true_affirmative_statements_with_subject_and_object_become_prompts() -> None:
    frame = statements(
        [("Oslo", "Norway"), ("Lima", "Japan"), ("Kobe", "Japan"), ("Agra", "India"), ("", "Peru")],
        label=pl.Series([1, 0, 1, 1, 1]),
        polarity=pl.Series([1, 1, -1, 1, 1]),
    )
    assert completion_prompts(frame)["subject"].to_list() == ["Oslo", "Agra"]
    boolean = frame.with_columns(pl.col("label").cast(pl.Boolean))
    assert completion_prompts(boolean)["subject"].to_list() == ["Oslo", "Agra"]
    with pytest.raises(DataError, match="true affirmative statements"):
        completion_prompts(frame.filter(pl.col("label") == 0))


def test_examples_stand_first_and_give_no_answer_away() -> None:
    rows = [("Lyon", "France"), ("Nice", "France"), ("Oslo", "Norway")]
    found = completion_prompts(statements(rows), examples=[EXAMPLE])
    assert found["subject"].to_list() == ["Oslo"]
    assert found["prompt"][0] == f"{EXAMPLE} The city of Oslo is in"
    assert found["prompt"][0][found["begin"][0] :] == "The city of Oslo is in"


@pytest.mark.parametrize(("subject", "words"), [("Bergen", "Norway"), ("Oslo", "Sweden")])
def test_a_text_without_its_subject_or_object_is_refused(subject: str, words: str) -> None:
    frame = statements([("Oslo", "Norway")], subject=pl.lit(subject), object=pl.lit(words))
    with pytest.raises(DataError, match=f"no subject '{subject}' before an object '{words}'"):
        completion_prompts(frame)


def test_a_fact_is_known_if_its_first_token_is_the_likeliest() -> None:
    model = tiny_model()
    rows: list[tuple[str, str]] = []
    expected: list[bool] = []
    for index, city in enumerate(CITIES):
        ids = TOKENIZER(f"The city of {city} is in")["input_ids"]
        best = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        word = TOKENIZER.convert_ids_to_tokens(best)
        rows.append((city, word if index % 2 and word.isalnum() else "Ecuador"))
        expected.append(rows[-1][1] == word)
    prompts = completion_prompts(statements(rows))
    found = known_facts(model, TOKENIZER, prompts, batch_size=5)
    assert found.tolist() == expected
    assert 0 < found.sum() < len(rows)


def choose(rows: Sequence[tuple[str, str]], n_pairs: int, **options: Any) -> list[CompletionPair]:
    prompts = completion_prompts(statements(rows), examples=options.pop("examples", ()))
    known = options.pop("known", np.ones(len(prompts), dtype=bool))
    return choose_pairs(prompts, TOKENIZER, known=known, n_pairs=n_pairs, **{"seed": 0, **options})


def test_pairs_share_the_commonest_pattern_and_use_each_fact_once() -> None:
    rows = [*SHORT, *LONG]
    for seed in range(5):
        pairs = choose(rows, 3, seed=seed)
        uids = [uid for pair in pairs for uid in (pair.true_uid, pair.false_uid)]
        assert len(set(uids)) == 6
        for pair in pairs:
            true, false = rows[pair.true_uid - 100], rows[pair.false_uid - 100]
            assert {true, false} <= set(LONG)
            assert true[1] != false[1]
            assert pair.subject == (3, 5)
            assert pair.first_difference == 4
            assert TOKENIZER.decode(pair.true_tokens) == f"The city of {true[0]} is in"
            assert TOKENIZER.decode(pair.false_tokens) == f"The city of {false[0]} is in"
            answers = TOKENIZER.convert_ids_to_tokens([pair.true_answer, pair.false_answer])
            assert answers == [true[1], false[1]]


def test_the_choice_hangs_on_the_seed_and_not_on_the_order_of_rows() -> None:
    prompts = completion_prompts(statements([*SHORT, *LONG]))
    known = np.ones(len(prompts), dtype=bool)
    backwards = prompts.reverse()
    first = choose_pairs(prompts, TOKENIZER, known=known, n_pairs=3, seed=4)
    assert choose_pairs(backwards, TOKENIZER, known=known, n_pairs=3, seed=4) == first
    others = [choose(LONG, 3, seed=seed) for seed in range(6)]
    assert any(pairs != others[0] for pairs in others)


def test_unknown_facts_and_short_subjects_are_left_out() -> None:
    known = np.array([True] * 3 + [True, True, False, True, False, False, False])
    (pair,) = choose([*SHORT, *LONG], 1, known=known)
    assert 103 <= pair.true_uid <= 106
    assert 105 not in (pair.true_uid, pair.false_uid)
    (single,) = choose(SHORT, 1, min_subject_tokens=1)
    assert single.subject == (3, 4)


def test_prompts_of_another_wording_do_not_mix() -> None:
    rows = [("New Miami", "the United States"), *LONG[:3]]
    pairs = choose(rows, 1)
    assert all(100 not in (pair.true_uid, pair.false_uid) for pair in pairs)


def test_tracing_begins_after_the_examples() -> None:
    (pair, *_) = choose(LONG, 2, examples=[EXAMPLE])
    assert pair.traced_from == len(TOKENIZER(EXAMPLE)["input_ids"])
    assert pair.subject == (pair.traced_from + 3, pair.traced_from + 5)


def test_too_few_pairs_is_one_clear_line() -> None:
    with pytest.raises(DataError, match=r"only 1 pairs .* 2 were asked for \(3 of 10 facts known"):
        choose([*SHORT, *LONG], 2, known=np.array([False] * 7 + [True] * 3))
    with pytest.raises(DataError, match="only 0 pairs"):
        choose([("New Delhi", "India"), ("New Agra", "India")], 1)
    with pytest.raises(DataError, match="only 0 pairs"):
        choose(LONG, 1, known=np.zeros(len(LONG), dtype=bool))
