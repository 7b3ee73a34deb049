"""Whole builds: the same bytes every time, nothing twice, nothing stale, nothing half there."""

from __future__ import annotations

import copy
import json
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import polars as pl
import pytest
import torch
from tests.tiny import (
    D_MODEL,
    N_LAYERS,
    Built,
    Family,
    Recipe,
    build,
    capitals,
    colours,
    digests,
    plan_of,
    save_adapter,
    tiny_build,
    tiny_family,
    write_card,
    write_dataset,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

import ptmech_builder.build
import ptmech_builder.making
import ptmech_builder.receipts
from ptmech import load
from ptmech.errors import (
    ArtifactNotFoundError,
    BusyError,
    DataError,
    ParityError,
    UnknownNameError,
)
from ptmech.live.models.gguf import quiet_transformers
from ptmech.verify import verify
from ptmech_builder.activation_units import ActivationUnit
from ptmech_builder.build import BuildReport, run
from ptmech_builder.builders import at_work
from ptmech_builder.progress import Progress
from ptmech_builder.units import Unit
from ptmech_builder.workbench import Workbench
from ptmech_builder.writer import Writer

DATASETS = ("capitals", "colours", "harmful", "harmless")
STAGES = ("base", "tuned")
ROWS = {"capitals": 12, "colours": 10, "harmful": 12, "harmless": 12}


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return tiny_family(tmp_path_factory)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return tiny_build(tmp_path_factory)


@pytest.fixture
def recipe(family: Family, tmp_path: Path) -> Recipe:
    """A card of this test's own, with its datasets beside it in ``tmp_path/card``."""
    return family.recipe(tmp_path / "card")


def small(recipe: Recipe) -> Recipe:
    """One dataset, no scores: a build of a blink."""
    recipe = {**recipe, "datasets": recipe["datasets"][:1], "truth": {"layer": 1}}
    del recipe["refusal"]
    return recipe


def card_in(tmp_path: Path, recipe: Recipe, name: str = "card") -> Path:
    return write_card(tmp_path / "card", recipe, name)


def stand(root: Path) -> dict[str, tuple[int, int]]:
    """Modification time and inode of every file, the work folder included."""
    return {
        path.relative_to(root).as_posix(): (path.stat().st_mtime_ns, path.stat().st_ino)
        for path in root.rglob("*")
        if path.is_file()
    }


# Oracles ---------------------------------------------------------------------------------------


def merged_state(family: Family) -> dict[str, torch.Tensor]:
    """The later stage's weights: W + (alpha / rank) B A, written out."""
    from safetensors.torch import load_file

    state = load_file(family.model / "model.safetensors")
    adapter = load_file(family.adapter / "adapter_model.safetensors")
    settings = json.loads((family.adapter / "adapter_config.json").read_text())
    for name, low in adapter.items():
        if ".lora_A." not in name:
            continue
        module = name.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight")
        high = adapter[name.replace("lora_A", "lora_B")]
        state[module] = state[module] + settings["lora_alpha"] / settings["r"] * (high @ low)
    return state


@pytest.fixture(scope="session")
def oracle(family: Family) -> Callable[[str, str, str, int], dict[tuple[str, int], np.ndarray]]:
    """Activations of one row from one plain forward: (stage, kind, text, position)."""
    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(family.model)
        models = {stage: AutoModelForCausalLM.from_pretrained(family.model) for stage in STAGES}
    models["tuned"].load_state_dict(merged_state(family), strict=False)

    def activations(
        stage: str, kind: str, text: str, position: int
    ) -> dict[tuple[str, int], np.ndarray]:
        if kind == "statements":
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
        else:
            ids = tokenizer.apply_chat_template(
                [{"role": "user", "content": text}],
                add_generation_prompt=True,
                return_tensors="pt",
                return_dict=True,
            )["input_ids"]
        kept: dict[tuple[str, int], np.ndarray] = {}
        handles = []
        for layer, block in enumerate(models[stage].model.layers):

            def keep(_m: Any, args: Any, output: Any, key: tuple[str, int]) -> None:
                kept[key] = output[0, position].detach().numpy().copy()

            def keep_input(_m: Any, args: Any, key: tuple[str, int]) -> None:
                kept[key] = args[0][0, position].detach().numpy().copy()

            handles += [
                block.register_forward_hook(
                    lambda m, a, o, layer=layer: keep(m, a, o, ("resid_post", layer))
                ),
                block.mlp.register_forward_hook(
                    lambda m, a, o, layer=layer: keep(m, a, o, ("mlp_out", layer))
                ),
                block.register_forward_pre_hook(
                    lambda m, a, layer=layer: keep_input(m, a, ("resid_pre", layer))
                ),
            ]
        with torch.no_grad():
            models[stage](ids, use_cache=False)
        for handle in handles:
            handle.remove()
        return kept

    return activations


def assert_rows_equal(root: Path, oracle: Any, *, positions: tuple[int, ...]) -> None:
    """Compare every stored number of a dataset and stage with a plain forward."""
    artifact = load(root)
    for stage in artifact.stages:
        for dataset in artifact.manifest.datasets:
            rows = artifact.statements(dataset.name)
            for position in positions if dataset.kind == "instructions" else (-1,):
                expected = [oracle(stage, dataset.kind, text, position) for text in rows["text"]]
                for site in ("resid_pre", "resid_post", "mlp_out"):
                    for layer in artifact.layers(site):
                        found = artifact.activations(
                            dataset.name, stage, site=site, layer=layer, position=position
                        )
                        plain = np.stack([row[site, layer] for row in expected])
                        np.testing.assert_allclose(
                            found, plain, rtol=0, atol=1e-5 * np.abs(plain).max()
                        )


# The artifact ----------------------------------------------------------------------------------


def test_every_number_equals_a_plain_forward(built: Built, oracle: Any) -> None:
    assert_rows_equal(built.root, oracle, positions=(-3, -1))


def test_the_manifest_accounts_for_every_file(built: Built) -> None:
    there = digests(built.root)
    manifest = json.loads((built.root / "manifest.json").read_text())
    listed = {entry["path"]: entry for entry in [*manifest["parts"], *manifest["extras"]]}
    for part in manifest["parts"]:
        files = json.loads((built.root / part["path"]).read_text())["files"]
        listed |= {entry["path"]: entry for entry in files}
        assert part["data_bytes"] == sum(entry["bytes"] for entry in files)
    assert {*listed, "manifest.json"} == set(there)
    for path, entry in listed.items():
        assert entry["sha256"] == there[path]
        assert entry["bytes"] == (built.root / path).stat().st_size
    assert built.report.manifest.total_bytes == sum(entry["bytes"] for entry in listed.values())


def test_the_manifest_tells_what_was_built(built: Built) -> None:
    manifest = load(built.root).manifest
    assert [stage.name for stage in manifest.stages] == list(STAGES)
    for stage in manifest.stages:
        assert (stage.n_layers, stage.d_model, stage.d_mlp) == (N_LAYERS, D_MODEL, 24)
        assert stage.architecture == "llama"
        assert stage.vocabulary == 260
    base, tuned = manifest.stages
    assert set(tuned.sha256) - set(base.sha256) == {
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
    }
    assert {d.name: d.rows for d in manifest.datasets} == ROWS
    assert dict(manifest.sites) == {
        "resid_pre": (0,),
        "resid_post": (0, 1, 2),
        "mlp_out": (0, 1, 2),
    }
    assert manifest.defaults.truth_layer == 1
    assert manifest.defaults.refusal_position == -2
    assert manifest.parity is not None
    assert 0 < manifest.parity.worst <= 1e-5
    # Three rows a part, and one that shares its beginning with another unless it is one of them.
    parts = len(STAGES) * len(DATASETS)
    assert 3 * parts < manifest.parity.rows <= 4 * parts


def test_no_path_of_the_building_machine_is_given_away(
    built: Built, tmp_path_factory: pytest.TempPathFactory
) -> None:
    here = str(tmp_path_factory.getbasetemp()).encode()
    home = str(Path.home()).encode()
    for path in built.root.rglob("*"):
        if path.is_file() and ".build" not in path.parts:
            data = path.read_bytes()
            assert here not in data, path
            assert len(home) < 3 or home not in data, path


def test_the_tables_hold_every_row_once(built: Built) -> None:
    statements = pl.read_parquet(built.root / "tables" / "statements.parquet")
    assert statements.height == sum(ROWS.values())
    assert statements["row_uid"].n_unique() == statements.height
    given = [row["text"] for row in (*capitals(), *colours())]
    assert statements["text"].to_list()[: len(given)] == given
    for stage in STAGES:
        tokens = pl.read_parquet(built.root / "tables" / "tokens" / f"{stage}.parquet")
        assert tokens["row_uid"].equals(statements["row_uid"])
        lengths = tokens["token_ids"].list.len()
        for dataset, positions in (("capitals", [-1]), ("harmless", [-3, -2, -1])):
            of_dataset = tokens["dataset"] == dataset
            expected = [[n + p for p in positions] for n in lengths.filter(of_dataset)]
            assert tokens["positions"].filter(of_dataset).to_list() == expected


def test_scores_cover_every_condition(built: Built) -> None:
    for stage, other in (STAGES, STAGES[::-1]):
        scores = pl.read_parquet(built.root / "scores" / stage / "refusal.parquet")
        found = set(scores.select("prompts", "intervention", "direction_stage").iter_rows())
        assert found == {
            ("harmful", "none", None),
            ("harmless", "none", None),
            *(("harmful", "ablate", of) for of in (stage, other, None)),
            *(("harmless", "add", of) for of in (stage, other, None)),
        }
        assert set(scores["n"]) == {3}
        completions = pl.read_parquet(built.root / "scores" / stage / "completions.parquet")
        assert completions.height == 3 * scores.height
        statements = pl.read_parquet(built.root / "tables" / "statements.parquet")
        split = dict(statements.select("row_uid", "split").iter_rows())
        assert {split[uid] for uid in completions["row_uid"]} == {"test"}


def test_directions_are_mean_differences_of_training_rows_at_the_position(
    recipe: Recipe, tmp_path: Path, oracle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Other positions in either set: their places among the stored ones differ.
    harmless = next(d for d in recipe["datasets"] if d["name"] == "harmless")
    harmless["positions"] = [-1, -2]
    given: dict[str, dict[str, np.ndarray]] = {}

    import ptmech.live.effects.refusal

    whole = ptmech.live.effects.refusal.refusal_effects

    def noted(*args: Any, stage: str, directions: Any, **rest: Any) -> Any:
        given[stage] = dict(directions)
        return whole(*args, stage=stage, directions=directions, **rest)

    monkeypatch.setattr(ptmech.live.effects.refusal, "refusal_effects", noted)
    root = tmp_path / "artifact"
    build(card_in(tmp_path, recipe), root)
    statements = load(root).statements()
    for stage in STAGES:
        mean = {
            kind: np.mean(
                [
                    oracle(stage, "instructions", text, -2)["resid_pre", 2]
                    for text in statements.filter(dataset=kind, split="train")["text"]
                ],
                axis=0,
            )
            for kind in ("harmful", "harmless")
        }
        expected = mean["harmful"] - mean["harmless"]
        for scored in STAGES:
            np.testing.assert_allclose(given[scored][stage], expected, atol=1e-4)


def test_rows_of_two_stages_are_aligned(built: Built) -> None:
    artifact = load(built.root)
    for dataset in DATASETS:
        earlier, later = artifact.pair("base", "tuned").activations(dataset, layer=0, position=-1)
        assert earlier.shape == later.shape == (ROWS[dataset], D_MODEL)
        # The adapter moves every row a little: each is nearest to itself, none is the same.
        distances = np.linalg.norm(earlier[:, None] - later[None], axis=-1)
        assert (distances.argmin(axis=1) == np.arange(ROWS[dataset])).mean() > 0.6
        assert distances.diagonal().min() > 0


# The same bytes --------------------------------------------------------------------------------


def test_two_builds_are_equal_to_the_byte(built: Built, tmp_path: Path) -> None:
    build(built.card, tmp_path / "again")
    assert digests(tmp_path / "again") == digests(built.root)


def test_several_blocks_hold_the_same_rows(
    built: Built, recipe: Recipe, tmp_path: Path, oracle: Any
) -> None:
    recipe["extraction"]["rows_per_block"] = 5
    root = tmp_path / "artifact"
    report = build(card_in(tmp_path, recipe), root)
    assert (root / "acts/base/capitals/resid_post/L00.00002-of-00003.safetensors").is_file()
    one, several = load(built.root), load(root)
    for stage in STAGES:
        for dataset in DATASETS:
            blocks = [file.rows for file in several.part(dataset, stage).files if file.layer == 1]
            assert sorted(set(blocks)) == ([2, 5] if ROWS[dataset] == 12 else [5])
            for layer in range(N_LAYERS):
                np.testing.assert_allclose(
                    several.activations(dataset, stage, layer=layer),
                    one.activations(dataset, stage, layer=layer),
                    atol=1e-4,
                )
    assert_rows_equal(root, oracle, positions=(-2,))
    assert build(card_in(tmp_path, recipe), root).reused == report.done


@pytest.fixture
def no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any, **_kwargs: Any) -> Any:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("ptmech_builder.plan.load_model", refuse)


@pytest.mark.usefixtures("no_models")
def test_a_finished_build_is_left_alone(built: Built) -> None:
    before = stand(built.root)
    report = build(built.card, built.root)
    assert (report.done, report.reused, report.tokens) == (0, built.report.done, 0)
    assert stand(built.root) == before
    assert report.manifest == built.report.manifest


def test_a_lost_file_is_made_again_and_nothing_else(recipe: Recipe, tmp_path: Path) -> None:
    card, root = card_in(tmp_path, small(recipe)), tmp_path / "artifact"
    build(card, root)
    whole, before = digests(root), stand(root)
    (root / "acts/tuned/capitals/mlp_out/L01.safetensors").unlink()
    assert build(card, root).done == 1
    assert digests(root) == whole
    after = stand(root)
    touched = {path for path in after if after[path] != before[path]}
    assert not [path for path in touched if path.startswith(("acts/base", "tables"))]


# Killed builds ---------------------------------------------------------------------------------


class KilledError(BaseException):
    """A build's process ends here."""


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the units that builds begin and finish, in order."""
    names: list[str] = []
    whole = ptmech_builder.making.put_down

    def noted(unit: Unit, *rest: Any) -> Any:
        receipt = whole(unit, *rest)
        names.append(unit.name)
        return receipt

    monkeypatch.setattr(ptmech_builder.making, "put_down", noted)
    return names


def killed_build(card: Path, root: Path, *, puts: int) -> None:
    """Build until this many files are written, and die."""
    whole = Writer.put
    left = [puts]

    def counted(self: Writer, path: str, data: bytes) -> Any:
        if not left[0]:
            raise KilledError
        left[0] -= 1
        return whole(self, path, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Writer, "put", counted)
        with pytest.raises(KilledError):
            build(card, root)


# 4 tables, 7 files of each block, 2 of weights and 3 of scores a stage, 2 of the adapter, 8 parts,
# the manifest: 81 in all.
@pytest.mark.parametrize("puts", [1, 12, 45, 64, 70, 75])
def test_a_killed_build_resumes_where_it_was(
    built: Built, recipe: Recipe, tmp_path: Path, made: list[str], puts: int
) -> None:
    root = tmp_path / "artifact"
    killed_build(built.card, root, puts=puts)
    finished = set(made)
    assert not (root / "manifest.json").exists()
    with pytest.raises(ArtifactNotFoundError, match="has not finished"):
        load(root)
    made.clear()
    report = build(built.card, root)
    assert finished.isdisjoint(made)
    assert report.reused == len(finished)
    assert report.done == len(made) == built.report.done - len(finished)
    assert digests(root) == digests(built.root)
    assert not list((root / ".build" / "tmp").iterdir())


def test_a_rebuild_that_is_killed_leaves_no_manifest_and_no_stale_file(
    recipe: Recipe, family: Family, tmp_path: Path
) -> None:
    before = small(recipe)
    after = copy.deepcopy(before)
    after["stages"][1]["adapter"] = str(save_adapter(tmp_path / "other", family.model, seed=9))
    root = tmp_path / "artifact"
    build(card_in(tmp_path, before), root)
    whole = digests(root)
    killed_build(card_in(tmp_path, after, "after"), root, puts=3)
    assert not (root / "manifest.json").exists()
    assert digests(root) != {k: v for k, v in whole.items() if k != "manifest.json"}
    # The old card again: its files are partly the other adapter's, of the very same sizes.
    build(card_in(tmp_path, before), root)
    assert digests(root) == whole


def test_an_error_in_a_unit_leaves_its_neighbours(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card, root = card_in(tmp_path, small(recipe)), tmp_path / "artifact"
    whole = ActivationUnit.make

    def failing(self: ActivationUnit, bench: Any) -> Any:
        if self.stage == "tuned":
            raise ParityError("made up")
        return whole(self, bench)

    with monkeypatch.context() as patch:
        patch.setattr(ActivationUnit, "make", failing)
        with pytest.raises(ParityError):
            build(card, root)
    assert not (root / "manifest.json").exists()
    assert not (root / "acts" / "tuned").exists()
    report = build(card, root)
    # Activations, adapter and weights of the second stage; the tables and the first stage stand.
    assert (report.done, report.reused) == (3, 5)


def test_activations_that_deviate_are_never_written(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ptmech_builder.extract

    whole = ptmech_builder.extract.extract

    def perturbed(*args: Any, **kwargs: Any) -> Any:
        found = whole(*args, **kwargs)
        found["resid_post", 1][:] *= 1.01
        return found

    monkeypatch.setattr(ptmech_builder.extract, "extract", perturbed)
    with pytest.raises(ParityError, match="resid_post layer 1"):
        build(card_in(tmp_path, small(recipe)), tmp_path / "artifact")
    assert not (tmp_path / "artifact" / "acts").exists()


def test_a_site_that_is_not_what_its_name_says_is_never_written(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ptmech.live.sites

    whole = ptmech.live.sites.find_architecture

    def mistaken(model_type: str) -> Any:
        return replace(whole(model_type), mlp_out="post_attention_layernorm")

    # Batched and unbatched forwards agree on the wrong tensor: only the definition tells.
    monkeypatch.setattr(ptmech.live.sites, "find_architecture", mistaken)
    with pytest.raises(ParityError, match="sites of stage 'base'"):
        build(card_in(tmp_path, small(recipe)), tmp_path / "artifact")
    assert not (tmp_path / "artifact" / "acts").exists()


# Changed recipes -----------------------------------------------------------------------------


def test_what_changed_is_done_again_and_nothing_else(
    recipe: Recipe, tmp_path: Path, made: list[str]
) -> None:
    recipe = {**recipe, "datasets": recipe["datasets"][:2]}
    del recipe["refusal"]
    root = tmp_path / "artifact"
    build(card_in(tmp_path, recipe), root)
    made.clear()
    rows = [dict(row) for row in colours()]
    rows[0]["text"] = "Snow is snow-white."
    recipe["datasets"][1].update(write_dataset(tmp_path / "card", "colours", rows))
    changed = card_in(tmp_path, recipe)
    report = build(changed, root)
    assert report.again == {
        "tables.statements": "content changed",
        "tables.tokens.base": "content changed",
        "tables.tokens.tuned": "content changed",
        "acts.base.colours.00000": "rows changed",
        "acts.tuned.colours.00000": "rows changed",
    }
    assert sorted(made) == [
        "acts.base.colours.00000",
        "acts.tuned.colours.00000",
        "tables.statements",
        "tables.tokens.base",
        "tables.tokens.tuned",
    ]
    build(changed, tmp_path / "fresh")
    assert digests(root) == digests(tmp_path / "fresh")


def test_a_tighter_tolerance_is_not_met_by_an_old_receipt(recipe: Recipe, tmp_path: Path) -> None:
    recipe = small(recipe)
    recipe["extraction"]["tokens_per_batch"] = 4096
    root = tmp_path / "artifact"
    report: BuildReport = build(card_in(tmp_path, recipe), root)
    assert report.manifest.parity is not None
    worst = report.manifest.parity.worst
    assert worst > 0
    recipe["extraction"]["parity_tolerance"] = worst / 2
    with pytest.raises(ParityError):
        build(card_in(tmp_path, recipe), root)


# Narrowed builds -------------------------------------------------------------------------------


def test_a_narrowed_build_holds_what_was_asked_for(built: Built, tmp_path: Path) -> None:
    root = tmp_path / "artifact"
    report = build(built.card, root, stages=("tuned",), datasets=("colours", "harmful"), limit=4)
    artifact = load(root)
    assert artifact.stages == ("tuned",)
    assert artifact.datasets == ("colours", "harmful")
    assert artifact.statements().height == 8
    assert report.manifest.defaults.truth_datasets == ("colours",)
    assert report.manifest.narrowed == (
        "without the stages base; without the datasets capitals, harmless; "
        "at most 4 rows of each dataset"
    )
    whole = load(built.root)
    assert whole.manifest.narrowed == ""
    for dataset in artifact.datasets:
        kept = artifact.statements(dataset)["row_uid"]
        places = whole.statements(dataset)["row_uid"].is_in(kept.to_list()).arg_true().to_list()
        assert len(places) == 4
        np.testing.assert_allclose(
            artifact.activations(dataset, "tuned", layer=2),
            whole.activations(dataset, "tuned", layer=2)[places],
            atol=1e-4,
        )
    # Growing it to the whole gives the bytes of a build that was never narrowed.
    build(built.card, root)
    assert digests(root) == digests(built.root)


def test_narrowing_says_what_it_leaves_out(built: Built) -> None:
    whole = plan_of(built.card)
    assert whole.left_out == ""
    assert {unit.kind for unit in whole.units} == {
        "table",
        "activations",
        "adapter",
        "weights",
        "scores",
    }
    for narrowed in (
        plan_of(built.card, stages=("base",)),
        plan_of(built.card, datasets=("capitals", "harmful")),
        plan_of(built.card, limit=6),
    ):
        assert narrowed.left_out
        assert "scores" not in {unit.kind for unit in narrowed.units}
    without_statements = plan_of(built.card, datasets=("harmful", "harmless"))
    assert without_statements.left_out == ""


def test_a_narrower_element_type_rounds_the_same_numbers(built: Built, tmp_path: Path) -> None:
    root = tmp_path / "artifact"
    build(built.card, root, dtype="bfloat16", datasets=("colours",))
    narrow = load(root)
    assert narrow.manifest.dtype == "bfloat16"
    stored = narrow.activations("colours", "tuned", layer=1, dtype=None)
    assert stored.dtype == ml_dtypes.bfloat16
    precise = load(built.root).activations("colours", "tuned", layer=1)
    bits = precise.view(np.uint32).astype(np.uint64)
    expected = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    np.testing.assert_array_equal(np.asarray(stored).view(np.uint16), expected)


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"stages": ("tuend",)}, "unknown stage 'tuend'; did you mean 'tuned'?"),
        ({"datasets": ("colors",)}, "unknown dataset 'colors'; did you mean 'colours'?"),
    ],
)
def test_an_unknown_selection_is_refused(
    built: Built, selection: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnknownNameError) as caught:
        plan_of(built.card, **selection)
    assert message in str(caught.value)


@pytest.mark.parametrize("selection", [{"stages": ()}, {"datasets": ()}])
def test_an_empty_selection_is_refused(built: Built, selection: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"no (stage|dataset) is named"):
        plan_of(built.card, **selection)


def test_a_plan_promises_what_a_build_delivers(built: Built) -> None:
    units = {unit.name: unit for unit in plan_of(built.card).units}
    there = digests(built.root)
    acts = [unit for unit in units.values() if unit.kind == "activations"]
    tensors = [path for path in there if path.startswith("acts/")]
    assert sum(unit.expected_files for unit in acts) == len(tensors)
    expected = sum(unit.expected_bytes for unit in acts)
    # Only the header of each file comes on top.
    actual = sum((built.root / path).stat().st_size for path in tensors)
    assert 0 < actual - expected < 512 * len(tensors)
    tokens = pl.read_parquet(built.root / "tables" / "tokens" / "base.parquet")
    assert sum(unit.tokens for unit in acts) == 2 * tokens["token_ids"].list.len().sum()
    assert built.report.tokens == sum(unit.tokens for unit in acts)
    parts_and_manifest = len(STAGES) * len(DATASETS) + 1
    assert sum(unit.expected_files for unit in units.values()) == len(there) - parts_and_manifest


# Several builds, and what a build says --------------------------------------------------------


class Listening(Progress):
    """Keeps the lines that a person would see."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


def said(card: Path, root: Path, **selection: Any) -> list[str]:
    progress = Listening()
    run(plan_of(card, **selection), root, progress)
    return progress.lines


def test_a_build_says_what_it_found(recipe: Recipe, tmp_path: Path) -> None:
    card, root = card_in(tmp_path, small(recipe)), tmp_path / "artifact"
    assert said(card, root)[0] == "tiny: 8 units, 0 finished, 0 to make again, 8 new"
    assert said(card, root) == ["tiny: 8 units, 8 finished, 0 to make again, 0 new"]
    assert said(card, root, dtype="bfloat16")[:2] == [
        "tiny: 8 units, 6 finished, 2 to make again, 0 new",
        "to make again (dtype changed): acts.base.capitals.00000, acts.tuned.capitals.00000",
    ]
    (root / "weights" / "base" / "neurons.parquet").unlink()
    (root / ".build" / "receipts" / "adapter.tuned.json").unlink()
    assert said(card, root, dtype="bfloat16")[:2] == [
        "tiny: 8 units, 6 finished, 1 to make again, 1 new",
        "to make again (weights/base/neurons.parquet is missing): weights.base",
    ]


def test_a_damaged_file_is_made_again(recipe: Recipe, tmp_path: Path) -> None:
    card, root = card_in(tmp_path, small(recipe)), tmp_path / "artifact"
    build(card, root)
    whole = digests(root)
    path = root / "acts" / "base" / "capitals" / "resid_post" / "L01.safetensors"
    flip_last_byte(path)
    report = build(card, root)
    assert report.again == {
        "acts.base.capitals.00000": "acts/base/capitals/resid_post/L01.safetensors is damaged"
    }
    assert digests(root) == whole
    before = path.stat()
    flip_last_byte(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert build(card, root).done == 0
    assert run(plan_of(card), root, Progress(quiet=True), recheck=True).done == 1
    assert digests(root) == whole


def flip_last_byte(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read(1)[0]
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last ^ 1]))


