"""Mass-mean probes of many samples of the same rows, from sums that are taken once.

Leaving one dataset out fits as many probes as there are datasets, on rows that are nearly the same.
What a mass-mean probe needs of its rows are sums over classes, and, where it whitens, their scatter
matrix. Rows of one block (dataset) and class that belong to the same samples form a cell; the sums
of the cells serve every sample, and a sample's scatter is the scatter of all rows less that of the
rows it leaves out. Centring by block and by class are corrections of the rank of the cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Self

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from ptmech.errors import DataError
from ptmech.probes.base import ROUNDING

# Symmetric products into one triangle: half the work, and no copy of the other half.
_syrk, _syr2k = scipy.linalg.get_blas_funcs(("syrk", "syr2k"), dtype=np.float64)

CANCELLED = 1e-8
"""A variance below this share of the squares it is left of has lost too many digits."""


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
            Block of each row, counted from 0.
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


class ClassSums:
    """The sums over one array of activations that mass-mean probes of all samples follow from.

    Parameters
    ----------
    activations : array of shape [n, d], float64
        Rows, each centred by the mean of *all* rows of its block, and exactly zero in columns that
        do not vary there: sums of large common offsets would lose the digits that matter.
    cells
        Blocks, classes and samples of the rows. In each sample, every block is centred by the mean
        of its rows in the sample.

    Attributes
    ----------
    shifts : array of shape [samples, cells, d]
        That mean, of the block of each cell. Exactly zero where the sample takes the whole block.
    """

    def __init__(self, activations: NDArray[np.float64], cells: Cells) -> None:
        self._cells = cells
        self._rows = activations[cells.rows]
        self._sums = np.add.reduceat(self._rows, cells.starts, axis=0)
        self.shifts = self._block_means()

    def _block_means(self) -> NDArray[np.float64]:
        cells = self._cells
        shifts = np.zeros((*cells.samples.shape, self._rows.shape[1]))
        for sample, taken in enumerate(cells.samples):
            for block in np.unique(cells.block[~taken]):
                mine = cells.block == block
                if (chosen := mine & taken).any():
                    total = self._sums[chosen].sum(axis=0)
                    shifts[sample, mine] = total / cells.counts[chosen].sum()
        return shifts

    @cached_property
    def _class_means(self) -> NDArray[np.float64]:
        """Means [samples, 2, d] of the false and of the true rows, blocks centred."""
        cells = self._cells
        means = np.empty((len(cells.samples), 2, self._rows.shape[1]))
        for sample, taken in enumerate(cells.samples):
            for label in (False, True):
                mine = taken & (cells.is_true == label)
                counts = cells.counts[mine]
                centred = self._sums[mine] - counts[:, None] * self.shifts[sample, mine]
                means[sample, int(label)] = centred.sum(axis=0) / counts.sum()
        return means

    @cached_property
    def differences(self) -> NDArray[np.float64]:
        """The differences in means [samples, d], true minus false."""
        false, true = np.moveaxis(self._class_means, 1, 0)
        found = true - false
        # Means of equal values differ by rounding, which must not become a direction.
        size = np.abs(self._sums / self._cells.counts[:, None]).max(axis=0)
        found[np.abs(found) <= ROUNDING * size] = 0.0
        return found

    def projections(self, directions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Project all rows on the direction of each sample, blocks centred as the sample does.

        Parameters
        ----------
        directions : array of shape [samples, d]
            A direction for each sample.

        Returns
        -------
        array of shape [samples, n]
            Rows in the order they were given in.
        """
        cells = self._cells
        offsets = np.einsum("skd,sd->sk", self.shifts, directions)
        found = np.empty((len(directions), len(self._rows)))
        found[:, cells.rows] = directions @ self._rows.T - np.repeat(offsets, cells.counts, axis=1)
        return found

    def whitened(self, shrinkage: float | Literal["auto"]) -> Iterator[NDArray[np.float64] | None]:
        """Turn each difference in means by the sample's shrunk within-class covariance.

        Parameters
        ----------
        shrinkage
            As :class:`ptmech.probes.MassMeanProbe` takes it.

        Yields
        ------
        array of shape [d] or None
            A sample's direction; None where the sums do not give it to full precision: without
            shrinkage, with fewer rows than features, or with a variance that cancelled out.
        """
        rows = self._cells.samples @ self._cells.counts
        suffices = (rows >= self._rows.shape[1]) & (shrinkage != 0)
        everything = _syrk(1.0, self._rows.T, lower=1) if suffices.any() else np.zeros(())
        for sample in range(len(rows)):
            yield self._turned(sample, everything, shrinkage) if suffices[sample] else None

    def _turned(
        self, sample: int, everything: NDArray[np.float64], shrinkage: float | Literal["auto"]
    ) -> NDArray[np.float64] | None:
        cells, difference = self._cells, self.differences[sample]
        taken = cells.samples[sample]
        n = int(cells.counts[taken].sum())
        centres = self.shifts[sample] + self._class_means[sample, cells.is_true.astype(np.intp)]
        # For the rows x of a cell, with sum s and centre c, the sum of (x - c)(x - c)' is that of
        # xx', less hc' and ch' with h = s - nc / 2. Only lower triangles are computed and read.
        half = (self._sums - cells.counts[:, None] * centres / 2)[taken]
        squares = self._cell_squares[taken].sum(axis=0)
        variance = (squares - 2 * np.einsum("kd,kd->d", half, centres[taken])) / n
        varies = squares > 0
        if not varies.any():
            return difference
        if np.any(variance[varies] * n <= CANCELLED * np.diag(everything)[varies]):
            return None
        left_out = self._rows[np.repeat(~taken, cells.counts)]
        scatter = everything.copy(order="F")
        if len(left_out):
            scatter = _syrk(-1.0, left_out.T, beta=1.0, c=scatter, lower=1, overwrite_c=1)
        scatter = _syr2k(
            -1.0, half.T, centres[taken].T, beta=1.0, c=scatter, lower=1, overwrite_c=1
        )
        scatter[~varies] = scatter[:, ~varies] = 0.0  # what the difference of two sums leaves there
        precision = np.divide(1.0, variance, out=np.zeros_like(variance), where=varies)
        if shrinkage == "auto":
            norms = self._squared_norms(sample, centres, precision)
            amount = _ledoit_wolf(scatter, precision, norms)
        else:
            amount = float(shrinkage)
        if amount == 0:
            return None
        # The covariance is shrunk where its features have unit spread. Multiplied by the spread on
        # either side, that is the covariance as it is, shrunk towards its own diagonal.
        scatter *= (1 - amount) / n
        scatter[np.diag_indices_from(scatter)] = np.where(varies, variance, amount)
        factor = scipy.linalg.cho_factor(scatter, lower=True, overwrite_a=True, check_finite=False)
        return scipy.linalg.cho_solve(factor, difference, check_finite=False)

    def _squared_norms(
        self, sample: int, centres: NDArray[np.float64], precision: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the squared norms of a sample's residuals, features scaled to unit spread."""
        cells = self._cells
        taken = cells.samples[sample]
        norms = self._squares @ precision
        weighted = centres * precision
        norms += np.repeat(np.einsum("kd,kd->k", centres, weighted), cells.counts)
        for cell in np.flatnonzero(taken):
            mine = slice(cells.starts[cell], cells.starts[cell] + cells.counts[cell])
            norms[mine] -= 2 * (self._rows[mine] @ weighted[cell])
        return norms[np.repeat(taken, cells.counts)]

    @cached_property
    def _squares(self) -> NDArray[np.float64]:
        return self._rows**2

    @cached_property
    def _cell_squares(self) -> NDArray[np.float64]:
        return np.add.reduceat(self._squares, self._cells.starts, axis=0)


def _ledoit_wolf(
    scatter: NDArray[np.float64], precision: NDArray[np.float64], norms: NDArray[np.float64]
) -> float:
    """Return the shrinkage of Ledoit & Wolf (2004) of features scaled to unit spread.

    It is the one of :func:`sklearn.covariance.ledoit_wolf_shrinkage` for centred data, which only
    depends on the squared entries of the covariance, its trace and the rows' squared norms.

    Parameters
    ----------
    scatter : array of shape [d, d]
        Scatter of the features before they are scaled; its lower triangle, and zeros above.
    precision : array of shape [d]
        One over their variances; zero for a feature that does not vary.
    norms : array of shape [n]
        Squared norms of the rows, features scaled.
    """
    n, width = len(norms), len(precision)
    both_triangles = 2 * (precision @ (scatter**2 @ precision))
    squared = float(both_triangles - precision**2 @ np.diag(scatter) ** 2) / n**2
    trace = float(norms.sum()) / n
    distance = (squared - trace**2 / width) / width
    error = (float(norms @ norms) / n - squared) / (width * n)
    error = min(error, distance)
    return 0.0 if error == 0 else error / distance
