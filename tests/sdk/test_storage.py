"""Reading bytes: safetensors of friends bit for bit, of strangers not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import socket
import stat
from io import UnsupportedOperation
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.numpy import save_file

from ptmech.errors import ArtifactNotFoundError, FormatError, IntegrityError, StorageError
from ptmech.manifest import FileEntry
from ptmech.storage import FolderSource, VerifiedFiles, read_tensors
from ptmech.storage.tensors import ADAPTERS
from ptmech_builder.writer import digest, tensor_bytes


def write(folder: Path, data: bytes, name: str = "x.safetensors") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def with_header(header: Any, data: bytes = bytes(16), *, length: int | None = None) -> bytes:
    """A safetensors file with any header, well-formed or not."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def field(dtype: Any = "F32", shape: Any = (4,), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def mapped_from(array: np.ndarray) -> object:
    base: Any = array
    while isinstance(base.base, np.ndarray):
        base = base.base
    return base.base


# Friends ---------------------------------------------------------------------------------------


def test_every_bf16_pattern_survives(tmp_path: Path) -> None:
    patterns = np.arange(2**16, dtype=np.uint16)
    values = patterns.view(ml_dtypes.bfloat16).reshape(256, 4, 64)
    path = write(tmp_path, tensor_bytes({"activations": values}, {}))
    found = read_tensors(path)["activations"]
    assert found.dtype == ml_dtypes.bfloat16
    assert found.shape == values.shape
    np.testing.assert_array_equal(np.asarray(found).view(np.uint16).ravel(), patterns)
    assert isinstance(mapped_from(found), mmap.mmap)
    by_library = safetensors.torch.load_file(path)["activations"]
    assert by_library.dtype == torch.bfloat16
    np.testing.assert_array_equal(
        by_library.view(torch.int16).numpy().view(np.uint16).ravel(), patterns
    )


