"""Rows of activations as they stand in the files: where a layer is kept, and what it holds."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ptmech.errors import FormatError, NotStoredError, unknown
from ptmech.manifest import SITES, ActivationFile, Manifest, Part, parse_schema
from ptmech.storage import VerifiedFiles, read_tensors

_CHECKED_AT_ONCE: Final = 2**16
"""Values that are looked at together: they and what is computed of them stay in the processor."""

Rows = tuple[NDArray[np.uint64], NDArray[Any]]
"""Row ids [rows] and activations [rows, d_model]."""


class StoredRows:
    """The activation files of an artifact, by site, layer and position.

    Values of a file are looked at when they are first read, and again if the file was touched: one
    that is not finite is an error. Nothing is compared with the table of statements here.

    Parameters
    ----------
    manifest
        Of the artifact.
    files
        Its files.
    name
        What it is called in messages.
    """

    def __init__(self, manifest: Manifest, files: VerifiedFiles, name: str) -> None:
        self._manifest = manifest
        self._files = files
        self._name = name
        self._parts: dict[tuple[str, str], Part] = {}

    def layers(self, site: str) -> tuple[int, ...]:
        """Return the layers at which a site can be read; see :meth:`ptmech.Artifact.layers`."""
        stored = self._manifest.sites
        if site == "resid_pre":
            shifted = {layer + 1 for layer in stored.get("resid_post", ())}
            n_layers = min(stage.n_layers for stage in self._manifest.stages)
            return tuple(sorted({*stored.get("resid_pre", ()), *shifted} - {n_layers}))
        if site not in stored:
            if site in SITES:
                held = ", ".join(site for site in SITES if site in stored)
                raise NotStoredError(f"site {site!r} is not stored in {self._name}; stored: {held}")
            raise unknown("site", site, stored)
        return tuple(stored[site])

    def place(self, site: str, layer: int) -> tuple[str, int]:
        """Return the site and layer in whose files a site at a layer is stored."""
        if site == "resid_pre" and layer not in self._manifest.sites.get("resid_pre", ()):
            return "resid_post", layer - 1
        return site, layer

    def part(self, dataset: str, stage: str) -> Part:
        """Return the part manifest of a dataset at a stage; see :meth:`ptmech.Artifact.part`."""
        if (dataset, stage) not in self._parts:
            self._parts[dataset, stage] = self._read_part(dataset, stage)
        return self._parts[dataset, stage]

    def read(
        self,
        dataset: str,
        stage: str,
        *,
        site: str,
        layer: int,
        position: int,
        dtype: Any = None,
    ) -> Rows:
        """Return the rows of one site, layer and position.

        Parameters
        ----------
        dataset, stage, site, layer, position
            As for :meth:`ptmech.Artifact.activations`.
        dtype
            Element type of the activations, which are then copied, once. None gives the stored
            type, mapped read-only if the part is one block.
        """
        blocks = self._blocks(dataset, stage, site, layer, position)
        if len(blocks) > 1:
            uids, values = zip(*blocks, strict=True)
            joined = np.concatenate(values, dtype=dtype, casting="unsafe")
            return np.concatenate(uids), np.asarray(joined)
        uids, values = blocks[0]
        return uids, values if dtype is None else np.array(values, dtype=dtype)

    def _read_part(self, dataset: str, stage: str) -> Part:
        manifest = self._manifest
        require_known("stage", stage, [each.name for each in manifest.stages])
        require_known("dataset", dataset, [each.name for each in manifest.datasets])
        entries = [
            entry for entry in manifest.parts if (entry.dataset, entry.stage) == (dataset, stage)
        ]
        if not entries:
            raise NotStoredError(
                f"dataset {dataset!r} was not built for stage {stage!r}; run ptmech build "
                f"with --stages {stage} --datasets {dataset}"
            )
        part = parse_schema(Part, self._files.read(entries[0]), entries[0].path)
        if (part.dataset, part.stage) != (dataset, stage):
            raise FormatError(
                f"{entries[0].path} is of {part.dataset!r} at {part.stage!r}, not of "
                f"{dataset!r} at {stage!r}; build it again"
            )
        return part

    def _blocks(self, dataset: str, stage: str, site: str, layer: int, position: int) -> list[Rows]:
        """Return each block of rows, in order."""
        part = self.part(dataset, stage)
        require_known(f"layer of {site}", layer, self.layers(site))
        require_known(f"position of {dataset}", position, part.positions)
        site, layer = self.place(site, layer)
        files = sorted(
            (entry for entry in part.files if entry.site == site and entry.layer == layer),
            key=lambda entry: entry.block,
        )
        if not files:
            raise NotStoredError(
                f"{site} of layer {layer} was not built for {dataset!r} at stage {stage!r}"
            )
        index = part.positions.index(position)
        self._files.bring(files, self._name)
        return [self._block(entry, part, index) for entry in files]

    def _block(self, entry: ActivationFile, part: Part, index: int) -> Rows:
        tensors = read_tensors(self._files.path(entry))
        shape = (entry.rows, len(part.positions), part.d_model)
        activations = tensors.get("activations")
        uids = tensors.get("row_uid")
        if (
            activations is None
            or uids is None
            or (activations.shape, activations.dtype) != (shape, part.dtype)
            or (uids.shape, uids.dtype) != (shape[:1], np.uint64)
        ):
            raise FormatError(
                f"{entry.path} does not hold {part.dtype} activations of shape {shape} and the "
                "ids of their rows"
            )
        chosen = activations[:, index]
        self._files.once(entry, index, lambda: require_finite(chosen, entry.path))
        return uids, chosen


def require_known(kind: str, name: object, known: Collection[object]) -> None:
    """Refuse a name that is not among those there are.

    Raises
    ------
    UnknownNameError
        With the closest ones.
    """
    if name not in known:
        raise unknown(kind, name, known)


def require_finite(values: NDArray[Any], path: str) -> None:
    """Refuse values [rows, d_model] that are not finite.

    A few rows at a time, widened where NumPy's loops do not know the type: that takes about as long
    as reading memory does, and no memory of the size of the file.
    """
    at_once = max(1, _CHECKED_AT_ONCE // values.shape[1])
    wide = np.result_type(values.dtype, np.float32)
    for start in range(0, len(values), at_once):
        if not np.isfinite(values[start : start + at_once].astype(wide, copy=False)).all():
            raise FormatError(f"{path} holds activations that are not finite; build it again")
