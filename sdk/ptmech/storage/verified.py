"""The one check that bytes are the right ones, however many files come at once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Event, Lock
from typing import Final

from tqdm import tqdm

from ptmech._json import is_pointer
from ptmech.errors import (
    ArtifactNotFoundError,
    FormatError,
    IntegrityError,
    StorageError,
    UnreachableError,
)
from ptmech.manifest import FileEntry
from ptmech.storage.source import MissingFileError, RemoteSource, Source

AT_ONCE: Final = 8
"""Files that are brought at the same time: enough to hide latency, few enough to be polite."""
SILENT_SECONDS: Final = 1.0
"""What takes no longer than this shows no progress bar."""

MAX_READ_BYTES: Final = 2**30
"""Of a file that is read and not mapped: more than any part, grid or adapter's description has."""

_Mark = tuple[int, int, int, str]
"""What a file was when it was found right: inode, size, modification time, promised digest."""


class VerifiedFiles:
    """Files of an artifact, each checked against its manifest entry before its first use.

    What was checked is remembered by inode, size, modification time and promised digest, so that a
    file is hashed once a process and again if it was touched. A file from another machine that is
    not what the manifest promises is brought once more, past the cache; a folder's files are never
    touched. Threads may share an instance.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._remote = source if isinstance(source, RemoteSource) else None
        self._seen: dict[str, _Mark] = {}
        self._passed: dict[tuple[str, Hashable], _Mark] = {}
        self._locks: dict[str, Lock] = {}

    @property
    def remote(self) -> bool:
        """Whether files may have to be brought from another machine."""
        return self._remote is not None

    def path(self, entry: FileEntry) -> Path:
        """Return the local path of a file whose bytes are the promised ones.

        Raises
        ------
        IntegrityError
            If the file is missing, or its size or sha256 differs from the manifest's.
        StorageError
            If the disk does not let it be read.
        AccessError, UnreachableError
            If it has to be brought from another machine, and that fails.
        """
        with self._locks.setdefault(entry.path, Lock()):
            local = self._brought(entry)
            problem = self._problem(entry, local)
            if problem is None:
                return local
            if self._remote is None:
                raise IntegrityError(f"{problem}; delete it and build or download it again")
            try:
                local = self._remote.refetch(entry.path, entry.bytes)
            except (MissingFileError, ArtifactNotFoundError, UnreachableError) as error:
                raise IntegrityError(f"{problem}, and cannot be replaced: {error}") from error
            problem = self._problem(entry, local)
            if problem is None:
                return local
            raise IntegrityError(
                f"{problem}; downloaded twice from {self._source.name}, so it is wrong there"
            )

    def once(self, entry: FileEntry, what: Hashable, check: Callable[[], None]) -> None:
        """Run a check of what a file holds, unless it has passed and the file is the same since.

        Parameters
        ----------
        entry
            The file, whose :meth:`path` was just asked for: that finds out whether it was touched.
        what
            Names the check among those of this file.
        check
            Raises what is wrong; then it runs again the next time.
        """
        mark = self._seen.get(entry.path)
        if mark is not None and self._passed.get((entry.path, what)) == mark:
            return
        check()
        if mark is not None:
            self._passed[entry.path, what] = mark

    def read(self, entry: FileEntry) -> bytes:
        """Return all bytes of a checked file.

        Raises
        ------
        FormatError
            If it is too large for that: such a file can be mapped, or is no file of ours.
        IntegrityError, AccessError, UnreachableError
            As for :meth:`path`.
        """
        if entry.bytes > MAX_READ_BYTES:
            raise FormatError(
                f"{entry.path} has {entry.bytes} bytes, more than are read into memory at once"
            )
        return self.path(entry).read_bytes()

    def bring(self, entries: Iterable[FileEntry], title: str, *, progress: bool = True) -> None:
        """Have files on this machine, several at a time; a folder's files are there already.

        Parameters
        ----------
        entries
            The files. Those on this machine already are neither brought nor checked.
        title
            What a progress bar says. It appears on a terminal only.
        progress
            Whether to show one.

        Raises
        ------
        IntegrityError
            If a file is missing or damaged where it comes from; the others are brought first.
        AccessError, UnreachableError
            At the first file that cannot be had.
        """
        source = self._remote
        if source is None:
            return
        absent = {entry.path: entry for entry in entries if not source.cached(entry.path)}
        if not absent:
            return
        damage: IntegrityError | None = None
        bar = tqdm(
            total=sum(entry.bytes for entry in absent.values()),
            desc=title,
            unit="B",
            unit_scale=True,
            leave=False,
            delay=SILENT_SECONDS,
            disable=None if progress else True,
        )
        given_up = Event()

        def bring_one(entry: FileEntry) -> None:
            if given_up.is_set():  # begun before the pool was told to stop
                return
            try:
                self.path(entry)
            except Exception as error:
                if not isinstance(error, IntegrityError):
                    given_up.set()
                raise

        pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="ptmech")
        try:
            awaited = {pool.submit(bring_one, entry): entry for entry in absent.values()}
            for done in as_completed(awaited):
                try:
                    done.result()
                except IntegrityError as error:
                    damage = damage or error
                bar.update(awaited[done].bytes)
        finally:  # after an error or an interrupt, what has not begun never does
            pool.shutdown(cancel_futures=True)
            bar.close()
        if damage is not None:
            raise damage

    def _brought(self, entry: FileEntry) -> Path:
        try:
            return self._source.fetch(entry.path, entry.bytes)
        except MissingFileError as error:
            raise self._missing(entry) from error

    def _missing(self, entry: FileEntry) -> IntegrityError:
        return IntegrityError(
            f"{entry.path} is missing from {self._source.name}; build or download it again"
        )

    def _problem(self, entry: FileEntry, local: Path) -> str | None:
        """Say what is wrong with a file, or remember that nothing is."""
        try:
            status = local.stat()
            mark = (status.st_ino, status.st_size, status.st_mtime_ns, entry.sha256)
            if self._seen.get(entry.path) == mark:
                return None
            if status.st_size != entry.bytes:
                with local.open("rb") as stream:
                    pointer = " (a Git LFS pointer: git lfs pull)" * is_pointer(stream.read(64))
                return (
                    f"{entry.path} has {status.st_size} bytes where the manifest promises "
                    f"{entry.bytes}{pointer}"
                )
            with local.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self._missing(entry) from error
        except OSError as error:
            raise StorageError(
                f"{entry.path} cannot be read ({error.strerror or type(error).__name__}): see to "
                "the disk and to who may read it"
            ) from error
        if digest != entry.sha256:
            return (
                f"{entry.path} is damaged: sha256 {digest[:12]}... where the manifest promises "
                f"{entry.sha256[:12]}..."
            )
        self._seen[entry.path] = mark
        return None
