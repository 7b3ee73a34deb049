"""Parquet that is none, or explodes; tables whose columns are not what they should be."""

from __future__ import annotations

import polars as pl
from tests.faults import forged_parquet as forged
from tests.faults import hostile as h
from tests.faults.hostile_cases.case import (
    DAMAGED,
    FAULTS,
    FORMAT,
    Case,
)

BIG = 2**28
"""Values that take two gibibytes once they are unpacked."""
ZIPPED = forged.Column(
    "row_uid",
    [forged.Page(forged.zeros(1024, forged.ZSTD), 2**27, unpacked=2**30)],
    codec=forged.ZSTD,
)
GZIPPED = forged.Column(
    "row_uid",
    [forged.Page(forged.zeros(1024, forged.GZIP), 2**27, unpacked=2**30)],
    codec=forged.GZIP,
)
SNAPPED = forged.Column(
    "row_uid", [forged.Page(forged.varint(2**32 - 1) + b"\0", 4)], codec=forged.SNAPPY
)
ONE = forged.repeated(1, 4)
PARQUET = [
    Case(
        "a run of 2**28 values",
        h.parquet(forged.repeated(1, BIG), rows=BIG),
        "statements",
        FORMAT,
        "",
    ),
    Case(
        "a run that the footer hides",
        h.parquet(forged.repeated(1, BIG), rows=10),
        "statements",
        FORMAT,
        "",
    ),
    Case(
        "a run that the footer hides twice",
        h.parquet(
            forged.Column("row_uid", forged.repeated(1, BIG).pages, claims={5: forged.I64(10)}),
            rows=10,
        ),
        "statements",
        FORMAT,
        "",
    ),
    Case(
        "a run in a table of tokens",
        h.parquet(forged.repeated(1, BIG), rows=10, path=h.TOKENS),
        "tokens",
        FORMAT,
        "",
    ),
    Case(
        "a run in a table of neurons",
        h.parquet(forged.repeated(1, BIG), rows=BIG, path=h.NEURONS),
        "neurons",
        FORMAT,
        "",
    ),
    Case("a run, verified", h.parquet(forged.repeated(1, BIG), rows=10), "verify", FAULTS, ""),
    Case(
        "2**27 times one long text",
        h.parquet(forged.repeated_text("x" * 100_000, 2**27), rows=2**27),
        "statements",
        FORMAT,
        "",
    ),
    Case("a zstd bomb", h.parquet(ZIPPED, rows=2**27), "statements", FORMAT, ""),
    Case("a zstd bomb that the footer hides", h.parquet(ZIPPED, rows=4), "statements", FORMAT, ""),
    Case(
        "a zstd bomb that its page hides",
        h.parquet(
            forged.Column(
                "row_uid", [forged.Page(ZIPPED.pages[0].data, 4, unpacked=32)], codec=forged.ZSTD
            ),
            rows=4,
        ),
        "statements",
        FORMAT,
        "",
    ),
    Case("a gzip bomb", h.parquet(GZIPPED, rows=2**27), "statements", FORMAT, ""),
    Case(
        "a gzip bomb that its page hides",
        h.parquet(
            forged.Column(
                "row_uid", [forged.Page(GZIPPED.pages[0].data, 4, unpacked=32)], codec=forged.GZIP
            ),
            rows=4,
        ),
        "statements",
        FORMAT,
        "",
    ),
    Case("a snappy page of 4 GiB", h.parquet(SNAPPED, rows=4), "statements", FORMAT, ""),
    Case("rows: 2**62", h.parquet(ONE, rows=2**62), "statements", FORMAT, ""),
    Case("rows: -1", h.parquet(ONE, rows=-1), "statements", FORMAT, ""),
    Case(
        "a page larger than the file",
        h.parquet(forged.Column("row_uid", [forged.Page(b"1", 4, packed=2**31 - 1)]), rows=4),
        "statements",
        FORMAT,
        "",
    ),
    Case(
        "a page of -1 bytes",
        h.parquet(forged.Column("row_uid", [forged.Page(b"1", 4, packed=-1, unpacked=-1)]), rows=4),
        "statements",
        FORMAT,
        "",
    ),
    Case(
        "a column outside the file",
        h.parquet(forged.Column("row_uid", ONE.pages, claims={9: forged.I64(2**40)}), rows=4),
        "statements",
        FORMAT,
        "",
    ),
    Case(
        "a column at -1",
        h.parquet(
            forged.Column("row_uid", ONE.pages, claims={9: forged.I64(-1), 11: forged.I64(-1)}),
            rows=4,
        ),
        "statements",
        FORMAT,
        "",
    ),
    Case(
        "a dictionary that is not there",
        h.parquet(forged.Column("row_uid", [ONE.pages[1]]), rows=4),
        "statements",
        FORMAT,
        "",
    ),
    Case(
        "an entry outside the dictionary",
        h.parquet(
            forged.Column(
                "row_uid",
                [ONE.pages[0], forged.Page(b"\x01\x08\x01", 4, encoding=forged.RLE_DICTIONARY)],
            ),
            rows=4,
        ),
        "statements",
        FORMAT,
        "",
    ),
    Case("a footer of 2**32 - 1 bytes", h.footer_claims(2**32 - 1), "statements", FORMAT, ""),
    Case("a footer of no bytes", h.footer_claims(0), "statements", FORMAT, ""),
    Case("a footer cut short", h.truncated(h.STATEMENTS), "statements", FORMAT, ""),
    Case(
        "a footer of zeros",
        h.holds(h.STATEMENTS, forged.sealed(b"PAR1", bytes(64))),
        "statements",
        FORMAT,
        "",
    ),
    Case(
        "a footer of 0xff",
        h.holds(h.STATEMENTS, forged.sealed(b"PAR1", b"\xff" * 64)),
        "statements",
        FORMAT,
        "",
    ),
    Case(
        "a schema of 2**31 columns",
        h.parquet(ONE, rows=4, schema=forged.Claimed([{4: "schema", 5: 1}], 2**31)),
        "statements",
        FORMAT,
        "",
    ),
    Case(
        "a schema 10,000 groups deep",
        h.parquet(ONE, rows=4, schema=forged.nested(10_000)),
        "statements",
        FORMAT,
        "",
    ),
    Case(
        "2**30 row groups",
        h.parquet(ONE, rows=4, groups=forged.Claimed([], 2**30)),
        "statements",
        FORMAT,
        "",
    ),
    Case("100,000 columns", h.wide(100_000), "statements", FORMAT, ""),
    Case("no Parquet", h.holds(h.STATEMENTS, b"row_uid,text\n1,a\n"), "statements", FORMAT, ""),
    Case("no bytes", h.holds(h.STATEMENTS, b""), "statements", FORMAT, ""),
    Case("four bytes", h.holds(h.STATEMENTS, b"PAR1"), "statements", FORMAT, ""),
    Case(
        "an encrypted footer",
        h.holds(h.STATEMENTS, b"PAR1" + bytes(32) + b"PARE"),
        "statements",
        FORMAT,
        "",
    ),
    Case("spoiled pages", h.spoiled_page, "statements", FORMAT, ""),
    Case("spoiled pages on the command line", h.spoiled_page, "command truth", DAMAGED, ""),
    Case("spoiled pages, verified", h.spoiled_page, "verify", FAULTS, ""),
]

