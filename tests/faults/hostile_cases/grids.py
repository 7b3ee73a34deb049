"""Grids of causal traces: zarr that is none, explodes or has holes; descriptions that lie."""

from __future__ import annotations

from tests.faults import hostile as h
from tests.faults.hostile_cases.case import (
    DAMAGED,
    ESCAPE,
    FAULTS,
    FORMAT,
    Case,
)

GRID = "trace"
ZARR = [
    Case(
        "a shape of a tebibyte", h.array_of([2**20, 2**10, 2**8], [6, 2, 7]), GRID, FORMAT, "larger"
    ),
    Case(
        "a chunk of a tebibyte", h.array_of([6, 2, 7], [2**20, 2**10, 2**8]), GRID, FORMAT, "larger"
    ),
    Case("10**12 chunks", h.array_of([10**4, 10**4, 10**4], [1, 1, 1]), GRID, FORMAT, ""),
    Case("a shape of nothing", h.array_of([0, 2, 7], [6, 2, 7]), GRID, FORMAT, "shape"),
    Case("a shape below nothing", h.array_of([-6, 2, 7], [6, 2, 7]), GRID, FORMAT, "shape"),
    Case("a shape of 64 axes", h.array_of([1] * 64, [1] * 64), GRID, FORMAT, ""),
    Case("another number of axes", h.array_of([6, 2, 7], [6, 2]), GRID, FORMAT, "fit"),
    Case("other pairs than described", h.array_of([5, 2, 7], [6, 2, 7]), GRID, FORMAT, ""),
    Case("a chunk that is missing", h.chunk_gone, GRID, FORMAT, "missing"),
    Case("a chunk that is missing, verified", h.chunk_gone, "verify", FAULTS, "missing"),
    Case("a chunk cut short", h.chunk_short, GRID, FORMAT, ""),
    Case("a flipped bit under crc32c", h.chunk_flipped, GRID, FORMAT, ""),
    Case("a chunk of no bytes", h.chunk_is(b""), GRID, FORMAT, ""),
    Case("a zstd bomb", h.compressed_bomb("zstd"), GRID, FORMAT, ""),
    Case("a gzip bomb", h.compressed_bomb("gzip"), GRID, FORMAT, ""),
    Case("a zstd bomb, verified", h.compressed_bomb("zstd"), "verify", FAULTS, ""),
    Case("a codec nobody knows", h.codecs(h.LITTLE, {"name": "evil"}), GRID, FORMAT, "codec"),
    Case("a codec that is pickle", h.codecs({"name": "numcodecs.pickle"}), GRID, FORMAT, "codec"),
    Case(
        "a codec that is json2", h.codecs({"name": "numcodecs.json2"}, h.CRC), GRID, FORMAT, "codec"
    ),
    Case("no codec", h.codecs(), GRID, FORMAT, ""),
    Case("100,000 codecs", h.codecs(*[h.CRC] * 100_000), GRID, FORMAT, ""),
    Case(
        "shards in shards",
        h.codecs(
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": [1, 1, 1],
                    "codecs": [
                        {
                            "name": "sharding_indexed",
                            "configuration": {
                                "chunk_shape": [1, 1, 1],
                                "codecs": [h.LITTLE],
                                "index_codecs": [h.LITTLE],
                            },
                        }
                    ],
                    "index_codecs": [h.LITTLE],
                },
            }
        ),
        GRID,
        FORMAT,
        "",
    ),
    Case("objects", h.array_says(data_type="object"), GRID, FORMAT, "data_type"),
    Case("texts", h.array_says(data_type="string"), GRID, FORMAT, "data_type"),
    Case("raw bits", h.array_says(data_type="r2147483640"), GRID, FORMAT, "data_type"),
    Case(
        "a data type that is an object",
        h.array_says(data_type={"name": "numpy.datetime64"}),
        GRID,
        FORMAT,
        "data_type",
    ),
    Case("zarr 2", h.array_says(zarr_format=2), GRID, FORMAT, "zarr_format"),
    Case(
        "storage transformers",
        h.array_says(storage_transformers=[{"name": "evil"}]),
        GRID,
        FORMAT,
        "",
    ),
    Case(
        "keys of another kind",
        h.array_says(chunk_key_encoding={"name": "v2", "configuration": {"separator": "."}}),
        GRID,
        FORMAT,
        "",
    ),
    Case("a value that is not finite", h.grid_holds(float("inf")), GRID, FORMAT, "finite"),
    Case(
        "a value that is not a number",
        h.grid_holds(float("nan")),
        "compare_stages",
        FORMAT,
        "finite",
    ),
    Case("groups in the group", h.group_within, GRID, FORMAT, ""),
    Case(
        "a node nested 100,000 deep",
        h.holds(f"{h.GRID}/zarr.json", h.deep(100_000)),
        GRID,
        FORMAT,
        "deep",
    ),
    Case("a node of no JSON", h.holds(f"{h.GRID}/zarr.json", b"\x80"), GRID, FORMAT, "JSON"),
]

TRACES = [
    Case("attributes of another stage", h.attributes_say(source="ghost"), GRID, FORMAT, "ghost"),
    Case(
        "attributes of escapes",
        h.attributes_say(tokens=[ESCAPE] * 7),
        "command knowledge",
        DAMAGED,
        "control",
    ),
    Case(
        "attributes of a source of escapes",
        h.attributes_say(source=ESCAPE),
        "command knowledge",
        DAMAGED,
        "",
    ),
    Case("a million tokens", h.attributes_say(tokens=["x"] * 1_000_000), GRID, FORMAT, ""),
    Case("six tokens for seven", h.attributes_say(tokens=["x"] * 6), GRID, FORMAT, "tokens"),
    Case("roles for none", h.attributes_say(roles=[]), GRID, FORMAT, ""),
    Case("a role nobody knows", h.attributes_say(roles=["layer"] * 7), GRID, FORMAT, "roles"),
    Case(
        "a pair too few",
        h.attributes_say(pairs=[{"true_uid": 1, "false_uid": 2}] * 5),
        GRID,
        FORMAT,
        "pairs",
    ),
    Case(
        "ids below zero",
        h.attributes_say(pairs=[{"true_uid": -1, "false_uid": 2}] * 6),
        GRID,
        FORMAT,
        "true_uid",
    ),
    Case(
        "ids of 65 bits",
        h.attributes_say(pairs=[{"true_uid": 2**64, "false_uid": 2}] * 6),
        GRID,
        FORMAT,
        "too large",
    ),
    Case(
        "columns that differ at -3",
        h.attributes_say(pairs=[{"true_uid": 1, "false_uid": 2, "differing": [-3]}] * 6),
        GRID,
        FORMAT,
        "differing",
    ),
    Case("known: 700 %", h.attributes_say(known={"base": 7.0}), GRID, FORMAT, "known"),
    Case("values beyond all logits", h.grid_holds(1e300), GRID, FORMAT, "beyond"),
    Case("attributes without roles", h.attributes_without("roles"), GRID, FORMAT, "roles"),
    Case(
        "no attributes",
        h.holds(f"{h.GRID}/zarr.json", b'{"zarr_format": 3, "node_type": "group"}'),
        GRID,
        FORMAT,
        "",
    ),
    Case(
        "no group",
        h.holds(f"{h.GRID}/zarr.json", b'{"zarr_format": 3, "node_type": "array"}'),
        GRID,
        FORMAT,
        "node_type",
    ),
]
