"""Rows: identities by the written-out formula, draws as scikit-learn divides lists."""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from pathlib import Path
from typing import Any

import pandas
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split
from tests.tiny import Family, csv_bytes, tiny_family, write_card, write_dataset

from ptmech._schemas import STATEMENT_COLUMNS
from ptmech.alignment import row_uid
from ptmech.errors import CardError, DataError, IntegrityError
from ptmech_builder.cards import CardFile, DatasetCard, read_card
from ptmech_builder.dataset_files import DataFile, Origin, dataset_file
from ptmech_builder.rows import read_rows

ROOT = Path(__file__).parents[2]
ROWS = [
    {"source_id": "a", "text": "Snow is white.", "label": 1, "split": "train"},
    {"source_id": "b", "text": "Snow is black.", "label": 0, "split": "test"},
    {"source_id": "c", "text": "Café is open.", "label": 1, "split": "train"},
]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return tiny_family(tmp_path_factory)


def uid_by_formula(dataset: str, source_id: str, text: str) -> int:
    composed = unicodedata.normalize("NFC", text)
    hashed = hashlib.sha256(f"{dataset}\0{source_id}\0{composed}".encode()).hexdigest()
    return int(hashed[:16], 16)


def rows_of(
    family: Family,
    folder: Path,
    rows: Any,
    *,
    kind: str = "statements",
    limit: int | None = None,
    **entries: Any,
) -> pl.DataFrame:
    """Read a dataset made of these rows (or of these very bytes)."""
    card, dataset = card_with(family, folder, rows, kind=kind, **entries)
    return read_rows(dataset_file(card, dataset), dataset, limit)


def card_with(
    family: Family, folder: Path, rows: Any, *, kind: str = "statements", **entries: Any
) -> tuple[CardFile, DatasetCard]:
    recipe = family.recipe(folder)
    entry = {"name": "things", "title": "Things", "kind": kind, "positions": [-1]}
    recipe["datasets"].append({**entry, **write_dataset(folder, "things", rows), **entries})
    card = read_card(write_card(folder, recipe))
    return card, card.card.datasets[-1]


def test_rows_carry_identity_and_order(family: Family, tmp_path: Path) -> None:
    frame = rows_of(family, tmp_path, ROWS)
    assert frame.schema == pl.Schema(STATEMENT_COLUMNS)
    assert frame["row_uid"].to_list() == [
        uid_by_formula("things", row["source_id"], row["text"]) for row in ROWS
    ]
    assert frame["row"].to_list() == [0, 1, 2]
    assert frame["label"].to_list() == [1, 0, 1]
    assert frame["split"].to_list() == ["train", "test", "train"]
    assert frame["subject"].to_list() == [None] * 3
    assert set(frame["dataset"]) == {"things"}


@given(
    st.text(min_size=1).filter(lambda t: "\0" not in t), st.text().filter(lambda t: "\0" not in t)
)
def test_identity_follows_the_formula(source_id: str, text: str) -> None:
    try:
        (source_id + text).encode()
    except UnicodeEncodeError:
        return  # lone surrogates are no text
    assert row_uid("things", source_id, text) == uid_by_formula("things", source_id, text)


def test_composed_and_decomposed_text_are_one_row(family: Family, tmp_path: Path) -> None:
    composed, decomposed = (
        [{**row, "text": unicodedata.normalize(form, row["text"])} for row in ROWS]
        for form in ("NFC", "NFD")
    )
    assert csv_bytes(composed) != csv_bytes(decomposed)
    first = rows_of(family, tmp_path / "nfc", composed)
    second = rows_of(family, tmp_path / "nfd", decomposed)
    assert first["row_uid"].equals(second["row_uid"])
    # The prompt is the text that the identity stands for.
    assert first["text"].equals(second["text"])


def test_a_limit_keeps_the_first_rows(family: Family, tmp_path: Path) -> None:
    assert rows_of(family, tmp_path, ROWS, limit=2)["source_id"].to_list() == ["a", "b"]


def test_a_limit_takes_of_both_labels_of_a_sorted_file(family: Family, tmp_path: Path) -> None:
    rows = [
        {"source_id": f"{at:02}", "text": f"T{at}.", "label": int(at >= 30)} for at in range(34)
    ]
    frame = rows_of(family, tmp_path, rows, limit=8)
    assert frame["source_id"].to_list() == ["00", "01", "02", "03", "30", "31", "32", "33"]
    odd = rows_of(family, tmp_path / "odd", rows, limit=11)
    assert odd["source_id"].to_list() == [f"{at:02}" for at in (*range(7), *range(30, 34))]


