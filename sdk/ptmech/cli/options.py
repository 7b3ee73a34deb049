"""What commands have in common: their arguments, and how those become artifact and stages."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from ptmech.cli.telling import say

if TYPE_CHECKING:
    from ptmech.artifact import Artifact

Found = TypeVar("Found")

Ref = Annotated[
    str,
    typer.Argument(
        metavar="REF",
        help="Folder of an artifact, owner/name[@revision] on the Hub, or https:// address.",
        show_default=False,
    ),
]
Earlier = Annotated[str | None, typer.Option(help="Earlier stage; the first one if not given.")]
Later = Annotated[str | None, typer.Option(help="Later stage; the last one if not given.")]
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print one JSON document: tokens, passwords and places of this machine within its "
        "texts are hidden, all else is as stored.",
    ),
]


def opened(ref: str) -> Artifact:
    """Open an artifact by what a user calls it."""
    from ptmech.loading import load

    return load(ref)


def if_stored(read: Callable[[Artifact], Found], artifact: Artifact) -> Found | None:
    """Read what was measured on running models; say so where the artifact holds none."""
    from ptmech.errors import NotStoredError

    try:
        return read(artifact)
    except NotStoredError as error:
        say(error)
        return None


def pair_of(artifact: Artifact, earlier: str | None, later: str | None) -> tuple[str, str]:
    """Return the stages asked for: the first and the last unless named."""
    return earlier or artifact.stages[0], later or artifact.stages[-1]


def by_stage(options: Iterable[str]) -> dict[str, str]:
    """Read options of the form ``STAGE=FOLDER``."""
    from ptmech.errors import DataError

    named: dict[str, str] = {}
    for option in options:
        stage, equals, folder = option.partition("=")
        if not (stage and equals and folder) or stage in named:
            raise DataError(f"each stage once, as STAGE=FOLDER, not {option!r}")
        named[stage] = folder
    return named