COLUMNS = [
    Case("a column missing", h.lacks(h.STATEMENTS, "row_uid"), "statements", FORMAT, "row_uid"),
    Case(
        "a column missing, for an analysis",
        h.lacks(h.STATEMENTS, "label"),
        "transfer",
        FORMAT,
        "label",
    ),
    Case(
        "a column missing, on the command line",
        h.lacks(h.STATEMENTS, "split"),
        "command refusal",
        DAMAGED,
        "split",
    ),
    Case("a column missing, verified", h.lacks(h.STATEMENTS, "text"), "verify", FAULTS, "text"),
    Case(
        "a column of tokens missing", h.lacks(h.TOKENS, "positions"), "tokens", FORMAT, "positions"
    ),
    Case(
        "ids that are text",
        h.column(h.STATEMENTS, "row_uid", pl.lit("x")),
        "statements",
        FORMAT,
        "row_uid",
    ),
    Case(
        "ids that are signed",
        h.column(h.STATEMENTS, "row_uid", pl.lit(-1)),
        "statements",
        FORMAT,
        "row_uid",
    ),
    Case(
        "ids that are missing",
        h.first(h.STATEMENTS, "row_uid", None),
        "statements",
        FORMAT,
        "row_uid",
    ),
    Case(
        "texts that are lists of lists",
        h.column(h.STATEMENTS, "text", pl.lit([[["x"]]]).repeat_by(1)),
        "statements",
        FORMAT,
        "text",
    ),
    Case(
        "texts that are missing", h.first(h.STATEMENTS, "text", None), "statements", FORMAT, "text"
    ),
    Case(
        "names of datasets that are missing",
        h.first(h.STATEMENTS, "dataset", None),
        "statements",
        FORMAT,
        "dataset",
    ),
    Case(
        "a dataset nobody knows", h.first(h.STATEMENTS, "dataset", "ghosts"), "verify", FAULTS, ""
    ),
    Case("labels of 7", h.first(h.STATEMENTS, "label", 7), "transfer", FORMAT, "label"),
    Case("a polarity of 5", h.first(h.STATEMENTS, "polarity", 5), "transfer", FORMAT, "polarity"),
    Case(
        "ids that are doubled",
        h.table(h.STATEMENTS, lambda t: pl.concat([t.head(1), t])),
        "verify",
        FAULTS,
        "",
    ),
    Case(
        "token positions below zero",
        h.column(h.TOKENS, "positions", pl.lit([-1], pl.List(pl.Int32))),
        "tokens",
        FORMAT,
        "positions",
    ),
    Case(
        "token positions beyond the tokens",
        h.column(h.TOKENS, "positions", pl.lit([10**6], pl.List(pl.Int32))),
        "tokens",
        FORMAT,
        "positions",
    ),
    Case(
        "token ids that are text",
        h.column(h.TOKENS, "token_ids", pl.lit("x")),
        "tokens",
        FORMAT,
        "token_ids",
    ),
    Case("tokens of other rows", h.table(h.TOKENS, lambda t: t.reverse()), "verify", FAULTS, ""),
]
