"""Logistic regressions on many samples of the same rows, all at their optimum.

Leaving one dataset out asks for as many regressions as there are datasets, on rows that are nearly
the same. Newton's method solves them together: the optimum over all rows is where each starts, the
systems of one Newton step are solved by conjugate gradients that read the rows once for all, and
what makes those gradients converge within a few steps is each sample's own Hessian, factored in
single precision every now and then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

_syrk, _trsv = scipy.linalg.get_blas_funcs(("syrk", "trsv"), dtype=np.float32)
(_potrf,) = scipy.linalg.get_lapack_funcs(("potrf",), dtype=np.float32)

_ROUGHLY = 1e-2
"""Largest gradient over all rows that is near enough to start the samples from."""
_STALE = 20
"""Steps of conjugate gradients that cost as much as it costs to factor the Hessians again."""
_MAX_INNER = 200
_MAX_HALVINGS = 40
_JITTER = 1e-6
"""Of the Hessian's diagonal, for single precision to factor it."""


class Optimum(NamedTuple):
    """What was found for each sample.

    Attributes
    ----------
    weights : array of shape [samples, d]
    intercepts : array of shape [samples]
    gradients : array of shape [samples]
        The largest entry of the gradient of the mean loss.
    steps
        Newton steps.
    """

    weights: NDArray[np.float64]
    intercepts: NDArray[np.float64]
    gradients: NDArray[np.float64]
    steps: int


