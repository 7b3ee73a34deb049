"""The reference of the command line, from the application itself."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

from typer.main import get_command

from ptmech.cli import create_app

MARK = "<!-- commands -->"
"""Where a page has the reference."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the reference where a page asks for it."""
    return markdown.replace(MARK, reference()) if MARK in markdown else markdown


def reference() -> str:
    """Return a section for every command: what it does, its arguments and options."""
    application: Any = get_command(create_app())
    sections = (_section(name, command) for name, command in application.commands.items())
    return "\n".join(chain.from_iterable(sections))


def _section(name: str, command: Any) -> Iterator[str]:
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option"]
    metavars = [*map(_metavar, arguments), *(["[OPTIONS]"] if options else [])]
    usage = " ".join(["ptmech", name, *metavars])
    yield from (f"## ptmech {name}", "", _paragraphs(command.help), "")
    yield from ("```text", usage, "```", "")
    yield from ("| argument or option | default | |", "|---|---|---|")
    for argument in arguments:
        yield f"| `{_metavar(argument)}` | | {_cell(argument.help)} |"
    for option in options:
        names = ", ".join(f"`{each}`" for each in option.opts)
        value = "" if option.is_flag else f" `{_metavar(option)}`"
        default = f"`{option.default}`" if option.default and not option.is_flag else ""
        yield f"| {names}{value} | {default} | {_cell(option.help)} |"
    yield ""


def _metavar(parameter: Any) -> str:
    return parameter.metavar or parameter.name.upper()


def _paragraphs(text: str | None) -> str:
    return "\n".join(line.strip() for line in (text or "").splitlines())


def _cell(text: str | None) -> str:
    return " ".join((text or "").replace("|", "\\|").split())