def test_a_limit_takes_of_every_split_of_instructions(family: Family, tmp_path: Path) -> None:
    splits = ["train"] * 5 + ["validation"] * 5 + ["test"] * 5
    rows = [{"source_id": f"{at}", "text": f"Do {at}.", "split": s} for at, s in enumerate(splits)]
    frame = rows_of(family, tmp_path, rows, kind="instructions", limit=7)
    assert frame["source_id"].to_list() == ["0", "1", "2", "5", "6", "10", "11"]


def test_a_changed_file_is_refused(family: Family, tmp_path: Path) -> None:
    card, dataset = card_with(family, tmp_path, ROWS)
    (tmp_path / "things.csv").write_bytes(csv_bytes(ROWS) + b"\n")
    with pytest.raises(IntegrityError, match=f"the card pins {dataset.sha256}"):
        dataset_file(card, dataset)


def test_a_file_that_is_not_there_is_refused(family: Family, tmp_path: Path) -> None:
    card, dataset = card_with(family, tmp_path, ROWS)
    (tmp_path / "things.csv").unlink()
    with pytest.raises(CardError, match=r"'things\.csv', which does not exist"):
        dataset_file(card, dataset)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (b"", "things"),
        (b"source_id,text,label\n", "has no rows"),
        (b"source_id,label\na,1\nb,0\n", "lacks the column 'text'"),
        (b"source_id,text\na,x\nb,y\n", "lacks the column 'label'"),
        (b"source_id,text,label\na,x,1\nb,y,1\n", "true and false statements; all 2 are true"),
        (b"source_id,text,label\na,x,1\nb,y,2\nc,z,0\n", "row 2 has the label '2'"),
        (b"source_id,text,label\na,x,1\nb,y,\nc,z,0\n", "row 2 has no label"),
        (b"source_id,text,label\na,x,1\nb,y,maybe\nc,z,0\n", "row 2 has the label 'maybe'"),
        (b"source_id,text,label,polarity\na,x,1,up\nb,y,0,1\n", "row 1 has the polarity 'up'"),
        (b"source_id,text,label,polarity\na,x,1,1\nb,y,0,7\n", "row 2 has the polarity '7'"),
        (b"source_id,text,label\na,x,1\nb,y,0\na,x,1\n", "repeats the row 'a'"),
        (b"source_id,text,label\na,x,1\nb,,0\n", "things.*text"),
        (b"source_id,text,label\na,x,1\n,y,0\n", "things.*source_id"),
        (b"source_id,text,label\na,x,1\nb,y,0,7\n", "things"),
        (b"source_id,text,label\na,x,1\nb,y\xff,0\n", r"not UTF-8 text \(line 3\)"),
        (b"source_id,text,label\na,x,1\nb,y\0,0\n", "NUL"),
    ],
    ids=[
        "empty file", "no rows", "no text", "no label", "one class", "label 2",
        "label missing", "label maybe", "polarity up", "polarity 7", "doubled",
        "text missing", "id missing",
        "ragged", "not UTF-8", "NUL",
    ],
)  # fmt: skip
def test_unusable_rows_are_refused_in_one_line(
    family: Family, tmp_path: Path, rows: bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        rows_of(family, tmp_path, rows)
    assert "\n" not in str(caught.value)


def test_one_text_may_occur_under_two_ids(family: Family, tmp_path: Path) -> None:
    rows = [{**ROWS[0], "source_id": "first"}, {**ROWS[0], "source_id": "second"}, ROWS[1]]
    frame = rows_of(family, tmp_path, rows)
    assert frame["row_uid"].n_unique() == 3


def test_instructions_need_no_labels(family: Family, tmp_path: Path) -> None:
    rows = [{"source_id": "a", "text": "Name a tree."}]
    frame = rows_of(family, tmp_path, rows, kind="instructions")
    assert frame["label"].to_list() == [None]


# Columns ---------------------------------------------------------------------------------------

PUBLISHED = (
    b"statement,label,city,country\r\n"
    b"The city of Oslo is in Norway.,1,Oslo,Norway\r\n"
    b"The city of Oslo is in Peru.,0,Oslo,Peru\r\n"
    b'"The city of Lima, by the sea, is in Peru.",1,Lima,Peru\r\n'
    b"The city of Rome is in Italy.,TRUE,Rome,Italy\r\n"
    b"The city of Rome is in Peru.,False,Rome,Peru\r\n"
    b"The city of Rome is in Norway.,0.0,Rome,Norway\r\n"
)
CITY = {"text": "statement", "subject": "city", "object": "country"}


def test_columns_go_by_the_names_the_card_gives(family: Family, tmp_path: Path) -> None:
    frame = rows_of(family, tmp_path, PUBLISHED, columns=CITY, polarity=-1)
    assert frame["text"][2] == "The city of Lima, by the sea, is in Peru."
    assert frame["subject"].to_list() == ["Oslo", "Oslo", "Lima", "Rome", "Rome", "Rome"]
    assert frame["object"][5] == "Norway"
    assert frame["label"].to_list() == [1, 0, 1, 1, 0, 0]
    assert frame["polarity"].to_list() == [-1] * 6
    assert frame["source_id"].to_list() == ["1", "2", "3", "4", "5", "6"]
    assert frame["row_uid"][1] == uid_by_formula("things", "2", "The city of Oslo is in Peru.")


def test_a_subject_makes_groups_and_where_it_is_clear_pairs(family: Family, tmp_path: Path) -> None:
    frame = rows_of(family, tmp_path, PUBLISHED, columns=CITY)
    assert frame["group"].to_list() == frame["subject"].to_list()
    assert frame["pair"].to_list() == ["things/Oslo", "things/Oslo", None, None, None, None]
    own = rows_of(family, tmp_path / "own", PUBLISHED, columns={**CITY, "group": "country"})
    assert own["group"].to_list() == own["object"].to_list()


WORDED = """The Spanish word '(?P<subject>.+)' means '(?P<object>.+)'\\."""


def test_a_pattern_tells_subject_and_object(family: Family, tmp_path: Path) -> None:
    rows = (
        b"text,label\nThe Spanish word 'uno' means 'one'.,1\n"
        b"The Spanish word 'uno' means 'floor'.,0\n"
        b"Uno is a number.,1\nThe Spanish word 'de' means 'to 'be''.,0\n"
    )
    frame = rows_of(family, tmp_path, rows, pattern=WORDED)
    assert frame["subject"].to_list() == ["uno", "uno", None, "de"]
    assert frame["object"].to_list() == ["one", "floor", None, "to 'be'"]
    assert frame["group"].to_list() == ["uno", "uno", None, "de"]
    assert frame["pair"].to_list() == ["things/uno", "things/uno", None, None]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"pattern": "(?P<subject>.+"}, "pattern is no regular expression"),
        ({"pattern": "(.+) is red"}, r"pattern needs a group \(\?P<subject>.*it has none"),
        ({"pattern": "(?P<subject>.+) (?P<verb>is)"}, "no other named group"),
        ({"pattern": WORDED, "columns": {"subject": "word"}}, "both tell the subject"),
        ({"pattern": WORDED, "kind": "instructions"}, "pattern is for statements"),
    ],
)
def test_patterns_that_cannot_be_used_are_refused(
    family: Family, tmp_path: Path, entries: dict[str, Any], message: str
) -> None:
    with pytest.raises(CardError, match=message) as caught:
        card_with(family, tmp_path, ROWS, **entries)
    assert "\n" not in str(caught.value)


