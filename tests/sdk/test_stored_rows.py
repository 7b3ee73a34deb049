"""Rows as they stand in the files: mapped or copied once, and looked at once."""

from __future__ import annotations

import json
import mmap
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from tests.synthetic import write_synthetic_artifact

from ptmech import Artifact, _stored_rows, load
from ptmech._stored_rows import require_finite
from ptmech.errors import FormatError, IntegrityError
from ptmech.manifest import MANIFEST
from ptmech_builder.writer import digest, tensor_bytes

LAYER = "acts/base/cities/resid_post/L01.safetensors"
PROMPTED = "acts/base/harmful/resid_post/L01.safetensors"


def written(folder: Path, **options: Any) -> Path:
    return write_synthetic_artifact(folder / "artifact", stages=["base"], n_layers=2, **options)


def cities(artifact: Artifact, dtype: Any = "float32", layer: int = 1) -> np.ndarray:
    return artifact.activations("cities", "base", layer=layer, dtype=dtype)


def replaced(root: Path, path: str, activations: np.ndarray) -> None:
    """Put other activations into a file, and promise them all the way up, as its author could."""
    _, stage, dataset, *_ = path.split("/")
    held = load_file(root / path)
    data = tensor_bytes({"activations": activations, "row_uid": held["row_uid"]}, {})
    for below, above in (
        (path, f"manifests/{stage}/{dataset}.json"),
        (f"manifests/{stage}/{dataset}.json", MANIFEST),
    ):
        (root / below).write_bytes(data)
        document = json.loads((root / above).read_bytes())
        for entry in [*document.get("files", []), *document.get("parts", [])]:
            if entry["path"] == below:
                entry |= {"bytes": len(data), "sha256": digest(data)}
        data = json.dumps(document).encode()
    (root / MANIFEST).write_bytes(data)


def is_mapped(array: np.ndarray) -> bool:
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base, mmap.mmap)


# Mapped or copied ------------------------------------------------------------------------------


def test_a_copy_does_not_follow_its_file(tmp_path: Path) -> None:
    root = written(tmp_path)
    expected = load_file(root / LAYER)["activations"][:, 0]
    artifact = load(root)
    copy, mapped = cities(artifact), cities(artifact, None)
    assert copy.flags.owndata
    assert is_mapped(mapped)
    with (root / LAYER).open("r+b") as stream:
        stream.seek((root / LAYER).read_bytes().index(expected[0].tobytes()))
        stream.write(bytes(4))
    assert not np.array_equal(mapped, expected)
    np.testing.assert_array_equal(copy, expected)


def test_one_position_of_several_is_a_slice_of_the_map(tmp_path: Path) -> None:
    root = written(tmp_path)
    artifact = load(root)
    whole = load_file(root / PROMPTED)["activations"]
    for index, position in enumerate((-5, -4, -3, -2, -1)):
        mapped, copy = (
            artifact.activations("harmful", "base", layer=1, position=position, dtype=dtype)
            for dtype in (None, "float32")
        )
        assert is_mapped(mapped)
        assert mapped.strides == (whole.strides[0], whole.strides[2])
        assert copy.flags.c_contiguous
        assert copy.flags.writeable
        for found in (mapped, copy):
            np.testing.assert_array_equal(found, whole[:, index])