TORCH_TYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.uint64, torch.uint8, torch.bool,
]  # fmt: skip


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tensors=st.dictionaries(
        st.from_regex(r"[a-zA-Z0-9_][a-z_-]{0,3}(\.[a-z0-9]{1,3})?", fullmatch=True),
        st.tuples(
            st.sampled_from(TORCH_TYPES),
            st.lists(st.integers(0, 4), max_size=3),
            st.integers(0, 99),
        ),
        max_size=4,
    )
)
def test_what_the_library_writes_is_read(tmp_path: Path, tensors: dict[str, Any]) -> None:
    def tensor(dtype: torch.dtype, shape: list[int], seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(0, 2 if dtype == torch.bool else 99, shape, generator=generator).to(
            dtype
        )

    given_tensors = {name: tensor(*spec) for name, spec in tensors.items()}
    path = tmp_path / "library.safetensors"
    safetensors.torch.save_file(given_tensors, path, metadata={"note": "é"})
    found = read_tensors(path)
    assert set(found) == set(given_tensors)
    for name, values in given_tensors.items():
        assert found[name].shape == tuple(values.shape)
        assert str(values.dtype) == f"torch.{found[name].dtype}"
        assert (
            found[name].tobytes() == values.contiguous().view(torch.uint8).numpy().tobytes()
            if (values.ndim)
            else found[name].item() == values.item()
        )


def test_tensors_are_mapped_not_copied(tmp_path: Path) -> None:
    values = np.arange(20, dtype=np.float32).reshape(4, 5)
    path = write(tmp_path, tensor_bytes({"x": values, "y": values + 1}, {}))
    found = read_tensors(path)
    for array in found.values():
        assert isinstance(mapped_from(array), mmap.mmap)
        assert not array.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 1


@pytest.mark.parametrize(
    "dtype", [np.int16, np.uint16, np.uint32, np.int8, ml_dtypes.float8_e4m3fn]
)
def test_every_type_of_the_library_is_read(tmp_path: Path, dtype: Any) -> None:
    held = np.arange(6).astype(dtype).reshape(2, 3)
    save_file({"a": held}, tmp_path / "x.safetensors")
    array = read_tensors(tmp_path / "x.safetensors")["a"]
    assert array.dtype == held.dtype
    np.testing.assert_array_equal(array.view(np.uint8), held.view(np.uint8))


def test_an_adapter_of_a_mixture_of_experts_is_read_as_one(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    names = [
        f"m.layers.{n // 256}.mlp.experts.{n % 256}.up_proj.lora_A.weight" for n in range(2**14)
    ]
    save_file({name: np.full(1, n, np.float32) for n, name in enumerate(names)}, path)
    held = read_tensors(path, bounds=ADAPTERS)
    assert [held[name].item() for name in names] == list(range(2**14))
    with pytest.raises(FormatError, match="its header is longer"):
        read_tensors(path)


# Strangers -------------------------------------------------------------------------------------

HOSTILE: dict[str, bytes] = {
    "empty file": b"",
    "seven bytes": bytes(7),
    "no header": bytes(8),
    "header longer than the file": with_header({}, b"", length=100),
    "header of 2**63 bytes": with_header({}, b"", length=2**63),
    "header of 2 MiB": with_header(b"{" + b" " * 2**21 + b"}"),
    "not JSON": with_header(b"{x}"),
    "not UTF-8": with_header(b'{"\xff": 1}'),
    "UTF-16": with_header(json.dumps({"a": field()}).encode("utf-16-le")),
    "a byte order mark": with_header(b"\xef\xbb\xbf" + json.dumps({"a": field()}).encode()),
    "a list": with_header([1, 2]),
    "a number": with_header(b"3"),
    "null": with_header(b"null"),
    "deeply nested": with_header(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "a huge number": with_header(b'{"a": ' + b"9" * 5000 + b"}"),
    "a name twice": with_header(
        b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},'
        b'"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
    ),
    "a key twice": with_header(
        b'{"a":{"dtype":"F32","shape":[9],"shape":[4],"data_offsets":[0,16]}}'
    ),
    "a tensor that is a number": with_header({"a": 5}),
    "a tensor without fields": with_header({"a": {}}),
    "unknown dtype": with_header({"a": field("F4", [16])}),
    "dtype is a list": with_header({"a": field(["F32"])}),
    "shape is a number": with_header({"a": field(shape=4)}),
    "shape is text": with_header({"a": field(shape="4")}),
    "shape of text": with_header({"a": field(shape=["4"])}),
    "shape of fractions": with_header({"a": field(shape=[4.5])}),
    "shape of truths": with_header({"a": field(shape=[4, True])}),
    "negative shape": with_header({"a": field(shape=[-2, -2])}),
    "infinite shape": with_header(
        b'{"a":{"dtype":"F32","shape":[Infinity],"data_offsets":[0,16]}}'
    ),
    "nan shape": with_header(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,16]}}'),
    "100 axes": with_header({"a": field(shape=[4] + [1] * 99)}),
    "huge empty shape": with_header({"a": field(shape=[10**30, 0], offsets=[0, 0])}, b""),
    "overflowing shape": with_header({"a": field(shape=[2**62, 2**62])}),
    "too small for its span": with_header({"a": field(shape=[3])}),
    "too large for its span": with_header({"a": field(shape=[5])}),
    "outside the file": with_header({"a": field(shape=[8], offsets=[0, 32])}),
    "past the end": with_header({"a": field(offsets=[4, 20])}),
    "before the start": with_header({"a": field(offsets=[-8, 8])}),
    "backwards": with_header({"a": field(shape=[0], offsets=[16, 0])}),
    "three offsets": with_header({"a": field(offsets=[0, 8, 16])}),
    "fractional offsets": with_header({"a": field(offsets=[0.0, 16.5])}),
    "overlap": with_header(
        {"a": field(shape=[3], offsets=[0, 12]), "b": field(shape=[3], offsets=[4, 16])}
    ),
    "two names for one span": with_header({"a": field(), "b": field()}),
    "a name that leads up": with_header({"../a": field()}),
    "a name with two dots": with_header({"a..b": field()}),
    "a name with a slash": with_header({"a/b": field()}),
    "a name with a backslash": with_header({"a\\b": field()}),
    "an absolute name": with_header({"/etc/passwd": field()}),
    "a name of a drive": with_header({"C:a": field()}),
    "a name with a NUL": with_header({"a\0": field()}),
    "a name that a terminal obeys": with_header({"\x1b[31m": field()}),
    "a name with a full-width slash": with_header({"a／b": field()}),
    "an empty name": with_header({"": field()}),
    "an endless name": with_header({"a" * 300: field()}),
    "half a character": with_header(
        b'{"\\ud800":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
    ),
    "5,000 tensors": with_header(
        {f"t{n}": field("U8", [0], [0, 0]) for n in range(5000)} | {"a": field()}
    ),
    "one more field": with_header({"a": {**field(), "stride": [1]}}),
    "metadata of numbers": with_header({"__metadata__": {"a": 1}, "a": field()}),
    "metadata that is a list": with_header({"__metadata__": [], "a": field()}),
    "a scalar of no bytes": with_header({"a": field(shape=[], offsets=[0, 0])}, b""),
    "nothing of 2**63 rows": with_header({"a": field(shape=[0, 2**63], offsets=[0, 0])}, b""),
    "no tensors but bytes": with_header({}, bytes(16)),
    "a hole": with_header(
        {"a": field(shape=[1], offsets=[0, 4]), "b": field(shape=[2], offsets=[8, 16])}
    ),
    "bytes left over": with_header({"a": field(shape=[3], offsets=[0, 12])}),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_headers_are_one_format_error(tmp_path: Path, what: str) -> None:
    path = write(tmp_path, HOSTILE[what])
    with pytest.raises(FormatError, match=r"^x\.safetensors ") as caught:
        read_tensors(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 300


def test_a_file_that_cannot_be_sought_is_the_disk_s_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, tensor_bytes({"a": np.zeros(2, np.float32)}, {}))

    def fail(*_args: Any, **_options: Any) -> Any:
        raise UnsupportedOperation("File or stream is not seekable")

    monkeypatch.setattr(np, "memmap", fail)
    with pytest.raises(StorageError, match=r"x\.safetensors cannot be read"):
        read_tensors(path)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 400), byte=st.integers(0, 255), cut=st.integers(0, 60))
