"""What the truth analyses ask of a probe, whichever estimator it is."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.utils.validation import has_fit_parameter

from ptmech._statements import Statements
from ptmech.errors import DataError
from ptmech.probes import (
    LinearProbe,
    LogisticProbe,
    MassMeanProbe,
    fit_logistic_line,
    make_probe,
)
from ptmech.probes.base import ROUNDING
from ptmech.probes.class_sums import ClassSums
from ptmech.probes.shared_logistic import Samples, optimum
from ptmech.probes.within_scatter import WithinScatter

_MAX_SHARED = 100
"""Newton steps after which logistic regressions that are fitted together go on one by one."""


class TruthProbe:
    """A kind of probe, to be fitted as often as needed.

    Parameters
    ----------
    probe
        Name of a probe (:data:`ptmech.probes.PROBES`) or an unfitted scikit-learn classifier.

    Attributes
    ----------
    name
        The name, or the estimator's representation.

    Raises
    ------
    UnknownNameError
        If there is no probe of that name.
    DataError
        If it is no estimator, or one that needs more than labels and polarity.
    """

    def __init__(self, probe: str | BaseEstimator) -> None:
        self._template: Any = make_probe(probe) if isinstance(probe, str) else probe
        self.name = probe if isinstance(probe, str) else " ".join(repr(probe).split())
        if not isinstance(self._template, BaseEstimator) or not hasattr(self._template, "fit"):
            raise DataError(f"probe must be a name or an unfitted estimator, not {self.name}")
        if has_fit_parameter(self._template, "negation"):
            raise DataError(
                f"{type(self._template).__name__} learns from pairs of a statement and its "
                "negation; fit it on artifact.activations of both sets instead"
            )

    def fit(
        self,
        activations: NDArray[np.float64],
        labels: NDArray[np.bool_],
        polarity: NDArray[np.int8],
    ) -> Any:
        """Return an estimator fitted on activations [n, d]; polarity goes to those that take it."""
        extra = {"polarity": polarity} if has_fit_parameter(self._template, "polarity") else {}
        unfitted: Any = clone(self._template)
        return unfitted.fit(activations, labels, **extra)

    def fit_samples(
        self, statements: Statements, sums: ClassSums, samples: NDArray[np.bool_]
    ) -> list[Any]:
        """Fit an estimator on each of several samples of the rows.

        Parameters
        ----------
        statements
            All rows.
        sums
            Their activations; datasets are the blocks of its cells.
        samples : array of shape [samples, n], bool
            Rows of each sample. In each, every dataset is centred by its own mean.

        Returns
        -------
        list
            A fitted estimator a sample. Mass-mean probes share what sums they can, logistic ones
            their Newton steps.
        """
        if type(self._template) is MassMeanProbe:
            return self._fit_mass_means(self._template, statements, sums, samples)
        centred = statements.centred_blocks(sums.blocks)
        found: list[Any] = [None] * len(samples)
        if type(self._template) is LogisticProbe:
            found = _logistic_probes(self._template, statements, centred, samples)
        return [
            self._fit_recentred(statements, centred, rows) if probe is None else probe
            for probe, rows in zip(found, samples, strict=True)
        ]

    def read(
        self, fitted: Sequence[Any], stored: NDArray[Any], centre: NDArray[np.float64]
    ) -> tuple[NDArray[Any], NDArray[np.float64]]:
        """Return what estimators make of rows that are centred first.

        Parameters
        ----------
        fitted
            The estimators.
        stored : array of shape [n, d]
            The rows, of any floating-point type.
        centre : array of shape [d]
            What is taken out of them.

        Returns
        -------
        predicted : array of shape [estimators, n]
            The labels that each predicts.
        scores : array of shape [estimators, n], float64
            They grow with its belief that the row is true.
        """
        activations = stored.astype(np.float64)
        if all(isinstance(each, LinearProbe) for each in fitted):
            weights = np.stack([each.weights_ for each in fitted])
            intercepts = np.array([each.intercept_ for each in fitted])
            log_odds = weights @ activations.T + (intercepts - weights @ centre)[:, None]
            return log_odds > 0, log_odds
        centred = activations - centre
        # A column that equals its centre throughout must not come out as the centre's rounding.
        centred[:, np.abs(centred).max(axis=0) <= ROUNDING * np.abs(centre)] = 0.0
        predicted = np.stack([each.predict(centred) for each in fitted])
        return predicted, np.stack([_scores(each, centred) for each in fitted])

    def directions(
        self,
        statements: Statements,
        activations: NDArray[np.float64],
        samples: NDArray[np.bool_],
    ) -> NDArray[np.float64]:
        """Return the direction found in each of several samples of the rows.

        Parameters
        ----------
        statements, activations
            All rows, and their activations [n, d].
        samples : array of shape [samples, n], bool
            Rows of each sample. In each, every dataset is centred by its own mean.

        Returns
        -------
        array of shape [samples, d]

        Raises
        ------
        DataError
            If a sample holds one class only, or the estimator has no direction.
        """
        if type(self._template) is MassMeanProbe and not self._template.whiten:
            return _differences_in_means(statements, activations, samples)
        return np.stack([self._direction(statements, activations, rows) for rows in samples])

    def _fit_recentred(
        self, statements: Statements, centred: NDArray[np.float64], rows: NDArray[np.bool_]
    ) -> Any:
        training = statements.recentred(centred, rows)
        return self.fit(training, statements.labels[rows], statements.polarity[rows])

    def _fit_mass_means(
        self,
        template: MassMeanProbe,
        statements: Statements,
        sums: ClassSums,
        samples: NDArray[np.bool_],
    ) -> list[Any]:
        template.require_shrinkage()
        alone: dict[int, Any] = {}
        directions = sums.differences()
        if template.whiten:
            centred = statements.centred_blocks(sums.blocks)
            whitened = WithinScatter(centred, sums.cells).whitened(template.shrinkage)
            for sample, direction in enumerate(whitened):
                if direction is None:
                    alone[sample] = self._fit_recentred(statements, centred, samples[sample])
                else:
                    directions[sample] = direction
        lines = fit_logistic_line(sums.projections(directions), statements.labels, where=samples)
        shared = MassMeanProbe.along(directions, lines)
        return [alone.get(sample, probe) for sample, probe in enumerate(shared)]

    def _direction(
        self,
        statements: Statements,
        activations: NDArray[np.float64],
        rows: NDArray[np.bool_],
    ) -> NDArray[np.float64]:
        centred, _ = statements.centred(activations, rows)
        fitted = self.fit(centred, statements.labels[rows], statements.polarity[rows])
        direction = getattr(fitted, "direction_", getattr(fitted, "coef_", None))
        if direction is None:
            raise DataError(f"{self.name} has no direction: it is not a linear probe")
        return np.asarray(direction, dtype=np.float64).ravel()


def _scores(fitted: Any, activations: NDArray[np.float64]) -> NDArray[np.float64]:
    if hasattr(fitted, "decision_function"):
        return np.asarray(fitted.decision_function(activations), dtype=np.float64)
    return np.asarray(fitted.predict_proba(activations)[:, 1], dtype=np.float64)


def _differences_in_means(
    statements: Statements, activations: NDArray[np.float64], samples: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return the mass-mean directions of all samples with one matrix product a dataset.

    Centring a dataset and subtracting class means are both linear in the activations, so that a
    sample's direction is a weighted sum of rows. The weights of a dataset add up to zero, so its
    first row can be subtracted beforehand, which leaves a coordinate that does not vary at exactly
    zero and keeps large common offsets out of the sums.
    """
    is_true = statements.labels
    n_true = np.count_nonzero(samples & is_true, axis=1, keepdims=True)
    n_false = np.count_nonzero(samples & ~is_true, axis=1, keepdims=True)
    if not (n_true.all() and n_false.all()):
        raise DataError("a sample of the statements is true or false throughout; add statements")
    weights = samples * np.where(is_true, 1 / n_true, -1 / n_false)
    found = np.zeros((len(samples), activations.shape[1]))
    for index in range(len(statements.datasets)):
        mine = statements.owner == index
        sampled, weight, block = samples[:, mine], weights[:, mine], activations[mine]
        size = np.maximum(sampled.sum(axis=1, keepdims=True), 1)
        weight -= sampled * (weight.sum(axis=1, keepdims=True) / size)
        found += weight @ (block - block[0])
    return found


