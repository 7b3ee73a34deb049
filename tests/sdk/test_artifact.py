"""Artifacts: lazy, mapped, checked before use, and every mistake answered in one line."""

from __future__ import annotations

import ast
import hashlib
import json
import mmap
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import polars as pl
import pytest
import safetensors.numpy
from tests.tiny import D_MODEL, Built, Recipe, build, tiny_build, write_card

import ptmech as sdk
from ptmech import load
from ptmech.errors import (
    AlignmentError,
    ArtifactNotFoundError,
    DataError,
    FormatError,
    IntegrityError,
    NotStoredError,
    PtmechError,
    UnknownNameError,
)
from ptmech_builder.writer import tensor_bytes

ACTS = "acts/tuned/capitals/resid_post/L01.safetensors"


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return tiny_build(tmp_path_factory)


@pytest.fixture(scope="module")
def artifact(built: Built) -> sdk.Artifact:
    return load(built.root)


@pytest.fixture
def copied(built: Built, tmp_path: Path) -> Path:
    """A copy of the artifact that a test may damage."""
    root = tmp_path / "artifact"
    shutil.copytree(built.root, root, ignore=shutil.ignore_patterns(".build"))
    return root


def rewritten(root: Path, path: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a JSON file of an artifact."""
    document = json.loads((root / path).read_text())
    change(document)
    (root / path).write_text(json.dumps(document))


def signed(root: Path, path: str) -> None:
    """Make the manifests promise the bytes that a file has now, as its author could."""
    stage, dataset = path.removesuffix(".json").split("/")[1:3]
    part = f"manifests/{stage}/{dataset}.json"

    def promise(name: str) -> Callable[[dict[str, Any]], None]:
        data = (root / name).read_bytes()

        def change(document: dict[str, Any]) -> None:
            for entry in [*document.get("files", []), *document.get("parts", [])]:
                if entry["path"] == name:
                    entry.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

        return change

    if path != part:
        rewritten(root, part, promise(path))
    rewritten(root, "manifest.json", promise(part))


def stored(root: Path, path: str = ACTS) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(root / path)


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    assert isinstance(error.value, PtmechError)
    message = str(error.value)
    assert message
    assert "\n" not in message
    return message


# Loading ---------------------------------------------------------------------------------------


def test_loading_needs_the_manifest_and_nothing_else(copied: Path) -> None:
    for path in copied.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    artifact = load(copied)
    assert artifact.stages == ("base", "tuned")
    assert artifact.datasets == ("capitals", "colours", "harmful", "harmless")
    assert artifact.sites == ("resid_pre", "resid_post", "mlp_out")
    assert artifact.layers() == (0, 1, 2)
    assert artifact.pair("base", "tuned").datasets == artifact.datasets
    shown = repr(artifact)
    for word in ("tiny@", "base", "tuned", "capitals 12", "resid_post", "float32"):
        assert word in shown
    with pytest.raises(IntegrityError, match=r"manifests/base/capitals\.json is missing"):
        artifact.activations("capitals", "base", layer=0)


def test_the_identity_is_that_of_the_manifest(built: Built, artifact: sdk.Artifact) -> None:
    raw = (built.root / "manifest.json").read_bytes()
    assert artifact.id == f"tiny@{hashlib.sha256(raw).hexdigest()[:12]}"
    assert load(str(built.root)).id == artifact.id


def test_one_layer_costs_one_file(copied: Path) -> None:
    for path in (copied / "acts").rglob("*.safetensors"):
        if path != copied / ACTS:
            path.unlink()
    shutil.rmtree(copied / "weights")
    assert load(copied).activations("capitals", "tuned", layer=1).shape == (12, D_MODEL)


@pytest.mark.parametrize("option", ["revision", "cache_dir", "token"])
def test_a_folder_takes_no_options_of_the_hub(built: Built, option: str) -> None:
    with pytest.raises(DataError, match="local folder"):
        load(built.root, **{option: "x"})


def test_an_artifact_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ArtifactNotFoundError, match="no artifact folder") as caught:
        load(tmp_path / "nowhere")
    one_line(caught)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactNotFoundError, match=r"holds no manifest\.json") as caught:
        load(tmp_path / "empty")
    one_line(caught)


def newer(document: dict[str, Any]) -> None:
    document["format"] = 2
    document["something"] = "new"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (newer, "of format 2, this version reads up to 1: pip install --upgrade ptmech"),
        (lambda d: d.update(format=0), "format"),
        (lambda d: d.update(format="1.0"), "format"),
        (lambda d: d.pop("stages"), "stages"),
        (lambda d: d.update(surprise=1), "surprise"),
        (lambda d: d["stages"][0].update(n_layers="many"), r"stages\.0\.n_layers"),
        (lambda d: d["parts"][0].update(path="../../etc/passwd"), r"parts\.0\.path"),
        (lambda d: d["parts"][0].update(bytes=-1), r"parts\.0\.bytes"),
        (lambda d: d["extras"][0].update(sha256="abc"), r"extras\.0\.sha256"),
    ],
    ids=[
        "newer", "older", "text", "stages missing", "unknown key", "wrong type", "path outside",
        "negative size", "no digest",
    ],
)  # fmt: skip
def test_a_manifest_that_cannot_be_used(
    copied: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    rewritten(copied, "manifest.json", change)
    with pytest.raises(FormatError, match=message) as caught:
        load(copied)
    assert "manifest.json" in one_line(caught)


def twice(kind: str) -> Callable[[dict[str, Any]], None]:
    return lambda document: document[kind].append(document[kind][0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(title="x\x1b]0;owned\x07"), "title holds a control character"),
        (lambda d: d.update(title="x\u202ereversed"), "title holds a control character"),
        (lambda d: d.update(title="two\nlines"), "title: .*must be one line"),
        (lambda d: d.update(description="x\x9b31m"), "description holds a control character"),
        (lambda d: d["stages"][0].update(note="\x1b[2J"), r"stages\.0: .*note holds a control"),
        (lambda d: d["datasets"][0].update(source="a\rb"), r"datasets\.0"),
        (lambda d: d["stages"][0].update(template_options={"\x1b": "x"}), "template_options"),
        (lambda d: d["sites"].update({"evil\x1b[31m": [1]}), "no known site; there are resid_pre,"),
        (lambda d: d["sites"].update(resid=[1]), "no known site"),
        (lambda d: d.update({"\x1b[31m": 1}), "Extra inputs"),
        (lambda d: d.update(stages=[]), "stages: .* at least 1 item"),
        (twice("stages"), "stages: .* is there twice"),
        (twice("datasets"), "datasets: .* is there twice"),
        (lambda d: d["extras"][0].update(path="a" * 400), r"extras\.0\.path: .*aaaa\.\.\.'"),
        (
            lambda d: d["stages"][0].update(source={"hub": "a/b..c", "revision": "main"}),
            "cannot be a repository's name",
        ),
    ],
)  # fmt: skip
def test_a_stranger_s_manifest_is_refused_in_plain_text(
    copied: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    rewritten(copied, "manifest.json", change)
    with pytest.raises(FormatError, match=message) as caught:
        load(copied)
    assert one_line(caught).isprintable()


def test_text_of_several_lines_is_text(copied: Path) -> None:
    rewritten(copied, "manifest.json", lambda d: d.update(description="two\nlines\tand a tab – é"))
    assert load(copied).manifest.description.endswith("é")


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"\xff\xfe", b"[]", b"3", b"null", b"[" * 99_999, b'{"format": 1e400}'],
    ids=["empty", "cut off", "not text", "a list", "a number", "null", "nested", "huge number"],
)
def test_a_manifest_that_is_none(copied: Path, raw: bytes) -> None:
    (copied / "manifest.json").write_bytes(raw)
    with pytest.raises(FormatError) as caught:
        load(copied)
    assert "manifest.json" in one_line(caught)


# Reading ---------------------------------------------------------------------------------------


def test_activations_are_the_file_s_own(built: Built, artifact: sdk.Artifact) -> None:
    for stage in artifact.stages:
        for dataset, positions in (("capitals", (-1,)), ("harmful", (-3, -2, -1))):
            for site, layers in (("resid_post", 3), ("mlp_out", 3), ("resid_pre", 1)):
                for layer in range(layers):
                    path = f"acts/{stage}/{dataset}/{site}/L{layer:02d}.safetensors"
                    whole = stored(built.root, path)["activations"]
                    for index, position in enumerate(positions):
                        found = artifact.activations(
                            dataset, stage, site=site, layer=layer, position=position
                        )
                        assert found.dtype == np.float32
                        np.testing.assert_array_equal(found, whole[:, index])


def test_a_copy_is_the_caller_s_own(artifact: sdk.Artifact) -> None:
    found = artifact.activations("capitals", "tuned", layer=1)
    assert type(found) is np.ndarray
    before = found.copy()
    found[:] = 0
    np.testing.assert_array_equal(artifact.activations("capitals", "tuned", layer=1), before)
    assert artifact.activations("capitals", "tuned", layer=1, dtype=np.float64).dtype == np.float64


def test_without_a_dtype_the_file_is_mapped(artifact: sdk.Artifact) -> None:
    found: Any = artifact.activations("harmful", "tuned", layer=1, position=-2, dtype=None)
    assert isinstance(found, np.memmap)
    base: Any = found
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert isinstance(base.base, mmap.mmap)
    assert not found.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        found[0, 0] = 1
    np.testing.assert_array_equal(
        found, artifact.activations("harmful", "tuned", layer=1, position=-2)
    )


def test_bf16_is_mapped_bit_for_bit(built: Built, tmp_path: Path) -> None:
    root = tmp_path / "artifact"
    build(built.card, root, dtype="bfloat16", datasets=("capitals",), stages=("tuned",))
    artifact = load(root)
    found = artifact.activations("capitals", "tuned", layer=1, dtype=None)
    assert found.dtype == ml_dtypes.bfloat16
    raw = (root / ACTS).read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    fields = json.loads(raw[8:start])["activations"]
    assert fields["dtype"] == "BF16"
    begin, end = (start + offset for offset in fields["data_offsets"])
    bits = np.frombuffer(raw[begin:end], np.uint16).reshape(12, D_MODEL)
    np.testing.assert_array_equal(np.asarray(found).view(np.uint16), bits)
    widened = (bits.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(artifact.activations("capitals", "tuned", layer=1), widened)


def test_resid_pre_is_the_resid_post_below(artifact: sdk.Artifact) -> None:
    assert artifact.layers("resid_pre") == (0, 1, 2)
    for layer in (1, 2):
        np.testing.assert_array_equal(
            artifact.activations("colours", "base", site="resid_pre", layer=layer),
            artifact.activations("colours", "base", site="resid_post", layer=layer - 1),
        )
    first = artifact.activations("colours", "base", site="resid_pre", layer=0)
    assert not np.array_equal(first, artifact.activations("colours", "base", layer=0))


def test_statements_labels_and_tokens_share_one_order(artifact: sdk.Artifact) -> None:
    rows = artifact.statements("capitals")
    assert rows.height == 12
    assert rows["row"].to_list() == list(range(12))
    labels = artifact.labels("capitals")
    assert labels.dtype == bool
    assert labels.tolist() == [label == 1 for label in rows["label"]]
    assert labels.sum() == 6
    tokens = artifact.tokens("tuned").filter(pl.col("dataset") == "capitals")
    assert tokens["row_uid"].equals(rows["row_uid"])
    assert artifact.statements().height == 46
    with pytest.raises(DataError, match="dataset 'harmful' has no labels"):
        artifact.labels("harmful")


def test_a_pair_joins_two_stages(artifact: sdk.Artifact) -> None:
    pair = artifact.pair("base", "tuned")
    earlier, later = pair.activations("harmless", layer=2, position=-3)
    np.testing.assert_array_equal(
        earlier, artifact.activations("harmless", "base", layer=2, position=-3)
    )
    np.testing.assert_array_equal(
        later, artifact.activations("harmless", "tuned", layer=2, position=-3)
    )
    assert "base -> tuned" in repr(pair)
    with pytest.raises(DataError, match="two different stages"):
        artifact.pair("base", "base")
    with pytest.raises(UnknownNameError, match="did you mean 'tuned'"):
        artifact.pair("base", "tunde")


# Mistakes --------------------------------------------------------------------------------------

KNOWN = {"dataset": "capitals", "stage": "tuned", "site": "resid_post", "layer": 1, "position": -1}


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"dataset": "capitols"}, UnknownNameError, "'capitols'; did you mean 'capitals'?"),
        ({"stage": "tune"}, UnknownNameError, "unknown stage 'tune'; did you mean 'tuned'?"),
        ({"site": "resid_pots"}, UnknownNameError, "'resid_pots'; did you mean 'resid_post'"),
        ({"site": "attn_out"}, NotStoredError, "'attn_out' is not stored"),
        ({"layer": 3}, UnknownNameError, "layer of resid_post 3. Available: 0, 1, 2"),
        ({"layer": -1}, UnknownNameError, "unknown layer of resid_post -1"),
        ({"site": "resid_pre", "layer": 3}, UnknownNameError, "layer of resid_pre 3"),
        ({"position": -2}, UnknownNameError, "position of capitals -2"),
        ({"position": 0}, UnknownNameError, "Available: -1"),
    ],
)
def test_an_unknown_name_is_one_line_with_the_way_out(
    artifact: sdk.Artifact, wrong: dict[str, Any], error: type[PtmechError], message: str
) -> None:
    with pytest.raises(error) as caught:
        artifact.activations(**{**KNOWN, **wrong})
    assert message in one_line(caught)
    assert isinstance(caught.value, LookupError)


def test_other_look_ups_answer_alike(artifact: sdk.Artifact) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'colours'"):
        artifact.statements("colors")
    with pytest.raises(UnknownNameError, match="did you mean 'base'"):
        artifact.tokens("bsae")
    with pytest.raises(UnknownNameError, match="did you mean 'mlp_out'"):
        artifact.layers("mlp_in_out")
    with pytest.raises(NotStoredError, match=r"nothing\.parquet is not part of tiny@"):
        artifact.table("nothing.parquet")
    assert artifact.extra("nothing.parquet") is None


def test_what_was_not_built_says_how(built: Built, tmp_path: Path) -> None:
    root = tmp_path / "artifact"
    build(built.card, root, datasets=("capitals",), limit=4)

    def drop(document: dict[str, Any]) -> None:
        document["parts"] = [part for part in document["parts"] if part["stage"] == "base"]

    rewritten(root, "manifest.json", drop)
    artifact = load(root)
    assert artifact.pair("base", "tuned").datasets == ()
    with pytest.raises(NotStoredError, match="--stages tuned --datasets capitals"):
        artifact.activations("capitals", "tuned", layer=0)


# Damage ----------------------------------------------------------------------------------------


def read(root: Path) -> np.ndarray:
    return load(root).activations("capitals", "tuned", layer=1)


def test_every_flipped_bit_is_found(copied: Path, built: Built) -> None:
    whole = (copied / ACTS).read_bytes()
    for at in (0, 9, len(whole) // 2, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        (copied / ACTS).write_bytes(damaged)
        with pytest.raises(IntegrityError, match=f"{ACTS} is damaged") as caught:
            read(copied)
        one_line(caught)
    (copied / ACTS).write_bytes(whole)
    np.testing.assert_array_equal(read(copied), read(built.root))


@pytest.mark.parametrize(
    "path",
    [ACTS, "manifests/tuned/capitals.json", "tables/statements.parquet"],
    ids=["activations", "part", "table"],
)
@pytest.mark.parametrize("damage", ["missing", "cut off", "longer", "empty", "flipped"])
def test_damaged_files_are_refused(copied: Path, path: str, damage: str) -> None:
    whole = (copied / path).read_bytes()
    match damage:
        case "missing":
            (copied / path).unlink()
        case "cut off":
            (copied / path).write_bytes(whole[:-7])
        case "longer":
            (copied / path).write_bytes(whole + b"\n")
        case "empty":
            (copied / path).write_bytes(b"")
        case _:
            (copied / path).write_bytes(whole[:-9] + bytes([whole[-9] ^ 4]) + whole[-8:])
    with pytest.raises(IntegrityError, match=path) as caught:
        read(copied)
    one_line(caught)


def test_a_file_that_is_damaged_later_is_found(copied: Path) -> None:
    artifact = load(copied)
    artifact.activations("capitals", "tuned", layer=1)
    whole = (copied / ACTS).read_bytes()
    status = (copied / ACTS).stat()
    (copied / ACTS).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    os.utime(copied / ACTS, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
    with pytest.raises(IntegrityError):
        artifact.activations("capitals", "tuned", layer=1)


# Rows ------------------------------------------------------------------------------------------


def swap(tensors: dict[str, np.ndarray]) -> None:
    order = np.arange(len(tensors["row_uid"]))
    order[[2, 5]] = 5, 2
    tensors["row_uid"] = tensors["row_uid"][order]


def double(tensors: dict[str, np.ndarray]) -> None:
    tensors["row_uid"][3] = tensors["row_uid"][4]


def foreign(tensors: dict[str, np.ndarray]) -> None:
    tensors["row_uid"][0] += np.uint64(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap, "0 missing, 0 additional, 0 doubled, 2 in another order), first at row 2"),
        (double, "1 missing, 0 additional, 1 doubled, 0 in another order), first at row 3"),
        (foreign, "1 missing, 1 additional, 0 doubled, 0 in another order), first at row 0"),
    ],
)
def test_rows_that_are_not_the_dataset_s_are_refused(
    copied: Path, change: Callable[[dict[str, np.ndarray]], None], message: str
) -> None:
    tensors = stored(copied)
    change(tensors)
    (copied / ACTS).write_bytes(tensor_bytes(tensors, {}))
    with pytest.raises(IntegrityError):
        read(copied)
    signed(copied, ACTS)
    with pytest.raises(AlignmentError) as caught:
        read(copied)
    assert message in one_line(caught)
    with pytest.raises(AlignmentError):
        load(copied).pair("base", "tuned").activations("capitals", layer=1)
    # The other layers are untouched.
    assert load(copied).activations("capitals", "tuned", layer=0).shape == (12, D_MODEL)


def test_blocks_in_the_wrong_order_are_refused(built: Built, tmp_path: Path) -> None:
    recipe: Recipe = built.family.recipe(tmp_path / "card")
    recipe["extraction"]["rows_per_block"] = 6
    root = tmp_path / "artifact"
    build(write_card(tmp_path / "card", recipe), root, datasets=("capitals",), stages=("tuned",))
    first, second = (
        f"acts/tuned/capitals/resid_post/L01.{n:05d}-of-00002.safetensors" for n in (0, 1)
    )
    assert read(root).shape == (12, D_MODEL)
    held = (root / first).read_bytes()
    (root / first).write_bytes((root / second).read_bytes())
    (root / second).write_bytes(held)
    for path in (first, second):
        signed(root, path)
    with pytest.raises(AlignmentError, match="first at row 0"):
        read(root)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("row_uid"),
        lambda tensors: tensors.pop("activations"),
        lambda tensors: tensors.update(activations=tensors["activations"][:, 0]),
        lambda tensors: tensors.update(activations=tensors["activations"][:-1]),
        lambda tensors: tensors.update(activations=tensors["activations"][:, :, :-1]),
        lambda tensors: tensors.update(activations=tensors["activations"].astype(np.int32)),
        lambda tensors: tensors.update(activations=tensors["activations"].astype(np.float16)),
        lambda tensors: tensors.update(row_uid=tensors["row_uid"].astype(np.float64)),
        lambda tensors: tensors.update(row_uid=tensors["row_uid"][:, None]),
    ],
    ids=[
        "no ids", "no activations", "flat", "a row short", "narrow", "whole numbers",
        "other type than promised", "ids of another type", "ids of another shape",
    ],
)  # fmt: skip
def test_a_file_of_another_shape_or_type_is_refused(
    copied: Path, change: Callable[[dict[str, np.ndarray]], Any]
) -> None:
    tensors = stored(copied)
    change(tensors)
    (copied / ACTS).write_bytes(tensor_bytes(tensors, {}))
    signed(copied, ACTS)
    with pytest.raises(FormatError, match=ACTS) as caught:
        read(copied)
    one_line(caught)


def test_a_hostile_file_is_refused_by_its_name(copied: Path) -> None:
    (copied / ACTS).write_bytes((2**40).to_bytes(8, "little") + b"{}")
    signed(copied, ACTS)
    with pytest.raises(FormatError, match=r"L01\.safetensors"):
        read(copied)


def test_a_part_of_another_stage_is_refused(copied: Path) -> None:
    """A part manifest that says it is another's must not stand in for it."""
    shutil.copy(
        copied / "manifests" / "base" / "capitals.json",
        copied / "manifests" / "tuned" / "capitals.json",
    )
    signed(copied, "manifests/tuned/capitals.json")
    with pytest.raises(FormatError, match=r"manifests/tuned/capitals\.json"):
        read(copied)


def test_a_table_that_is_none_is_refused(copied: Path) -> None:
    (copied / "tables" / "statements.parquet").write_bytes(b"PAR1 not really PAR1")

    def promise(document: dict[str, Any]) -> None:
        data = (copied / "tables" / "statements.parquet").read_bytes()
        for entry in document["extras"]:
            if entry["path"] == "tables/statements.parquet":
                entry.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    rewritten(copied, "manifest.json", promise)
    with pytest.raises(FormatError, match=r"statements\.parquet is not a Parquet table") as caught:
        load(copied).statements()
    one_line(caught)


# Without ptmech --------------------------------------------------------------------------------


def test_everything_is_readable_without_ptmech(built: Built) -> None:
    manifest = json.loads((built.root / "manifest.json").read_text())
    files = (path.relative_to(built.root) for path in built.root.rglob("*") if path.is_file())
    kinds = {path.suffix for path in files if path.parts[0] != ".build"}
    assert kinds == {".json", ".parquet", ".safetensors"}
    for entry in manifest["parts"]:
        part = json.loads((built.root / entry["path"]).read_text())
        for file in part["files"]:
            tensors = stored(built.root, file["path"])
            assert tensors["activations"].shape == (
                file["rows"],
                len(part["positions"]),
                part["d_model"],
            )
    for entry in manifest["extras"]:
        path = built.root / entry["path"]
        if path.suffix == ".parquet":
            assert pl.read_parquet(path).height
        elif path.suffix == ".json":
            assert json.loads(path.read_text())["peft_type"] == "LORA"
        else:
            assert safetensors.numpy.load_file(path)


def test_json_is_canonical(built: Built) -> None:
    for path in (built.root / "manifest.json", *(built.root / "manifests").rglob("*.json")):
        raw = path.read_bytes()
        again = json.dumps(json.loads(raw), sort_keys=True, ensure_ascii=False, indent=1) + "\n"
        assert raw == again.encode()


def test_the_reader_needs_no_torch(built: Built) -> None:
    source = Path(sdk.__file__).parent
    for path in (source / "artifact.py", source / "manifest.py", *(source / "storage").glob("*")):
        if path.suffix == ".py":
            names = {
                name
                for node in ast.walk(ast.parse(path.read_text()))
                for name in (
                    [alias.name for alias in node.names]
                    if isinstance(node, ast.Import)
                    else [node.module or ""]
                    if isinstance(node, ast.ImportFrom)
                    else []
                )
            }
            assert not [name for name in names if name.startswith(("torch", "transformers"))]
