"""manifest.json and the manifests of parts: JSON that is none, that is too much, that lies."""

from __future__ import annotations

import polars as pl
from tests.faults import hostile as h
from tests.faults.hostile_cases.case import (
    ALIGNMENT,
    BIDI,
    DAMAGED,
    ESCAPE,
    FAULTS,
    FORMAT,
    NOT_STORED,
    UNKNOWN,
    UNMET,
    Case,
)

JSON = [
    Case("nested 5,000 deep", h.manifest_is(h.deep(5_000)), "load", FORMAT, "deep"),
    Case("nested 100,000 deep", h.manifest_is(h.deep(100_000)), "load", FORMAT, "deep"),
    Case("part nested 100,000 deep", h.part_is(h.deep(100_000)), "activations", FORMAT, "deep"),
    Case("depth behind brackets in a text", h.deep_in_a_string, "load", FORMAT, "deep"),
    Case("65 MiB of white space", h.manifest_padded(65), "load", FORMAT, "bytes"),
    Case(
        "twenty million lists", h.manifest_is(h.many_values(20_000_000)), "load", FORMAT, "values"
    ),
    Case("a million names", h.manifest_is(h.many_names(1_000_000)), "load", FORMAT, ""),
    Case("150,000 files", h.many_entries(150_000), "load", FORMAT, ""),
    Case(
        "a name twice",
        h.manifest_text('"name":', '"name": "other", "name":'),
        "load",
        FORMAT,
        "twice",
    ),
    Case(
        "a name twice in a part",
        h.part_is(b'{"format": 1, "format": 1}'),
        "activations",
        FORMAT,
        "twice",
    ),
    Case("NaN", h.manifest_text("1e-06", "NaN"), "load", FORMAT, "NaN"),
    Case("Infinity", h.manifest_text("1e-06", "-Infinity"), "load", FORMAT, "Infinity"),
    Case("a number beyond all floats", h.manifest_text("1e-06", "1e999"), "load", FORMAT, ""),
    Case(
        "an integer of 5,000 digits",
        h.manifest_has(format=1, name="9" * 5_000),
        "load",
        FORMAT,
        "name",
    ),
    Case(
        "an integer of a million digits",
        h.manifest_text("1e-06", "9" * 1_000_000),
        "load",
        FORMAT,
        "",
    ),
    Case("a number for a list", h.manifest_has(stages=7), "load", FORMAT, "stages"),
    Case("a text for a number", h.stage_has(n_layers="two"), "load", FORMAT, "n_layers"),
    Case("a list for an object", h.manifest_is(b"[]"), "load", FORMAT, ""),
    Case("null for everything", h.manifest_is(b"null"), "load", FORMAT, ""),
    Case("an unknown field", h.manifest_has(shell="rm -rf /"), "load", FORMAT, "shell"),
    Case(
        "an unknown field of escapes", h.manifest_has(**{ESCAPE: 1}), "command info", DAMAGED, "x1b"
    ),
    Case(
        "an unknown field of 100,000 letters",
        h.manifest_has(**{"k" * 100_000: 1}),
        "load",
        FORMAT,
        "",
    ),
    Case(
        "half a surrogate",
        h.manifest_has(title="\ud800"),
        "command info",
        DAMAGED,
        "half a character",
    ),
    Case(
        "a name of half a surrogate", h.manifest_has(**{"\udcff": 1}), "command info", DAMAGED, ""
    ),
    Case(
        "a newer format", h.manifest_has(format=2), "load", FORMAT, "pip install --upgrade ptmech"
    ),
    Case("a newer format in a part", h.part_has(format=99), "activations", FORMAT, "upgrade"),
    Case("an older format", h.manifest_has(format=0), "load", FORMAT, "format"),
    Case("another document's schema", h.manifest_is(b'{"openapi": "3.1.0"}'), "load", FORMAT, ""),
    Case("a byte order mark", h.manifest_around(b"\xef\xbb\xbf", b""), "load", FORMAT, ""),
    Case("UTF-16", h.manifest_encoded("utf-16"), "load", FORMAT, ""),
    Case("UTF-32", h.manifest_encoded("utf-32"), "load", FORMAT, ""),
    Case("no UTF-8", h.manifest_is(b'{"name": "\xff"}'), "load", FORMAT, ""),
    Case("a NUL behind it", h.manifest_around(b"", b"\0"), "load", FORMAT, "JSON"),
    Case("a NUL in a title", h.manifest_has(title="a\0b"), "load", FORMAT, "title"),
    Case("garbage behind it", h.manifest_around(b"", b"{}"), "load", FORMAT, "JSON"),
    Case("lines of JSON", h.manifest_is(b'{"a": 1}\n{"b": 2}\n'), "load", FORMAT, "JSON"),
    Case("nothing", h.manifest_is(b""), "load", FORMAT, "JSON"),
    Case("nothing for a part", h.part_is(b""), "verify", FAULTS, "JSON"),
    Case(
        "a million texts of one letter",
        h.default_is(truth_datasets=["a"] * 1_000_000),
        "load",
        FORMAT,
        "",
    ),
]

