"""The artifact: what :func:`ptmech.load` returns. Lazy, read-only, printable."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ptmech._arguments import layer_span
from ptmech._json import MAX_JSON_BYTES
from ptmech._listed_rows import ListedRows
from ptmech._selection import Names, chosen_parts, chosen_places
from ptmech._stored_rows import StoredRows
from ptmech.alignment import OnMismatch
from ptmech.errors import DataError, FormatError, NotStoredError
from ptmech.manifest import MANIFEST, SITES, Extra, FileEntry, Manifest, Part
from ptmech.pair import Pair
from ptmech.storage import Source, VerifiedFiles, read_table, read_tensors
from ptmech.storage.tables import MAX_ROWS
from ptmech.storage.tensors import ADAPTERS, OURS
from ptmech.storage.verified import MAX_READ_BYTES


class Artifact:
    """Activations, weight statistics, traces and scores of the stages of one model family.

    Made by :func:`ptmech.load`. Arrays and frames it returns hold the rows of a dataset in one
    fixed order, the same for every stage; each activation file carries the ids of its rows and is
    refused if they are not the dataset's.

    Attributes
    ----------
    manifest : Manifest
        Everything known about the artifact but its numbers.
    id : str
        ``owner/name@`` and the commit for a dataset on the Hub; else ``name@`` and the first twelve
        digits of the sha256 of ``manifest.json``.
    revision : str or None
        The commit, for a dataset on the Hub.
    location : str
        Folder, dataset or address it was opened at.

    Parameters
    ----------
    source
        Where its files come from; :func:`ptmech.load` makes it of what a user may write.
    """

    def __init__(self, source: Source) -> None:
        with source.fetch(MANIFEST).open("rb") as stream:
            raw = stream.read(MAX_JSON_BYTES + 1)  # one more than allowed: the parser then refuses
        self.manifest: Manifest = Manifest.parse(raw, f"{source.name}/{MANIFEST}")
        self.revision: str | None = source.revision
        self.id: str = (
            f"{self.manifest.name}@{hashlib.sha256(raw).hexdigest()[:12]}"
            if self.revision is None
            else source.name
        )
        self.location: str = source.name
        self._files = VerifiedFiles(source)
        self._rows = StoredRows(self.manifest, self._files, self.id)
        self._listed = ListedRows(self.manifest, self._table)

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages, earliest first."""
        return tuple(stage.name for stage in self.manifest.stages)

    @property
    def datasets(self) -> tuple[str, ...]:
        """Names of the datasets."""
        return tuple(dataset.name for dataset in self.manifest.datasets)

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the stored sites, in the order in which a block computes them."""
        return tuple(site for site in SITES if site in self.manifest.sites)

    def layers(self, site: str = "resid_post") -> tuple[int, ...]:
        """Return the layers at which a site can be read, in order.

        ``resid_pre`` of layer l > 0 is ``resid_post`` of layer l - 1 and is read from there.

        Parameters
        ----------
        site
            Name of a site.

        Returns
        -------
        tuple of int
            Decoder blocks, counted from 0.
        """
        return self._rows.layers(site)

    def statements(self, dataset: str | None = None) -> pl.DataFrame:
        """Return the prompts, one row each, statements and instructions alike.

        Parameters
        ----------
        dataset
            Name of a dataset; all of them if None.

        Returns
        -------
        polars.DataFrame
            ``row_uid`` (UInt64), ``dataset``, ``row`` (place within the dataset), ``source_id``,
            ``text``, ``label`` (1 true, 0 false, null for instructions), ``polarity`` (1 or -1),
            ``pair`` and ``group`` (rows that state or deny the same fact share a group),
            ``split``, ``subject``, ``object``, ``topic``.
        """
        return self._listed.statements(dataset)

    def tokens(self, stage: str) -> pl.DataFrame:
        """Return what a stage's tokenizer made of every row.

        Parameters
        ----------
        stage
            Name of the stage.

        Returns
        -------
        polars.DataFrame
            ``row_uid``, ``dataset``, ``token_ids``, ``tokens``, ``positions`` (indices of the
            stored positions), ``rendered_sha256``.
        """
        return self._listed.tokens(stage)

    def labels(self, dataset: str) -> np.ndarray:
        """Return the labels of a statement set.

        Parameters
        ----------
        dataset
            Name of a statement set.

        Returns
        -------
        numpy.ndarray
            [rows] bool, True for true statements, in the row order of :meth:`activations`.

        Raises
        ------
        DataError
            If the dataset's rows carry no label.
        """
        column = self.statements(dataset)["label"]
        if column.null_count():
            raise DataError(
                f"dataset {dataset!r} has no labels: its rows are not true or false statements"
            )
        return column.to_numpy() == 1

    def activations(
        self,
        dataset: str,
        stage: str,
        site: str = "resid_post",
        layer: int | None = None,
        position: int = -1,
        dtype: Any = "float32",
    ) -> np.ndarray:
        """Return the activations of one site, layer and position.

        Parameters
        ----------
        dataset, stage
            Names.
        site
            ``resid_pre``, ``resid_post`` or ``mlp_out``, as far as stored.
        layer
            Decoder block, counted from 0. It has to be given.
        position
            Token position counted back from the end of the prompt: -1 is the last token.
        dtype
            Element type of the result: a copy, which is the caller's own. None gives the stored
            type, mapped read-only from the file without a copy (if the part is one block of rows).
            A mapped file may be deleted or replaced; overwritten in place, it changes the array.

        Returns
        -------
        numpy.ndarray
            [rows, d_model], rows in the order of :meth:`statements`.

        Raises
        ------
        UnknownNameError
            If stage, dataset, site, layer or position do not exist.
        NotStoredError
            If they exist but were not built.
        IntegrityError
            If a file is missing or damaged.
        FormatError
            If a file does not hold what its part promises, or values that are not finite.
        AlignmentError
            If the file's rows are not the dataset's, or the dataset's not what their ids say.
        DataError
            If no layer is given.
        """
        if layer is None:
            raise DataError(
                f"activations of which layer? {site} has {layer_span(self.layers(site))}"
            )
        uids, values = self._rows.read(
            dataset, stage, site=site, layer=layer, position=position, dtype=dtype
        )
        self._listed.require(dataset, uids, f"{dataset} at stage {stage}, {site} layer {layer}")
        return values

    def prefetch(
        self,
        datasets: Names = None,
        stages: Names = None,
        sites: Names = None,
        layers: int | Iterable[int] | None = None,
        *,
        extras: bool = True,
        progress: bool = True,
    ) -> None:
        """Download what will be read, several files at a time; free for a folder.

        Analyses do this themselves for what they read. Call it to have an artifact, or a part of
        it, on this machine before going offline.

        Parameters
        ----------
        datasets, stages, sites
            A name or several; everything that was built if None.
        layers
            Decoder blocks, counted from 0, as :meth:`activations` takes them: ``resid_pre`` above
            layer 0 is ``resid_post`` of the layer below. All if None.
        extras
            Whether to bring all that is not activations too: tables, statistics, traces, scores,
            adapters.
        progress
            Whether to show a bar on a terminal while something is being downloaded.

        Raises
        ------
        UnknownNameError
            If stage, dataset, site or layer do not exist.
        NotStoredError
            If they exist but were not built.
        IntegrityError
            If a file is missing or damaged where it comes from.
        AccessError, UnreachableError
            If it cannot be had.
        """
        parts = chosen_parts(self, datasets, stages)
        places = chosen_places(self, sites, layers)
        if not self._files.remote:
            return
        self._bring([*parts, *(self.manifest.extras if extras else ())], progress=progress)
        self._bring(
            [
                file
                for entry in parts
                for file in self.part(entry.dataset, entry.stage).files
                if (file.site, file.layer) in places
            ],
            progress=progress,
        )

    def pair(self, earlier: str, later: str, *, on_mismatch: OnMismatch = "raise") -> Pair:
        """Return two stages side by side, rows aligned.

        Parameters
        ----------
        earlier, later
            Names of two stages.
        on_mismatch
            What becomes of rows that not both stages have: ``"raise"`` refuses to read them,
            ``"intersect"`` leaves them out and warns, see :class:`Pair`.

        Returns
        -------
        Pair
            Reads nothing yet.

        Raises
        ------
        UnknownNameError
            If a stage does not exist, or ``on_mismatch`` is neither of the two.
        DataError
            If both are the same.
        """
        return Pair(self, earlier, later, on_mismatch=on_mismatch)

    def stored_rows(
        self, dataset: str, stage: str, *, site: str, layer: int, position: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of one site, layer and position as they stand in the files.

        For :class:`Pair` and whoever joins rows: unlike :meth:`activations` it does not compare
        them with the table of statements.

        Parameters
        ----------
        dataset, stage
            Names.
        site, layer, position
            As :meth:`activations` takes them.

        Returns
        -------
        row_uids : numpy.ndarray
            [rows] uint64.
        activations : numpy.ndarray
            [rows, d_model] of the stored type, mapped read-only if the part is one block.

        Raises
        ------
        UnknownNameError, NotStoredError, IntegrityError, FormatError
            As :meth:`activations`.
        """
        return self._rows.read(dataset, stage, site=site, layer=layer, position=position)

    def row_name(self, uid: int) -> str:
        """Name a row in a message: its id, and what the table of statements knows of it.

        Parameters
        ----------
        uid
            The row's ``row_uid``.

        Returns
        -------
        str
            One line; the id alone where the table does not have it.
        """
        return self._listed.name(uid)

    def table(self, path: str) -> pl.DataFrame:
        """Read one of the artifact's Parquet tables by its path.

        Parameters
        ----------
        path
            Below the artifact, with forward slashes: ``tables/statements.parquet``.

        Returns
        -------
        polars.DataFrame
            As it is stored, within the bounds of what is read.

        Raises
        ------
        NotStoredError
            If the artifact has no such table.
        """
        return self._table(path, MAX_ROWS)

    def extra(self, path: str) -> Extra | None:
        """Return the manifest entry of a file that is not activations, or None.

        Parameters
        ----------
        path
            Below the artifact, with forward slashes.

        Returns
        -------
        Extra or None
            None where the artifact has no such file.
        """
        return self._extras.get(path)

    def extras(self, prefix: str) -> list[Extra]:
        """Return the manifest entries of all such files below a folder, in order of path.

        Parameters
        ----------
        prefix
            What their paths begin with: ``scores/``.

        Returns
        -------
        list of Extra
            Possibly empty.
        """
        return [entry for path, entry in sorted(self._extras.items()) if path.startswith(prefix)]

    def path(self, entry: FileEntry) -> Path:
        """Return the local path of a file of the artifact, checked against its entry.

        Parameters
        ----------
        entry
            From the manifest or a part manifest: path, size and sha256.

        Returns
        -------
        pathlib.Path
            Of the file in its folder, or in the cache.

        Raises
        ------
        IntegrityError
            If the file is missing or damaged.
        """
        return self._files.path(entry)

    def read(self, entry: FileEntry) -> bytes:
        """Return the checked bytes of a file of the artifact.

        Parameters
        ----------
        entry
            From the manifest or a part manifest: path, size and sha256.

        Returns
        -------
        bytes
            All of the file.

        Raises
        ------
        IntegrityError
            If the file is missing or damaged.
        """
        return self._files.read(entry)

    def read_all(self, entries: Iterable[FileEntry]) -> list[bytes]:
        """Return the checked bytes of several files of the artifact, downloaded together.

        Parameters
        ----------
        entries
            From the manifest or a part manifest.

        Returns
        -------
        list of bytes
            In the order of `entries`.

        Raises
        ------
        FormatError
            If they are too many bytes to be held in memory at once.
        IntegrityError
            If a file is missing or damaged.
        """
        wanted = list(entries)
        if (total := sum(entry.bytes for entry in wanted)) > MAX_READ_BYTES:
            raise FormatError(
                f"{wanted[0].path} and {len(wanted) - 1} more files have {total} bytes, more than "
                "are read into memory at once"
            )
        self._bring(wanted)
        return [self._files.read(entry) for entry in wanted]

    def place(self, site: str, layer: int) -> tuple[str, int]:
        """Return the site and layer in whose files a site at a layer is stored.

        Another one for ``resid_pre`` above layer 0, which is ``resid_post`` of the layer below.

        Parameters
        ----------
        site
            Name of a site.
        layer
            Decoder block, counted from 0.

        Returns
        -------
        tuple of str and int
            Site and layer.
        """
        return self._rows.place(site, layer)

    def tensors(self, path: str) -> dict[str, np.ndarray]:
        """Map a safetensors file that is not activations, by its path.

        Parameters
        ----------
        path
            Below the artifact, with forward slashes.

        Returns
        -------
        dict of str to numpy.ndarray
            By the tensors' names, mapped read-only.

        Raises
        ------
        NotStoredError
            If the artifact has no such file.
        """
        entry = self._require_extra(path)
        bounds = ADAPTERS if entry.kind == "adapter" else OURS
        return read_tensors(self._files.path(entry), bounds=bounds)

    def part(self, dataset: str, stage: str) -> Part:
        """Return the part manifest of one dataset at one stage.

        Parameters
        ----------
        dataset, stage
            Names.

        Returns
        -------
        Part
            Positions, row count and the files of activations.

        Raises
        ------
        NotStoredError
            If this stage was not built for this dataset.
        """
        return self._rows.part(dataset, stage)

    @cached_property
    def _extras(self) -> dict[str, Extra]:
        return {entry.path: entry for entry in self.manifest.extras}

    def _bring(self, entries: Iterable[FileEntry], *, progress: bool = True) -> None:
        self._files.bring(entries, self.id, progress=progress)

    def _require_extra(self, path: str) -> Extra:
        entry = self.extra(path)
        if entry is None:
            raise NotStoredError(
                f"{path} is not part of {self.id}; its card does not ask for it, or it was built "
                "with --stages or --datasets that leave it out"
            )
        return entry

    def _table(self, path: str, max_rows: int) -> pl.DataFrame:
        entry = self._require_extra(path)
        return read_table(self._files.path(entry), path, max_rows=max_rows)

    def __repr__(self) -> str:
        manifest = self.manifest
        sites = ", ".join(f"{site} ({layer_span(manifest.sites[site])})" for site in self.sites)
        datasets = ", ".join(f"{dataset.name} {dataset.rows}" for dataset in manifest.datasets)
        stages = " -> ".join(f"{stage.name} ({stage.title})" for stage in manifest.stages)
        lines = [
            f"Artifact {self.id}: {manifest.title}",
            f"  stages    {stages}",
            f"  datasets  {datasets}",
            f"  sites     {sites}",
            f"  rows      {sum(dataset.rows for dataset in manifest.datasets)}",
            f"  bytes     {manifest.total_bytes:,} in {manifest.dtype}",
        ]
        return "\n".join(lines)
