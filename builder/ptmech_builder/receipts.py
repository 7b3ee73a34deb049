"""Receipts: what is finished, by which recipe, and why something has to be made again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Self

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

CAUSES: Final[Mapping[str, frozenset[str]]] = {
    "template": frozenset({"rows"}),
    "token_ids": frozenset({"rows", "template", "tokenizer"}),
}
"""Entries of a recipe that change with others: no reasons of their own where those changed."""

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
    damaged
        Whether that is because a file of it is not what the receipt promises.
    hashed
        Whether files of it had to be hashed to tell.
    """

    receipt: Receipt | None
    reason: str = ""
    damaged: bool = False
    hashed: bool = False


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
    marks = None if recheck or len(receipt.marks) != len(receipt.files) else receipt.marks
    hashed = False
    for index, entry in enumerate(receipt.files):
        path = root / entry.path
        if problem := _problem(path, entry):
            return Standing(None, f"{entry.path} {problem}", damaged=True)
        if marks is None or marks[index] != _mark(path):
            hashed = True
            if _digest(path) != entry.sha256:
                return Standing(None, f"{entry.path} is damaged", damaged=True)
    return Standing(receipt, hashed=hashed)


def _what_changed(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    names = {name for name in {*before, *now} if before.get(name) != now.get(name)}
    reasons = sorted(name for name in names if not names & CAUSES.get(name, frozenset()))
    if not before or not reasons:
        return "its recipe changed"
    return f"{', '.join(reasons).replace('_', ' ')} changed"


def _mark(path: Path) -> Mark:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _problem(path: Path, entry: FileEntry) -> str:
    """Say what can be seen of a file without reading it; empty if it seems right."""
    if not path.is_file():
        return "is missing"
    return "" if path.stat().st_size == entry.bytes else "has another size"
