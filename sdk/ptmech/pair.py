"""Two stages of an artifact side by side."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ptmech.alignment import (
    Alignment,
    OnMismatch,
    join_rows,
    named_uid,
    places_of,
    require_equal_copies,
    require_same_rows,
)
from ptmech.errors import AlignmentError, AlignmentWarning, DataError, NotStoredError, unknown

if TYPE_CHECKING:
    from ptmech.artifact import Artifact


class Pair:
    """Two stages of an artifact side by side; rows are joined by identity, never by place.

    Made by :meth:`ptmech.Artifact.pair`. With ``on_mismatch="raise"`` both stages must hold the
    rows of the table of statements, each once, in its order. With ``"intersect"`` the rows that
    both stages and the table have are kept, in the order of the table, and an
    :class:`~ptmech.errors.AlignmentWarning` says once a dataset how many were left out. Which rows
    these are is settled by the first files that are read of a dataset; all others must hold them.
    A row that a file holds twice is taken once if both copies are the same, bit for bit, and
    refused if they are not, because nothing says which one is right. Where no row is left, that is
    an :class:`~ptmech.errors.AlignmentError` too.

    Parameters
    ----------
    artifact
        The artifact that holds both.
    earlier, later
        Names of two stages.
    on_mismatch
        ``"raise"`` or ``"intersect"``, as above.

    Raises
    ------
    UnknownNameError
        If a stage does not exist, or ``on_mismatch`` is neither of the two.
    DataError
        If both stages are the same.
    """

    def __init__(
        self, artifact: Artifact, earlier: str, later: str, *, on_mismatch: OnMismatch = "raise"
    ) -> None:
        for stage in (earlier, later):
            if stage not in artifact.stages:
                raise unknown("stage", stage, artifact.stages)
        if earlier == later:
            raise DataError(f"a pair needs two different stages, not {earlier!r} twice")
        if on_mismatch not in get_args(OnMismatch):
            raise unknown("choice of on_mismatch", on_mismatch, get_args(OnMismatch))
        self.artifact = artifact
        self.earlier = earlier
        self.later = later
        self.on_mismatch: OnMismatch = on_mismatch
        self._alignments: dict[str, Alignment] = {}

    @property
    def datasets(self) -> tuple[str, ...]:
        """Datasets that both stages hold."""
        held = {(part.stage, part.dataset) for part in self.artifact.manifest.parts}
        return tuple(
            name
            for name in self.artifact.datasets
            if (self.earlier, name) in held and (self.later, name) in held
        )

    def activations(
        self,
        dataset: str,
        *,
        site: str = "resid_post",
        layer: int,
        position: int = -1,
        dtype: Any = "float32",
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the activations of the earlier and of the later stage, row for row.

        Parameters
        ----------
        dataset
            Name of the dataset.
        site, layer, position
            As :meth:`Artifact.activations` takes them.
        dtype
            Element type of the results: copies. None gives the stored type, where possible without
            a copy.

        Returns
        -------
        tuple of numpy.ndarray
            Two arrays [rows, d_model], rows in the order of :meth:`statements` and
            :meth:`labels`. See :meth:`Artifact.activations`.

        Raises
        ------
        AlignmentError
            If the stages do not hold the same rows, and what both have is not asked for; if a file
            lacks rows that were kept of others; or if copies of one row differ.
        """
        stages = (self.earlier, self.later)
        read = [
            self.artifact.stored_rows(dataset, stage, site=site, layer=layer, position=position)
            for stage in stages
        ]
        (earlier_uids, _), (later_uids, _) = read
        kept = self._align(dataset, earlier_uids, later_uids).row_uids
        earlier, later = (
            _rows(kept, uids, values, f"{dataset} at stage {stage}, {site} layer {layer}")
            for stage, (uids, values) in zip(stages, read, strict=True)
        )
        if dtype is None:
            return earlier, later
        return np.array(earlier, dtype=dtype), np.array(later, dtype=dtype)

    def statements(self, dataset: str) -> pl.DataFrame:
        """Return the prompts of the rows that :meth:`activations` returns, in the same order.

        See :meth:`Artifact.statements`. The column ``row`` still counts places in the dataset.

        Parameters
        ----------
        dataset
            Name of the dataset.

        Returns
        -------
        polars.DataFrame
            One row a prompt.

        Raises
        ------
        AlignmentError
            As :meth:`activations`, if what both stages have is asked for.
        """
        if self.on_mismatch == "raise":  # whatever activations are read must be these very rows
            return self.artifact.statements(dataset)
        kept = self.alignment(dataset).row_uids
        return _once(self.artifact.statements(dataset), dataset).filter(
            pl.col("row_uid").is_in(pl.Series(kept).implode())
        )

    def labels(self, dataset: str) -> NDArray[np.bool_]:
        """Return the labels of the rows that :meth:`activations` returns, in the same order.

        Parameters
        ----------
        dataset
            Name of a statement set.

        Returns
        -------
        numpy.ndarray
            [rows] bool, True for true statements.

        Raises
        ------
        DataError
            If the dataset's rows carry no label.
        AlignmentError
            As :meth:`statements`.
        """
        everything = self.artifact.labels(dataset)
        if self.on_mismatch == "raise":
            return everything
        return self.statements(dataset)["label"].to_numpy() == 1

    def alignment(self, dataset: str) -> Alignment:
        """Report which rows of a dataset are joined, and which are not.

        Parameters
        ----------
        dataset
            Name of the dataset.

        Returns
        -------
        Alignment
            Counts, the rows that are kept, and the first difference; ``print`` shows it in a line.

        Raises
        ------
        AlignmentError
            If the stages do not hold the same rows, and what both have is not asked for.
        NotStoredError
            If a stage was not built for this dataset.
        """
        if dataset not in self._alignments:
            earlier, later = (self._uids(dataset, stage) for stage in (self.earlier, self.later))
            return self._align(dataset, earlier, later)
        return self._alignments[dataset]

    def _uids(self, dataset: str, stage: str) -> NDArray[np.uint64]:
        """Row ids of a part, from the first of its files."""
        part = self.artifact.part(dataset, stage)
        if not part.files or not part.positions:
            raise NotStoredError(f"{dataset!r} at stage {stage!r} holds no activations")
        first = part.files[0]
        uids, _ = self.artifact.stored_rows(
            dataset, stage, site=first.site, layer=first.layer, position=part.positions[0]
        )
        return uids

    def _align(
        self, dataset: str, earlier: NDArray[np.uint64], later: NDArray[np.uint64]
    ) -> Alignment:
        """Join the rows of two files; what was settled before stays."""
        listed = self.artifact.statements(dataset)
        if self.on_mismatch == "intersect":
            if dataset not in self._alignments:
                uids = _once(listed, dataset)["row_uid"].to_numpy()
                self._alignments[dataset] = self._intersect(dataset, earlier, later, uids)
            return self._alignments[dataset]
        uids = listed["row_uid"].to_numpy()
        alignment = join_rows(
            earlier,
            later,
            among=uids,
            names=(self.earlier, self.later),
            what=dataset,
            way_out=f"artifact.pair({self.earlier!r}, {self.later!r}, on_mismatch='intersect')",
            describe=self.artifact.row_name,
        )
        require_same_rows(uids, earlier, f"{dataset} at both stages", self.artifact.row_name)
        self._alignments[dataset] = alignment
        return alignment

    def _intersect(
        self,
        dataset: str,
        earlier: NDArray[np.uint64],
        later: NDArray[np.uint64],
        listed: NDArray[np.uint64],
    ) -> Alignment:
        alignment = join_rows(
            earlier,
            later,
            on_mismatch="intersect",
            among=listed,
            names=(self.earlier, self.later),
            what=dataset,
        )
        if not alignment.row_uids.size:
            raise AlignmentError(
                f"{dataset}: stages {self.earlier!r} and {self.later!r} have no row in common "
                f"that the table of statements has ({_reasons(alignment)}); build both again"
            )
        if alignment.left_out:
            warnings.warn(
                f"{dataset}: {alignment.left_out} of {alignment.total} rows are left out "
                f"({_reasons(alignment)}); kept: {alignment}",
                AlignmentWarning,
                stacklevel=4,
            )
        return alignment

    def __repr__(self) -> str:
        return f"Pair({self.earlier} -> {self.later}) of {self.artifact.id}"


