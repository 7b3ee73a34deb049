"""Rows and prompts: identities by the written-out formula, tokens as the tokenizer has them."""

from __future__ import annotations

import hashlib
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tiny import Family, byte_tokenizer, csv_bytes, tiny_family, write_card, write_dataset
from tokenizers import processors

from ptmech.alignment import row_uid
from ptmech.errors import CardError, DataError, IntegrityError
from ptmech.model_sources import FolderModel
from ptmech_builder.cards import CardFile, DatasetCard, StageCard, read_card
from ptmech_builder.prompts import COLUMNS, Prompts, make_prompts, read_rows, tokens_table

BEGINNING = 0
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
    return read_rows(card, dataset, limit)


def card_with(
    family: Family, folder: Path, rows: Any, *, kind: str = "statements", **entries: Any
) -> tuple[CardFile, DatasetCard]:
    recipe = family.recipe(folder)
    entry = {"name": "things", "title": "Things", "kind": kind, "positions": [-1]}
    recipe["datasets"].append({**entry, **write_dataset(folder, "things", rows), **entries})
    card = read_card(write_card(folder, recipe))
    return card, card.card.datasets[-1]


def stage_card(**entries: Any) -> StageCard:
    return StageCard(name="base", title="Base", model=FolderModel(path=Path("unused")), **entries)


def dataset_card(kind: str, positions: tuple[int, ...] = (-1,)) -> DatasetCard:
    return DatasetCard.model_validate(
        {
            "name": "things",
            "title": "Things",
            "kind": kind,
            "file": "things.csv",
            "sha256": "0" * 64,
            "positions": positions,
        }
    )


def prompts_of(texts: list[str], *, kind: str, tokenizer: Any, **stage: Any) -> Prompts:
    frame = pl.DataFrame(
        {
            "row_uid": pl.Series(range(len(texts)), dtype=pl.UInt64),
            "source_id": [f"row {index}" for index in range(len(texts))],
            "text": texts,
        }
    )
    return make_prompts(frame, dataset_card(kind), stage_card(**stage), tokenizer)


def test_rows_carry_identity_and_order(family: Family, tmp_path: Path) -> None:
    frame = rows_of(family, tmp_path, ROWS)
    assert frame.schema == pl.Schema(COLUMNS)
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


def test_a_changed_file_is_refused(family: Family, tmp_path: Path) -> None:
    card, dataset = card_with(family, tmp_path, ROWS)
    (tmp_path / "things.csv").write_bytes(csv_bytes(ROWS) + b"\n")
    with pytest.raises(IntegrityError, match=f"the card pins {dataset.sha256}"):
        read_rows(card, dataset)


def test_a_file_that_is_not_there_is_refused(family: Family, tmp_path: Path) -> None:
    card, dataset = card_with(family, tmp_path, ROWS)
    (tmp_path / "things.csv").unlink()
    with pytest.raises(CardError, match=r"'things\.csv', which does not exist"):
        read_rows(card, dataset)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (b"", "things"),
        (b"source_id,text,label\n", "has no rows"),
        (b"source_id,label\na,1\nb,0\n", "lacks the column 'text'"),
        (b"source_id,text\na,x\nb,y\n", "lacks the column 'label'"),
        (b"text,label\nx,1\ny,0\n", "lacks the column 'source_id'"),
        (b"source_id,text,label\na,x,1\nb,y,1\n", r"needs labels 0 and 1.* \[1\]"),
        (b"source_id,text,label\na,x,1\nb,y,2\nc,z,0\n", "needs labels 0 and 1"),
        (b"source_id,text,label\na,x,1\nb,y,\nc,z,0\n", "needs labels 0 and 1"),
        (b"source_id,text,label\na,x,1\nb,y,true\nc,z,0\n", "column.*label"),
        (b"source_id,text,label\na,x,1\nb,y,0\na,x,1\n", "repeats the row 'a'"),
        (b"source_id,text,label\na,x,1\nb,,0\n", "things.*text"),
        (b"source_id,text,label\na,x,1\n,y,0\n", "things.*source_id"),
        (b"source_id,text,label\na,x,1\nb,y,0,7\n", "things"),
        (b"source_id,text,label\na,x,1\nb,y\xff,0\n", "things"),
        (b"source_id,text,label\na,x,1\nb,y\0,0\n", "NUL"),
    ],
    ids=[
        "empty file", "no rows", "no text", "no label", "no source_id", "one class", "label 2",
        "label missing", "label true", "doubled", "text missing", "id missing", "ragged",
        "not UTF-8", "NUL",
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


def test_statements_go_in_as_they_are() -> None:
    tokenizer = byte_tokenizer()
    texts = ["Snow is white.", "Café", " leading space"]
    prompts = prompts_of(texts, kind="statements", tokenizer=tokenizer)
    assert [list(ids) for ids in prompts.token_ids] == [
        tokenizer(text)["input_ids"] for text in texts
    ]
    assert all(ids[0] == BEGINNING and BEGINNING not in ids[1:] for ids in prompts.token_ids)
    assert list(prompts.rendered_sha256) == [
        hashlib.sha256(text.encode()).hexdigest() for text in texts
    ]


def test_a_tokenizer_without_beginning_token_gets_none() -> None:
    tokenizer = byte_tokenizer(adds_beginning=False)
    prompts = prompts_of(["Snow"], kind="statements", tokenizer=tokenizer)
    assert tokenizer.decode(list(prompts.token_ids[0])) == "Snow"


@pytest.mark.parametrize("adds_beginning", [True, False])
def test_chat_prompts_are_what_the_tokenizer_makes_of_a_conversation(adds_beginning: bool) -> None:
    tokenizer = byte_tokenizer(adds_beginning=adds_beginning)
    texts = ["Name three trees.", "Où est-il ?", "{instruction} {{ bos_token }}"]
    prompts = prompts_of(texts, kind="instructions", tokenizer=tokenizer)
    for text, ids in zip(texts, prompts.token_ids, strict=True):
        expected = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        assert list(ids) == expected
        assert list(ids).count(BEGINNING) == 1
        assert tokenizer.convert_ids_to_tokens(ids[-1]) == "<assistant>"


def test_a_template_of_text_takes_the_default_special_tokens() -> None:
    tokenizer = byte_tokenizer()
    template = "User: {instruction}\nAssistant:"
    texts = ["Name a tree.", "Say {instruction}, {0} and %s."]
    prompts = prompts_of(texts, kind="instructions", tokenizer=tokenizer, template=template)
    for text, ids in zip(texts, prompts.token_ids, strict=True):
        assert list(ids) == tokenizer(f"User: {text}\nAssistant:")["input_ids"]


@pytest.mark.parametrize("written", ["<s>", "<s><s>"])
def test_a_beginning_token_is_never_doubled(written: str) -> None:
    tokenizer = byte_tokenizer()
    # A flag that says no while the post-processor adds the token all the same.
    tokenizer.add_bos_token = False  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BEGINNING)]
    )
    template = written + "User: {instruction}\nAssistant:"
    prompts = prompts_of(["Hi"], kind="instructions", tokenizer=tokenizer, template=template)
    [ids] = prompts.token_ids
    assert list(ids).count(BEGINNING) == 1
    assert tokenizer.decode(list(ids), skip_special_tokens=True) == "User: Hi\nAssistant:"


