"""What the tables of an artifact look like: their columns, types, and what may stand in them.

A table may come from a stranger, and a builder may have a mistake. So every table goes through
:func:`fitted` before anything is computed from it: what an analysis gets has the columns it asks
for, in their types, without holes where there may be none, and with probabilities that are some.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl

from ptmech._text import shortened, visible
from ptmech.alignment import named_uid, row_uids
from ptmech.errors import AlignmentError, FormatError, first_line

STATEMENTS: Final = "tables/statements.parquet"

STATEMENT_COLUMNS: Final[Mapping[str, Any]] = {
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
TOKEN_COLUMNS: Final[Mapping[str, Any]] = {
    "row_uid": pl.UInt64,
    "dataset": pl.String,
    "token_ids": pl.List(pl.Int32),
    "tokens": pl.List(pl.String),
    "positions": pl.List(pl.Int32),
    "rendered_sha256": pl.String,
}
"""Columns of ``tables/tokens/<stage>.parquet``."""
NEURON_COLUMNS: Final[Mapping[str, Any]] = {
    "neuron": pl.Int32,
    "norm": pl.Float64,
    "logit_variance_raw": pl.Float64,
    "logit_variance_folded": pl.Float64,
    "logit_variance_folded_centered": pl.Float64,
    "null_space_fraction": pl.Float64,
}
"""Columns of ``weights/<stage>/neurons.parquet``."""

ROUNDING: Final = 1e-6
"""How far beyond its bounds a measured number may lie."""


@dataclass(frozen=True)
class Values:
    """What may stand in a column; in one of lists, within them.

    Attributes
    ----------
    lowest, highest
        Bounds of numbers.
    among
        The texts or numbers there are; any if None.
    missing
        Whether a value may be missing.
    undefined
        Whether a float may be no number: a mean of nothing. Infinite it may never be.
    """

    lowest: float = -math.inf
    highest: float = math.inf
    among: Collection[Any] | None = None
    missing: bool = False
    undefined: bool = False


GIVEN: Final = Values()
"""A value in every row."""
OPTIONAL: Final = Values(missing=True)
UNDEFINED: Final = Values(undefined=True)
AT_LEAST_NONE: Final = Values(0)
"""A count or a length."""
SHARE: Final = Values(0, 1)
PAST: Final = Values(highest=-1)
"""A position, counted back from the end of a prompt."""

STATEMENT_VALUES: Final[Mapping[str, Values]] = {
    **dict.fromkeys(STATEMENT_COLUMNS, OPTIONAL),
    **dict.fromkeys(("row_uid", "dataset", "source_id", "text"), GIVEN),
    "row": AT_LEAST_NONE,
    "label": Values(among=(0, 1), missing=True),
    "polarity": Values(among=(1, -1), missing=True),
}
NEURON_VALUES: Final[Mapping[str, Values]] = {
    **dict.fromkeys(NEURON_COLUMNS, AT_LEAST_NONE),
    "null_space_fraction": SHARE,
}


def fitted(
    frame: pl.DataFrame, where: str, columns: Mapping[str, Any], values: Mapping[str, Values]
) -> pl.DataFrame:
    """Return the columns of a table that are asked for, in their types and order.

    Parameters
    ----------
    frame
        As it was read.
    where
        What the caller calls it; error messages start with it.
    columns
        Name and type of each column. What else the table has is left out.
    values
        What may stand in them; something finite in every row where a column is not named.

    Raises
    ------
    FormatError
        A column is not there or of another type, or holds what it may not.

    Examples
    --------
    >>> rates = pl.DataFrame({"rate": [0.2, 7.0]})
    >>> fitted(rates, "scores.parquet", {"rate": pl.Float64}, {"rate": SHARE})
    Traceback (most recent call last):
        ...
    ptmech.errors.FormatError: scores.parquet: column 'rate' holds 7.0, not a value from 0 to 1
    """
    for name in columns:
        if name not in frame.columns:
            raise FormatError(f"{where} lacks the column {name!r}; build it again")
    found = [_typed(frame[name], kind, where) for name, kind in columns.items()]
    for column in found:
        if problem := problem_of(column, values.get(column.name, GIVEN)):
            raise FormatError(f"{where}: column {column.name!r} {problem}")
    return pl.DataFrame(found)


def statements_of(frame: pl.DataFrame, where: str) -> pl.DataFrame:
    """Return the table of statements and instructions, if its rows are what their ids say.

    Raises
    ------
    FormatError
        The table does not fit its columns.
    AlignmentError
        A row's id is not that of its dataset, source and text: one of them was edited.
    """
    table = fitted(frame, where, STATEMENT_COLUMNS, STATEMENT_VALUES)
    own = row_uids(table["dataset"], table["source_id"], table["text"])
    edited = np.flatnonzero((table["row_uid"].to_numpy() != own) | (own == 0))
    if edited.size:
        number = int(edited[0])
        uid, source_id, text = table.select("row_uid", "source_id", "text").row(number)
        raise AlignmentError(
            f"{where}: {edited.size} of {table.height} rows are not those of their row_uid, first "
            f"row {number}: {named_uid(uid)} ({shortened(source_id)!r}, {shortened(text)!r}); "
            "build it again"
        )
    return table


def tokens_of(frame: pl.DataFrame, where: str) -> pl.DataFrame:
    """Return the table of a stage's tokens, if its positions are places of tokens.

    Raises
    ------
    FormatError
        The table does not fit its columns, or a position lies outside its row's tokens.
    """
    table = fitted(frame, where, TOKEN_COLUMNS, {})
    lengths = table["token_ids"].list.len().cast(pl.Int64)
    outside = (table["positions"].list.min() < 0) | (table["positions"].list.max() >= lengths)
    if count := int(outside.sum()):
        raise FormatError(f"{where}: {count} rows have positions outside their tokens")
    return table


def neurons_of(frame: pl.DataFrame, where: str, width: int | None) -> pl.DataFrame:
    """Return the statistics of a stage's neurons, in the order of their numbers.

    Parameters
    ----------
    frame, where
        As for :func:`fitted`.
    width
        How many neurons there are; None if that is not known.

    Raises
    ------
    FormatError
        The table does not fit its columns, or its neurons are not the model's, each once.
    """
    table = fitted(frame, where, NEURON_COLUMNS, NEURON_VALUES).sort("neuron")
    expected = table.height if width is None else width
    if table["neuron"].to_list() != list(range(expected)):
        raise FormatError(
            f"{where}: its {table.height} neurons are not numbers 0 to {expected - 1}, each once"
        )
    return table


def _typed(column: pl.Series, kind: Any, where: str) -> pl.Series:
    if isinstance(column.dtype, pl.List) != isinstance(kind, pl.List):
        raise FormatError(f"{where}: column {column.name!r} holds {column.dtype}, not {kind}")
    try:
        return column.cast(kind)
    except pl.exceptions.PolarsError as error:
        reason = shortened(visible(first_line(error)), 200)
        raise FormatError(f"{where}: column {column.name!r} holds no {kind}: {reason}") from error


def problem_of(column: pl.Series, allowed: Values) -> str | None:
    """Say what is wrong with the values of a column, or nothing.

    The one place that judges them: for whoever reads a table, and for ``ptmech verify``.
    """
    within = column
    lacking = column.null_count()
    if isinstance(column.dtype, pl.List):
        within = column.explode(empty_as_null=False)
        lacking += within.null_count()
    if lacking and not allowed.missing:
        return f"lacks {lacking} of its {within.len()} values"
    present = within.drop_nulls()
    if present.dtype.is_float():
        wrong = present.is_infinite() if allowed.undefined else ~present.is_finite()
        if count := int(wrong.sum()):
            return f"holds {count} values that are not finite"
        present = present.drop_nans()
    if allowed.among is not None:
        strangers = present.filter(~present.is_in(list(allowed.among)))
        known = shortened(", ".join(map(repr, sorted(allowed.among))), 200)
        return f"holds {_shown(strangers)}, not one of {known}" if len(strangers) else None
    if present.dtype.is_numeric():
        low, high = allowed.lowest - ROUNDING, allowed.highest + ROUNDING
        strangers = present.filter((present < low) | (present > high))
        return f"holds {_shown(strangers)}, {_bounds(allowed)}" if len(strangers) else None
    return None


def _shown(strangers: pl.Series) -> str:
    return shortened(repr(strangers[0]))


def _bounds(allowed: Values) -> str:
    low, high = allowed.lowest, allowed.highest
    if math.isinf(high):
        return f"less than {low}"
    return f"more than {high}" if math.isinf(low) else f"not a value from {low} to {high}"
