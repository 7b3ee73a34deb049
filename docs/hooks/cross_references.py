"""Roles of docstrings, such as ``:func:`load```, as links to where the site has the thing."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`~?(?:([^`<]+?)\s*<([^`>]+)>|([^`]+))`")
_LITERAL = re.compile(r"::$", re.MULTILINE)


class CrossReferences(griffe.Extension):
    """Rewrites every docstring of a package once all of it is known."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Rewrite the docstrings of a package."""
        _rewrite(pkg)


def _rewrite(thing: Any) -> None:
    if thing.docstring is not None:
        text = _LITERAL.sub(":", thing.docstring.value)
        thing.docstring.value = _ROLE.sub(lambda role: _link(thing, role), text)
    for member in thing.members.values():
        if not member.is_alias:
            _rewrite(member)


def _link(thing: griffe.Object, role: re.Match[str]) -> str:
    shown = role[1] or role[3]
    target = _path(thing, role[2] or role[3])
    # optional: what has no place in the site stays code without a link.
    return f'<autoref identifier="{target}" optional><code>{shown}</code></autoref>'


def _path(thing: griffe.Object, name: str) -> str:
    """Return the full path of a name as it is written in a docstring."""
    if name.startswith(("ptmech.", "ptmech_builder.")):
        return _thing(thing, name)
    first, dot, rest = name.partition(".")
    try:
        return _thing(thing, thing.resolve(first) + dot + rest)
    except griffe.NameResolutionError:
        return name


def _thing(beside: griffe.Object, path: str) -> str:
    """Return the path of what a module is named after, where the path is that module's."""
    name = path.rpartition(".")[2]
    try:
        found = beside.modules_collection[path]
    except (KeyError, griffe.GriffeError):
        return path
    named_after = found.is_module and name in found.members
    return f"{path}.{name}" if named_after else path
