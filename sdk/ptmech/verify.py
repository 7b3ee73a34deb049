"""Is an artifact whole? Every file, every tensor, every row, without stopping at the first fault.

Analyses check each file they touch before they use it. :func:`verify` touches all of them, and also
checks what no single analysis needs: that the manifests agree with each other, and that the rows of
every file are the rows of the tables. :func:`verify_deep` goes on where a digest has nothing to
say: it runs the models again, on a sample, and compares the numbers themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from ptmech import live
from ptmech._arguments import whole_number
from ptmech._verification.activations import check_parts
from ptmech._verification.faults import Fault
from ptmech._verification.grids import check_grids
from ptmech._verification.inspection import Inspection
from ptmech._verification.manifests import check_listing, check_manifest
from ptmech._verification.scores import check_scores
from ptmech._verification.tables import check_plain_text, check_statements, check_tokens
from ptmech._verification.weights import check_weights
from ptmech.artifact import Artifact
from ptmech.errors import FormatError, IntegrityError
from ptmech.manifest import FileEntry

if TYPE_CHECKING:
    from ptmech.live.recomputation import Recomputation

__all__ = ["Fault", "listed_files", "verify", "verify_deep"]


def verify(artifact: Artifact) -> list[Fault]:
    """Check a whole artifact.

    Reads every byte: size and sha256 of each file against its manifest; names, shape, dtype and
    finiteness of each tensor; columns, types and values of each table; the rows of each activation
    file and token table against the table of statements; that what grids, scores and defaults refer
    to exists; the part manifests against ``manifest.json``, and both against themselves. A file
    that no manifest lists is not looked at: it belongs to another build in the same folder.

    Parameters
    ----------
    artifact
        What :func:`ptmech.load` returned.

    Returns
    -------
    list of Fault
        Empty if the artifact is whole; else everything found, not just the first, and what follows
        from a fault not again.

    Raises
    ------
    AccessError, UnreachableError
        If the artifact is not on this machine and cannot be downloaded.

    Examples
    --------
    >>> import ptmech as sdk
    >>> from ptmech.verify import verify
    >>> verify(sdk.load("artifacts/demo"))  # doctest: +SKIP
    []
    """
    _fetch(artifact)
    inspection = Inspection(artifact)
    check_manifest(inspection)
    check_listing(inspection)
    for entry in {entry.path: entry for entry in artifact.manifest.extras}.values():
        inspection.bytes_of(entry)
    rows = check_statements(inspection)
    check_tokens(inspection, rows)
    check_plain_text(inspection)
    check_weights(inspection)
    check_parts(inspection, rows)
    rows.check(inspection)
    check_scores(inspection, rows)
    check_grids(inspection, rows)
    return inspection.faults


def verify_deep(
    artifact: Artifact,
    *,
    rows: int = 2,
    device: str = "auto",
    folders: Mapping[str, str | Path] | None = None,
    adapters: Mapping[str, str | Path] | None = None,
    faults: Iterable[Fault] = (),
) -> Recomputation:
    """Recompute a sample of an artifact's numbers from its models.

    Each stage is opened at its pinned revision, its weights and tokenizer checked by digest. Of
    every block of rows some are rendered, tokenised and run again, alone and unbatched, by plain
    transformers, and every stored site, layer and position is compared; so are the statistics of
    the unembedding and of sampled neurons of the last MLP, of every stage that stores them.

    Scores and causal traces are not measured again: they are averages over many runs, as costly as
    the build. That ``refusal``, ``knowledge``, ``truth`` and ``confidence`` say what the models do
    rests on their sha256 and on the checks of :func:`verify`; ``unchecked`` of the result names
    what was left out.

    Parameters
    ----------
    artifact
        What :func:`ptmech.load` returned.
    rows
        How many rows of each block.
    device
        A torch device; ``"auto"`` takes the GPU if there is one.
    folders
        Where the weights are, by stage, of stages that were built from a folder.
    adapters
        Where the adapters are, by stage, that may not be part of the artifact.
    faults
        What :func:`verify` found: files that are at fault already are left out.

    Returns
    -------
    Recomputation
        Its ``faults``, the stages that could not be opened and why, how much was recomputed, and
        what was not.

    Raises
    ------
    PrerequisiteError
        If torch or transformers is missing.
    DataError
        If fewer than one row is asked for.
    UnknownNameError
        If a folder or an adapter is given for a stage that does not exist.
    """
    whole_number("rows", rows)
    live.require_torch()
    from ptmech.live.recomputation import recompute

    return recompute(
        artifact,
        rows=rows,
        device=device,
        folders={stage: Path(folder) for stage, folder in (folders or {}).items()},
        adapters={stage: Path(adapter) for stage, adapter in (adapters or {}).items()},
        leave_out={fault.path for fault in faults},
    )


def listed_files(artifact: Artifact) -> list[FileEntry]:
    """Return the entry of every file that the manifests list, ``manifest.json`` aside.

    Parameters
    ----------
    artifact
        Any artifact.

    Returns
    -------
    list of FileEntry
        Part manifests, their files and everything else.

    Raises
    ------
    IntegrityError, FormatError
        If a part manifest cannot be read.
    """
    manifest = artifact.manifest
    parts = [artifact.part(entry.dataset, entry.stage).files for entry in manifest.parts]
    return [*manifest.extras, *manifest.parts, *chain.from_iterable(parts)]


def _fetch(artifact: Artifact) -> None:
    """Bring everything to this machine; what is damaged is found again below, file by file."""
    try:
        artifact.prefetch()
    except (IntegrityError, FormatError):
        return
