"""Rows: from the bytes of a dataset's file to what the artifact knows of every prompt."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final, get_args

import numpy as np
import polars as pl

from ptmech._schemas import STATEMENT_COLUMNS
from ptmech.alignment import row_uid
from ptmech.errors import DataError, first_line
from ptmech_builder.cards import CardFile, DatasetCard, RowColumn
from ptmech_builder.dataset_files import DataFile, data_file
from ptmech_builder.sampling import draw
from ptmech_builder.tables import read_table

POLARITIES: Final = {"1": 1, "-1": -1, "1.0": 1, "-1.0": -1}
"""How files write affirmed, and negated."""

LABELS: Final = {"1": 1, "0": 0, "true": 1, "false": 0, "1.0": 1, "0.0": 0}
"""How files write truth, in small letters."""

TEXT_NAMES: Final = ("statement", "instruction", "goal", "prompt", "question", "sentence")
"""Other names that files have for the text."""

_NUMBER = "number in the file"


def read_rows(file: DataFile, dataset: DatasetCard, limit: int | None = None) -> pl.DataFrame:
    """Make the rows of the artifact out of a dataset's file.

    Parameters
    ----------
    file
        The file.
    dataset
        What the card says of it: names of its columns, polarity, which rows are drawn.
    limit
        Keep no more rows than that: the first ones of each label, of instructions those of each
        split.

    Returns
    -------
    polars.DataFrame
        With the columns of :data:`ptmech._schemas.STATEMENT_COLUMNS`, in the file's order or in
        that of the draw; columns the file lacks are null. Rows of a file without ``source_id`` go
        by their number in it, counted from 1.

    Raises
    ------
    DataError
        If the file cannot be read, is empty, lacks a column, repeats a row, or holds statements of
        one class only.
    """
    table = read_table(file.raw, file.name)
    table = table.with_columns(
        pl.int_range(1, table.height + 1).cast(pl.String).alias(_NUMBER),
    )
    if dataset.sample is not None:
        table = _blank(table, dataset.sample.blank, file.name)
    rows = _name(table, dataset, file.name)
    rows = rows.with_columns(text=_composed(rows["text"]))
    if dataset.sample is not None:
        rows = draw(rows, dataset.sample, dataset.name)
    if rows.is_empty():
        raise DataError(f"dataset {dataset.name!r} has no rows")
    labelled = ("label",) if dataset.kind == "statements" else ()
    for column in ("source_id", "text", *labelled):
        _require_filled(rows, column, file.name)
    if "label" in rows.columns:
        rows = rows.with_columns(label=_labels(rows, file.name))
    if "polarity" in rows.columns:
        rows = rows.with_columns(polarity=_polarities(rows, file.name))
    if limit is not None:
        rows = _first(rows, limit, of_each="label" if dataset.kind == "statements" else "split")
    if dataset.kind == "statements":
        rows = _related(_dissected(rows, dataset, file.name), dataset.name)
    return _typed(rows, dataset, file.name)


def read_texts(card: CardFile, reference: str) -> tuple[str, ...]:
    """Read the column ``text`` of a file that a card names.

    Raises
    ------
    DataError
        If the file is no table, lacks the column or has empty cells in it.
    CardError, IntegrityError, ArtifactNotFoundError, AccessError, UnreachableError
        If the file cannot be had, as in :func:`ptmech_builder.dataset_files.data_file`.
    """
    file = data_file(card, reference)
    table = read_table(file.raw, file.name)
    _require_column(table, "text", "text", file.name)
    if table.is_empty():
        raise DataError(f"{file.name} has no rows")
    numbers = pl.int_range(1, table.height + 1).cast(pl.String).alias(_NUMBER)
    _require_filled(table.with_columns(numbers), "text", file.name)
    return tuple(table["text"])


def _name(table: pl.DataFrame, dataset: DatasetCard, file: str) -> pl.DataFrame:
    """Choose the columns that are known of a row, and call them by our names."""
    for ours, theirs in dataset.columns.items():
        _require_column(table, theirs, ours, file)
    chosen = {
        ours: theirs
        for ours in get_args(RowColumn)
        if (theirs := dataset.columns.get(ours, ours)) in table.columns
    }
    if dataset.kind == "instructions" and "label" not in dataset.columns:
        chosen.pop("label", None)  # another word for something else
    chosen.setdefault("source_id", _NUMBER)
    for needed in ("text", "label") if dataset.kind == "statements" else ("text",):
        if needed not in chosen:
            _require_column(table, needed, needed, file)
    nested = next((name for name in chosen.values() if table[name].dtype != pl.String), None)
    if nested is not None:
        raise DataError(f"{file}: the cells of column {nested!r} are lists or objects, not text")
    rows = table.select(_NUMBER, **{ours: pl.col(theirs) for ours, theirs in chosen.items()})
    if dataset.polarity is None:
        return rows
    if "polarity" in chosen:
        raise DataError(
            f"{file} has a column for the polarity of every row, and the card says "
            f"polarity = {dataset.polarity} for all; take one of them away"
        )
    return rows.with_columns(polarity=pl.lit(str(dataset.polarity)))


def _require_column(table: pl.DataFrame, theirs: str, ours: str, file: str) -> None:
    if theirs in table.columns:
        return
    known = [name for name in table.columns if name != _NUMBER]
    there = f"it has {known}"
    if theirs != ours:
        close = get_close_matches(theirs, known, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise DataError(
            f"{file} lacks the column {theirs!r}, which the card takes for {ours!r}{hint}; {there}"
        )
    likely = [name for name in TEXT_NAMES if ours == "text" and name in known]
    named = likely[0] if likely else "..."
    raise DataError(
        f"{file} lacks the column {ours!r}; {there}; if it has another name there, "
        f'say so in the card: columns = {{ {ours} = "{named}" }}'
    )


def _blank(table: pl.DataFrame, columns: Iterable[str], file: str) -> pl.DataFrame:
    """Keep the rows in which some columns are empty."""
    for column in columns:
        _require_column(table, column, "blank", file)
        table = table.filter(pl.col(column).fill_null("").str.strip_chars() == "")
    return table


def _composed(texts: pl.Series) -> pl.Series:
    """Bring texts into Unicode normal form C, the one a row's identity is made of."""
    composed = [None if text is None else unicodedata.normalize("NFC", text) for text in texts]
    return pl.Series(texts.name, composed, dtype=pl.String)


