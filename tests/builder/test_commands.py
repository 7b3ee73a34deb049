"""``ptmech plan`` and ``ptmech build`` as a user types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from tests.tiny import Built, Recipe, digests, tiny_build, write_card
from typer.testing import CliRunner

from ptmech.cli import create_app


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return tiny_build(tmp_path_factory)


@pytest.fixture
def recipe(built: Built, tmp_path: Path) -> Recipe:
    recipe = built.family.recipe(tmp_path / "card")
    recipe = {**recipe, "datasets": recipe["datasets"][:1], "truth": {"layer": 1}}
    del recipe["refusal"]
    return recipe


def ptmech(*arguments: object) -> Result:
    return CliRunner().invoke(create_app(), [str(argument) for argument in arguments])


def fine(*arguments: object) -> Result:
    result = ptmech(*arguments)
    assert result.exit_code == 0, result.output
    return result


def test_both_commands_are_there() -> None:
    listed = fine("--help").output
    assert "plan" in listed
    assert "build" in listed


def test_a_plan_says_what_a_build_will_do(built: Built, tmp_path: Path) -> None:
    out = tmp_path / "artifact"
    found: dict[str, Any] = json.loads(fine("plan", built.card, "--json", "--out", out).stdout)
    assert found["card"] == "tiny"
    assert found["total"]["units"] == built.report.done
    assert found["total"]["finished"] == 0
    assert found["total"]["tokens"] == built.report.tokens
    lines = fine("plan", built.card, "--out", out).stdout.splitlines()
    assert lines[0].split() == ["what", "units", "done", "tokens", "files", "bytes"]
    assert len(lines) == 2 + len(found["plan"])
    assert lines[-1].split()[:3] == ["total", str(built.report.done), "0"]
    assert not out.exists()


def test_a_plan_writes_nothing_and_sees_what_is_finished(built: Built, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    fine("plan", built.card, "--out", empty)
    assert not list(empty.iterdir())
    found = json.loads(fine("plan", built.card, "--json", "--out", built.root).stdout)
    assert found["total"]["finished"] == found["total"]["units"] == built.report.done


def test_a_plan_says_what_is_left_out(built: Built) -> None:
    narrowed = ("plan", built.card, "--stages", "base", "--datasets", "capitals, colours")
    assert "left out: traces and scores need every stage" in fine(*narrowed).stdout
    found = json.loads(fine(*narrowed, "--json").stdout)
    assert {row["what"] for row in found["plan"]} == {"table", "activations base", "weights base"}


def test_build_makes_the_artifact(recipe: Recipe, tmp_path: Path) -> None:
    card, out = write_card(tmp_path / "card", recipe), tmp_path / "artifact"
    result = fine("build", card, "--out", out, "--device", "cpu")
    assert result.stdout == ""
    assert "8 units done, 0 reused" in result.stderr
    assert "worst deviation from a plain forward" in result.stderr
    before = digests(out)
    assert "manifest.json" in before
    again = fine("build", card, "--out", out, "--device", "cpu")
    assert "0 units done, 8 reused" in again.stderr
    assert digests(out) == before


def test_a_build_goes_to_a_folder_named_after_the_card(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    card = write_card(tmp_path / "card", recipe)
    quiet = fine(
        "build", card, "--quiet", "--limit", "4", "--dtype", "bfloat16", "--stages", "tuned"
    )
    assert quiet.output == ""
    manifest = json.loads((tmp_path / "artifacts" / "tiny" / "manifest.json").read_text())
    assert manifest["dtype"] == "bfloat16"
    assert [stage["name"] for stage in manifest["stages"]] == ["tuned"]
    assert manifest["datasets"][0]["rows"] == 4


@pytest.mark.parametrize("command", ["plan", "build"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--stages", "bose"), "unknown stage 'bose'; did you mean 'base'?"),
        (("--datasets", "colors"), "unknown dataset 'colors'; did you mean 'colours'?"),
        (("--stages", ","), "no stage is named"),
        (("--datasets", ""), "no dataset is named"),
        (("--dtype", "int8"), "int8"),
    ],
)
def test_a_request_that_cannot_be_met_is_one_line(
    built: Built, tmp_path: Path, command: str, arguments: tuple[str, ...], message: str
) -> None:
    result = ptmech(command, built.card, "--out", tmp_path / "artifact", *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("ptmech: ")
    assert message in line
    assert not (tmp_path / "artifact").exists()


def test_a_broken_card_is_one_line(recipe: Recipe, tmp_path: Path) -> None:
    recipe["extraction"]["dtpye"] = "float16"
    card = write_card(tmp_path / "card", recipe)
    line = card.read_text().splitlines().index('dtpye = "float16"') + 1
    result = ptmech("plan", card)
    assert result.exit_code == 2
    assert result.stderr == (
        f"ptmech: {card} line {line}: unknown key 'extraction.dtpye'; did you mean 'dtype'?\n"
    )


def test_a_missing_card_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = ptmech("build", "nothing")
    assert result.exit_code == 2
    assert result.stderr == "ptmech: no card 'nothing'. Cards here: none\n"


def test_a_device_that_is_not_there_is_one_line(built: Built, tmp_path: Path) -> None:
    result = ptmech("build", built.card, "--out", tmp_path / "artifact", "--device", "abacus")
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    assert "device 'abacus' cannot be used" in line
    assert not (tmp_path / "artifact").exists()
