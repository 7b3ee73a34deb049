"""Parquet: tables of every usual writer read as polars reads them, bombs and lies not at all."""

from __future__ import annotations

import base64
import datetime
import io
import itertools
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ptmech.errors import FormatError
from ptmech.storage.tables import read_table


def put(folder: Path, raw: bytes) -> Path:
    path = folder / "x.parquet"
    path.write_bytes(raw)
    return path


def by_arrow(table: pa.Table, **options: Any) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table, stream, **options)
    return stream.getvalue()


# Friends ---------------------------------------------------------------------------------------

ROWS = 60
FRIENDLY = pa.table(
    {
        "row_uid": pa.array([2**64 - 1 - 7919**4 * n % 2**60 for n in range(ROWS)], pa.uint64()),
        "small": pa.array([None, 1, -1] * 20, pa.int8()),
        "text": ["é", "base", "x" * 50, None] * 15,
        "flag": [True, False, None] * 20,
        "float": [n / 7 for n in range(ROWS)],
        "single": pa.array([n / 7 for n in range(ROWS)], pa.float32()),
        "ids": [[1, 2], None, [], [3]] * 15,
        "tokens": [["a"], [None], [], ["b", "cc"]] * 15,
        "bytes": pa.array([[1, 2]] * ROWS, pa.large_list(pa.uint8())),
        "day": [datetime.date(2020, 1, 1)] * ROWS,
        "moment": [datetime.datetime(2020, 1, 1)] * ROWS,
        "decimal": pa.array([1] * ROWS, pa.decimal128(10, 2)),
        "raw": pa.array([b"\xff"] * ROWS),
    }
)


@pytest.mark.parametrize("codec", ["NONE", "snappy", "gzip", "zstd", "lz4", "brotli"])
def test_tables_of_pyarrow_are_read(tmp_path: Path, codec: str) -> None:
    """The writer below pandas and datasets, in both versions of its pages."""
    for page, dictionary, group, rows in itertools.product(
        ["1.0", "2.0"], [True, False], [17, 1000], [ROWS, 1, 0]
    ):
        raw = by_arrow(
            FRIENDLY.slice(0, rows), compression=codec, data_page_version=page,
            use_dictionary=dictionary, row_group_size=group,
        )  # fmt: skip
        found = read_table(put(tmp_path, raw), "x")
        assert found.equals(pl.from_arrow(FRIENDLY.slice(0, rows)))


@pytest.mark.parametrize("codec", ["uncompressed", "snappy", "gzip", "zstd", "lz4", "brotli"])
def test_tables_of_polars_are_read(tmp_path: Path, codec: Any) -> None:
    frame = pl.DataFrame(FRIENDLY)
    for statistics, group, rows in itertools.product(
        [True, False, "full"], [None, 17], [ROWS, 1, 0]
    ):
        stream = io.BytesIO()
        wanted = frame.head(rows)
        wanted.write_parquet(stream, compression=codec, statistics=statistics, row_group_size=group)
        found = read_table(put(tmp_path, stream.getvalue()), "x")
        assert found.schema == wanted.schema
        assert found.equals(wanted)


CELLS: dict[Any, Any] = {
    pl.Int32: st.integers(-(2**31), 2**31 - 1),
    pl.UInt64: st.integers(0, 2**64 - 1),
    pl.Float64: st.floats(),
    pl.String: st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    pl.Boolean: st.booleans(),
    pl.List(pl.Int32): st.lists(st.integers(0, 9), max_size=4),
    pl.List(pl.String): st.lists(st.none() | st.sampled_from(["", "a", "é" * 40]), max_size=4),
}


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_any_table_comes_back(tmp_path: Path, data: st.DataObject) -> None:
    rows = data.draw(st.integers(0, 30))
    kinds = data.draw(st.lists(st.sampled_from(list(CELLS)), min_size=1, max_size=5))
    frame = pl.DataFrame(
        {
            f"column {n}": pl.Series(
                data.draw(st.lists(st.none() | CELLS[kind], min_size=rows, max_size=rows)),
                dtype=kind,
            )
            for n, kind in enumerate(kinds)
        }
    )
    if data.draw(st.booleans()):
        raw = by_arrow(
            frame.to_arrow(),
            compression=data.draw(st.sampled_from(["NONE", "snappy", "zstd"])),
            data_page_version=data.draw(st.sampled_from(["1.0", "2.0"])),
            use_dictionary=data.draw(st.booleans()),
            row_group_size=data.draw(st.integers(1, 40)),
        )
    else:
        stream = io.BytesIO()
        frame.write_parquet(stream, row_group_size=data.draw(st.none() | st.integers(1, 40)))
        raw = stream.getvalue()
    found = read_table(put(tmp_path, raw), "x")
    assert found.schema == frame.schema
    assert found.equals(frame, null_equal=True)


