"""The one reader of an artifact's JSON: bounded before it is parsed, strict about what it says.

JSON from strangers can cost far more than its bytes: ``[[],[],...`` grows forty-fold when it
becomes Python objects, and nesting ends in a RecursionError. So values are counted by what
separates them, before anything is parsed. And JSON can mean two things at once: the same key twice,
numbers that are none. Such a document is refused rather than understood in one of its ways.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from functools import partial
from typing import Any, Final, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from ptmech._text import shortened, visible
from ptmech.errors import FormatError

MAX_JSON_BYTES: Final = 64 * 2**20
"""Of one document: the part manifest of 200,000 files fits."""
MAX_VALUES: Final = 2**20
"""Of one document, as far as commas and brackets tell; those within texts count too."""
MAX_DEPTH: Final = 32
MAX_KEYS: Final = 10_000
"""Of one object: what is longer than that is a list in our documents."""

_INTEGERS: Final = range(-(2**63), 2**64)
_LONGEST_INTEGER: Final = 20
"""Digits and sign of the longest integer that fits 64 bits."""
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")

SchemaT = TypeVar("SchemaT", bound=BaseModel)


def parse_json(
    raw: bytes, where: str, *, max_bytes: int = MAX_JSON_BYTES, max_keys: int = MAX_KEYS
) -> Any:
    """Parse one JSON document that a stranger may have written.

    Parameters
    ----------
    raw
        The document, UTF-8 without a byte order mark.
    where
        What the caller calls it; error messages start with it.
    max_bytes
        How long it may be.
    max_keys
        How many keys one object may have.

    Returns
    -------
    dict, list, str, int, float, bool or None
        At most 32 levels deep; integers fit 64 bits, all numbers are finite, no object names a key
        twice, and every text can be encoded.

    Raises
    ------
    FormatError
        If the document is anything else. Nothing large is allocated to find out.

    Examples
    --------
    >>> parse_json(b'{"rows": 3}', "manifest.json")
    {'rows': 3}
    >>> parse_json(b'{"rows": 3, "rows": 4}', "manifest.json")
    Traceback (most recent call last):
        ...
    ptmech.errors.FormatError: manifest.json: the key 'rows' is there twice
    """
    if len(raw) > max_bytes:
        raise FormatError(f"{where} has {len(raw)} bytes, more than the {max_bytes} it may have")
    if raw.count(b",") + raw.count(b"[") + raw.count(b"{") >= MAX_VALUES:
        raise FormatError(f"{where} holds more than {MAX_VALUES} values, too many for a manifest")
    try:
        value = json.loads(
            raw.decode(),
            object_pairs_hook=partial(_object, max_keys=max_keys),
            parse_int=_integer,
            parse_float=_number,
            parse_constant=_refuse_constant,
        )
    except _RefusedError as error:
        raise FormatError(f"{where}: {error}") from None
    except RecursionError:
        raise FormatError(f"{where} is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise FormatError(f"{where} is {_instead(raw, error)}") from error
    _require_shallow(value, where)
    if _SURROGATE.search(raw):
        _require_encodable(value, where)
    return value


def fitting(schema: type[SchemaT], value: Any, where: str) -> SchemaT:
    """Check parsed JSON against its schema, and say what is wrong with it first, in one line.

    Raises
    ------
    FormatError
        If the value does not fit.
    """
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = "".join(f"{_quoted(str(step))}." for step in first["loc"])[:-1]
        said = _quoted(first["msg"].removeprefix("Value error, "))
        raise FormatError(": ".join(filter(None, (where, place, said)))) from error


def is_pointer(raw: bytes) -> bool:
    """Whether a file is what Git LFS leaves in the place of one that it did not fetch."""
    return raw.startswith(b"version https://git-lfs.github.com/spec/")


class _RefusedError(ValueError):
    """Sound JSON that an artifact may not hold."""


def _instead(raw: bytes, error: ValueError) -> str:
    """Say what a document is that is not JSON."""
    if is_pointer(raw):
        return "a Git LFS pointer, not the file it stands for: git lfs pull"
    if raw.lstrip()[:1] == b"<":
        return "a web page, not JSON: a server asks to log in, or has no such file"
    return f"not JSON ({error}); build or download it again"


def _object(pairs: list[tuple[str, Any]], max_keys: int) -> dict[str, Any]:
    if len(pairs) > max_keys:
        raise _RefusedError(f"an object of {len(pairs)} keys; there may be {max_keys}")
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise _RefusedError(f"the key {_quoted(twice)!r} is there twice")
    return made


def _integer(digits: str) -> int:
    if len(digits) > _LONGEST_INTEGER or int(digits) not in _INTEGERS:
        raise _RefusedError(f"the number {shortened(digits, 24)} is too large")
    return int(digits)


def _number(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise _RefusedError(f"the number {shortened(digits, 24)} is too large")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise _RefusedError(f"{name} is no number of JSON")


def _require_shallow(value: Any, where: str) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _items(outer) if _items(inner)]
        if not level:
            return
    raise FormatError(f"{where} is nested deeper than {MAX_DEPTH} levels")


def _items(value: Any) -> list[Any]:
    match value:
        case list():
            return value
        case dict():
            return list(value.values())
        case _:
            return []


def _require_encodable(value: Any, where: str) -> None:
    """Refuse halves of surrogate pairs, which no file and no terminal can take."""
    for text in _texts(value):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise FormatError(f"{where}: a text holds half a character") from None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
    for inner in _items(value):
        yield from _texts(inner)


def _quoted(text: str) -> str:
    """Make a stranger's words short, and one line."""
    return shortened(visible(" ".join(text.split())), 200)
