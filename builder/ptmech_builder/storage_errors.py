"""What a disk refuses, in one line that says what is kept and what to do."""

from __future__ import annotations

import errno
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from ptmech.errors import StorageError

_WAYS_OUT = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room in your quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close other programs, the machine is out of file handles",
    errno.EROFS: "make it writable",
    errno.EACCES: "make it writable",
    errno.EPERM: "make it writable",
    errno.EXDEV: "put it on the same disk as the rest of the artifact",
    errno.ENOTDIR: "move away what is in its place",
    errno.EISDIR: "move away what is in its place",
    errno.EEXIST: "move away what is in its place",
    errno.ELOOP: "mend the link",
    errno.ENAMETOOLONG: "choose a shorter folder with --out",
    errno.ENOLCK: "choose a folder on a disk that knows locks with --out",
}


@contextmanager
def storage_errors(path: Path) -> Generator[None]:
    """Turn what the operating system says of a file into a :class:`StorageError`.

    Parameters
    ----------
    path
        The file that is being read or written.

    Raises
    ------
    StorageError
        For any error of the operating system; ``errno`` is kept.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        way_out = _WAYS_OUT.get(error.errno or 0, "see to the disk")
        explained = StorageError(
            f"{path}: {error.strerror or type(error).__name__}; finished units are kept: {way_out} "
            "and run the same build again"
        )
        explained.errno = error.errno
        raise explained from error
