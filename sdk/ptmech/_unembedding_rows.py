"""The unembedding in float64 blocks, conventions applied, never more than a block in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import get_blas_funcs

from ptmech._arrays import finite_array
from ptmech.errors import DataError, unknown

Convention = Literal["raw", "folded", "folded_centered"]
"""The form of the unembedding that neurons are judged by, see :mod:`ptmech.unembedding`."""

#: Numbers in a float64 block of the vocabulary or of the neurons: 8 MiB, near what caches hold.
_BLOCK_SIZE = 2**20
#: A row that differs from the mean row by less than this share of its length equals it.
_ROUNDING = 1e-12


def block_length(d_model: int) -> int:
    """Return how many rows, or neurons, of width ``d_model`` make a block."""
    return max(1, _BLOCK_SIZE // d_model)


class UnembeddingRows:
    """An unembedding in one convention, handed out in float64 blocks of rows.

    Attributes
    ----------
    n_tokens, d_model
        Shape of the unembedding.
    mean_row : array of shape [d_model], float64
        Mean over the vocabulary, gamma folded in where the convention says so, before centring.
    """

    def __init__(self, w_u: ArrayLike, gamma: ArrayLike | None, convention: Convention) -> None:
        if convention not in get_args(Convention):
            raise unknown("convention", convention, get_args(Convention))
        self._rows: NDArray[Any] = np.asanyarray(w_u)
        if self._rows.ndim != 2 or self._rows.size == 0 or len(self._rows) < 2:
            raise DataError(
                "w_u must be [vocabulary, d_model] with two tokens or more, "
                f"not of shape {self._rows.shape}"
            )
        self.n_tokens, self.d_model = self._rows.shape
        self._scale = np.ones(self.d_model)
        if gamma is not None and convention != "raw":
            self._scale = finite_array(gamma, "gamma", ndim=1).astype(np.float64)
            if len(self._scale) != self.d_model:
                raise DataError(
                    f"gamma must be of width d_model = {self.d_model}, not {len(self._scale)}"
                )
        total = np.zeros(self.d_model)
        for block in self._stored_blocks():
            total += block.sum(axis=0)
        self.mean_row = total / self.n_tokens
        self._centre = self.mean_row if convention == "folded_centered" else np.zeros(self.d_model)

    def blocks(self) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Yield blocks of rows in the convention, and the same rows scaled to length one.

        Both are overwritten by the next ones.
        """
        centre_length = np.linalg.norm(self._centre)
        units = self._block()
        for block in self._stored_blocks():
            size = _lengths(block) + centre_length
            block -= self._centre
            length = _lengths(block)
            # What centring leaves of a row equal to the mean is rounding: scaled to length one it
            # would point somewhere, so it stays as it is, next to nothing.
            length = np.where(length <= _ROUNDING * size, 1.0, length)
            yield block, np.divide(block, length[:, None], out=units[: len(block)])

    def _stored_blocks(self) -> Iterator[NDArray[np.float64]]:
        """Yield blocks of rows with gamma folded in, each in the place of the one before."""
        held = self._block()
        for start in range(0, self.n_tokens, len(held)):
            stored = finite_array(self._rows[start : start + len(held)], "w_u")
            block = held[: len(stored)]
            block[...] = stored
            block *= self._scale
            yield block

    def _block(self) -> NDArray[np.float64]:
        """Return memory for a block: what is new for each is paid for page by page."""
        return np.empty((min(self.n_tokens, block_length(self.d_model)), self.d_model))


class SecondMoment:
    """Running sum ``X' X`` of blocks of rows, of which only one triangle is computed."""

    def __init__(self, d_model: int) -> None:
        self._upper = np.zeros((d_model, d_model), order="F")
        self._add_products: Any = get_blas_funcs("syrk", dtype=np.float64)

    def add(self, rows: NDArray[np.float64]) -> None:
        """Take in a block of rows [rows, d_model]."""
        self._upper = self._add_products(1.0, rows.T, beta=1.0, c=self._upper, overwrite_c=True)

    def matrix(self) -> NDArray[np.float64]:
        """Return the whole of it [d_model, d_model]."""
        return np.triu(self._upper) + np.triu(self._upper, 1).T


class UnitMoments:
    """Running sum and second moment of unit rows, and their covariance in the end."""

    def __init__(self, d_model: int) -> None:
        self._count = 0
        self._sum = np.zeros(d_model)
        self._products = SecondMoment(d_model)

    def add(self, unit: NDArray[np.float64]) -> None:
        """Take in a block of unit rows [rows, d_model]."""
        self._count += len(unit)
        self._sum += unit.sum(axis=0)
        self._products.add(unit)

    def covariance(self) -> NDArray[np.float64]:
        """Return the unbiased covariance [d_model, d_model] of all rows so far."""
        mean = self._sum / self._count
        between = self._count * np.outer(mean, mean)
        return (self._products.matrix() - between) / (self._count - 1)


def _lengths(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sqrt(np.einsum("ij,ij->i", rows, rows))
