"""Where the bytes of an artifact come from, and the one check that they are the right ones."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol, Self

from ptmech.errors import ArtifactNotFoundError, IntegrityError
from ptmech.manifest import MANIFEST, FileEntry


class Source(Protocol):
    """Anything that can bring a file of an artifact to the local disk."""

    @property
    def name(self) -> str:
        """What the user called it, for messages."""
        ...

    def fetch(self, path: str) -> Path:
        """Return a local path for a file of the artifact; may raise ``FileNotFoundError``."""
        ...


class FolderSource:
    """An artifact in a local folder, finished or not."""

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
                f"no artifact folder {str(root)!r}; build one with: ptmech build CARD --out {root}"
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

    def fetch(self, path: str) -> Path:
        """Return the path below the folder."""
        return self.root / path


class VerifiedFiles:
    """Files of an artifact, each checked against its manifest entry before its first use.

    What was checked is remembered by inode, size and modification time, so that a file is hashed
    once a process and again if it was touched.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._seen: dict[str, tuple[int, int, int]] = {}

    def path(self, entry: FileEntry) -> Path:
        """Return the local path of a file whose bytes are the promised ones.

        Raises
        ------
        IntegrityError
            If the file is missing, or its size or sha256 differs from the manifest's.
        """
        path = self._source.fetch(entry.path)
        try:
            status = path.stat()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise IntegrityError(
                f"{entry.path} is missing from {self._source.name}; build or download it again"
            ) from error
        mark = (status.st_ino, status.st_size, status.st_mtime_ns)
        if self._seen.get(entry.path) == mark:
            return path
        if status.st_size != entry.bytes:
            raise IntegrityError(
                f"{entry.path} has {status.st_size} bytes where the manifest promises "
                f"{entry.bytes}; delete it and build or download it again"
            )
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if digest != entry.sha256:
            raise IntegrityError(
                f"{entry.path} is damaged: sha256 {digest[:12]}... where the manifest promises "
                f"{entry.sha256[:12]}...; delete it and build or download it again"
            )
        self._seen[entry.path] = mark
        return path

    def read(self, entry: FileEntry) -> bytes:
        """Return all bytes of a checked file."""
        return self.path(entry).read_bytes()
