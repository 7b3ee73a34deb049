"""Sums over classes, and what mass-mean probes of many samples take from them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptmech.probes.base import ROUNDING
from ptmech.probes.cells import Cells


class ClassSums:
    """The sums over one array of activations that mass-mean probes of all samples follow from.

    Activations stay as they are stored: a block at a time is widened where it is read, which costs
    less than the memory traffic of all of them in float64. Sums are of float64.

    Parameters
    ----------
    blocks : sequence of arrays of shape [rows, d]
        The rows of each block, of any floating-point type, in the order of ``cells``.
    cells
        Blocks, classes and samples of the rows. In each sample, every block is centred by the mean
        of its rows in the sample.

    Attributes
    ----------
    blocks, cells
        The same.
    """

    def __init__(self, blocks: Sequence[NDArray[Any]], cells: Cells) -> None:
        self.blocks = blocks
        self.cells = cells

    @cached_property
    def _sums(self) -> NDArray[np.float64]:
        """The sums of the cells [cells, d]."""
        found = np.empty((len(self.cells.counts), self.blocks[0].shape[1]))
        for (mine, of_cell), block in zip(self.cells.members, self.blocks, strict=True):
            np.matmul(of_cell, block.astype(np.float64), out=found[mine])
        return found

    @cached_property
    def block_means(self) -> NDArray[np.float64]:
        """The mean [samples, blocks, d] of a block's rows in each sample; of all, if none are."""
        return self.cells.shares @ self._sums

    def differences(self) -> NDArray[np.float64]:
        """Return the differences in means [samples, d], true minus false, blocks centred."""
        means = self._sums / self.cells.counts[:, None]
        return without_rounding(self.cells.contrasts @ self._sums, means)

    def projections(self, directions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Project all rows on the direction of each sample, blocks centred as the sample does.

        Parameters
        ----------
        directions : array of shape [samples, d]
            A direction for each sample.

        Returns
        -------
        array of shape [samples, n]
        """
        centres = np.einsum("sbd,sd->sb", self.block_means, directions)
        return np.concatenate(
            [
                directions @ block.astype(np.float64).T - centre[:, None]
                for block, centre in zip(self.blocks, centres.T, strict=True)
            ],
            axis=1,
        )


def without_rounding(
    differences: NDArray[np.float64], means: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return differences [..., d] of means [cells, d] with exact zeros where they are rounding.

    Means of equal values differ by rounding, which must not become a direction.
    """
    size = np.abs(means).max(axis=0)
    return np.where(np.abs(differences) <= ROUNDING * size, 0.0, differences)
