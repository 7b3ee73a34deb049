"""Rows and prompts: from a dataset's file to the token ids a stage's model is run on.

Every prompt is rendered once, here, and its token ids are stored in the artifact. Nothing later in
the builder turns text into tokens again.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from ptmech.alignment import row_uid
from ptmech.errors import DataError, IntegrityError
from ptmech_builder.cards import CardFile, DatasetCard, StageCard

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COLUMNS: dict[str, Any] = {
    "row_uid": pl.UInt64,
    "dataset": pl.String,
    "row": pl.Int32,
    "source_id": pl.String,
    "text": pl.String,
    "label": pl.Int8,
    "polarity": pl.Int8,
    "pair": pl.String,
    "group": pl.String,
    "split": pl.String,
    "subject": pl.String,
    "object": pl.String,
    "topic": pl.String,
}
"""Columns of ``tables/statements.parquet``."""


def read_rows(card: CardFile, dataset: DatasetCard, limit: int | None = None) -> pl.DataFrame:
    """Read a dataset's file into the rows of the artifact, in the file's order.

    Parameters
    ----------
    card, dataset
        The card, and one of its datasets.
    limit
        Keep only the first rows.

    Returns
    -------
    polars.DataFrame
        With the columns of :data:`COLUMNS`; columns the file lacks are null.

    Raises
    ------
    IntegrityError
        If the file is not the one the card pins by sha256.
    DataError
        If it is empty, lacks a column, repeats a row, or holds statements of one class only.
    """
    path = card.path(dataset.file)
    raw = path.read_bytes()
    found = hashlib.sha256(raw).hexdigest()
    if found != dataset.sha256:
        raise IntegrityError(
            f"{dataset.file} has sha256 {found}, the card pins {dataset.sha256}; "
            "restore the file or write the new digest into the card"
        )
    labelled = ("label",) if dataset.kind == "statements" else ()
    frame = _read_table(raw, dataset.file, ("source_id", "text", *labelled))
    if limit is not None:
        frame = frame.head(limit)
    if frame.is_empty():
        raise DataError(f"dataset {dataset.name!r} has no rows")
    for column in ("source_id", "text"):
        _require_filled(frame[column], dataset.file)
    texts = [unicodedata.normalize("NFC", text) for text in frame["text"]]
    uids = [
        row_uid(dataset.name, source_id, text)
        for source_id, text in zip(frame["source_id"], texts, strict=True)
    ]
    frame = frame.with_columns(
        pl.Series("row_uid", uids, dtype=pl.UInt64),
        pl.Series("text", texts),
        pl.lit(dataset.name).alias("dataset"),
        pl.int_range(frame.height, dtype=pl.Int32).alias("row"),
    )
    absent = [pl.lit(None).alias(name) for name in COLUMNS if name not in frame.columns]
    try:
        rows = frame.with_columns(absent).select(
            pl.col(name).cast(dtype) for name, dtype in COLUMNS.items()
        )
    except pl.exceptions.InvalidOperationError as error:
        reason = _first_line(error)
        raise DataError(f"{dataset.file}: a column holds no such value: {reason}") from error
    _require_usable(rows, dataset)
    return rows


def read_texts(card: CardFile, file: str) -> tuple[str, ...]:
    """Read the column ``text`` of a file that a card names.

    Raises
    ------
    DataError
        If the file is no CSV table, lacks the column or has empty cells in it.
    """
    texts = _read_table(card.path(file).read_bytes(), file, ("text",))["text"]
    if texts.is_empty():
        raise DataError(f"{file} has no rows")
    _require_filled(texts, file)
    return tuple(texts)


def _read_table(raw: bytes, file: str, required: Sequence[str]) -> pl.DataFrame:
    """Read a CSV table of text columns."""
    try:
        frame = pl.read_csv(raw, infer_schema=False)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{file} is not a CSV table: {_first_line(error)}") from error
    missing = [column for column in required if column not in frame.columns]
    if missing:
        raise DataError(f"{file} lacks the column {missing[0]!r}; it has {frame.columns}")
    return frame


def _require_filled(column: pl.Series, file: str) -> None:
    if column.null_count():
        row = column.is_null().arg_true()[0] + 1
        raise DataError(f"{file}: row {row} has no {column.name}")


def _require_usable(rows: pl.DataFrame, dataset: DatasetCard) -> None:
    doubled = rows.filter(rows["row_uid"].is_duplicated())
    if doubled.height:
        raise DataError(
            f"dataset {dataset.name!r} repeats the row {doubled['source_id'][0]!r}; "
            "rows need distinct source_id and text"
        )
    if dataset.kind == "statements" and set(rows["label"]) != {0, 1}:
        raise DataError(
            f"dataset {dataset.name!r} needs labels 0 and 1, both present; "
            f"it has {sorted(set(rows['label']), key=str)}"
        )


@dataclass(frozen=True)
class Prompts:
    """The rows of one dataset as one stage's tokenizer sees them.

    Attributes
    ----------
    uids
        [rows] uint64.
    token_ids
        One list of ids a row, special tokens included, not padded.
    positions
        Stored positions, counted back from the end: -1 is the last token.
    rendered_sha256
        Digest of each rendered text.
    """

    dataset: str
    uids: np.ndarray
    token_ids: Sequence[Sequence[int]]
    positions: tuple[int, ...]
    rendered_sha256: Sequence[str]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each row [rows]."""
        return np.array([len(ids) for ids in self.token_ids])

    @cached_property
    def indices(self) -> np.ndarray:
        """Absolute index of each stored position [rows, positions]: never negative."""
        return self.lengths[:, None] + np.array(self.positions)[None, :]

    @property
    def tokens(self) -> int:
        """Number of tokens in all rows."""
        return int(self.lengths.sum())

    def take(self, rows: np.ndarray) -> Prompts:
        """Return some of the rows, in the given order."""
        return Prompts(
            self.dataset,
            self.uids[rows],
            [self.token_ids[int(row)] for row in rows],
            self.positions,
            [self.rendered_sha256[int(row)] for row in rows],
        )

    @cached_property
    def digest(self) -> str:
        """One sha256 over row ids, token ids and positions."""
        hashed = hashlib.sha256(repr(self.positions).encode())
        hashed.update(self.uids.astype("<u8").tobytes())
        for ids in self.token_ids:
            hashed.update(np.array([len(ids), *ids], dtype="<i8").tobytes())
        return hashed.hexdigest()


