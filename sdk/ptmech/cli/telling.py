"""What a command says when something is wrong: one line on standard error, and an exit code."""

from __future__ import annotations

import errno
from typing import Any, Final

import typer

from ptmech._text import visible
from ptmech.errors import first_line

BUG, UNMET, DAMAGED, INTERRUPTED = 1, 2, 3, 130

_WAYS_OUT: Final = {
    errno.EACCES: "; give yourself the right to it",
    errno.EPERM: "; give yourself the right to it",
    errno.ENOENT: "; check how it is spelled",
    errno.ENOSPC: "; make room and try again",
    errno.EMFILE: "; raise the limit on open files (ulimit -n)",
}


def say(problem: object) -> None:
    """Write one line to standard error, whatever it is made of."""
    typer.echo(f"ptmech: {visible(' '.join(str(problem).split()))}", err=True)


def leave(problem: object, code: int) -> typer.Exit:
    """Say in one line what is wrong, and return the exit to raise."""
    say(problem)
    return typer.Exit(code)


def misused(error: Any) -> typer.Exit:
    """Say what is wrong with a command line, and where it is explained."""
    command = error.ctx.command_path if error.ctx else "ptmech"
    return leave(f"{error.format_message().rstrip('.')}; see {command} --help", UNMET)


def refused(error: OSError) -> str:
    """Return what the operating system refuses, of which file, and the way out."""
    what = error.strerror or first_line(error)
    where = "" if error.filename is None else f"{error.filename}: "
    return f"{where}{what}{_WAYS_OUT.get(error.errno or 0, '')}"
