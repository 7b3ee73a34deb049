"""What all probes share: linear log-odds, two classes, and scikit-learn's contract."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_is_fitted, validate_data

from ptmech.errors import DataError

#: Spread below this share of a feature's magnitude is rounding, not signal.
ROUNDING = 1e-12


class LinearProbe(ClassifierMixin, BaseEstimator):
    """Base of the probes: a direction in activation space and log-odds that are linear in it.

    A subclass implements ``fit`` and sets the attributes below.

    Attributes
    ----------
    classes_ : array of shape [2]
        The two labels in sorted order; ``classes_[1]`` is "true".
    direction_ : array of shape [d], float64
        The direction of truth in activation space; points from false towards true.
    weights_ : array of shape [d], float64
        Log-odds of "true" per unit of activation.
    intercept_ : float
        Log-odds of "true" at the origin of activation space.
    n_features_in_ : int
        Width d of the activations.
    feature_names_in_ : array of str
        Column names, where ``fit`` was given a data frame.
    """

    classes_: NDArray[Any]
    direction_: NDArray[np.float64]
    weights_: NDArray[np.float64]
    intercept_: float
    n_features_in_: int

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the log-odds that each row is true.

        Parameters
        ----------
        X : array of shape [n, d]
            Activations.

        Returns
        -------
        array of shape [n], float64
            Positive for "true".
        """
        check_is_fitted(self)
        return self._activations(X) @ self.weights_ + self.intercept_

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the likelier label of each row of activations [n, d]; at even odds "false".

        Parameters
        ----------
        X
            Activations [n, d].

        Returns
        -------
        array of shape [n]
            Labels as ``fit`` was given them.
        """
        likelier = (self.decision_function(X) > 0).astype(np.intp)
        return self.classes_[likelier]

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the probabilities [n, 2] of both labels for activations [n, d].

        Parameters
        ----------
        X
            Activations [n, d].

        Returns
        -------
        array of shape [n, 2], float64
            In the order of ``classes_``.
        """
        log_odds = self.decision_function(X)
        return np.stack([expit(-log_odds), expit(log_odds)], axis=1)

    def _activations(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return activations to predict on as float64, checked against those of ``fit``."""
        return self._validated(X=X, reset=False)

    def _training_data(
        self, X: ArrayLike, y: ArrayLike
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return activations as float64 and labels as bool; set ``classes_``.

        Raises
        ------
        DataError
            Empty or non-finite activations, labels of another length, or not two classes.
        """
        activations, labels = self._validated(X=X, y=y)
        try:
            check_classification_targets(labels)
            kind = type_of_target(labels, input_name="y", raise_unknown=True)
        except ValueError as error:
            raise _data_error(error) from error
        if kind != "binary":
            raise DataError(
                f"Only binary classification is supported. The type of the target is {kind}."
            )
        classes, codes = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            raise DataError(f"a probe needs two labels, and here is one class only: {classes[0]}")
        self.classes_ = classes
        return activations, codes.astype(bool)

    def _validated(self, **data: Any) -> Any:
        """Return what scikit-learn's ``validate_data`` returns, in float64; its errors are ours."""
        validate: Any = validate_data
        try:
            return validate(self, dtype=np.float64, **data)
        except ValueError as error:
            raise _data_error(error) from error


def centred_columns(
    x: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the columns of ``x`` less their means, the means, and the standard deviations.

    A column that does not vary comes out as exact zeros with standard deviation zero, although
    its mean is rounded: otherwise a probe on the embedding layer, where every statement ends in
    the same token, would learn the rounding.
    """
    mean = x.mean(axis=0)
    centred = x - mean
    spread = np.sqrt(np.mean(centred**2, axis=0))
    still = spread <= ROUNDING * np.abs(x).max(axis=0)
    centred[:, still] = 0.0
    spread[still] = 0.0
    return centred, mean, spread


def _data_error(error: ValueError) -> DataError:
    """Return scikit-learn's complaint as ours: in one line, without its dump of the array."""
    text = str(error)
    if text.startswith("The feature names"):
        return DataError(text)  # scikit-learn's contract fixes this wording, one name a line
    first = text.splitlines()[0]
    if first.startswith("Expected 2D array"):
        return DataError(f"{first.rstrip(':')}. Reshape your data to [rows, features].")
    return DataError(first)
