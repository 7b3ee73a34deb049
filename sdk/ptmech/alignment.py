"""Rows of two models that are the same prompt, or an error.

A row is known by its ``row_uid``: the first eight bytes (big-endian) of the sha256 of the dataset's
name, the row's id in its source and its text in Unicode normal form C, joined by NUL. Rows of two
stages are never paired by their place in a file.
"""

from __future__ import annotations

import hashlib
import unicodedata

import numpy as np

from ptmech.errors import AlignmentError, DataError


def row_uid(dataset: str, source_id: str, text: str) -> int:
    """Compute the identity of a row.

    Parameters
    ----------
    dataset, source_id, text
        Name of the dataset, id of the row in its source, and the prompt before any template.

    Returns
    -------
    int
        An unsigned 64-bit integer.

    Raises
    ------
    DataError
        If a field contains the separator, NUL.

    Examples
    --------
    >>> row_uid("cities", "paris-true", "The city of Paris is in France.")
    1748584115772832118
    """
    fields = (dataset, source_id, unicodedata.normalize("NFC", text))
    if any("\0" in part for part in fields):
        raise DataError(f"row {source_id!r} of dataset {dataset!r} contains a NUL character")
    return int.from_bytes(hashlib.sha256("\0".join(fields).encode()).digest()[:8], "big")


def require_same_rows(expected: np.ndarray, found: np.ndarray, what: str) -> None:
    """Check that two sequences of row ids are the same rows in the same order.

    Parameters
    ----------
    expected, found
        Row ids [rows], uint64.
    what
        Which two things are compared, for the message.

    Raises
    ------
    AlignmentError
        With the number of missing, additional and doubled rows and the first difference.
    """
    if np.array_equal(expected, found):
        return
    missing = np.setdiff1d(expected, found).size
    additional = np.setdiff1d(found, expected).size
    doubled = found.size - np.unique(found).size
    shared = min(expected.size, found.size)
    differing = np.flatnonzero(expected[:shared] != found[:shared])
    first = int(differing[0]) if differing.size else shared
    raise AlignmentError(
        f"{what}: rows differ ({expected.size} against {found.size}; {missing} missing, "
        f"{additional} additional, {doubled} doubled), first at row {first}; rebuild the artifact"
    )
