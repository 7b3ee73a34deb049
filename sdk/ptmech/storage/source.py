"""Where the bytes of an artifact come from."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path, PurePosixPath
from typing import Protocol, Self, runtime_checkable

from ptmech._text import visible
from ptmech.errors import ArtifactNotFoundError, IntegrityError, StorageError, StrayLinkError
from ptmech.hub_names import is_commit
from ptmech.manifest import MANIFEST


class MissingFileError(FileNotFoundError):
    """The artifact lacks a file; a folder of this machine that is missing is another matter."""


class Source(Protocol):
    """Anything that can bring a file of an artifact to the local disk."""

    @property
    def name(self) -> str:
        """What the user called it, for messages."""
        ...

    @property
    def revision(self) -> str | None:
        """The commit that is read, where there are commits."""
        ...

    def fetch(self, path: str, size: int | None = None) -> Path:
        """Return a local path for a file of the artifact.

        Parameters
        ----------
        path
            Of the file, below the artifact.
        size
            Bytes that it should have; a source need not take more.

        Raises
        ------
        MissingFileError
            If the artifact lacks the file. A source that need not look may also return a path at
            which there is nothing.
        """
        ...


@runtime_checkable
class RemoteSource(Source, Protocol):
    """A source on another machine, which keeps what it has brought in a cache."""

    def cached(self, path: str) -> bool:
        """Whether a file is on this machine already; asks nobody."""
        ...

    def refetch(self, path: str, size: int | None = None) -> Path:
        """Bring a file from its origin again, past the cache."""
        ...


class FolderSource:
    """An artifact in a local folder, finished or not.

    Only regular files below the folder are its files. A link may lead from one of them to another,
    and those of a snapshot in the Hub's cache to the blobs beside it; one that leads anywhere else
    is refused, because it would pass off a file of this machine as the artifact's.
    """

    revision = None

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def finished(cls, root: Path) -> Self:
        """Open a folder that holds a finished artifact.

        Raises
        ------
        ArtifactNotFoundError
            If the folder does not exist, or holds no manifest.
        """
        if not root.is_dir():
            raise ArtifactNotFoundError(
                f"no artifact folder {str(root)!r}; build one with: "
                f"ptmech build CARD --out {visible(str(root))}"
            )
        if not (root / MANIFEST).is_file():
            raise ArtifactNotFoundError(
                f"{str(root)!r} holds no {MANIFEST}: not an artifact, or a build that has not "
                "finished (run the same ptmech build again)"
            )
        return cls(root)

    @property
    def name(self) -> str:
        """The folder as it was given."""
        return str(self.root)

    def fetch(self, path: str, size: int | None = None) -> Path:  # noqa: ARG002  nothing is brought
        """Return the path below the folder, if what is there is a file of its own or nothing.

        Raises
        ------
        IntegrityError
            If it leads out of the folder, or to something that is not a regular file.
        StorageError
            If the disk does not say what is there.
        """
        local = self.root / path
        try:
            mode = local.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            mode = stat.S_IFREG
        except OSError as error:
            # A circle of links is the artifact's fault, all else the disk's.
            kind = IntegrityError if error.errno == errno.ELOOP else StorageError
            raise kind(f"{path} of {self.name} cannot be read: {error.strerror}") from error
        if not self._is_inside(local):
            link = self._stray_link(path)
            raise StrayLinkError(
                f"{path} leads out of {self.name} by a link{'' if link == path else f', {link}'}; "
                "put there what it leads to, "
                "or open the folder that it belongs to",
                link=link,
            )
        if not stat.S_ISREG(mode):
            raise IntegrityError(
                f"{path} of {self.name} is not a regular file; build or download it again"
            )
        return local

    def _is_inside(self, local: Path) -> bool:
        real = Path(os.path.realpath(local))
        return any(real.is_relative_to(place) for place in self._places())

    def _stray_link(self, path: str) -> str:
        """Return the first step of a path that is outside."""
        steps = PurePosixPath(path)
        return next(
            (
                str(step)
                for step in reversed([steps, *steps.parents[:-1]])
                if not self._is_inside(self.root / step)
            ),
            path,
        )

    def _places(self) -> list[Path]:
        """Return the folders in which this artifact's bytes may lie."""
        root = Path(os.path.realpath(self.root))
        in_cache = root.parent.name == "snapshots" and is_commit(root.name)
        return [root, root.parent.parent / "blobs"] if in_cache else [root]
