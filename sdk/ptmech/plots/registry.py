"""Which function draws which result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
"""Categorical colours after Okabe and Ito, safe for all common colour-vision deficiencies."""


class Drawing(NamedTuple):
    """How results of one class are drawn.

    Attributes
    ----------
    draw
        A function of the result and the ``altair`` module.
    table
        The attribute that holds the rows it draws; without rows, nothing is drawn.
    """

    draw: Callable[[Any, Any], Any]
    table: str


CHARTS: dict[str, Drawing] = {}
"""Drawings by the name of the result's class."""


def chart(
    result: str, *, table: str = "frame"
) -> Callable[[Callable[[Any, Any], Any]], Callable[[Any, Any], Any]]:
    """Register the function that draws results of one class.

    Parameters
    ----------
    result
        Name of the result's class.
    table
        As in :class:`Drawing`.

    Returns
    -------
    callable
        A decorator for a function of the result and the ``altair`` module.
    """

    def register(draw: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        CHARTS[result] = Drawing(draw, table)
        return draw

    return register