def _rows(
    kept: NDArray[np.uint64], uids: NDArray[np.uint64], values: np.ndarray, what: str
) -> np.ndarray:
    """Return the kept rows of a file; the very array if these are all it has."""
    if np.array_equal(kept, uids):
        return values
    require_equal_copies(uids, values, what)
    return values[places_of(kept, uids, what)]


def _reasons(alignment: Alignment) -> str:
    """Count the rows that are not kept by what they lack."""
    one_sided = alignment.missing_left + alignment.missing_right
    unlisted = alignment.unlisted
    counted = [
        (one_sided, "that not both stages have"),
        (unlisted.size, "not in the table of statements"),
        (alignment.absent, "of the table that neither stage has"),
    ]
    first = f", the first {named_uid(int(unlisted[0]))}" if unlisted.size else ""
    return ", ".join(f"{count} {what}" for count, what in counted if count) + first


def _once(statements: pl.DataFrame, dataset: str) -> pl.DataFrame:
    """Take each row of a table of statements once, if its copies say the same."""
    content = [name for name in statements.columns if name != "row"]
    rows = statements.unique(content, keep="first", maintain_order=True)
    if rows["row_uid"].n_unique() < rows.height:
        raise AlignmentError(
            f"{dataset}: the table of statements has rows of one id that differ; build it again"
        )
    return rows
