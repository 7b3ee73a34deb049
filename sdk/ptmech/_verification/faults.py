"""One thing that is wrong with an artifact."""

from __future__ import annotations

from dataclasses import dataclass

from ptmech._text import visible


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with an artifact.

    Attributes
    ----------
    path
        The file, relative to the artifact.
    problem
        What is wrong with it, in one line that holds nothing a terminal would obey.
    """

    path: str
    problem: str

    def __post_init__(self) -> None:
        for name, text in (("path", self.path), ("problem", self.problem)):
            object.__setattr__(self, name, visible(" ".join(text.split())))

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"