def _require_filled(rows: pl.DataFrame, column: str, file: str) -> None:
    empty = rows.filter(pl.col(column).fill_null("").str.strip_chars() == "")
    if empty.height:
        raise DataError(f"{file}: row {empty[_NUMBER][0]} has no {column}")


def _labels(rows: pl.DataFrame, file: str) -> pl.Series:
    words = rows["label"].str.strip_chars().str.to_lowercase()
    strange = rows.filter(words.is_not_null() & ~words.is_in(list(LABELS)))
    if strange.height:
        number, found = strange[_NUMBER][0], strange["label"][0]
        raise DataError(
            f"{file}: row {number} has the label {found!r}; labels are 1 or true, 0 or false"
        )
    return words.replace_strict(LABELS, return_dtype=pl.Int8)


def _polarities(rows: pl.DataFrame, file: str) -> pl.Series:
    words = rows["polarity"].str.strip_chars().replace("", None)
    strange = rows.filter(words.is_not_null() & ~words.is_in(list(POLARITIES)))
    if strange.height:
        number, found = strange[_NUMBER][0], strange["polarity"][0]
        raise DataError(
            f"{file}: row {number} has the polarity {found!r}; the column polarity holds 1 for "
            "affirmed and -1 for negated statements"
        )
    return words.replace_strict(POLARITIES, return_dtype=pl.Int8)


def _first(rows: pl.DataFrame, limit: int, *, of_each: str) -> pl.DataFrame:
    """Keep the first rows of each kind in turn, in their order: sorted files have all kinds."""
    if of_each not in rows.columns:
        return rows.head(limit)
    turns = rows.select(pl.int_range(pl.len()).over(of_each)).to_series().to_numpy()
    return rows[np.sort(np.argsort(turns, kind="stable")[:limit])]


def _dissected(rows: pl.DataFrame, dataset: DatasetCard, file: str) -> pl.DataFrame:
    """Take subject and object out of texts of one wording; null where one is worded otherwise."""
    if dataset.pattern is None:
        return rows
    pattern = re.compile(dataset.pattern)
    found = [pattern.fullmatch(text) for text in rows["text"]]
    for name in pattern.groupindex:
        if name in rows.columns:
            raise DataError(
                f"{file} has a column for the {name} of every row, and the card a pattern that "
                "tells it; take one of them away"
            )
        cells = [None if match is None else match[name] for match in found]
        rows = rows.with_columns(pl.Series(name, cells, dtype=pl.String))
    return rows


def _related(rows: pl.DataFrame, dataset: str) -> pl.DataFrame:
    """Add groups and pairs of statements by their subject, where a file has none."""
    if "subject" not in rows.columns:
        return rows
    subject = pl.col("subject")
    named = subject.fill_null("") != ""
    if "group" not in rows.columns:
        rows = rows.with_columns(group=pl.when(named).then(subject))
    if "pair" not in rows.columns:
        label = pl.col("label")
        opposed = (pl.len() == 2) & (label.min() == 0) & (label.max() == 1)
        alone = pl.format(f"{dataset}/{{}}", subject)
        rows = rows.with_columns(pair=pl.when(named & opposed.over("subject")).then(alone))
    return rows


def _typed(rows: pl.DataFrame, dataset: DatasetCard, file: str) -> pl.DataFrame:
    """Give the rows their identities and every column its type."""
    uids = [
        row_uid(dataset.name, source_id, text)
        for source_id, text in rows["source_id", "text"].iter_rows()
    ]
    rows = rows.with_columns(
        pl.Series("row_uid", uids, dtype=pl.UInt64),
        pl.lit(dataset.name).alias("dataset"),
        pl.int_range(rows.height, dtype=pl.Int32).alias("row"),
    )
    absent = [pl.lit(None).alias(name) for name in STATEMENT_COLUMNS if name not in rows.columns]
    try:
        typed = rows.with_columns(absent).select(
            pl.col(name).cast(dtype) for name, dtype in STATEMENT_COLUMNS.items()
        )
    except pl.exceptions.InvalidOperationError as error:
        raise DataError(f"{file}: a column holds no such value: {first_line(error)}") from error
    doubled = typed.filter(typed["row_uid"].is_duplicated())
    if doubled.height:
        raise DataError(
            f"dataset {dataset.name!r} repeats the row {doubled['source_id'][0]!r}; "
            "rows need distinct source_id and text"
        )
    if dataset.kind == "statements" and typed["label"].n_unique() < 2:
        kind = "true" if typed["label"][0] == 1 else "false"
        raise DataError(
            f"dataset {dataset.name!r} needs true and false statements; "
            f"all {typed.height} are {kind}"
        )
    return typed
