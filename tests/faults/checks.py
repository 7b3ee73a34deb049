"""What must hold in a build's folder at any instant, and what must hold once it is finished.

Every function returns the violations it found, in words; an empty list is a pass. Files are hashed
here: what the builder or the reader says of its own work is not taken for granted.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ptmech
from ptmech.errors import PtmechError
from ptmech.verify import verify
from ptmech_builder.writer import Writer

Mark = tuple[int, int]


def contents(root: Path) -> dict[str, str]:
    """Return the sha256 of every file of an artifact, the work folder left out."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and ".build" not in path.relative_to(root).parts
    }


def receipts(root: Path) -> dict[str, dict[str, Any]]:
    """Return every receipt that can be read at all, by the name of its unit."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((root / ".build" / "receipts").glob("*.json")):
        try:
            found[path.stem] = json.loads(path.read_bytes())
        except ValueError:
            continue
    return found


def torn(root: Path) -> list[str]:
    """Find what is wrong with an artifact whose manifest stands; without one nothing can be."""
    if not (root / "manifest.json").is_file():
        return []
    return [*_by_hand(root), *_by_its_reader(root)]


def _by_hand(root: Path) -> list[str]:
    try:
        manifest = json.loads((root / "manifest.json").read_bytes())
        entries = [*manifest["parts"], *manifest["extras"]]
        for part in manifest["parts"]:
            entries += json.loads((root / part["path"]).read_bytes())["files"]
    except (OSError, ValueError, KeyError) as error:
        return [f"a manifest stands that cannot be read: {error!r}"]
    return [f"the manifest stands, but {problem}" for problem in _wrong_files(root, entries)]


def _by_its_reader(root: Path) -> list[str]:
    try:
        return [f"verify: {fault}" for fault in verify(ptmech.load(root))]
    except PtmechError as error:
        return [f"load: {error}"]


def _wrong_files(root: Path, entries: list[dict[str, Any]]) -> list[str]:
    wrong: list[str] = []
    for entry in entries:
        try:
            data = (root / entry["path"]).read_bytes()
        except OSError:
            wrong.append(f"{entry['path']} is missing")
            continue
        if (len(data), hashlib.sha256(data).hexdigest()) != (entry["bytes"], entry["sha256"]):
            wrong.append(f"{entry['path']} holds other bytes")
    return wrong


def lying_receipts(root: Path) -> list[str]:
    """Find receipts that the builder would believe though a file of theirs is not right."""
    writer = Writer(root)
    return [
        f"the receipt of {unit} is believed, but {problem}"
        for unit, receipt in receipts(root).items()
        if writer.receipt(unit, receipt["key"]) is not None
        for problem in _wrong_files(root, receipt["files"])
    ]


def at_any_instant(root: Path) -> list[str]:
    """Return all that must not be, whatever has just happened to a build."""
    return [*torn(root), *lying_receipts(root)]


def finished_units(root: Path, keys: Mapping[str, str]) -> dict[str, dict[str, Mark]]:
    """Return inode and time of the files of each unit that is finished under these keys."""
    writer = Writer(root)
    held = receipts(root)
    return {
        unit: {entry["path"]: _mark(root / entry["path"]) for entry in held[unit]["files"]}
        for unit, key in keys.items()
        if unit in held and writer.receipt(unit, key) is not None
    }


def _mark(path: Path) -> Mark:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def redone(root: Path, before: Mapping[str, Mapping[str, Mark]]) -> list[str]:
    """Find files of finished units that were written again."""
    return [
        f"{unit} was finished, but {path} was written again"
        for unit, marks in before.items()
        for path, mark in marks.items()
        if not (root / path).is_file() or _mark(root / path) != mark
    ]


def other_bytes(root: Path, wanted: Mapping[str, str]) -> list[str]:
    """Find files that are not those of an undisturbed build."""
    found = contents(root)
    return [
        f"{path} is not that of an undisturbed build"
        for path in sorted({*found, *wanted})
        if found.get(path) != wanted.get(path)
    ]


def leftovers(root: Path, keys: Mapping[str, str]) -> list[str]:
    """Find files of the work folder that no finished build needs."""
    needed = {"lock", *(f"receipts/{unit}.json" for unit in keys)}
    work = root / ".build"
    paths = {path.relative_to(work).as_posix() for path in work.rglob("*") if path.is_file()}
    return [f".build/{path} was left behind" for path in sorted(paths - needed)]


def plain_line(told: str) -> list[str]:
    """Find what is wrong with what the command line says of an error: one plain line it is."""
    lines = told.splitlines()
    if len(lines) == 1 and lines[0].strip() and not re.search(r"Traceback|Error:|Errno", told):
        return []
    return [f"not one plain line on standard error: {told!r}"]
