"""Parquet files that say what we want, not what is true: thrift and pages written by hand."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

MAGIC = b"PAR1"
INT64, DOUBLE, BYTE_ARRAY = 2, 5, 6
UNCOMPRESSED, SNAPPY, GZIP, ZSTD = 0, 1, 2, 6
PLAIN, RLE, RLE_DICTIONARY = 0, 3, 8
DATA_PAGE, DICTIONARY_PAGE = 0, 2
UTF8, UINT64 = 0, 14

_I32, _I64, _BINARY, _LIST, _STRUCT = 5, 6, 8, 9, 12


@dataclass(frozen=True)
class I64:
    """A number that thrift shall write as 64 bits wide."""

    number: int


@dataclass(frozen=True)
class Claimed:
    """A list that claims to be longer than it is."""

    items: Sequence[Any]
    length: int


def varint(number: int) -> bytes:
    """Seven bits a byte, lowest first."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def zigzag(number: int) -> bytes:
    """A signed number as a varint."""
    return varint(number << 1 if number >= 0 else (-number << 1) - 1)


def struct(fields: Mapping[int, Any]) -> bytes:
    """A thrift struct in the compact protocol."""
    found, last = bytearray(), 0
    for number, value in sorted(fields.items()):
        found.append(number - last << 4 | _kind(value))
        found += _value(value)
        last = number
    return bytes([*found, 0])


def _kind(value: Any) -> int:
    match value:
        case int():
            return _I32
        case I64():
            return _I64
        case bytes() | str():
            return _BINARY
        case list() | Claimed():
            return _LIST
        case _:
            return _STRUCT


def _value(value: Any) -> bytes:
    match value:
        case int():
            return zigzag(value)
        case I64():
            return zigzag(value.number)
        case str():
            return _value(value.encode())
        case bytes():
            return varint(len(value)) + value
        case Claimed():
            kind = _kind(value.items[0]) if value.items else _STRUCT
            return bytes([0xF0 | kind]) + varint(value.length) + b"".join(map(_value, value.items))
        case list():
            return _value(Claimed(value, len(value)))
        case _:
            return struct(value)


@dataclass(frozen=True)
class Page:
    """A page: its data as it stands in the file, and what its header claims of it."""

    data: bytes
    values: int
    kind: int = DATA_PAGE
    encoding: int = PLAIN
    unpacked: int | None = None
    packed: int | None = None

    def write(self) -> bytes:
        about: dict[int, Any] = {1: self.values, 2: self.encoding}
        if self.kind == DATA_PAGE:
            about |= {3: RLE, 4: RLE}
        header = {
            1: self.kind,
            2: len(self.data) if self.unpacked is None else self.unpacked,
            3: len(self.data) if self.packed is None else self.packed,
            {DATA_PAGE: 5, DICTIONARY_PAGE: 7}[self.kind]: about,
        }
        return struct(header) + self.data


@dataclass(frozen=True)
class Column:
    """A column of one chunk. What it claims goes into the footer, over what is true."""

    name: str
    pages: Sequence[Page]
    type: int = INT64
    converted: int | None = UINT64
    codec: int = UNCOMPRESSED
    optional: bool = False
    claims: Mapping[int, Any] = field(default_factory=dict)


def parquet(
    columns: Sequence[Column],
    rows: int,
    *,
    schema: Sequence[Any] | Claimed | None = None,
    groups: Any = None,
    claims: Mapping[int, Any] | None = None,
) -> bytes:
    """Lay pages out behind each other, and write a footer over them."""
    body = bytearray(MAGIC)
    chunks: list[dict[int, Any]] = []
    for column in columns:
        start, offsets = len(body), {}
        for page in column.pages:
            offsets.setdefault(page.kind, len(body))
            body += page.write()
        size = len(body) - start
        about = {
            1: column.type,
            2: [PLAIN, RLE, RLE_DICTIONARY],
            3: [column.name],
            4: column.codec,
            5: I64(sum(page.values for page in column.pages if page.kind == DATA_PAGE)),
            6: I64(size),
            7: I64(size),
            9: I64(offsets.get(DATA_PAGE, start)),
        }
        if DICTIONARY_PAGE in offsets:
            about[11] = I64(offsets[DICTIONARY_PAGE])
        chunks.append({2: I64(start), 3: {**about, **column.claims}})
    elements: Any = schema
    if elements is None:
        elements = [{4: "schema", 5: len(columns)}, *map(_element, columns)]
    group = {1: chunks, 2: I64(len(body)), 3: I64(rows)}
    footer = {1: 1, 2: elements, 3: I64(rows), 4: [group] if groups is None else groups}
    return sealed(bytes(body), struct({**footer, **(claims or {})}))


def sealed(body: bytes, footer: bytes, *, claimed: int | None = None) -> bytes:
    """Put a footer and its length at the end of what began with the magic."""
    length = len(footer) if claimed is None else claimed
    return body + footer + length.to_bytes(4, "little") + MAGIC


def _element(column: Column) -> dict[int, Any]:
    about = {1: column.type, 3: int(column.optional), 4: column.name}
    return about if column.converted is None else {**about, 6: column.converted}


def repeated(number: int, times: int, name: str = "row_uid") -> Column:
    """A column of one number: a dictionary of one entry, and one run of it, a dozen bytes."""
    run = b"\x01" + varint(times << 1) + b"\x00"
    return Column(
        name,
        [
            Page(number.to_bytes(8, "little"), 1, DICTIONARY_PAGE),
            Page(run, times, encoding=RLE_DICTIONARY),
        ],
    )


def repeated_text(text: str, times: int, name: str = "text") -> Column:
    """The same of a text, whose bytes stand once in the file."""
    raw = text.encode()
    run = b"\x01" + varint(times << 1) + b"\x00"
    return Column(
        name,
        [
            Page(len(raw).to_bytes(4, "little") + raw, 1, DICTIONARY_PAGE),
            Page(run, times, encoding=RLE_DICTIONARY),
        ],
        type=BYTE_ARRAY,
        converted=UTF8,
    )


def zeros(mebibytes: int, codec: int) -> bytes:
    """So much nothing, compressed: frames of 64 MiB behind each other."""
    block = bytes(2**26)
    if codec == ZSTD:
        frame = pa.compress(block, codec="zstd", asbytes=True)
    else:
        packer = zlib.compressobj(9, zlib.DEFLATED, 31)
        frame = packer.compress(block) + packer.flush()
    return frame * (mebibytes // 64)


def nested(depth: int) -> list[dict[int, Any]]:
    """A schema of groups in groups."""
    names = (f"g{level}" for level in itertools.count())
    return [
        {4: "schema", 5: 1},
        *({3: 0, 4: name, 5: 1} for name in itertools.islice(names, depth)),
        {1: INT64, 3: 0, 4: "leaf"},
    ]