def test_a_pattern_beside_a_column_is_refused(family: Family, tmp_path: Path) -> None:
    rows = b"text,label,subject\nA.,1,x\nB.,0,y\n"
    with pytest.raises(DataError, match="a column for the subject of every row, and the card"):
        rows_of(family, tmp_path, rows, pattern=WORDED)


def test_rows_of_one_text_are_told_apart_by_their_number(family: Family, tmp_path: Path) -> None:
    rows = b"statement,label\nSnow is white.,1\nCoal is red.,0\nSnow is white.,1\n"
    frame = rows_of(family, tmp_path, rows, columns={"text": "statement"})
    assert frame["row_uid"].n_unique() == 3
    assert frame["row_uid"][2] == uid_by_formula("things", "3", "Snow is white.")


def test_labels_of_instructions_are_left_alone(family: Family, tmp_path: Path) -> None:
    rows = b"text,label\nName a tree.,chores\n"
    assert rows_of(family, tmp_path, rows, kind="instructions")["label"].to_list() == [None]


@pytest.mark.parametrize(
    ("rows", "entries", "message"),
    [
        (PUBLISHED, {}, r"lacks the column 'text'; .*columns = \{ text = \"statement\" \}"),
        (
            PUBLISHED,
            {"columns": {"text": "statment"}},
            r"lacks the column 'statment', which .* for 'text' \(did you mean 'statement'\?\)",
        ),
        (
            b"text,label,polarity\na,1,1\nb,0,1\n",
            {"polarity": -1},
            "polarity = -1 for all; take one of them away",
        ),
        (b"text,label\na,1\n  ,0\n", {}, "row 2 has no text"),
    ],
    ids=["text by another name", "slip in a name", "two polarities", "text of spaces"],
)
def test_columns_that_do_not_fit_are_named(
    family: Family, tmp_path: Path, rows: bytes, entries: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        rows_of(family, tmp_path, rows, **entries)
    assert "\n" not in str(caught.value)


# Draws -----------------------------------------------------------------------------------------


def instruction_set(n: int) -> list[dict[str, Any]]:
    """Instructions of which every fifth has an input and every seventh repeats an earlier one."""
    return [
        {
            "instruction": f"Do thing {index - 7 if index % 7 == 6 and index > 7 else index}.",
            "input": "a list" if index % 5 == 0 else " ",
        }
        for index in range(n)
    ]


def draw_by_hand(
    rows: list[dict[str, Any]], train: int, validation: int, test: int, share: float, seed: int
) -> list[tuple[str, str, str]]:
    """Number in the file, text and split of the rows drawn: the whole list divided, then read."""
    kept = [
        (str(number), row["instruction"])
        for number, row in enumerate(rows, start=1)
        if row["input"].strip() == ""
    ]
    larger, smaller = train_test_split(kept, test_size=share, random_state=seed)
    chosen: list[tuple[str, str, str]] = []
    for side, wanted in (
        (larger, ["train"] * train + ["validation"] * validation), (smaller, ["test"] * test),
    ):  # fmt: skip
        splits = iter(wanted)
        for number, text in side:
            if text not in [taken for _, taken, _ in chosen] and (split := next(splits, None)):
                chosen.append((number, text, split))
    return chosen


@given(
    n=st.integers(40, 90),
    train=st.integers(1, 12),
    validation=st.integers(0, 4),
    test=st.integers(1, 5),
    share=st.sampled_from([0.2, 0.25, 0.5]),
    seed=st.integers(0, 99),
)
def test_a_draw_is_scikit_learn_s_division(
    n: int, train: int, validation: int, test: int, share: float, seed: int
) -> None:
    rows = instruction_set(n)
    sample = {"train": train, "validation": validation, "test": test, "test_share": share}
    card = DatasetCard.model_validate(
        {
            "name": "harmless",
            "title": "Harmless",
            "kind": "instructions",
            "file": "harmless.json",
            "columns": {"text": "instruction"},
            "sample": {**sample, "seed": seed, "blank": ["input"]},
        }
    )
    raw = json.dumps(rows).encode()
    frame = read_rows(DataFile("harmless.json", Origin("harmless.json", ""), raw), card)
    expected = draw_by_hand(rows, train, validation, test, share, seed)
    assert frame["source_id", "text", "split"].rows() == expected


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"train": 60, "test": 2}, r"68 rows .* 54 texts .* 60 are asked for, 14 for tests"),
        ({"train": 50, "validation": 5, "test": 2}, "where 55 are asked for"),
        ({"train": 1, "test": 15}, "14 for tests where 15 are"),
    ],
)
def test_a_draw_of_more_than_there_is_says_how_much_there_is(
    family: Family, tmp_path: Path, wanted: dict[str, int], message: str
) -> None:
    rows = [{"text": f"Do thing {index}.", "input": ""} for index in range(68)]
    with pytest.raises(DataError, match=message):
        rows_of(family, tmp_path, rows, kind="instructions", sample=wanted)


