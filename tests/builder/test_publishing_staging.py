"""What goes to the Hub, and what never does; nothing here talks to one."""

from __future__ import annotations

import getpass
import hashlib
import json
import shutil
import socket
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save
from tests.publishable import Publishable, write_publishable
from typer.testing import CliRunner

from ptmech._privacy import Private
from ptmech.cli import create_app
from ptmech.errors import DataError, IntegrityError
from ptmech_builder.publishing import RefusedError, findings, prepare, staging
from ptmech_builder.publishing.refusals import require_clean
from ptmech_builder.publishing.staging import Staged, StagedFile, require_bearable

TOKEN = "hf_" + "aB3dE6gH9" * 4


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take a second to draw, and no test here looks at them."""
    monkeypatch.setattr(findings, "_draw", lambda _result: b"drawn")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Publishable:
    """Never write into it."""
    return write_publishable(tmp_path_factory.mktemp("original"), n_facts=10, n_instructions=20)


@pytest.fixture
def made(original: Publishable, tmp_path: Path) -> Publishable:
    shutil.copytree(original.root.parent, tmp_path, dirs_exist_ok=True)
    return Publishable(tmp_path / original.root.name, tmp_path / original.card_path.name)


def staged(made: Publishable, repository: str = "some-lab/acts") -> Staged:
    return prepare(made.root, repository, made.card)


def refusal(made: Publishable) -> str:
    with pytest.raises(RefusedError) as caught:
        staged(made)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def listed(root: Path) -> dict[str, str]:
    """Every file of a folder and its sha256, by walking it."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


# What goes ----------------------------------------------------------------------------------------


def test_exactly_what_the_manifest_lists_goes(made: Publishable) -> None:
    there = listed(made.root)
    assert not any(path.startswith(".build/") for path in there)
    for stray in (".build/receipts/x.json", "notes.txt", "acts/base/cities/resid_post/L00.bak"):
        (made.root / stray).parent.mkdir(parents=True, exist_ok=True)
        (made.root / stray).write_text(f"mine, and my token {TOKEN}")
    found = staged(made)
    page = {"README.md", *(path for path in found.files if path.startswith("figures/"))}
    assert len(page) == 5
    assert {path: file.sha256 for path, file in found.files.items() if path not in page} == there
    for file in found.files.values():
        assert len(file.read()) == file.size
        assert hashlib.sha256(file.read()).hexdigest() == file.sha256


def test_a_version_is_named_after_its_manifest(original: Publishable) -> None:
    digest = hashlib.sha256((original.root / "manifest.json").read_bytes()).hexdigest()
    found = staged(original)
    assert found.artifact == f"synthetic@{digest[:12]}"
    assert found.tag == f"v1-{digest[:12]}"
    assert prepare(original.root, "some-lab/acts", original.card, tag="v2.0").tag == "v2.0"


def test_git_ids_are_gits() -> None:
    # git hash-object of "hello\n"
    assert StagedFile.made("x", b"hello\n").git_id == "ce013625030ba8dba906f756967f9e9ca394464a"


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_artifact_stays_here(made: Publishable, damage: str) -> None:
    path = made.root / "acts/base/facts/mlp_out/L01.safetensors"  # no analysis of the page reads it
    if damage == "missing":
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    with pytest.raises(
        IntegrityError, match=r"acts/base/facts/mlp_out/L01\.safetensors: .*ptmech verify"
    ):
        staged(made)


@pytest.mark.parametrize("name", ["acts", "a/b/c", "-a/b", "a/b c", "../x", "a/b\n"])
def test_repositories_have_an_owner_and_a_name(original: Publishable, name: str) -> None:
    with pytest.raises(DataError, match="OWNER/NAME"):
        staged(original, name)


@pytest.mark.parametrize("tag", ["", "a b", "-x", "a/b", "v1\n"])
def test_tags_are_plain(original: Publishable, tag: str) -> None:
    with pytest.raises(DataError, match="is no tag"):
        prepare(original.root, "some-lab/acts", original.card, tag=tag)


# What never goes ----------------------------------------------------------------------------------


def tensors(shape: tuple[int, ...], name: str = "weight", **metadata: str) -> bytes:
    return save({name: np.zeros(shape, np.float32)}, metadata=metadata or None)