def test_a_unit_that_fails_leaves_the_old_artifact_whole(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card, root = card_in(tmp_path, small(recipe)), tmp_path / "artifact"
    build(card, root)
    whole = digests(root)

    def fail(*_args: Any) -> Any:
        raise DataError("no")

    monkeypatch.setattr(ActivationUnit, "make", fail)
    with pytest.raises(DataError):
        build(card, root, dtype="bfloat16")
    assert digests(root) == whole


def test_a_unit_that_another_build_holds_is_put_off_and_then_found_finished(
    recipe: Recipe, tmp_path: Path, made: list[str]
) -> None:
    card, root = card_in(tmp_path, small(recipe)), tmp_path / "artifact"
    build(card, tmp_path / "undisturbed")
    plan = plan_of(card)
    held = "acts.base.capitals.00000"
    made.clear()
    progress = Listening()
    ways = {unit.name: unit.way for unit in plan.units}
    with ThreadPoolExecutor(1) as pool, at_work(root, ways) as other:
        with other.claim(held):
            racing = pool.submit(run, plan, root, progress)
            while not any("waiting" in line for line in progress.lines):
                time.sleep(0.01)
            # Everything that needs nothing of it is done meanwhile.
            assert len(made) == len(plan.units) - 1
            bench = Workbench(plan.loaders(), root, Progress(quiet=True))
            unit = next(unit for unit in plan.units if unit.name == held)
            versions = {package: version(package) for package in ptmech_builder.build.RECORDED}
            writer = Writer(root, other.temporary)
            ptmech_builder.making.put_down(unit, unit.make(bench), writer, other, versions)
            assert not racing.done()
        racing.exception(timeout=60)
    report = racing.result()
    assert (report.done, report.reused, report.elsewhere) == (len(plan.units) - 1, 1, 1)
    assert made.count(held) == 1
    assert digests(root) == digests(tmp_path / "undisturbed")


def test_versions_are_those_that_made_the_units(recipe: Recipe, tmp_path: Path) -> None:
    card, root = card_in(tmp_path, small(recipe)), tmp_path / "artifact"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ptmech_builder.build, "version", lambda package: f"old {package}")
        build(card, root)
    assert load(root).manifest.versions["numpy"] == "old numpy"
    build(card, root)
    assert load(root).manifest.versions["numpy"] == "old numpy"
    build(card, root, dtype="bfloat16")
    assert load(root).manifest.versions["numpy"] == f"{np.__version__}, old numpy"


