"""Reading an artifact to check it: what cannot be read is a fault once, however often it is used.

Every check takes an :class:`Inspection` and asks it for files. What it does not get is already
among the faults, and whatever would follow from it is not checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np
import polars as pl

from ptmech._verification.faults import Fault
from ptmech.artifact import Artifact
from ptmech.errors import PtmechError, StrayLinkError
from ptmech.manifest import Extra, FileEntry, Manifest, Part, PartEntry
from ptmech.storage.tensors import ADAPTERS, OURS, read_tensors

Read = TypeVar("Read")


class Inspection:
    """An artifact, and what has been found wrong with it so far.

    Attributes
    ----------
    artifact
        What is checked.
    faults
        Everything found, in the order in which it was found.
    unread
        Paths of files whose bytes are not the promised ones, or that cannot be read.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.faults: list[Fault] = []
        self.unread: set[str] = set()
        self._stray_links: set[str] = set()

    @property
    def manifest(self) -> Manifest:
        """The artifact's manifest."""
        return self.artifact.manifest

    def add(self, path: str, problem: str) -> None:
        """Note a fault."""
        self.faults.append(Fault(path, problem))

    def require(self, path: str, *, holds: bool, problem: str) -> bool:
        """Note a fault unless something holds, and return whether it does."""
        if not holds:
            self.add(path, problem)
        return holds

    def bytes_of(self, entry: FileEntry) -> bool:
        """Whether a file has the promised size and sha256."""
        return self._attempt(entry.path, lambda: self.artifact.path(entry)) is not None

    def table(self, path: str) -> pl.DataFrame | None:
        """Read a listed table; None if it is not listed or cannot be read."""
        if self.artifact.extra(path) is None:
            return None
        return self._attempt(path, lambda: self.artifact.table(path))

    def tensors(self, entry: FileEntry) -> dict[str, np.ndarray] | None:
        """Map the tensors of a file; None if it cannot be read."""
        adapter = isinstance(entry, Extra) and entry.kind == "adapter"
        bounds = ADAPTERS if adapter else OURS

        def read() -> dict[str, np.ndarray]:
            return read_tensors(self.artifact.path(entry), bounds=bounds)

        return self._attempt(entry.path, read)

    def part(self, entry: PartEntry) -> Part | None:
        """Read a part manifest; None if it cannot be read."""
        known = entry.dataset in self.artifact.datasets and entry.stage in self.artifact.stages
        if not known:  # a fault of manifest.json, found there
            return None
        return self._attempt(entry.path, lambda: self.artifact.part(entry.dataset, entry.stage))

    def attempt(self, path: str, read: Callable[[], Read], *, of: Iterable[str]) -> Read | None:
        """Read something made of several files; None if one of them, or the whole, is no good."""
        return None if self.unread.intersection(of) else self._attempt(path, read)

    def _attempt(self, path: str, read: Callable[[], Read]) -> Read | None:
        if path in self.unread:
            return None
        try:
            return read()
        except StrayLinkError as error:
            self.unread.add(path)
            if error.link not in self._stray_links:  # one for a whole folder is one fault
                self._stray_links.add(error.link)
                self.add(
                    error.link, "leads out of the artifact by a link; put there what it leads to"
                )
            return None
        except (PtmechError, OSError) as error:
            self.unread.add(path)
            self.add(path, _told_of(path, error))
            return None


def _told_of(path: str, error: Exception) -> str:
    """Return an error's first line; one that begins with the path need not say it twice."""
    said = str(error) or type(error).__name__
    return said.partition("\n")[0].removeprefix(path).lstrip(":/ ")
