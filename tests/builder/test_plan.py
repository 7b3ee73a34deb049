"""Plans: keys that change exactly when content may, and what cannot work refused beforehand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tests.tiny import (
    Family,
    Recipe,
    plan_of,
    save_adapter,
    save_model,
    tiny_family,
    write_card,
    write_dataset,
)

import ptmech_builder.plan
from ptmech.errors import CardError, DataError
from ptmech_builder.plan import Plan
from ptmech_builder.plan_summary import packing_lines
from ptmech_builder.table_units import TableUnit

DATASETS = ("capitals", "colours", "harmful", "harmless")
STAGES = ("base", "tuned")


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return tiny_family(tmp_path_factory)


@pytest.fixture
def recipe(family: Family, tmp_path: Path) -> Recipe:
    """A card of this test's own, with its datasets beside it in ``tmp_path/card``."""
    return family.recipe(tmp_path / "card")


def card_in(tmp_path: Path, recipe: Recipe) -> Path:
    return write_card(tmp_path / "card", recipe)


def keys(plan: Plan) -> dict[str, str]:
    return {unit.name: unit.key for unit in plan.units}


# Keys ------------------------------------------------------------------------------------------

Change = Callable[[Recipe, Path], None]


def set_extraction(**entries: Any) -> Change:
    return lambda recipe, _folder: recipe["extraction"].update(entries)


def rewrite(name: str, change: Callable[[list[dict[str, Any]]], None]) -> Change:
    """Change the rows of a dataset, and its digest in the card."""

    def apply(recipe: Recipe, folder: Path) -> None:
        entry = next(entry for entry in recipe["datasets"] if entry["name"] == name)
        rows = pl.read_csv(folder / f"{name}.csv").to_dicts()
        change(rows)
        entry.update(write_dataset(folder, name, rows))

    return apply


def other_adapter(recipe: Recipe, folder: Path) -> None:
    model = Path(recipe["stages"][1]["model"]["path"])
    recipe["stages"][1]["adapter"] = str(save_adapter(folder / "other", model, seed=5))


def other_tokenizer(recipe: Recipe, folder: Path) -> None:
    """The same weights in a folder of the same name, and a tokenizer that decodes differently."""
    model = save_model(folder / "model")
    path = model / "tokenizer.json"
    described = json.loads(path.read_text())
    described["decoder"] = {"type": "Fuse"}
    path.write_text(json.dumps(described))
    recipe["stages"][1]["model"]["path"] = str(model)


def set_entry(*steps: Any, value: Any) -> Change:
    def apply(recipe: Recipe, folder: Path) -> None:
        target: Any = recipe
        for step in steps[:-1]:
            target = target[step]
        target[steps[-1]] = value

    return apply


def dataset_positions(recipe: Recipe, folder: Path) -> None:
    recipe["datasets"][2]["positions"] = [-2, -1]


ACTS_TUNED = {f"acts.tuned.{name}.00000" for name in DATASETS}
ACTS_BASE = {f"acts.base.{name}.00000" for name in DATASETS}
SCORES = {"scores.base", "scores.tuned"}
CANDIDATES = {"scores.base.candidates", "scores.tuned.candidates"}
TRACES = {f"traces.{a}-{b}.capitals" for a in STAGES for b in STAGES}
WEIGHTS = {"weights.base", "weights.tuned"}
STATEMENTS = {"tables.statements"}
PLAIN_TEXT = {"tables.plain_text"}
ADAPTER = {"adapter.tuned"}
TOKENS = {"tables.tokens.base", "tables.tokens.tuned"}

