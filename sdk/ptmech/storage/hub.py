"""Artifacts that are datasets on the Hub, one file at a time through its own client.

The client keeps what it downloads, does it again after a broken connection, and never sends the
token anywhere but to the Hub. What it leaves open is done here: errors of one line, patience with
a content network that is busy, and the check of a manifest, whose sha256 nobody promised, against
the name that the Hub gives to its bytes.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any, Self

from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    FileMetadataError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
)
from tqdm import tqdm

from ptmech._json import MAX_JSON_BYTES
from ptmech.errors import ArtifactNotFoundError, IntegrityError, PtmechError, UnreachableError
from ptmech.hub_errors import explain
from ptmech.hub_names import is_commit
from ptmech.manifest import MANIFEST
from ptmech.storage.references import HubReference
from ptmech.storage.remote import (
    TRANSPORT_ERRORS,
    on_this_disk,
    persistent,
)
from ptmech.storage.source import MissingFileError


class HubSource:
    """A dataset repository on the Hub at one commit.

    Attributes
    ----------
    repo
        ``"owner/name"``.
    revision
        The commit, 40 hexadecimal digits.
    """

    def __init__(self, repo: str, revision: str, cache_dir: Path | None, token: str | None) -> None:
        self.repo = repo
        self.revision = revision
        self._cache_dir = cache_dir
        self._token = token

    @classmethod
    def open(
        cls,
        reference: HubReference,
        cache_dir: Path | None = None,
        token: str | None = None,
        *,
        anew: bool = False,
    ) -> Self:
        """Find the commit that a branch or tag names now, by fetching the manifest.

        All else is fetched at that commit, whatever happens to the branch meanwhile. Without a
        connection it is the commit that the branch named when it was last read.

        Raises
        ------
        ArtifactNotFoundError
            If there is no such repository or revision, or it holds no artifact.
        AccessError
            If the reader may not have it.
        UnreachableError
            If the Hub cannot be reached and the cache does not have it.
        IntegrityError
            If the manifest is damaged, or of another commit than the one asked for.
        """
        asked = reference.revision or constants.DEFAULT_REVISION
        source = cls(reference.repo, asked, cache_dir, token)
        try:
            manifest = source.refetch(MANIFEST) if anew else source.fetch(MANIFEST)
        except (ArtifactNotFoundError, UnreachableError) as error:
            if reference.explicit:
                raise
            raise type(error)(f"there is no folder {source.repo!r} here; {error}") from error
        except MissingFileError as error:
            raise ArtifactNotFoundError(
                f"{source.name} holds no {MANIFEST}: not an artifact of ptmech"
            ) from error
        # Where the client keeps a file tells its commit: <cache>/<repo>/snapshots/<commit>/<file>.
        commit = manifest.parent.name
        if not is_commit(commit) or (is_commit(asked) and commit != asked):
            raise IntegrityError(f"{source.name}: the Hub answered with another commit, {commit!r}")
        source.revision = commit
        if not _is_what_the_hub_named(manifest):
            raise IntegrityError(f"{MANIFEST} of {source.name} is not what the Hub says it is")
        return source

    @property
    def name(self) -> str:
        """``owner/name@commit``, which :func:`ptmech.load` takes again."""
        return f"{self.repo}@{self.revision}"

    def fetch(self, path: str, size: int | None = None) -> Path:  # noqa: ARG002  the Hub knows it
        """Download a file at the commit, unless the cache has it: then nobody is asked.

        Raises
        ------
        MissingFileError
            If the repository lacks the file.
        ArtifactNotFoundError, AccessError, UnreachableError
            If it cannot be had at all.
        """
        return self._download(path)

    def cached(self, path: str) -> bool:
        """Whether the cache has a file of this commit."""
        return self._in_cache(path) is not None

    def refetch(self, path: str, size: int | None = None) -> Path:  # noqa: ARG002  as for fetch
        """Download a file again and replace the one in the cache."""
        damaged = self._in_cache(path)
        if damaged is not None and not damaged.is_symlink():
            damaged.unlink()  # without links, the client would leave it in place
        return self._download(path, force_download=True)

    def _in_cache(self, path: str) -> Path | None:
        found = try_to_load_from_cache(
            self.repo, path, self._cache_dir, self.revision, repo_type="dataset"
        )
        return Path(found) if isinstance(found, str) else None

    def _download(self, path: str, **options: Any) -> Path:
        def attempt() -> Path:
            with on_this_disk(self._cache_dir):
                found = hf_hub_download(
                    self.repo,
                    path,
                    repo_type="dataset",
                    revision=self.revision,
                    cache_dir=self._cache_dir,
                    token=self._token,
                    library_name="ptmech",
                    tqdm_class=NoBar,
                    **options,
                )
            return Path(found)

        try:
            return persistent(attempt)
        except RemoteEntryNotFoundError as error:
            raise MissingFileError(f"{self.name} has no file {path}") from error
        except (*TRANSPORT_ERRORS, FileMetadataError) as error:
            raise self._told(error, path) from error
        except (LocalEntryNotFoundError, ValueError) as error:
            # "Not in the cache", "force failed": the client has tried as often as is sensible.
            if not isinstance(error.__cause__, Exception):
                raise
            raise self._told(error, path) from error

    def _told(self, error: Exception, path: str) -> PtmechError:
        """Say in one line what the Hub said."""
        what = self.name if path == MANIFEST else f"{self.name}/{path}"
        return explain(what, error, page=f"{constants.ENDPOINT}/datasets/{self.repo}")

    def __repr__(self) -> str:
        return f"HubSource({self.name})"


class NoBar(tqdm):  # pyright: ignore[reportMissingTypeArgument]
    """No bar for a single file: one bar for all of them is drawn above."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "disable": True})


def _is_what_the_hub_named(local: Path) -> bool:
    """Compare a file with the digest it is kept under, as far as it is kept under one.

    The client names its blobs as the Hub does: a regular file by git's sha1, a large one by sha256.
    """
    blob = local.resolve()
    size = blob.stat().st_size
    if size > MAX_JSON_BYTES:
        return True  # the parser refuses it, whatever it is
    if re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
    if is_commit(blob.name):
        content = b"blob %d\0" % size + blob.read_bytes()
        return hashlib.sha1(content, usedforsecurity=False).hexdigest() == blob.name
    return True
