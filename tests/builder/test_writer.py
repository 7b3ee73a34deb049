"""The writer: all or nothing, receipts that can be trusted, the same bytes for the same content."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load

from ptmech.errors import StorageError
from ptmech.manifest import ActivationFile, ActivationUnit, Extra
from ptmech_builder.receipts import Receipt, recipe_digests
from ptmech_builder.units import parquet_bytes
from ptmech_builder.writer import Writer, tensor_bytes

KEY, OTHER_KEY = "a" * 64, "b" * 64


@pytest.fixture
def writer(tmp_path: Path) -> Writer:
    return Writer(tmp_path / "artifact")


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def receipt_of(writer: Writer, *paths: str, key: str = KEY, unit: str = "unit") -> Receipt:
    entries = [writer.put(path, path.encode()) for path in paths]
    return Receipt(
        unit=unit,
        key=key,
        files=tuple(Extra(**entry.model_dump(), kind="table", unit=key) for entry in entries),
    )


def test_a_file_is_put_whole(writer: Writer) -> None:
    entry = writer.put("a/b/c.bin", b"content")
    assert entry.path == "a/b/c.bin"
    assert entry.bytes == 7
    assert entry.sha256 == hashlib.sha256(b"content").hexdigest()
    assert files_below(writer.root) == {"a/b/c.bin": b"content"}
    writer.put("a/b/c.bin", b"")
    assert files_below(writer.root) == {"a/b/c.bin": b""}


@pytest.fixture(params=["write", "fsync", "replace", "interrupt"])
def failing_disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let one step of writing fail, as a full disk or an impatient user makes it."""

    def fail(*_args: Any, **_kwargs: Any) -> Any:
        if request.param == "interrupt":
            raise KeyboardInterrupt
        raise OSError(28, "No space left on device")

    if request.param == "write":
        whole = Path.open

        def opened(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            stream = whole(self, mode, *args, **kwargs)
            if mode != "wb":
                return stream
            stream.write(b"the first half")
            stream.flush()
            stream.close()
            return fail()

        monkeypatch.setattr(Path, "open", opened)
    elif request.param == "replace":
        monkeypatch.setattr(Path, "replace", fail)
        monkeypatch.setattr(os, "replace", fail)
        monkeypatch.setattr(os, "rename", fail)
        monkeypatch.setattr(os, "link", fail)
    else:
        monkeypatch.setattr(os, "fsync", fail)
    return request.param


def test_a_failure_leaves_neither_file_nor_temporary(writer: Writer, failing_disk: str) -> None:
    with pytest.raises((OSError, KeyboardInterrupt)):
        writer.put("a/new.bin", b"content")
    with pytest.raises((OSError, KeyboardInterrupt)):
        writer.finish(Receipt(unit="unit", key=KEY, files=()))
    assert files_below(writer.root) == {}
    assert writer.receipt("unit", KEY) is None


@pytest.fixture
def standing(writer: Writer) -> Iterator[Writer]:
    writer.put("a/old.bin", b"old content")
    yield writer
    assert files_below(writer.root) == {"a/old.bin": b"old content"}


def test_a_failure_leaves_the_old_file(standing: Writer, failing_disk: str) -> None:
    with pytest.raises((OSError, KeyboardInterrupt)):
        standing.put("a/old.bin", b"new content")


def test_everything_is_flushed_before_it_is_renamed(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        steps.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        fsync(descriptor)

    def noted_replace(self: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    writer.put("a/b/x.bin", b"content")
    # First the entries of what is new, and of the folder itself.
    assert steps[:-3] == ["folder"] * len(steps[:-3])
    assert len(steps) >= 6
    assert steps[-3:] == ["file", "rename", "folder"]
    steps.clear()
    writer.put("a/b/y.bin", b"content")
    assert steps == ["file", "rename", "folder"]


def test_a_receipt_counts_under_its_own_key_only(writer: Writer) -> None:
    receipt = receipt_of(writer, "a.bin", "b/c.bin")
    assert writer.receipt("unit", KEY) is None
    receipt = writer.finish(receipt)
    assert writer.receipt("unit", KEY) == receipt
    assert writer.receipt("unit", OTHER_KEY) is None
    assert writer.receipt("other", KEY) is None
    assert Writer(writer.root).receipt("unit", KEY) == receipt


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("gone", "b.bin is missing"),
        ("shorter", "b.bin has another size"),
        ("longer", "b.bin has another size"),
        ("a folder", "b.bin is missing"),
        ("another", "b.bin is damaged"),
    ],
)
def test_a_receipt_counts_only_while_its_files_are_there(
    writer: Writer, damage: str, reason: str
) -> None:
    writer.finish(receipt_of(writer, "a.bin", "b.bin"))
    path = writer.root / "b.bin"
    match damage:
        case "another":
            path.write_bytes(b"B.bin")
        case "gone":
            path.unlink()
        case "shorter":
            path.write_bytes(b"b")
        case "longer":
            path.write_bytes(b"b.bin more")
        case _:
            path.unlink()
            path.mkdir()
    assert writer.receipt("unit", KEY) is None
    assert writer.standing("unit", KEY).reason == reason


def test_files_that_were_copied_are_hashed_and_hold(writer: Writer, tmp_path: Path) -> None:
    receipt = writer.finish(receipt_of(writer, "a.bin", "b.bin"))
    copy = Writer(shutil.copytree(writer.root, tmp_path / "copy"))
    assert copy.receipt("unit", KEY) == receipt
    (copy.root / "a.bin").write_bytes(b"A.bin")
    assert copy.standing("unit", KEY).reason == "a.bin is damaged"


def test_a_flip_that_keeps_its_mark_is_found_when_asked_for(writer: Writer) -> None:
    writer.finish(receipt_of(writer, "a.bin"))
    path = writer.root / "a.bin"
    before = path.stat()
    with path.open("r+b") as stream:
        stream.write(b"A")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert writer.receipt("unit", KEY) is not None
    suspicious = Writer(writer.root, recheck=True)
    assert suspicious.standing("unit", KEY).reason == "a.bin is damaged"


def test_a_receipt_says_what_of_its_recipe_changed(writer: Writer) -> None:
    before = recipe_digests({"dtype": "float32", "rows_per_block": 64, "weights": "a"})
    receipt = receipt_of(writer, "a.bin")
    writer.finish(receipt.model_copy(update={"recipe": before}))
    after = recipe_digests({"dtype": "bfloat16", "rows_per_block": 32, "weights": "a"})
    assert writer.standing("unit", OTHER_KEY, after).reason == "dtype, rows per block changed"
    assert writer.standing("unit", OTHER_KEY).reason == "dtype, rows per block, weights changed"
    writer.finish(receipt)
    assert writer.standing("unit", OTHER_KEY, after).reason == "its recipe changed"
    assert writer.standing("other", KEY).reason == ""


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "No space left on device; finished units are kept: make room and run the"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "Read-only file system; finished units are kept: make it writable and"),
        (errno.EMFILE, "ulimit -n"),
        (errno.EIO, "see to the disk and run the same build again"),
    ],
)
def test_what_the_disk_refuses_is_one_line_with_a_way_out(
    writer: Writer, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match=re.escape(words)) as caught:
        writer.put("a.bin", b"content")
    assert caught.value.errno == number
    assert str(caught.value).startswith(f"{writer.root / 'a.bin'}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"unit": "unit"}', b"\xff\xfe", b"null"])
def test_a_damaged_receipt_is_none(writer: Writer, raw: bytes) -> None:
    writer.finish(receipt_of(writer, "a.bin"))
    [path] = (writer.root / ".build").rglob("*.json")
    path.write_bytes(raw)
    assert writer.receipt("unit", KEY) is None


def test_a_receipt_keeps_what_activations_need(writer: Writer) -> None:
    entry = writer.put("acts/L00.safetensors", b"x")
    receipt = Receipt(
        unit="acts.base.things.00000",
        key=KEY,
        activation=ActivationUnit(key=KEY, block=0, first_row=0, rows=3, parity=1.5e-6),
        files=(
            ActivationFile(**entry.model_dump(), site="resid_post", layer=0, block=0, rows=3),
            Extra(**writer.put("weights/a.bin", b"x").model_dump(), kind="weights", unit=KEY),
        ),
        facts={"n_layers": 4, "architecture": "llama"},
    )
    written = writer.finish(receipt)
    found = writer.receipt(receipt.unit, KEY)
    assert found == written
    assert found is not None
    assert found.model_copy(update={"marks": ()}) == receipt
    assert [type(file) for file in found.files] == [ActivationFile, Extra]


def test_only_the_work_folder_holds_what_is_not_the_artifact(writer: Writer) -> None:
    writer.finish(receipt_of(writer, "a.bin"))
    assert sorted(path.name for path in writer.root.iterdir()) == [".build", "a.bin"]


# Bytes -----------------------------------------------------------------------------------------

ABOUT = {"stage": "base", "site": "resid_post", "layer": 3, "positions": [-2, -1]}


@given(
    shape=st.tuples(st.integers(0, 4), st.integers(1, 3)),
    dtype=st.sampled_from([np.float32, np.float16, np.uint64, np.float64, ml_dtypes.bfloat16]),
    seed=st.integers(0, 9),
)
def test_the_safetensors_library_reads_the_tensors(
    shape: tuple[int, int], dtype: Any, seed: int
) -> None:
    values = np.random.default_rng(seed).integers(0, 9999, shape).astype(dtype)
    found = load(tensor_bytes({"x": values, "y": values.T}, ABOUT))
    assert found["x"].shape == shape
    assert str(found["x"].dtype) == f"torch.{values.dtype}"
    assert found["x"].view(torch.uint8).numpy().tobytes() == values.tobytes()
    assert found["y"].view(torch.uint8).numpy().tobytes() == values.T.tobytes()


def test_the_same_tensors_give_the_same_bytes() -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    uids = np.arange(3, dtype=np.uint64)
    one = tensor_bytes({"activations": values, "row_uid": uids}, ABOUT)
    two = tensor_bytes(
        {"row_uid": uids.copy(), "activations": np.asfortranarray(values)},
        dict(reversed(ABOUT.items())),
    )
    assert one == two
    length = int.from_bytes(one[:8], "little")
    header = json.loads(one[8 : 8 + length])
    assert json.loads(header["__metadata__"]["ptmech"]) == ABOUT
    assert (8 + length) % 8 == 0


def test_the_same_table_gives_the_same_bytes() -> None:
    def table() -> pl.DataFrame:
        return pl.DataFrame({"a": [1, None, 3], "b": ["x", "é", None], "c": [[1], [], [2, 3]]})

    assert parquet_bytes(table()) == parquet_bytes(table().clone())
    assert parquet_bytes(table()) == parquet_bytes(pl.concat([table()[:1], table()[1:]]))
