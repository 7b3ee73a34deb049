"""Texts that begin alike, laid out so that every shared beginning stands there once.

A token's activations depend only on the tokens before it. So rows that share a prefix can share its
computation: sorted, each row shares with the row before it as much as with any, and adds the rest
as a branch. A sequence of such branches is a :class:`Tree`; with a mask that lets every token
attend to its ancestors alone, and its depth as its position, each row sees exactly its own text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptmech.errors import DataError

TokenIds = Sequence[int]
Numbers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Tree:
    """Some rows as one sequence of tokens, parents before their children.

    Attributes
    ----------
    token_ids
        [n] int64.
    depths
        [n] int64: how many tokens of its rows stand before each token.
    parents
        [n] int64: where in the sequence the token before each one is; -1 for a first token.
    rows
        [rows] int64: which of the caller's rows these are.
    ways
        For each of `rows`, where in the sequence its tokens are.
    """

    token_ids: Numbers
    depths: Numbers
    parents: Numbers
    rows: Numbers
    ways: tuple[Numbers, ...]

    @property
    def n_tokens(self) -> int:
        """Length of the sequence."""
        return self.token_ids.size

    @property
    def ends(self) -> Numbers:
        """For each token, where in the sequence the texts end that go on from it [n]."""
        ends = list(range(1, self.n_tokens + 1))
        for node in reversed(range(self.n_tokens)):
            parent = int(self.parents[node])
            if parent >= 0:
                ends[parent] = max(ends[parent], ends[node])
        return np.array(ends, dtype=np.int64)

    def nodes(self, indices: NDArray[np.integer]) -> Numbers:
        """Say where chosen tokens of each row are in the sequence.

        Parameters
        ----------
        indices
            [rows of the tree, positions]: tokens counted from the first of each row.

        Returns
        -------
        numpy.ndarray
            [rows of the tree, positions] int64.
        """
        return np.stack([way[at] for way, at in zip(self.ways, indices, strict=True)])


def seen_by(at: Any, ends: Any, depths: Any, window: int | None = None) -> Any:
    """Say which tokens each token of a tree sees: itself and those that its text begins with.

    Branch stands behind branch, so whatever goes on from a token is a run that begins with it, and
    three numbers a token say it all. Tensors stay on their device.

    Parameters
    ----------
    at, ends, depths
        Arrays or tensors [..., n]: the places 0 to n - 1, where the run of each token ends, and how
        many tokens of its text stand before it.
    window
        How many tokens of its text a token sees, itself included; None for all.

    Returns
    -------
    array or tensor
        bool [..., n, n], first the token that looks.
    """
    looking = at[..., :, None]
    seen = (at[..., None, :] <= looking) & (looking < ends[..., None, :])
    if window is None:
        return seen
    return seen & (depths[..., :, None] - depths[..., None, :] < window)


def prefix_trees(token_ids: Sequence[TokenIds], longest: int) -> list[Tree]:
    """Lay rows out as trees.

    Parameters
    ----------
    token_ids
        One list of ids a row.
    longest
        Tokens a sequence may have. A row of more than that has a tree of its own.

    Returns
    -------
    list of Tree
        Together every row exactly once. Rows that are the same share all of their tokens.

    Raises
    ------
    DataError
        A row without tokens.

    Examples
    --------
    >>> tree, = prefix_trees([[5, 6, 7], [5, 6, 8]], longest=10)
    >>> tree.token_ids.tolist(), tree.depths.tolist(), tree.parents.tolist()
    ([5, 6, 7, 8], [0, 1, 2, 2], [-1, 0, 1, 1])
    """
    trees: list[Tree] = []
    growing = _Growing()
    for row in in_order(token_ids):
        ids = token_ids[row]
        if not len(ids):
            raise DataError(f"row {row} has no tokens")
        added = len(ids) - shared_length(growing.last, ids)
        if added and growing.last and growing.n_tokens + added > longest:
            trees.append(growing.tree())
            growing = _Growing()
        growing.add(row, ids)
    if growing.last:
        trees.append(growing.tree())
    return trees


def in_order(token_ids: Sequence[TokenIds]) -> list[int]:
    """Sort row numbers by their tokens, so that rows that begin alike are neighbours."""
    return sorted(range(len(token_ids)), key=lambda row: tuple(token_ids[row]))


def shared_length(one: TokenIds, other: TokenIds) -> int:
    """Count the tokens with which two rows begin alike."""
    pairs = zip(one, other, strict=False)
    return next(
        (at for at, (a, b) in enumerate(pairs) if a != b),
        min(len(one), len(other)),
    )


def most_shared(token_ids: Sequence[TokenIds]) -> int | None:
    """Return a row that shares as many tokens with another as any; None if no two begin alike."""
    order = in_order(token_ids)
    shared = [shared_length(token_ids[a], token_ids[b]) for a, b in pairwise(order)]
    if not any(shared):
        return None
    return order[1 + int(np.argmax(shared))]


class _Growing:
    """A tree while rows are added to it, in order."""

    def __init__(self) -> None:
        self.last: TokenIds = ()
        self._way: list[int] = []
        self._token_ids: list[int] = []
        self._depths: list[int] = []
        self._parents: list[int] = []
        self._rows: list[int] = []
        self._ways: list[Numbers] = []

    @property
    def n_tokens(self) -> int:
        """Tokens so far."""
        return len(self._token_ids)

    def add(self, row: int, ids: TokenIds) -> None:
        """Add a row: what it shares with the one before it is there already."""
        shared = shared_length(self.last, ids)
        way = self._way[:shared]
        for depth in range(shared, len(ids)):
            self._parents.append(way[-1] if way else -1)
            self._depths.append(depth)
            way.append(len(self._token_ids))
            self._token_ids.append(ids[depth])
        self.last, self._way = ids, way
        self._rows.append(row)
        self._ways.append(np.array(way, dtype=np.int64))

    def tree(self) -> Tree:
        """Return it finished."""
        columns = (self._token_ids, self._depths, self._parents, self._rows)
        arrays = (np.array(column, dtype=np.int64) for column in columns)
        return Tree(*arrays, ways=tuple(self._ways))