def test_a_repeat_does_not_move_the_division(family: Family, tmp_path: Path) -> None:
    texts = [f"Do thing {index}." for index in range(520)]
    texts[300] = texts[5]
    sample = {"train": 128, "validation": 32, "test": 100}
    rows = [{"text": text} for text in texts]
    frame = rows_of(family, tmp_path, rows, kind="instructions", sample=sample)
    larger, smaller = train_test_split(texts, test_size=0.2, random_state=42)
    assert len(set(frame.filter(split="train")["text"]) & set(larger[:128])) >= 127
    assert len(set(frame.filter(split="test")["text"]) & set(smaller[:100])) >= 99
    assert frame["text"].is_unique().all()


def test_blank_columns_that_are_not_there_are_named(family: Family, tmp_path: Path) -> None:
    sample = {"train": 1, "test": 1, "blank": ["input"]}
    with pytest.raises(DataError, match="lacks the column 'input'"):
        rows_of(family, tmp_path, instructions(), kind="instructions", sample=sample)


def instructions() -> list[dict[str, Any]]:
    return [{"text": f"Do thing {index}."} for index in range(20)]


def test_a_draw_does_not_hang_on_other_columns(family: Family, tmp_path: Path) -> None:
    sample = {"train": 4, "validation": 2, "test": 3}
    plain = rows_of(family, tmp_path / "a", instructions(), kind="instructions", sample=sample)
    richer = [{**row, "split": "all", "topic": "x"} for row in instructions()]
    rich = rows_of(family, tmp_path / "b", richer, kind="instructions", sample=sample)
    assert plain["row_uid"].equals(rich["row_uid"])
    assert rich["split"].value_counts().sort("count").rows() == [
        ("validation", 2), ("test", 3), ("train", 4),
    ]  # fmt: skip