def test_a_damaged_file_is_refused_or_read_as_the_library_reads_it(
    tmp_path: Path, at: int, byte: int, cut: int
) -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    whole = tensor_bytes({"activations": values, "row_uid": np.arange(3, dtype=np.uint64)}, {})
    damaged = bytearray(whole)
    damaged[at % len(whole)] = byte
    path = write(tmp_path, bytes(damaged[: len(whole) - cut]))
    try:
        found = read_tensors(path)
    except FormatError:
        return
    # Where ours accepts, so does the library, and it sees the same.
    with safe_open(path, framework="np") as by_library:
        assert set(found) == set(by_library.keys())
        for name in found:
            assert found[name].tobytes() == by_library.get_tensor(name).tobytes()


# Verified files --------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, b"{}", "manifest.json")
    write(tmp_path, b"content", "a/b.bin")
    return tmp_path


def entry(data: bytes = b"content", **changes: Any) -> FileEntry:
    return FileEntry(**{"path": "a/b.bin", "bytes": len(data), "sha256": digest(data), **changes})


def test_a_promised_file_is_returned(folder: Path) -> None:
    files = VerifiedFiles(FolderSource(folder))
    assert files.path(entry()) == folder / "a" / "b.bin"
    assert files.read(entry()) == b"content"


def test_a_damaged_file_is_refused_again_and_again(folder: Path) -> None:
    files = VerifiedFiles(FolderSource(folder))
    files.path(entry())
    (folder / "a" / "b.bin").write_bytes(b"contemt")
    for _ in range(2):
        with pytest.raises(IntegrityError, match=r"a/b\.bin is damaged: sha256"):
            files.path(entry())
    (folder / "a" / "b.bin").write_bytes(b"content")
    files.path(entry())


