"""``ptmech plan`` and ``ptmech build`` as a user types them."""

from __future__ import annotations

import hashlib
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
    last = 1 + len(found["plan"])
    assert lines[last].split()[:3] == ["total", str(built.report.done), "0"]
    assert lines[last + 1] == ""
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


def test_a_plan_says_how_rows_will_run(built: Built, tmp_path: Path) -> None:
    found = json.loads(fine("plan", built.card, "--json", "--out", tmp_path).stdout)["packing"]
    assert [(row["stage"], row["dataset"]) for row in found] == [
        (stage, name)
        for stage in ("base", "tuned")
        for name in ("capitals", "colours", "harmful", "harmless")
    ]
    capitals = found[0]
    assert capitals["packing"] == "tree"  # every row begins with "The city of "
    assert capitals["run_tokens"] < capitals["tokens"]
    assert capitals["cost_ratio"] < 1
    told = fine("plan", built.card, "--out", tmp_path).stdout.splitlines()
    [line] = [line for line in told if line.startswith("capitals")]  # the same for both stages
    shown = [f"{capitals['tokens']:,}", f"{capitals['run_tokens']:,}"]
    assert line.split() == ["capitals", "tree", *shown, f"{capitals['cost_ratio']:.2f}"]


def test_a_plan_estimates_hours_of_another_model(built: Built, tmp_path: Path) -> None:
    asked = ("plan", built.card, "--out", tmp_path, "--shape", "llama-3.1-70b", "--tokens", "1e9")
    on = ("--on", "h100", "--workers", 8)
    found = json.loads(fine(*asked, *on, "--json").stdout)["estimate"]
    for stage in found["stages"]:
        assert stage["prompt_tokens"] == 1e9
        assert stage["weight_bytes"] == 2 * 70_553_706_496
        assert stage["devices"] == 2
        hours: float = stage["flops"] / (0.4 * 989e12) / 3600 / 8
        assert stage["hours"] == pytest.approx(hours)
        assert stage["device_hours"] == pytest.approx(16 * hours)
    assert found["hours"] == pytest.approx(sum(stage["hours"] for stage in found["stages"]))
    shown = fine(*asked, *on).stdout
    assert "assumed 0.4 of a peak of 989 TFLOPS in bfloat16" in shown
    assert "141.1 GB a worker, on 2 h100" in shown
    rate = fine(*asked, "--tokens-per-second", 5000).stdout
    assert "assumed 5,000 tokens a second, as given" in rate


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--on", "h10"), "unknown device 'h10'; did you mean 'h100'"),
        (("--shape", "llama-3.1-7b"), "did you mean 'llama-3.1-70b'"),
        (("--workers", 2), "--on DEVICE or --tokens-per-second RATE"),
        (("--on", "h100", "--workers", 0), "at least one worker"),
        (("--on", "h100", "--utilisation", 1.5), "1.5"),
        (("--tokens-per-second", 0), "above 0"),
        (("--tokens", -1), "above 0"),
        (("--tokens", "nan"), "above 0"),
    ],
)
def test_an_estimate_that_cannot_be_is_one_line(
    built: Built, tmp_path: Path, arguments: tuple[object, ...], message: str
) -> None:
    result = ptmech("plan", built.card, "--out", tmp_path, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    [line] = result.stderr.splitlines()
    assert message in line


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
    assert result.stderr == (
        "ptmech: no card 'nothing', and no others in cards/ here: give the path of its TOML file\n"
    )


def test_a_device_that_is_not_there_is_one_line(built: Built, tmp_path: Path) -> None:
    result = ptmech("build", built.card, "--out", tmp_path / "artifact", "--device", "abacus")
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    assert "device 'abacus' cannot be used" in line
    assert not (tmp_path / "artifact").exists()


# Data ------------------------------------------------------------------------------------------

CLAIMS = b"statement,label\nSnow is white.,TRUE\nCoal is white.,FALSE\n"


def test_own_statements_are_part_of_plan_and_build(recipe: Recipe, tmp_path: Path) -> None:
    card, out = write_card(tmp_path / "card", recipe), tmp_path / "artifact"
    for name in ("claims", "more"):
        (tmp_path / f"{name}.csv").write_bytes(CLAIMS)
    own = ("--statements", tmp_path / "claims.csv", "--statements", tmp_path / "more.csv")
    planned = json.loads(fine("plan", card, "--out", out, "--json", *own).stdout)
    plain = json.loads(fine("plan", card, "--out", out, "--json").stdout)
    assert planned["total"]["units"] == plain["total"]["units"] + 4  # two sets, two stages
    fine("build", card, "--out", out, "--device", "cpu", "--quiet", *own)
    manifest = json.loads((out / "manifest.json").read_text())
    assert [entry["name"] for entry in manifest["datasets"]] == ["capitals", "claims", "more"]
    assert str(tmp_path) not in (out / "manifest.json").read_text()


def test_own_statements_may_be_chosen_but_not_forgotten(recipe: Recipe, tmp_path: Path) -> None:
    card = write_card(tmp_path / "card", recipe)
    (tmp_path / "claims.csv").write_bytes(CLAIMS)
    own = ("--statements", tmp_path / "claims.csv", "--out", tmp_path / "artifact")
    fine("plan", card, *own, "--datasets", "claims")
    forgotten = ptmech("plan", card, *own, "--datasets", "capitals")
    assert forgotten.exit_code == 2
    assert forgotten.stderr == (
        "ptmech: --datasets leaves out 'claims', which --statements adds; name it too\n"
    )


@pytest.mark.parametrize("command", ["plan", "build"])
def test_copies_of_public_data_are_taken_and_checked(
    recipe: Recipe, tmp_path: Path, command: str
) -> None:
    copies = tmp_path / "copies"
    copies.mkdir()
    (copies / "claims.csv").write_bytes(CLAIMS)
    recipe["datasets"].append(
        {
            "name": "claims",
            "title": "Claims",
            "kind": "statements",
            "file": f"github:keeper/claims@{'7' * 40}/data/claims.csv",
            "sha256": hashlib.sha256(CLAIMS).hexdigest(),
            "columns": {"text": "statement"},
        }
    )
    card = write_card(tmp_path / "card", recipe)
    out = ("--out", tmp_path / "artifact")
    fine(command, card, *out, "--data-dir", copies)
    (copies / "claims.csv").write_bytes(CLAIMS + b"\n")
    wrong = ptmech(command, card, *out, "--data-dir", copies)
    assert wrong.exit_code == 3
    [line] = wrong.stderr.splitlines()
    assert "replace the copy or remove it" in line
    nowhere = ptmech(command, card, *out, "--data-dir", tmp_path / "nowhere")
    assert nowhere.exit_code == 2
    assert "there is no folder" in nowhere.stderr


def test_pinning_is_one_command_more(recipe: Recipe, tmp_path: Path) -> None:
    card = write_card(tmp_path / "card", recipe)
    assert fine("pin", card).stdout == f"{card}: everything is pinned\n"
    del recipe["datasets"][0]["sha256"]
    card = write_card(tmp_path / "card", recipe)
    loose = ptmech("pin", card, "--check")
    assert loose.exit_code == 2
    assert "does not pin datasets.0.sha256; run: ptmech pin" in loose.stderr
    digest = hashlib.sha256((tmp_path / "card" / "capitals.csv").read_bytes()).hexdigest()
    assert f"datasets.0.sha256: none -> {digest}" in fine("pin", card).stdout
    assert fine("pin", card, "--check").stdout == f"{card}: everything is pinned\n"
