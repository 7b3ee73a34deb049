"""Grids: plain zarr reads back what was written, and notices a flipped bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from ptmech.errors import FormatError
from ptmech.storage.grids import read_group
from ptmech_builder.grids import grid_files

ATTRIBUTES = {
    "form": "completion",
    "tokens": ["<s>", "Ċ", "é"],
    "pairs": [{"true_uid": 2**64 - 1, "false_uid": 2**53 + 1}],
    "known": {"base": 0.25},
}


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    grid = rng.normal(size=(4, 3, 5)).astype(np.float32)
    grid[1] = 0  # a chunk of zeros must be stored, too
    grid[2, 0, 0] = -0.0
    return {
        "grid": grid,
        "unpatched": rng.normal(size=4).astype(np.float32),
        "source": np.zeros(4, np.float32),
    }


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def test_plain_zarr_reads_it_back(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    group: Any = zarr.open(write(tmp_path / "x.zarr", grid_files(arrays, ATTRIBUTES)), mode="r")
    assert isinstance(group, zarr.Group)
    assert dict(group.attrs) == ATTRIBUTES
    assert sorted(group.array_keys()) == ["grid", "source", "unpatched"]
    for name, values in arrays.items():
        assert group[name].dtype == np.float32
        np.testing.assert_array_equal(
            np.asarray(group[name][...]).view(np.uint32), values.view(np.uint32)
        )


def test_one_pair_can_be_read_alone(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    group: Any = zarr.open(write(tmp_path / "x.zarr", grid_files(arrays, {})), mode="r")
    assert group["grid"].chunks == (1, 3, 5)
    assert group["grid"].shards == (4, 3, 5)
    np.testing.assert_array_equal(group["grid"][2], arrays["grid"][2])


def test_the_files_are_the_seven_that_are_promised(arrays: dict[str, np.ndarray]) -> None:
    files = grid_files(arrays, ATTRIBUTES)
    assert list(files) == sorted(files)
    assert sorted(files) == [
        "grid/c/0/0/0", "grid/zarr.json", "source/c/0", "source/zarr.json",
        "unpatched/c/0", "unpatched/zarr.json", "zarr.json",
    ]  # fmt: skip
    assert json.loads(files["grid/zarr.json"])["fill_value"] == "NaN"


def test_the_same_content_gives_the_same_bytes(arrays: dict[str, np.ndarray]) -> None:
    backwards = dict(reversed(arrays.items()))
    strided = {name: np.asfortranarray(values) for name, values in arrays.items()}
    first = grid_files(arrays, ATTRIBUTES)
    assert first == grid_files(backwards, ATTRIBUTES) == grid_files(strided, ATTRIBUTES)


@pytest.mark.parametrize("name", ["grid", "unpatched", "source"])
def test_no_flipped_bit_is_read_as_data(
    tmp_path: Path, arrays: dict[str, np.ndarray], name: str
) -> None:
    files = grid_files(arrays, {})
    chunk = f"{name}/c/0/0/0" if name == "grid" else f"{name}/c/0"
    data = files[chunk]
    folder = write(tmp_path / "x.zarr", files)
    for at in range(0, len(data), 7):
        flipped = bytearray(data)
        flipped[at] ^= 1 << (at % 8)
        (folder / chunk).write_bytes(flipped)
        group: Any = zarr.open(folder, mode="r")
        try:
            found = np.asarray(group[name][...])
        except Exception:  # whatever zarr raises, it noticed
            continue
        # The index of a shard can be damaged so that a chunk counts as absent, which reads as NaN.
        np.testing.assert_array_equal(
            np.where(np.isnan(found), arrays[name], found), arrays[name], err_msg=f"byte {at}"
        )
        assert np.isnan(found).any(), f"byte {at} does not matter"


def test_a_flipped_data_bit_is_a_checksum_error(
    tmp_path: Path, arrays: dict[str, np.ndarray]
) -> None:
    files = grid_files(arrays, {})
    data = files["grid/c/0/0/0"]
    place = data.index(arrays["grid"][3, 1, 2].tobytes())
    flipped = bytearray(data)
    flipped[place] ^= 1
    folder = write(tmp_path / "x.zarr", {**files, "grid/c/0/0/0": bytes(flipped)})
    group: Any = zarr.open(folder, mode="r")
    with pytest.raises(ValueError, match=r"(?i)checksum"):
        group["grid"][...]
    np.testing.assert_array_equal(group["grid"][0], arrays["grid"][0])


def test_the_sdk_reads_what_the_builder_writes(arrays: dict[str, np.ndarray]) -> None:
    files = grid_files(arrays, ATTRIBUTES)
    attributes, found = read_group(files)
    assert attributes == ATTRIBUTES
    for name, values in arrays.items():
        np.testing.assert_array_equal(found[name], values)
    del files["source/c/0"]
    with pytest.raises(FormatError, match="source: the chunk c/0 is missing"):
        read_group(files)
