"""What the columns of a table have to be, and how a table falls short of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import polars as pl

from ptmech._schemas import (
    GIVEN,
    NEURON_COLUMNS,
    NEURON_VALUES,
    OPTIONAL,
    STATEMENT_COLUMNS,
    STATEMENT_VALUES,
    TOKEN_COLUMNS,
    Values,
    problem_of,
)
from ptmech._verification.inspection import Inspection


@dataclass(frozen=True)
class Rules:
    """What a table has to be.

    Attributes
    ----------
    columns
        Name and type of each column. There may be more.
    values
        What may stand in them, as for :func:`ptmech._schemas.fitted`: the very rules by which
        analyses read the table.
    exact
        Whether types count to the last bit; readers of score tables widen them.
    """

    columns: Mapping[str, Any]
    values: Mapping[str, Values] = field(default_factory=dict[str, Values])
    exact: bool = True


STATEMENT_RULES: Final = Rules(STATEMENT_COLUMNS, STATEMENT_VALUES)
TOKEN_RULES: Final = Rules(TOKEN_COLUMNS)
NEURON_RULES: Final = Rules(NEURON_COLUMNS, NEURON_VALUES)


def fits(inspection: Inspection, path: str, table: pl.DataFrame, rules: Rules) -> bool:
    """Check the columns of a table; whether all are there and of their types.

    Values that may not be there are faults too, but leave the table readable.
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
        problem = f"column {name!r} is of type {found} where it should be {_named(wanted)}"
        if not inspection.require(path, holds=alike, problem=problem):
            sound = False
        elif problem := problem_of(table[name], rules.values.get(name, GIVEN)):
            inspection.add(path, f"column {name!r} {problem}")
    for column in table.drop(rules.columns, strict=False).select(pl.selectors.float()):
        if problem := problem_of(column, OPTIONAL):
            inspection.add(path, f"column {column.name!r} {problem}")
    return sound


def _kind(dtype: Any) -> str:
    """Tell what sort of values a column has, whatever their width."""
    if isinstance(dtype, pl.List):
        return f"list of {_kind(dtype.inner)}"
    of = dtype if isinstance(dtype, pl.DataType) else dtype()
    return "whole numbers" if of.is_integer() else "floats" if of.is_float() else str(of)


def _named(dtype: Any) -> str:
    return str(dtype if isinstance(dtype, pl.DataType) else dtype())
