"""Logistic regression, run to convergence."""

from __future__ import annotations

import warnings
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from ptmech.probes.base import LinearProbe, centred_columns


class LogisticProbe(LinearProbe):
    """Logistic regression with an L2 penalty, at its optimum.

    The same objective as ``sklearn.linear_model.LogisticRegression(C=C)``, and so comparable with
    published probes, but solved until the gradient is ``tol``. scikit-learn's default stops after
    100 steps, on real activations well short of the optimum, and held-out accuracy then depends on
    the stopping point. The features are centred on the way, which the unpenalised intercept takes
    up exactly.

    Parameters
    ----------
    C
        Inverse strength of the penalty; ``np.inf`` for none, which has an optimum only where the
        classes overlap, so hardly ever with more features than rows.
    tol
        Largest entry of the gradient of the mean loss at which the fit counts as converged, in
        units of the median feature's spread.
    max_iter
        Newton steps at most.
    standardize
        Divide each feature by its standard deviation first and map the result back. The penalty
        then acts on standardised features, which treats an outlier dimension of a residual stream
        like any other. False (default) penalises the raw coordinates, as in the literature.

    Attributes
    ----------
    converged_ : bool
        Whether the gradient reached ``tol``; a ``ConvergenceWarning`` says so where it did not.
    n_iter_ : int
        Newton steps taken.
    direction_ : array of shape [d], float64
        The weights, in raw coordinates.
    weights_, intercept_, classes_, n_features_in_, feature_names_in_
        As in every probe; ``weights_`` equals ``direction_``.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> activations = rng.normal(size=(100, 8))
    >>> probe = LogisticProbe().fit(activations, activations[:, 2] > 0)
    >>> int(np.argmax(probe.direction_)), probe.converged_
    (2, True)
    """

    converged_: bool
    n_iter_: int

    def __init__(
        self,
        C: float = 1.0,
        *,
        tol: float = 1e-6,
        max_iter: int = 1000,
        standardize: bool = False,
    ) -> None:
        self.C = C
        self.tol = tol
        self.max_iter = max_iter
        self.standardize = standardize

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit the weights.

        Parameters
        ----------
        X : array of shape [n, d]
            Activations; computed in float64 whatever their dtype.
        y : array of shape [n]
            Two labels; the greater one (True, 1) is "true".

        Returns
        -------
        LogisticProbe
            Itself.

        Raises
        ------
        DataError
            Empty, non-finite or misshapen data, or not two classes.
        """
        activations, is_true = self._training_data(X, y)
        features, mean, spread = centred_columns(activations)
        varying = spread[spread > 0]
        # One common scale leaves the problem as it is, once C follows, and makes `tol` mean the
        # same at every layer, whatever the size of its activations.
        common = float(np.median(varying)) if varying.size else 1.0
        if self.standardize:
            scale, inverse_penalty = np.where(spread > 0, spread, 1.0), self.C
        else:
            scale, inverse_penalty = np.full_like(spread, common), self.C * common**2
        features /= scale

        model: Any = LogisticRegression(
            C=inverse_penalty, solver="newton-cg", tol=self.tol, max_iter=self.max_iter
        )
        with warnings.catch_warnings():
            # Convergence is judged below, by the gradient itself.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(features, is_true)
        weights, intercept = model.coef_[0], float(model.intercept_[0])
        gradient = _largest_gradient(features, is_true, weights, intercept, inverse_penalty)
        self.n_iter_ = int(np.max(model.n_iter_))
        self.converged_ = gradient <= self.tol
        if not self.converged_:
            warnings.warn(
                f"logistic probe stopped after {self.n_iter_} steps at gradient {gradient:.1e} > "
                f"tol {self.tol:.1e}; raise max_iter, lower C or set standardize=True",
                ConvergenceWarning,
                stacklevel=2,
            )
        self.weights_ = weights / scale
        self.direction_ = self.weights_
        self.intercept_ = intercept - float(mean @ self.weights_)
        return self

    def at(self, weights: NDArray[np.float64], intercept: float, *, n_iter: int) -> Self:
        """Return itself, fitted: with the optimum for labels False and True found elsewhere.

        Parameters
        ----------
        weights
            [d], of the log-odds.
        intercept
            Of the log-odds.
        n_iter
            Steps that it took.

        Returns
        -------
        LogisticProbe
            Itself.
        """
        self.classes_ = np.array([False, True])
        self.n_features_in_ = len(weights)
        self.weights_ = self.direction_ = weights
        self.intercept_ = intercept
        self.n_iter_ = n_iter
        self.converged_ = True
        return self


def _largest_gradient(
    features: NDArray[np.float64],
    is_true: NDArray[np.bool_],
    weights: NDArray[np.float64],
    intercept: float,
    inverse_penalty: float,
) -> float:
    """Return the largest entry of the gradient of the mean loss, penalty included."""
    residual = expit(features @ weights + intercept) - is_true
    gradient = (features.T @ residual + weights / inverse_penalty) / len(features)
    return float(max(np.abs(gradient).max(), abs(residual.mean())))
