"""The application: its commands, and what becomes of their errors."""

from __future__ import annotations

import errno
import os
import sys
from importlib.metadata import entry_points, version
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup
from typing_extensions import override

from ptmech._output import discreet_output, told
from ptmech.cli.perspectives import confidence, knowledge, refusal, truth
from ptmech.cli.telling import BUG, DAMAGED, INTERRUPTED, UNMET, leave, misused, refused, say
from ptmech.cli.whole import info, report, summary, verify
from ptmech.errors import FormatError, IntegrityError, PtmechError

PLUGINS: Final = "ptmech.commands"
UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""What typer raises for a command line that it does not understand."""


def _print_version(asked: bool) -> None:  # noqa: FBT001  typer calls it so
    if asked:
        typer.echo(f"ptmech {version('ptmech')}")
        raise typer.Exit


_STORY: Final = {
    "First look": (info, summary, report),
    "One perspective": (knowledge, truth, refusal, confidence),
    "Trust it": (verify,),
}
"""The commands in the order in which one needs them, under the headings of the help."""


class OneLineErrors(TyperGroup):
    """Commands whose errors are one line and an exit code, never a traceback."""

    @override
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the options before the command."""
        if not args:  # the help comes instead
            return super().parse_args(ctx, args)
        try:
            return super().parse_args(ctx, args)
        except UsageError as error:
            raise misused(error) from error

    @override
    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except UsageError as error:
            raise misused(error) from error
        except PtmechError as error:
            damaged = isinstance(error, (IntegrityError, FormatError))
            raise leave(error, DAMAGED if damaged else UNMET) from error
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader of a pipe has gone; typer knows how to stop
                raise
            raise leave(refused(error), UNMET) from error
        except KeyboardInterrupt as error:
            raise leave("interrupted", INTERRUPTED) from error


def main() -> None:
    """Run the command line and exit."""
    # What the Hub's client warns of is tried again, or said in one line.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    try:
        with discreet_output():
            create_app()(prog_name="ptmech")
    except SystemExit:
        raise
    except KeyboardInterrupt:  # before there was a command
        say("interrupted")
        sys.exit(INTERRUPTED)
    # Libraries in Rust panic with errors that are no Exception. Told past our own streams: they may
    # be what is broken.
    except BaseException as bug:
        typer.echo(told(bug), err=True, nl=False)
        say(
            f"this is a bug in ptmech {version('ptmech')}: please report it with the lines "
            "above, from which tokens, home folder and names have been taken"
        )
        sys.exit(BUG)


def create_app() -> typer.Typer:
    """Build the command line, with the commands of every installed plugin."""
    app = typer.Typer(
        cls=OneLineErrors,
        callback=_ptmech,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        epilog="Begin with: ptmech info REF, ptmech summary REF, ptmech report REF. "
        "REF is a folder (artifacts/demo), owner/name on the Hub, or an https:// address.",
    )
    for panel, commands in _STORY.items():
        for command in commands:
            app.command(rich_help_panel=panel)(command)
    for plugin in sorted(entry_points(group=PLUGINS)):
        try:
            register = plugin.load()
        except (ImportError, AttributeError) as error:
            say(f"no commands of plugin {plugin.name!r}: {error}")
        else:
            register(app)
    return app


def _ptmech(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """Tell what post-training does inside language models, from stored activations."""
