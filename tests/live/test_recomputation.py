"""Running the models again finds what no digest can: every file here is signed and well formed."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import polars as pl
import pytest
import torch
from tests.tiny import Built, build, shortest, tiny_build, write_card
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from ptmech import cli, live
from ptmech._verification.activations import described
from ptmech.errors import DataError, PrerequisiteError, UnknownNameError
from ptmech.live.plain_forward import plain_forward
from ptmech.live.recomputation import Recomputation
from ptmech.loading import load
from ptmech.manifest import MANIFEST
from ptmech.storage import read_tensors
from ptmech.verify import verify, verify_deep
from ptmech_builder.writer import digest, tensor_bytes

STAGE, DATASET = "tuned", "capitals"
PLACE = f"acts/{STAGE}/{DATASET}/resid_post/L01.safetensors"
PART = f"manifests/{STAGE}/{DATASET}.json"
ALL = 1000
"""More rows than any block has."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return tiny_build(tmp_path_factory)


@pytest.fixture
def root(built: Built, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built.root, tmp_path / "artifact"))


def deep(built: Built, root: Path, *, rows: int = ALL, **options: Any) -> Recomputation:
    """Check an artifact that nothing shallow is wrong with."""
    artifact = load(root)
    assert verify(artifact) == []
    folders = dict.fromkeys(artifact.stages, built.family.model)
    return verify_deep(artifact, rows=rows, device="cpu", **{"folders": folders, **options})


def found(built: Built, root: Path, **options: Any) -> dict[str, str]:
    faults = deep(built, root, **options).faults
    assert all("\n" not in str(fault) for fault in faults)
    assert len({fault.path for fault in faults}) == len(faults)
    return {fault.path: fault.problem for fault in faults}


def sign(root: Path, path: str) -> None:
    """Write a file's size and sha256 into its manifest, all the way up."""
    data = (root / path).read_bytes()
    place = next((root / "manifests").glob("*/*.json"))
    if path.startswith("acts/"):
        _, stage, dataset, *_ = path.split("/")
        place = root / "manifests" / stage / f"{dataset}.json"
    part = json.loads(place.read_bytes())
    manifest = json.loads((root / MANIFEST).read_bytes())
    for entry in (*part["files"], *manifest["extras"]):
        if entry["path"] == path:
            entry |= {"bytes": len(data), "sha256": digest(data)}
    raw = json.dumps(part).encode()
    place.write_bytes(raw)
    for entry in manifest["parts"]:
        if root / entry["path"] == place:
            total = sum(file["bytes"] for file in part["files"])
            entry |= {"bytes": len(raw), "sha256": digest(raw), "data_bytes": total}
    (root / MANIFEST).write_text(json.dumps(manifest))


def put_values(root: Path, path: str, values: np.ndarray) -> None:
    """Replace the activations of a file; its row ids and its own description stay."""
    uids = np.array(read_tensors(root / path)["row_uid"])
    about = described(root / path)
    (root / path).write_bytes(tensor_bytes({"activations": values, "row_uid": uids}, about))
    sign(root, path)


def values_of(root: Path, path: str) -> np.ndarray:
    return np.array(read_tensors(root / path)["activations"])


