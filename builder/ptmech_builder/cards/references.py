"""How a card names a data file: beside it, in the builder, on the Hub or on GitHub.

====================================  ==========================================================
``relative/path.csv``                 relative to the card
``builtin:path``                      in the builder's own data
``hub:owner/name@revision/path``      in a dataset on the Hub, at a branch, tag or commit
``github:owner/name@commit/path``     in a repository on GitHub, at a full commit
====================================  ==========================================================
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Annotated, Literal, Self, get_args

from pydantic import AfterValidator
from pydantic.fields import FieldInfo

from ptmech.hub_names import is_commit

BUILTIN = "builtin:"

_KIND = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
_REMOTE = re.compile(
    r"(?P<repository>[A-Za-z0-9._-]+/[A-Za-z0-9._-]+)"
    r"@(?P<revision>refs/pr/\d+|refs/convert/[\w-]+|[^/@\s]+)"
    r"/(?P<path>\S(?:.*\S)?)"
)


@dataclass(frozen=True)
class RemoteFile:
    """A file in a public repository.

    Attributes
    ----------
    host
        Where the repository is: a dataset on the Hub, or GitHub.
    repository
        ``owner/name``.
    revision
        Branch, tag or commit; on GitHub always a full commit.
    path
        Of the file in the repository, with forward slashes.
    """

    host: Literal["hub", "github"]
    repository: str
    revision: str
    path: str

    @property
    def name(self) -> str:
        """The file's own name."""
        return PurePosixPath(self.path).name

    @property
    def pinned(self) -> bool:
        """Whether the revision is a full commit."""
        return is_commit(self.revision)

    def at(self, commit: str) -> Self:
        """Return the same file at another revision."""
        return replace(self, revision=commit)

    def __str__(self) -> str:
        """Write the reference as a card does."""
        return f"{self.host}:{self.repository}@{self.revision}/{self.path}"


def remote_file(reference: str) -> RemoteFile | None:
    """Read a reference to a file in a public repository.

    Parameters
    ----------
    reference
        As a card writes it.

    Returns
    -------
    RemoteFile or None
        None for a file that is on this machine: beside the card, or the builder's own.

    Raises
    ------
    ValueError
        If it is neither; the message says how references are written.

    Examples
    --------
    >>> remote_file("hub:owner/name@main/data/train.parquet").revision
    'main'
    >>> remote_file("statements/cities.csv") is None
    True
    """
    kind = _KIND.match(reference)
    if kind is None or reference.startswith(BUILTIN):
        return None
    host = kind.group(1)
    if host not in ("hub", "github"):
        raise ValueError(
            f"{reference!r} is no data file: give a path, 'builtin:path', "
            "'hub:owner/name@revision/path' or 'github:owner/name@commit/path'"
        )
    found = _REMOTE.fullmatch(reference, kind.end())
    if found is None:
        revision = "revision" if host == "hub" else "commit"
        raise ValueError(f"{reference!r} is not of the form '{host}:owner/name@{revision}/path'")
    file = RemoteFile(host, **found.groupdict())
    if any(part in ("", ".", "..") for part in file.path.split("/")):
        raise ValueError(f"{reference!r}: the path must be a plain path in the repository")
    if host == "github" and not file.pinned:
        raise ValueError(
            f"{reference!r}: github files need a full commit of 40 digits, and {file.revision!r} "
            "may move"
        )
    return file


def _checked(reference: str) -> str:
    remote_file(reference)
    return reference


_CHECK = AfterValidator(_checked)
DataReference = Annotated[str, _CHECK]
"""The name of a data file in a card, checked for its form."""


def is_reference(field: FieldInfo) -> bool:
    """Whether a field of a schema holds the name of a data file, or may hold one."""
    choices = get_args(field.annotation)
    return _CHECK in field.metadata or any(
        _CHECK in getattr(choice, "__metadata__", ()) for choice in choices
    )
