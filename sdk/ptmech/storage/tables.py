"""Reading the Parquet tables of an artifact: nothing is decoded that has not been counted."""

from __future__ import annotations

import io
import mmap
from pathlib import Path
from typing import Any, Final

import polars as pl

from ptmech.errors import FormatError, first_line
from ptmech.storage.parquet import Budget, Outline, ParquetError, outline
from ptmech.storage.thrift import ThriftError

MAX_ROWS: Final = 50_000_000
_SMALL_TABLE: Final = 64 * 2**20
"""What any table may take decoded; beyond it, its file has to be large too."""
_EXPANSION: Final = 64
"""How many times its file a table may take, up to 2 GiB."""
_LARGE_TABLE: Final = 2 * 2**30
_LARGE_EXPANSION: Final = 16
"""How many times its file one beyond that may take: ours take less than ten times."""
PANIC: Final[type[BaseException]] = pl.exceptions.PanicException
"""What polars raises where its own code fails: no Exception, so that others do not catch it."""
_NO_NOTES: Final = b"\x0c"
"""An empty list of structures, in Thrift's compact protocol."""


def read_table(
    path: Path, where: str, *, max_rows: int = MAX_ROWS, max_bytes: int | None = None
) -> pl.DataFrame:
    """Read a Parquet table that a stranger may have written.

    Columns come back as Parquet itself types them. What else a library notes about their types in
    the file's metadata is not looked at, because it may contradict the columns.

    Parameters
    ----------
    path
        A local file.
    where
        What the caller calls it; error messages start with it.
    max_rows
        How many rows it may have.
    max_bytes
        How much memory it may take: by default 64 MiB; or 64 times its file if that is more, up to
        2 GiB; or 16 times its file. So what is on the disk bounds it, and the tokens of ten million
        rows are read.

    Returns
    -------
    polars.DataFrame
        Columns of values and of lists of values.

    Raises
    ------
    FormatError
        If the file is not a Parquet table, is damaged or contradicts itself, is encrypted, nested
        deeper than lists, compressed or encoded in a way that neither polars nor pyarrow write by
        default, or would be too large. Finding out costs little memory, whatever the file says.
    """
    if max_bytes is None:
        size = path.stat().st_size
        max_bytes = max(_SMALL_TABLE, min(_EXPANSION * size, _LARGE_TABLE), _LARGE_EXPANSION * size)
    budget = Budget(max_rows, max_bytes)
    try:
        return _decoded(*_counted(path, budget), budget)
    except (ParquetError, ThriftError) as error:
        raise FormatError(f"{where} is not a Parquet table to be read: {error}") from error


def _counted(path: Path, budget: Budget) -> tuple[bytes, Outline]:
    """Return the bytes to decode, and what they were found to declare."""
    with path.open("rb") as stream:
        try:
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise ParquetError("it is empty") from error
        with data:
            found = outline(data, budget)
            return _without_notes(data, found), found


def _without_notes(data: Any, found: Outline) -> bytes:
    """Return the file with an empty list in the place of its key-value metadata.

    Libraries keep an Arrow schema there, a second description of the same columns, of any depth.
    """
    if found.notes is None:
        return data[:]
    begin, end = found.notes
    footer = data[found.footer : begin] + _NO_NOTES + data[end : len(data) - 8]
    return b"".join([data[: found.footer], footer, len(footer).to_bytes(4, "little"), data[-4:]])


def _decoded(content: bytes, found: Outline, budget: Budget) -> pl.DataFrame:
    try:
        table = pl.read_parquet(io.BytesIO(content), use_statistics=False, hive_partitioning=False)
    except PANIC as error:
        raise ParquetError("it cannot be decoded (polars gave it up)") from error
    except (pl.exceptions.PolarsError, OSError) as error:
        raise ParquetError(f"it cannot be decoded ({first_line(error)})") from error
    if table.height != found.rows:
        raise ParquetError(f"it has {table.height} rows where it declares {found.rows}")
    letters = sum(map(_letters, table.get_columns()))
    if letters > budget.bytes:  # one long text in a dictionary, used by every row
        raise ParquetError(f"its texts together have {letters} bytes")
    return table


def _letters(column: pl.Series) -> int:
    """Count the bytes of all texts of a column, shared or not."""
    flat = column.explode() if column.dtype == pl.List else column
    match flat.dtype:
        case pl.String:
            return int(flat.str.len_bytes().cast(pl.UInt64).sum())
        case pl.Binary:
            return int(flat.bin.size().cast(pl.UInt64).sum())
        case _:
            return 0
