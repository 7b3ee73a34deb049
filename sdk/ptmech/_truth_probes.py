"""What the truth analyses ask of a probe, whichever estimator it is."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.utils.validation import has_fit_parameter

from ptmech._statements import Statements
from ptmech.errors import DataError
from ptmech.probes import LinearProbe, MassMeanProbe, fit_logistic_line, make_probe
from ptmech.probes.class_sums import Cells, ClassSums


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
        self,
        statements: Statements,
        centred: NDArray[np.float64],
        samples: NDArray[np.bool_],
        cells: Cells,
    ) -> list[Any]:
        """Fit an estimator on each of several samples of the rows.

        Parameters
        ----------
        statements
            All rows.
        centred : array of shape [n, d]
            Their activations, as :meth:`Statements.centred_datasets` centres them.
        samples : array of shape [samples, n], bool
            Rows of each sample. In each, every dataset is centred by its own mean.
        cells
            The rows in cells, by dataset, label and samples.

        Returns
        -------
        list
            A fitted estimator a sample. Mass-mean probes share what sums they can.
        """
        if type(self._template) is MassMeanProbe:
            return self._fit_mass_means(self._template, statements, centred, samples, cells)
        return [self._fit_recentred(statements, centred, rows) for rows in samples]

    def read(
        self, fitted: Any, activations: NDArray[np.float64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """Return what an estimator predicts [n], and a score [n] that grows with it being true."""
        if isinstance(fitted, LinearProbe):
            log_odds = fitted.decision_function(activations)
            return log_odds > 0, log_odds
        predicted = np.asarray(fitted.predict(activations))
        if hasattr(fitted, "decision_function"):
            return predicted, np.asarray(fitted.decision_function(activations), dtype=np.float64)
        likely = fitted.predict_proba(activations)[:, 1]
        return predicted, np.asarray(likely, dtype=np.float64)

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
        centred: NDArray[np.float64],
        samples: NDArray[np.bool_],
        cells: Cells,
    ) -> list[Any]:
        template.require_shrinkage()
        sums = ClassSums(centred, cells)
        directions = sums.differences
        alone: dict[int, Any] = {}
        if template.whiten:
            for sample, direction in enumerate(sums.whitened(template.shrinkage)):
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