@dataclass(frozen=True, eq=False)
class Samples:
    """Rows, and samples of them that are centred by block, each by the means of its own rows.

    Attributes
    ----------
    features : array of shape [n, d + 1], float64
        The rows, and a last column of ones for the intercept.
    is_true : array of shape [n], bool
        Their labels.
    taken : array of shape [samples, n], float64
        One where a sample takes a row, or else zero.
    of_block : array of shape [n, blocks], float64
        One where a row is of a block.
    shifts : array of shape [samples, blocks, d + 1], float64
        What centring takes out.
    penalty : array of shape [d + 1], float64
        One over C; zero for the intercept.
    """

    features: NDArray[np.float64]
    is_true: NDArray[np.bool_]
    taken: NDArray[np.float64]
    of_block: NDArray[np.float64]
    shifts: NDArray[np.float64]
    penalty: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        rows: NDArray[np.float64],
        is_true: NDArray[np.bool_],
        samples: NDArray[np.bool_],
        of_block: NDArray[np.float64],
        inverse_penalty: float,
    ) -> Samples:
        """Make rows [n, d] ready; ``of_block`` [n, blocks] says which block a row is of."""
        features = np.column_stack([rows, np.ones(len(rows))])
        taken = samples.astype(np.float64)
        sizes = taken @ of_block
        partly = (sizes > 0) & (sizes < of_block.sum(axis=0))
        shifts = np.zeros((*sizes.shape, features.shape[1]))
        for sample, block in np.argwhere(partly):
            shifts[sample, block] = (taken[sample] * of_block[:, block]) @ features
            shifts[sample, block] /= sizes[sample, block]
        shifts[..., -1] = 0.0
        penalty = np.append(np.full(rows.shape[1], 1 / inverse_penalty), 0.0)
        return cls(features, is_true, taken, of_block, shifts, penalty)

    def everything(self) -> Samples:
        """Return one sample of all rows."""
        whole, centred = np.ones((1, len(self.features))), np.zeros_like(self.shifts[:1])
        return Samples(self.features, self.is_true, whole, self.of_block, centred, self.penalty)

    def log_odds(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the products [samples, n] of each sample's features and its weights."""
        found = weights @ self.features.T
        if self.shifts.any():
            found -= np.einsum("sbd,sd->sb", self.shifts, weights) @ self.of_block.T
        return found

    def combined(self, of_rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the sums [samples, d + 1] of each sample's features times a number a row."""
        found = of_rows @ self.features
        if self.shifts.any():
            found -= np.einsum("sb,sbd->sd", of_rows @ self.of_block, self.shifts)
        return found

    def probabilities_and_losses(
        self, weights: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return probabilities [samples, n] of being true, and the penalised losses [samples]."""
        log_odds = self.log_odds(weights)
        small = np.exp(-np.abs(log_odds))
        wrong = np.maximum(np.where(self.is_true, -log_odds, log_odds), 0.0)
        loss = (self.taken * (wrong + np.log1p(small))).sum(axis=1)
        loss += (self.penalty * weights**2).sum(axis=1) / 2
        return np.where(log_odds >= 0, 1.0, small) / (1.0 + small), loss


def optimum(samples: Samples, *, tol: float, max_iter: int) -> Optimum:
    """Minimise the penalised loss of every sample.

    Parameters
    ----------
    samples
        The problems.
    tol
        Largest entry of the gradient of the mean loss at which a sample is done.
    max_iter
        Newton steps at most.
    """
    start = np.zeros((1, samples.features.shape[1]))
    single = samples.features.astype(np.float32)
    start, _, before = _newton(samples.everything(), single, start, max(tol, _ROUGHLY), max_iter)
    start = np.repeat(start, len(samples.taken), axis=0)
    found, gradients, steps = _newton(samples, single, start, tol, max_iter)
    return Optimum(found[:, :-1], found[:, -1], gradients, before + steps)


def _newton(
    samples: Samples,
    single: NDArray[np.float32],
    weights: NDArray[np.float64],
    tol: float,
    max_iter: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Return weights, largest gradients and steps, from weights [samples, d + 1] on."""
    rows = samples.taken.sum(axis=1)
    probabilities, losses = samples.probabilities_and_losses(weights)
    factors: list[_Factor] = []
    inner = _STALE
    step = 0
    while True:
        slopes = samples.combined(samples.taken * (probabilities - samples.is_true))
        slopes += samples.penalty * weights
        gradients = np.abs(slopes).max(axis=1) / rows
        if step == max_iter or np.all(gradients <= tol):
            return weights, gradients, step
        curvatures = samples.taken * probabilities * (1.0 - probabilities)
        if inner >= _STALE:
            factors, inner = [_Factor(single, each, samples.penalty) for each in curvatures], 0
        moves, taken = _conjugate_gradients(samples, curvatures, factors, -slopes, gradients.max())
        inner += taken
        moves[gradients <= tol] = 0.0
        candidates = losses
        for _ in range(_MAX_HALVINGS):
            probabilities, candidates = samples.probabilities_and_losses(weights + moves)
            # Equal up to rounding is as low as it gets: last steps must not be halved away.
            worse = candidates > losses * (1 + 1e-14)
            if not worse.any():
                break
            moves[worse] /= 2
        weights, losses, step = weights + moves, candidates, step + 1


class _Factor:
    """A sample's Hessian, its features scaled to a unit diagonal, in single precision."""

    def __init__(
        self,
        single: NDArray[np.float32],
        curvature: NDArray[np.float64],
        penalty: NDArray[np.float64],
    ) -> None:
        counted = curvature > 0
        rows = single[counted] * np.sqrt(curvature[counted]).astype(np.float32)[:, None]
        hessian = _syrk(1.0, rows.T, lower=1)
        diagonal = np.diag_indices_from(hessian)
        hessian[diagonal] += penalty
        self._scale = 1 / np.sqrt(np.maximum(hessian[diagonal], np.finfo(np.float32).tiny))
        hessian *= self._scale[:, None]
        hessian *= self._scale
        hessian[diagonal] = 1.0 + _JITTER
        self._factor, self._failed = _potrf(hessian, lower=1, clean=0, overwrite_a=1)

    def solve(self, right: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return roughly the inverse Hessian times a vector [d + 1]."""
        if self._failed:
            return right * self._scale**2
        half = _trsv(self._factor, right * self._scale, lower=1)
        return _trsv(self._factor, half, lower=1, trans=1, overwrite_x=1) * self._scale


def _conjugate_gradients(
    samples: Samples,
    curvatures: NDArray[np.float64],
    factors: list[_Factor],
    right: NDArray[np.float64],
    gradient: float,
) -> tuple[NDArray[np.float64], int]:
    """Solve the Newton systems of all samples, the closer the nearer they are to the optimum."""
    enough = min(0.1, 30.0 * gradient) ** 2

    def preconditioned(rest: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack([factor.solve(each) for factor, each in zip(factors, rest, strict=True)])

    found, rest = np.zeros_like(right), right.copy()
    direction = preconditioned(rest)
    size = first = np.einsum("sd,sd->s", rest, direction)
    for step in range(1, _MAX_INNER + 1):
        image = samples.combined(curvatures * samples.log_odds(direction))
        image += samples.penalty * direction
        curved = np.einsum("sd,sd->s", direction, image)
        going = (size > enough * first) & (curved > 0)
        length = np.divide(size, curved, out=np.zeros_like(size), where=going)[:, None]
        found += length * direction
        rest -= length * image
        towards = preconditioned(rest)
        before, size = size, np.einsum("sd,sd->s", rest, towards)
        if np.all(size <= enough * first):
            return found, step
        ratio = np.divide(size, before, out=np.zeros_like(size), where=before > 0)
        direction = towards + ratio[:, None] * direction
    return found, _MAX_INNER
