"""Verifying an artifact: every kind of fault is found, all of them, and nothing else."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tests.synthetic import write_synthetic_artifact

from ptmech import confidence, refusal
from ptmech._schemas import STATEMENTS
from ptmech.loading import load
from ptmech.manifest import MANIFEST, Manifest, Part, canonical_json
from ptmech.storage import read_tensors
from ptmech.verify import Fault, listed_files, verify
from ptmech_builder.grids import grid_files
from ptmech_builder.writer import digest, tensor_bytes

ACTIVATIONS = "acts/base/cities/resid_post/L01.safetensors"
PART = "manifests/base/cities.json"


@pytest.fixture
def root(synthetic_path, tmp_path) -> Path:
    return Path(shutil.copytree(synthetic_path, tmp_path / "artifact"))


def flip(path: Path, place: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def faults(root: Path) -> dict[str, str]:
    found = verify(load(root))
    assert all("\n" not in str(fault) for fault in found)
    return {fault.path: fault.problem for fault in found}


def replace_extra(root: Path, path: str, data: bytes) -> None:
    """Write a file and list it with its true size and sha256: honest bytes, dishonest content."""
    (root / path).write_bytes(data)
    manifest = Manifest.parse((root / MANIFEST).read_bytes(), "manifest")
    update = {"bytes": len(data), "sha256": digest(data)}
    extras = tuple(
        entry.model_copy(update=update) if entry.path == path else entry
        for entry in manifest.extras
    )
    write_manifest(root, manifest.model_copy(update={"extras": extras}))


def replace_part(root: Path, change) -> None:
    """Write a changed part manifest and list it honestly."""
    part = change(Part.model_validate_json((root / PART).read_bytes()))
    data = canonical_json(part)
    (root / PART).write_bytes(data)
    manifest = Manifest.parse((root / MANIFEST).read_bytes(), "manifest")
    update = {
        "bytes": len(data),
        "sha256": digest(data),
        "data_bytes": sum(file.bytes for file in part.files),
    }
    parts = tuple(
        entry.model_copy(update=update) if entry.path == PART else entry for entry in manifest.parts
    )
    write_manifest(root, manifest.model_copy(update={"parts": parts}))


def replace_activations(root: Path, **tensors) -> None:
    """Write other tensors into one activation file, listed honestly all the way up."""
    held = {name: np.array(array) for name, array in read_tensors(root / ACTIVATIONS).items()}
    held = {name: array for name, array in {**held, **tensors}.items() if array is not None}
    data = tensor_bytes(held, {})
    (root / ACTIVATIONS).write_bytes(data)

    def change(part: Part) -> Part:
        update = {"bytes": len(data), "sha256": digest(data)}
        files = tuple(
            file.model_copy(update=update) if file.path == ACTIVATIONS else file
            for file in part.files
        )
        return part.model_copy(update={"files": files})

    replace_part(root, change)


def edit_table(root: Path, path: str, change) -> None:
    replace_extra(root, path, parquet(change(pl.read_parquet(root / path))))


def edit_manifest(root: Path, change) -> None:
    """Change ``manifest.json`` as plain values."""
    manifest = json.loads((root / MANIFEST).read_bytes())
    change(manifest)
    (root / MANIFEST).write_text(json.dumps(manifest))


def edit_activations(root: Path, path: str, change, about: dict | None = None) -> None:
    """Change the tensors of any activation file, listed honestly all the way up."""
    held = {name: np.array(array) for name, array in read_tensors(root / path).items()}
    change(held)
    data = tensor_bytes(held, about or {})
    (root / path).write_bytes(data)
    _, stage, dataset, *_ = path.split("/")
    place = f"manifests/{stage}/{dataset}.json"
    part = json.loads((root / place).read_bytes())
    for file in part["files"]:
        if file["path"] == path:
            file |= {"bytes": len(data), "sha256": digest(data)}
    raw = json.dumps(part).encode()
    (root / place).write_bytes(raw)

    def relist(manifest: dict) -> None:
        for entry in manifest["parts"]:
            if entry["path"] == place:
                total = sum(file["bytes"] for file in part["files"])
                entry |= {"bytes": len(raw), "sha256": digest(raw), "data_bytes": total}

    edit_manifest(root, relist)


def write_manifest(root: Path, manifest: Manifest) -> None:
    (root / MANIFEST).write_bytes(canonical_json(manifest))


def parquet(table: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    table.write_parquet(buffer)
    return buffer.getvalue()


def test_a_whole_artifact_has_no_faults(synthetic):
    assert verify(synthetic) == []


def test_every_file_on_the_disk_is_listed_once(synthetic, synthetic_path):
    listed = [entry.path for entry in listed_files(synthetic)]
    there = {
        file.relative_to(synthetic_path).as_posix()
        for file in synthetic_path.rglob("*")
        if file.is_file() and ".build" not in file.parts
    }
    assert sorted(listed) == sorted(there - {MANIFEST})
    assert sum(entry.bytes for entry in listed_files(synthetic)) == synthetic.manifest.total_bytes


@pytest.mark.parametrize(("dtype", "block_rows"), [("bfloat16", 30), ("float16", None)])
def test_other_dtypes_and_blocks_verify(tmp_path, dtype, block_rows):
    root = write_synthetic_artifact(
        tmp_path / "a",
        n_layers=2,
        n_facts=20,
        n_instructions=10,
        dtype=dtype,
        block_rows=block_rows,
    )
    assert verify(load(root)) == []


def test_a_flipped_byte_of_any_file_is_found(root, synthetic):
    """One byte of every file at once: as many faults as files, and every path."""
    paths = [entry.path for entry in listed_files(synthetic) if entry.path not in (STATEMENTS,)]
    kept = [path for path in paths if not path.startswith("manifests/")]
    for path in kept:
        flip(root / path)
    found = faults(root)
    assert set(found) == set(kept)
    assert all("damaged" in problem for problem in found.values())


def test_missing_and_truncated_files(root):
    (root / ACTIVATIONS).unlink()
    table = root / "scores/base/refusal.parquet"
    table.write_bytes(table.read_bytes()[:-1])
    (root / PART.replace("base", "instruct")).unlink()
    found = faults(root)
    assert len(found) == 3
    assert "missing" in found[ACTIVATIONS]
    assert "bytes where the manifest promises" in found["scores/base/refusal.parquet"]
    assert "missing" in found["manifests/instruct/cities.json"]


@pytest.mark.parametrize("folder", ["acts", "acts/base"])
def test_a_folder_that_leads_elsewhere_is_one_fault(root, folder):
    elsewhere = shutil.move(root / folder, root.parent / "elsewhere")
    (root / folder).symlink_to(elsewhere)
    (fault,) = verify(load(root))
    assert fault.path == folder
    assert "leads out of the artifact by a link" in fault.problem


def test_a_pointer_of_git_lfs_is_named(root):
    (root / ACTIVATIONS).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "git lfs pull" in faults(root)[ACTIVATIONS]


def test_an_adapter_for_a_mixture_of_experts_can_be_read(root):
    path = "adapters/base/adapter_model.safetensors"
    held = {f"model.experts.{n}.up_proj.lora_A.weight": np.ones(1, np.int16) for n in range(2**14)}
    data = tensor_bytes(held, {})
    (root / path).parent.mkdir(parents=True)
    (root / path).write_bytes(data)
    entry = {"path": path, "bytes": len(data), "sha256": digest(data), "unit": "0" * 64}
    edit_manifest(root, lambda manifest: manifest["extras"].append({**entry, "kind": "adapter"}))
    # The stage was built without one; that it can be read is what counts here.
    assert faults(root) == {path: "is not the adapter that stage 'base' was built with"}
    assert len(load(root).tensors(path)) == 2**14


def test_a_damaged_table_of_statements_is_one_fault(root):
    flip(root / STATEMENTS)
    assert set(faults(root)) == {STATEMENTS}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"activations": np.full((80, 1, 16), np.nan, np.float32)}, "1280 values that are not"),
        ({"activations": np.zeros((80, 1, 15), np.float32)}, "(80, 1, 15)"),
        ({"activations": np.zeros((80, 1, 16), np.float64)}, "float64"),
        ({"row_uid": None}, "should hold"),
        ({"more": np.zeros(1, np.float32)}, "more"),
        ({"row_uid": np.zeros(80, np.uint64)}, "rows differ"),
    ],
)
def test_tensors_that_are_not_what_the_manifest_says(root, tensors, words):
    replace_activations(root, **tensors)
    found = faults(root)
    assert set(found) == {ACTIVATIONS}
    assert words in found[ACTIVATIONS]


def test_rows_in_another_order(root):
    uids = np.array(read_tensors(root / ACTIVATIONS)["row_uid"])
    uids[[3, 4]] = uids[[4, 3]]
    replace_activations(root, row_uid=uids)
    assert "first at row 3" in faults(root)[ACTIVATIONS]


def test_an_edited_statement(root):
    table = pl.read_parquet(root / STATEMENTS)
    text = table["text"].to_list()
    text[7] += " Or so they say."
    replace_extra(root, STATEMENTS, parquet(table.with_columns(text=pl.Series(text))))
    found = faults(root)
    assert set(found) == {STATEMENTS}
    assert "1 rows of cities do not match their row_uid, first 'cities-7'" in found[STATEMENTS]


def test_a_row_too_few(root):
    table = pl.read_parquet(root / STATEMENTS)
    fewer = table.filter((pl.col("dataset") != "cities") | (pl.col("row") != 79))
    replace_extra(root, STATEMENTS, parquet(fewer))
    # Every other file still has the row: that follows, and is not said again.
    assert verify(load(root)) == [
        Fault(STATEMENTS, "79 rows of cities where the manifest has 80"),
    ]


def test_tokens_of_other_rows(root):
    path = "tables/tokens/base.parquet"
    table = pl.read_parquet(root / path)
    replace_extra(root, path, parquet(table.reverse()))
    assert "rows differ" in faults(root)[path]


def test_files_that_are_not_what_their_names_say(root):
    for path in ("scores/base/refusal.parquet", "weights/base/unembedding.safetensors"):
        replace_extra(root, path, b"not what it was")
    assert set(faults(root)) == {
        "scores/base/refusal.parquet",
        "weights/base/unembedding.safetensors",
    }


def test_statistics_that_are_not_finite(root):
    path = "weights/base/unembedding.safetensors"
    tensors = {name: np.array(array) for name, array in read_tensors(root / path).items()}
    tensors["mean_row"][2] = np.inf
    replace_extra(root, path, tensor_bytes(tensors, {}))
    assert faults(root) == {path: "tensor 'mean_row' holds 1 values that are not finite"}


def test_a_grid_with_a_hole(root):
    folder = "traces/base-base/cities.zarr"
    manifest = Manifest.parse((root / MANIFEST).read_bytes(), "manifest")
    extras = tuple(entry for entry in manifest.extras if entry.path != f"{folder}/grid/c/0/0/0")
    write_manifest(root, manifest.model_copy(update={"extras": extras}))
    found = faults(root)
    assert set(found) == {folder}
    assert "c/0/0/0 is missing" in found[folder]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rows": 79}, "rows: 79 where manifest.json has 80"),
        ({"d_model": 17}, "d_model: 17 where manifest.json has 16"),
        ({"dtype": "float16"}, "dtype: float16"),
        ({"positions": (-2,)}, "positions: (-2,)"),
        ({"stage": "instruct"}, "is not below acts/instruct/cities/"),
        ({"dataset": "facts"}, "is not below acts/base/facts/"),
    ],
)
def test_a_part_that_contradicts_the_manifest(root, change, words):
    replace_part(root, lambda part: part.model_copy(update=change))
    found = verify(load(root))
    assert any(fault.path == PART and words in fault.problem for fault in found)


def test_a_part_that_lacks_a_layer(root):
    def drop(part: Part) -> Part:
        return part.model_copy(update={"files": tuple(part.files[1:])})

    lost = Part.model_validate_json((root / PART).read_bytes()).files[0]
    replace_part(root, drop)
    assert faults(root) == {PART: f"lacks {lost.site} layer {lost.layer}, block 0"}


def test_blocks_that_do_not_follow_each_other(root):
    def move(part: Part) -> Part:
        unit = part.units[0].model_copy(update={"first_row": 1, "rows": 80})
        return part.model_copy(update={"units": (unit,)})

    replace_part(root, move)
    problems = [fault.problem for fault in verify(load(root)) if fault.path == PART]
    assert "block 0 begins at 1, not 0" in problems
    assert "its blocks hold 81 rows of 80" in problems


def test_a_path_listed_twice(root):
    manifest = Manifest.parse((root / MANIFEST).read_bytes(), "manifest")
    twice = manifest.model_copy(update={"extras": (*manifest.extras, manifest.extras[-1])})
    write_manifest(root, twice)
    assert Fault(manifest.extras[-1].path, "is listed 2 times") in verify(load(root))


# Rows


def swap_rows(table: pl.DataFrame) -> pl.DataFrame:
    """Swap two rows of a dataset, and number them as they stand now."""
    order = list(range(table.height))
    order[3], order[4] = 4, 3
    return table[order].with_columns(row=table["row"])


def test_one_broken_table_is_one_fault_however_many_files_follow(root):
    edit_table(root, STATEMENTS, swap_rows)
    (fault,) = verify(load(root))
    assert fault.path == STATEMENTS
    # Two stages, each a table of tokens and 9 files of activations.
    assert "all 20 files disagree with it: cities: rows differ" in fault.problem
    assert "2 in another order), first at row 3" in fault.problem
    assert "'cities-3'" in fault.problem


def test_a_table_that_is_not_numbered_in_its_order(root):
    edit_table(root, STATEMENTS, lambda table: swap_rows(table).with_columns(row=swapped(table)))
    assert faults(root) == {STATEMENTS: "rows of cities are not numbered from 0 in their order"}


def swapped(table: pl.DataFrame) -> pl.Series:
    rows = table["row"].to_list()
    rows[3], rows[4] = rows[4], rows[3]
    return pl.Series("row", rows, dtype=pl.Int32)


def test_a_file_that_differs_is_found_though_the_table_is_broken(root):
    flip(root / STATEMENTS)

    def swap(held):
        held["row_uid"][[3, 4]] = held["row_uid"][[4, 3]]

    edit_activations(root, ACTIVATIONS, swap)
    found = faults(root)
    assert set(found) == {STATEMENTS, ACTIVATIONS}
    assert "first at row 3" in found[ACTIVATIONS]


def test_files_of_a_part_that_are_wrong_alike_are_one_fault(root):
    part = json.loads((root / PART).read_bytes())

    def swap(held):
        held["row_uid"][[3, 4]] = held["row_uid"][[4, 3]]

    paths = [file["path"] for file in part["files"]]
    for path in paths:
        edit_activations(root, path, swap)
    (fault,) = verify(load(root))
    assert fault.path in paths
    assert f"(and {len(paths) - 1} more files of {PART})" in fault.problem


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (pl.lit(None, pl.String).alias("text"), "column 'text' lacks 680 of its 680 values"),
        (pl.col("row").cast(pl.Int64), "column 'row' is of type Int64 where it should be Int32"),
        (pl.lit(2, pl.Int8).alias("label"), "column 'label' holds 2, not one of 0, 1"),
        (pl.lit(None, pl.Int8).alias("label"), "80 statements of cities are neither true nor"),
        (pl.lit(0, pl.Int8).alias("polarity"), "column 'polarity' holds 0, not one of -1, 1"),
        (
            pl.col("dataset").replace({"facts": "fiction"}),
            "80 rows of 'fiction', which is no dataset",
        ),
        (pl.col("row_uid").replace({0: 0}).max().alias("row_uid"), "79 rows of cities share their"),
    ],
)
def test_prompts_that_cannot_be(root, change, words):
    edit_table(root, STATEMENTS, lambda table: table.with_columns(change))
    problems = [fault.problem for fault in verify(load(root)) if fault.path == STATEMENTS]
    assert any(words in problem for problem in problems)


def test_a_table_without_a_column(root):
    edit_table(root, STATEMENTS, lambda table: table.drop("polarity"))
    assert faults(root) == {STATEMENTS: "lacks the column 'polarity'"}


TOKENS = "tables/tokens/instruct.parquet"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (pl.col("positions").list.eval(pl.element() - 1), "cities: row 0 has positions [3] where"),
        (pl.col("token_ids").list.eval(pl.element() + 200), "outside of the vocabulary of 96"),
        (pl.col("tokens").list.head(2), "more token ids than tokens"),
        (pl.lit("0" * 64).alias("rendered_sha256"), "480 statements were rendered as another text"),
        (pl.lit("none").alias("rendered_sha256"), "a sha256 of a rendered text is none"),
        (pl.col("dataset").replace({"facts": "fiction"}), "'fiction', which is no dataset"),
        (pl.col("token_ids").cast(pl.List(pl.Int64)), "type List(Int64) where it should be List"),
    ],
)
def test_tokens_that_cannot_be(root, change, words):
    edit_table(root, TOKENS, lambda table: table.with_columns(change))
    found = verify(load(root))
    assert {fault.path for fault in found} == {TOKENS}
    assert any(words in fault.problem for fault in found)


# Statistics and scores

NEURONS = "weights/base/neurons.parquet"
UNEMBEDDING = "weights/base/unembedding.safetensors"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda table: table.head(63), "has 63 neurons where the last MLP has 64"),
        (lambda table: table.reverse(), "not numbered from 0 in their order"),
        (lambda table: table.with_columns(norm=-pl.col("norm")), "column 'norm' holds"),
        (
            lambda table: table.with_columns(null_space_fraction=1.5),
            "'null_space_fraction' holds 1.5, not a value from 0 to 1",
        ),
        (lambda table: table.with_columns(norm=pl.lit(float("nan"))), "64 values that are not fin"),
        (lambda table: table.drop("logit_variance_raw"), "lacks the column 'logit_variance_raw'"),
        (lambda table: table.with_columns(pl.col("norm").cast(pl.Float32)), "of type Float32"),
        (
            lambda table: table.with_columns(norm=pl.lit(None, pl.Float64)),
            "column 'norm' lacks 64 of its 64",
        ),
    ],
)
def test_neurons_that_cannot_be(root, change, words):
    edit_table(root, NEURONS, change)
    found = faults(root)
    assert set(found) == {NEURONS}
    assert words in found[NEURONS]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda held: held.update(singular_values=held["singular_values"][::-1]), "in order"),
        (lambda held: held.update(singular_values=held["singular_values"] - 9), "in order"),
        (lambda held: held.update(singular_values=np.ones(15)), "should hold"),
        (lambda held: held.update(mean_row=np.ones(16, np.float32)), "should hold"),
        (lambda held: held.pop("mean_row"), "should hold"),
    ],
)
def test_an_unembedding_that_cannot_be(root, change, words):
    held = {name: np.array(array) for name, array in read_tensors(root / UNEMBEDDING).items()}
    change(held)
    replace_extra(root, UNEMBEDDING, tensor_bytes(held, {}))
    found = faults(root)
    assert set(found) == {UNEMBEDDING}
    assert words in found[UNEMBEDDING]


@pytest.mark.parametrize(
    ("table", "change", "words"),
    [
        ("refusal", pl.col("refusals") + 1, "9 rates are not what their counts make them"),
        ("refusal", pl.lit(1.0).alias("low"), "rates are not what"),
        (
            "refusal",
            pl.lit("basic").alias("stage"),
            "column 'stage' holds 'basic', not one of 'base'",
        ),
        (
            "refusal",
            pl.lit(None, pl.Float64).alias("refusal_rate"),
            "'refusal_rate' lacks 9 of its",
        ),
        ("refusal", pl.lit(99).alias("layer"), "column 'layer' holds 99, not a value from 0 to 3"),
        ("completions", pl.lit(7, pl.UInt64).alias("row_uid"), "are of no row of 'harmful', first"),
        (
            "completions",
            pl.lit("harm").alias("prompts"),
            "'prompts' holds 'harm', not one of 'harmful'",
        ),
        ("truth", pl.lit("towns").alias("dataset"), "column 'dataset' holds 'towns'"),
        ("truth", pl.lit(float("inf")).alias("effect"), "'effect' holds 3 values that are not"),
        ("truth", pl.lit(float("nan")).alias("length"), "'length' holds 3 values that are not"),
        (
            "neurons",
            pl.lit(64).alias("neuron"),
            "column 'neuron' holds 64, not a value from 0 to 63",
        ),
        ("neurons", pl.lit("3.1").alias("unedited"), "'unedited' is of type String"),
        ("neurons", pl.lit("zzz").alias("measure"), "'measure' holds 'zzz', not one of 'entropy'"),
        ("neurons", pl.lit("foo").alias("neurons"), "'neurons' holds 'foo', not one of 'chosen'"),
        ("neurons", pl.lit(-3).alias("texts"), "'texts' holds -3, less than 0"),
        ("neurons", pl.lit(-1.0).alias("absolute"), "'absolute' holds -1.0, less than 0"),
        ("neurons", pl.lit(1e6).alias("change"), "60 values of 'change' are far outside of their"),
        ("neurons", pl.lit(9.0).alias("change_low"), "60 intervals of 'change' end before they"),
        ("directions", pl.lit(-9).alias("position"), "column 'position' holds -9"),
        ("directions", pl.lit(-5.0).alias("kl_div_score"), "'kl_div_score' holds -5.0, less than"),
        ("refusal", pl.lit(-3.0).alias("length"), "'length' holds -3.0, less than 0"),
        ("truth", pl.lit(99.0).alias("effect"), "'effect' holds 99.0, more than 1"),
        ("truth", pl.lit(None, pl.Int32).alias("layer"), "column 'layer' lacks 3 of its 3"),
    ],
)
def test_scores_that_cannot_be(root, table, change, words):
    path = f"scores/base/{table}.parquet"
    edit_table(root, path, lambda frame: frame.with_columns(change))
    problems = [fault.problem for fault in verify(load(root)) if fault.path == path]
    assert any(words in problem for problem in problems), problems


def test_a_share_of_nothing_is_no_fault(root):
    edit_table(
        root,
        "scores/base/truth.parquet",
        lambda frame: frame.with_columns(effect_low=pl.lit(float("nan"))),
    )
    assert faults(root) == {}


@pytest.mark.parametrize(
    ("table", "columns"),
    [
        ("neurons", ["change_low", "change_high", "absolute_low", "absolute_high"]),
        ("refusal", ["plain_text_loss"]),
    ],
)
def test_what_a_single_text_leaves_undefined_is_no_fault_and_can_be_read(root, table, columns):
    edit_table(
        root,
        f"scores/base/{table}.parquet",
        lambda frame: frame.with_columns(pl.lit(float("nan")).alias(name) for name in columns),
    )
    assert faults(root) == {}
    read = {"neurons": confidence.effects, "refusal": refusal.scores}[table]
    frame = read(load(root)).frame.filter(stage="base")
    assert frame.select(pl.col(columns).is_nan().all()).row(0) == (True,) * len(columns)


@pytest.mark.parametrize("table", ["truth", "neurons", "directions", "refusal", "completions"])
def test_a_table_of_scores_without_rows_is_a_fault(root, table):
    path = f"scores/base/{table}.parquet"
    edit_table(root, path, lambda frame: frame.clear())
    assert "has no rows" in {fault.problem for fault in verify(load(root)) if fault.path == path}


def test_counts_that_the_completions_do_not_make(root):
    path = "scores/base/completions.parquet"
    edit_table(root, path, lambda frame: frame.with_columns(refused=~pl.col("refused")))
    assert "counts are not those of the completions" in faults(root)["scores/base/refusal.parquet"]


# Grids

FOLDER = "traces/base-instruct/cities.zarr"


def replace_grid(root: Path, grid: np.ndarray, **attributes) -> None:
    """Write another grid in the place of a trace."""
    pairs, _layers, columns = grid.shape
    true, false = [
        pl.read_parquet(root / STATEMENTS).filter(dataset="cities", label=label)["row_uid"]
        for label in (1, 0)
    ]
    about = {
        "form": "true_false",
        "source": "base",
        "target": "instruct",
        "dataset": "cities",
        "tokens": ["a"] * columns,
        "roles": ["prefix"] * columns,
        "pairs": [{"true_uid": true[n], "false_uid": false[n]} for n in range(pairs)],
        "known": {},
        **attributes,
    }
    ends = np.zeros(pairs, np.float32)
    files = grid_files({"grid": grid, "unpatched": ends, "source": ends + 1}, about)
    shutil.rmtree(root / FOLDER)
    for name, data in files.items():
        (root / FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
        (root / FOLDER / name).write_bytes(data)

    def relist(manifest):
        kept = [e for e in manifest["extras"] if not e["path"].startswith(FOLDER)]
        manifest["extras"] = kept + [
            {
                "path": f"{FOLDER}/{name}",
                "bytes": len(data),
                "sha256": digest(data),
                "kind": "trace",
                "unit": "0" * 64,
            }
            for name, data in files.items()
        ]

    edit_manifest(root, relist)


@pytest.mark.parametrize(
    ("layers", "attributes", "words"),
    [
        (4, {}, "is of other pairs than the trace from base into base"),
        (3, {}, "has 3 layers where 'instruct' has 4"),
        (4, {"pairs": [{"true_uid": 1, "false_uid": 2}] * 6}, "12 of its prompts are no rows"),
        (4, {"known": {"basic": 0.5}}, "'basic' knows, a stage that is not there"),
        (4, {"known": {"base": 1.5}}, "known"),
        (4, {"target": "base"}, "describes itself as"),
        (4, {"roles": ["prefix"]}, "a grid of shape"),
        (4, {"dataset": 7}, "dataset: Input should be a valid string"),
    ],
)
def test_grids_that_do_not_fit(root, layers, attributes, words):
    replace_grid(root, np.zeros((6, layers, 7), np.float32), **attributes)
    found = verify(load(root))
    assert {fault.path for fault in found} == {FOLDER}
    assert any(words in fault.problem for fault in found), found


def test_a_grid_that_is_not_finite(root):
    replace_grid(root, np.full((6, 4, 7), np.inf, np.float32))
    assert "not finite" in faults(root)[FOLDER]


# Manifests


def set_in(*path):
    """Return a change that sets one value of ``manifest.json``; the last item is the value."""
    *steps, last, value = path

    def change(manifest):
        for step in steps:
            manifest = manifest[step]
        manifest[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_in("licence", " "), "has no licence"),
        (set_in("parity", "worst", 0.5), "parity: 0.5 is beyond the tolerance, 0.0001"),
        (set_in("parity", None), "does not say how exact"),
        (set_in("parity", "rows", 0), "parity was checked on 0 rows"),
        (set_in("parity", "dataset", "towns"), "parity is of 'towns'"),
        (set_in("defaults", "truth_datasets", ["towns"]), "truth_datasets is 'towns'"),
        (set_in("defaults", "truth_asked", "towns"), "truth_asked is 'towns'"),
        (set_in("defaults", "trace_datasets", ["towns"]), "trace_datasets is 'towns'"),
        (set_in("defaults", "harmful", "nasty"), "harmful is 'nasty'"),
        (set_in("defaults", "refusal_position", -6), "position -6 is not stored of 'harmful'"),
        (set_in("defaults", "refusal_positions", {"base": -9}), "position -9 is not stored"),
        (set_in("defaults", "refusal_layers", {"basic": 2}), "'basic', a stage that is not there"),
        (lambda manifest: manifest["parts"].pop(), "has no parts of 'harmless' at stage"),
        (
            lambda manifest: manifest["extras"].remove(
                next(e for e in manifest["extras"] if e["path"] == TOKENS)
            ),
            "does not list tables/tokens/instruct.parquet",
        ),
    ],
)
def test_a_manifest_that_contradicts_itself(root, change, words):
    edit_manifest(root, change)
    problems = [fault.problem for fault in verify(load(root)) if fault.path == MANIFEST]
    assert any(words in problem for problem in problems), problems


def test_a_narrowed_build_may_lack_what_its_card_names(root):
    def narrow(manifest):
        manifest["narrowed"] = "without the datasets nasty"
        manifest["defaults"]["harmful"] = "nasty"
        manifest["defaults"]["refusal_layers"] = {"sft": 2}

    edit_manifest(root, narrow)
    assert faults(root) == {}


def test_extras_that_are_not_what_their_folder_holds(root):
    def change(manifest):
        by_path = {entry["path"]: entry for entry in manifest["extras"]}
        by_path[NEURONS]["kind"] = "scores"
        weights = {**by_path[UNEMBEDDING], "path": "adapters/base/adapter_model.safetensors"}
        lost = {**by_path[UNEMBEDDING], "path": "weights/basic/unembedding.safetensors"}
        elsewhere = {**by_path[UNEMBEDDING], "path": "other/unembedding.safetensors"}
        for entry in (weights, lost, elsewhere):
            (root / entry["path"]).parent.mkdir(parents=True)
            shutil.copy(root / UNEMBEDDING, root / entry["path"])
            manifest["extras"].append(entry | {"kind": entry["path"].split("/")[0].rstrip("s")})
        manifest["extras"][-1]["kind"] = "table"
        manifest["extras"][-2]["kind"] = "weights"

    edit_manifest(root, change)
    assert faults(root) == {
        NEURONS: "is listed as 'scores' where weights/ holds 'weights'",
        "adapters/base/adapter_model.safetensors": (
            "is not the adapter that stage 'base' was built with"
        ),
        "weights/basic/unembedding.safetensors": "is of no stage that the manifest names",
        "other/unembedding.safetensors": "is in no folder that an artifact has",
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"parity": 2e-6}, "block 0 deviates by 2e-06 where manifest.json says"),
        ({"block": 1}, "block 1 stands where block 0 should"),
    ],
)
def test_units_that_contradict_the_manifest(root, change, words):
    def edit(part: Part) -> Part:
        unit = part.units[0].model_copy(update=change)
        return part.model_copy(update={"units": (unit,)})

    replace_part(root, edit)
    problems = [fault.problem for fault in verify(load(root)) if fault.path == PART]
    assert any(words in problem for problem in problems), problems


def test_two_units_with_one_key(root):
    other = json.loads((root / "manifests/base/facts.json").read_bytes())["units"][0]["key"]

    def edit(part: Part) -> Part:
        return part.model_copy(update={"units": (part.units[0].model_copy(update={"key": other}),)})

    replace_part(root, edit)
    (problem,) = faults(root).values()
    assert "has the key of" in problem


@pytest.mark.parametrize(
    ("name", "value"),
    [("stage", "instruct"), ("dataset", "facts"), ("site", "mlp_out"), ("layer", 2)],
)
def test_a_file_that_says_it_is_another(root, name, value):
    """Whole files swapped, with honest digests: their headers still know."""
    edit_activations(root, ACTIVATIONS, dict, about={name: value})
    assert f"says that it is of {name} {value!r}" in faults(root)[ACTIVATIONS]


# What is said, and what is not


def test_what_no_manifest_lists_is_not_looked_at(root):
    (root / "acts/base/cities/resid_post/L99.safetensors").write_bytes(b"of another build")
    (root / ".build").mkdir(exist_ok=True)
    (root / ".build/receipt.json").write_text("{")
    assert faults(root) == {}


def test_a_fault_is_one_line_that_no_terminal_obeys():
    fault = Fault("a\nb", "x\x1b[31m\r\ny\u202ez")
    assert str(fault) == "a b: x\\x1b[31m y\\u202ez"


def test_a_document_beyond_its_budget_is_a_fault(root):
    raw = b"[" * 100 + b"]" * 100
    (root / PART).write_bytes(raw)

    def relist(manifest):
        for entry in manifest["parts"]:
            if entry["path"] == PART:
                entry |= {"bytes": len(raw), "sha256": digest(raw)}

    edit_manifest(root, relist)
    assert set(faults(root)) == {PART}


def test_every_kind_of_fault_at_once(root):
    """Nothing stops at the first: one of each kind, and each is said once."""
    edit_table(root, NEURONS, lambda table: table.reverse())
    edit_table(root, TOKENS, lambda table: table.with_columns(pl.col("tokens").list.head(2)))
    edit_activations(root, ACTIVATIONS, lambda held: held["activations"].fill(np.nan))
    edit_manifest(root, set_in("licence", " "))
    flip(root / "scores/base/truth.parquet")
    (root / FOLDER / "zarr.json").unlink()
    found = [fault.path for fault in verify(load(root))]
    assert {MANIFEST, NEURONS, TOKENS, ACTIVATIONS} <= set(found)
    assert {"scores/base/truth.parquet", f"{FOLDER}/zarr.json"} <= set(found)
    # A table of tokens has one fault for each of its eight datasets.
    assert len(found) == 5 + 8
