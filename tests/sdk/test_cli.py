"""The command line: what it prints, what it exits with, and that nothing is ever a traceback."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from tests.synthetic import write_synthetic_artifact
from typer.testing import CliRunner

from ptmech import cli, confidence, console, knowledge, refusal, truth
from ptmech.cli import application
from ptmech.console import cell
from ptmech.manifest import MANIFEST, Manifest, canonical_json

READING = ("info", "verify", "truth", "refusal", "knowledge", "confidence")


def run(*arguments):
    return CliRunner().invoke(cli.create_app(), [str(argument) for argument in arguments])


def run_json(*arguments):
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    return json.loads(result.stdout)


def one_line(result, code):
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr.startswith("ptmech: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def words_of(text):
    return " ".join(text.split())


# What is printed


@pytest.mark.parametrize("command", READING)
def test_tables_are_plain_text_when_no_terminal_reads_them(synthetic_path, command):
    result = run(command, synthetic_path)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    assert "\x1b" not in result.stdout
    assert not any(line.endswith(" ") for line in result.stdout.splitlines())


@pytest.mark.parametrize("command", READING)
def test_json_is_one_document(synthetic, synthetic_path, command):
    payload = run_json(command, synthetic_path)
    assert payload["artifact"] == synthetic.id


def test_info(synthetic, synthetic_path):
    lines = run("info", synthetic_path).stdout.splitlines()
    assert lines[0] == f"{synthetic.id}: Synthetic"
    rows = [line.split() for line in lines]
    for stage in synthetic.manifest.stages:
        assert [stage.name, stage.title, "SyntheticForCausalLM", "4", "16", stage.model] in rows
    for dataset in synthetic.manifest.datasets:
        positions = ", ".join(map(str, dataset.positions)).split()
        title = dataset.title.split()
        assert [dataset.name, dataset.kind, str(dataset.rows), *positions, *title] in rows
    assert ["acts:", "resid_post", "0..3"] in rows
    counted = sum(int(row[1]) for row in rows if row[-1:] in (["file"], ["files"]))
    assert counted == len(synthetic.manifest.extras)
    assert f"{synthetic.manifest.total_bytes:,} bytes, in float32" in lines
    assert max(map(len, lines)) <= console.WIDTH
    payload = run_json("info", synthetic_path)
    assert payload["bytes"] == synthetic.manifest.total_bytes
    assert [stage["name"] for stage in payload["stages"]] == ["base", "instruct"]
    assert str(synthetic_path) not in json.dumps(payload)


def test_truth(synthetic, synthetic_path):
    payload = run_json("truth", synthetic_path)
    similarity = truth.similarity(synthetic, "base", "instruct").frame
    assert payload["similarity"]["rows"] == similarity.to_dicts()
    transfer = truth.transfer(synthetic, "base", "instruct").frame
    assert payload["transfer"]["rows"] == transfer.to_dicts()
    assert payload["effects"]["rows"] == truth.effects(synthetic).frame.to_dicts()
    text = run("truth", synthetic_path).stdout
    for row in transfer.iter_rows(named=True):
        assert row["dataset"] in text
        interval = (row[f"accuracy{suffix}"] for suffix in ("", "_low", "_high"))
        assert "{} [{}, {}]".format(*map(cell, interval)) in text


def test_truth_at_every_layer(synthetic, synthetic_path):
    expected = truth.sweep(synthetic, "base", "instruct").frame
    payload = run_json("truth", synthetic_path, "--sweep")
    assert payload["sweep"]["rows"] == expected.to_dicts()
    assert "sweep" not in run_json("truth", synthetic_path)
    assert (
        "by layer, mean over the datasets left out"
        in run("truth", synthetic_path, "--sweep").stdout
    )


def test_truth_with_another_probe_and_layer(synthetic, synthetic_path):
    payload = run_json("truth", synthetic_path, "--probe", "logistic", "--layer", 1)
    expected = truth.transfer(synthetic, "base", "instruct", 1, probe="logistic").frame
    assert payload["transfer"]["rows"] == expected.to_dicts()


def test_refusal_at_the_position_of_the_card(synthetic, synthetic_path):
    payload = run_json("refusal", synthetic_path)
    expected = refusal.similarity(synthetic, "base", "instruct", position=-1).frame
    assert payload["similarity"]["rows"] == expected.to_dicts()
    assert payload["scores"]["rows"] == refusal.scores(synthetic).frame.to_dicts()
    other = run_json("refusal", synthetic_path, "--position", -3, "--layer", 2)
    expected = refusal.similarity(synthetic, "base", "instruct", 2, -3).frame
    assert other["similarity"]["rows"] == expected.to_dicts()
    text = words_of(run("refusal", synthetic_path).stdout)
    assert "instruct harmless add own instruct 3 1.000 1.000 20 0.900 [0.699, 0.972] 2.900" in text


def test_refusal_without_scores(tmp_path):
    root = write_synthetic_artifact(tmp_path / "a", n_layers=2, n_facts=5, n_instructions=10)
    manifest = Manifest.parse((root / MANIFEST).read_bytes(), "manifest")
    extras = tuple(entry for entry in manifest.extras if entry.kind != "scores")
    (root / MANIFEST).write_bytes(canonical_json(manifest.model_copy(update={"extras": extras})))
    result = run("refusal", root, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["scores"] is None
    assert "holds no refusal scores" in result.stderr
    assert "its card does not ask for them, or the build was narrowed" in result.stderr


def test_knowledge(synthetic, synthetic_path):
    payload = run_json("knowledge", synthetic_path)
    (dataset,) = payload["datasets"]
    comparison = knowledge.compare_stages(synthetic, "base", "instruct", dataset)
    assert payload["datasets"]["cities"]["rows"] == comparison.frame.to_dicts()
    traces = payload["datasets"]["cities"]["traces"]
    assert [trace["arguments"]["target"] for trace in traces] == ["base", "instruct"] * 2
    assert traces[1]["rows"] == comparison.traces["base", "instruct"].frame.to_dicts()
    text = run("knowledge", synthetic_path, "--dataset", "cities").stdout
    rows = [line.split() for line in text.splitlines()]
    scaled = comparison.traces["base", "base"].by_role["subject_last"]
    assert rows[3][:1] + rows[3][3:4] == ["0", f"{scaled[0]:.3f}"]
    assert ["locations", "1.000", "0.000", "0.000"] in rows


def test_confidence(synthetic, synthetic_path):
    payload = run_json("confidence", synthetic_path, "--n", 3)
    comparison = confidence.compare(synthetic, "base", "instruct", n=3)
    assert payload["rows"] == comparison.frame.to_dicts()
    assert payload["overlap"] == comparison.overlap
    lines = run("confidence", synthetic_path, "--n", 3).stdout.splitlines()
    assert any(line.startswith(f"overlap {comparison.overlap:.3f}") for line in lines)
    measured = confidence.effects(synthetic)
    assert payload["effects"]["rows"] == measured.frame.to_dicts()
    assert any("one neuron ablated at a time" in line for line in lines)
    first = lines.index("Entropy-neuron candidates of base")
    listed = [int(line.split()[0]) for line in lines[first + 3 : first + 6]]
    assert listed == list(comparison.candidates_earlier)


def test_stages_in_reverse(synthetic_path):
    payload = run_json("refusal", synthetic_path, "--earlier", "instruct", "--later", "base")
    assert (payload["earlier"], payload["later"]) == ("instruct", "base")


def test_json_has_no_nan():
    from ptmech.console import print_json

    app = typer.Typer()

    @app.command()
    def show():
        print_json(
            {"a": math.nan, "b": [math.inf, 1.5], "c": {"d": None, "e": True}, "f": (1, "x")}
        )

    text = CliRunner().invoke(app).stdout
    assert json.loads(text) == {
        "a": None,
        "b": [None, 1.5],
        "c": {"d": None, "e": True},
        "f": [1, "x"],
    }


def test_the_help_tells_the_commands_in_the_order_of_need():
    text = run("--help").stdout
    story = (
        "First look", "info", "summary", "report", "One perspective", "knowledge", "truth",
        "refusal", "confidence", "Trust it", "verify", "Make one", "plan", "build", "pin",
        "publish", "Begin with: ptmech info",
    )  # fmt: skip
    found = [text.index(f" {words} ") for words in story]
    assert found == sorted(found)


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("ptmech re", ["refusal", "report"]),
        ("ptmech v", ["verify"]),
        ("ptmech truth --ear", ["--earlier"]),
    ],
)
def test_a_shell_completes_commands_and_options(words, completed):
    done = process(
        env={
            **os.environ,
            "_PTMECH_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(words.count(" ")),
        }
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == completed


def test_version_and_help():
    assert run("--version").stdout.startswith("ptmech 0.")
    text = run("--help").stdout
    assert all(command in text for command in READING)


# What is verified


def test_verify_counts(synthetic, synthetic_path):
    result = run("verify", synthetic_path)
    files = sum(path.is_file() for path in synthetic_path.rglob("*")) - 1  # but manifest.json
    assert result.stdout == f"ok: {files} files, {synthetic.manifest.total_bytes:,} bytes\n"
    assert run_json("verify", synthetic_path) == {
        "artifact": synthetic.id,
        "ok": True,
        "faults": [],
    }


@pytest.fixture
def damaged(synthetic_path, tmp_path) -> Path:
    root = Path(shutil.copytree(synthetic_path, tmp_path / "artifact"))
    for path in (
        "acts/base/cities/resid_post/L01.safetensors",
        "acts/base/harmful/resid_post/L01.safetensors",
        "weights/base/neurons.parquet",
        "traces/base-base/cities.zarr/grid/c/0/0/0",
    ):
        data = bytearray((root / path).read_bytes())
        data[len(data) // 2] ^= 4
        (root / path).write_bytes(data)
    return root


def test_verify_says_every_fault(damaged):
    result = run("verify", damaged)
    assert result.exit_code == 3
    lines = result.stdout.splitlines()
    assert len(lines) == 4
    assert all(": is damaged: sha256" in line for line in lines)
    result = run("verify", damaged, "--json")
    assert result.exit_code == 3
    assert len(json.loads(result.stdout)["faults"]) == 4


@pytest.mark.parametrize("command", ["truth", "refusal", "knowledge", "confidence"])
def test_no_damaged_byte_reaches_an_analysis(damaged, command):
    for arguments in ((), ("--json",)):
        assert "is damaged" in one_line(run(command, damaged, *arguments), 3)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"format": 99}', b"\xff\xfe"])
def test_a_damaged_manifest(synthetic_path, tmp_path, raw):
    root = Path(shutil.copytree(synthetic_path, tmp_path / "artifact"))
    (root / MANIFEST).write_bytes(raw)
    for command in ("info", "verify"):
        one_line(run(command, root), 3)


# What cannot be done


@pytest.mark.parametrize("command", READING)
def test_no_artifact_there(tmp_path, command):
    assert "no artifact" in one_line(run(command, tmp_path / "nowhere"), 2)
    assert "manifest.json" in one_line(run(command, tmp_path), 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("truth", "--later", "instrukt"), "did you mean 'instruct'"),
        (("refusal", "--earlier", "instruct"), "twice"),
        (("refusal", "--layer", 17), "layer"),
        (("refusal", "--position", 3), "position"),
        (("knowledge", "--dataset", "facts"), "no causal trace"),
        (("knowledge", "--dataset", "fcats"), "did you mean 'facts'"),
        (("truth", "--probe", "massmean"), "did you mean 'mass_mean'"),
    ],
)
def test_requests_that_cannot_be_met(synthetic_path, arguments, words):
    command, *options = arguments
    assert words in one_line(run(command, synthetic_path, *options), 2)


@pytest.mark.parametrize(
    "arguments", [("refusal", "--bogus"), ("truht",), ("refusal", "--layer", "deep"), ("info",)]
)
def test_usage_errors(synthetic_path, arguments):
    command, *options = arguments
    reference = () if command == "info" else (synthetic_path,)
    result = run(command, *reference, *options)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_files_that_may_not_be_read(synthetic_path, tmp_path):
    root = Path(shutil.copytree(synthetic_path, tmp_path / "artifact"))
    (root / MANIFEST).chmod(0)
    assert "Permission denied" in one_line(run("info", root), 2)


# Commands of other distributions


class Plugin:
    """Stands in for an entry point."""

    def __init__(self, name, load):
        self.name = name
        self.load = load

    def __lt__(self, other):
        return self.name < other.name


def failing(error):
    def load():
        raise error

    return load


def with_plugins(monkeypatch, *plugins):
    def entry_points(*, group):
        assert group == "ptmech.commands"
        return plugins

    monkeypatch.setattr(application, "entry_points", entry_points)


def command_that(action):
    def register(app):
        app.command("act")(action)

    return lambda: register


def test_a_plugin_adds_commands(monkeypatch):
    with_plugins(monkeypatch, Plugin("one", command_that(lambda: typer.echo("done"))))
    assert run("act").stdout == "done\n"


def test_a_broken_plugin_is_named_and_the_rest_works(monkeypatch, synthetic_path):
    broken = (
        Plugin("one", failing(ImportError("no module named heavy"))),
        Plugin("two", failing(AttributeError("no register"))),
    )
    with_plugins(monkeypatch, *broken, Plugin("zed", command_that(lambda: None)))
    result = run("info", synthetic_path)
    assert result.exit_code == 0
    assert run("act").exit_code == 0


def test_an_interrupt_is_no_traceback(monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    with_plugins(monkeypatch, Plugin("one", command_that(interrupted)))
    one_line(run("act"), 130)


def test_an_error_of_the_system_is_one_line(monkeypatch):
    def full():
        raise OSError(28, "No space left on device")

    with_plugins(monkeypatch, Plugin("one", command_that(full)))
    assert "No space left" in one_line(run("act"), 2)


def test_a_bug_is_not_hidden(monkeypatch):
    with_plugins(monkeypatch, Plugin("one", command_that(lambda: {}["missing"])))
    assert isinstance(run("act").exception, KeyError)


# A real process


def process(*arguments, code="from ptmech.cli import main; main()", **options):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_a_real_process(synthetic, synthetic_path, damaged):
    fine = process("refusal", synthetic_path, "--json")
    assert (fine.returncode, fine.stderr) == (0, "")
    expected = refusal.similarity(synthetic, "base", "instruct", position=-1).frame
    rows = json.loads(fine.stdout)["similarity"]["rows"]
    np.testing.assert_allclose([row["cosine"] for row in rows], expected["cosine"])
    spoilt = process("refusal", damaged)
    assert spoilt.returncode == 3
    assert spoilt.stdout == ""
    assert spoilt.stderr.count("\n") == 1


def test_help_is_light_and_reading_needs_no_torch(synthetic_path):
    code = """
import sys
from ptmech.cli import create_app
create_app()(sys.argv[1:], standalone_mode=False)
heavy = {"torch", "transformers"}
if "--help" in sys.argv:
    heavy |= {"polars", "sklearn", "zarr"}
sys.exit(", ".join(heavy & sys.modules.keys()) or None)
"""
    for arguments in (["--help"], ["knowledge", synthetic_path]):
        result = process(*arguments, code=code)
        assert result.returncode == 0, result.stderr