def test_what_a_library_notes_about_types_is_not_looked_at(tmp_path: Path) -> None:
    """A second schema in the metadata, of any depth and of any size, changes nothing."""
    table = pa.table({"a": [1, 2, 3]})
    for note in (b"not base64", base64.b64encode(b"\xff" * 99), b"A" * 10**6):
        raw = by_arrow(table.replace_schema_metadata({b"ARROW:schema": note}), store_schema=False)
        assert read_table(put(tmp_path, raw), "x")["a"].to_list() == [1, 2, 3]


# Strangers: a file made by hand ------------------------------------------------------------------

Field = tuple[int, int, bytes]


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def whole(field: int, number: int, code: int = 6) -> Field:
    return field, code, varint(number * 2 if number >= 0 else -number * 2 - 1)


def short(field: int, number: int) -> Field:
    return whole(field, number, 5)


def text(field: int, raw: bytes) -> Field:
    return field, 8, varint(len(raw)) + raw


def struct(*fields: Field | None) -> bytes:
    out, last = b"", 0
    for field, code, raw in filter(None, fields):
        step = field - last
        out += bytes([step << 4 | code]) if 0 < step < 16 else bytes([code]) + whole(0, field)[2]
        out, last = out + raw, field
    return out + b"\0"


def inner(field: int, *fields: Field | None) -> Field:
    return field, 12, struct(*fields)


def many(field: int, items: Sequence[bytes], code: int = 12) -> Field:
    head = bytes([len(items) << 4 | code]) if len(items) < 15 else bytes([0xF0 | code])
    return field, 9, head + (varint(len(items)) if len(items) > 14 else b"") + b"".join(items)


VALUES = b"".join(n.to_bytes(8, "little") for n in (1, 2, 3))


def page(values: int, body: bytes, *, size: int | None = None, stored: int | None = None,
         kind: int = 0, header: int | None = None, encoding: int = 0,
         levels: int = 0) -> bytes:  # fmt: skip
    """A page: its header, which may lie, and its bytes."""
    about = struct(
        short(1, kind),
        short(2, len(body) if size is None else size),
        short(3, len(body) if stored is None else stored),
        inner(
            {0: 5, 2: 7, 3: 8}.get(kind, 5) if header is None else header,
            short(1, values),
            *(
                (short(2, 0), short(3, values), short(4, encoding), short(5, levels), short(6, 0))
                if kind == 3
                else (short(2, encoding), *((short(3, 3), short(4, 3)) if kind != 2 else ()))
            ),
        ),
    )
    return about + body


COLUMN = struct(short(1, 2), short(3, 0), text(4, b"a"))


