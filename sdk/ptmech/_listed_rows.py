"""The rows of an artifact as its table of statements lists them, by dataset and by id."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ptmech._schemas import STATEMENTS, statements_of, tokens_of
from ptmech._stored_rows import require_known
from ptmech._text import shortened
from ptmech.alignment import named_uid, require_same_rows
from ptmech.errors import AlignmentError, FormatError
from ptmech.manifest import Manifest
from ptmech.storage.tables import MAX_ROWS

ReadTable = Callable[[str, int], pl.DataFrame]
"""Reads a table by its path, of at most so many rows."""


class ListedRows:
    """The table of statements, read when it is first asked for and kept.

    Frames can be changed in place, so every caller gets one of their own; the columns are shared.

    Parameters
    ----------
    manifest
        Of the artifact.
    read
        Reads its tables.
    """

    def __init__(self, manifest: Manifest, read: ReadTable) -> None:
        self._manifest = manifest
        self._read = read
        self._datasets: dict[str, pl.DataFrame] = {}
        self._distinct: set[str] = set()

    def statements(self, dataset: str | None) -> pl.DataFrame:
        """Return the rows of a dataset, or all; see :meth:`ptmech.Artifact.statements`."""
        return (self._all if dataset is None else self._of(dataset)).clone()

    def tokens(self, stage: str) -> pl.DataFrame:
        """Return what a stage's tokenizer made of all; see :meth:`ptmech.Artifact.tokens`."""
        require_known("stage", stage, [each.name for each in self._manifest.stages])
        path = f"tables/tokens/{stage}.parquet"
        return tokens_of(self._table(path), path)

    def require(self, dataset: str, uids: NDArray[Any], what: str) -> None:
        """Refuse row ids that are not those of a dataset, each once, in its order.

        That a dataset's own ids are distinct is found out once: it takes longer than reading the
        rows does.

        Raises
        ------
        AlignmentError
            With the counts and the first difference.
        """
        listed = self._of(dataset)["row_uid"].to_numpy()
        if dataset not in self._distinct or not np.array_equal(listed, uids):
            require_same_rows(listed, uids, what, self.name)
            self._distinct.add(dataset)

    def name(self, uid: int) -> str:
        """Name a row in a message: its id, and what the table knows of it."""
        try:
            known = self._all.filter(pl.col("row_uid") == uid)
        except (FormatError, AlignmentError):  # what is wrong with the table is told elsewhere
            return named_uid(uid)
        if known.is_empty():
            return named_uid(uid)
        source_id, text = known.select("source_id", "text").row(0)
        return f"{named_uid(uid)} ({shortened(source_id, 60)!r}, {shortened(text, 60)!r})"

    @cached_property
    def _all(self) -> pl.DataFrame:
        return statements_of(self._table(STATEMENTS), STATEMENTS)

    def _of(self, dataset: str) -> pl.DataFrame:
        if dataset not in self._datasets:
            require_known("dataset", dataset, [each.name for each in self._manifest.datasets])
            self._datasets[dataset] = self._all.filter(pl.col("dataset") == dataset).rechunk()
        return self._datasets[dataset]

    def _table(self, path: str) -> pl.DataFrame:
        """Read a table of all rows. A few too many are told from others by their ids, not here."""
        promised = sum(dataset.rows for dataset in self._manifest.datasets)
        return self._read(path, min(MAX_ROWS, 10_000 + 2 * promised))
