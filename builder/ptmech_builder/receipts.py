"""Receipts: what is finished, by which recipe, and why something has to be made again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, StrictInt

from ptmech.errors import FormatError
from ptmech.manifest import (
    ActivationFile,
    ActivationUnit,
    Extra,
    FileEntry,
    Schema,
    Sha256,
    canonical_json,
    parse_schema,
)

Mark = tuple[StrictInt, StrictInt]
"""Inode and modification time (ns) of a file when it was written."""


class Receipt(Schema):
    """Proof that a unit is finished: its key, and every file it wrote."""

    unit: str
    key: Sha256
    recipe: Mapping[str, str] = {}
    """Digest of each thing that went into the key."""
    activation: ActivationUnit | None = None
    files: tuple[Annotated[ActivationFile | Extra, Field(union_mode="left_to_right")], ...]
    facts: Mapping[str, Any] = {}
    """What later units and the manifest want to know of this one."""
    versions: Mapping[str, str] = {}
    """Of the packages that made it."""
    marks: tuple[Mark, ...] = ()
    """One for each file: one that still has its mark is not hashed again."""

    def marked(self, root: Path) -> Self:
        """Return the receipt with the marks of its files as they stand now."""
        return self.model_copy(
            update={"marks": tuple(_mark(root / entry.path) for entry in self.files)}
        )


@dataclass(frozen=True)
class Standing:
    """How a unit stands in a folder.

    Attributes
    ----------
    receipt
        Proof that it is finished; None if it has to be made.
    reason
        Why something that was made before has to be made again; empty if it never was.
    """

    receipt: Receipt | None
    reason: str = ""


def recipe_digests(recipe: Mapping[str, Any]) -> dict[str, str]:
    """Return a short digest of each entry of a recipe, so that a receipt can tell what changed."""
    return {
        name: hashlib.sha256(canonical_json({name: value})).hexdigest()[:16]
        for name, value in recipe.items()
    }


def standing(
    path: Path, root: Path, key: str, recipe: Mapping[str, str], *, recheck: bool = False
) -> Standing:
    """Read a receipt and tell whether it still holds; see ``Writer.standing``."""
    try:
        receipt = parse_schema(Receipt, path.read_bytes(), path.name)
    except (FileNotFoundError, NotADirectoryError):
        return Standing(None)
    except FormatError:
        return Standing(None, "its receipt is damaged")
    if receipt.key != key:
        return Standing(None, _what_changed(receipt.recipe, recipe))
    marks = receipt.marks if len(receipt.marks) == len(receipt.files) and not recheck else ()
    for index, entry in enumerate(receipt.files):
        mark = marks[index] if marks else None
        if problem := _problem(root / entry.path, entry, mark):
            return Standing(None, f"{entry.path} {problem}")
    return Standing(receipt)


def _what_changed(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    if not before or not names:
        return "its recipe changed"
    return f"{', '.join(name.replace('_', ' ') for name in names)} changed"


def _mark(path: Path) -> Mark:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def _problem(path: Path, entry: FileEntry, mark: Mark | None) -> str:
    """Say what is wrong with a finished file; empty if nothing is."""
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != entry.bytes:
        return "has another size"
    if mark != _mark(path):
        with path.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != entry.sha256:
                return "is damaged"
    return ""