def _logistic_probes(
    template: LogisticProbe,
    statements: Statements,
    centred: NDArray[np.float64],
    samples: NDArray[np.bool_],
) -> list[LogisticProbe | None]:
    """Return the probe of each sample, or None for one that is to be fitted alone.

    Those are the ones with fewer rows than features, where Hessians cost more than they save; with
    features to be scaled by each sample; and those that have not converged, which that tells.
    """
    none: list[LogisticProbe | None] = [None] * len(samples)
    penalised = isinstance(template.C, Real) and 0 < template.C < np.inf
    if template.standardize or not penalised or samples.sum(axis=1).min() < centred.shape[1]:
        return none
    spread = centred.std(axis=0)
    if not np.isfinite(spread).all() or not spread.any():
        return none
    common = float(np.median(spread[spread > 0]))
    of_dataset = statements.owner[:, None] == np.arange(len(statements.datasets))
    problems = Samples.of(
        centred / common,
        statements.labels,
        samples,
        of_dataset.astype(np.float64),
        template.C * common**2,
    )
    found = optimum(problems, tol=template.tol, max_iter=min(template.max_iter, _MAX_SHARED))
    return [
        LogisticProbe(**template.get_params()).at(
            weights / common, float(intercept), n_iter=found.steps
        )
        if gradient <= template.tol
        else None
        for weights, intercept, gradient in zip(
            found.weights, found.intercepts, found.gradients, strict=True
        )
    ]
