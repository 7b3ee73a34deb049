"""The truth-and-polarity probe."""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_consistent_length, column_or_1d

from ptmech.errors import DataError
from ptmech.probes.base import LinearProbe, centred_columns
from ptmech.probes.logistic import LogisticProbe
from ptmech.probes.threshold import fit_logistic_line

#: Inverse penalty of the final regression: next to none, but finite for separable classes.
_PLANE_C = 1e6


class TTPDProbe(LinearProbe):
    """Training of Truth and Polarity Direction (Bürger et al. 2024, "Truth is Universal").

    Negated statements flip what a naive truth direction measures. This probe keeps two things
    apart: a *general truth direction* that separates true from false whatever the polarity, and a
    *polarity direction* that separates affirmative from negated statements.

    1. With labels ``t`` and polarities ``p`` as -1 and +1, least squares of the activations,
       centred within each polarity, on ``t`` and ``t * p`` gives the general truth direction and
       the polarity-sensitive one.
    2. A logistic regression of ``p`` on the activations gives the polarity direction.
    3. A two-dimensional logistic regression of ``t`` on the projections on the general truth
       direction and the polarity direction decides.

    Parameters
    ----------
    C
        Inverse penalty of the polarity regression. The paper uses none, which has no optimum with
        more features than rows.

    Attributes
    ----------
    direction_ : array of shape [d], float64
        The general truth direction.
    polarity_sensitive_direction_ : array of shape [d], float64, or None
        What truth adds for affirmative statements and takes away for negated ones.
    polarity_direction_ : array of shape [d], float64, or None
        Unit vector from negated towards affirmative statements.
    weights_, intercept_, classes_, n_features_in_, feature_names_in_
        As in every probe; ``weights_`` lies in the plane of direction and polarity direction.

    Notes
    -----
    Without polarities, or with one polarity only, steps 2 and 3 have nothing to work on: the probe
    falls back to one dimension, the direction is that of :class:`~ptmech.probes.MassMeanProbe` and
    so are the predictions, and the other two directions are None.

    Do not centre affirmative and negated statements each by their own mean beforehand: that
    removes the polarity that step 2 looks for. Centre a topic's two datasets together.

    Step 3 runs on standardised projections with a penalty that is next to none (``C = 1e6``), so
    that separable classes have a finite answer.

    Examples
    --------
    >>> import numpy as np
    >>> truth = np.array([1, -1, 1, -1, 1, -1, 1, -1])
    >>> polarity = np.array([1, 1, 1, 1, -1, -1, -1, -1])
    >>> activations = np.stack([truth, truth * polarity, polarity], axis=1).astype(float)
    >>> probe = TTPDProbe().fit(activations, truth > 0, polarity)
    >>> probe.direction_.round(6) + 0.0
    array([1., 0., 0.])
    """

    polarity_sensitive_direction_: NDArray[np.float64] | None
    polarity_direction_: NDArray[np.float64] | None

    def __init__(self, C: float = 1.0) -> None:
        self.C = C

    def fit(self, X: ArrayLike, y: ArrayLike, polarity: ArrayLike | None = None) -> Self:
        """Fit the directions and the decision.

        Parameters
        ----------
        X : array of shape [n, d]
            Activations.
        y : array of shape [n]
            Two labels; the greater one (True, 1) is "true".
        polarity : array of shape [n], optional
            Two labels; the greater one (True, 1) is affirmative.

        Returns
        -------
        TTPDProbe
            Itself.

        Raises
        ------
        DataError
            Empty, non-finite or misshapen data, not two classes, or more than two polarities.
        """
        activations, is_true = self._training_data(X, y)
        truth = np.where(is_true, 1.0, -1.0)
        affirmative = _affirmative(polarity, activations)
        if affirmative is None:
            self.polarity_sensitive_direction_ = None
            self.polarity_direction_ = None
            centred = centred_columns(activations)[0]
            self.direction_ = np.linalg.lstsq(truth[:, None], centred)[0][0]
            line = fit_logistic_line(activations @ self.direction_, is_true)
            self.weights_ = float(line.slope) * self.direction_
            self.intercept_ = float(line.intercept)
            return self

        centred = np.empty_like(activations)
        for group in (affirmative, ~affirmative):
            centred[group] = centred_columns(activations[group])[0]
        signs = np.stack([truth, np.where(affirmative, truth, -truth)], axis=1)
        general, sensitive = np.linalg.lstsq(signs, centred)[0]
        towards = LogisticProbe(self.C).fit(activations, affirmative).direction_
        length = np.linalg.norm(towards)
        unit = towards / length if length > 0 else towards
        plane = np.stack([general, unit])
        decision = LogisticProbe(_PLANE_C, standardize=True).fit(activations @ plane.T, is_true)
        self.direction_ = general
        self.polarity_sensitive_direction_ = sensitive
        self.polarity_direction_ = unit
        self.weights_ = decision.weights_ @ plane
        self.intercept_ = decision.intercept_
        return self


def _affirmative(
    polarity: ArrayLike | None, activations: NDArray[np.float64]
) -> NDArray[np.bool_] | None:
    """Return which rows are affirmative, or None where there is one polarity only."""
    if polarity is None:
        return None
    try:
        labels = column_or_1d(polarity)
        check_consistent_length(activations, labels)
    except ValueError as error:
        raise DataError("polarity must hold one label for each row of X") from error
    kinds, codes = np.unique(labels, return_inverse=True)
    if len(kinds) > 2:
        raise DataError(f"polarity must hold two labels, not {len(kinds)}")
    return codes.astype(bool) if len(kinds) == 2 else None