CHANGES: dict[str, tuple[Change, set[str]]] = {
    "nothing": (lambda _recipe, _folder: None, set()),
    "words only": (set_entry("title", value="Another title"), set()),
    "adapter": (
        other_adapter,
        ACTS_TUNED
        | {"adapter.tuned", "weights.tuned", "scores.tuned.candidates"}
        | SCORES
        | TRACES,
    ),
    "text of a row": (
        rewrite("colours", lambda rows: rows[0].update(text="Snow is snow-white.")),
        {"acts.base.colours.00000", "acts.tuned.colours.00000"} | STATEMENTS | TOKENS,
    ),
    "id of a row": (
        rewrite("colours", lambda rows: rows[0].update(source_id="snow")),
        {"acts.base.colours.00000", "acts.tuned.colours.00000"} | STATEMENTS | TOKENS,
    ),
    "label of a row": (
        rewrite("colours", lambda rows: rows[0].update(label=0)), STATEMENTS,
    ),
    "subject of a traced row": (
        rewrite("capitals", lambda rows: rows[0].update(subject="city of Rome")),
        STATEMENTS | TRACES,
    ),
    "a training row becomes one for validation": (
        rewrite("harmful", lambda rows: rows[0].update(split="validation")),
        STATEMENTS | SCORES | CANDIDATES,
    ),
    "compute type": (
        set_extraction(compute_dtype="bfloat16"),
        ACTS_BASE | ACTS_TUNED | SCORES | CANDIDATES | TRACES | WEIGHTS,
    ),
    "stored type": (
        set_extraction(dtype="bfloat16"),
        ACTS_BASE | ACTS_TUNED | SCORES | CANDIDATES,
    ),
    "packing": (
        set_extraction(packing="batches"),
        {"acts.base.capitals.00000", "acts.tuned.capitals.00000"},  # the others run so anyway
    ),
    "tokens of a forward": (
        set_extraction(tokens_per_batch=128), ACTS_BASE | ACTS_TUNED | SCORES | CANDIDATES,
    ),
    "sites": (
        set_extraction(sites=["resid_pre", "resid_post"]),
        ACTS_BASE | ACTS_TUNED | SCORES | CANDIDATES,
    ),
    "positions": (
        dataset_positions,
        {"acts.base.harmful.00000", "acts.tuned.harmful.00000"} | SCORES | CANDIDATES | TOKENS,
    ),
    "layer of the direction": (set_entry("refusal", "layer", value=1), SCORES),
    "position of the direction": (set_entry("refusal", "position", value=-1), SCORES),
    "length of completions": (set_entry("refusal", "max_new_tokens", value=4), SCORES),
    "lengths of the directions": (set_entry("refusal", "scales", value=[1.0]), SCORES),
    "directions of length one": (set_entry("refusal", "unit_length", value=True), SCORES),
    "sites of the addition": (set_entry("refusal", "sites", value=["resid_post"]), SCORES),
    "a place of a stage's own": (
        set_entry("refusal", "stages", value={"tuned": {"position": -3}}), SCORES,
    ),
    "defaults said aloud": (
        lambda recipe, _folder: recipe["refusal"].update(
            unit_length=False, sites=["resid_pre"], stages={}
        ),
        set(),
    ),
    "an option that no template reads": (
        set_entry("stages", 1, "template_options", value={"date_string": "1 May"}), set(),
    ),
    "a beginning that is there": (set_entry("stages", 1, "add_beginning", value=True), set()),
    "layers of the candidates": (
        set_entry("refusal", "candidates", "layers", value=[1]), CANDIDATES,
    ),
    "prompts of the candidates": (
        set_entry("refusal", "candidates", "prompts", value=1), CANDIDATES,
    ),
    "texts": (set_entry("refusal", "scored_texts", value=2), SCORES | PLAIN_TEXT),
    "null space": (set_entry("weights", "null_space_k", value=4), WEIGHTS),
    "seed of the pairs": (set_entry("traces", 0, "seed", value=3), TRACES),
    "template of a stage": (
        set_entry("stages", 1, "template", value="User: {instruction}\nAssistant:"),
        {"acts.tuned.harmful.00000", "acts.tuned.harmless.00000", "tables.tokens.tuned"}
        | {"scores.tuned.candidates"}
        | SCORES,
    ),
    "decoder of a tokenizer": (
        other_tokenizer,
        ACTS_TUNED | SCORES | {"scores.tuned.candidates"} | TRACES,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_a_key_changes_when_and_only_when_its_content_may(
    recipe: Recipe, tmp_path: Path, what: str
) -> None:
    change, expected = CHANGES[what]
    recipe["traces"] = [{"dataset": "capitals", "pairs": 2, "seed": 0}]
    before = keys(plan_of(card_in(tmp_path, recipe)))
    made = STATEMENTS | TOKENS | PLAIN_TEXT | ADAPTER | ACTS_BASE | ACTS_TUNED
    assert set(before) == made | SCORES | CANDIDATES | TRACES | WEIGHTS
    change(recipe, tmp_path / "card")
    after = keys(plan_of(card_in(tmp_path, recipe)))
    changed = {name for name in before if before[name] != after.get(name)}
    assert changed == expected


def test_plain_text_decides_scores(recipe: Recipe, tmp_path: Path) -> None:
    before = keys(plan_of(card_in(tmp_path, recipe)))
    (tmp_path / "card" / "plain.csv").write_text("text\nSomething else.\n")
    after = keys(plan_of(card_in(tmp_path, recipe)))
    assert {name for name in before if before[name] != after[name]} == SCORES | PLAIN_TEXT


# Plans -----------------------------------------------------------------------------------------


def test_rows_run_as_trees_where_that_is_cheaper(recipe: Recipe, tmp_path: Path) -> None:
    plan = plan_of(card_in(tmp_path, recipe))
    for unit in plan.blocks:
        choice = plan.choices[unit.name]
        assert unit.packing == choice.packing
        assert choice.packing == ("tree" if choice.ratio < 0.95 else "batches")
    found = {unit.prompts.dataset: unit.packing for unit in plan.blocks}
    assert found["capitals"] == "tree"


@pytest.mark.parametrize("packing", ["tree", "batches"])
def test_a_card_may_say_how_rows_run(recipe: Recipe, tmp_path: Path, packing: str) -> None:
    recipe["extraction"]["packing"] = packing
    plan = plan_of(card_in(tmp_path, recipe))
    assert {unit.packing for unit in plan.blocks} == {packing}
    assert {choice.why for choice in plan.choices.values()} == {"the card says so"}


def test_a_model_without_trees_runs_batches_and_says_why(recipe: Recipe, tmp_path: Path) -> None:
    config = Path(recipe["stages"][0]["model"]["path"]) / "config.json"
    described = json.loads(config.read_text())
    model = save_model(tmp_path / "model")
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    (model / "config.json").write_text(json.dumps({**described, "rope_parameters": rope}))
    recipe["stages"][0]["model"]["path"] = str(model)
    plan = plan_of(card_in(tmp_path, recipe))
    assert {unit.packing for unit in plan.blocks if unit.stage == "base"} == {"batches"}
    assert "tree" in {unit.packing for unit in plan.blocks if unit.stage == "tuned"}
    assert "dynamic" in plan.choices["acts.base.capitals.00000"].why
    assert [line for line in packing_lines(plan) if line.startswith("no trees for base: ")]
    recipe["extraction"]["packing"] = "tree"
    with pytest.raises(CardError, match=r"stage 'base' cannot run: .*dynamic.*'auto'") as caught:
        plan_of(card_in(tmp_path, recipe))
    assert "\n" not in str(caught.value)


def test_stages_of_other_shapes_are_no_family(recipe: Recipe, tmp_path: Path) -> None:
    from transformers import LlamaConfig

    other = save_model(tmp_path / "model")
    config = LlamaConfig.from_pretrained(other)
    config.num_hidden_layers = 2
    config.save_pretrained(other)
    recipe["stages"][1] = {"name": "tuned", "title": "Tuned", "model": {"path": str(other)}}
    with pytest.raises(CardError, match="base 3x16, tuned 2x16"):
        plan_of(card_in(tmp_path, recipe))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_entry("refusal", "layer", value=3), r"refusal\.layer = 3.* 0\.\.2"),
        (set_entry("truth", "layer", value=7), r"truth\.layer = 7.* 0\.\.2"),
        (set_entry("weights", "null_space_k", value=16), "null_space_k = 16"),
        (set_entry("refusal", "position", value=-4), "-4"),
        (set_entry("refusal", "scales", value=[1.0, 1.0]), "repeats"),
        (set_entry("refusal", "sites", value=["resid_mid", "resid_mid"]), "repeats"),
        (set_entry("refusal", "stages", value={"tunde": {"scale": 2.0}}), "mean 'tuned'"),
        (set_entry("refusal", "stages", value={"base": {"position": -4}}), "-4"),
        (
            set_entry("refusal", "stages", value={"base": {"layer": 3}}),
            r"refusal\.stages\.base\.layer = 3",
        ),
        (set_entry("refusal", "candidates", "layers", value=[1, 5]), r"candidates\.layers = 5"),
        (
            rewrite("harmful", lambda rows: [row.update(split=row["split"][:5]) for row in rows]),
            "'validation' in 'harmful'",
        ),
        (set_entry("datasets", 3, "positions", value=[-1]), "harmless"),
        (set_entry("refusal", "harmless", value="colours"), "colours"),
        (set_entry("truth", "datasets", value=["harmful"]), "harmful"),
        (set_entry("extraction", "sites", value=["resid_pre", "mlp_out"]), "resid_post"),
        (
            rewrite("harmless", lambda rows: [row.update(split="train") for row in rows]),
            "'test' in 'harmless'",
        ),
        (set_entry("traces", value=[{"dataset": "harmful"}]), "harmful"),
        (set_entry("traces", value=[{"dataset": "colours"}]), "subject"),
    ],
    ids=[
        "refusal layer", "truth layer", "null space", "position of neither",
        "equal scales", "equal sites", "no such stage", "own position", "own layer",
        "candidate layer", "no validation rows", "position of one",
        "statements as instructions", "instructions as statements", "site not stored",
        "no test rows", "tracing instructions", "tracing without subjects",
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_anything_runs(
    recipe: Recipe, tmp_path: Path, change: Change, message: str
) -> None:
    change(recipe, tmp_path / "card")
    with pytest.raises((CardError, DataError), match=message) as caught:
        plan_of(card_in(tmp_path, recipe))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [b"", b"words\nHello.\n", b"text\n", b"text\nHello.\n\xff\n"],
    ids=["empty", "no column", "no rows", "not UTF-8"],
)
def test_plain_text_that_is_none_is_refused_before_anything_runs(
    recipe: Recipe, tmp_path: Path, data: bytes
) -> None:
    (tmp_path / "card" / "plain.csv").write_bytes(data)
    with pytest.raises((CardError, DataError), match=r"plain\.csv|plain text") as caught:
        plan_of(card_in(tmp_path, recipe))
    assert "\n" not in str(caught.value)


def test_plain_text_may_look_like_numbers(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "card" / "plain.csv").write_bytes(b"text\n1234567\n7654321\n")
    units = plan_of(card_in(tmp_path, recipe)).units
    [table] = [unit for unit in units if unit.name == "tables.plain_text"]
    assert isinstance(table, TableUnit)
    assert table.frame["text"].to_list() == ["1234567", "7654321"]


def test_models_are_found_from_the_card_s_folder(
    recipe: Recipe, family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "card" / "weights").symlink_to(family.model)
    recipe["stages"][0]["model"]["path"] = "weights"
    monkeypatch.chdir(tmp_path)
    assert len(plan_of(card_in(tmp_path, recipe)).stages) == 2


def test_more_rows_than_can_be_read_are_refused_before_a_model_runs(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ptmech_builder.plan, "MAX_ROWS", 40)
    with pytest.raises(DataError, match="46 rows are more than one artifact holds, 40"):
        plan_of(card_in(tmp_path, recipe))