@pytest.mark.parametrize("left", [b"", b"conten", b"content "])
def test_a_file_of_another_size_is_refused(folder: Path, left: bytes) -> None:
    (folder / "a" / "b.bin").write_bytes(left)
    with pytest.raises(IntegrityError, match=f"has {len(left)} bytes where .* promises 7"):
        VerifiedFiles(FolderSource(folder)).path(entry())


def test_a_missing_file_is_refused(folder: Path) -> None:
    (folder / "a" / "b.bin").unlink()
    with pytest.raises(IntegrityError, match=r"a/b\.bin is missing"):
        VerifiedFiles(FolderSource(folder)).path(entry())


@pytest.mark.parametrize("how", ["folder in its place", "file in its folder's place"])
def test_something_else_in_its_place_is_refused(folder: Path, how: str) -> None:
    (folder / "a" / "b.bin").unlink()
    if how.startswith("folder"):
        (folder / "a" / "b.bin").mkdir()
    else:
        (folder / "a").rmdir()
        (folder / "a").write_bytes(b"")
    with pytest.raises(IntegrityError, match=r"a/b\.bin"):
        VerifiedFiles(FolderSource(folder)).path(entry())


def test_a_disk_that_refuses_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(hashlib, "file_digest", fail)
    files = VerifiedFiles(FolderSource(folder))
    with pytest.raises(StorageError, match=r"^a/b\.bin cannot be read \(Input/output error\)"):
        files.path(entry())


def test_a_disk_that_does_not_say_what_is_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Path.stat

    def fail(self: Path, **options: Any) -> os.stat_result:
        if self.name == "b.bin":
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return whole(self, **options)

    monkeypatch.setattr(Path, "stat", fail)
    with pytest.raises(StorageError, match="cannot be read: Too many open files"):
        FolderSource(folder).fetch("a/b.bin")


def test_a_file_is_hashed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    files = VerifiedFiles(FolderSource(folder))
    files.path(entry())

    def refuse(*_args: Any) -> Any:
        raise AssertionError("hashed again")

    monkeypatch.setattr(hashlib, "file_digest", refuse)
    files.path(entry())


@pytest.mark.parametrize(
    "path",
    [
        "", "/etc/passwd", "../x", "a/../../x", "a//b", "a/", "./a", "a/./b", ".build/x", "a\\b",
        "C:/x", "a\0b", "a b", "a\n", "a\nb", "é", "-x", "~",
    ],
)  # fmt: skip
def test_a_path_that_could_leave_the_folder_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="not a plain relative path"):
        entry(path=path)


def test_a_path_that_no_disk_takes_is_refused() -> None:
    for path in ("a" * 200, "/".join(["abcde"] * 60)):
        with pytest.raises(ValidationError, match="not a plain relative path") as caught:
            entry(path=path)
        assert len(caught.value.errors()[0]["msg"]) < 150


def test_two_promises_for_one_file_are_two_checks(folder: Path) -> None:
    files = VerifiedFiles(FolderSource(folder))
    files.path(entry())
    with pytest.raises(IntegrityError, match="is damaged"):
        files.path(entry(sha256="0" * 64))


