"""True and false statements of several datasets as one table, and their activations centred."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ptmech.artifact import Artifact
from ptmech.errors import DataError
from ptmech.probes.base import centred_columns


@dataclass(frozen=True, eq=False)
class Statements:
    """Rows of several statement sets, stacked.

    Attributes
    ----------
    datasets
        Names of the sets, in the order they are stacked.
    owner : array of shape [n], int
        Index into ``datasets`` of each row.
    labels : array of shape [n], bool
        Whether the statement is true.
    polarity : array of shape [n], int
        1 for affirmative statements, -1 for negated ones.
    groups : array of shape [n], str
        Rows that state or deny the same fact share a group.
    """

    datasets: tuple[str, ...]
    owner: NDArray[np.intp]
    labels: NDArray[np.bool_]
    polarity: NDArray[np.int8]
    groups: NDArray[np.str_]

    @classmethod
    def of(cls, artifact: Artifact, datasets: Sequence[str] | None) -> Self:
        """Collect the statements of some datasets.

        Parameters
        ----------
        artifact
            Where they are.
        datasets
            Names. None takes those the artifact's card chose for truth, or else all labelled
            datasets without negated statements.

        Raises
        ------
        UnknownNameError
            If there is no dataset of a name.
        DataError
            If a dataset is named twice, empty, without labels or of one class only, or if there
            is none at all.
        """
        return cls.stack({name: artifact.statements(name) for name in _names(artifact, datasets)})

    @classmethod
    def to_leave_one_out(cls, artifact: Artifact, datasets: Sequence[str] | None) -> Self:
        """Collect statements as :meth:`of`, of which one dataset can be left out.

        Raises
        ------
        UnknownNameError
            If there is no dataset of a name.
        DataError
            As :meth:`of`, or if there are fewer than two.
        """
        found = cls.of(artifact, datasets)
        if len(found.datasets) < 2:
            raise DataError(
                "leaving one dataset out needs at least two datasets, "
                f"not {', '.join(found.datasets)} alone"
            )
        return found

    @classmethod
    def stack(cls, tables: Mapping[str, pl.DataFrame]) -> Self:
        """Stack the rows of datasets.

        Parameters
        ----------
        tables
            The rows of each dataset by its name, as :meth:`Artifact.statements` has them.

        Raises
        ------
        DataError
            If a dataset is empty, without labels or of one class only.
        """
        labelled = [_labelled(name, rows) for name, rows in tables.items()]
        table = pl.concat(labelled)
        return cls(
            datasets=tuple(tables),
            owner=np.repeat(np.arange(len(labelled)), [rows.height for rows in labelled]),
            labels=table["label"].to_numpy() == 1,
            polarity=table["polarity"].fill_null(1).to_numpy(),
            groups=table["group"].to_numpy().astype(np.str_),
        )

    def stored(
        self, artifact: Artifact, stage: str, *, site: str, layer: int, position: int
    ) -> list[NDArray[Any]]:
        """Return each dataset's activations [rows, d_model], mapped as they are stored."""
        artifact.prefetch(self.datasets, stage, site, layer, extras=False)
        return [
            artifact.activations(name, stage, site=site, layer=layer, position=position, dtype=None)
            for name in self.datasets
        ]

    def activations(
        self, artifact: Artifact, stage: str, *, site: str, layer: int, position: int
    ) -> NDArray[np.float64]:
        """Return the activations [n, d_model] of all rows, float64, as they are stored."""
        stored = self.stored(artifact, stage, site=site, layer=layer, position=position)
        return np.concatenate(stored, dtype=np.float64)

    def centred_blocks(self, blocks: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
        """Return activations [n, d_model] of all rows, each dataset's less their mean.

        Parameters
        ----------
        blocks
            What :meth:`stored` returns.

        Returns
        -------
        array of shape [n, d_model], float64
            A column that does not vary within its dataset is exactly zero.
        """
        return np.concatenate([centred_columns(block.astype(np.float64))[0] for block in blocks])

    def centred(
        self, activations: NDArray[np.float64], rows: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Take out of the chosen rows the mean of their dataset.

        Parameters
        ----------
        activations : array of shape [n, d_model]
            Activations of all rows.
        rows : array of shape [n], bool
            The chosen rows. A dataset's mean is the mean of its chosen rows.

        Returns
        -------
        centred : array of shape [chosen rows, d_model]
            A column that does not vary within its dataset is exactly zero.
        means : array of shape [datasets with chosen rows, d_model]
            What was taken out.
        """
        chosen, owner = activations[rows], self.owner[rows]
        means: list[NDArray[np.float64]] = []
        for index in np.unique(owner):
            mine = owner == index
            chosen[mine], mean, _ = centred_columns(chosen[mine])
            means.append(mean)
        return chosen, np.stack(means)

    def recentred(
        self, centred: NDArray[np.float64], rows: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """Return the chosen rows, each centred by the mean of its dataset's chosen rows.

        Parameters
        ----------
        centred : array of shape [n, d_model]
            All rows, as :meth:`centred_blocks` centres them. Datasets that are chosen whole come
            back bit for bit.
        rows : array of shape [n], bool
            The chosen rows.

        Returns
        -------
        array of shape [chosen rows, d_model]
        """
        chosen, owner = centred[rows], self.owner[rows]
        for index in np.intersect1d(owner, self.owner[~rows]):
            mine = owner == index
            chosen[mine] = centred_columns(chosen[mine])[0]
        return chosen

    def means(
        self, activations: NDArray[np.float64], rows: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """Return the means [datasets with chosen rows, d_model] of the chosen rows [n]."""
        owners = np.unique(self.owner[rows])
        return np.stack([activations[rows & (self.owner == each)].mean(axis=0) for each in owners])

    def halves(self, rng: np.random.Generator) -> NDArray[np.bool_]:
        """Deal the groups into two halves at random, evenly by dataset and label.

        Returns
        -------
        array of shape [n], bool
            Whether each row is in the first half. Rows of one group are in the same half.
        """
        names, first, member = np.unique(self.groups, return_index=True, return_inverse=True)
        share_true = np.bincount(member, weights=self.labels) / np.bincount(member)
        order = np.lexsort((rng.random(len(names)), share_true, self.owner[first]))
        in_first = np.empty(len(names), dtype=np.bool_)
        in_first[order] = (np.arange(len(names)) + rng.integers(2)) % 2 == 0
        return in_first[member]


def _names(artifact: Artifact, datasets: Sequence[str] | None) -> tuple[str, ...]:
    if isinstance(datasets, str):
        datasets = (datasets,)
    chosen = artifact.manifest.defaults.truth_datasets if datasets is None else tuple(datasets)
    if datasets is None and not chosen:
        affirmative = (
            artifact.statements()
            .group_by("dataset", maintain_order=True)
            .agg(
                usable=pl.col("label").is_not_null().all()
                & (pl.col("polarity").fill_null(1) == 1).all()
            )
            .filter("usable")["dataset"]
        )
        chosen = tuple(name for name in artifact.datasets if name in set(affirmative))
    if not chosen:
        raise DataError(f"no datasets to read truth from; {artifact.id} may hold no statements")
    doubled = next((name for name in chosen if chosen.count(name) > 1), None)
    if doubled is not None:
        raise DataError(f"dataset {doubled!r} is named twice")
    return chosen


def require_both_labels(dataset: str, rows: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of a dataset if they are true and false statements.

    Raises
    ------
    DataError
        If they are none, without labels or of one class only.
    """
    if rows.is_empty():
        raise DataError(f"dataset {dataset!r} is empty")
    if rows["label"].null_count():
        raise DataError(
            f"dataset {dataset!r} has no labels: its rows are not true or false statements"
        )
    if rows["label"].n_unique() < 2:
        kind = "true" if rows["label"][0] == 1 else "false"
        raise DataError(f"dataset {dataset!r} holds {kind} statements only; a probe needs both")
    return rows


def _labelled(dataset: str, rows: pl.DataFrame) -> pl.DataFrame:
    # A row without a group is a group of its own.
    alone = pl.format("{}/{}", "dataset", "source_id")
    return require_both_labels(dataset, rows).select(
        "label", "polarity", group=pl.coalesce("group", alone)
    )
