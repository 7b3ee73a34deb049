"""Putting bytes on the disk so that nothing is ever half there.

A file is written under a temporary name, flushed to the disk and renamed into place; then the
unit's receipt says that all files of the unit are there; ``manifest.json`` is written last, and
taken away before the first file of a finished artifact is replaced. Whatever instant a build dies
at, the folder holds a whole artifact or none, and finished units are known by their receipts.
Receipts and temporary files live in ``.build/``, which is not part of the artifact.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError
from safetensors.numpy import save as serialize_tensors

from ptmech.manifest import (
    ActivationFile,
    ActivationUnit,
    Extra,
    FileEntry,
    Schema,
    Sha256,
    canonical_json,
)

WORK = ".build"


class Receipt(Schema):
    """Proof that a unit is finished: its key, and every file it wrote."""

    unit: str
    key: Sha256
    activation: ActivationUnit | None = None
    files: tuple[Annotated[ActivationFile | Extra, Field(union_mode="left_to_right")], ...]
    facts: Mapping[str, Any] = {}
    """What later units and the manifest want to know of this one."""


_RECEIPT = TypeAdapter(Receipt)


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
    """Writes the files of one artifact folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._receipts = root / WORK / "receipts"
        self._temporary = root / WORK / "tmp"

    def put(self, path: str, data: bytes) -> FileEntry:
        """Write one file of the artifact, all or nothing, and return its manifest entry."""
        entry = self.describe(path, data)
        self._place(self.root / path, data)
        return entry

    @staticmethod
    def describe(path: str, data: bytes) -> FileEntry:
        """Return the manifest entry of a file with these bytes."""
        return FileEntry(path=path, bytes=len(data), sha256=digest(data))

    def begin(self, unit: str) -> None:
        """Take back a unit's receipt, before the first of its files is replaced."""
        receipt = self._receipts / f"{unit}.json"
        if receipt.exists():
            receipt.unlink()
            _sync_folder(receipt.parent)

    def finish(self, receipt: Receipt) -> None:
        """Record that a unit is finished. Called after all its files are in place."""
        self._place(self._receipts / f"{receipt.unit}.json", canonical_json(receipt))

    def receipt(self, unit: str, key: str) -> Receipt | None:
        """Return the receipt of a finished unit, if it is there under this very key.

        A receipt counts only if all its files still have the size it promises.
        """
        try:
            raw = (self._receipts / f"{unit}.json").read_bytes()
            receipt = _RECEIPT.validate_json(raw)
        except (FileNotFoundError, ValidationError):
            return None
        if receipt.key != key or not all(self._in_place(entry) for entry in receipt.files):
            return None
        return receipt

    def _place(self, target: Path, data: bytes) -> None:
        """Write to a temporary file, flush it to the disk, rename it to its name."""
        for folder in (target.parent, self._temporary):
            folder.mkdir(parents=True, exist_ok=True)
        temporary = self._temporary / uuid4().hex
        try:
            with temporary.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)

    def _in_place(self, entry: FileEntry) -> bool:
        path = self.root / entry.path
        return path.is_file() and path.stat().st_size == entry.bytes


def _sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
