"""Reading zarr groups: exact values, and no hole, lie or damage left unseen."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec
from zarr.storage import MemoryStore

from ptmech.errors import FormatError
from ptmech.storage.grids import read_group

VALUES = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32)


def group_files(arrays, attributes=None, **options) -> dict[str, bytes]:
    """Write a group with zarr alone, as a builder does: not compressed; return its files."""
    options.setdefault("compressors", None)
    store = MemoryStore()
    group = zarr.create_group(store, zarr_format=3, attributes=attributes or {})
    with zarr.config.set({"array.write_empty_chunks": True}):
        for name, values in arrays.items():
            group.create_array(name, data=values, **options)
    return {path: part.to_bytes() for path, part in store._store_dict.items()}


def with_node(files, path, **changes):
    return {**files, path: json.dumps({**json.loads(files[path]), **changes}).encode()}


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunks": (2, 4, 3)},
        {"chunks": (1, 2, 2), "shards": (2, 4, 4)},
        {"compressors": [Crc32cCodec()]},
        {"chunks": (1, 4, 3), "shards": (5, 4, 3), "compressors": [Crc32cCodec()]},
        {"fill_value": 7.0},
    ],
)
def test_values_and_attributes_come_back(dtype, options):
    values = VALUES.astype(dtype)
    files = group_files({"grid": values, "other": -values}, {"roles": ["a", "b"]}, **options)
    attributes, arrays = read_group(files)
    assert attributes == {"roles": ["a", "b"]}
    assert set(arrays) == {"grid", "other"}
    assert arrays["grid"].dtype == values.dtype
    np.testing.assert_array_equal(arrays["grid"], values)
    np.testing.assert_array_equal(arrays["other"], -values)


def test_zeros_are_values_too():
    values = np.zeros((3, 2))
    np.testing.assert_array_equal(read_group(group_files({"grid": values}))[1]["grid"], values)


def test_a_lone_number():
    assert read_group(group_files({"n": np.array(2.5)}))[1]["n"] == 2.5


@pytest.mark.parametrize(
    "options", [{}, {"chunks": (2, 2, 3)}, {"chunks": (1, 4, 3), "shards": (2, 4, 3)}]
)
def test_no_file_can_be_missing(options):
    files = group_files({"grid": VALUES}, **options)
    for path in files:
        rest = {other: data for other, data in files.items() if other != path}
        if path == "grid/zarr.json":
            assert read_group(rest)[1] == {}  # then there is no such array; callers ask for names
            continue
        with pytest.raises(FormatError, match="missing") as caught:
            read_group(rest, "traces/x.zarr")
        assert str(caught.value).startswith("traces/x.zarr")
        assert path.rpartition("grid/")[2] in str(caught.value)


def shard_with_a_hole() -> dict[str, bytes]:
    """zarr leaves out chunks that hold nothing but the fill value, and reads them as that."""
    store = MemoryStore()
    array = zarr.create_group(store).create_array(
        "grid", shape=(4, 3), dtype="float32", chunks=(1, 3), shards=(4, 3), fill_value=0.0,
        compressors=None,
    )  # fmt: skip
    array[:2] = 1.0
    return {path: part.to_bytes() for path, part in store._store_dict.items()}


def test_a_hole_inside_a_shard():
    with pytest.raises(FormatError, match=r"too few for its values|not finite"):
        read_group(shard_with_a_hole())


def test_a_hole_inside_a_shard_that_is_padded():
    files = shard_with_a_hole()
    values, index = files["grid/c/0/0"][:24], files["grid/c/0/0"][24:]
    with pytest.raises(FormatError, match="not finite, or lacks part of a shard"):
        read_group({**files, "grid/c/0/0": values + bytes(24) + index})


@pytest.mark.parametrize("shape", [(5, 4, 3), (4, 3, 3), (1, 1, 1), (9, 7, 2)])
@pytest.mark.parametrize("chunks", [(1, 4, 3), (2, 2, 1), (4, 4, 3)])
def test_a_last_shard_may_be_partial(shape, chunks):
    """Chunks that lie beyond the array are in no shard."""
    values = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    files = group_files({"grid": values}, chunks=chunks, shards=(4, 4, 3))
    _, arrays = read_group(files)
    np.testing.assert_array_equal(arrays["grid"], values)


def test_a_grid_of_twenty_thousand_pairs():
    values = np.ones((20_000, 2, 2), np.float32)
    values[-1] = 7
    files = group_files({"grid": values}, chunks=(1, 2, 2), shards=(20_000, 2, 2))
    _, arrays = read_group(files)
    np.testing.assert_array_equal(arrays["grid"], values)


@pytest.mark.parametrize("codec", [ZstdCodec(), GzipCodec(), BloscCodec()])
def test_compressed_grids_are_refused(codec):
    """What is compressed may expand a thousandfold; no artifact of ours has any such grid."""
    with pytest.raises(
        FormatError, match=r"grid/zarr\.json: codecs: compressed .*stored as they are"
    ):
        read_group(group_files({"grid": VALUES}, compressors=[codec]))
    with pytest.raises(FormatError, match=r"grid/zarr\.json: codecs\.0"):
        read_group(
            group_files({"grid": VALUES}, chunks=(1, 4, 3), shards=(5, 4, 3), compressors=[codec])
        )


def test_shards_within_shards_are_refused():
    files = group_files({"grid": VALUES}, chunks=(1, 4, 3), shards=(5, 4, 3))
    node = json.loads(files["grid/zarr.json"])
    inner = json.loads(json.dumps(node["codecs"]))
    node["codecs"][0]["configuration"]["codecs"] = inner
    with pytest.raises(FormatError, match=r"codecs"):
        read_group({**files, "grid/zarr.json": json.dumps(node).encode()})


@pytest.mark.parametrize("inner", [[1, 4], [2, 4, 3], [0, 4, 3], [5, 4, -3]])
def test_chunks_that_do_not_fit_their_shards_are_refused(inner):
    files = group_files({"grid": VALUES}, chunks=(1, 4, 3), shards=(5, 4, 3))
    node = json.loads(files["grid/zarr.json"])
    node["codecs"][0]["configuration"]["chunk_shape"] = inner
    with pytest.raises(FormatError, match=r"do not fit|chunk_shape"):
        read_group({**files, "grid/zarr.json": json.dumps(node).encode()})


def test_a_million_chunks_in_a_shard_are_refused_at_once():
    files = group_files({"grid": np.ones(2**20, np.float32)}, chunks=(2**20,), shards=(2**20,))
    node = json.loads(files["grid/zarr.json"])
    node["codecs"][0]["configuration"]["chunk_shape"] = [1]
    with pytest.raises(FormatError, match="cut into more than 65536 chunks"):
        read_group({**files, "grid/zarr.json": json.dumps(node).encode()})


def test_an_array_larger_than_its_files_is_refused_before_it_is_made():
    files = group_files({"grid": VALUES})
    shape = {"shape": [2**14, 2**14], "data_type": "float32"}
    grid = {"name": "regular", "configuration": {"chunk_shape": [2**14, 2**14]}}
    files = {**files, "grid/c/0/0": bytes(1000)}
    with pytest.raises(FormatError, match="1000 bytes, too few for its values"):
        read_group(with_node(files, "grid/zarr.json", **shape, chunk_grid=grid))


@pytest.mark.parametrize("name", ["../grid", "a/b", "grid\x1b", "", "x" * 99])
def test_odd_names_of_arrays_are_refused(name):
    files = group_files({"grid": VALUES})
    odd = {path.replace("grid/", f"{name}/"): data for path, data in files.items()}
    with pytest.raises(FormatError, match="no array can be called") as caught:
        read_group(odd)
    assert str(caught.value).isprintable()


def test_too_many_arrays_are_refused():
    files = group_files({"grid": VALUES})
    for number in range(40):
        files[f"a{number}/zarr.json"] = files["grid/zarr.json"]
    with pytest.raises(FormatError, match="has 41 arrays; there may be 32"):
        read_group(files)


def test_attributes_are_bounded():
    root = {"zarr_format": 3, "node_type": "group"}
    long = json.dumps({**root, "attributes": {"text": "x" * 17 * 2**20}}).encode()
    with pytest.raises(FormatError, match=r"zarr\.json has \d+ bytes, more than"):
        read_group({"zarr.json": long})
    twice = b'{"zarr_format": 3, "node_type": "group", "attributes": {"a": 1, "a": 2}}'
    with pytest.raises(FormatError, match="the key 'a' is there twice"):
        read_group({"zarr.json": twice})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_must_be_finite(bad):
    values = VALUES.copy()
    values[1, 2, 0] = bad
    with pytest.raises(FormatError, match="not finite"):
        read_group(group_files({"grid": values}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data_type": "int32"}, "data_type"),
        ({"data_type": ["float32"]}, "data_type"),
        ({"shape": "big"}, "shape"),
        ({"shape": [5, 4]}, "do not fit"),
        ({"shape": [5, 4, 0]}, "shape"),
        ({"shape": [5, 4, -3]}, "shape"),
        ({"shape": [10**6, 10**6, 3]}, "larger than"),
        ({"shape": [5, 4, 10**7]}, "more than 65536 chunks"),
        ({"shape": [5] * 100}, "shape"),
        ({"shape": [5.5, 4, 3]}, "shape"),
        ({"shape": [True, 4, 3]}, "shape"),
        ({"storage_transformers": [{"name": "x"}]}, "storage_transformers"),
        ({"shape": [5, 8, 3]}, "missing"),
        ({"codecs": [{"name": "numcodecs.pickle"}]}, "codecs: compressed or changed by 'numcodecs"),
        ({"codecs": [{"name": "bytes", "configuration": {"codecs": [{"name": "x"}]}}]}, "codecs"),
        ({"codecs": 3}, "codecs"),
        ({"codecs": []}, "codecs"),
        ({"chunk_key_encoding": {"name": "v2"}}, "chunk_key_encoding"),
        ({"chunk_key_encoding": {}}, "chunk_key_encoding"),
        (
            {"chunk_grid": {"name": "odd", "configuration": {"chunk_shape": [5, 4, 3]}}},
            "chunk_grid",
        ),
        (
            {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [10**9, 4, 3]}}},
            "larger than",
        ),
        ({"zarr_format": 2}, "zarr_format"),
        ({"node_type": "group"}, "node_type"),
    ],
)
def test_arrays_that_lie_about_themselves(changes, words):
    files = group_files({"grid": VALUES}, compressors=None)
    with pytest.raises(FormatError, match=words) as caught:
        read_group(with_node(files, "grid/zarr.json", **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "root", [b"", b"\xff", b"[]", b"null", b'{"zarr_format": 3}', b"[" * 10**5]
)
def test_a_root_that_is_no_group(root):
    with pytest.raises(FormatError):
        read_group({"zarr.json": root})


def test_attributes_must_be_an_object():
    with pytest.raises(FormatError, match="attributes"):
        read_group(with_node(group_files({}), "zarr.json", attributes=[1]))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damage_gives_the_right_values_or_one_clear_error(data):
    """With a checksum in every chunk, no flipped byte of a chunk can change a value."""
    files = group_files({"grid": VALUES}, compressors=[Crc32cCodec()])
    path = data.draw(st.sampled_from(sorted(path for path in files if "/c/" in path)))
    place = data.draw(st.integers(0, len(files[path]) - 1))
    damaged = bytearray(files[path])
    damaged[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(FormatError):
        read_group({**files, path: bytes(damaged)})


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_metadata_never_crash(data):
    files = group_files({"grid": VALUES}, compressors=None)
    path = data.draw(st.sampled_from(["zarr.json", "grid/zarr.json"]))
    place = data.draw(st.integers(0, len(files[path]) - 1))
    damaged = bytearray(files[path])
    damaged[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(FormatError):
        read_group({**files, path: bytes(damaged)})


def test_truncated_chunks():
    files = group_files({"grid": VALUES}, compressors=None)
    chunk = next(path for path in files if "/c/" in path)
    for length in (0, 1, len(files[chunk]) - 1):
        with pytest.raises(FormatError, match="decoded"):
            read_group({**files, chunk: files[chunk][:length]})
