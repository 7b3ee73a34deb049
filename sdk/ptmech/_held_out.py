"""Leaving one dataset out: what probes of two stages read from statements they never saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from ptmech import _bootstrap
from ptmech._statements import Statements
from ptmech._truth_probes import TruthProbe
from ptmech.errors import DataError

Centering = Literal["train", "each"]
"""What the held-out dataset is centred by, see :func:`ptmech.truth.transfer`."""

PROBES = ("own_earlier", "own_later", "transferred", "difference")
"""What is compared; ``difference`` is transferred minus own_later."""

MEASURES = ("accuracy", "auroc")

Replicates = Mapping[tuple[str, str], NDArray[np.float64]]
"""(probe, measure) to values [1 + n_bootstrap]: on the test set itself, then in each replicate."""


@dataclass(frozen=True, eq=False)
class Fold:
    """Rows to train on and rows to test on, as masks [n]."""

    train: NDArray[np.bool_]
    test: NDArray[np.bool_]

    @classmethod
    def leaving_out(cls, statements: Statements, held_out: int) -> Self:
        """Test on one dataset, train on the others' rows about other facts.

        Raises
        ------
        DataError
            If those rows are none, or of one class only.
        """
        test = statements.owner == held_out
        train = ~np.isin(statements.groups, statements.groups[test])
        if len(np.unique(statements.labels[train])) < 2:
            raise DataError(
                f"nothing is left to train on when {statements.datasets[held_out]!r} is held out: "
                "the other datasets are about the same facts; add one that is not"
            )
        return cls(train, test)

    def measure(
        self,
        statements: Statements,
        activations: Sequence[NDArray[np.float64]],
        probe: TruthProbe,
        *,
        centering: Centering,
        n_bootstrap: int,
        seed: int,
    ) -> Replicates:
        """Train a probe on each stage and measure what both read from the held-out dataset.

        Parameters
        ----------
        statements
            All rows.
        activations
            Of the earlier and of the later stage, [n, d_model] each.
        probe
            What to train.
        centering, n_bootstrap, seed
            See :func:`ptmech.truth.transfer`.
        """
        truth = statements.labels[self.test]
        (of_earlier, in_earlier), (of_later, in_later) = (
            self._train(statements, stage, probe, centering) for stage in activations
        )
        readings = {
            "own_earlier": (of_earlier, in_earlier),
            "own_later": (of_later, in_later),
            "transferred": (of_earlier, in_later),
        }
        drawn = _bootstrap.group_weights(statements.groups[self.test], n_bootstrap, seed)
        weights = np.concatenate([np.ones((1, len(truth))), drawn])
        values: dict[tuple[str, str], NDArray[np.float64]] = {}
        for name, (fitted, features) in readings.items():
            correct = fitted.predict(features) == truth
            values[name, "accuracy"] = _bootstrap.accuracy(correct, weights)
            values[name, "auroc"] = _bootstrap.auroc(probe.scores(fitted, features), truth, weights)
        for measure in MEASURES:
            own, transferred = values["own_later", measure], values["transferred", measure]
            values["difference", measure] = transferred - own
        return values

    def _train(
        self,
        statements: Statements,
        activations: NDArray[np.float64],
        probe: TruthProbe,
        centering: Centering,
    ) -> tuple[Any, NDArray[np.float64]]:
        """Return one stage's fitted probe, and the stage's held-out rows, centred."""
        training, means = statements.centred(activations, self.train)
        fitted = probe.fit(training, statements.labels[self.train], statements.polarity[self.train])
        if centering == "each":
            return fitted, statements.centred(activations, self.test)[0]
        return fitted, activations[self.test] - means.mean(axis=0)


def average(replicates: Sequence[Replicates]) -> Replicates:
    """Return the mean over held-out datasets, replicate by replicate."""
    return {key: np.mean([each[key] for each in replicates], axis=0) for key in replicates[0]}


def table_rows(replicates: Replicates) -> list[dict[str, Any]]:
    """Return for each of :data:`PROBES` its measures, each with its bootstrap interval."""
    rows: list[dict[str, Any]] = []
    for probe in PROBES:
        row: dict[str, Any] = {"probe": probe}
        for measure in MEASURES:
            estimate, *_ = values = replicates[probe, measure]
            low, high = _bootstrap.interval(values[1:])
            row |= {measure: float(estimate), f"{measure}_low": low, f"{measure}_high": high}
        rows.append(row)
    return rows
