"""Unit keys: what changes them, and what does not.

The table of dependencies below is written by hand from what each unit computes. A build that reuses
a unit whose content would be another is the worst there is, so every ingredient is changed here,
alone and together with others, down to one byte of a file of weights.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.faults.pretend import Recipe as PretendRecipe
from tests.faults.pretend import pretend_build, pretend_plan
from tests.tiny import (
    CHAT_TEMPLATE,
    Family,
    Recipe,
    capitals,
    colours,
    csv_bytes,
    plan_of,
    save_adapter,
    save_model,
    write_card,
    write_dataset,
)

from ptmech_builder.build import run
from ptmech_builder.plan import Plan
from ptmech_builder.progress import Progress
from ptmech_builder.units import SEMANTICS

STAGES = ("base", "tuned")
DATED = "{% if date_string is defined %}{{ date_string }}{% endif %}" + CHAT_TEMPLATE
"""A chat template with an option of its own."""
BLOCK = 6
"""Rows a block: every dataset has two of them."""
REPOSITORY = Path(__file__).parents[2]

Apply = Callable[[Recipe, Path], None]


# A family whose every file may be changed --------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of each stage and an adapter; never write into it."""
    folder = tmp_path_factory.mktemp("models")
    for number, stage in enumerate(STAGES):
        save_model(folder / stage, seed=number, adds_beginning=False, chat_template=DATED)
    save_adapter(folder / "adapter", folder / "tuned")
    return folder


class World:
    """Copies of the family, each in a folder of its own, each with a card to be changed."""

    def __init__(self, models: Path, folder: Path) -> None:
        self._models = models
        self._folder = folder
        self._numbers = count()

    def plan(self, *changes: Change, name: str = "card") -> Plan:
        """Plan the family with some changes; the files stay where they are."""
        return plan_of(self.card(*changes, name=name))

    def card(self, *changes: Change, name: str = "card") -> Path:
        folder = self._folder / str(next(self._numbers))
        shutil.copytree(self._models, folder)
        recipe = Family(folder / "base", folder / "adapter").recipe(folder)
        rows = [dict(row) for row in colours()]
        rows += [
            {"source_id": f"café-{label}", "text": f"Café noir is {word}.", "label": label}
            for label, word in ((1, "black"), (0, "purple"))
        ]
        recipe["datasets"][1].update(write_dataset(folder, "colours", rows))
        recipe["stages"][0]["model"]["path"] = "base"
        recipe["stages"][1].update(adapter="adapter", model={"path": "tuned"})
        recipe["extraction"]["rows_per_block"] = BLOCK
        recipe["traces"] = [{"dataset": "capitals", "pairs": 2, "seed": 0}]
        recipe["confidence"] = {"plain_text": "plain.csv", "texts": 2}
        recipe["truth"]["intervention"] = {"dataset": "colours", "first_layer": 0, "statements": 4}
        for change in changes:
            change.apply(recipe, folder)
        return write_card(folder, recipe, name)


