"""The rows of every file against those of the table of statements, in its order.

Where the table itself is at fault, or cannot be read, the rows that most files hold stand in for
it: one broken table is one fault, and a file that differs from all others is still found.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ptmech._schemas import STATEMENTS
from ptmech._verification.inspection import Inspection
from ptmech.alignment import named_uid, require_same_rows
from ptmech.errors import AlignmentError

Uids = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Claim:
    """Which rows of a dataset a file says that it holds.

    Attributes
    ----------
    path
        The file.
    owner
        What it is a piece of: files of one owner that are wrong alike are one fault.
    first_row
        Where in the dataset its rows begin.
    uids
        Row ids [rows].
    """

    path: str
    owner: str
    first_row: int
    uids: Uids

    @property
    def span(self) -> tuple[int, int]:
        """Where its rows begin, and how many there are."""
        return self.first_row, self.uids.size


class Rows:
    """The rows of every dataset, and which files claim to hold them.

    Attributes
    ----------
    listed
        Row ids [rows] of each dataset, from the table of statements; of no dataset if it cannot be
        read.
    doubtful
        Datasets whose rows in the table are at fault themselves.
    """

    def __init__(self, listed: Mapping[str, Uids], doubtful: set[str]) -> None:
        self.listed = listed
        self.doubtful = doubtful
        self._claims: dict[str, list[Claim]] = defaultdict(list)

    def claim(self, dataset: str, claim: Claim) -> None:
        """Note what a file holds; it is compared when all files are known."""
        self._claims[dataset].append(claim)

    def check(self, inspection: Inspection) -> None:
        """Compare all claims."""
        for dataset, claims in self._claims.items():
            if dataset in self.listed and dataset not in self.doubtful:
                self._compare_with_table(inspection, dataset, claims)
            else:
                self._compare_with_each_other(inspection, dataset, claims)

    def _compare_with_table(
        self, inspection: Inspection, dataset: str, claims: list[Claim]
    ) -> None:
        uids = self.listed[dataset]
        expected = {claim.span: uids[slice(*_bounds(claim))] for claim in claims}
        wrong = [c for c in claims if not np.array_equal(c.uids, expected[c.span])]
        if len(wrong) == len(claims) > 1 and len({_key(claim) for claim in claims}) == 1:
            problem = self._difference(inspection, dataset, expected, claims[0])
            inspection.add(STATEMENTS, f"all {len(claims)} files disagree with it: {problem}")
            return
        self._report(inspection, dataset, wrong, expected)

    def _compare_with_each_other(
        self, inspection: Inspection, dataset: str, claims: list[Claim]
    ) -> None:
        spans: dict[tuple[int, int], list[Claim]] = defaultdict(list)
        for claim in claims:
            spans[claim.span].append(claim)
        for span, alike in spans.items():
            commonest, _ = Counter(_key(claim) for claim in alike).most_common(1)[0]
            expected = {span: next(claim.uids for claim in alike if _key(claim) == commonest)}
            wrong = [claim for claim in alike if _key(claim) != commonest]
            self._report(inspection, dataset, wrong, expected)

    def _report(
        self,
        inspection: Inspection,
        dataset: str,
        wrong: list[Claim],
        expected: Mapping[tuple[int, int], Uids],
    ) -> None:
        """Note one fault for all files of one owner that hold the same wrong rows."""
        groups: dict[tuple[str, bytes], list[Claim]] = defaultdict(list)
        for claim in wrong:
            groups[claim.owner, _key(claim)].append(claim)
        for first, *others in groups.values():
            problem = self._difference(inspection, dataset, expected, first)
            more = f" (and {len(others)} more files of {first.owner})" if others else ""
            inspection.add(first.path, f"{problem}{more}")

    def _difference(
        self,
        inspection: Inspection,
        dataset: str,
        expected: Mapping[tuple[int, int], Uids],
        claim: Claim,
    ) -> str:
        describe = inspection.artifact.row_name if self.listed else named_uid
        try:
            require_same_rows(expected[claim.span], claim.uids, dataset, describe)
        except AlignmentError as error:
            return str(error)
        return f"{dataset}: rows differ"


def _bounds(claim: Claim) -> tuple[int, int]:
    return claim.first_row, claim.first_row + claim.uids.size


def _key(claim: Claim) -> bytes:
    return claim.first_row.to_bytes(8, "big", signed=True) + claim.uids.tobytes()
