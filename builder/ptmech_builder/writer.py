"""Putting bytes on the disk so that nothing is ever half there.

A file is written under a temporary name, flushed to the disk and renamed into place, and so is the
entry of every folder above it; then the unit's receipt says that all files of the unit are there;
``manifest.json`` is written last, and taken away before the first file of a finished artifact is
replaced. Whatever instant a build dies at, by a signal or by a power cut, the folder holds a whole
artifact or none, and finished units are known by their receipts. Receipts and temporary files live
in ``.build/``, which is not part of the artifact.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import numpy as np
from safetensors.numpy import save as serialize_tensors

from ptmech.manifest import MANIFEST, FileEntry, canonical_json
from ptmech_builder.folders import make_lasting, sync_folder
from ptmech_builder.receipts import Receipt, Standing, standing
from ptmech_builder.storage_errors import storage_errors

WORK: Final = ".build"
"""Folder of what is not part of the artifact."""


def digest(data: bytes) -> str:
    """Return the sha256 of bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def tensor_bytes(tensors: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> bytes:
    """Serialise arrays to safetensors, the same bytes for the same content.

    The metadata is one key, because the order of several is not fixed by the library.
    """
    contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    return serialize_tensors(contiguous, metadata={"ptmech": canonical_json(about).decode()})


class Writer:
    """Writes the files of one artifact folder.

    Parameters
    ----------
    root
        The folder; made if it is missing.
    temporary
        Folder for files that are not whole yet, on the same disk; one of its own for each build.
    recheck
        Whether to hash finished files again that nobody has touched since they were written.

    Raises
    ------
    StorageError
        From every method, if the disk refuses.
    """

    def __init__(self, root: Path, temporary: Path | None = None, *, recheck: bool = False) -> None:
        self.root = root
        self._recheck = recheck
        self._receipts = root / WORK / "receipts"
        self._temporary = temporary or root / WORK / "tmp"
        self._lasting: set[Path] = set()

    def put(self, path: str, data: bytes) -> FileEntry:
        """Write one file of the artifact, all or nothing, and return its manifest entry."""
        entry = self.describe(path, data)
        self._place(self.root / path, data)
        return entry

    def put_if_new(self, path: str, data: bytes) -> FileEntry:
        """Write a manifest, unless these very bytes stand there already.

        A finished artifact is withdrawn before a file of it changes.
        """
        target = self.root / path
        with storage_errors(target):
            stands = target.is_file() and target.read_bytes() == data
        if not stands:
            self.withdraw()
            return self.put(path, data)
        with storage_errors(target):  # whoever put it there may have died before this
            self._make_lasting(target.parent)
            sync_folder(target.parent)
        return self.describe(path, data)

    @staticmethod
    def describe(path: str, data: bytes) -> FileEntry:
        """Return the manifest entry of a file with these bytes."""
        return FileEntry(path=path, bytes=len(data), sha256=digest(data))

    def withdraw(self) -> None:
        """Take away the manifest of a finished artifact, before a file of it is replaced."""
        self._take_away(self.root / MANIFEST)

    def begin(self, unit: str) -> None:
        """Take back a unit's receipt, before the first of its files is replaced."""
        self._take_away(self._receipt_path(unit))

    def finish(self, receipt: Receipt) -> Receipt:
        """Record that a unit is finished. Called after all its files are in place.

        Returns
        -------
        Receipt
            As it was written, with the marks of the files as they stand now.
        """
        path = self._receipt_path(receipt.unit)
        with storage_errors(path):
            marked = receipt.marked(self.root)
        self._place(path, canonical_json(marked))
        return marked

    def mark_anew(self, receipt: Receipt) -> Receipt:
        """Note in a receipt the marks of files that were touched and found to be the right ones."""
        path = self._receipt_path(receipt.unit)
        with storage_errors(path):
            marked = receipt.marked(self.root)
        if marked != receipt:
            self._place(path, canonical_json(marked))
        return marked

    def standing(self, unit: str, key: str, recipe: Mapping[str, str] | None = None) -> Standing:
        """Tell how a unit stands: finished under this very key, or why it has to be made.

        Parameters
        ----------
        unit, key
            Name and key of the unit.
        recipe
            Digests of what goes into the key, to say what of it has changed.
        """
        path = self._receipt_path(unit)
        with storage_errors(path):
            return standing(path, self.root, key, recipe or {}, recheck=self._recheck)

    def receipt(self, unit: str, key: str) -> Receipt | None:
        """Return the receipt of a finished unit, if it is there under this very key.

        It counts only if all its files are the ones it promises.
        """
        return self.standing(unit, key).receipt

    def _receipt_path(self, unit: str) -> Path:
        return self._receipts / f"{unit}.json"

    def _take_away(self, path: Path) -> None:
        with storage_errors(path):
            try:
                path.unlink()
            except FileNotFoundError:
                # Who took it away may have died before its folder was flushed.
                if not path.parent.is_dir():
                    return
            sync_folder(path.parent)

    def _place(self, target: Path, data: bytes) -> None:
        """Write to a temporary file, flush it to the disk, rename it to its name."""
        with storage_errors(target):
            self._make_lasting(target.parent)
            self._temporary.mkdir(parents=True, exist_ok=True)
            temporary = self._temporary / uuid4().hex
            try:
                with temporary.open("wb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
                temporary.replace(target)
            except BaseException:
                with suppress(OSError):  # the first error is the one to tell; the next build sweeps
                    temporary.unlink(missing_ok=True)
                raise
            sync_folder(target.parent)

    def _make_lasting(self, folder: Path) -> None:
        """Make a folder whose entry, and that of every folder above it, survives a power cut.

        Folders that are there already are flushed once too: who made them may have died before.
        """
        if folder in self._lasting:
            return
        make_lasting(folder)
        while folder not in self._lasting:
            sync_folder(folder.parent)
            self._lasting.add(folder)
            if folder == self.root:
                return
            folder = folder.parent
