"""The mass-mean probe, plain and whitened."""

from __future__ import annotations

from numbers import Real
from typing import Literal, Self

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray
from sklearn.covariance import ledoit_wolf_shrinkage

from ptmech.directions import difference_in_means
from ptmech.errors import DataError
from ptmech.probes.base import LinearProbe, centred_columns
from ptmech.probes.threshold import LogisticLine, fit_logistic_line


class MassMeanProbe(LinearProbe):
    """Difference in means as a probe (Marks & Tegmark 2023, section 5).

    The direction is ``theta = mean(true) - mean(false)``; the threshold is an unpenalised
    one-dimensional logistic regression of the labels on the projections ``x . theta``. No
    optimisation in activation space, so the direction does not chase chance correlations.

    Parameters
    ----------
    whiten
        Use ``inv(S) theta`` instead, with S the pooled within-class covariance: linear discriminant
        analysis, which turns the direction away from those that vary anyway. Better in
        distribution; the plain direction is the one that is causal in the model.
    shrinkage
        Only with ``whiten``. S is estimated on features scaled to unit within-class spread, as
        ``(1 - shrinkage) * covariance + shrinkage * identity``, and mapped back; the scaling
        keeps an outlier dimension of a residual stream from drowning all others. ``"auto"``
        (default) takes the shrinkage of Ledoit & Wolf; 1.0 only scales the features; 0.0 is the
        plain covariance, with a pseudo-inverse where it is singular.

    Attributes
    ----------
    direction_ : array of shape [d], float64
        ``theta``, or ``inv(S) theta``, unscaled.
    threshold_ : float
        The projection on ``direction_`` with even odds.
    slope_ : float
        Log-odds per unit of projection.
    weights_, intercept_, classes_, n_features_in_, feature_names_in_
        As in every probe; ``weights_`` is ``slope_ * direction_``.

    Notes
    -----
    Where the projections separate the classes, the threshold is the midpoint between the two
    closest of opposite classes, which is the limit of the likelihood, and the slope a finite
    stand-in (:func:`ptmech.probes.fit_logistic_line`). Where the activations are all the same, as
    at the embedding layer when every statement ends in the same token, the direction is zero and
    the probe predicts the larger class, at log-odds 0 for balanced classes.

    Examples
    --------
    >>> import numpy as np
    >>> activations = np.array([[0.0, 5.0], [1.0, 5.0], [3.0, 5.0], [4.0, 5.0]])
    >>> probe = MassMeanProbe().fit(activations, [False, False, True, True])
    >>> probe.direction_
    array([3., 0.])
    >>> probe.predict([[1.9, 0.0], [2.1, 0.0]])
    array([False,  True])
    """

    threshold_: float
    slope_: float

    def __init__(
        self, *, whiten: bool = False, shrinkage: float | Literal["auto"] = "auto"
    ) -> None:
        self.whiten = whiten
        self.shrinkage: float | Literal["auto"] = shrinkage

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit direction and threshold.

        Parameters
        ----------
        X : array of shape [n, d]
            Activations.
        y : array of shape [n]
            Two labels; the greater one (True, 1) is "true".

        Returns
        -------
        MassMeanProbe
            Itself.

        Raises
        ------
        DataError
            Empty, non-finite or misshapen data, or not two classes.
        """
        self.require_shrinkage()
        activations, is_true = self._training_data(X, y)
        theta = difference_in_means(activations[is_true], activations[~is_true])
        # The means of equal values differ by rounding, which must not become a direction.
        theta[np.ptp(activations, axis=0) == 0] = 0.0
        if self.whiten:
            theta = _whitened(theta, activations, is_true, self.shrinkage)
        return self._decide(theta, fit_logistic_line(activations @ theta, is_true))

    @classmethod
    def along(cls, directions: NDArray[np.float64], lines: LogisticLine) -> list[Self]:
        """Return fitted probes of directions that were found elsewhere.

        Parameters
        ----------
        directions : array of shape [probes, d], float64
            A direction each.
        lines
            Its log-odds, arrays of shape [probes]. The labels are False and True.

        Returns
        -------
        list of MassMeanProbe
            One a direction, in their order.
        """
        found: list[Self] = []
        for direction, line in zip(directions, zip(*lines, strict=True), strict=True):
            probe = cls()
            probe.classes_ = np.array([False, True])
            probe.n_features_in_ = len(direction)
            found.append(probe._decide(direction, LogisticLine(*line)))
        return found

    def require_shrinkage(self) -> None:
        """Raise a DataError if ``shrinkage`` is not what it can be.

        Raises
        ------
        DataError
            It is neither ``"auto"`` nor a number from 0 to 1.
        """
        if self.shrinkage != "auto" and not (
            isinstance(self.shrinkage, Real) and 0 <= self.shrinkage <= 1
        ):
            raise DataError(
                f"shrinkage must be 'auto' or a number from 0 to 1, not {self.shrinkage!r}"
            )

    def _decide(self, direction: NDArray[np.float64], line: LogisticLine) -> Self:
        self.direction_ = direction
        self.slope_ = float(line.slope)
        self.threshold_ = float(line.threshold)
        self.weights_ = self.slope_ * direction
        self.intercept_ = float(line.intercept)
        return self


def _whitened(
    theta: NDArray[np.float64],
    activations: NDArray[np.float64],
    is_true: NDArray[np.bool_],
    shrinkage: float | Literal["auto"],
) -> NDArray[np.float64]:
    """Return ``inv(S) theta`` for the shrunk within-class covariance S."""
    residuals = activations.copy()
    for group in (is_true, ~is_true):
        residuals[group] = centred_columns(activations[group])[0]
    spread = np.sqrt(np.mean(residuals**2, axis=0))
    scale = np.where(spread > 0, spread, 1.0)
    residuals /= scale
    if not np.any(residuals):
        return theta  # no spread within the classes: nothing to whiten
    if shrinkage == "auto":
        amount = float(ledoit_wolf_shrinkage(residuals, assume_centered=True))
    else:
        amount = float(shrinkage)
    return _solve_shrunk(residuals, amount, theta / scale) / scale


def _solve_shrunk(
    residuals: NDArray[np.float64], shrinkage: float, right: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Solve ``((1 - shrinkage) R'R / n + shrinkage I) z = right`` in the smaller of both sizes."""
    rows, width = residuals.shape
    if shrinkage == 0:
        found = scipy.linalg.pinvh(residuals.T @ residuals / rows) @ right
        found[~residuals.any(axis=0)] = 0.0  # as the pseudo-inverse has it, but for rounding
        return found
    if shrinkage == 1:
        return right
    if width <= rows:
        covariance = (1 - shrinkage) / rows * (residuals.T @ residuals)
        covariance[np.diag_indices(width)] += shrinkage
        return scipy.linalg.solve(covariance, right, assume_a="pos")
    # Fewer rows than features: by the Woodbury identity a system of rows x rows is enough.
    gram = residuals @ residuals.T
    gram[np.diag_indices(rows)] += rows * shrinkage / (1 - shrinkage)
    inner = scipy.linalg.solve(gram, residuals @ right, assume_a="pos")
    return (right - residuals.T @ inner) / shrinkage
