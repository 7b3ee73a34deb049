"""Which function draws which result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Drawing = Callable[[Any, Any], Any]

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
"""Categorical colours after Okabe and Ito, safe for all common colour-vision deficiencies."""

CHARTS: dict[str, Drawing] = {}
"""Drawing functions by the name of the result's class."""


def chart(result: str) -> Callable[[Drawing], Drawing]:
    """Register the function that draws results of one class.

    Parameters
    ----------
    result
        Name of the result's class.

    Returns
    -------
    callable
        A decorator for a function of the result and the ``altair`` module.
    """

    def register(drawing: Drawing) -> Drawing:
        CHARTS[result] = drawing
        return drawing

    return register
