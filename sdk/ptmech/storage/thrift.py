"""Thrift's compact protocol, read strictly: how Parquet writes down what a file holds.

A reader for strangers' bytes has two duties that libraries neglect. It allocates nothing that the
bytes do not pay for: a list cannot be longer than what is left to read. And it leaves nothing to
interpretation: fields come in order, each once, with the type that the caller's shape gives them,
so that another reader cannot see something else in the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

_DEEPEST: Final = 12
"""Parquet's own structures are five deep."""

_BOOLEANS: Final = (1, 2)
_WHOLE_NUMBERS: Final = {4: 16, 5: 32, 6: 64}
"""Bits of the types that are written as zigzag numbers of variable length."""


@dataclass(frozen=True)
class Scalar:
    """A value without parts, by the codes that may stand for its type."""

    codes: tuple[int, ...]


@dataclass(frozen=True)
class Struct:
    """Fields by number: the name that the reader gives each, and its shape."""

    fields: Mapping[int, tuple[str, Shape]]
    codes: tuple[int, ...] = (12,)


@dataclass(frozen=True)
class ListOf:
    """Values of one shape."""

    item: Shape
    codes: tuple[int, ...] = (9,)


@dataclass(frozen=True)
class Span:
    """A list that is passed over: its value is where it begins and ends."""

    codes: tuple[int, ...] = (9,)


Shape = Scalar | Struct | ListOf | Span

BOOL: Final = Scalar(_BOOLEANS)
I8: Final = Scalar((3,))
I16: Final = Scalar((4,))
I32: Final = Scalar((5,))
I64: Final = Scalar((6,))
BINARY: Final = Scalar((8,))
ANY_STRUCT: Final = Struct({})


class ThriftError(ValueError):
    """Bytes that are not what the protocol or the shape asks for."""


class CompactReader:
    """Reads structures from one stretch of bytes.

    Parameters
    ----------
    data
        Anything that gives bytes when sliced.
    begin, end
        The stretch.
    budget
        How many values may be read.
    """

    def __init__(self, data: Any, begin: int, end: int, *, budget: int) -> None:
        self.position = begin
        self._data = data
        self._end = end
        self._budget = budget
        self._depth = 0

    def struct(self, shape: Struct) -> dict[str, Any]:
        """Read a structure; fields that its shape does not know are passed over.

        Raises
        ------
        ThriftError
            If the bytes end too early, or are not such a structure.
        """
        self._spend(1)
        self._depth += 1
        if self._depth > _DEEPEST:
            raise ThriftError("its structures are nested too deep")
        found: dict[str, Any] = {}
        last = 0
        while head := self._byte():
            field = last + (head >> 4) if head >> 4 else self._zigzag(16)
            if field <= last:
                raise ThriftError("its fields are out of order")
            name, inner = shape.fields.get(field, ("", None))
            if inner is not None and head & 15 not in inner.codes:
                raise ThriftError(f"{name} is of another type")
            value = self._value(head & 15, inner)
            if inner is not None:
                found[name] = value
            last = field
        self._depth -= 1
        return found

    def _value(self, code: int, shape: Shape | None) -> Any:
        if code in _BOOLEANS:
            return code == 1
        if code == 3:
            return int.from_bytes(self._take(1), signed=True)
        if code in _WHOLE_NUMBERS:
            return self._zigzag(_WHOLE_NUMBERS[code])
        if code == 7:
            return self._take(8)
        if code == 8:
            return self._take(self._varint())
        if code in (9, 10):
            begin = self.position
            items = self._list(shape.item if isinstance(shape, ListOf) else None)
            return (begin, self.position) if isinstance(shape, Span) else items
        if code == 12:
            return self.struct(shape if isinstance(shape, Struct) else ANY_STRUCT)
        raise ThriftError(f"no type has the code {code}")

    def _list(self, item: Shape | None) -> list[Any]:
        head = self._byte()
        code = head & 15
        length = self._varint() if head >> 4 == 15 else head >> 4
        if length > self._end - self.position:
            raise ThriftError("a list is longer than what is left")
        if length and item is not None and code not in item.codes:
            raise ThriftError("a list holds values of another type")
        self._spend(length)
        self._depth += 1
        if self._depth > _DEEPEST:
            raise ThriftError("its lists are nested too deep")
        items = [
            self._byte() == 1 if code in _BOOLEANS else self._value(code, item)
            for _ in range(length)
        ]
        self._depth -= 1
        return items

    def _spend(self, values: int) -> None:
        self._budget -= values
        if self._budget < 0:
            raise ThriftError("it describes more than a table has")

    def _take(self, length: int) -> bytes:
        if length > self._end - self.position:
            raise ThriftError("it ends too early")
        taken = self._data[self.position : self.position + length]
        self.position += length
        return bytes(taken)

    def _byte(self) -> int:
        if self.position >= self._end:
            raise ThriftError("it ends too early")
        self.position += 1
        return self._data[self.position - 1]

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ThriftError("a number is too long")

    def _zigzag(self, bits: int) -> int:
        value = self._varint()
        if value >> bits:
            raise ThriftError("a number is too large for its type")
        return (value >> 1) ^ -(value & 1)