@pytest.mark.parametrize("shape", [(96, 16), (16, 96), (104, 16), (1, 16, 128)])
def test_unembedding_matrices_are_refused(made: Publishable, shape: tuple[int, ...]) -> None:
    made.add_file("weights/base/head.safetensors", tensors(shape, "lm_head"), kind="weights")
    assert "weights/base/head.safetensors holds 'lm_head' of shape" in refusal(made)


@pytest.mark.parametrize("shape", [(96,), (16,), (64, 16), (96, 15), (16, 16)])
def test_other_tensors_go(made: Publishable, shape: tuple[int, ...]) -> None:
    made.add_file("weights/base/more.safetensors", tensors(shape), kind="weights")
    assert "weights/base/more.safetensors" in staged(made).files


@pytest.mark.parametrize(
    ("secret", "what"),
    [
        (TOKEN, "an access token"),
        ("ghp_" + "a1B2" * 9, "an access token"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----", "a private key"),
        ("/home/somebody/data/x.csv", "a home path"),
        ("/Users/somebody/x", "a home path"),
        (r"C:\Users\somebody", "a home path"),
        ("/root/.cache/x", "a home path"),
    ],
)
def test_secrets_are_refused_wherever_they_are(tmp_path: Path, secret: str, what: str) -> None:
    table = tmp_path / "about.parquet"
    pl.DataFrame({"text": ["x"]}).write_parquet(table, metadata={"from": secret})
    data = table.read_bytes()
    places = [
        StagedFile.made("a/about.json", json.dumps({"from": secret}, ensure_ascii=False).encode()),
        StagedFile.made("a/README.md", f"Built from {secret}, I think.".encode()),
        StagedFile.made("a/about.safetensors", tensors((2, 2), origin=secret)),
        StagedFile("a/about.parquet", len(data), hashlib.sha256(data).hexdigest(), table),
    ]
    for file in places:
        with pytest.raises(RefusedError) as caught:
            require_clean([StagedFile.made("a/fine.json", b"{}"), file], Private())
        assert str(caught.value).startswith(f"{file.path} contains {what}")
        assert secret not in str(caught.value)


@pytest.mark.parametrize(
    "harmless",
    [
        "https://example.org/home/licence",
        "x.org/Users/x",
        "/home/",
        "sk-short",
        "hf_hub",
        "/rooted",
    ],
)
def test_what_only_looks_like_a_secret_goes(harmless: str) -> None:
    require_clean([StagedFile.made("README.md", harmless.encode())], Private())


def test_a_secret_in_the_manifest_stops_all(made: Publishable) -> None:
    made.change_manifest(description=f"Built with {TOKEN}.")
    said = refusal(made)
    assert "contains an access token" in said
    assert TOKEN not in said


def test_the_login_itself_is_a_secret(made: Publishable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "an-unusual-login")
    made.change_manifest(description="Built with an-unusual-login.")
    assert "contains an access token" in refusal(made)


def test_names_of_this_machine_are_refused(
    made: Publishable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "gpu-node-17")
    monkeypatch.setattr(getpass, "getuser", lambda: "mariasmith")
    staged(made)
    for place in ("//gpu-node-17:8080/x", "x@gpu-node-17.", "/net/gpu-node-17/data"):
        made.change_manifest(description=f"Built on {place}")
        assert "the name of this machine" in refusal(made)
    for place in ("mariasmith@example.org", "/data/mariasmith/x", "D:\\mariasmith\\x"):
        made.change_manifest(description=f"Built by {place}")
        assert "the name of the user" in refusal(made)
    assert staged(made, "mariasmith/acts")  # who publishes under a name does not hide it
    made.change_manifest(description="mariasmith, and /data/mariasmithson/ is another")
    staged(made)


@pytest.mark.parametrize("name", ["python", "ptmech", "template", "weights"])
def test_names_that_are_words_of_the_page_are_no_secret(
    original: Publishable, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    monkeypatch.setattr(getpass, "getuser", lambda: name)
    assert "```python" in staged(original).page


def test_a_part_of_a_card_goes_only_when_asked_to(made: Publishable) -> None:
    made.change_manifest(narrowed="without the stages sft; at most 8 rows of each dataset")
    assert "is not all of its card (without the stages sft; at most 8 rows" in refusal(made)
    asked = prepare(made.root, "some-lab/acts", made.card, narrowed=True)
    assert "describes:** without the stages sft; at most 8 rows of each dataset." in asked.page
    arguments = ["publish", str(made.root), "some-lab/acts", "--card", str(made.card_path)]
    refused = CliRunner().invoke(create_app(), [*arguments, "--readme"])
    assert refused.exit_code == 2
    assert "by --narrowed" in refused.stderr.splitlines()[-1]
    result = CliRunner().invoke(create_app(), [*arguments, "--readme", "--narrowed"])
    assert result.stdout == asked.page


def test_a_card_that_is_elsewhere_is_asked_for(
    original: Publishable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(create_app(), ["publish", str(original.root), "some-lab/acts"])
    assert result.exit_code == 2
    assert "no card 'synthetic'" in result.stderr
    assert "--card PATH" in result.stderr


def test_common_names_are_no_secret(made: Publishable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "base")
    monkeypatch.setattr(getpass, "getuser", lambda: "ubuntu")
    made.change_manifest(description="The base model, on ubuntu.")
    staged(made)


def test_the_artifacts_own_folder_is_not_named(made: Publishable) -> None:
    made.change_manifest(description=f"In {made.root.resolve()} for now.")
    assert "contains a path of this machine" in refusal(made) or "home path" in refusal(made)


# Limits -------------------------------------------------------------------------------------------


def test_files_too_large_are_refused(
    original: Publishable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "MAX_FILE_BYTES", 6_000)
    said = refusal(original)
    assert said.startswith("tables/statements.parquet has ")
    with pytest.raises(RefusedError, match="rows_per_block"):
        require_bearable([StagedFile("acts/base/x.safetensors", 6_001, "0" * 64, b"")])


def files(*paths: str) -> list[StagedFile]:
    return [StagedFile(path, 1, "0" * 64, b"x") for path in paths]


def test_folders_and_repositories_have_a_limit() -> None:
    fitting = [f"a/{number}" for number in range(9_998)]
    require_bearable(files(*fitting, "a/b/c", "a/b/d"))  # 9,999 entries: the folder b is one
    with pytest.raises(RefusedError, match="a has 10,000 entries"):
        require_bearable(files(*fitting, "a/b/c", "a/d"))
    many = [f"{folder}/{number}" for folder in range(11) for number in range(9_091)]
    with pytest.raises(RefusedError, match="100,001 files"):
        require_bearable(files(*many))


# The command --------------------------------------------------------------------------------------


def test_a_dry_run_needs_no_hub(original: Publishable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    arguments = ["publish", str(original.root), "some-lab/acts", "--card", str(original.card_path)]
    result = CliRunner().invoke(create_app(), [*arguments, "--dry-run"])
    assert result.exit_code == 0, result.output
    sizes = {path: (original.root / path).stat().st_size for path in listed(original.root)}
    acts = {path: size for path, size in sizes.items() if path.startswith("acts/")}
    row = next(line.split() for line in result.stdout.splitlines() if line.startswith("acts/"))
    assert row[:3] == ["acts/", f"{len(acts):,}", f"{sum(acts.values()):,}"]
    assert row[1:3] == row[3:]
    assert "what the Hub has is not known" in result.stdout
    assert "HF_HUB_OFFLINE" in result.stdout


def test_the_page_alone(original: Publishable) -> None:
    arguments = ["publish", str(original.root), "some-lab/acts", "--card", str(original.card_path)]
    result = CliRunner().invoke(create_app(), [*arguments, "--readme"])
    assert result.exit_code == 0, result.output
    assert result.stdout == staged(original).page


def test_missing_packages_are_named(original: Publishable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptmech_builder.publish_command.PREREQUISITES", ("jinja2", "no_such_thing"))
    result = CliRunner().invoke(create_app(), ["publish", str(original.root), "some-lab/acts"])
    assert result.exit_code == 2
    assert result.stderr.strip() == (
        "ptmech: publishing needs no_such_thing: pip install 'ptmech[report]'"
    )
