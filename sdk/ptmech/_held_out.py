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
from ptmech.probes.cells import Cells
from ptmech.probes.class_sums import ClassSums

Centering = Literal["train", "each"]
"""What the held-out dataset is centred by, see :func:`ptmech.truth.transfer`."""

PROBES = ("own_earlier", "own_later", "transferred", "difference")
"""What is compared; ``difference`` is transferred minus own_later."""

MEAN = "mean"
"""Name of the rows over all datasets."""

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


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Each dataset of some statements left out once, and how its rows are resampled.

    It depends on the statements alone and serves all layers and stages.

    Attributes
    ----------
    statements
        All rows.
    folds
        One for each dataset, in their order.
    cells
        The rows by dataset, label and the folds that train on them.
    weights
        For each fold, how often each test row counts [1 + n_bootstrap, test rows]: once in the test
        set itself, then in each replicate as often as its group was drawn.
    """

    statements: Statements
    folds: tuple[Fold, ...]
    cells: Cells
    weights: tuple[NDArray[np.float64], ...]

    @classmethod
    def of(cls, statements: Statements, *, n_bootstrap: int, seed: int) -> Self:
        """Leave out each dataset once.

        Parameters
        ----------
        statements
            Rows of two or more datasets.
        n_bootstrap, seed
            See :func:`ptmech.truth.transfer`.

        Raises
        ------
        DataError
            If that leaves nothing to train on.
        """
        folds = [Fold.leaving_out(statements, each) for each in range(len(statements.datasets))]
        weights: list[NDArray[np.float64]] = []
        for fold in folds:
            drawn = _bootstrap.group_weights(statements.groups[fold.test], n_bootstrap, seed)
            once = np.ones((1, drawn.shape[1]))
            # Column by column in memory: that is how measures pick and sum them.
            weights.append(np.asfortranarray(np.concatenate([once, drawn])))
        samples = np.stack([fold.train for fold in folds])
        cells = Cells.of(statements.owner, statements.labels, samples)
        return cls(statements, tuple(folds), cells, tuple(weights))

    def measure(
        self,
        stored: tuple[Sequence[NDArray[Any]], Sequence[NDArray[Any]]],
        probe: TruthProbe,
        centering: Centering,
    ) -> list[Replicates]:
        """Train a probe on each stage, fold by fold, and measure what both read from the rest.

        Parameters
        ----------
        stored
            Activations of the earlier and of the later stage, each by dataset, as
            :meth:`Statements.stored` returns them.
        probe
            What to train.
        centering
            See :func:`ptmech.truth.transfer`.

        Returns
        -------
        list
            The values of each fold.
        """
        earlier, later = (self._train(stage, probe, centering) for stage in stored)
        return [
            self._compare(fold, weights, probe, of_earlier, of_later)
            for fold, weights, of_earlier, of_later in zip(
                self.folds, self.weights, earlier, later, strict=True
            )
        ]

    def _train(
        self, stored: Sequence[NDArray[Any]], probe: TruthProbe, centering: Centering
    ) -> list[_Trained]:
        """Return for each fold one stage's fitted probe, its held-out rows and their centre."""
        sums = ClassSums(stored, self.cells)
        samples = np.stack([fold.train for fold in self.folds])
        fitted = probe.fit_samples(self.statements, sums, samples)
        return list(zip(fitted, stored, self._centres(sums, centering), strict=True))

    def _centres(self, sums: ClassSums, centering: Centering) -> list[NDArray[np.float64]]:
        """Return what the dataset that each fold holds out is centred by."""
        if centering == "each":
            # No fold trains on what it holds out: the mean there is that of all rows.
            return [means[index] for index, means in enumerate(sums.block_means)]
        return [
            means[np.unique(self.statements.owner[fold.train])].mean(axis=0)
            for fold, means in zip(self.folds, sums.block_means, strict=True)
        ]

    def _compare(
        self,
        fold: Fold,
        weights: NDArray[np.float64],
        probe: TruthProbe,
        earlier: _Trained,
        later: _Trained,
    ) -> Replicates:
        """Return the measures of the probes of both stages on one dataset held out."""
        truth = self.statements.labels[fold.test]
        (of_earlier, *in_earlier), (of_later, *in_later) = earlier, later
        readings = [
            probe.read([of_earlier], *in_earlier),
            probe.read([of_later, of_earlier], *in_later),
        ]
        predicted, scores = (np.concatenate(each) for each in zip(*readings, strict=True))
        found = {
            "accuracy": _bootstrap.accuracy(predicted == truth, weights),
            "auroc": _bootstrap.auroc(scores, truth, weights),
        }
        values: dict[tuple[str, str], NDArray[np.float64]] = {
            (name, measure): found[measure][index]
            for index, name in enumerate(("own_earlier", "own_later", "transferred"))
            for measure in MEASURES
        }
        for measure in MEASURES:
            own, transferred = values["own_later", measure], values["transferred", measure]
            values["difference", measure] = transferred - own
        return values

    def table(self, replicates: Sequence[Replicates]) -> list[dict[str, Any]]:
        """Return the rows of a result: each dataset held out, then the mean over them.

        Parameters
        ----------
        replicates
            What :meth:`measure` returned.
        """
        sizes = [(int(fold.test.sum()), int(fold.train.sum())) for fold in self.folds]
        names = [*self.statements.datasets, MEAN]
        found = iter(_estimates([*replicates, average(replicates)]))
        return [
            {"dataset": name, "probe": probe, **next(found), "n_test": n_test, "n_train": n_train}
            for name, (n_test, n_train) in zip(
                names, [*sizes, (len(self.statements.labels), None)], strict=True
            )
            for probe in PROBES
        ]


_Trained = tuple[Any, NDArray[Any], NDArray[np.float64]]
"""A fitted estimator, and the rows that its stage has of the dataset held out and their centre."""


def average(replicates: Sequence[Replicates]) -> Replicates:
    """Return the mean over held-out datasets, replicate by replicate."""
    return {key: np.mean([each[key] for each in replicates], axis=0) for key in replicates[0]}


def _estimates(replicates: Sequence[Replicates]) -> list[dict[str, float]]:
    """Return the measures of each of :data:`PROBES`, in each of several sets of replicates."""
    values = np.array(
        [each[probe, measure] for each in replicates for probe in PROBES for measure in MEASURES]
    )
    columns = [f"{measure}{end}" for measure in MEASURES for end in ("", "_low", "_high")]
    bounded = np.column_stack([values[:, 0], _bootstrap.intervals(values[:, 1:])])
    return [
        dict(zip(columns, row, strict=True)) for row in bounded.reshape(-1, len(columns)).tolist()
    ]
