"""Rows of two models that are the same prompt, or an error.

A row is known by its ``row_uid``: the first eight bytes (big-endian) of the sha256 of the dataset's
name, the row's id in its source and its text in Unicode normal form C, joined by NUL. Rows of two
stages are never paired by their place in a file. Two spellings of one text that differ only in how
Unicode composes its letters are one row; letters that merely look alike are not.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ptmech.errors import AlignmentError, DataError, unknown

OnMismatch = Literal["raise", "intersect"]
"""What becomes of rows that not both sides have: an error, or they are left out."""

RowUids = NDArray[np.uint64] | Sequence[int]


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


def row_uids(
    datasets: Iterable[str], source_ids: Iterable[str], texts: Iterable[str]
) -> NDArray[np.uint64]:
    """Compute the identities of many rows; see :func:`row_uid`.

    Returns
    -------
    numpy.ndarray
        [rows] uint64; 0 where a field contains the separator: no row has an id like that.
    """
    sha256, normal = hashlib.sha256, unicodedata.normalize
    digests: list[bytes] = []
    for dataset, source_id, text in zip(datasets, source_ids, texts, strict=True):
        spelled = text if text.isascii() else normal("NFC", text)
        joined = f"{dataset}\0{source_id}\0{spelled}"
        sound = joined.count("\0") == 2
        digests.append(sha256(joined.encode()).digest()[:8] if sound else bytes(8))
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)


@dataclass(frozen=True)
class Difference:
    """The first place at which two sequences of rows are not the same.

    Attributes
    ----------
    row
        Its number, counted from 0.
    left, right
        The ``row_uid`` that stands there on either side; None behind the last row.
    """

    row: int
    left: int | None
    right: int | None


@dataclass(frozen=True, eq=False)
class Alignment:
    """How the rows of two sides belong together.

    Attributes
    ----------
    names
        What the two sides are called.
    n_left, n_right
        Rows of either side.
    missing_left, missing_right
        Rows that this side lacks and the other has.
    doubled_left, doubled_right
        Rows that stand there again.
    moved
        Rows both have that stand in another order.
    unlisted : array of shape [unlisted], uint64
        Rows both have that are not among those to be joined, and so are not kept.
    absent
        Rows that were to be joined and neither side has.
    total
        Different rows of both sides, and of those that were to be joined.
    row_uids : array of shape [kept], uint64
        The rows both have, each once.
    left, right : arrays of shape [kept], int
        Where they stand first on either side.
    first
        The first place at which the sides differ; None if they are the same rows, each once, in the
        same order.
    """

    names: tuple[str, str]
    n_left: int
    n_right: int
    missing_left: int
    missing_right: int
    doubled_left: int
    doubled_right: int
    moved: int
    unlisted: NDArray[np.uint64]
    absent: int
    total: int
    row_uids: NDArray[np.uint64]
    left: NDArray[np.intp]
    right: NDArray[np.intp]
    first: Difference | None

    @property
    def left_out(self) -> int:
        """Different rows that are not kept."""
        return self.total - self.row_uids.size

    def __str__(self) -> str:
        left, right = self.names
        listed = ""
        if self.unlisted.size or self.absent:
            listed = f", {self.unlisted.size} not listed, {self.absent} listed and in neither"
        return (
            f"{self.row_uids.size} of {self.total} rows in {left} and {right} "
            f"({self.n_left} against {self.n_right}; {self.missing_left} missing in {left}, "
            f"{self.missing_right} missing in {right}, {self.doubled_left} doubled in {left}, "
            f"{self.doubled_right} doubled in {right}, {self.moved} in another order{listed})"
        )


def named_uid(uid: int) -> str:
    """Name a row of which only its id is known."""
    return f"row_uid {uid}"


def join_rows(
    left_uids: RowUids,
    right_uids: RowUids,
    *,
    on_mismatch: OnMismatch = "raise",
    among: RowUids | None = None,
    names: tuple[str, str] = ("left", "right"),
    what: str = "join_rows",
    way_out: str = "on_mismatch='intersect'",
    describe: Callable[[int], str] = named_uid,
) -> Alignment:
    """Find the rows that two sides share.

    Parameters
    ----------
    left_uids, right_uids
        Row ids [rows] of either side.
    on_mismatch
        ``"raise"`` takes nothing but the same rows, each once, in the same order. ``"intersect"``
        takes the rows both have, each at its first place. Whether a doubled row is the same row
        twice, the ids do not tell: see :func:`require_equal_copies`.
    among
        Only these rows are kept, in this order; all in the order of the left side if None.
    names, what
        What the sides are called, and what is joined, for messages.
    way_out
        How the caller asks for the rows both have, for messages.
    describe
        Names a row in messages.

    Raises
    ------
    AlignmentError
        The rows differ, and they are not to be intersected: with the counts and the first
        difference.
    DataError
        Something that is not a sequence of row ids.
    UnknownNameError
        ``on_mismatch`` is neither of the two.

    Examples
    --------
    >>> joined = join_rows([7, 8, 9], [9, 7], on_mismatch="intersect")
    >>> joined.row_uids.tolist(), joined.left.tolist(), joined.right.tolist()
    ([7, 9], [0, 2], [1, 0])
    >>> joined.missing_right, joined.moved
    (1, 2)
    """
    if on_mismatch not in get_args(OnMismatch):
        raise unknown("choice of on_mismatch", on_mismatch, get_args(OnMismatch))
    left, right = _as_uids(left_uids, names[0]), _as_uids(right_uids, names[1])
    alignment = _joined(left, right, None if among is None else _as_uids(among, what), names)
    if on_mismatch == "raise" and alignment.first is not None:
        first = alignment.first
        here, there = (
            "no further row" if uid is None else describe(uid) for uid in (first.left, first.right)
        )
        raise AlignmentError(
            f"{what}: {alignment}, first at row {first.row}: {here} in {names[0]}, {there} in "
            f"{names[1]}; build both again, or take the rows both have: {way_out}"
        )
    return alignment


def require_same_rows(
    expected: NDArray[np.uint64],
    found: NDArray[np.uint64],
    what: str,
    describe: Callable[[int], str] = named_uid,
) -> None:
    """Check that two sequences of row ids are the same rows, each once, in the same order.

    Parameters
    ----------
    expected, found
        Row ids [rows], uint64.
    what
        Which two things are compared, for the message.
    describe
        Names a row in messages.

    Raises
    ------
    AlignmentError
        With the number of missing, additional and doubled rows, of those in another order, and the
        first difference.
    """
    if np.array_equal(expected, found) and np.unique(found).size == found.size:
        return
    rows = _joined(expected, found, None, ("expected", "found"))
    if rows.first is None:
        return
    wanted, there = (
        "no further row" if uid is None else describe(uid)
        for uid in (rows.first.left, rows.first.right)
    )
    raise AlignmentError(
        f"{what}: rows differ ({rows.n_left} against {rows.n_right}; {rows.missing_right} missing, "
        f"{rows.missing_left} additional, {rows.doubled_right} doubled, {rows.moved} in another "
        f"order), first at row {rows.first.row}: {there} where {wanted} belongs; rebuild the "
        "artifact"
    )


def require_equal_copies(uids: NDArray[np.uint64], values: np.ndarray, what: str) -> None:
    """Check that rows with one id have one content, bit for bit.

    Parameters
    ----------
    uids
        Row ids [rows], uint64.
    values
        What the rows hold [rows, ...].
    what
        Where they are from, for the message.

    Raises
    ------
    AlignmentError
        If two of them differ: nothing says which one is right.
    """
    _, first, which = np.unique(uids, return_index=True, return_inverse=True)
    for copy in np.flatnonzero(first[which] != np.arange(uids.size)):
        original = first[which[copy]]
        if values[copy].tobytes() != values[original].tobytes():
            raise AlignmentError(
                f"{what}: rows {original} and {copy} have one id, {uids[copy]}, and different "
                "content; build it again"
            )


def places_of(rows: NDArray[np.uint64], uids: NDArray[np.uint64], what: str) -> NDArray[np.intp]:
    """Find where rows stand first.

    Parameters
    ----------
    rows
        Row ids to look for [kept], uint64.
    uids
        Row ids to look in [rows], uint64.
    what
        Where they are from, for the message.

    Returns
    -------
    numpy.ndarray
        [kept], indices into ``uids``.

    Raises
    ------
    AlignmentError
        If one is not there.
    """
    lacking = np.count_nonzero(~np.isin(rows, uids))
    if lacking:
        raise AlignmentError(
            f"{what}: lacks {lacking} of {rows.size} rows that other files of this dataset hold; "
            "rebuild the artifact"
        )
    values, first = np.unique(uids, return_index=True)
    return first[np.searchsorted(values, rows)]


def _as_uids(values: RowUids, what: str) -> NDArray[np.uint64]:
    found = np.asarray(values) if not isinstance(values, Sequence) else _from_integers(values, what)
    if found.ndim != 1 or found.dtype != np.uint64:
        raise DataError(f"{what}: row ids are one list of uint64, not {found.dtype} {found.shape}")
    return found


def _from_integers(values: Sequence[int], what: str) -> NDArray[np.uint64]:
    if not all(type(value) is int and 0 <= value < 2**64 for value in values):
        raise DataError(f"{what}: row ids are whole numbers from 0 to 2**64 - 1")
    return np.array(values, dtype=np.uint64)


def _joined(
    left: NDArray[np.uint64],
    right: NDArray[np.uint64],
    among: NDArray[np.uint64] | None,
    names: tuple[str, str],
) -> Alignment:
    left_rows, left_places = np.unique(left, return_index=True)
    right_rows, right_places = np.unique(right, return_index=True)
    shared, at_left, at_right = np.intersect1d(
        left_rows, right_rows, assume_unique=True, return_indices=True
    )
    in_left, in_right = left_places[at_left], right_places[at_right]
    total = left_rows.size + right_rows.size - shared.size
    kept, unlisted, absent = np.argsort(in_left), shared[:0], 0
    if among is not None:
        listed, listed_places = np.unique(among, return_index=True)
        _, of_shared, of_listed = np.intersect1d(
            shared, listed, assume_unique=True, return_indices=True
        )
        kept = of_shared[np.argsort(listed_places[of_listed])]
        unlisted = np.delete(shared, of_shared)
        absent = int(np.count_nonzero(~(np.isin(listed, left_rows) | np.isin(listed, right_rows))))
        total += absent
    ranks = (np.argsort(np.argsort(places)) for places in (in_left, in_right))
    return Alignment(
        names=names,
        n_left=left.size,
        n_right=right.size,
        missing_left=right_rows.size - shared.size,
        missing_right=left_rows.size - shared.size,
        doubled_left=left.size - left_rows.size,
        doubled_right=right.size - right_rows.size,
        moved=int(np.count_nonzero(np.not_equal(*ranks))),
        unlisted=unlisted,
        absent=absent,
        total=total,
        row_uids=shared[kept],
        left=in_left[kept],
        right=in_right[kept],
        first=_first_difference(left, right),
    )


def _first_difference(left: NDArray[np.uint64], right: NDArray[np.uint64]) -> Difference | None:
    """Find where the sides part, or where both repeat a row."""
    shorter = min(left.size, right.size)
    differing = np.flatnonzero(left[:shorter] != right[:shorter])
    if differing.size:
        row = int(differing[0])
    elif left.size != right.size:
        row = shorter
    else:
        _, firsts = np.unique(left, return_index=True)
        again = np.setdiff1d(np.arange(left.size), firsts)
        if not again.size:
            return None
        row = int(again[0])
    here, there = (int(side[row]) if row < side.size else None for side in (left, right))
    return Difference(row, here, there)