def edit_table(root: Path, path: str, change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    buffer = io.BytesIO()
    change(pl.read_parquet(root / path)).write_parquet(buffer)
    (root / path).write_bytes(buffer.getvalue())
    sign(root, path)


# What is whole


def test_what_no_model_was_asked_for_is_said(built: Built, root: Path) -> None:
    manifest = json.loads((root / MANIFEST).read_bytes())
    trace = {"path": "traces/a-b/x.zarr/c", "kind": "trace", "unit": "0" * 64}
    manifest["extras"].append({**trace, "bytes": 0, "sha256": digest(b"")})
    scores = sum(entry["kind"] == "scores" for entry in manifest["extras"])
    unembedding = "weights/base/unembedding.safetensors"
    manifest["extras"] = [entry for entry in manifest["extras"] if entry["path"] != unembedding]
    (root / MANIFEST).write_text(json.dumps(manifest))
    folders = dict.fromkeys(("base", "tuned"), built.family.model)
    unchecked = verify_deep(load(root), rows=1, device="cpu", folders=folders).unchecked
    assert f"not recomputed: scores ({scores} files of scores/)" in unchecked
    assert "not recomputed: causal traces (1 files of traces/)" in unchecked
    assert f"not recomputed: weights/base/neurons.parquet, without {unembedding} beside it" in (
        unchecked
    )


def test_a_whole_artifact_is_what_its_models_compute(built: Built) -> None:
    report = deep(built, built.root)
    assert (report.faults, report.skipped) == ([], [])
    artifact = load(built.root)
    parts = [artifact.part(entry.dataset, entry.stage) for entry in artifact.manifest.parts]
    # Two stages, 46 rows; 7 files a part, and two of statistics a stage.
    assert report.rows == 2 * 46
    assert report.files == sum(len(part.files) for part in parts) + 4
    activations = sum(
        part.rows * len(part.positions) * part.d_model * len({f.path for f in part.files})
        for part in parts
    )
    neurons, unembedding = 24 * 6, 2 * 16
    assert report.numbers == activations + 2 * (neurons + unembedding)
    assert 0 < report.worst < 1e-4
    assert report.where.startswith("acts/")
    assert f"recomputed: 92 rows, {report.files} files" in str(report)


def test_rows_are_sampled_by_their_ids_from_every_block(built: Built) -> None:
    once, again = (deep(built, built.root, rows=2) for _ in range(2))
    assert once == again
    assert once.rows == 2 * 4 * 2


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrower_types_are_whole_too(built: Built, tmp_path: Path, dtype: str) -> None:
    assert deep(built, narrow(built, tmp_path, dtype)).faults == []


def narrow(built: Built, folder: Path, dtype: str) -> Path:
    """Build the least there is in another type, in two blocks."""
    recipe = shortest(built.family.recipe(folder / "card"))
    recipe["extraction"] = {"dtype": dtype, "rows_per_block": 7, "tokens_per_batch": 64}
    build(write_card(folder / "card", recipe), folder / "narrow")
    return folder / "narrow"


def test_a_plain_forward_reads_every_site_where_transformers_has_it(built: Built) -> None:
    model = live.LiveModel.from_pretrained(built.family.model, device="cpu")
    plain = AutoModelForCausalLM.from_pretrained(built.family.model, dtype=torch.float32).eval()
    ids = [0, 20, 30, 40, 50]
    wanted = [(site, layer) for site in live.SITES for layer in range(3)]
    read = plain_forward(model.sites, ids, [1, 4], wanted)
    with torch.no_grad():
        states = plain(torch.tensor([ids]), output_hidden_states=True).hidden_states
        for layer in range(3):
            expected = states[layer][0, [1, 4]]
            assert torch.allclose(read["resid_pre", layer], expected, atol=1e-6)
        for layer in range(2):
            assert torch.allclose(read["resid_post", layer], states[layer + 1][0, [1, 4]])
        last = plain.model.norm(read["resid_post", 2])
        assert torch.allclose(last, states[3][0, [1, 4]], atol=1e-5)
    middle = read["resid_pre", 1] + read["attn_out", 1]
    assert torch.allclose(middle, read["resid_mid", 1], atol=1e-5)


# What only the model can tell


def swapped_rows(root: Path) -> np.ndarray:
    values = values_of(root, PLACE)
    values[[2, 5]] = values[[5, 2]]
    return values


def another_layer(root: Path) -> np.ndarray:
    return values_of(root, PLACE.replace("L01", "L02"))


def another_site(root: Path) -> np.ndarray:
    return values_of(root, PLACE.replace("resid_post", "mlp_out"))


def another_stage(root: Path) -> np.ndarray:
    return values_of(root, PLACE.replace(STAGE, "base"))


def scaled(root: Path) -> np.ndarray:
    return values_of(root, PLACE) * np.float32(1.01)


def rounded(root: Path) -> np.ndarray:
    """Rounded to bf16 on the way, and stored as float32."""
    return values_of(root, PLACE).astype(ml_dtypes.bfloat16).astype(np.float32)


def one_number(root: Path) -> np.ndarray:
    values = values_of(root, PLACE)
    values[7, 0, 3] += 0.01 * np.abs(values[7]).max()
    return values


@pytest.mark.parametrize(
    ("change", "rows"),
    [
        (swapped_rows, {2, 5}),
        (another_layer, set(range(12))),
        (another_site, set(range(12))),
        (another_stage, set(range(12))),
        (scaled, set(range(12))),
        (rounded, set(range(12))),
        (one_number, {7}),
    ],
)
def test_values_of_something_else_are_found(
    built: Built, root: Path, change: Callable[[Path], np.ndarray], rows: set[int]
) -> None:
    put_values(root, PLACE, change(root))
    problems = found(built, root)
    assert set(problems) == {PLACE}
    assert "from the model, more than 0.0001" in problems[PLACE]
    assert int(problems[PLACE].split()[1]) in rows
    if len(rows) > 1:
        assert f"({len(rows)} of 12 sampled rows do)" in problems[PLACE]


def test_the_deviation_that_is_told_is_the_relative_one(built: Built, root: Path) -> None:
    values = values_of(root, PLACE)
    largest = np.abs(values[7, 0]).max()
    values[7, 0, 3] += 0.25 * largest
    put_values(root, PLACE, values)
    assert found(built, root)[PLACE].startswith("row 7 deviates by 0.25 ")


def test_a_part_that_is_wrong_in_every_file_is_one_fault(built: Built, root: Path) -> None:
    paths = [file["path"] for file in json.loads((root / PART).read_bytes())["files"]]
    blocks = [path for path in paths if "resid_pre" not in path]
    for path in blocks:
        put_values(root, path, values_of(root, path.replace(STAGE, "base")))
    # Both stages have the same embeddings: there the file of the other one is the right one.
    assert set(found(built, root)) == set(blocks)
    (embeddings,) = set(paths) - set(blocks)
    put_values(root, embeddings, 2 * values_of(root, embeddings))
    problems = found(built, root)
    assert set(problems) == {PART}
    assert "none of the 7 files of block 0 holds what the model computes" in problems[PART]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_values_cut_off_instead_of_rounded_are_found(
    built: Built, tmp_path: Path, dtype: str
) -> None:
    """Within the tolerance of the type, and still not what rounding makes of any right value."""
    root = narrow(built, tmp_path, dtype)
    path = f"acts/base/{DATASET}/resid_post/L01.00000-of-00002.safetensors"
    values = values_of(root, path)
    bits = values.view(np.uint16)
    bits[...] = bits - np.where((bits & 0x7FFF) > 0, 1, 0).astype(np.uint16)  # one step to zero
    put_values(root, path, values)
    problems = found(built, root)
    assert set(problems) == {path}
    assert f"more than rounding to {dtype} explains (7 of 7 sampled rows do)" in problems[path]


TOKENS = f"tables/tokens/{STAGE}.parquet"


def of_dataset(dataset: str, expression: pl.Expr, name: str) -> pl.Expr:
    mine = pl.col("dataset") == dataset
    return pl.when(mine).then(expression).otherwise(pl.col(name)).alias(name)


@pytest.mark.parametrize(
    ("dataset", "name", "expression", "words"),
    [
        (
            DATASET,
            "token_ids",
            pl.col("token_ids").list.eval((pl.element() + 1) % 250).cast(pl.List(pl.Int32)),
            "other token ids than the tokenizer makes of it (12 of 12",
        ),
        (
            DATASET,
            "tokens",
            pl.col("tokens").list.reverse(),
            "has tokens whose texts are not those of its token ids",
        ),
        (
            "harmful",
            "rendered_sha256",
            pl.lit("0" * 64),
            "was rendered as another text than the stage's template makes of it",
        ),
    ],
)
def test_other_tokens_are_one_fault_and_not_of_the_activations(
    built: Built, root: Path, dataset: str, name: str, expression: pl.Expr, words: str
) -> None:
    edit_table(
        root, TOKENS, lambda table: table.with_columns(of_dataset(dataset, expression, name))
    )
    problems = found(built, root)
    assert set(problems) == {TOKENS}
    assert words in problems[TOKENS]
    assert problems[TOKENS].startswith(f"{dataset}: row ")


def test_another_template_is_found(built: Built, root: Path) -> None:
    """The manifest says what the builder did not do: tokens differ, activations fit the tokens."""
    manifest = json.loads((root / MANIFEST).read_bytes())
    manifest["stages"][1]["template"] = "User: {instruction}\nAssistant:"
    (root / MANIFEST).write_text(json.dumps(manifest))
    report = deep(built, root)
    assert {fault.path for fault in report.faults} == {TOKENS}
    assert [fault.problem.split(":")[0] for fault in report.faults] == ["harmful", "harmless"]
    assert all("was rendered as another text" in fault.problem for fault in report.faults)


def permuted(table: pl.DataFrame) -> pl.DataFrame:
    return table.reverse().with_columns(neuron=table["neuron"])


def other_convention(table: pl.DataFrame) -> pl.DataFrame:
    return table.with_columns(logit_variance_folded=pl.col("logit_variance_raw"))


def wider_null_space(table: pl.DataFrame) -> pl.DataFrame:
    return table.with_columns(null_space_fraction=pl.col("null_space_fraction").sqrt())


@pytest.mark.parametrize(
    ("change", "column"),
    [
        (permuted, "norm"),
        (other_convention, "logit_variance_folded"),
        (wider_null_space, "null_space_fraction"),
    ],
)
def test_statistics_of_other_neurons_are_found(
    built: Built, root: Path, change: Callable[[pl.DataFrame], pl.DataFrame], column: str
) -> None:
    path = f"weights/{STAGE}/neurons.parquet"
    edit_table(root, path, change)
    problems = found(built, root)
    assert set(problems) == {path}
    assert problems[path].startswith(f"{column} deviates by")


def test_another_unembedding_is_found(built: Built, root: Path) -> None:
    path = f"weights/{STAGE}/unembedding.safetensors"
    held = {name: np.array(array) for name, array in read_tensors(root / path).items()}
    held["mean_row"] *= 1.01
    about = described(root / path)
    (root / path).write_bytes(tensor_bytes(held, about))
    sign(root, path)
    assert found(built, root)[path].startswith("mean_row deviates by 0.01")


def test_what_is_known_to_be_at_fault_is_left_out(built: Built, root: Path) -> None:
    data = bytearray((root / PLACE).read_bytes())
    data[-1] ^= 1
    (root / PLACE).write_bytes(data)
    artifact = load(root)
    faults = verify(artifact)
    assert [fault.path for fault in faults] == [PLACE]
    folders = dict.fromkeys(artifact.stages, built.family.model)
    assert verify_deep(artifact, folders=folders, faults=faults, device="cpu").faults == []


# What cannot be had


def test_stages_that_cannot_be_opened_are_said_and_the_others_checked(
    built: Built, root: Path
) -> None:
    put_values(root, PLACE, scaled(root))
    report = deep(built, root, folders={STAGE: built.family.model})
    assert [fault.path for fault in report.faults] == [PLACE]
    (line,) = report.skipped
    assert "stage 'base' was not recomputed" in line
    assert "say where it is" in line


def test_other_weights_are_a_fault(built: Built, root: Path, tmp_path: Path) -> None:
    manifest = json.loads((root / MANIFEST).read_bytes())
    manifest["stages"][0]["sha256"] = dict.fromkeys(manifest["stages"][0]["sha256"], "0" * 64)
    (root / MANIFEST).write_text(json.dumps(manifest))
    assert "weights of" in found(built, root)[MANIFEST]


@pytest.mark.parametrize(
    ("options", "error"),
    [({"rows": 0}, DataError), ({"folders": {"basic": "."}}, UnknownNameError)],
)
def test_what_cannot_be_asked_for(
    built: Built, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        verify_deep(load(built.root), **options)


def test_without_torch_there_is_a_command_to_install_it(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_is_installed", lambda package: package != "torch")
    with pytest.raises(PrerequisiteError, match="pip install"):
        verify_deep(load(built.root))
    result = run("verify", built.root, "--deep")
    assert result.exit_code == 2
    assert "pip install 'ptmech[live]'" in result.stderr
    assert result.stdout == ""


# The command


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli.create_app(), [str(argument) for argument in arguments])


@cache
def folders_of(model: Path) -> Sequence[str]:
    return ("--folder", f"base={model}", "--folder", f"tuned={model}")


def test_the_command_says_how_much_it_recomputed(built: Built) -> None:
    where = folders_of(built.family.model)
    result = run("verify", built.root, "--deep", "--rows", 1, "--device", "cpu", *where)
    assert result.exit_code == 0, result.stderr
    ok, recomputed, *unchecked = result.stdout.splitlines()
    assert unchecked == deep(built, built.root, rows=1).unchecked
    assert ok.startswith("ok: ")
    assert recomputed.startswith("recomputed: 8 rows, 60 files")
    assert "worst deviation" in recomputed
    result = run("verify", built.root, "--deep", "--device", "cpu", *where, "--json")
    payload = json.loads(result.stdout)
    assert payload["ok"]
    assert payload["recomputed"]["rows"] == 16
    assert payload["skipped"] == []


def test_the_command_exits_with_2_where_a_model_cannot_be_had(built: Built) -> None:
    result = run("verify", built.root, "--deep", "--device", "cpu")
    assert result.exit_code == 2
    assert result.stdout.startswith("ok: ")
    assert result.stderr.count("\n") == 2
    assert result.stderr.startswith("ptmech: stage 'base' was not recomputed")


def test_the_command_exits_with_3_where_a_number_is_wrong(built: Built, root: Path) -> None:
    put_values(root, PLACE, scaled(root))
    options = ("--deep", "--device", "cpu", "--folder", f"tuned={built.family.model}")
    result = run("verify", root, *options)
    assert result.exit_code == 3
    fault, recomputed, *left_out = result.stdout.splitlines()
    assert fault.startswith(f"{PLACE}: row ")
    assert recomputed.startswith("recomputed: ")
    assert all(line.startswith("not recomputed: ") for line in left_out)
    assert "stage 'base' was not recomputed" in result.stderr


def test_an_adapter_that_is_not_part_of_the_artifact_may_be_named(built: Built, root: Path) -> None:
    manifest = json.loads((root / MANIFEST).read_bytes())
    kept = [e for e in manifest["extras"] if not e["path"].startswith("adapters/")]
    (root / MANIFEST).write_text(json.dumps({**manifest, "extras": kept}))
    (line,) = deep(built, root, rows=1).skipped
    assert "stage 'tuned' was not recomputed: the adapter" in line
    report = deep(built, root, rows=1, adapters={STAGE: built.family.adapter})
    assert (report.faults, report.skipped) == ([], [])


@pytest.mark.parametrize("given", ["base", "=x", "base=", "base=a --folder base=b"])
def test_folders_are_named_by_their_stage(built: Built, given: str) -> None:
    result = run("verify", built.root, "--deep", "--folder", *given.split())
    assert result.exit_code == 2
    assert "each stage once, as STAGE=FOLDER" in result.stderr


@pytest.mark.demo
@pytest.mark.slow
def test_the_demo_is_what_its_models_compute() -> None:
    root = Path(__file__).parents[2] / "artifacts/demo"
    if not (root / MANIFEST).is_file():
        pytest.skip("the demo artifact is not built: make demo")
    report = verify_deep(load(root), rows=1, device="cpu")
    assert (report.faults, report.skipped) == ([], [])
    assert report.rows == 32
    assert report.worst < 1e-4