def test_a_stage_without_chat_template_asks_for_one() -> None:
    tokenizer = byte_tokenizer(chat_template=None)
    with pytest.raises(DataError, match=r"'base' has no chat template; .*\{instruction\}"):
        prompts_of(["Hi"], kind="instructions", tokenizer=tokenizer)
    assert prompts_of(["Hi"], kind="statements", tokenizer=tokenizer).tokens == 3


def test_positions_count_back_from_each_row_s_own_end() -> None:
    texts = ["Hi", "Hello there", "Ho"]
    tokenizer = byte_tokenizer()
    frame = pl.DataFrame(
        {"row_uid": pl.Series([5, 6, 7], dtype=pl.UInt64), "source_id": list("abc"), "text": texts}
    )
    card = dataset_card("statements", (-3, -1))
    prompts = make_prompts(frame, card, stage_card(), tokenizer)
    assert prompts.lengths.tolist() == [3, 12, 3]
    assert prompts.indices.tolist() == [[0, 2], [9, 11], [0, 2]]
    assert prompts.tokens == 18
    with pytest.raises(
        DataError, match="row 'a' of 'things' has 3 tokens, too few for position -4"
    ):
        make_prompts(frame, dataset_card("statements", (-4,)), stage_card(), tokenizer)

    taken = prompts.take(np.array([2, 1]))
    assert taken.uids.tolist() == [7, 6]
    assert taken.token_ids == [prompts.token_ids[2], prompts.token_ids[1]]
    assert taken.rendered_sha256 == [prompts.rendered_sha256[2], prompts.rendered_sha256[1]]


def test_the_digest_tells_apart_whatever_differs() -> None:
    def prompts(
        uids: list[int] = [1, 2],  # noqa: B006 - read only
        ids: list[list[int]] = [[1, 2], [3]],  # noqa: B006
        positions: tuple[int, ...] = (-1,),
    ) -> str:
        return Prompts("d", np.array(uids, np.uint64), ids, positions, ["", ""]).digest

    variants = [
        prompts(),
        prompts(uids=[2, 1]),
        prompts(ids=[[1], [2, 3]]),
        prompts(ids=[[1, 2, 3], []]),
        prompts(positions=(-2, -1)),
        prompts(positions=(-1, -2)),
    ]
    assert len(set(variants)) == len(variants)
    assert prompts() == variants[0]


def test_the_tokens_table_says_what_the_model_saw() -> None:
    tokenizer = byte_tokenizer()
    prompts = prompts_of(["Hi", "Café"], kind="statements", tokenizer=tokenizer)
    table = tokens_table([prompts, prompts], tokenizer)
    assert table.height == 4
    assert table["row_uid"].dtype == pl.UInt64
    first = table.row(0, named=True)
    assert first["token_ids"] == tokenizer("Hi")["input_ids"]
    assert first["tokens"] == ["<s>", "H", "i"]
    assert first["positions"] == [2]
    assert first["rendered_sha256"] == hashlib.sha256(b"Hi").hexdigest()
