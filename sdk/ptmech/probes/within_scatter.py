"""Whitened mass-mean probes of many samples of the same rows, from sums that are taken once.

What such a probe needs of its rows are sums over classes and their scatter matrix. The sums of the
cells serve every sample, and a sample's scatter is the scatter of all rows less that of the rows it
leaves out. Centring by block and by class are corrections of the rank of the cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Literal

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from ptmech.probes.cells import Cells
from ptmech.probes.class_sums import without_rounding

# Symmetric products into one triangle: half the work, and no copy of the other half.
_syrk, _syr2k = scipy.linalg.get_blas_funcs(("syrk", "syr2k"), dtype=np.float64)

_potrf, _pocon = scipy.linalg.get_lapack_funcs(("potrf", "pocon"), dtype=np.float64)

CANCELLED = 1e-8
"""A variance below this share of the squares it is left of has lost too many digits."""
SINGULAR = 1e-9
"""A covariance whose condition number is beyond one over this is left to the pseudo-inverse."""


class WithinScatter:
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
        return without_rounding(true - false, self._sums / self._cells.counts[:, None])

    def whitened(self, shrinkage: float | Literal["auto"]) -> Iterator[NDArray[np.float64] | None]:
        """Turn each difference in means by the sample's shrunk within-class covariance.

        Parameters
        ----------
        shrinkage
            As :class:`ptmech.probes.MassMeanProbe` takes it.

        Yields
        ------
        array of shape [d] or None
            A sample's direction; None where the sums do not give it to full precision: with fewer
            rows than features, with a variance that cancelled out, or, where nothing is shrunk,
            with a covariance close to singular.
        """
        suffices = self._cells.samples @ self._cells.counts >= self._rows.shape[1]
        everything = _syrk(1.0, self._rows.T, lower=1) if suffices.any() else np.zeros(())
        for sample in range(len(suffices)):
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
        # The covariance is shrunk where its features have unit spread.
        scale = np.sqrt(precision)
        scatter *= scale[:, None] * ((1 - amount) / n)
        scatter *= scale
        scatter[np.diag_indices_from(scatter)] = 1.0
        solution = _solved(scatter, difference * scale)
        return None if solution is None else solution * scale

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


def _solved(
    covariance: NDArray[np.float64], right: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """Solve for a covariance in its lower triangle, which is lost; None if close to singular."""
    size = np.abs(covariance)
    norm = float((size.sum(axis=0) + size.sum(axis=1) - np.diag(size)).max())
    factor, failed = _potrf(covariance, lower=1, clean=0, overwrite_a=1)
    if failed or _pocon(factor, norm, uplo="L")[0] < SINGULAR:
        return None
    return scipy.linalg.cho_solve((factor, True), right, check_finite=False)


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