NUMBERS = [
    Case(
        "rows of a part: a million million", h.part_has(rows=10**12), "activations", FORMAT, "rows"
    ),
    Case("rows of a part: -1", h.part_has(rows=-1), "activations", FORMAT, "rows"),
    Case("rows of a file: a million million", h.file_has(rows=10**12), "activations", FORMAT, ""),
    Case("rows of a file: 0", h.file_has(rows=0), "activations", FORMAT, "rows"),
    Case("rows of a dataset: -1", h.dataset_has(rows=-1), "load", FORMAT, "rows"),
    Case("rows of a dataset: 2**62", h.dataset_has(rows=2**62), "load", FORMAT, "rows"),
    Case("layers of a stage: a milliard", h.stage_has(n_layers=10**9), "load", FORMAT, "n_layers"),
    Case("layers of a stage: 0", h.stage_has(n_layers=0), "load", FORMAT, "n_layers"),
    Case("layers of a stage: -4", h.stage_has(n_layers=-4), "load", FORMAT, "n_layers"),
    Case("a width of 0", h.stage_has(d_model=0), "load", FORMAT, "d_model"),
    Case("a width of 0 in a part", h.part_has(d_model=0), "activations", FORMAT, "d_model"),
    Case("a width of 2**40 in a part", h.part_has(d_model=2**40), "activations", FORMAT, "d_model"),
    Case("neurons: -1", h.stage_has(d_mlp=-1), "load", FORMAT, "d_mlp"),
    Case("a vocabulary of -1", h.stage_has(vocabulary=-1), "load", FORMAT, "vocabulary"),
    Case(
        "a layer that no model has",
        h.manifest_has(sites={"resid_post": [10**9]}),
        "load",
        FORMAT,
        "",
    ),
    Case("a layer of -1", h.manifest_has(sites={"resid_post": [-1]}), "load", FORMAT, "sites"),
    Case("a layer twice", h.manifest_has(sites={"resid_post": [0, 0]}), "load", FORMAT, "sites"),
    Case(
        "a million layers",
        h.manifest_has(sites={"resid_post": list(range(1_000_000))}),
        "load",
        FORMAT,
        "",
    ),
    Case("a site nobody knows", h.manifest_has(sites={"weights": [0]}), "load", FORMAT, "site"),
    Case("no stage", h.manifest_has(stages=[]), "load", FORMAT, "stages"),
    Case("a position of 0", h.part_has(positions=[0]), "activations", FORMAT, "positions"),
    Case("a position twice", h.part_has(positions=[-1, -1]), "activations", FORMAT, "positions"),
    Case(
        "a million positions",
        h.part_has(positions=list(range(-(10**6), 0))),
        "activations",
        FORMAT,
        "positions",
    ),
    Case(
        "a position a million back",
        h.part_has(positions=[-(10**6)]),
        "activations",
        UNKNOWN,
        "position",
    ),
    Case("positions of a dataset: 1", h.dataset_has(positions=[1]), "load", FORMAT, "positions"),
    Case("bytes: 2**62", h.entry_has(bytes=2**62), "load", FORMAT, "bytes"),
    Case("bytes: -1", h.entry_has(bytes=-1), "load", FORMAT, "bytes"),
    Case("bytes of a part: -1", h.part_entry_has(data_bytes=-1), "load", FORMAT, "data_bytes"),
    Case("bytes of activations: 2**62", h.file_has(bytes=2**62), "activations", FORMAT, "bytes"),
    Case("a layer of a file: 10**18", h.file_has(layer=10**18), "activations", FORMAT, ""),
    Case("a block of -1", h.file_has(block=-1), "activations", FORMAT, "block"),
    Case("a block that is not there", h.file_has(block=7), "verify", FAULTS, "block"),
    Case("a block twice", h.file_listed_again, "activations", ALIGNMENT, "12 doubled"),
    Case("a block twice, verified", h.file_listed_again, "verify", FAULTS, ""),
    Case("overlapping blocks", h.blocks((0, 8), (4, 8)), "verify", FAULTS, "block"),
    Case("a gap between blocks", h.blocks((0, 4), (8, 4)), "verify", FAULTS, "block"),
    Case("a file that is not listed", h.file_not_listed, "activations", NOT_STORED, "not built"),
    Case("a file that is not listed, verified", h.file_not_listed, "verify", FAULTS, "lacks"),
    Case("a unit of -5 rows", h.unit_has(rows=-5), "activations", FORMAT, "rows"),
    Case(
        "a part of another stage", h.part_has(stage="instruct"), "activations", FORMAT, "instruct"
    ),
    Case("a dtype nobody stores", h.part_has(dtype="object"), "activations", FORMAT, "dtype"),
    Case("a chosen layer of 10**9", h.default_is(truth_layer=10**9), "load", FORMAT, "truth_layer"),
    Case(
        "a chosen layer nobody has", h.default_is(truth_layer=1000), "load", FORMAT, "truth_layer"
    ),
    Case(
        "a chosen dataset nobody has",
        h.default_is(truth_datasets=["../x"]),
        "command truth",
        UNMET,
        "dataset",
    ),
    Case(
        "a chosen dataset of 100,000 letters",
        h.default_is(harmful="x" * 100_000),
        "refusal_similarity",
        FORMAT,
        "",
    ),
    Case("stages of one name", h.manifest_has(stages=[]), "load", FORMAT, "stages"),
]

