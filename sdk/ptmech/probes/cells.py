"""Rows sorted by block, class and sample: what mass-mean probes of many samples have in common.

Leaving one dataset out fits as many probes as there are datasets, on rows that are nearly the same.
Rows of one block (dataset) and class that belong to the same samples form a cell. The sums of the
cells serve every sample: its difference in means, each block centred, is a fixed combination of
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ptmech.errors import DataError


@dataclass(frozen=True, eq=False)
class Cells:
    """Rows that are of one block and one class and belong to the same samples.

    Attributes
    ----------
    rows : array of shape [n], int
        The rows, cell by cell.
    starts : array of shape [cells], int
        Where each cell begins among them.
    counts : array of shape [cells], int
        Rows of each cell.
    block : array of shape [cells], int
        Block of each cell.
    is_true : array of shape [cells], bool
        Class of each cell.
    samples : array of shape [samples, cells], bool
        Which cells each sample takes.
    """

    rows: NDArray[np.intp]
    starts: NDArray[np.intp]
    counts: NDArray[np.intp]
    block: NDArray[np.intp]
    is_true: NDArray[np.bool_]
    samples: NDArray[np.bool_]

    @classmethod
    def of(
        cls, block: NDArray[np.intp], is_true: NDArray[np.bool_], samples: NDArray[np.bool_]
    ) -> Self:
        """Sort rows into cells.

        Parameters
        ----------
        block : array of shape [n], int
            Block of each row, counted from 0. Rows come block by block.
        is_true : array of shape [n], bool
            Class of each row.
        samples : array of shape [samples, n], bool
            Rows of each sample.

        Raises
        ------
        DataError
            If a sample holds one class only.
        """
        if not ((samples & is_true).any(axis=1) & (samples & ~is_true).any(axis=1)).all():
            raise DataError("a sample of the rows is of one class only; a probe needs both")
        memberships = np.unique(samples, axis=1, return_inverse=True)[1]
        keys = np.stack([block, is_true, memberships.ravel()], axis=1)
        _, first, member, counts = np.unique(
            keys, axis=0, return_index=True, return_inverse=True, return_counts=True
        )
        return cls(
            rows=np.argsort(member.ravel(), kind="stable"),
            starts=np.cumsum(counts) - counts,
            counts=counts,
            block=block[first],
            is_true=is_true[first],
            samples=samples[:, first],
        )

    @cached_property
    def members(self) -> tuple[tuple[slice, NDArray[np.float64]], ...]:
        """For each block its cells, and 1 where a row is in one of them [cells, rows], else 0."""
        owner = np.empty(len(self.rows), dtype=np.intp)
        owner[self.rows] = np.repeat(np.arange(len(self.counts)), self.counts)
        found: list[tuple[slice, NDArray[np.float64]]] = []
        for block in np.unique(self.block):
            cells = np.flatnonzero(self.block == block)  # one run: cells are sorted by block
            rows = owner[np.isin(owner, cells)]
            of_cell = (rows == cells[:, None]).astype(np.float64)
            found.append((slice(int(cells[0]), int(cells[-1]) + 1), of_cell))
        return tuple(found)

    @cached_property
    def shares(self) -> NDArray[np.float64]:
        """The weights [samples, blocks, cells] of cell sums in the mean of a sample's block.

        Of a block from which a sample takes nothing, it is the mean of all rows.
        """
        mine = self.block == np.unique(self.block)[:, None]
        taken = self.samples[:, None] & mine
        taken = np.where(taken.any(axis=-1, keepdims=True), taken, mine)
        return taken / (taken @ self.counts)[..., None]

    @cached_property
    def contrasts(self) -> NDArray[np.float64]:
        """The weights [samples, cells] of cell sums in a difference in means, blocks centred."""
        true, false = (self.samples & (self.is_true == label) for label in (True, False))
        weights = true / (true @ self.counts)[:, None] - false / (false @ self.counts)[:, None]
        # Taking its mean out of a block is linear too: what it would add comes off the weights.
        mine = self.block == np.unique(self.block)[:, None]
        surplus = (weights * self.counts) @ mine.T
        return weights - np.einsum("sb,sbk->sk", surplus, self.shares)