@pytest.mark.parametrize("dtype", [None, "float32", np.float64])
def test_blocks_of_rows_are_put_together(tmp_path: Path, dtype: Any) -> None:
    root = written(tmp_path, block_rows=7)
    folder = (root / LAYER).parent
    paths = sorted(folder.glob("L01.*"), key=lambda path: int(path.name.split(".")[1]))
    expected = np.concatenate([load_file(path)["activations"][:, 0] for path in paths])
    assert len(paths) > 2
    found = cities(load(root), dtype)
    assert type(found) is np.ndarray
    assert found.dtype == np.dtype(dtype or "float32")
    assert found.flags.writeable
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_finite_number_is_widened_exactly(tmp_path: Path, dtype: str) -> None:
    kind, exponent = {
        "bfloat16": (np.dtype(ml_dtypes.bfloat16), 0x7F80),
        "float16": (np.dtype(np.float16), 0x7C00),
    }[dtype]
    patterns = np.arange(2**16, dtype=np.uint16)
    patterns = patterns[(patterns & exponent) != exponent]
    root = written(tmp_path, dtype=dtype, d_model=128, n_facts=len(patterns) // 128 // 2)
    replaced(root, LAYER, patterns.view(kind).reshape(-1, 1, 128))
    found = cities(load(root)).ravel()
    if dtype == "bfloat16":  # is the upper half of a float32
        np.testing.assert_array_equal(found.view(np.uint32), patterns.astype(np.uint32) << 16)
    else:
        sign = np.where(patterns >> 15, -1.0, 1.0)
        power, fraction = (patterns >> 10 & 31).astype(int), (patterns & 1023).astype(float)
        normal = (1 + fraction / 1024) * 2.0 ** (power - 15)
        expected = sign * np.where(power, normal, fraction / 1024 * 2.0**-14)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(np.signbit(found), sign < 0)


# Finite ----------------------------------------------------------------------------------------


@given(
    st.sampled_from([np.float16, np.float32, ml_dtypes.bfloat16]),
    st.sampled_from([np.nan, np.inf, -np.inf]),
    st.integers(1, 3000),
    st.data(),
)
def test_one_value_that_is_not_finite_is_found(
    dtype: Any, bad: float, width: int, data: st.DataObject
) -> None:
    rows = 100_000 // width + 1
    values = np.full((rows, width), ml_dtypes.finfo(dtype).max, dtype)
    require_finite(values, "x")
    values.reshape(-1)[data.draw(st.integers(0, values.size - 1))] = bad
    with pytest.raises(FormatError, match=r"^x holds activations that are not finite"):
        require_finite(values, "x")


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files whose values are looked at, each time."""
    paths: list[str] = []

    def look(values: np.ndarray, path: str) -> None:
        paths.append(path)
        require_finite(values, path)

    monkeypatch.setattr(_stored_rows, "require_finite", look)
    return paths


def test_values_are_looked_at_once(synthetic_path: Path, looked: list[str]) -> None:
    artifact = load(synthetic_path)
    for dtype in ("float32", None, np.float64):
        cities(artifact, dtype)
    assert looked == [LAYER]
    cities(artifact, layer=0)
    assert len(looked) == 2
    for position in (-1, -2, -1, -2):
        artifact.activations("harmful", "base", layer=1, position=position)
    assert looked[2:] == [PROMPTED] * 2
    cities(load(synthetic_path))
    assert len(looked) == 5


def test_a_file_that_was_touched_is_looked_at_again(tmp_path: Path, looked: list[str]) -> None:
    root = written(tmp_path)
    artifact = load(root)
    cities(artifact)
    status = (root / LAYER).stat()
    os.utime(root / LAYER, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
    cities(artifact)
    cities(artifact)
    assert looked == [LAYER] * 2
    whole = (root / LAYER).read_bytes()
    (root / LAYER).unlink()
    (root / LAYER).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(IntegrityError):
        cities(artifact)
    (root / LAYER).write_bytes(whole)
    cities(artifact)
    assert looked == [LAYER] * 3


def test_what_was_refused_is_refused_again(tmp_path: Path) -> None:
    root = written(tmp_path)
    values = load_file(root / PROMPTED)["activations"]
    values[3, 1, 2] = np.nan
    replaced(root, PROMPTED, values)
    artifact = load(root)
    for _ in range(2):
        artifact.activations("harmful", "base", layer=1, position=-1)
        with pytest.raises(FormatError, match=f"^{PROMPTED} holds activations that are not finite"):
            artifact.activations("harmful", "base", layer=1, position=-4)


# Frames ----------------------------------------------------------------------------------------


def test_a_frame_that_is_changed_is_the_caller_s_own(synthetic_path: Path) -> None:
    artifact = load(synthetic_path)
    for dataset in ("cities", None):
        before = artifact.statements(dataset)
        artifact.statements(dataset).drop_in_place("row_uid")
        mine = artifact.statements(dataset)
        mine[0, "text"] = "another"
        assert artifact.statements(dataset).equals(before)
    assert len(cities(artifact)) == artifact.statements("cities").height
