"""Contrast-consistent search: a truth direction without labels."""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.utils import Tags, check_random_state

from ptmech.errors import DataError
from ptmech.probes.base import LinearProbe, centred_columns


class CCSProbe(LinearProbe):
    """Contrast-Consistent Search (Burns et al. 2023, "Discovering Latent Knowledge").

    Looks for a probability p(statement) that agrees with itself: a statement and its negation
    should get p and 1 - p (consistency), and not both one half (confidence). The loss over pairs,

    ``(p(x) + p(not x) - 1)^2 + min(p(x), p(not x))^2 + alpha / 2 |w|^2``,

    is not convex; the best of several seeded starts of L-BFGS is kept.

    Parameters
    ----------
    alpha
        Strength of the L2 penalty on the weights of standardised features. Without it a confident
        answer only ever gains from longer weights; the original relies on weight decay and a
        fixed number of steps instead.
    n_restarts
        Random starts.
    max_iter
        L-BFGS steps at most for each start.
    random_state : int, RandomState instance or None
        Seed of the starts.

    Attributes
    ----------
    direction_ : array of shape [d], float64
        The weights, in raw coordinates; points towards true as far as ``y`` told.
    loss_ : float
        The loss of the start that was kept.
    converged_ : bool
        Whether that start ended before ``max_iter``.
    n_iter_ : int
        Its L-BFGS steps.
    weights_, intercept_, classes_, n_features_in_, feature_names_in_
        As in every probe; ``weights_`` equals ``direction_``.

    Notes
    -----
    Each side of the pairs is centred by its own mean, so that the probe cannot tell them apart by
    the word that negates, and both are scaled by the common standard deviation of each feature.
    A single statement is predicted as a statement: centred by the mean of the training statements.

    The loss does not know which answer is "true". Given ``y``, the sign is the one that agrees
    with it on average; without, ``classes_`` is ``[False, True]``, the largest weight is made
    positive, and which class is true is for the caller to find out.

    ``fit`` needs ``negation``, which scikit-learn's ``check_estimator`` never passes.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> truth = rng.integers(0, 2, 60).astype(bool)
    >>> signal = np.where(truth, 2.0, -2.0)[:, None] * [1.0, 0.0, 0.0]
    >>> statements = rng.normal(size=(60, 3)) * 0.3 + signal
    >>> negations = rng.normal(size=(60, 3)) * 0.3 - signal + 5.0
    >>> probe = CCSProbe().fit(statements, truth, negation=negations)
    >>> float(probe.score(statements, truth))
    1.0
    """

    loss_: float
    converged_: bool
    n_iter_: int

    def __init__(
        self,
        *,
        alpha: float = 0.01,
        n_restarts: int = 10,
        max_iter: int = 500,
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.alpha = alpha
        self.n_restarts = n_restarts
        self.max_iter = max_iter
        self.random_state = random_state

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = False
        return tags

    def fit(
        self, X: ArrayLike, y: ArrayLike | None = None, negation: ArrayLike | None = None
    ) -> Self:
        """Fit the direction on contrast pairs.

        Parameters
        ----------
        X : array of shape [n, d]
            Activations of the statements.
        y : array of shape [n], optional
            Two labels of the statements; used for the sign only.
        negation : array of shape [n, d]
            Activations of the negations, row by row.

        Returns
        -------
        CCSProbe
            Itself.

        Raises
        ------
        DataError
            No negations, or not one for each statement; empty, non-finite or misshapen data; or
            labels of one class only.
        """
        statements, is_true = self._statements(X, y)
        negations = self._negations(negation, statements.shape)
        if self.n_restarts < 1:
            raise DataError(f"n_restarts must be at least 1, not {self.n_restarts}")
        pairs, mean, scale = _standardised_pairs(statements, negations)

        rng = check_random_state(self.random_state)
        width = statements.shape[1]
        best = min(
            (
                minimize(
                    _loss_and_gradient,
                    np.append(rng.normal(size=width) / np.sqrt(width), 0.0),
                    args=(*pairs, self.alpha),
                    jac=True,
                    method="L-BFGS-B",
                    options={"maxiter": self.max_iter},
                )
                for _ in range(self.n_restarts)
            ),
            key=lambda result: float(result.fun),
        )
        weights, offset = best.x[:-1], float(best.x[-1])
        if _points_to_false(weights, pairs, is_true):
            weights, offset = -weights, -offset
        self.loss_ = float(best.fun)
        self.converged_ = bool(best.success)
        self.n_iter_ = int(best.nit)
        self.weights_ = weights / scale
        self.direction_ = self.weights_
        self.intercept_ = offset - float(mean @ self.weights_)
        return self

    def _statements(
        self, X: ArrayLike, y: ArrayLike | None
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_] | None]:
        """Return the statements' activations and, where there are any, their labels."""
        if y is not None:
            return self._training_data(X, y)
        self.classes_ = np.array([False, True])
        return self._validated(X=X), None

    def _negations(self, negation: ArrayLike | None, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Return the negations' activations, one for each statement."""
        if negation is None:
            raise DataError("CCS learns from contrast pairs: pass negation=, one row a statement")
        negations = self._activations(negation)
        if negations.shape != shape:
            raise DataError(
                f"negation must hold one row for each statement: {negations.shape} is not {shape}"
            )
        return negations


_Pairs = tuple[NDArray[np.float64], NDArray[np.float64]]


def _standardised_pairs(
    statements: NDArray[np.float64], negations: NDArray[np.float64]
) -> tuple[_Pairs, NDArray[np.float64], NDArray[np.float64]]:
    """Return both sides centred and scaled, the statements' mean and the common scale."""
    plus, mean, spread_plus = centred_columns(statements)
    minus, _, spread_minus = centred_columns(negations)
    spread = np.sqrt((spread_plus**2 + spread_minus**2) / 2)
    scale = np.where(spread > 0, spread, 1.0)
    return (plus / scale, minus / scale), mean, scale


def _loss_and_gradient(
    parameters: NDArray[np.float64],
    plus: NDArray[np.float64],
    minus: NDArray[np.float64],
    alpha: float,
) -> tuple[float, NDArray[np.float64]]:
    """Return the CCS loss and its gradient in the weights and, last, the offset."""
    weights, offset = parameters[:-1], parameters[-1]
    p_plus = expit(plus @ weights + offset)
    p_minus = expit(minus @ weights + offset)
    inconsistency = p_plus + p_minus - 1
    doubt = np.minimum(p_plus, p_minus)
    loss = np.mean(inconsistency**2 + doubt**2) + alpha / 2 * weights @ weights

    is_plus = p_plus < p_minus
    rows = len(plus)
    slope_plus = 2 * (inconsistency + doubt * is_plus) * p_plus * (1 - p_plus) / rows
    slope_minus = 2 * (inconsistency + doubt * ~is_plus) * p_minus * (1 - p_minus) / rows
    gradient = np.append(
        plus.T @ slope_plus + minus.T @ slope_minus + alpha * weights,
        np.sum(slope_plus) + np.sum(slope_minus),
    )
    return float(loss), gradient


def _points_to_false(
    weights: NDArray[np.float64], pairs: _Pairs, is_true: NDArray[np.bool_] | None
) -> bool:
    """Return whether the sign is the wrong way round."""
    if is_true is None:
        return bool(weights[np.argmax(np.abs(weights))] < 0)
    plus, minus = pairs
    agreement = (plus - minus) @ weights
    return bool(agreement[is_true].mean() < agreement[~is_true].mean())