@pytest.fixture(scope="module")
def world(models: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(models, tmp_path_factory.mktemp("worlds"))


def keys(plan: Plan) -> dict[str, str]:
    return {unit.name: unit.key for unit in plan.units}


# What depends on what --------------------------------------------------------------------------

TABLES = ("tables.*",)
ACTS = ("acts.*",)
SCORES = ("scores.base", "scores.tuned")
CANDIDATES = ("scores.base.candidates", "scores.tuned.candidates")
TRACES = ("traces.*",)
TRUTH = ("truth.*",)
WEIGHTS = ("weights.*",)
NEURONS = ("neurons.*",)
ROWS = ("tables.statements", "tables.tokens.*")


def of_weights(stage: str) -> tuple[str, ...]:
    """A stage's weights decide its activations and statistics, and all that compares stages."""
    return (f"weights.{stage}", *of_tokenizer(stage))


def of_tokenizer(stage: str) -> tuple[str, ...]:
    """So does its tokenizer, but for statistics of weights; words alone change no token table."""
    own = (f"acts.{stage}.*", f"neurons.{stage}", f"scores.{stage}.candidates")
    return (*own, *SCORES, *TRACES, *TRUTH)


def of_instructions(stage: str) -> tuple[str, ...]:
    """How a stage's instructions are put decides refusals, and nothing about statements."""
    own = (f"acts.{stage}.harm*", f"tables.tokens.{stage}", f"scores.{stage}.candidates")
    return (*own, *SCORES)


# Changes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """One ingredient changed, and the units that may hold something else after it.

    Attributes
    ----------
    slot
        What it changes; two changes of one slot do not go together.
    named
        Entry of the recipe that a build names as the reason of its activations.
    """

    name: str
    slot: str
    apply: Apply
    units: tuple[str, ...]
    named: str = ""

    def __repr__(self) -> str:
        return self.name

    def concerns(self, unit: str) -> bool:
        return any(fnmatchcase(unit, pattern) for pattern in self.units)


def entry(*steps: Any, value: Any) -> Apply:
    """Set an entry of the card."""

    def apply(recipe: Recipe, _folder: Path) -> None:
        target: Any = recipe
        for step in steps[:-1]:
            target = target[step]
        target[steps[-1]] = value

    return apply


def row(dataset: str, number: int, **cells: Any) -> Apply:
    """Change cells of a row; a value may be a function of the old one."""

    def change(rows: list[dict[str, Any]]) -> None:
        for column, value in cells.items():
            before = rows[number][column]
            rows[number][column] = value(before) if callable(value) else value

    return rows_of(dataset, change)


def rows_of(dataset: str, change: Callable[[list[dict[str, Any]]], None]) -> Apply:
    """Change the rows of a dataset, and its digest in the card."""

    def apply(recipe: Recipe, folder: Path) -> None:
        rows = _read_csv(folder / f"{dataset}.csv")
        change(rows)
        card = next(each for each in recipe["datasets"] if each["name"] == dataset)
        card.update(write_dataset(folder, dataset, rows))

    return apply


def _read_csv(path: Path) -> list[dict[str, Any]]:
    import csv

    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def swap(first: int, second: int, rows: list[dict[str, Any]]) -> None:
    rows[first], rows[second] = rows[second], rows[first]


def flip_byte(file: str, _recipe: Recipe, folder: Path) -> None:
    """Change one bit of a file's last byte."""
    path = folder / file
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def in_json(file: str, change: Callable[[dict[str, Any]], None]) -> Apply:
    def apply(_recipe: Recipe, folder: Path) -> None:
        path = folder / file
        described = json.loads(path.read_text())
        change(described)
        path.write_text(json.dumps(described))

    return apply


def moved_model(stage: int, recipe: Recipe, folder: Path) -> None:
    """The same files under another name: another source."""
    name = STAGES[stage]
    (folder / name).rename(folder / f"{name}-v2")
    recipe["stages"][stage]["model"]["path"] = f"{name}-v2"


def chat_template(stage: str, added: str) -> Apply:
    def apply(_recipe: Recipe, folder: Path) -> None:
        path = folder / stage / "chat_template.jinja"
        path.write_text(added + path.read_text())

    return apply


def beginnings(recipe: Recipe, _folder: Path) -> None:
    for stage in recipe["stages"]:
        stage["add_beginning"] = True


def plain_text(_recipe: Recipe, folder: Path) -> None:
    (folder / "plain.csv").write_bytes(csv_bytes([{"text": t} for t in ("One.", "Two.", "Three.")]))


def no_adapter(recipe: Recipe, _folder: Path) -> None:
    del recipe["stages"][1]["adapter"]


def nfd(text: str) -> str:
    import unicodedata

    decomposed = unicodedata.normalize("NFD", text)
    assert decomposed != text
    return decomposed


def acts(dataset: str, block: int | str = "*") -> str:
    return f"acts.*.{dataset}.{block if block == '*' else f'{block:05d}'}"


REFUSAL = (*SCORES, *CANDIDATES)
CHANGES = [
    Change("nothing", "nothing", lambda _recipe, _folder: None, ()),
    Change("words", "title", entry("title", value="Another title"), ()),
    Change("a note", "note", entry("stages", 0, "title", value="Other"), ()),
    Change("licence", "licence", entry("licence", value="MIT"), ()),
    # Models
    *(
        Change(
            f"a bit of the weights of {stage}",
            f"weights of {stage}",
            partial(flip_byte, f"{stage}/model.safetensors"),
            of_weights(stage),
            named="weights",
        )
        for stage in STAGES
    ),
    *(
        Change(
            f"configuration of {stage}",
            f"weights of {stage}",
            in_json(f"{stage}/config.json", lambda config: config.update(rms_norm_eps=1e-5)),
            of_weights(stage),
            named="weights",
        )
        for stage in STAGES
    ),
    *(
        Change(
            f"source of {stage}",
            f"source of {stage}",
            partial(moved_model, number),
            of_weights(stage),
            named="weights",
        )
        for number, stage in enumerate(STAGES)
        if stage == "base"  # the adapter of the other is tied to nothing, but a slot is enough
    ),
    Change(
        "a bit of the adapter",
        "adapter",
        partial(flip_byte, "adapter/adapter_model.safetensors"),
        (*of_weights("tuned"), "adapter.tuned"),
        named="weights",
    ),
    Change(
        "an adapter's scale",
        "adapter",
        in_json("adapter/adapter_config.json", lambda config: config.update(lora_alpha=8)),
        (*of_weights("tuned"), "adapter.tuned"),
        named="weights",
    ),
    Change(
        "the adapter is not shipped", "ship", entry("stages", 1, "ship_adapter", value=False), ()
    ),
    # Tokenizers and templates
    *(
        Change(
            f"decoder of {stage}",
            f"tokenizer of {stage}",
            in_json(f"{stage}/tokenizer.json", lambda told: told.update(decoder={"type": "Fuse"})),
            of_tokenizer(stage),
            named="tokenizer",
        )
        for stage in STAGES
    ),
    *(
        Change(
            f"a remark in the chat template of {stage}",
            f"chat of {stage}",
            chat_template(stage, "{# a remark #}"),
            of_tokenizer(stage),
            named="tokenizer",
        )
        for stage in STAGES
    ),
    Change(
        "a word in the chat template of tuned",
        "chat of tuned",
        chat_template("tuned", "Well: "),
        (*of_tokenizer("tuned"), *of_instructions("tuned")),
        named="tokenizer",
    ),
    *(
        Change(
            f"template of {stage}",
            f"template of {stage}",
            entry("stages", number, "template", value="User: {instruction}\nAssistant:"),
            of_instructions(stage),
            named="template",
        )
        for number, stage in enumerate(STAGES)
    ),
    Change(
        "an option of the template",
        "template of base",
        entry("stages", 0, "template_options", value={"date_string": "1 May"}),
        of_instructions("base"),
        named="template",
    ),
    Change(
        "an option that no template reads",
        "template of base",
        entry("stages", 0, "template_options", value={"weather": "fair"}),
        (),
    ),
    Change(
        "beginnings",
        "beginnings",
        beginnings,
        (*of_tokenizer("base"), *of_tokenizer("tuned"), "tables.tokens.*"),
        named="tokenizer",
    ),
    # Rows
    Change(
        "a text in the first block",
        "colours",
        row("colours", 1, text="Snow is snow-white."),
        (acts("colours", 0), *ROWS, *TRUTH),
        named="rows",
    ),
    Change(
        "a text in the last block",
        "colours",
        row("colours", 11, text="Café noir is violet."),
        (acts("colours", 1), *ROWS, *TRUTH),
        named="rows",
    ),
    Change("composed or not", "colours", row("colours", 10, text=nfd), ()),
    Change(
        "an accent less",
        "colours",
        row("colours", 10, text="Cafe noir is black."),
        (acts("colours", 1), *ROWS, *TRUTH),
        named="rows",
    ),
    Change(
        "a letter that only looks alike",
        "colours",
        row("colours", 10, text="Caf\N{CYRILLIC SMALL LETTER IE WITH GRAVE} noir is black."),
        (acts("colours", 1), *ROWS, *TRUTH),
        named="rows",
    ),
    Change(
        "an id",
        "colours",
        row("colours", 0, source_id="snow"),
        (acts("colours", 0), *ROWS, *TRUTH),
        named="rows",
    ),
    Change("a label", "colours", row("colours", 0, label="0"), ("tables.statements", *TRUTH)),
    Change(
        "order in a block",
        "colours",
        rows_of("colours", partial(swap, 0, 1)),
        (acts("colours", 0), *ROWS, *TRUTH),
        named="rows",
    ),
    Change(
        "order across blocks",
        "colours",
        rows_of("colours", partial(swap, 0, 11)),
        (acts("colours"), *ROWS, *TRUTH),
        named="rows",
    ),
    Change(
        "a traced text",
        "capitals",
        row("capitals", 0, text="The city of Rome is in bella Italy.", object="bella Italy"),
        (acts("capitals", 0), *ROWS, *TRACES, *TRUTH),
        named="rows",
    ),
    Change(
        "a traced subject",
        "capitals",
        row("capitals", 0, subject="city of Rome"),
        ("tables.statements", *TRACES, *TRUTH),
    ),
    Change(
        "a text for training",
        "harmful",
        row("harmful", 0, text="Hide every clock."),
        (acts("harmful", 0), *ROWS, *REFUSAL),
        named="rows",
    ),
    Change(
        "a text for testing",
        "harmless",
        row("harmless", 11, text="Recommend a walk."),
        (acts("harmless", 1), *ROWS, *REFUSAL),
        named="rows",
    ),
    Change(
        "a split", "harmful", row("harmful", 0, split="validation"), ("tables.statements", *REFUSAL)
    ),
    Change("a topic", "harmful", row("harmful", 0, topic="sport"), ("tables.statements",)),
    # Extraction
    Change(
        "sites",
        "sites",
        entry("extraction", "sites", value=["resid_pre", "resid_post"]),
        (*ACTS, *REFUSAL, *TRUTH),
        named="sites",
    ),
    Change(
        "stored type",
        "dtype",
        entry("extraction", "dtype", value="bfloat16"),
        (*ACTS, *REFUSAL, *TRUTH),
        named="dtype",
    ),
    Change(
        "compute type",
        "compute",
        entry("extraction", "compute_dtype", value="bfloat16"),
        (*ACTS, *WEIGHTS, *NEURONS, *REFUSAL, *TRACES, *TRUTH),
        named="compute_dtype",
    ),
    Change(
        "rows a block",
        "blocks",
        entry("extraction", "rows_per_block", value=5),
        (*ACTS, *REFUSAL, *TRUTH),
        named="blocks",
    ),
    Change(
        "tokens a batch",
        "batch",
        entry("extraction", "tokens_per_batch", value=512),
        (*ACTS, *REFUSAL, *TRUTH),
        named="tokens_per_batch",
    ),
    Change("checked rows", "parity", entry("extraction", "parity_rows", value=5), ()),
    Change("tolerance", "tolerance", entry("extraction", "parity_tolerance", value=0.5), ()),
    Change(
        "positions of statements",
        "positions of capitals",
        entry("datasets", 0, "positions", value=[-2, -1]),
        (acts("capitals"), "tables.tokens.*", *TRUTH),
        named="positions",
    ),
    Change(
        "positions of instructions",
        "positions of harmful",
        entry("datasets", 2, "positions", value=[-2, -1]),
        (acts("harmful"), "tables.tokens.*", *REFUSAL),
        named="positions",
    ),
    # Analyses
    Change("null space", "null", entry("weights", "null_space_k", value=4), (*WEIGHTS, *NEURONS)),
    Change("seed of neurons", "neurons", entry("confidence", "seed", value=1), NEURONS),
    Change("number of neurons", "neurons", entry("confidence", "candidates", value=3), NEURONS),
    Change("seed of traces", "traces", entry("traces", 0, "seed", value=3), TRACES),
    Change("number of traces", "traces", entry("traces", 0, "pairs", value=1), TRACES),
    Change("layer of refusal", "layer", entry("refusal", "layer", value=1), SCORES),
    Change("length of replies", "length", entry("refusal", "max_new_tokens", value=4), SCORES),
    Change("factors", "scales", entry("refusal", "scales", value=[1.0]), SCORES),
    Change("seed of refusal", "seed", entry("refusal", "seed", value=2), SCORES),
    Change(
        "candidates", "candidates", entry("refusal", "candidates", "layers", value=[1]), CANDIDATES
    ),
    Change("layer of truth", "truth", entry("truth", "layer", value=0), TRUTH),
    Change("seed of truth", "asked", entry("truth", "intervention", "seed", value=5), TRUTH),
    Change("plain text", "plain", plain_text, ("tables.plain_text", *SCORES, *NEURONS)),
]
MODELS_AS_THEY_WERE = ("nothing", "title", "note", "licence", "ship", "parity", "tolerance")


@pytest.mark.parametrize("change", CHANGES, ids=repr)
def test_a_key_changes_exactly_when_its_content_may(world: World, change: Change) -> None:
    require_changed(keys(base_plan(world)), world.plan(change), [change])
    if change.named:
        before = {unit.name: unit.recipe_digests for unit in base_plan(world).units}
        for unit in world.plan(change).units:
            if unit.kind == "activations" and change.concerns(unit.name) and unit.name in before:
                now, then = unit.recipe_digests, before[unit.name]
                differing = {name for name in now if now[name] != then[name]}
                assert change.named in {name.replace(" ", "_") for name in differing}


def require_changed(before: Mapping[str, str], plan: Plan, changes: Sequence[Change]) -> None:
    after = keys(plan)
    changed = {name for name in before if name in after and before[name] != after[name]}
    assert changed == {
        name for name in before if name in after and any(c.concerns(name) for c in changes)
    }


@cache
def base_plan(world: World) -> Plan:
    return world.plan()


def different_slots() -> st.SearchStrategy[list[Change]]:
    return st.lists(
        st.sampled_from(CHANGES), unique_by=lambda c: c.slot, min_size=2, max_size=4
    ).filter(lambda chosen: not clash({change.slot for change in chosen}))


def clash(slots: set[str]) -> bool:
    """Tell of changes that undo each other, or make a card that is refused."""
    together = [
        {"source of base", "weights of base"},
        {"source of base", "tokenizer of base"},
        {"source of base", "chat of base"},
        {"template of tuned", "chat of tuned"},
        {"template of base", "chat of base"},
        # Rows are counted into blocks of six in the table.
        *({"blocks", each} for each in ("colours", "capitals", "harmful", "harmless")),
        {"blocks", "sites"},
    ]
    return any(pair <= slots for pair in together)


def test_several_changes_change_what_each_of_them_does(world: World, at_length: bool) -> None:
    before = keys(base_plan(world))
    owners = {key: name for name, key in before.items()}

    @settings(
        max_examples=80 if at_length else 25,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    @given(changes=different_slots())
    def check(changes: list[Change]) -> None:
        plan = world.plan(*changes)
        require_changed(before, plan, changes)
        for unit in plan.units:
            assert owners.setdefault(unit.key, unit.name) == unit.name

    check()


# The code, and how it is loaded -----------------------------------------------------------------

OF_CODE: dict[str, tuple[str, ...]] = {
    "table": TABLES,
    "activations": (*ACTS, *REFUSAL, *TRUTH),
    "weights": (*WEIGHTS, *NEURONS),
    "adapter": ("adapter.*",),
    "trace": TRACES,
    "scores": (*REFUSAL, *TRUTH, *NEURONS),
}


@pytest.mark.parametrize("kind", SEMANTICS)
def test_code_that_computes_something_else_changes_keys(
    world: World, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    raised = {**SEMANTICS, kind: SEMANTICS[kind] + 1}  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr("ptmech_builder.units.SEMANTICS", raised)
    change = Change(kind, "code", lambda _recipe, _folder: None, OF_CODE[kind])
    require_changed(keys(base_plan(world)), world.plan(), [change])


def quantised(recipe: Recipe, _folder: Path) -> None:
    del recipe["confidence"]
    recipe["stages"][0]["quantisation"] = "8bit"


def without_confidence(recipe: Recipe, _folder: Path) -> None:
    del recipe["confidence"]


def test_quantised_weights_are_other_weights(world: World) -> None:
    before = keys(world.plan(Change("", "", without_confidence, ())))
    plan = world.plan(Change("", "", quantised, ()))
    require_changed(before, plan, [Change("", "", quantised, of_weights("base"))])


# Equal recipes, equal keys ---------------------------------------------------------------------


def reversed_everywhere(value: Any) -> Any:
    match value:
        case dict():
            return {key: reversed_everywhere(item) for key, item in reversed(value.items())}
        case list():
            return [reversed_everywhere(item) for item in value]
        case _:
            return value


def upside_down(recipe: Recipe, folder: Path) -> None:
    """The same card and the same tables, every key and every column in another place."""
    for name in ("capitals", "colours"):
        rows = [dict(reversed(row.items())) for row in _read_csv(folder / f"{name}.csv")]
        card = next(each for each in recipe["datasets"] if each["name"] == name)
        card.update(write_dataset(folder, name, rows))
    turned = reversed_everywhere(recipe)
    recipe.clear()
    recipe.update(turned)


def test_the_order_of_keys_and_columns_does_not_matter(world: World) -> None:
    assert keys(world.plan(Change("", "", upside_down, ()), name="other")) == keys(base_plan(world))


def test_another_process_has_the_same_keys(world: World, at_length: bool) -> None:
    pretended = "from tests.faults.pretend import *; plan = pretend_plan(Recipe())"
    planned = (
        "import pathlib; from tests.tiny import plan_of; plan = plan_of(pathlib.Path(sys.argv[1]))"
    )
    wanted = {pretended: keys(pretend_plan(PretendRecipe()))}
    if at_length:  # torch is slow to import
        wanted[planned] = keys(base_plan(world))
    for seed in ("0", "1", "4242") if at_length else ("1",):
        for script, expected in wanted.items():
            assert keys_elsewhere(script, seed, str(world.card())) == expected


def keys_elsewhere(script: str, seed: str, *arguments: str) -> dict[str, str]:
    """Plan in a process whose sets are in another order."""
    tell = "print(json.dumps({unit.name: unit.key for unit in plan.units}))"
    done = subprocess.run(
        [sys.executable, "-c", f"import json, sys; {script}; {tell}", *arguments],
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(REPOSITORY)},
        cwd=REPOSITORY,
        capture_output=True,
        check=True,
    )
    return json.loads(done.stdout)


# Different units, different keys ---------------------------------------------------------------


def test_units_of_one_build_have_different_keys(world: World) -> None:
    found = keys(base_plan(world))
    assert len(set(found.values())) == len(found)


def twins(recipe: Recipe, folder: Path) -> None:
    """Two stages with the same weights and the same tokenizer."""
    recipe["stages"][1]["model"]["path"] = "base"
    no_adapter(recipe, folder)


def test_stages_with_the_same_weights_have_keys_of_their_own(world: World) -> None:
    """Their files differ: each says in its metadata whose it is."""
    found = keys(world.plan(Change("", "", twins, ())))
    assert len(set(found.values())) == len(found)


# Builds that say why ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"dtype": "bfloat16"}, "dtype changed"),
        ({"tuned": 1}, "weights changed"),
        ({"last_statement": "Milk is purple."}, "rows"),
    ],
)
def test_a_build_says_why_it_makes_a_unit_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, Any], reason: str
) -> None:
    pretend_build(PretendRecipe(), tmp_path)
    report = run(pretend_plan(PretendRecipe(**changed)), tmp_path, Progress())
    assert report.again["acts.tuned.facts.00001"].startswith(reason)
    printed = capsys.readouterr().err
    assert report.again["acts.tuned.facts.00001"] in printed
    assert str(tmp_path) not in printed


def test_a_first_build_gives_no_reasons(tmp_path: Path) -> None:
    assert pretend_build(PretendRecipe(), tmp_path).again == {}
    assert len(capitals()) == 2 * BLOCK
