"""Unpenalised logistic regression in one dimension, for many problems at once.

The decision threshold of a mass-mean probe is a logistic regression of the labels on the
projections. scikit-learn fits one such problem at a time and has no answer where the classes do
not overlap; here a Newton iteration runs over all problems (layers, folds) together, and the case
without overlap has a defined answer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from ptmech._arrays import finite_array
from ptmech.errors import DataError

#: Classes that overlap by less than this share of the spread count as separable.
_OVERLAP = 1e-9
_MAX_STEPS = 200
_MAX_HALVINGS = 40
_GRADIENT = 1e-12


class LogisticLine(NamedTuple):
    """Log-odds ``slope * projection + intercept`` and where they are even.

    Attributes
    ----------
    slope, intercept : arrays of shape [...], float64
        Log-odds per unit of projection, and at projection zero.
    threshold : array of shape [...], float64
        The projection with even odds.
    """

    slope: NDArray[np.float64]
    intercept: NDArray[np.float64]
    threshold: NDArray[np.float64]


def fit_logistic_line(
    projection: ArrayLike, is_true: ArrayLike, *, where: ArrayLike | None = None
) -> LogisticLine:
    """Fit labels on projections by unpenalised maximum likelihood.

    Parameters
    ----------
    projection : array of shape [..., n]
        Activations projected on a direction; each leading index is a problem of its own.
    is_true : array of shape [n] or [..., n], bool
        The labels.
    where : array of shape [n] or [..., n], bool, optional
        The rows that count, say the training rows of each fold; all of them by default.

    Returns
    -------
    LogisticLine
        Three arrays of the leading shape.

    Raises
    ------
    DataError
        Shapes that do not broadcast, non-finite projections, or a problem without both classes.

    Notes
    -----
    Two cases have no finite maximum and are answered as follows.

    *Separable classes.* The steeper the slope, the likelier the labels. The threshold tends to the
    midpoint between the two closest projections of opposite classes, and that is what is
    returned. The slope is chosen so that those two projections get log-odds of
    ``-log(n + 1)`` and ``log(n + 1)``: n rows without an error leave, by the rule of succession,
    a chance of 1 in n + 2.

    *No spread.* All projections are equal: the slope is 0, the intercept the log-odds of the
    class sizes (0 for balanced classes) and the threshold the common projection.

    Examples
    --------
    >>> line = fit_logistic_line([0.0, 1.0, 3.0, 4.0], [False, False, True, True])
    >>> float(line.threshold)
    2.0
    """
    values = finite_array(projection, "projection").astype(np.float64)
    try:
        values, labels, counted = np.broadcast_arrays(
            values, np.asarray(is_true, dtype=bool), True if where is None else np.asarray(where)
        )
    except ValueError as error:
        raise DataError("projection, is_true and where do not fit together") from error
    counted = counted.astype(bool)
    positives = np.sum(labels & counted, axis=-1)
    rows = np.sum(counted, axis=-1)
    if np.any(positives == 0) or np.any(positives == rows):
        raise DataError("a threshold needs rows of both classes")

    mean = np.mean(values, axis=-1, where=counted)
    scale = np.sqrt(np.mean((values - mean[..., None]) ** 2, axis=-1, where=counted))
    flat = scale <= 1e-12 * np.max(np.abs(values), axis=-1, where=counted, initial=0.0)
    scale = np.where(flat, 1.0, scale)
    scaled = np.where(counted, (values - mean[..., None]) / scale[..., None], 0.0)

    low_true, high_true = _range(scaled, labels & counted)
    low_false, high_false = _range(scaled, ~labels & counted)
    upward = ~flat & (low_true >= high_false - _OVERLAP)
    downward = ~flat & ~upward & (low_false >= high_true - _OVERLAP)
    below = np.where(upward, high_false, high_true)
    above = np.where(upward, low_true, low_false)
    half_gap = np.maximum((above - below) / 2, _OVERLAP)
    steepest = np.where(upward, 1.0, -1.0) * np.log1p(rows) / half_gap

    ordinary = ~(flat | upward | downward)
    slope, offset = _newton(scaled, labels, counted & ordinary[..., None])
    separable = upward | downward
    slope = np.where(flat, 0.0, np.where(separable, steepest, slope))
    offset = np.where(flat, np.log(positives / (rows - positives)), offset)
    offset = np.where(separable, -slope * (below + above) / 2, offset)

    even = mean - scale * np.divide(offset, slope, out=np.zeros_like(mean), where=slope != 0)
    return LogisticLine(slope / scale, offset - slope * mean / scale, even)


def _range(
    values: NDArray[np.float64], mask: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the least and greatest value of each problem among the masked rows."""
    low = np.min(values, axis=-1, where=mask, initial=np.inf)
    return low, np.max(values, axis=-1, where=mask, initial=-np.inf)


def _newton(
    values: NDArray[np.float64], labels: NDArray[np.bool_], counted: NDArray[np.bool_]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return slope and offset of every problem by Newton steps, halved until the loss falls.

    Problems without counted rows stay at zero.
    """
    sign = np.where(labels, 1.0, -1.0)
    rows = np.maximum(np.sum(counted, axis=-1), 1)

    def mean(terms: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.sum(np.where(counted, terms, 0.0), axis=-1) / rows

    def log_odds(slope: NDArray[np.float64], offset: NDArray[np.float64]) -> NDArray[np.float64]:
        return slope[..., None] * values + offset[..., None]

    def loss(slope: NDArray[np.float64], offset: NDArray[np.float64]) -> NDArray[np.float64]:
        return mean(np.logaddexp(0.0, -sign * log_odds(slope, offset)))

    slope = np.zeros(values.shape[:-1])
    offset = np.zeros(values.shape[:-1])
    current = loss(slope, offset)
    for _ in range(_MAX_STEPS):
        probability = expit(log_odds(slope, offset))
        residual = probability - labels
        curvature = probability * (1.0 - probability)
        gradient_slope, gradient_offset = mean(residual * values), mean(residual)
        if np.all(np.hypot(gradient_slope, gradient_offset) <= _GRADIENT):
            break
        a, b, c = mean(curvature * values**2), mean(curvature * values), mean(curvature)
        determinant = a * c - b**2
        usable = determinant > 0
        inverse = np.divide(1.0, determinant, out=np.zeros_like(determinant), where=usable)
        step_slope = inverse * (c * gradient_slope - b * gradient_offset)
        step_offset = inverse * (a * gradient_offset - b * gradient_slope)

        length = np.ones_like(slope)
        for _ in range(_MAX_HALVINGS):
            candidate = loss(slope - length * step_slope, offset - length * step_offset)
            # Equal up to rounding is as low as it gets: those last steps must not be halved away.
            worse = candidate > current * (1 + 1e-14)
            if not np.any(worse):
                break
            length = np.where(worse, length / 2, length)
        slope -= length * step_slope
        offset -= length * step_offset
        current = loss(slope, offset)
    return slope, offset
