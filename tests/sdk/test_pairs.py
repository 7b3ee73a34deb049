from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl
import pytest
from tests.tiny_models import VOCABULARY, word_tokenizer

from ptmech import knowledge
from ptmech.errors import DataError, UnknownNameError
from ptmech.knowledge import Pairs, completion_prompts
from ptmech.knowledge.completions import completion_pairs

CITIES = [
    *["Lyon", "Nice", "Oslo", "Bergen", "Turin", "Lima"],
    *["Cusco", "Osaka", "Kobe", "Delhi", "Agra", "Quito"],
]
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


def choose(rows: Sequence[tuple[str, str]], n_pairs: int, **options: Any) -> Pairs:
    return knowledge.pairs(statements(rows), TOKENIZER, n_pairs=n_pairs, **options)


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
            assert pair.differing == (4,)
            assert TOKENIZER.decode(list(pair.true_tokens)) == f"The city of {true[0]} is in"
            assert TOKENIZER.decode(list(pair.false_tokens)) == f"The city of {false[0]} is in"
            answers = TOKENIZER.convert_ids_to_tokens([*pair.true_answer, *pair.false_answer])
            assert answers == [true[1], false[1]]


def test_the_choice_hangs_on_the_seed_and_not_on_the_order_of_rows() -> None:
    frame = statements([*SHORT, *LONG])
    first = knowledge.pairs(frame, TOKENIZER, n_pairs=3, seed=4)
    assert knowledge.pairs(frame.reverse(), TOKENIZER, n_pairs=3, seed=4).items == first.items
    others = [choose(LONG, 3, seed=seed).items for seed in range(6)]
    assert any(pairs != others[0] for pairs in others)


def test_unknown_facts_and_short_subjects_are_left_out() -> None:
    (pair,) = choose([*SHORT, *LONG], 1, known=[100, 101, 102, 103, 104, 106])
    assert 103 <= pair.true_uid <= 106
    assert 105 not in (pair.true_uid, pair.false_uid)
    with pytest.raises(DataError, match="only 0 pairs"):
        choose(SHORT, 1)
    (single,) = completion_pairs(statements(SHORT), TOKENIZER, n_pairs=1, min_subject_tokens=1)
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
        choose([*SHORT, *LONG], 2, known=[107, 108, 109])
    with pytest.raises(DataError, match="only 0 pairs"):
        choose([("New Delhi", "India"), ("New Agra", "India")], 1)
    with pytest.raises(DataError, match="only 0 pairs"):
        choose(LONG, 1, known=[])


def test_columns_are_named_by_token_and_role() -> None:
    pairs = choose(LONG, 2)
    assert [column.token for column in pairs.columns][:4] == ["The", "city", "of", "New"]
    roles = ["prefix"] * 3 + ["subject", "subject_last", "relation", "last"]
    assert [column.role for column in pairs.columns] == roles
    assert pairs.pattern == "The city of New _ is in"
    assert pairs.measure == "logit_difference"
    assert pairs.frame["differing"].to_list() == [[4], [4]]
    after = choose(LONG, 2, examples=[EXAMPLE])
    assert after.columns[0].token == "The"
    assert len(after.columns) == len(pairs.columns)
    assert "2 pairs in the completion form, 7 traced tokens after 1 examples" in repr(after)


QUESTION_WORDS = ["TRUE", "FALSE", "This", "statement", ":", "not", "larger", "than", "-", "and"]
NUMBERS = ["one", "two", "three", "four", "five", "six", "ten"]
ASKING = word_tokenizer([*FRAME, *CITIES, *COUNTRIES, *QUESTION_WORDS, *NUMBERS, "UE", "ALSE"])


def claims(negated: bool = False) -> pl.DataFrame:
    """Every city in its own country and in the next one's, in one and two words."""
    rows: list[tuple[str, bool]] = []
    for at, city in enumerate(CITIES):
        name = f"New {city}" if at % 3 == 0 else city
        for step in range(3):
            country = COUNTRIES[(at + step) % len(COUNTRIES)]
            middle = "is not in" if negated else "is in"
            rows.append((f"The city of {name} {middle} {country}.", (step == 0) != negated))
    return pl.DataFrame(rows, schema=["text", "label"], orient="row")


def ask(frame: pl.DataFrame, **options: Any) -> Pairs:
    return knowledge.pairs(frame, ASKING, form="true_false", **options)


@pytest.mark.parametrize("negated", [False, True])
def test_true_and_false_statements_of_the_commonest_pattern_are_paired(negated: bool) -> None:
    frame = claims(negated)
    pairs = ask(frame)
    text = dict(frame.with_row_index().select("index", "text").iter_rows())
    label = dict(frame.with_row_index().select("index", "label").iter_rows())
    middle = ["is", "not", "in"] if negated else ["is", "in"]
    assert pairs.pattern.split() == [
        *["The", "city", "of", "_"],
        *middle,
        *["_", ".", "This", "statement", "is", ":"],
    ]
    roles = ["prefix"] * 3 + ["subject_last"] + ["relation"] * len(middle) + ["object"]
    assert [column.role for column in pairs.columns] == [*roles, *["other"] * 4, "last"]
    used = [uid for pair in pairs for uid in (pair.true_uid, pair.false_uid)]
    assert len(set(used)) == len(used) >= 6
    for pair in pairs:
        assert label[pair.true_uid]
        assert not label[pair.false_uid]
        true, false = text[pair.true_uid], text[pair.false_uid]
        assert true.split()[-1] == false.split()[-1]
        assert "New" not in true + false
        assert len(pair.true_tokens) == len(pair.false_tokens)
        prompt = ASKING.convert_ids_to_tokens(list(pair.true_tokens[pair.traced_from :]))
        assert prompt == [*true[:-1].split(), ".", "This", "statement", "is", ":"]


