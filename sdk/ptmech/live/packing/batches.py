"""Rows of similar length in batches, none larger than a budget of tokens."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


def batches(lengths: NDArray[np.integer], budget: int) -> Iterator[NDArray[np.intp]]:
    """Split rows into batches of similar length.

    Parameters
    ----------
    lengths
        Tokens of each row [rows].
    budget
        Padded tokens a batch may have. A single row longer than that is a batch of its own.

    Yields
    ------
    numpy.ndarray
        Row numbers; together every row exactly once.
    """
    order = np.argsort(lengths, kind="stable")
    start = 0
    for stop in range(1, order.size + 1):
        full = stop < order.size and lengths[order[stop]] * (stop + 1 - start) > budget
        if full or stop == order.size:
            yield order[start:stop]
            start = stop


def padded_tokens(lengths: NDArray[np.integer], batch: NDArray[np.integer]) -> int:
    """Count the tokens of a batch, padding included."""
    return int(lengths[batch].max()) * batch.size
