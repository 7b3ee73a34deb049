"""What a Parquet file will cost to decode, told from its footer and page headers alone.

A Parquet file of 433 bytes can become 300 MB: runs and dictionaries repeat a value as often as a
header says, and what the footer says of sizes binds nobody. So every page header is read before
anything is decoded, what they declare is added up, and a file whose parts contradict each other is
refused. The format is described at https://parquet.apache.org/docs/file-format/.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from ptmech._text import is_plain, shortened
from ptmech.storage.parquet_format import FILE, PAGE
from ptmech.storage.thrift import CompactReader

MAGIC: Final = b"PAR1"
MAX_FOOTER_BYTES: Final = 16 * 2**20
MAX_COLUMNS: Final = 1000
MAX_PAGES: Final = 50_000
MAX_IDLE_BYTES: Final = 16 * 2**20
"""Outside of all columns: indexes and filters, which nothing here reads."""
_MAX_FOOTER_VALUES: Final = 500_000
_MAX_HEADER_VALUES: Final = 100
_LONGEST_NAME: Final = 200
_LONGEST_FIXED: Final = 2**16

_CODECS: Final = {0, 1, 2, 4, 6, 7}
"""None, snappy, gzip, brotli, zstd and raw lz4: what polars and pyarrow write."""
_ENCODINGS: Final = {0, 2, 3, 4, 8, 9}
"""Plain, dictionaries, runs and byte streams; the delta encodings hide their counts in the data."""
_BYTE_ARRAY, _FIXED = 6, 7
_WIDTHS: Final = {0: 1, 1: 4, 2: 8, 3: 12, 4: 4, 5: 8, _BYTE_ARRAY: 16}
"""Bytes of a decoded value of each physical type; a text is a view of its page."""
_REPEATED: Final = 2
_LIST: Final = 3
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
_PAGES: Final = {_DATA: "data", _DICTIONARY: "dictionary", _DATA_V2: "data_v2"}


class ParquetError(ValueError):
    """A file that is no Parquet table, contradicts itself, or costs too much; says which."""


@dataclass(frozen=True)
class Budget:
    """How much a table may declare.

    Attributes
    ----------
    rows
        Rows.
    bytes
        Bytes when decoded, and of all its pages when decompressed.
    """

    rows: int
    bytes: int


@dataclass(frozen=True)
class Leaf:
    """A column of the schema.

    Attributes
    ----------
    path
        Names from the root of the schema.
    type, type_length
        Physical type; bytes of a value where that is fixed by the schema.
    in_list
        Whether its values are items of lists.
    """

    path: tuple[bytes, ...]
    type: int
    type_length: int
    in_list: bool

    @property
    def name(self) -> str:
        """Of the column of the table."""
        return self.path[0].decode()

    @property
    def width(self) -> int:
        """Bytes of a decoded value."""
        return self.type_length if self.type == _FIXED else _WIDTHS[self.type]


@dataclass(frozen=True)
class Outline:
    """What a sound file declares.

    Attributes
    ----------
    rows
        Rows of the table.
    notes
        Where in the file the list of key-value metadata begins and ends; None if there is none.
    footer
        Where in the file the footer begins.
    """

    rows: int
    notes: tuple[int, int] | None
    footer: int


def outline(data: Any, budget: Budget) -> Outline:
    """Check a whole file without decompressing any of it.

    Parameters
    ----------
    data
        The file, or a map of it: anything with a length that gives bytes when sliced.
    budget
        What it may declare.

    Raises
    ------
    ParquetError, ThriftError
        If it is no Parquet file, its parts contradict each other, it is encrypted or nested, or it
        declares more than the budget allows.
    """
    begin, end = _footer(data)
    reader = CompactReader(data, begin, end, budget=_MAX_FOOTER_VALUES)
    file = reader.struct(FILE)
    if reader.position != end:
        raise ParquetError("its footer is followed by something else")
    if "encryption" in file or "footer_key" in file:
        raise ParquetError("it is encrypted")
    rows = _count(file, "num_rows")
    if rows > budget.rows:
        raise ParquetError(f"it declares {rows} rows where there may be {budget.rows}")
    leaves = _leaves(_need(file, "schema"))
    groups = _need(file, "row_groups")
    if sum(_count(group, "num_rows") for group in groups) != rows:
        raise ParquetError("the rows of its groups do not add up to the table's")
    _Walk(data, begin, budget).through(groups, leaves)
    return Outline(rows, file.get("key_value_metadata"), begin)


def _footer(data: Any) -> tuple[int, int]:
    """Return where the footer begins and ends."""
    size = len(data)
    if size < 12 or bytes(data[:4]) != MAGIC or bytes(data[-4:]) != MAGIC:
        encrypted = size >= 12 and bytes(data[-4:]) == b"PARE"
        raise ParquetError("it is encrypted" if encrypted else "it does not begin and end as one")
    length = int.from_bytes(data[-8:-4], "little")
    if length > min(size - 12, MAX_FOOTER_BYTES):
        raise ParquetError("its footer is longer than the file or than a footer may be")
    return size - 8 - length, size - 8


def _need(struct: dict[str, Any], name: str) -> Any:
    if name not in struct:
        raise ParquetError(f"it does not say its {name}")
    return struct[name]


def _count(struct: dict[str, Any], name: str) -> int:
    """Return a number that counts something."""
    value = _need(struct, name)
    if value < 0:
        raise ParquetError(f"its {name} is {value}")
    return value


def _leaves(elements: Sequence[dict[str, Any]]) -> list[Leaf]:
    """Read the schema, which lists its tree from the root, parents before their children."""
    if not elements or len(elements) > 3 * MAX_COLUMNS + 1:
        raise ParquetError(f"its schema has {len(elements)} elements")
    rest = iter(elements[1:])
    leaves = [_leaf(rest) for _ in range(min(_children(elements[0]), MAX_COLUMNS + 1))]
    if len(leaves) > MAX_COLUMNS:
        raise ParquetError(f"it has more than {MAX_COLUMNS} columns")
    if next(rest, None) is not None:
        raise ParquetError("its schema has elements that belong to no column")
    names = [leaf.path[0] for leaf in leaves]
    if len(set(names)) < len(names):
        raise ParquetError("two of its columns have the same name")
    return leaves


def _leaf(rest: Iterator[dict[str, Any]]) -> Leaf:
    """Read a column: a value, or a list of values in the shape that all writers give it."""
    column = _next(rest)
    if not _children(column):
        if column.get("repetition") == _REPEATED:
            raise ParquetError("a column is repeated without a list")
        return _value(column, (), in_list=False)
    path = (_name(column),)
    is_list = column.get("converted_type") == _LIST or "list" in column.get("logical_type", {})
    inner = _next(rest)
    if not is_list or _children(column) != 1 or inner.get("repetition") != _REPEATED:
        raise ParquetError(f"the column {path[0].decode()!r} is neither a value nor a list")
    if not _children(inner):
        return _value(inner, path, in_list=True)
    item = _next(rest)
    if _children(inner) != 1 or _children(item) or item.get("repetition") == _REPEATED:
        raise ParquetError(f"the column {path[0].decode()!r} is nested deeper than a list")
    return _value(item, (*path, _name(inner)), in_list=True)


def _value(element: dict[str, Any], above: tuple[bytes, ...], *, in_list: bool) -> Leaf:
    leaf = Leaf(
        (*above, _name(element)), _count(element, "type"), element.get("type_length", 0), in_list
    )
    fixed = leaf.type == _FIXED
    if not (fixed and 0 < leaf.type_length <= _LONGEST_FIXED) and leaf.type not in _WIDTHS:
        raise ParquetError(f"the column {leaf.name!r} is of no known type")
    return leaf


def _next(rest: Iterator[dict[str, Any]]) -> dict[str, Any]:
    element = next(rest, None)
    if element is None:
        raise ParquetError("its schema ends too early")
    return element


def _children(element: dict[str, Any]) -> int:
    return _count(element, "num_children") if "num_children" in element else 0


def _name(element: dict[str, Any]) -> bytes:
    raw = _need(element, "name")
    name = raw.decode(errors="replace")
    if not name or len(name) > _LONGEST_NAME or not is_plain(name) or "\ufffd" in name:
        raise ParquetError(f"no column can be called {shortened(name, 40)!r}")
    return raw


class _Walk:
    """One walk through all pages of a file, adding up what they declare."""

    def __init__(self, data: Any, end: int, budget: Budget) -> None:
        self._data = data
        self._end = end
        self._budget = budget
        self._bytes = 0
        self._pages = 0

    def through(self, groups: Sequence[dict[str, Any]], leaves: Sequence[Leaf]) -> None:
        """Walk through all chunks; what the footer declares is added up before pages are read."""
        chunks = [
            (leaf, column, _count(group, "num_rows"))
            for group in groups
            for leaf, column in _columns(group, leaves)
        ]
        for leaf, column, rows in chunks:
            values = _count(column, "num_values")
            if values < rows or (values > rows and not leaf.in_list):
                raise ParquetError(f"the column {leaf.name!r} has {values} values for {rows} rows")
            self._spend(values * leaf.width + (8 * rows if leaf.in_list else 0))
        spans = sorted(_span(column) for _, column, _ in chunks)
        if any(before[1] > after[0] for before, after in pairwise([*spans, (self._end,) * 2])):
            raise ParquetError("its columns overlap or reach outside the file")
        idle = self._end - sum(end - begin for begin, end in spans)
        if idle > MAX_IDLE_BYTES:
            raise ParquetError(f"it holds {idle} bytes that belong to no column")
        for leaf, column, _ in chunks:
            self._chunk(leaf, column)

    def _chunk(self, leaf: Leaf, column: dict[str, Any]) -> None:
        """Walk through the pages of a chunk; they must fill it, and hold the values it has."""
        position, end = _span(column)
        values = 0
        while position < end:
            reader = CompactReader(self._data, position, end, budget=_MAX_HEADER_VALUES)
            page = reader.struct(PAGE)
            body = _count(page, "compressed_size")
            if body > end - reader.position:
                raise ParquetError(f"a page of the column {leaf.name!r} reaches beyond it")
            size = _count(page, "uncompressed_size")
            if not column["codec"] and size != body:
                raise ParquetError(f"a page of the column {leaf.name!r} has two sizes")
            self._pages += 1
            if self._pages > MAX_PAGES:
                raise ParquetError(f"it has more than {MAX_PAGES} pages")
            self._spend(max(size, body))
            values += _page_values(leaf, page, first=position == _span(column)[0])
            position = reader.position + body
        if values != column["num_values"]:
            raise ParquetError(
                f"the pages of the column {leaf.name!r} hold {values} values, "
                f"not {column['num_values']}"
            )

    def _spend(self, size: int) -> None:
        self._bytes += size
        if self._bytes > self._budget.bytes:
            raise ParquetError(f"it would take more than {self._budget.bytes} bytes of memory")


def _columns(
    group: dict[str, Any], leaves: Sequence[Leaf]
) -> Iterator[tuple[Leaf, dict[str, Any]]]:
    """Go through the chunks of a row group, each with the column it belongs to."""
    chunks = _need(group, "chunks")
    if len(chunks) != len(leaves):
        raise ParquetError("a group of rows does not have all columns, each once")
    for leaf, chunk in zip(leaves, chunks, strict=True):
        if "encryption" in chunk or "encrypted_metadata" in chunk:
            raise ParquetError("it is encrypted")
        if "file_path" in chunk:
            raise ParquetError(f"the column {leaf.name!r} is said to be in another file")
        column = _need(chunk, "column")
        if tuple(_need(column, "path")) != leaf.path or _need(column, "type") != leaf.type:
            raise ParquetError(f"the column {leaf.name!r} is not what the schema says")
        if _need(column, "codec") not in _CODECS:
            raise ParquetError(f"the column {leaf.name!r} is compressed in a way none of ours is")
        yield leaf, column


def _span(column: dict[str, Any]) -> tuple[int, int]:
    """Return where the pages of a chunk begin and end."""
    size = _count(column, "total_compressed_size")
    data = _count(column, "data_page_offset")
    begin = column.get("dictionary_page_offset", data)
    if not size:
        return len(MAGIC), len(MAGIC)
    if begin < len(MAGIC) or (column["num_values"] and not begin <= data < begin + size):
        raise ParquetError("the pages of a column are not where it says")
    return begin, begin + size


def _page_values(leaf: Leaf, page: dict[str, Any], *, first: bool) -> int:
    """Check what a page says of itself, and return how many of the column's values it holds."""
    kind = _PAGES.get(_need(page, "type"))
    if kind is None or (kind == "dictionary" and not first):
        raise ParquetError(f"the column {leaf.name!r} has a page that belongs elsewhere")
    header = _need(page, kind)
    values = _count(header, "num_values")
    if _need(header, "encoding") not in _ENCODINGS:
        raise ParquetError(f"the column {leaf.name!r} is encoded in a way none of ours is")
    size = page["uncompressed_size"]
    if kind == "dictionary":
        least = 4 if leaf.type == _BYTE_ARRAY else leaf.width
        if values * least > size:
            raise ParquetError(f"the dictionary of {leaf.name!r} is larger than its page")
        return 0
    if kind == "data_v2":
        levels = _count(header, "definition_bytes") + _count(header, "repetition_bytes")
        if levels > min(size, page["compressed_size"]) or _count(header, "num_rows") > values:
            raise ParquetError(f"a page of the column {leaf.name!r} contradicts itself")
        _count(header, "num_nulls")
    return values
