"""Paths that name one file below the artifact, the same one on every disk.

A path is a list of plain ASCII segments. That leaves out every way to mean another place: absolute
paths, ``..``, backslashes, drive letters, addresses, streams, percent-encodings, NUL, and letters
of Unicode that look like any of these. What is left can still differ between disks: names that
Windows keeps for devices or shortens, and names that differ by case alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from ptmech._text import shortened

# Longer than any of ours: two stages, a dataset (64 letters each) and a grid's chunk.
_SEGMENT: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,148}[A-Za-z0-9_-])?")
_LONGEST: Final = 300
_DEVICES: Final = frozenset(
    ["con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))]
)


def is_device(segment: str) -> bool:
    """Whether Windows takes a name for a device, whatever its ending.

    Examples
    --------
    >>> is_device("nul.txt"), is_device("null.txt")
    (True, False)
    """
    return segment.partition(".")[0].lower() in _DEVICES


def plain_path(path: str) -> str:
    """Return a path that stays below the artifact on every disk.

    Raises
    ------
    ValueError
        If it is any other path.

    Examples
    --------
    >>> plain_path("tables/statements.parquet")
    'tables/statements.parquet'
    """
    segments = path.split("/")
    if len(path) > _LONGEST or not all(_SEGMENT.fullmatch(segment) for segment in segments):
        raise ValueError(f"not a plain relative path: {shortened(path)!r}")
    if any(map(is_device, segments)):
        raise ValueError(f"names a device of Windows: {shortened(path)!r}")
    return path


def require_apart(paths: Iterable[str]) -> None:
    """Require that no disk confuses two of several plain paths.

    Raises
    ------
    ValueError
        If two differ by case alone, or one is a folder of another. The same path twice is not
        looked at.

    Examples
    --------
    >>> require_apart(["acts/base", "acts/Base"])
    Traceback (most recent call last):
        ...
    ValueError: 'acts/Base' and 'acts/base' differ by case alone: some disks keep one of them
    """
    spelled: dict[str, str] = {}
    folders: dict[str, str] = {}
    for path in sorted(set(paths)):
        segments = path.split("/")
        for length in range(1, len(segments)):
            _spell("/".join(segments[:length]), folders)
        _spell(path, spelled)
    if both := next((folded for folded in spelled if folded in folders), None):
        raise ValueError(f"{shortened(spelled[both])!r} is both a file and a folder of others")


def _spell(path: str, spelled: dict[str, str]) -> None:
    known = spelled.setdefault(path.lower(), path)
    if known != path:
        raise ValueError(
            f"{shortened(known)!r} and {shortened(path)!r} differ by case alone: "
            "some disks keep one of them"
        )
