"""An artifact made ready for the Hub, on this machine alone: checked in full, with its page."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import get_token

from ptmech.errors import DataError, IntegrityError
from ptmech.loading import load
from ptmech.verify import verify
from ptmech_builder.cards import CardFile
from ptmech_builder.publishing.errors import RefusedError
from ptmech_builder.publishing.page import published_files
from ptmech_builder.publishing.refusals import (
    private_to_this_machine,
    require_clean,
    require_no_vocabulary_matrices,
)
from ptmech_builder.publishing.staging import Staged, default_tag, stage

_REPOSITORY = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)
_TAG = re.compile(r"[A-Za-z0-9_][\w.-]*", re.ASCII)


def prepare(
    root: Path, repo_id: str, card: CardFile, *, tag: str | None = None, narrowed: bool = False
) -> Staged:
    """Check an artifact in full and make its published form.

    Parameters
    ----------
    root
        Folder of the artifact.
    repo_id
        ``owner/name`` it will have on the Hub.
    card
        The card it was built from.
    tag
        What this version will be called; by default ``v1-`` and twelve digits of its manifest.
    narrowed
        Whether a build that left a part of its card out may go.

    Returns
    -------
    Staged
        Every file that goes, with its digest. Nothing has been sent.

    Raises
    ------
    ArtifactNotFoundError, IntegrityError
        If the folder holds no artifact, or a damaged one.
    CardError
        If the card is of another artifact, or has changed since.
    RefusedError
        If a file must not be published, or is too large; if the artifact is a part of its card and
        `narrowed` is False.
    DataError
        If `repo_id` or `tag` are no names.
    """
    if _REPOSITORY.fullmatch(repo_id) is None:
        raise DataError(f"{repo_id!r} is no repository: write OWNER/NAME")
    if tag is not None and _TAG.fullmatch(tag) is None:
        raise DataError(f"{tag!r} is no tag: letters, digits, '.', '_' and '-' make one")
    artifact = load(root)
    left_out = artifact.manifest.narrowed
    if left_out and not narrowed:
        raise RefusedError(
            f"{artifact.id} is not all of its card ({left_out}): build it whole, or publish the "
            "part by --narrowed"
        )
    if faults := verify(artifact):
        more = f", and {len(faults) - 1} more faults" if len(faults) > 1 else ""
        raise IntegrityError(f"{faults[0]}{more}; see ptmech verify {root}, then build again")
    version = tag or default_tag(artifact.id)
    staged = stage(artifact, root, published_files(artifact, card, repo_id, version), version)
    require_no_vocabulary_matrices(staged.files.values(), artifact.manifest.stages)
    require_clean(staged.files.values(), private_to_this_machine(root, repo_id, get_token()))
    return staged
