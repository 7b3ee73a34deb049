"""Every error ptmech raises on purpose.

One root, :class:`PtmechError`, so that a caller can catch everything of ours at once; each child
also inherits the builtin a caller would reach for. A message is one line that names the thing and
the way out, because the command line prints it as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from ptmech._privacy import without_secrets
from ptmech._text import shortened, visible


class PtmechError(Exception):
    """Root of all errors that ptmech raises on purpose.

    Messages quote what they were given: addresses, names in cards, what servers say. Tokens and
    passwords in it are taken out here, for all of them.

    Examples
    --------
    >>> str(PtmechError("nothing at https://user:secret@example.org/acts"))
    'nothing at https://***@example.org/acts'
    """

    def __init__(self, *details: object) -> None:
        shown = (without_secrets(each) if isinstance(each, str) else each for each in details)
        super().__init__(*shown)


class UnknownNameError(PtmechError, LookupError):
    """A stage, dataset, site, layer, position or column that does not exist."""


class NotStoredError(PtmechError, LookupError):
    """Something that exists in principle but was not built into this artifact."""


class DataError(PtmechError, ValueError):
    """Input data an analysis cannot use: empty, one class only, not finite, wrong shape."""


class CardError(PtmechError, ValueError):
    """A card (the recipe of an artifact) that cannot be read or does not hold together."""


class ArtifactNotFoundError(PtmechError, FileNotFoundError):
    """There is no artifact where one was asked for."""


class AccessError(PtmechError, PermissionError):
    """The server knows what was asked for and does not give it to this reader."""


class HiddenArtifactError(ArtifactNotFoundError, AccessError):
    """There is no such artifact, or it is private: the Hub does not say which of the two."""


class UnreachableError(PtmechError, ConnectionError):
    """A server that cannot be reached, or that is too busy or too broken to answer."""


class OfflineError(UnreachableError):
    """Something that is not on this machine, while going to the network is switched off."""


class RedirectError(PtmechError, OSError):
    """A server that leads to where it is not safe to follow."""


class FormatError(PtmechError, ValueError):
    """A file that is not what its name says, or of a format newer than this version."""


class IntegrityError(PtmechError, OSError):
    """Bytes that differ from what the manifest promises."""


class StrayLinkError(IntegrityError):
    """A link by which a path of the artifact leads out of its folder.

    Attributes
    ----------
    link
        Where it is, below the artifact: the path itself, or a folder above it.
    """

    def __init__(self, *details: object, link: str = "") -> None:
        super().__init__(*details)
        self.link = link


class StorageError(PtmechError, OSError):
    """A disk that refuses: full, read-only, out of handles, closed to this user, broken."""


class BusyError(PtmechError, RuntimeError):
    """A folder in which another build is making the same files in another way."""


class AlignmentError(PtmechError, ValueError):
    """Rows of two stages that are not the same prompts."""


class AlignmentWarning(UserWarning):
    """Rows were left out because not both stages have them, as the caller asked."""


class UnsupportedModelError(PtmechError, NotImplementedError):
    """A model whose sites ptmech does not know how to find."""


class ParityError(PtmechError, ArithmeticError):
    """Extracted activations that differ from a plain forward beyond the tolerance."""


class PrerequisiteError(PtmechError, ImportError):
    """An optional dependency that this call needs; the message gives the pip command."""


def first_line(error: object) -> str:
    r"""Return the first line of what a library says, without a full stop, to be quoted in ours.

    An error that says nothing is quoted by the name of its type.

    Examples
    --------
    >>> first_line(ValueError("no such column\nmore about it")), first_line(TimeoutError())
    ('no such column', 'TimeoutError')
    """
    said = str(error).strip()
    return (said or type(error).__name__).splitlines()[0].rstrip(".")


def unknown(kind: str, name: object, known: Iterable[object]) -> UnknownNameError:
    """Build the error for a name that is not there, with the closest names that are.

    Parameters
    ----------
    kind
        What was looked up, in the singular: ``"dataset"``, ``"layer"``.
    name
        What was asked for.
    known
        What exists.

    Examples
    --------
    >>> str(unknown("dataset", "citties", ["cities", "facts"]))
    "unknown dataset 'citties'; did you mean 'cities'? Available: cities, facts"
    """
    if isinstance(known, range):
        return UnknownNameError(f"unknown {kind} {name!r}. Available: {known[0]} to {known[-1]}")
    names = [visible(shortened(str(option))) for option in known]
    close = get_close_matches(name, names, n=3, cutoff=0.6) if isinstance(name, str) else []
    hint = f"; did you mean {' or '.join(repr(match) for match in close)}?" if close else "."
    listed = ", ".join(names[:40]) + (", ..." if len(names) > 40 else "")
    asked = shortened(repr(name))
    return UnknownNameError(f"unknown {kind} {asked}{hint} Available: {listed or 'none'}")
