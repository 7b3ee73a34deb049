"""Artifacts in a plain folder behind https, as any web server shows one.

A web server has no commits, so what is cached is kept under the sha256 of the manifest: a root
whose artifact is replaced starts a new folder, and old files never mix with new ones.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, Any, Final, Self
from urllib.parse import urlsplit

from huggingface_hub import get_session, hf_raise_for_status

from ptmech._cache import cache_folder
from ptmech._json import MAX_JSON_BYTES
from ptmech.errors import ArtifactNotFoundError, RedirectError, UnreachableError
from ptmech.hub_errors import explain, status_of
from ptmech.manifest import MANIFEST, Manifest
from ptmech.storage.references import WebReference, is_loopback
from ptmech.storage.remote import TRANSPORT_ERRORS, on_this_disk, persistent
from ptmech.storage.source import MissingFileError

TIMEOUT_SECONDS: Final = 30.0
"""After so long without a byte a connection counts as broken."""

MOST_REDIRECTS: Final = 10

_LAST_READ: Final = "last-read"
_PIECE_BYTES: Final = 2**20


class HttpsSource:
    """An artifact below a web root, as its manifest was when it was opened.

    Attributes
    ----------
    name
        The root, without a slash at its end.
    folder
        Where this version of the artifact is cached.
    """

    revision = None

    def __init__(self, root: str, folder: Path) -> None:
        self.name = root
        self.folder = folder

    @classmethod
    def open(cls, reference: WebReference, cache_dir: Path | None = None) -> Self:
        """Fetch the manifest; without a connection, take the one that was read last.

        Raises
        ------
        ArtifactNotFoundError
            If there is no manifest below the root.
        AccessError
            If the server refuses.
        UnreachableError
            If it cannot be reached, and nothing is cached.
        RedirectError
            If it leads to where it is not safe to follow.
        FormatError
            If what answers is no manifest, as the page of a network that wants a login first; what
            was read last stays in the cache.
        """
        root = reference.root
        folder_name = hashlib.sha256(root.encode()).hexdigest()[:16]
        of_root = (cache_dir or cache_folder("files")) / folder_name
        try:
            with _downloaded(f"{root}/{MANIFEST}", MAX_JSON_BYTES, of_root) as arrived:
                raw = arrived.read_bytes()
                Manifest.parse(raw, f"{root}/{MANIFEST}")  # before it takes the place of a good one
                version = hashlib.sha256(raw).hexdigest()
                _move(arrived, of_root / version / MANIFEST)
            with _temporary(of_root) as note:
                note.write(version.encode())
                note.flush()
                _move(Path(note.name), of_root / _LAST_READ)
        except MissingFileError as error:
            raise ArtifactNotFoundError(f"{root} holds no {MANIFEST}: not an artifact") from error
        except UnreachableError:
            version = _last_read(of_root)
            if version is None:
                raise
        return cls(root, of_root / version)

    def fetch(self, path: str, size: int | None = None) -> Path:
        """Download a file, unless the cache has it: then nobody is asked.

        Raises
        ------
        MissingFileError
            If the server does not have the file.
        AccessError, UnreachableError, RedirectError
            If it cannot be had.
        """
        return self.folder / path if self.cached(path) else self.refetch(path, size)

    def cached(self, path: str) -> bool:
        """Whether the cache has a file of this version."""
        return (self.folder / path).is_file()

    def refetch(self, path: str, size: int | None = None) -> Path:
        """Download a file and put it in the place of the one in the cache."""
        with _downloaded(f"{self.name}/{path}", size, self.folder) as arrived:
            _move(arrived, self.folder / path)
        return self.folder / path

    def __repr__(self) -> str:
        return f"HttpsSource({self.name})"


@contextmanager
def _downloaded(url: str, size: int | None, folder: Path) -> Generator[Path]:
    """Download into a temporary file, of which nothing stays unless it is moved away.

    Of a body longer than `size` no more than one further byte is kept: enough to be found wrong.
    """

    def attempt() -> None:
        file.seek(0)
        file.truncate()
        with _answer(url) as response:
            for piece in response.iter_bytes(_PIECE_BYTES):
                file.write(piece)
                if size is not None and file.tell() > size:
                    file.truncate(size + 1)
                    break
        file.flush()

    with _temporary(folder) as file:
        try:
            with on_this_disk(folder):
                persistent(attempt)
        except TRANSPORT_ERRORS as error:
            if status_of(error) in (404, 410):
                raise MissingFileError(f"{url} does not exist") from error
            raise explain(url, error) from error
        yield Path(file.name)


@contextmanager
def _answer(url: str) -> Generator[Any]:
    """Ask for a file and follow where that leads, each step only once it is known to be safe."""
    address = url
    for _ in range(MOST_REDIRECTS + 1):
        with get_session().stream(
            "GET",
            address,
            headers={"Accept-Encoding": "identity"},
            timeout=TIMEOUT_SECONDS,
            follow_redirects=False,
        ) as response:
            if response.next_request is None:
                hf_raise_for_status(response)
                yield response
                return
            address = str(response.next_request.url)
        _require_safe(address, url)
    raise RedirectError(f"{url} leads on and on: more than {MOST_REDIRECTS} redirects")


def _require_safe(address: str, asked: str) -> None:
    """Refuse to be led to this machine from elsewhere, or to where bytes can change on the way."""
    url = urlsplit(address)
    local = is_loopback(url.hostname or "")
    allowed = is_loopback(urlsplit(asked).hostname or "") if local else url.scheme == "https"
    if not allowed:
        raise RedirectError(f"{asked} leads to {url.scheme}://{url.hostname}, which is not safe")


@contextmanager
def _temporary(folder: Path) -> Generator[IO[bytes]]:
    """Open a file that is gone afterwards, if it still has its name."""
    folder.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=folder, prefix=".", suffix=".part", delete=False) as file:
        try:
            yield file
        finally:
            with suppress(FileNotFoundError):
                os.unlink(file.name)


def _move(temporary: Path, path: Path) -> None:
    """Put a whole file under its name, whoever else does the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.replace(path)


def _last_read(folder: Path) -> str | None:
    """Return which version was read last, if it is there."""
    try:
        version = (folder / _LAST_READ).read_text()
    except FileNotFoundError:
        return None
    sound = re.fullmatch(r"[0-9a-f]{64}", version) and (folder / version / MANIFEST).is_file()
    return version if sound else None