def file(
    pages: bytes | None = None,
    *,
    values: int = 3,
    rows: int = 3,
    group_rows: int | None = None,
    codec: int = 0,
    kind: int = 2,
    begin: int = 4,
    length: int | None = None,
    dictionary: int | None = None,
    name: bytes = b"a",
    schema: Sequence[bytes] = (struct(text(4, b"root"), short(5, 1)), COLUMN),
    chunks: int = 1,
    groups: int = 1,
    elsewhere: bytes | None = None,
    in_chunk: Sequence[Field] = (),
    in_footer: Sequence[Field] = (),
    after_footer: bytes = b"",
) -> bytes:
    """A file of one column of integers, 1, 2 and 3, but for what it is told to say instead."""
    pages = page(3, VALUES) if pages is None else pages
    size = len(pages) if length is None else length
    column = inner(
        3, short(1, kind), many(2, [varint(0)], 5), many(3, [varint(len(name)) + name], 8),
        short(4, codec), whole(5, values), whole(6, size), whole(7, size), whole(9, begin),
        None if dictionary is None else whole(11, dictionary),
    )  # fmt: skip
    chunk = struct(
        None if elsewhere is None else text(1, elsewhere), whole(2, 0), column, *in_chunk
    )
    group = struct(
        many(1, [chunk] * chunks),
        whole(2, size),
        whole(3, rows if group_rows is None else group_rows),
    )
    footer = (
        struct(short(1, 1), many(2, schema), whole(3, rows), many(4, [group] * groups), *in_footer)
        + after_footer
    )
    return b"PAR1" + pages + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def repeated(values: int, *, codec: int = 0) -> bytes:
    """One number, by a dictionary of one and a run of its index: any number of times."""
    numbers = page(1, (7).to_bytes(8, "little"), kind=2)
    run = page(values, b"\x01" + varint(values << 1) + b"\0", encoding=8)
    return file(
        numbers + run, values=values, rows=values, codec=codec, begin=4 + len(numbers), dictionary=4
    )


def test_files_made_by_hand_are_sound(tmp_path: Path) -> None:
    """Control: what the lies below are told about is a table, to polars too."""
    for raw, wanted in ((file(), [1, 2, 3]), (repeated(1000), [7] * 1000)):
        path = put(tmp_path, raw)
        assert pl.read_parquet(path)["a"].to_list() == wanted
        assert read_table(path, "x")["a"].to_list() == wanted


