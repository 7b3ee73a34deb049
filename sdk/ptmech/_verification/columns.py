"""What the columns of a table have to be, and how a table falls short of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import polars as pl

from ptmech._schemas import NEURON_COLUMNS, STATEMENT_COLUMNS, TOKEN_COLUMNS
from ptmech._verification.inspection import Inspection


@dataclass(frozen=True)
class Rules:
    """What a table has to be.

    Attributes
    ----------
    columns
        Name and type of each column. There may be more.
    nullable
        Columns in which a null means something.
    undefined
        Columns of floats in which NaN means something: a share of nothing.
    exact
        Whether types count to the last bit; readers of score tables widen them.
    """

    columns: Mapping[str, Any]
    nullable: frozenset[str] = frozenset()
    undefined: frozenset[str] = frozenset()
    exact: bool = True


STATEMENT_RULES: Final = Rules(
    STATEMENT_COLUMNS,
    nullable=frozenset(STATEMENT_COLUMNS) - {"row_uid", "dataset", "row", "source_id", "text"},
)
TOKEN_RULES: Final = Rules(TOKEN_COLUMNS)
NEURON_RULES: Final = Rules(NEURON_COLUMNS)


def fits(inspection: Inspection, path: str, table: pl.DataFrame, rules: Rules) -> bool:
    """Check the columns of a table; whether all are there and of their types.

    Nulls and values that are not finite are faults too, but leave the table readable.
    """
    sound = True
    for name, wanted in rules.columns.items():
        if not inspection.require(
            path, holds=name in table.columns, problem=f"lacks the column {name!r}"
        ):
            sound = False
            continue
        found = table.schema[name]
        alike = found == wanted if rules.exact else _kind(found) == _kind(wanted)
        sound &= inspection.require(
            path,
            holds=alike,
            problem=f"column {name!r} is of type {found} where it should be {_named(wanted)}",
        )
    for name in table.columns:
        _check_values(inspection, path, table[name], rules)
    return sound


def _check_values(inspection: Inspection, path: str, column: pl.Series, rules: Rules) -> None:
    """Find nulls where each row has to say something, and floats that are not finite."""
    known = column.name in rules.columns
    nulls = column.null_count()
    if known and nulls and column.name not in rules.nullable:
        inspection.add(path, f"column {column.name!r} lacks {nulls} of {len(column)} values")
    if column.dtype.is_float():
        present = column.drop_nulls()
        wrong = ~present.is_finite()
        if column.name in rules.undefined:
            wrong &= ~present.is_nan()
        if count := int(wrong.sum()):
            inspection.add(path, f"column {column.name!r} holds {count} values that are not finite")


def _kind(dtype: Any) -> str:
    """Tell what sort of values a column has, whatever their width."""
    if isinstance(dtype, pl.List):
        return f"list of {_kind(dtype.inner)}"
    of = dtype if isinstance(dtype, pl.DataType) else dtype()
    return "whole numbers" if of.is_integer() else "floats" if of.is_float() else str(of)


def _named(dtype: Any) -> str:
    return str(dtype if isinstance(dtype, pl.DataType) else dtype())