def test_examples_are_two_true_and_two_false_statements_that_are_not_traced() -> None:
    frame = claims()
    pairs = ask(frame, seed=3)
    truth = dict(frame.iter_rows())
    shown = [example.partition(" This statement is: ") for example in pairs.examples]
    assert sorted(answer for _text, _question, answer in shown) == ["FALSE"] * 2 + ["TRUE"] * 2
    assert all(truth[text] == (answer == "TRUE") for text, _question, answer in shown)
    by_uid = frame["text"].to_list()
    asked = {by_uid[uid] for pair in pairs for uid in (pair.true_uid, pair.false_uid)}
    assert asked.isdisjoint(text for text, _question, _answer in shown)


def test_each_pair_has_its_own_order_of_examples_the_same_in_both_prompts() -> None:
    pairs = ask(claims(), seed=1)
    prefixes = [pair.true_tokens[: pair.traced_from] for pair in pairs]
    assert prefixes == [pair.false_tokens[: pair.traced_from] for pair in pairs]
    assert len(set(prefixes)) > 1
    assert len({tuple(sorted(prefix)) for prefix in prefixes}) == 1
    lines = {" ".join(ASKING.convert_ids_to_tokens(ASKING(e)["input_ids"])) for e in pairs.examples}
    for prefix in prefixes:
        told = " ".join(ASKING.convert_ids_to_tokens(list(prefix)))
        assert all(line in told for line in lines)


def test_questions_hang_on_the_seed_and_not_on_the_order_of_rows() -> None:
    frame = claims().with_row_index("row_uid")
    first = ask(frame, seed=2)
    again = ask(frame.reverse(), seed=2)
    assert (again.items, again.examples) == (first.items, first.examples)
    assert ask(frame, seed=5).items != first.items


def test_given_examples_and_the_number_of_pairs_are_kept() -> None:
    examples = ["The city of Oslo is in France. This statement is: FALSE"]
    pairs = ask(claims(), examples=examples, n_pairs=2)
    assert pairs.examples == tuple(examples)
    assert len(pairs) == 2
    bare = ask(claims(), examples=())
    assert bare.traced_from == 0
    with pytest.raises(DataError, match="ask for fewer pairs"):
        ask(claims(), n_pairs=500)


def test_answers_of_several_tokens_are_kept_whole_and_said() -> None:
    single = ask(claims(), n_pairs=2)
    assert single.measure == "logit_difference"
    true, false = (ASKING.convert_tokens_to_ids(word) for word in ("TRUE", "FALSE"))
    assert (single[0].true_answer, single[0].false_answer) == ((true,), (false,))
    several = ask(claims(), n_pairs=2, answers=(" one two", " three"))
    assert several.measure == "log_probability_difference"
    assert [len(several[0].true_answer), len(several[0].false_answer)] == [2, 1]
    with pytest.raises(DataError, match="cannot be told apart"):
        ask(claims(), answers=(" TRUE", " TRUE"))


def test_open_words_with_a_hyphen_are_one_stretch() -> None:
    names = [f"{a}-{b}" for a in CITIES[:5] for b in COUNTRIES[:5]]
    rows = [
        (f"{one} is larger than {names[at]}.", rank > at)
        for at in range(0, len(names), 2)
        for rank, one in enumerate(names)
        if rank != at
    ]
    pairs = ask(pl.DataFrame(rows, schema=["text", "label"], orient="row"), examples=(), n_pairs=20)
    assert pairs.pattern.startswith("_ - _ is larger than _ - _ .")
    assert [(pair.subject, pair.object) for pair in pairs] == [((0, 3), (6, 9))] * 20


def test_stated_subjects_and_objects_name_the_columns() -> None:
    frame = claims().with_columns(
        subject=pl.col("text").str.extract(r"of (.*) is"),
        object=pl.col("text").str.extract(r"in (.*)\."),
    )
    pairs = ask(frame)
    assert pairs[0].subject is not None
    start, stop = pairs[0].subject
    uid = pairs[0].true_uid
    subject = " ".join(ASKING.convert_ids_to_tokens(list(pairs[0].true_tokens[start:stop])))
    assert subject == frame["subject"][uid]


def test_what_pairs_cannot_use_is_one_clear_line() -> None:
    with pytest.raises(UnknownNameError, match="unknown form 'question'"):
        knowledge.pairs(claims(), ASKING, form="question")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="a column 'object'"):
        knowledge.pairs(claims(), ASKING)
    with pytest.raises(DataError, match="too few for worked examples"):
        ask(claims().head(3))
    with pytest.raises(DataError, match="no statement is left"):
        ask(claims(), known=[])