ROOT = struct(text(4, b"root"), short(5, 1))
GROUP_OF_TWO = struct(short(3, 0), text(4, b"g"), short(5, 2))
LIES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "it is empty"),
    "a zip": (b"PK\3\4" + bytes(50), "does not begin and end as one"),
    "only the magic": (b"PAR1PAR1", "does not begin and end as one"),
    "an encrypted footer": (b"PARE" + bytes(50) + b"PARE", "it is encrypted"),
    "a footer longer than the file": (file()[:-8] + b"\xff\xff\xff\x7fPAR1", "footer is longer"),
    "a footer of nothing": (b"PAR1" + bytes(4) + b"PAR1", "ends too early"),
    "a cut footer": (file()[:-20] + file()[-8:], "is not a Parquet table to be read"),
    "bytes behind the footer": (file(after_footer=b"\0"), "followed by something else"),
    "an encryption algorithm": (file(in_footer=[inner(8)]), "it is encrypted"),
    "a key of the footer": (file(in_footer=[text(9, b"k")]), "it is encrypted"),
    "an encrypted column": (file(in_chunk=[inner(8)]), "it is encrypted"),
    "encrypted metadata": (file(in_chunk=[text(9, b"k")]), "it is encrypted"),
    "a column in another file": (file(elsewhere=b"/etc/passwd"), "said to be in another file"),
    "levels larger than the page": (
        file(page(3, VALUES, kind=3, levels=2**30)), "contradicts itself"
    ),
    "negative levels": (file(page(3, VALUES, kind=3, levels=-1)), "definition_bytes is -1"),
    "a field twice": (file(in_footer=[many(4, []), ]), "out of order"),
    "a field of another type": (file(in_footer=[whole(6, 1)]), "created_by is of another type"),
    "a map": (file(in_footer=[(30, 11, b"\0")]), "no type has the code"),
    "a list of 2**40 items": (
        file(in_footer=[(30, 9, b"\xf5" + varint(2**40))]), "longer than what is left"
    ),
    "a text of 2**40 bytes": (file(in_footer=[(30, 8, varint(2**40))]), "ends too early"),
    "a number of 200 bytes": (file(in_footer=[(30, 6, b"\xff" * 200)]), "a number is too long"),
    "lists in lists": (
        file(in_footer=[(30, 9, b"\x19" * 5000)]), "nested too deep"
    ),
    "structures in structures": (
        file(in_footer=[(30, 12, b"\x1c" * 5000)]), "nested too deep"
    ),
    "more than a table describes": (
        file(in_footer=[(30, 9, b"\xf3" + varint(600_000) + bytes(600_000))]),
        "describes more than a table has",
    ),
    "negative rows": (file(rows=-3), "num_rows is -3"),
    "2**62 rows": (file(rows=2**62), "declares 4611686018427387904 rows"),
    "groups that do not add up": (file(group_rows=2), "do not add up"),
    "a group twice": (file(groups=2), "do not add up"),
    "negative groups that add up": (file(rows=3, group_rows=-3, groups=2), "num_rows is -3"),
    "a column too many": (file(chunks=2), "does not have all columns"),
    "no columns in a group": (file(chunks=0), "does not have all columns"),
    "another column": (file(name=b"b"), "is not what the schema says"),
    "another type": (file(kind=1), "is not what the schema says"),
    "more values than rows": (file(values=4), "has 4 values for 3 rows"),
    "fewer values than rows": (file(values=2), "has 2 values for 3 rows"),
    "negative values": (file(values=-1), "num_values is -1"),
    "lzo": (file(codec=3), "compressed in a way"),
    "framed lz4": (file(codec=5), "compressed in a way"),
    "codec 99": (file(codec=99), "compressed in a way"),
    "a negative codec": (file(codec=-1), "compressed in a way"),
    "pages at 0": (file(begin=0), "not where it says"),
    "pages before the file": (file(begin=-4), "data_page_offset is -4"),
    "pages behind the file": (file(begin=10**12), "overlap or reach outside"),
    "pages within the footer": (file(begin=40), "overlap or reach outside"),
    "pages longer than the file": (file(length=2**40), "overlap or reach outside"),
    "pages shorter than theirs": (file(length=len(page(3, VALUES)) - 1), "reaches beyond it"),
    "20 MB of nothing": (
        file()[:4] + bytes(20_000_000) + file(begin=20_000_004)[4:], "belong to no column"
    ),
    "pages of a negative length": (file(length=-1), "total_compressed_size is -1"),
    "no pages": (file(length=0), "hold 0 values, not 3"),
    "a dictionary behind its data": (file(dictionary=9), "not where it says"),
    "a page of 2 GiB": (file(page(3, VALUES, size=2**31 - 1), codec=6), "bytes of memory"),
    "a page of -1 bytes": (file(page(3, VALUES, size=-1), codec=6), "uncompressed_size is -1"),
    "a page of -1 stored bytes": (file(page(3, VALUES, stored=-1)), "compressed_size is -1"),
    "a page beyond its column": (file(page(3, VALUES, stored=25)), "reaches beyond it"),
    "a page of two sizes": (file(page(3, VALUES, size=48)), "has two sizes"),
    "a page of more values": (file(page(2**31 - 1, VALUES)), "hold 2147483647 values, not 3"),
    "a page of fewer values": (file(page(2, VALUES)), "hold 2 values, not 3"),
    "a page of negative values": (file(page(-3, VALUES)), "num_values is -3"),
    "a page twice": (file(page(3, VALUES) * 2), "hold 6 values, not 3"),
    "an index page": (file(page(3, VALUES, kind=1)), "belongs elsewhere"),
    "page type 77": (file(page(3, VALUES, kind=77)), "belongs elsewhere"),
    "a dictionary at the end": (
        file(page(3, VALUES) + page(1, bytes(8), kind=2)), "belongs elsewhere"
    ),
    "a page with another's header": (file(page(3, VALUES, header=7)), "of another type"),
    "a dictionary larger than its page": (
        file(page(2**31 - 1, bytes(8), kind=2) + page(3, VALUES)), "larger than its page"
    ),
    "delta encoding": (file(page(3, VALUES, encoding=5)), "encoded in a way"),
    "prefix encoding": (file(page(3, VALUES, encoding=7)), "encoded in a way"),
    "encoding 99": (file(page(3, VALUES, encoding=99)), "encoded in a way"),
    "60,000 empty pages": (file(page(0, b"") * 60_000 + page(3, VALUES)), "more than 50000 pages"),
    "a column of no type": (file(schema=[ROOT, struct(text(4, b"a"))]), "does not say its type"),
    "a column of type 99": (
        file(schema=[ROOT, struct(short(1, 99), text(4, b"a"))]), "of no known type"
    ),
    "fixed values of 2 GiB": (
        file(schema=[ROOT, struct(short(1, 7), short(2, 2**31 - 1), text(4, b"a"))]),
        "of no known type",
    ),
    "fixed values of 0 bytes": (
        file(schema=[ROOT, struct(short(1, 7), short(2, 0), text(4, b"a"))]), "of no known type"
    ),
    "a column without a name": (
        file(schema=[ROOT, struct(short(1, 2), text(4, b""))]), "no column can be called"
    ),
    "a name that a terminal obeys": (
        file(schema=[ROOT, struct(short(1, 2), text(4, b"\x1b[31m"))]), "no column can be called"
    ),
    "a name that is no text": (
        file(schema=[ROOT, struct(short(1, 2), text(4, b"\xff"))]), "no column can be called"
    ),
    "two columns of one name": (
        file(schema=[struct(text(4, b"root"), short(5, 2)), COLUMN, COLUMN]), "the same name"
    ),
    "a schema that ends early": (
        file(schema=[struct(text(4, b"root"), short(5, 2)), COLUMN]), "schema ends too early"
    ),
    "2**31 columns": (
        file(schema=[struct(text(4, b"root"), short(5, 2**31 - 1)), COLUMN]),
        "schema ends too early",
    ),
    "elements of no column": (file(schema=[ROOT, COLUMN, COLUMN]), "belong to no column"),
    "no schema": (file(schema=[]), "schema has 0 elements"),
    "a group of columns": (
        file(schema=[ROOT, GROUP_OF_TWO, COLUMN, COLUMN]), "neither a value nor a list"
    ),
    "a column that repeats": (
        file(schema=[ROOT, struct(short(1, 2), short(3, 2), text(4, b"a"))]),
        "repeated without a list",
    ),
    "300 MB in a few bytes": (repeated(37_500_000), "bytes of memory"),
    "a billion rows in a few bytes": (repeated(10**9), "declares 1000000000 rows"),
}  # fmt: skip


