"""Cards: what is wrong is named with its key and its line, and nothing unknown slips through."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.tiny import Family, Recipe, tiny_family, to_toml, write_card

from ptmech.errors import CardError
from ptmech_builder.cards import CARDS, Card, find_card, read_card

ROOT = Path(__file__).parents[2]

CARD = """\
# A comment with "quotes" and an = sign.
format = 1
name = "small"
title = "Small"
licence = "CC0-1.0"
description = \"\"\"
nme = "not a key"
[not.a.table]
\"\"\"

[[stages]]
name = "base"
title = "Base"
[stages.model]
path = "models/base"

[[stages]]
name = "tuned"
title = "Tuned"
template = "User: {instruction}"
[stages.model]
hub = "owner/model"
revision = "main"

[extraction]
dtype = "bfloat16"

[truth]
layer = 1
datasets = ["facts"]

[[datasets]]
name = "facts"
title = "Facts"
kind = "statements"
file = "facts.csv"
sha256 = "HASH"

[[datasets]]
name = "other"
title = "Other"
kind = "instructions"
file = "other.csv"
sha256 = "HASH"
positions = [-2, -1]
""".replace("HASH", "0" * 64)


def line_of(text: str, fragment: str) -> int:
    """The line on which a fragment first stands, counted from one."""
    return text[: text.index(fragment)].count("\n") + 1


def complaint(folder: Path, text: str) -> str:
    """The message for a card."""
    path = folder / "card.toml"
    path.write_text(text)
    with pytest.raises(CardError) as caught:
        read_card(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


def test_a_card_is_read_as_written(tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text(CARD)
    found = read_card(path)
    assert found.sha256 == hashlib.sha256(CARD.encode()).hexdigest()
    card = found.card
    assert [stage.name for stage in card.stages] == ["base", "tuned"]
    assert card.stages[0].template == "chat"
    assert card.stages[1].template == "User: {instruction}"
    assert card.datasets[0].positions == (-1,)
    assert card.datasets[1].positions == (-2, -1)
    assert card.extraction.dtype == "bfloat16"
    assert card.extraction.compute_dtype == "float32"
    assert card.extraction.packing == "auto"
    assert card.extraction.tokens_per_batch is None
    assert card.refusal is None
    assert card.traces == ()


@pytest.mark.parametrize(
    ("old", "new", "key", "close"),
    [
        ('name = "small"', 'nmae = "small"', "nmae", "name"),
        ('title = "Tuned"', 'titel = "Tuned"', "stages.1.titel", "title"),
        ('dtype = "bfloat16"', 'dtpye = "bfloat16"', "extraction.dtpye", "dtype"),
        ("positions = [-2, -1]", "postions = [-2, -1]", "datasets.1.postions", "positions"),
        ("layer = 1", "layre = 1", "truth.layre", "layer"),
    ],
)
def test_an_unknown_key_is_refused_with_its_line(
    tmp_path: Path, old: str, new: str, key: str, close: str
) -> None:
    text = CARD.replace(old, new, 1)  # in the place of a required key, too
    message = complaint(tmp_path, text)
    assert message == (f" line {line_of(text, new)}: unknown key {key!r}; did you mean {close!r}?")


def test_an_unknown_key_of_a_model_names_its_own_table(tmp_path: Path) -> None:
    text = CARD.replace('revision = "main"', 'revision = "main"\ncommit = "abc"')
    message = complaint(tmp_path, text)
    assert message.startswith(f" line {line_of(text, 'commit = ')}: unknown key")
    assert "'stages.1.model.commit'" in message


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ('model = { path = "x", pth = 1 }', "stages.2.model.pth"),
        ("model.path = 'x'\nmodel.pth = 1", "stages.2.model.pth"),
    ],
)
def test_other_ways_to_write_a_table_have_lines_too(tmp_path: Path, line: str, key: str) -> None:
    text = f'{CARD}\n[[stages]]\nname = "late"\ntitle = "Late"\n{line}\n'
    last = line.splitlines()[-1]
    assert complaint(tmp_path, text).startswith(f" line {line_of(text, last)}: unknown key {key!r}")


def test_an_unknown_table_is_refused(tmp_path: Path) -> None:
    text = f"{CARD}\n[refusals]\nlayer = 3\n"
    message = complaint(tmp_path, text)
    assert message == (
        f" line {line_of(text, '[refusals]')}: unknown key 'refusals'; did you mean 'refusal'?"
    )


def test_nothing_is_suggested_where_nothing_is_close(tmp_path: Path) -> None:
    text = CARD.replace("format = 1", "format = 1\nxyzzyx = 2")
    assert complaint(tmp_path, text) == " line 3: unknown key 'xyzzyx'"


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("format = 1", "format = 2", "format"),
        ('name = "small"', 'name = "Small Family"', "name"),
        ('kind = "instructions"', 'kind = "questions"', "datasets.1.kind"),
        ("positions = [-2, -1]", "positions = [-2, 0]", "datasets.1.positions.1"),
        ("positions = [-2, -1]", "positions = []", "datasets.1.positions"),
        ('dtype = "bfloat16"', 'dtype = "int8"', "extraction.dtype"),
        ('dtype = "bfloat16"', 'packing = "trees"', "extraction.packing"),
        ('dtype = "bfloat16"', "tokens_per_batch = 0", "extraction.tokens_per_batch"),
        ("layer = 1", "layer = -1", "truth.layer"),
        ('hub = "owner/model"', 'hub = "model"', "stages.1.model.hub"),
        ('revision = "main"', 'revision = ""', "stages.1.model.revision"),
    ],
)
def test_a_wrong_value_is_refused_with_key_and_line(
    tmp_path: Path, old: str, new: str, key: str
) -> None:
    text = CARD.replace(old, new, 1)
    assert re.match(rf" line {line_of(text, new)}: {re.escape(key)}: \S", complaint(tmp_path, text))


def test_a_missing_key_is_named_at_its_table(tmp_path: Path) -> None:
    text = CARD.replace('file = "other.csv"\n', "")
    second = text.index("[[datasets]]", text.index("[[datasets]]") + 1)
    line = text[:second].count("\n") + 1
    assert complaint(tmp_path, text).startswith(f" line {line}: datasets.1.file: ")


def test_a_template_needs_a_slot(tmp_path: Path) -> None:
    text = CARD.replace("User: {instruction}", "User: {prompt}")
    message = complaint(tmp_path, text)
    assert "{instruction}" in message
    second = text.index("[[stages]]", text.index("[[stages]]") + 1)
    assert message.startswith(f" line {text[:second].count(chr(10)) + 1}: stages.1: ")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('name = "other"', 'name = "facts"', "dataset 'facts' is defined twice"),
        ('name = "tuned"', 'name = "base"', "stage 'base' is defined twice"),
        (
            'datasets = ["facts"]',
            'datasets = ["fatcs"]',
            "truth names dataset 'fatcs', which the card lacks; did you mean 'facts'?",
        ),
        (
            "[truth]",
            '[[traces]]\ndataset = "nothing"\n[truth]',
            "traces names dataset 'nothing', which the card lacks",
        ),
        (
            "[truth]",
            '[refusal]\nlayer = 1\nharmful = "other"\nharmless = "otter"\n'
            'plain_text = "p.csv"\n[truth]',
            "refusal names dataset 'otter', which the card lacks; did you mean 'other'?",
        ),
    ],
)
def test_names_hold_together(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert complaint(tmp_path, CARD.replace(old, new, 1)).endswith(f": {expected}")


@pytest.mark.parametrize("text", ["format = ", "[stages", 'name = "a"\nname = "b"', "= 3"])
def test_what_is_not_toml_says_so(tmp_path: Path, text: str) -> None:
    assert ": not TOML: " in complaint(tmp_path, text)


def test_what_is_not_utf8_says_so(tmp_path: Path) -> None:
    path = tmp_path / "card.toml"
    path.write_bytes(b'name = "\xff"')
    with pytest.raises(CardError, match="not UTF-8"):
        read_card(path)


def test_a_missing_card_lists_those_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CardError, match=r"^no card 'demo', and no others .*path"):
        find_card("demo")
    CARDS.mkdir()
    (CARDS / "demo.toml").write_text(CARD)
    (CARDS / "llama3.toml").write_text(CARD)
    with pytest.raises(CardError, match=r"^no card 'dmeo'; did you mean 'demo'\? .*demo, llama3$"):
        find_card("dmeo")
    assert find_card("demo") == CARDS / "demo.toml"
    assert find_card(CARDS / "llama3.toml") == CARDS / "llama3.toml"


def test_relative_paths_start_at_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cards").mkdir()
    path = tmp_path / "cards" / "small.toml"
    path.write_text(CARD.replace('name = "tuned"', 'name = "tuned"\nadapter = "adapter"'))
    (tmp_path / "cards" / "facts.csv").write_text("x")
    (tmp_path / "cards" / "adapter").mkdir()
    monkeypatch.chdir(tmp_path)
    found = read_card(path)
    assert found.path("facts.csv").resolve() == tmp_path / "cards" / "facts.csv"
    base, tuned = found.card.stages
    assert found.adapter(base) is None
    adapter = found.adapter(tuned)
    assert adapter is not None
    assert adapter.resolve() == tmp_path / "cards" / "adapter"
    with pytest.raises(CardError, match=r"card 'small' names 'missing\.csv', which does not exist"):
        found.path("missing.csv")


def test_builtin_files_come_with_the_builder(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(CARD)
    found = read_card(tmp_path / "small.toml")
    assert found.path("builtin:statements/cities.csv").is_file()
    with pytest.raises(CardError, match="does not exist"):
        found.path("builtin:statements/citties.csv")


@pytest.mark.parametrize("path", sorted((ROOT / "cards").glob("*.toml")), ids=lambda p: p.stem)
def test_every_card_of_the_project_is_sound(path: Path) -> None:
    found = read_card(path)
    assert found.card.name == path.stem.replace("-", "_")
    for dataset in found.card.datasets:
        if dataset.file.startswith("builtin:"):
            data = found.path(dataset.file).read_bytes()
            assert hashlib.sha256(data).hexdigest() == dataset.sha256


TABLES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "": lambda recipe: recipe,
    "extraction.": lambda recipe: recipe["extraction"],
    "weights.": lambda recipe: recipe["weights"],
    "truth.": lambda recipe: recipe["truth"],
    "refusal.": lambda recipe: recipe["refusal"],
    "stages.1.": lambda recipe: recipe["stages"][1],
    "stages.0.model.": lambda recipe: recipe["stages"][0]["model"],
    "datasets.2.": lambda recipe: recipe["datasets"][2],
}


@pytest.fixture(scope="module")
def recipe_text(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    family: Family = tiny_family(tmp_path_factory)
    return family.recipe(tmp_path_factory.mktemp("recipe"))


@settings(deadline=None)  # whoever else computes here decides the time
@given(
    table=st.sampled_from(sorted(TABLES)), key=st.from_regex(r"[a-z][a-z_]{0,12}", fullmatch=True)
)
def test_any_unknown_key_anywhere_is_found_on_its_line(
    recipe_text: Recipe, tmp_path_factory: pytest.TempPathFactory, table: str, key: str
) -> None:
    recipe = copy.deepcopy(recipe_text)
    target = TABLES[table](recipe)
    known = {
        name
        for schema in (Card, *(f.annotation for f in Card.model_fields.values()))
        for name in getattr(schema, "model_fields", ())
    }
    assume(key not in target and key not in known)
    assume(key not in {"package", "hub", "path", "title", "note", "adapter", "template", "kind"})
    target[key] = 1
    text = to_toml(recipe)
    lines = [n for n, line in enumerate(text.splitlines(), 1) if line == f"{key} = 1"]
    assume(len(lines) == 1)
    path = write_card(tmp_path_factory.getbasetemp() / "unknown", recipe)
    with pytest.raises(CardError) as caught:
        read_card(path)
    assert f"{path} line {lines[0]}: unknown key '{table}{key}'" in str(caught.value)


def test_cards_never_change(recipe_text: Recipe) -> None:
    card = Card.model_validate(recipe_text)
    with pytest.raises(ValidationError):
        card.name = "other"  # pyright: ignore[reportAttributeAccessIssue]