# The project's own sets -------------------------------------------------------------------------


def test_the_demo_s_rows_are_what_its_files_say() -> None:
    card = read_card(ROOT / "cards" / "demo.toml")
    for dataset in card.card.datasets:
        file = dataset_file(card, dataset)
        frame = read_rows(file, dataset)
        expected = pandas.read_csv(card.path(dataset.file), dtype=str, keep_default_na=False)
        assert frame["row_uid"].to_list() == [
            uid_by_formula(dataset.name, row["source_id"], row["text"])
            for row in expected.to_dict("records")
        ]
        for column in set(STATEMENT_COLUMNS) - {"row_uid", "dataset", "row"}:
            cells = frame[column].cast(pl.String).fill_null("").to_list()
            assert cells == (list(expected[column]) if column in expected else [""] * len(cells))


# The paper's own sets, where they are at hand ---------------------------------------------------

PAPER_DATA = os.environ.get("PTMECH_PAPER_DATA", "")


@pytest.mark.skipif(not PAPER_DATA, reason="PTMECH_PAPER_DATA names no folder")
@pytest.mark.parametrize("path", sorted(Path(PAPER_DATA).glob("*.csv")), ids=lambda path: path.stem)
def test_published_sets_are_read_whole(path: Path) -> None:
    card = DatasetCard.model_validate(
        {
            "name": path.stem,
            "title": path.stem,
            "kind": "statements",
            "file": path.name,
            "columns": {"text": "statement"},
            "polarity": -1 if path.stem.startswith("neg_") else 1,
        }
    )
    raw = path.read_bytes()
    frame = read_rows(DataFile(path.name, Origin(path.name, ""), raw), card)
    expected = pandas.read_csv(path)  # what the paper's code reads them with
    assert frame["text"].to_list() == expected["statement"].to_list()
    assert frame["label"].to_list() == expected["label"].to_list()
    assert frame["row_uid"].n_unique() == len(expected)


@pytest.mark.skipif(not PAPER_DATA, reason="PTMECH_PAPER_DATA names no folder")
@pytest.mark.parametrize("card", ["llama3", "mistral", "llama2", "gemma2", "qwen", "smollm2"])
def test_the_cards_patterns_fit_the_published_sets(card: str) -> None:
    worded = [d for d in read_card(ROOT / "cards" / f"{card}.toml").card.datasets if d.pattern]
    assert {d.name for d in worded} >= {"sp_en_trans", "animal_class", "element_symb", "inventors"}
    for dataset in worded:
        (path,) = Path(PAPER_DATA).rglob(f"{dataset.name}.csv")
        frame = read_rows(DataFile(path.name, Origin(path.name, ""), path.read_bytes()), dataset)
        for text, subject, about in frame["text", "subject", "object"].iter_rows():
            assert 0 <= text.index(subject) < text.index(about, text.index(subject) + len(subject))
            assert text.endswith((about, f"{about}.", f"{about}'."))


def test_a_family_gives_limited_rows_of_both_labels() -> None:
    cards = [read_card(ROOT / "cards" / f"{name}.toml") for name in ("llama3", "qwen")]
    sets = [d for card in cards for d in card.card.datasets if d.name.endswith("er_than")]
    assert len(sets) == 4
    words = ("Fifty", "Sixty", "Seventy", "Eighty", "Ninety")
    for dataset in sets:
        kind = dataset.name.split("_")[0]
        rows = [{"statement": f"{w} is {kind} than {v}.", "label": 0} for w in words for v in words]
        rows += [{**row, "statement": row["statement"].lower(), "label": 1} for row in rows]
        raw = csv_bytes(rows)
        frame = read_rows(DataFile("x.csv", Origin("x.csv", ""), raw), dataset, 8)
        assert frame["label"].to_list() == [0] * 4 + [1] * 4