def test_blocks_that_begin_elsewhere_are_made_again(recipe: Recipe, tmp_path: Path) -> None:
    """The second block holds the very same rows, but as other rows of the dataset."""
    recipe, root = small(recipe), tmp_path / "artifact"
    recipe["extraction"]["rows_per_block"] = 6
    build(card_in(tmp_path, recipe), root)
    one_more = {**capitals()[0], "source_id": "first", "text": "The city of Turin is in Italy."}
    recipe["extraction"]["rows_per_block"] = 7
    recipe["datasets"][0].update(
        write_dataset(tmp_path / "card", "capitals", [one_more, *capitals()])
    )
    build(card_in(tmp_path, recipe), root)
    assert verify(load(root)) == []
    build(card_in(tmp_path, recipe), tmp_path / "fresh")
    manifest = (root / "manifest.json").read_bytes()
    assert manifest == (tmp_path / "fresh" / "manifest.json").read_bytes()


def test_a_file_that_is_lost_meanwhile_is_made_again(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card, root = card_in(tmp_path, small(recipe)), tmp_path / "artifact"
    lost = root / "tables" / "statements.parquet"
    whole, losses = ptmech_builder.making.put_down, []

    def losing(unit: Unit, *args: Any) -> Any:
        receipt = whole(unit, *args)
        if unit.name.startswith("weights") and not losses:
            losses.append(lost.unlink())
        return receipt

    monkeypatch.setattr(ptmech_builder.making, "put_down", losing)
    build(card, root)
    assert losses
    assert verify(load(root)) == []


def test_a_known_damage_takes_the_manifest_away_at_once(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card, root = card_in(tmp_path, small(recipe)), tmp_path / "artifact"
    build(card, root)
    next((root / "acts").rglob("*.safetensors")).unlink()

    def interrupted(*_args: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(ActivationUnit, "make", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(card, root)
    assert not (root / "manifest.json").exists()


def test_a_copied_folder_is_hashed_once(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = card_in(tmp_path, small(recipe))
    build(card, tmp_path / "artifact")
    root = shutil.copytree(tmp_path / "artifact", tmp_path / "copy")
    hashed: list[Path] = []
    whole = ptmech_builder.receipts._digest
    monkeypatch.setattr(
        ptmech_builder.receipts, "_digest", lambda path: (hashed.append(path), whole(path))[1]
    )
    assert build(card, root).done == 0
    assert len(hashed) == len(digests(root)) - len(load(root).manifest.parts) - 1
    hashed.clear()
    assert build(card, root).done == 0
    assert not hashed


def test_two_live_builds_that_ask_for_different_checks_are_refused(
    recipe: Recipe, tmp_path: Path
) -> None:
    recipe, root = small(recipe), tmp_path / "artifact"
    card = card_in(tmp_path, recipe)
    ways = {unit.name: unit.way for unit in plan_of(card).units}
    recipe["extraction"]["parity_rows"] = 6
    stricter = card_in(tmp_path, recipe, "stricter")
    with at_work(root, ways):
        assert build(card, root).done == 8
        with pytest.raises(BusyError, match=r"makes acts\.base\.capitals\.00000 in another way"):
            build(stricter, root)


def test_folders_above_the_artifact_last_too(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: set[Path] = set()
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        flushed.add(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    build(card_in(tmp_path, small(recipe)), tmp_path / "one" / "two" / "artifact")
    assert {tmp_path, tmp_path / "one", tmp_path / "one" / "two"} <= flushed