def test_a_file_too_large_for_memory_is_not_read(folder: Path) -> None:
    """A file may have holes: its bytes on the disk say little about its bytes in memory."""
    with (folder / "a" / "b.bin").open("wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(FormatError, match=r"a/b\.bin has 1099511627776 bytes, more than are read"):
        VerifiedFiles(FolderSource(folder)).read(entry(bytes=2**40))


# A folder's own files ----------------------------------------------------------------------------


def linked(folder: Path, name: str, target: Path) -> FileEntry:
    (folder / name).symlink_to(target)
    return entry(path=name)


def refused(folder: Path, promised: FileEntry, words: str) -> None:
    with pytest.raises(IntegrityError, match=words) as caught:
        VerifiedFiles(FolderSource(folder)).path(promised)
    assert promised.path in str(caught.value)
    assert "\n" not in str(caught.value)


def test_links_within_the_folder_are_followed(folder: Path) -> None:
    files = VerifiedFiles(FolderSource(folder))
    assert files.read(linked(folder, "link.bin", Path("a/b.bin"))) == b"content"
    (folder / "hard.bin").hardlink_to(folder / "a" / "b.bin")
    assert files.read(entry(path="hard.bin")) == b"content"


def test_a_folder_that_is_a_link_itself_is_opened(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "elsewhere" / "artifact"
    root.parent.mkdir()
    root.symlink_to(folder)
    assert VerifiedFiles(FolderSource(root)).read(entry()) == b"content"


@pytest.mark.parametrize("how", ["file", "folder", "relative", "chain", "dangling"])
def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, how: str) -> None:
    outside = write(tmp_path, b"content", "outside/b.bin")
    folder = tmp_path / "artifact"
    folder.mkdir()
    match how:
        case "file":
            promised = linked(folder, "b.bin", outside)
        case "folder":
            (folder / "a").symlink_to(outside.parent)
            promised = entry()
        case "relative":
            promised = linked(folder, "b.bin", Path("../outside/b.bin"))
        case "chain":
            linked(folder, "c.bin", outside)
            promised = linked(folder, "b.bin", Path("c.bin"))
        case _:
            promised = linked(folder, "b.bin", tmp_path / "nowhere")
    refused(folder, promised, "leads out of .* by a link, a;" if how == "folder" else "by a link;")


def test_a_folder_beside_it_of_a_longer_name_is_outside(tmp_path: Path) -> None:
    (tmp_path / "artifact").mkdir()
    outside = write(tmp_path, b"content", "artifact2/b.bin")
    refused(tmp_path / "artifact", linked(tmp_path / "artifact", "b.bin", outside), "leads out of")


def test_a_circle_of_links_is_refused(folder: Path) -> None:
    linked(folder, "x.bin", Path("y.bin"))
    refused(folder, linked(folder, "y.bin", Path("x.bin")), "cannot be read")


@pytest.mark.parametrize("commit", ["0123456789" * 4, "main"])
def test_a_snapshot_of_the_hub_s_cache_may_link_to_its_blobs(tmp_path: Path, commit: str) -> None:
    write(tmp_path, b"content", "datasets--o--n/blobs/abc")
    write(tmp_path, b"content", "secret")
    snapshot = tmp_path / "datasets--o--n" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    promised = linked(snapshot, "b.bin", Path("../../blobs/abc"))
    if commit == "main":
        refused(snapshot, promised, "leads out of")
        return
    assert VerifiedFiles(FolderSource(snapshot)).read(promised) == b"content"
    refused(snapshot, linked(snapshot, "c.bin", Path("../../../secret")), "leads out of")


@pytest.mark.parametrize("what", ["fifo", "socket", "folder", "device"])
def test_what_is_no_file_is_refused_without_opening_it(tmp_path: Path, what: str) -> None:
    place = tmp_path / "b.bin"
    match what:
        case "fifo":
            os.mkfifo(place)
        case "socket":
            with socket.socket(socket.AF_UNIX) as listening:
                listening.bind(str(place))
        case "folder":
            place.mkdir()
        case _:
            try:
                os.mknod(place, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero
            except PermissionError:
                pytest.skip("only root makes devices")
    refused(tmp_path, entry(path="b.bin"), "is not a regular file")


def test_a_folder_without_an_artifact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactNotFoundError, match="no artifact folder"):
        FolderSource.finished(tmp_path / "nowhere")
    with pytest.raises(ArtifactNotFoundError, match=r"holds no manifest\.json"):
        FolderSource.finished(tmp_path)
    write(tmp_path, b"", "file")
    with pytest.raises(ArtifactNotFoundError):
        FolderSource.finished(tmp_path / "file")