@pytest.mark.parametrize("what", LIES)
def test_lies_are_refused(tmp_path: Path, what: str) -> None:
    raw, words = LIES[what]
    with pytest.raises(FormatError, match=words) as caught:
        read_table(put(tmp_path, raw), "tables/x.parquet")
    message = str(caught.value)
    assert message.startswith("tables/x.parquet is not a Parquet table to be read: ")
    assert message.isprintable()
    assert len(message) < 300


def test_a_table_of_fewer_rows_is_asked_for(tmp_path: Path) -> None:
    path = put(tmp_path, file())
    assert read_table(path, "x", max_rows=3).height == 3
    with pytest.raises(FormatError, match="declares 3 rows where there may be 2"):
        read_table(path, "x", max_rows=2)
    with pytest.raises(FormatError, match="more than 40 bytes of memory"):
        read_table(path, "x", max_bytes=40)


@pytest.mark.parametrize(
    "values",
    [
        [{"a": 1}],
        [[[1]]],
        [[{"a": 1}]],
        pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
    ],
    ids=["struct", "list of lists", "list of structs", "map"],
)
def test_deeper_columns_than_lists_are_refused(tmp_path: Path, values: Any) -> None:
    with pytest.raises(FormatError, match=r"neither a value nor a list|nested deeper"):
        read_table(put(tmp_path, by_arrow(pa.table({"a": values}))), "x")


def test_tables_of_a_thousand_columns_are_refused(tmp_path: Path) -> None:
    raw = by_arrow(pa.table({f"c{n}": [1] for n in range(1001)}))
    with pytest.raises(FormatError, match="more than 1000 columns"):
        read_table(put(tmp_path, raw), "x")


def test_encrypted_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="it is encrypted"):
        read_table(put(tmp_path, file()[:-4] + b"PARE"), "x")