def make_prompts(
    rows: pl.DataFrame,
    dataset: DatasetCard,
    stage: StageCard,
    tokenizer: PreTrainedTokenizerBase,
) -> Prompts:
    """Render and tokenize the rows of a dataset for a stage.

    Statements go in as they are, with the tokenizer's default special tokens; instructions go
    through the stage's template. A beginning-of-text token is never doubled.

    Raises
    ------
    DataError
        If a prompt has fewer tokens than the positions asked for, or the tokenizer has no chat
        template where one is needed.
    """
    rendered, special = _render(rows, dataset, stage, tokenizer)
    encoded: Any = tokenizer(rendered, add_special_tokens=special)["input_ids"]
    beginning: Any = tokenizer.bos_token_id
    token_ids = [_single_beginning(list(ids), beginning) for ids in encoded]
    needed = -min(dataset.positions)
    short = next((row for row, ids in enumerate(token_ids) if len(ids) < needed), None)
    if short is not None:
        raise DataError(
            f"row {rows['source_id'][short]!r} of {dataset.name!r} has {len(token_ids[short])} "
            f"tokens, too few for position {-needed}"
        )
    return Prompts(
        dataset=dataset.name,
        uids=rows["row_uid"].to_numpy(),
        token_ids=token_ids,
        positions=tuple(dataset.positions),
        rendered_sha256=[hashlib.sha256(text.encode()).hexdigest() for text in rendered],
    )


def _render(
    rows: pl.DataFrame,
    dataset: DatasetCard,
    stage: StageCard,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[list[str], bool]:
    """Return the prompts as text, and whether the tokenizer is to add its special tokens."""
    texts = rows["text"].to_list()
    if dataset.kind == "statements":
        return texts, True
    if stage.template != "chat":
        return [stage.template.replace("{instruction}", text) for text in texts], True
    if not tokenizer.chat_template:
        raise DataError(
            f"stage {stage.name!r} has no chat template; give it a template with {{instruction}}"
        )
    conversations = [[{"role": "user", "content": text}] for text in texts]
    rendered: Any = tokenizer.apply_chat_template(
        conversations, tokenize=False, add_generation_prompt=True
    )
    # A chat template writes the special tokens itself.
    return list(rendered), False


def _single_beginning(ids: list[int], beginning: int | None) -> list[int]:
    """Keep one beginning-of-text token. Judged by the ids: flags of tokenizers mislead."""
    while beginning is not None and ids[:2] == [beginning, beginning]:
        ids = ids[1:]
    return ids


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def tokens_table(prompts: Sequence[Prompts], tokenizer: PreTrainedTokenizerBase) -> pl.DataFrame:
    """Return the table of what the tokenizer made of every row; see ``Artifact.tokens``."""
    columns: dict[str, list[Any]] = {name: [] for name in TOKEN_COLUMNS}
    for part in prompts:
        for row, ids in enumerate(part.token_ids):
            columns["row_uid"].append(int(part.uids[row]))
            columns["dataset"].append(part.dataset)
            columns["token_ids"].append(list(ids))
            columns["tokens"].append(tokenizer.convert_ids_to_tokens(list(ids)))
            columns["positions"].append(part.indices[row].tolist())
            columns["rendered_sha256"].append(part.rendered_sha256[row])
    return pl.DataFrame(columns, schema=TOKEN_COLUMNS)


TOKEN_COLUMNS: dict[str, Any] = {
    "row_uid": pl.UInt64,
    "dataset": pl.String,
    "token_ids": pl.List(pl.Int32),
    "tokens": pl.List(pl.String),
    "positions": pl.List(pl.Int32),
    "rendered_sha256": pl.String,
}
