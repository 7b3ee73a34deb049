"""From an artifact to one HTML file."""

from __future__ import annotations

from pathlib import Path

from ptmech.artifact import Artifact
from ptmech.errors import DataError
from ptmech.report.findings import findings
from ptmech.report.page import page
from ptmech.report.sections import sections
from ptmech.saving import written_whole


def write(
    artifact: Artifact,
    path: str | Path,
    earlier: str | None = None,
    later: str | None = None,
) -> Path:
    """Write the report of a pair of stages.

    One file without anything outside it: no network is needed to read it, and none is used. The
    same artifact and versions give the same bytes. Texts of the artifact are shown as texts; a
    browser that opens the file runs the file's own drawing code and nothing else.

    Parameters
    ----------
    artifact
        Any artifact.
    path
        Of the file, ``.html``; one that is there is replaced.
    earlier, later
        Names of the stages; the first and the last if None.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    UnknownNameError
        If a stage does not exist.
    DataError
        If both stages are the same, or the file's name does not end in ``.html``.
    PrerequisiteError
        If altair, jinja2 or vl-convert is missing.
    StorageError
        If the file cannot be written.

    Examples
    --------
    >>> import ptmech as sdk
    >>> sdk.report.write(sdk.load("artifacts/demo"), "report.html")  # doctest: +SKIP
    """
    if (place := Path(path)).suffix.lower() not in (".html", ".htm"):
        raise DataError(f"a report is a web page: {place.name!r} has to end in .html")
    first, last = earlier or artifact.stages[0], later or artifact.stages[-1]
    artifact.pair(first, last)  # refuses unknown stages and twice the same
    document = page(
        artifact,
        first,
        last,
        findings=findings(artifact, first, last),
        sections=sections(artifact, first, last),
    )
    return written_whole(place, document.encode())
