"""What a user may write to name an artifact, and what it then is: a folder, the Hub, a web root."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from ptmech._text import shortened
from ptmech.errors import DataError, first_line
from ptmech.hub_names import is_repository, is_revision

_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_DATASET: Final = re.compile(rf"(?P<repo>{_PART}/{_PART})(?:@(?P<revision>.+))?")
_SCHEME: Final = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+)://(?P<rest>.*)", re.DOTALL)
_OTHER_KINDS: Final = ("models", "spaces", "kernels", "buckets")


@dataclass(frozen=True)
class FolderReference:
    """A folder on this machine, which may not exist."""

    path: Path


@dataclass(frozen=True)
class HubReference:
    """A dataset repository on the Hub.

    Attributes
    ----------
    repo
        ``"owner/name"``.
    revision
        Branch, tag or commit; None for the default branch.
    explicit
        Whether it was written with ``hf://``, and so could not mean a folder.
    """

    repo: str
    revision: str | None = None
    explicit: bool = False


@dataclass(frozen=True)
class WebReference:
    """A folder behind ``https://``, without a slash at its end."""

    root: str


Reference = FolderReference | HubReference | WebReference


def parse_reference(ref: str | Path, revision: str | None = None) -> Reference:
    """Tell which kind of artifact is meant.

    Parameters
    ----------
    ref
        A folder; ``owner/name[@revision]`` or ``hf://[datasets/]owner/name[@revision]`` for a
        dataset on the Hub; ``https://host/path`` (``http://`` for a server on this machine only).
        A folder that exists wins over a dataset of the same spelling.
    revision
        The same as the one after ``@``.

    Returns
    -------
    FolderReference or HubReference or WebReference

    Raises
    ------
    DataError
        If it is none of these, names two different revisions, or a revision of what has none.

    Examples
    --------
    >>> parse_reference("ptmech/llama3-acts@v1")
    HubReference(repo='ptmech/llama3-acts', revision='v1', explicit=False)
    >>> parse_reference("https://example.org/acts/")
    WebReference(root='https://example.org/acts')
    """
    if isinstance(ref, Path):
        return _folder(ref, revision)
    if not ref:
        raise DataError("'' names no artifact; the folder you are in is '.'")
    if scheme := _SCHEME.fullmatch(ref):
        match scheme["scheme"].lower():
            case "hf":
                return _hub(ref, scheme["rest"], revision, explicit=True)
            case "https" | "http":
                return _web(ref, revision)
            case _:
                raise DataError(f"{ref!r}: artifacts are folders, hf:// datasets or https:// roots")
    try:
        folder = Path(ref).expanduser()
    except RuntimeError as error:
        raise DataError(f"{ref!r}: there is no such user, or no home folder") from error
    if _is_there(folder) or _DATASET.fullmatch(ref) is None:
        return _folder(folder, revision)
    return _hub(ref, ref, revision, explicit=False)


def _folder(path: Path, revision: str | None) -> FolderReference:
    if revision is not None:
        raise DataError(
            f"{str(path)!r} is a local folder and takes no revision; "
            "a dataset on the Hub can be named hf://owner/name"
        )
    _is_there(path)
    return FolderReference(path)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:  # a name longer than any, a folder of somebody else
        raise DataError(f"{shortened(str(path))!r} cannot be opened: {error.strerror}") from error


def _hub(ref: str, name: str, revision: str | None, *, explicit: bool) -> HubReference:
    kind, _, rest = name.partition("/")
    if explicit and kind == "datasets":
        name = rest
    elif explicit and kind in _OTHER_KINDS and "/" in rest:
        raise DataError(f"{ref!r}: artifacts are datasets: hf://datasets/owner/name")
    found = _DATASET.fullmatch(name)
    if found is None:
        raise DataError(f"{ref!r} names no dataset; write hf://owner/name or hf://owner/name@v1")
    if not is_repository(found["repo"]):
        missing = "" if explicit else "there is no such folder, and "
        raise DataError(f"{ref!r}: {missing}{found['repo']!r} cannot be a repository's name")
    stated = found["revision"]
    if stated is not None and revision is not None and stated != revision:
        raise DataError(f"{ref!r} names one revision, revision={revision!r} another")
    chosen = revision if stated is None else stated
    if chosen is not None and not is_revision(chosen):
        raise DataError(f"{chosen!r} is no branch, tag or commit")
    return HubReference(found["repo"], chosen, explicit)


def _web(ref: str, revision: str | None) -> WebReference:
    try:
        url = urlsplit(ref)
        port_is_one = url.port is None or url.port > 0
    except ValueError as error:
        raise DataError(f"{ref!r} is no plain address: {first_line(error)}") from error
    if url.username is not None or url.password is not None:
        raise DataError(f"an address with a password is not opened (host {url.hostname})")
    in_order = ref.isascii() and ref.isprintable() and " " not in ref and port_is_one
    if url.query or url.fragment or not url.hostname or not in_order:
        raise DataError(f"{ref!r} is no plain address: write https://host/path")
    if url.scheme.lower() == "http" and not is_loopback(url.hostname):
        raise DataError(f"{ref!r}: http:// is for a server on this machine; write https://")
    if revision is not None:
        raise DataError(f"{ref!r} is a web root: only datasets on the Hub have revisions")
    return WebReference(ref.rstrip("/"))


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
