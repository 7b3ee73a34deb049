"""The reference of the card, from the schema that cards are read with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path, PurePath
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import griffe
from pydantic import BaseModel

_MARK = re.compile(r"<!-- fields: ([\w.]+) -->")
_SOURCES = [Path(__file__).parents[2] / name for name in ("sdk", "builder")]
_ROLE = re.compile(r":\w+:`~?([^`]+)`")
_PLAIN = {bool: "true or false", int: "whole number", float: "number", str: "text"}
_BOUNDS = {"ge": "from {}", "gt": "above {}", "le": "to {}", "lt": "below {}"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put tables of fields where a page asks for them."""
    return _MARK.sub(lambda mark: table(mark[1]), markdown)


def table(path: str) -> str:
    """Return the fields of a schema as a table: key, type, default, meaning."""
    module, _, name = path.rpartition(".")
    schema = getattr(import_module(module), name)
    meanings = told(path)
    rows = (
        f"| `{key}` | {_type(field.annotation)}{_bounds(field.metadata)} | {_default(field)} "
        f"| {meanings.get(key, '')} |"
        for key, field in schema.model_fields.items()
    )
    return "\n".join(["| key | type | default | |", "|---|---|---|---|", *rows])


def told(path: str) -> dict[str, str]:
    """Return what the source says of each field: below it, or in the docstring of its class."""
    module, _, name = path.rpartition(".")
    schema: Any = griffe.load(module, search_paths=_SOURCES)[name]
    return dict(_listed(schema)) | {
        key: _cell(member.docstring.value)
        for key, member in schema.members.items()
        if member.is_attribute and member.docstring is not None
    }


def _listed(schema: Any) -> Iterator[tuple[str, str]]:
    if schema.docstring is not None:
        for section in schema.docstring.parse("numpy", warnings=False):
            if section.kind.value == "attributes":
                yield from ((each.name, _cell(each.description)) for each in section.value)


def _type(annotation: Any) -> str:
    """Return a type in the words of TOML."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    if origin is Literal:
        return " or ".join(f"`{value!r}`".replace("'", '"') for value in arguments)
    if origin is Annotated:
        return _type(arguments[0]) + _bounds(arguments[1:])
    if origin in (Union, UnionType):
        kinds = dict.fromkeys(_type(each) for each in arguments if each is not NoneType)
        return " or ".join(kinds)
    if origin is tuple:
        return f"list: {_type(arguments[0])}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"table: {_type(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
    return "path" if isinstance(annotation, type) and issubclass(annotation, PurePath) else "text"


def _bounds(metadata: Any) -> str:
    """Return the limits of a number."""
    limits = [
        phrase.format(getattr(each, name))
        for part in metadata
        for each in getattr(part, "metadata", None) or [part]
        for name, phrase in _BOUNDS.items()
        if getattr(each, name, None) is not None
    ]
    return f", {' '.join(limits)}" if limits else ""


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    match value:
        case bool():
            return f"`{str(value).lower()}`"
        case str() if value:
            return f'`"{value}"`'
        case int() | float():
            return f"`{value}`"
        case tuple() if value:
            return f"`{list(value)!r}`".replace("'", '"')
        case _:
            return ""


def _cell(text: str) -> str:
    return " ".join(_ROLE.sub(r"`\1`", text).replace("|", "\\|").split())
