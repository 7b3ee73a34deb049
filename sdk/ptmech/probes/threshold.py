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

    weights = counted / rows[..., None]
    mean = np.einsum("...n,...n->...", values, weights)
    centred = np.where(counted, values - mean[..., None], 0.0)
    scale = np.sqrt(np.einsum("...n,...n,...n->...", centred, centred, weights))
    flat = scale <= 1e-12 * np.where(counted, np.abs(values), 0.0).max(axis=-1)
    scale = np.where(flat, 1.0, scale)
    scaled = centred / scale[..., None]

    low_true, high_true = _range(scaled, labels & counted)
    low_false, high_false = _range(scaled, ~labels & counted)
    upward = ~flat & (low_true >= high_false - _OVERLAP)
    downward = ~flat & ~upward & (low_false >= high_true - _OVERLAP)
    below = np.where(upward, high_false, high_true)
    above = np.where(upward, low_true, low_false)
    half_gap = np.maximum((above - below) / 2, _OVERLAP)
    steepest = np.where(upward, 1.0, -1.0) * np.log1p(rows) / half_gap

    ordinary = ~(flat | upward | downward)
    slope, offset = _newton(scaled, labels, np.where(ordinary[..., None], weights, 0.0))
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
    low = np.where(mask, values, np.inf).min(axis=-1)
    return low, np.where(mask, values, -np.inf).max(axis=-1)


def _newton(
    values: NDArray[np.float64], labels: NDArray[np.bool_], weights: NDArray[np.float64]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return slope and offset of every problem by Newton steps, halved until the loss falls.

    Values have mean zero and unit variance under the weights, which add up to one. Problems without
    weights stay at zero.
    """
    true = np.where(labels, weights, 0.0)

    def evaluate(
        slope: NDArray[np.float64], offset: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        log_odds = slope[..., None] * values + offset[..., None]
        return _probability_and_loss(labels, weights, log_odds)

    slope, offset = _start(values, true)
    probability, current = evaluate(slope, offset)
    # Where that is worse than knowing nothing, say for an outlier, so is the way down from there.
    far = current > np.log(2.0)
    if np.any(far):
        slope, offset = np.where(far, 0.0, slope), np.where(far, 0.0, offset)
        probability, current = evaluate(slope, offset)
    for _ in range(_MAX_STEPS):
        residual = weights * probability - true
        gradient_slope = np.einsum("...n,...n->...", residual, values)
        gradient_offset = residual.sum(axis=-1)
        going = np.hypot(gradient_slope, gradient_offset) > _GRADIENT
        if not np.any(going):
            break
        curvature = weights * probability * (1.0 - probability)
        leaning = curvature * values
        a = np.einsum("...n,...n->...", leaning, values)
        b, c = leaning.sum(axis=-1), curvature.sum(axis=-1)
        determinant = a * c - b**2
        usable = going & (determinant > 0)
        inverse = np.divide(1.0, determinant, out=np.zeros_like(determinant), where=usable)
        step_slope = inverse * (c * gradient_slope - b * gradient_offset)
        step_offset = inverse * (a * gradient_offset - b * gradient_slope)

        length, candidate = np.ones_like(slope), current
        for _ in range(_MAX_HALVINGS):
            probability, candidate = evaluate(
                slope - length * step_slope, offset - length * step_offset
            )
            # Equal up to rounding is as low as it gets: those last steps must not be halved away.
            worse = candidate > current * (1 + 1e-14)
            if not np.any(worse):
                break
            length = np.where(worse, length / 2, length)
        slope = slope - length * step_slope
        offset = offset - length * step_offset
        current = candidate
    return slope, offset


def _start(
    values: NDArray[np.float64], true: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the log-odds of two normal classes of one variance: near the answer, as a rule."""
    share = true.sum(axis=-1)
    between = np.where(share > 0, share * (1.0 - share), 1.0)
    distance = np.einsum("...n,...n->...", true, values) / between
    within = np.maximum(1.0 - between * distance**2, _OVERLAP)
    slope = distance / within
    # The class means are (1 - share) and -share times their distance.
    middle = distance * (0.5 - share)
    chances = np.where(share > 0, share / (1.0 - share), 1.0)
    offset = np.log(chances) - slope * middle
    return slope, offset


def _probability_and_loss(
    labels: NDArray[np.bool_],
    weights: NDArray[np.float64],
    log_odds: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return each row's probability of being true, and the mean loss of every problem."""
    small = np.exp(-np.abs(log_odds))
    probability = np.where(log_odds >= 0, 1.0, small) / (1.0 + small)
    wrong = np.maximum(np.where(labels, -log_odds, log_odds), 0.0)
    return probability, (weights * (wrong + np.log1p(small))).sum(axis=-1)
