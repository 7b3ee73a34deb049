"""Builds of what is not one dense model in one place: experts, quantised weights, device maps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import (
    Built,
    Recipe,
    build,
    byte_tokenizer,
    digests,
    plan_of,
    save_family_model,
    tiny_build,
    write_card,
)
from tests.tiny_models import CONFIGS
from typer.testing import CliRunner

from ptmech import confidence, live, load
from ptmech.cli import create_app
from ptmech.errors import CardError, NotStoredError, UnsupportedModelError
from ptmech_builder.build import run
from ptmech_builder.cards import read_card
from ptmech_builder.plan import Plan, make_plan
from ptmech_builder.progress import Progress
from ptmech_builder.selection import Selection


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return tiny_build(tmp_path_factory)


@pytest.fixture
def recipe(built: Built, tmp_path: Path) -> Recipe:
    """One stage, one dataset of statements, weight statistics."""
    recipe = built.family.recipe(tmp_path / "card")
    for section in ("truth", "refusal"):
        del recipe[section]
    return {**recipe, "stages": recipe["stages"][:1], "datasets": recipe["datasets"][:1]}


def card_in(tmp_path: Path, recipe: Recipe) -> Path:
    return write_card(tmp_path / "card", recipe)


def keys(plan: Plan) -> dict[str, str]:
    return {unit.name: unit.key for unit in plan.units}


@pytest.fixture
def experts(tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """The same of a mixture of experts."""
    tokenizer = byte_tokenizer()
    config = {**CONFIGS["qwen3_moe"], "vocab_size": len(tokenizer), "max_position_embeddings": 256}
    monkeypatch.setitem(CONFIGS, "qwen3_moe", config)
    save_family_model(tmp_path / "experts", "qwen3_moe")
    tokenizer.save_pretrained(tmp_path / "experts")
    recipe["stages"][0]["model"] = {"path": str(tmp_path / "experts")}
    return recipe


def test_of_a_mixture_everything_is_built_but_neurons(tmp_path: Path, experts: Recipe) -> None:
    card, root = card_in(tmp_path, experts), tmp_path / "artifact"
    said = "neuron statistics of base (its last MLP is a mixture of experts)"
    assert plan_of(card).left_out == said
    report = build(card, root)
    artifact = load(root)
    stage = report.manifest.stages[0]
    assert (stage.architecture, stage.d_mlp, stage.n_layers) == ("qwen3_moe", None, 3)
    assert (root / "weights/base/unembedding.safetensors").is_file()
    assert not (root / "weights/base/neurons.parquet").exists()
    with pytest.raises(NotStoredError):
        confidence.candidates(artifact, "base")
    model = live.open(artifact, "base", device="cpu", folder=tmp_path / "experts")
    found = artifact.activations("capitals", "base", layer=1)
    texts = artifact.statements("capitals")["text"].to_list()
    expected = model.activations(texts, layers=1)[:, 0, 0]
    assert abs(found.reshape(expected.shape) - expected.numpy()).max() < 1e-4
    assert build(card, root).done == 0


def test_neurons_that_are_not_there_are_not_ablated(tmp_path: Path, experts: Recipe) -> None:
    experts["confidence"] = {"plain_text": "plain.csv", "candidates": 2, "texts": 2}
    with pytest.raises(CardError, match=r"stage 'base' does not show: .*mixture of experts; leave"):
        plan_of(card_in(tmp_path, experts))


def test_a_card_says_which_weights_are_quantised(tmp_path: Path, recipe: Recipe) -> None:
    model = tmp_path / "model"
    shutil.copytree(recipe["stages"][0]["model"]["path"], model)
    config = json.loads((model / "config.json").read_text())
    about: dict[str, Any] = {"quant_method": "gptq", "bits": 4}
    recipe["stages"][0]["model"] = {"path": str(model)}
    plain = keys(plan_of(card_in(tmp_path, recipe)))

    (model / "config.json").write_text(json.dumps({**config, "quantization_config": about}))
    with pytest.raises(
        UnsupportedModelError,
        match=r"stage 'base' are quantised \(gptq, 4bit\): say quantisation = \"4bit\" in the card",
    ) as caught:
        plan_of(card_in(tmp_path, recipe))
    assert "\n" not in str(caught.value)
    recipe["stages"][0]["quantisation"] = "8bit"
    with pytest.raises(UnsupportedModelError, match="4bit"):
        plan_of(card_in(tmp_path, recipe))

    (model / "config.json").write_text(json.dumps(config))
    plan = plan_of(card_in(tmp_path, recipe))
    assert plan.left_out == "neuron statistics of base (its weights are quantised)"
    eight = keys(plan)
    recipe["stages"][0]["quantisation"] = "4bit"
    four = keys(plan_of(card_in(tmp_path, recipe)))
    for name in plain:
        of_weights = name.startswith(("acts.", "weights."))
        assert len({plain[name], eight[name], four[name]}) == (3 if of_weights else 1), name


def test_a_spread_build_writes_the_same_bytes(tmp_path: Path, recipe: Recipe) -> None:
    card = card_in(tmp_path, recipe)
    build(card, tmp_path / "whole")
    plan = make_plan(read_card(card), Selection(device_map="auto"))
    run(plan, tmp_path / "spread", Progress(quiet=True))
    assert digests(tmp_path / "spread") == digests(tmp_path / "whole")


def test_the_command_line_spreads_and_refuses_in_one_line(tmp_path: Path, recipe: Recipe) -> None:
    card, root = card_in(tmp_path, recipe), tmp_path / "artifact"
    asked = ["build", str(card), "--out", str(root), "--quiet", "--device-map"]
    done = CliRunner().invoke(create_app(), [*asked, "auto"])
    assert done.exit_code == 0, done.output
    assert load(root).stages == ("base",)
    refused = CliRunner().invoke(create_app(), [*asked, "autp"])
    assert refused.exit_code != 0
    assert "did you mean 'auto'" in f"{refused.output}{refused.exception}"
