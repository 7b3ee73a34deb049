"""One hostile artifact, and the words in which cases say what must come of it."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from tests.faults.hostile import Attack

FORMAT: Final = "FormatError"
INTEGRITY: Final = "IntegrityError"
ALIGNMENT: Final = "AlignmentError"
UNKNOWN: Final = "UnknownNameError"
NOT_STORED: Final = "NotStoredError"
NOT_FOUND: Final = "ArtifactNotFoundError"
DATA: Final = "DataError"
CARD: Final = "CardError"

FAULTS: Final = "faults"
"""What ``verify`` gives: it does not raise, it lists."""
RETURNED: Final = "returned"
"""What an analysis gives that says in its result what it could not find."""
FINE, UNMET, DAMAGED = 0, 2, 3
"""What commands exit with."""

ESCAPE: Final = "\x1b]0;owned\x07\x1b[31m"
"""A terminal that obeys this has another title, and writes in red."""
BIDI: Final = "\u202eevil\u202c"
"""Reads from right to left."""


class Case(NamedTuple):
    """One hostile artifact, what is done with it, and what must come of it.

    Attributes
    ----------
    name
        What it is, among its family.
    attack
        What is done to a good artifact.
    operation
        A function of :mod:`tests.faults.reading`, and its arguments behind the folder.
    expected
        Name of an error; ``FAULTS`` or ``RETURNED``; the exit code of a command.
    says
        What stands in the line, or in one of several.
    """

    name: str
    attack: Attack
    operation: str
    expected: str | int
    says: str

    @property
    def call(self) -> tuple[str, list[Any]]:
        """The function and its arguments."""
        function, *arguments = self.operation.split()
        return function, [int(a) if a.lstrip("-").isdecimal() else a for a in arguments]
