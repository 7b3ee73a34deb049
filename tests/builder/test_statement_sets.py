"""The statement sets: balanced, free of leaks, correct, and the same bytes from the same tables."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptmech.errors import DataError
from ptmech_builder.statement_sets import (
    DATA,
    build_statement_sets,
    deal_false_objects,
    slug,
    split_of,
    to_csv,
    write_statement_sets,
)

TEMPLATE_SETS = {
    "cities": r"The city of (.+) is (not )?in (.+)\.",
    "element_symb": r"(.+?) (?:has|does (not) have) the symbol (.+)\.",
    "sp_en_trans": r"The Spanish word '(.+)' (?:means|does (not) mean) '(.+)'\.",
    "animal_class": r"The (.+) is (not )?(?:a (?=[^aeiou])|an (?=[aeiou]))(.+)\.",
    "inventors": r"(.+) was (not )?born in (.+)\.",
}
AFFIRMATIVE = [*TEMPLATE_SETS, "facts"]
NUMBER_SETS = ["larger_than", "smaller_than"]
ALL_SETS = [*AFFIRMATIVE, *(f"neg_{name}" for name in AFFIRMATIVE), *NUMBER_SETS]
COLUMNS = [
    "source_id", "text", "label", "polarity", "group", "pair", "split", "subject", "object",
]  # fmt: skip
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
UNITS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def size_of(words: str) -> int:
    tens, _, unit = words.lower().partition("-")
    return 10 * (TENS.index(tens) + 2) + (UNITS.index(unit) + 1 if unit else 0)


def read(path: Path) -> pl.DataFrame:
    return pl.read_csv(path).with_columns(pl.col(pl.String).fill_null(""))


def committed(name: str) -> pl.DataFrame:
    return read(DATA / "statements" / f"{name}.csv")


def split_sizes(groups: pl.DataFrame) -> dict[str, int]:
    return dict(groups.unique("group").group_by("split").len().iter_rows())


def test_exactly_these_sets_are_committed() -> None:
    assert sorted(path.stem for path in (DATA / "statements").iterdir()) == sorted(ALL_SETS)


def test_regenerating_gives_the_committed_bytes(tmp_path: Path) -> None:
    write_statement_sets(tmp_path / "sets")
    for name in ALL_SETS:
        again = (tmp_path / "sets" / f"{name}.csv").read_bytes()
        assert again == (DATA / "statements" / f"{name}.csv").read_bytes(), name


@pytest.mark.parametrize(
    "path",
    sorted([*(DATA / "facts").iterdir(), *(DATA / "statements").iterdir()]),
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_files_are_plain_text(path: Path) -> None:
    text = path.read_bytes().decode("utf-8")
    assert unicodedata.is_normalized("NFC", text)
    assert "\r" not in text
    assert not text.startswith("\ufeff")
    assert text.endswith("\n")
    assert not re.search(r"  | ,|, |\u00a0", text)


@pytest.mark.parametrize("name", ALL_SETS)
def test_a_set_is_balanced_and_without_duplicates(name: str) -> None:
    rows = committed(name)
    assert rows.columns == COLUMNS
    assert 160 <= rows.height <= 200
    assert rows["source_id"].is_unique().all()
    assert rows["text"].is_unique().all()
    assert rows["polarity"].unique().to_list() == [-1 if name.startswith("neg_") else 1]
    assert set(rows["label"]) == {0, 1}
    for _, pair in rows.group_by("pair"):
        assert sorted(pair["label"]) == [0, 1]
        assert pair["group"].n_unique() == 1
    assert rows["pair"].n_unique() == rows["group"].n_unique()
    assert rows["pair"].str.starts_with(f"{name}/").all()
    suffix = (
        rows["source_id"].str.extract(r"-(true|false)$").replace_strict({"true": 1, "false": 0})
    )
    assert suffix.to_list() == rows["label"].to_list()


def test_no_text_stands_in_two_sets() -> None:
    assert pl.concat([committed(name) for name in ALL_SETS])["text"].is_unique().all()


def test_a_group_never_crosses_splits() -> None:
    every = pl.concat([committed(name) for name in ALL_SETS])
    assert every.group_by("group").agg(pl.col("split").n_unique())["split"].max() == 1
    assert set(every["split"]) == {"train", "validation", "test"}
    for name in AFFIRMATIVE:
        negated = committed(f"neg_{name}")
        assert committed(name)["group"].to_list() == negated["group"].to_list()
        assert negated["group"].str.starts_with(f"{name}/").all()
    larger, smaller = (committed(name) for name in NUMBER_SETS)
    assert set(larger["group"]) == set(smaller["group"])


@pytest.mark.parametrize("name", ALL_SETS)
def test_splits_have_about_the_promised_sizes(name: str) -> None:
    sizes = split_sizes(committed(name))
    facts = sum(sizes.values())
    for split, share in {"train": 0.6, "validation": 0.2, "test": 0.2}.items():
        assert abs(sizes[split] / facts - share) < 0.06


def test_the_hash_splits_names_60_20_20() -> None:
    shares = Counter(split_of(f"names/{number}") for number in range(10_000))
    # Four standard deviations of a binomial of 10,000.
    assert abs(shares["train"] - 6000) < 4 * np.sqrt(10_000 * 0.6 * 0.4)
    assert abs(shares["validation"] - 2000) < 4 * np.sqrt(10_000 * 0.2 * 0.8)


@pytest.mark.parametrize("name", TEMPLATE_SETS)
def test_negation_turns_the_label_over(name: str) -> None:
    plain, negated = committed(name), committed(f"neg_{name}")
    both = plain.join(negated, on=["group", "object"], suffix="_negated", validate="1:1")
    assert both.height == plain.height == negated.height
    assert (both["label"] + both["label_negated"] == 1).all()
    assert (both["subject"] == both["subject_negated"]).all()
    assert both["text_negated"].str.contains(r" not ").all()
    assert not both["text"].str.contains(r" not ").any()


def test_negated_facts_hold_the_other_label_and_a_negation() -> None:
    plain, negated = committed("facts"), committed("neg_facts")
    both = plain.join(
        negated.with_columns(label=1 - pl.col("label")), on=["group", "label"], suffix="_negated"
    )
    assert both.height == plain.height
    for text, opposite in both.select("text", "text_negated").iter_rows():
        assert re.search(r"\b(not|cannot|No)\b", opposite)
        assert not re.search(r"\b(not|cannot|no)\b", text, re.IGNORECASE)
        # The negation takes away no content word; verbs may lose their ending: has/have, sank/sink.
        lost = set(re.findall(r"\w+", text.lower())) - set(re.findall(r"\w+", opposite.lower()))
        assert len(lost) <= 1, (text, opposite)
    assert set(plain["subject"]) == set(plain["object"]) == {""}


@pytest.mark.parametrize("name", TEMPLATE_SETS)
@pytest.mark.parametrize("prefix", ["", "neg_"])
def test_truth_agrees_with_the_fact_table(name: str, prefix: str) -> None:
    table = read(DATA / "facts" / f"{name}.csv")
    truths = {(row[0], row[1]) for row in table.iter_rows()}
    contested = {(row[0], word) for row in table.iter_rows() for word in row[2:] if word}
    contested = {(subject, part) for subject, parts in contested for part in parts.split(";")}
    assert truths.isdisjoint(contested)
    for row in committed(prefix + name).iter_rows(named=True):
        match = re.fullmatch(TEMPLATE_SETS[name], row["text"])
        assert match, row["text"]
        subject, negation, object_ = match.groups()
        assert (subject, object_) == (row["subject"], row["object"])
        assert (subject, object_) not in contested
        assert bool(negation) == bool(prefix)
        assert row["label"] == (((subject, object_) in truths) != bool(negation))
        assert row["group"] == f"{name}/{slug(subject)}"


@pytest.mark.parametrize("name", TEMPLATE_SETS)
@pytest.mark.parametrize("prefix", ["", "neg_"])
def test_the_object_alone_tells_nothing(name: str, prefix: str) -> None:
    for _, rows in committed(prefix + name).group_by("split"):
        true, false = (Counter(rows.filter(pl.col("label") == label)["object"]) for label in (1, 0))
        assert true == false


@pytest.mark.parametrize("name", NUMBER_SETS)
def test_numbers_are_compared_rightly_in_both_orders(name: str) -> None:
    relation = name.removesuffix("_than")
    orders = Counter()
    for row in committed(name).iter_rows(named=True):
        match = re.fullmatch(rf"(.+) is {relation} than (.+)\.", row["text"])
        assert match, row["text"]
        assert match.groups() == (row["subject"], row["object"])
        first, second = (size_of(word) for word in match.groups())
        assert row["subject"][0].isupper()
        assert row["object"].islower()
        assert row["label"] == (first > second if relation == "larger" else first < second)
        assert row["group"] == f"numbers/{min(first, second)}-{max(first, second)}"
        orders[first, second] += 1
    assert set(orders.values()) == {1}
    assert all((second, first) in orders for first, second in orders)


@pytest.mark.parametrize("name", NUMBER_SETS)
@pytest.mark.parametrize("column", ["subject", "object"])
def test_the_size_of_one_number_gives_little_away(name: str, column: str) -> None:
    rows = committed(name)
    size = np.array([size_of(word) for word in rows[column]])
    label = rows["label"].to_numpy()
    best = max(max(np.mean((size > cut) == label), np.mean((size <= cut) == label)) for cut in size)
    assert best < 0.6


def free_facts() -> Iterator[dict[str, str]]:
    return read(DATA / "facts" / "facts.csv").iter_rows(named=True)


def test_facts_are_worded_as_in_their_table() -> None:
    labelled = {}
    for fact in free_facts():
        labelled |= {fact["true"]: ("facts", 1), fact["false"]: ("facts", 0)}
        labelled |= {
            fact["negated_true"]: ("neg_facts", 0),
            fact["negated_false"]: ("neg_facts", 1),
        }
    for name in ("facts", "neg_facts"):
        for text, label in committed(name).select("text", "label").iter_rows():
            assert labelled[text] == (name, label)
            assert text.endswith(".")
            assert text[0].isupper()


@pytest.mark.parametrize(
    ("name", "least"),
    [("cities", 130), ("element_symb", 90), ("sp_en_trans", 100), ("animal_class", 90),
     ("inventors", 80), ("facts", 80)],
)  # fmt: skip
def test_tables_are_long_and_their_subjects_unique(name: str, least: int) -> None:
    table = read(DATA / "facts" / f"{name}.csv")
    assert table.height >= least
    for column in table.columns if name == "facts" else table.columns[:1]:
        assert table[column].is_unique().all()
        assert (table[column] != "").all()


@pytest.mark.parametrize("name", ["element_symb", "sp_en_trans"])
def test_no_two_subjects_share_a_symbol_or_translation(name: str) -> None:
    table = read(DATA / "facts" / f"{name}.csv")
    assert table[table.columns[1]].is_unique().all()


@given(
    st.lists(st.sampled_from("abcd"), min_size=2, max_size=24).filter(
        lambda objects: max(Counter(objects).values()) * 2 <= len(objects)
    ),
    st.integers(0, 2**32),
)
def test_dealt_objects_are_a_permutation_without_truths(objects: list[str], seed: int) -> None:
    nothing = [frozenset[str]()] * len(objects)
    dealt = deal_false_objects(objects, nothing, rng=np.random.default_rng(seed))
    assert sorted(dealt) == sorted(objects)
    assert all(false != true for false, true in zip(dealt, objects, strict=True))


def test_dealing_respects_what_is_to_be_avoided() -> None:
    avoid = [frozenset({"b"}), frozenset[str](), frozenset[str]()]
    for seed in range(20):
        dealt = deal_false_objects(["a", "b", "c"], avoid, rng=np.random.default_rng(seed))
        assert dealt == ["c", "a", "b"]


def test_an_object_of_most_subjects_cannot_be_dealt() -> None:
    with pytest.raises(DataError, match="add facts with other objects"):
        deal_false_objects(["a", "a", "b"], [frozenset[str]()] * 3, rng=np.random.default_rng(0))


def copy_tables(folder: Path) -> Path:
    for table in (DATA / "facts").iterdir():
        (folder / table.name).write_bytes(table.read_bytes())
    return folder


def test_a_fact_told_twice_is_refused(tmp_path: Path) -> None:
    with (copy_tables(tmp_path) / "cities.csv").open("a", encoding="utf-8") as table:
        table.write("Tokyo,Peru,\n")
    with pytest.raises(DataError, match="cities share the id 'tokyo'"):
        build_statement_sets(tmp_path)


def test_a_changed_table_leaves_the_other_sets_alone(tmp_path: Path) -> None:
    before = build_statement_sets()
    with (copy_tables(tmp_path) / "animal_class.csv").open("a", encoding="utf-8") as table:
        table.writelines(f"imaginary beast {number},insect\n" for number in range(20))
    after = build_statement_sets(tmp_path)
    changed = {name for name in before if to_csv(before[name]) != to_csv(after[name])}
    assert changed == {"animal_class", "neg_animal_class"}