TEXTS = [
    Case(
        "escapes in a title", h.manifest_has(title=f"a{ESCAPE}b"), "command info", DAMAGED, "title"
    ),
    Case(
        "escapes in a stage's title",
        h.stage_has(title=f"a{ESCAPE}b"),
        "command info",
        DAMAGED,
        "title",
    ),
    Case(
        "escapes in a dataset's title", h.dataset_has(title=f"a{ESCAPE}b"), "load", FORMAT, "title"
    ),
    Case(
        "escapes in a version", h.manifest_has(versions={"a": ESCAPE}), "load", FORMAT, "versions"
    ),
    Case("an 8-bit escape", h.manifest_has(description="a\x9b31mb"), "load", FORMAT, "description"),
    Case(
        "a title that turns round",
        h.manifest_has(title=f"a{BIDI}b"),
        "command info",
        DAMAGED,
        "title",
    ),
    Case("a title of two lines", h.manifest_has(title="a\nb"), "load", FORMAT, "title"),
    Case(
        "a title of two lines, by U+2028", h.manifest_has(title="a\u2028b"), "load", FORMAT, "title"
    ),
    Case("a name with markup", h.stage_has(name="[red]"), "command info", DAMAGED, "name"),
    Case("a name with a path", h.dataset_has(name="../x"), "load", FORMAT, "name"),
    Case(
        "a licence of two lines",
        h.manifest_has(licence="mit\n---\nlicense: mine"),
        "load",
        FORMAT,
        "licence",
    ),
    Case("NUL in a statement", h.text_becomes(lambda text: f"{text}\0"), "verify", FAULTS, ""),
    Case(
        "escapes in the id of a row",
        h.first(h.STATEMENTS, "source_id", ESCAPE),
        "command verify",
        DAMAGED,
        "",
    ),
    Case(
        "escapes in a dataset's name",
        h.first(h.STATEMENTS, "dataset", ESCAPE),
        "command verify",
        DAMAGED,
        "",
    ),
    Case(
        "a column of escapes",
        h.table("scores/base/directions.parquet", lambda t: t.rename({"norm": ESCAPE})),
        "command refusal",
        DAMAGED,
        "called",
    ),
    Case(
        "splits of escapes",
        h.column(h.STATEMENTS, "split", pl.lit(ESCAPE)),
        "refusal_similarity",
        UNKNOWN,
        "x1b",
    ),
    Case(
        "an id of a megabyte",
        h.both(h.first_row_is("i" * 10**6), h.rows(lambda at: at[::-1])),
        "activations",
        ALIGNMENT,
        "cities",
    ),
]