@pytest.mark.parametrize(
    "run",
    [b"", b"\xff", b"\x01\x06\x05", b"\x01" + b"\xff" * 12, b"\x01\x03"],
)
def test_what_polars_stumbles_over_is_one_line(tmp_path: Path, run: bytes) -> None:
    """Its panics are no Exceptions: nobody who reads a table would catch them."""
    numbers = page(1, (7).to_bytes(8, "little"), kind=2)
    raw = file(numbers + page(3, run, encoding=8), begin=4 + len(numbers), dictionary=4)
    path = put(tmp_path, raw)
    with pytest.raises(FormatError, match=r"^x is not .* cannot be decoded \(") as caught:
        read_table(path, "x")
    assert "\n" not in str(caught.value)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_damage_is_one_line_or_a_table(tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray(data.draw(st.sampled_from([file(), repeated(9), MIXED])))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        read_table(put(tmp_path, bytes(raw)), "x")
    except FormatError as error:
        message = str(error)
    else:
        return
    assert message.startswith("x is not a Parquet table to be read: ")
    assert len(message.splitlines()) == 1


MIXED = by_arrow(FRIENDLY.select(["text", "flag", "ids"]).slice(0, 8), row_group_size=5)


# Bombs -----------------------------------------------------------------------------------------

LIMITED = """
import os, resource, sys
os.environ["POLARS_MAX_THREADS"] = "1"
import polars as pl
from pathlib import Path
from ptmech.errors import FormatError
from ptmech.storage.tables import read_table
pl.read_parquet(sys.argv[2])  # threads and buffers that any reading needs
used = [int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")]
resource.setrlimit(resource.RLIMIT_DATA, ((used[0] * 2**10) + {megabytes} * 2**20,) * 2)
try:
    print({read})
except FormatError as error:
    sys.exit(str(error))
"""


def under_a_limit(
    folder: Path, raw: bytes, read: str, megabytes: int = 60
) -> subprocess.CompletedProcess[str]:
    """Read a table in a process that has read another, and may take only so much more memory."""
    (folder / "sound.parquet").write_bytes(file())
    arguments = [str(put(folder, raw)), str(folder / "sound.parquet")]
    code = LIMITED.format(megabytes=megabytes, read=read)
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )


def one_text(length: int, rows: int) -> bytes:
    text = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), ["x" * length])
    return by_arrow(pa.table({"a": text}), compression="zstd", store_schema=False)


BOMBS = {
    "a run": lambda: repeated(37_500_000),
    "a long text": lambda: by_arrow(
        pa.table({"a": ["x" * 100_000_000]}),
        compression="zstd", use_dictionary=False, write_statistics=False,
    ),
    "zeros": lambda: by_arrow(
        pa.table({"a": pa.repeat(0, 37_500_000)}),
        compression="gzip", use_dictionary=False, row_group_size=10**8,
    ),
    "nulls": lambda: by_arrow(pa.table({"a": pa.nulls(40_000_000, pa.int64())})),
    "a long list": lambda: by_arrow(
        pa.table({"a": pa.ListArray.from_arrays([0, 37_500_000], pa.repeat(0, 37_500_000))})
    ),
    "one text for all rows": lambda: one_text(10**6, 10**5),
}  # fmt: skip


@pytest.mark.parametrize("what", BOMBS)
def test_refusing_a_bomb_costs_no_memory(tmp_path: Path, what: str) -> None:
    raw = BOMBS[what]()
    assert len(raw) < 2**20
    done = under_a_limit(tmp_path, raw, "read_table(Path(sys.argv[1]), 'x').estimated_size()")
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("x is not a Parquet table to be read: ")
    assert "bytes" in done.stderr


def test_the_limit_of_these_tests_bites(tmp_path: Path) -> None:
    """Negative control: polars alone does not survive the smallest of them."""
    done = under_a_limit(tmp_path, repeated(37_500_000), "pl.read_parquet(sys.argv[1])")
    assert done.returncode not in (0, 1) or "Error" in done.stderr
    assert "not a Parquet table" not in done.stderr
