"""The cards of the paper's families, served by a local Hub: planned all, built all on demand.

What takes minutes runs with ``make families``; a plan of every family, and a build of a few rows of
the one whose stages differ most, always.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tests.families.serving import copied_card, public_files, serve_data, serve_models
from tests.hub import LocalHub
from tests.hub.client import clients_of
from tokenizers import Tokenizer

import ptmech as sdk
from ptmech import knowledge, live, refusal, truth
from ptmech.artifact import Artifact
from ptmech_builder.cards import CardFile, read_card
from ptmech_builder.plan import Plan, make_plan
from ptmech_builder.selection import Selection

ROOT = Path(__file__).parents[2]
FAMILIES = ("llama3", "mistral", "llama2", "qwen", "gemma2", "smollm2")
SAY = "Name three trees."
USER = "User: {}\nAssistant:"
TULU = "<|user|>\n{}\n<|assistant|>\n"
CHATML = (
    "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
PROMPTS: Mapping[str, Mapping[str, str]] = {
    "llama3": {
        "base": "<|begin_of_text|>" + USER,
        "sft": "<|begin_of_text|>" + TULU,
        "instruct": (
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
            "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n"
        ),
    },
    "mistral": {
        "base": "<s>" + USER,
        "sft": "<s>" + TULU,
        "instruct": "<s>[INST] {}[/INST]",
    },
    "llama2": {
        "base": "<s>" + USER,
        "chat": "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\n{} [/INST]",
    },
    "qwen": {"base": USER, "chat": CHATML},
    "gemma2": {
        "base": "<bos>" + USER,
        "instruct": (
            "<bos><start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n"
        ),
    },
    "smollm2": {"base": USER, "instruct": CHATML},
}  # fmt: skip
"""How each stage must be spoken to, special tokens included, written out by hand."""
BEGINNING = {"llama3": "<|begin_of_text|>", "mistral": "<s>", "llama2": "<s>", "gemma2": "<bos>"}
"""Families whose every statement begins with a token of its own."""


@dataclass(frozen=True)
class Served:
    """A card, and its models and data on a Hub that this process's clients talk to."""

    card: CardFile
    path: Path
    folder: Path
    commits: Mapping[str, str]
    """Of each stage's model."""
    sources: Mapping[str, str]
    """References of the card, and what was served under them."""
    environment: Mapping[str, str]

    def run(self, *command: str) -> str:
        """Run a command in the project's folder; what it says if it goes well."""
        done = subprocess.run(
            command, cwd=ROOT, env=dict(self.environment), capture_output=True, text=True,
            timeout=3600,
        )  # fmt: skip
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def ptmech(self, *arguments: str) -> str:
        return self.run(str(Path(sys.prefix) / "bin" / "ptmech"), *arguments)


def serving(name: str, folder: Path, *, weights: bool = True) -> Iterator[Served]:
    path = copied_card(ROOT / "cards" / f"{name}.toml", folder / "cards")
    card = read_card(path)
    with LocalHub() as hub, clients_of(hub, folder / "home"):
        sources = serve_data(hub, card)
        commits = serve_models(hub, card, weights=weights)
        environment = {**os.environ, **hub.environment(folder / "home")}
        environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200"}
        yield Served(card, path, folder, commits, sources, environment)


def raw_tokenizer(stage: str, plan: Plan) -> Tokenizer:
    """A stage's tokenizer without anything that transformers or the builder does to it."""
    from ptmech.live.models import local_folder

    planned = next(each for each in plan.stages if each.card.name == stage)
    return Tokenizer.from_file(
        str(local_folder(planned.source, with_weights=False) / "tokenizer.json")
    )


# Plans -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_planned_and_speaks_as_its_models_expect(name: str, tmp_path: Path) -> None:
    for served in serving(name, tmp_path, weights=False):
        plan = make_plan(served.card, Selection(device="cpu"))
        assert not plan.left_out
        for stage in plan.stages:
            raw = raw_tokenizer(stage.card.name, plan)

            def ids(text: str, raw: Tokenizer = raw) -> list[int]:
                return raw.encode(text, add_special_tokens=False).ids

            assert stage.identity.source.endswith(f"@{served.commits[stage.card.name]}")
            table = pl.concat(u.frame for u in plan.units if u.name == "tables.statements")  # pyright: ignore
            said = dict(table.select("row_uid", "text").iter_rows())
            for dataset, wording in (
                ("harmful", PROMPTS[name][stage.card.name]),
                ("harmless", PROMPTS[name][stage.card.name]),
                ("cities", BEGINNING.get(name, "") + "{}"),
                ("tulu_extracted", BEGINNING.get(name, "") + "{}"),
            ):
                prompts = stage.prompts[dataset]
                for uid, tokens in zip(prompts.uids.tolist(), prompts.token_ids, strict=True):
                    assert list(tokens) == ids(wording.format(said[uid]))


# A few rows ------------------------------------------------------------------------------------


def test_a_few_rows_are_built_and_their_stages_open_as_they_were_built(tmp_path: Path) -> None:
    """Mistral: one tokenizer does not put the beginning first, and three templates differ."""
    for served in serving("mistral", tmp_path):
        root = tmp_path / "artifact"
        narrow = ("--datasets", "cities,harmful", "--limit", "16")
        served.ptmech("build", str(served.path), "--out", str(root), *narrow)
        assert served.ptmech("verify", str(root)).startswith("ok")
        artifact = sdk.load(root)
        require_parity(artifact)
        require_stages(artifact, served)
        for stage in artifact.stages:
            model = live.open(artifact, stage, device="cpu")
            for dataset, tokenise in (("cities", model.tokens), ("harmful", model.chat)):
                statements = artifact.statements(dataset)
                stored = artifact.tokens(stage).filter(dataset=dataset)
                assert tokenise(statements["text"].to_list()) == stored["token_ids"].to_list()


def require_parity(artifact: Artifact) -> None:
    parity = artifact.manifest.parity
    assert parity is not None
    assert 0 <= parity.worst <= parity.tolerance
    assert parity.rows > 0
    assert artifact.manifest.dtype == artifact.manifest.compute_dtype == "bfloat16"


def require_stages(artifact: Artifact, served: Served) -> None:
    """The manifest says which commits were used, and how prompts were made."""
    cards = {stage.name: stage for stage in served.card.card.stages}
    assert artifact.stages == tuple(cards)
    for stage in artifact.manifest.stages:
        card = cards[stage.name]
        assert stage.source is not None
        assert stage.source.model_dump()["revision"] == served.commits[stage.name]
        assert stage.model.endswith(f"@{served.commits[stage.name]}")
        assert (stage.template, dict(stage.template_options), stage.add_beginning) == (
            card.template, dict(card.template_options), card.add_beginning,
        )  # fmt: skip
    files = {dataset.name: dataset.file for dataset in served.card.card.datasets}
    for dataset in artifact.manifest.datasets:
        assert dataset.source == served.sources[files[dataset.name]]


# Whole families --------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=FAMILIES)
def whole(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Served, Path]]:
    """A family from its card to the artifact, through ``make``."""
    name: str = request.param
    for served in serving(name, tmp_path_factory.mktemp(name)):
        root = served.folder / "artifact"
        # The environment is the one that runs this test: nothing is installed.
        make = ("make", f"--old-file={sys.prefix}/.ready", f"VENV={sys.prefix}", "build")
        served.run(*make, f"MODEL={served.path}", f"OUT={root}")
        yield served, root


@pytest.mark.families
def test_a_whole_family_is_built_and_verified(whole: tuple[Served, Path]) -> None:
    served, root = whole
    card = served.card.card
    assert served.ptmech("verify", str(root)).startswith("ok")
    artifact = sdk.load(root)
    require_parity(artifact)
    require_stages(artifact, served)
    assert all(path.stat().st_size <= 256 * 2**20 for path in root.rglob("*") if path.is_file())
    # What one artifact of the family can say, each perspective in its place.
    summary = json.loads(served.ptmech("summary", str(root), "--json"))
    assert len(summary) > 0
    traced = knowledge.stored(artifact)
    assert traced.height == len(card.traces) * len(card.stages) ** 2
    assert refusal.candidate_scores(artifact, artifact.stages[0]).frame.height > 0
    if card.truth is not None and card.truth.intervention is not None:
        effects = truth.effects(artifact).frame
        assert effects["stage"].unique(maintain_order=True).to_list() == list(artifact.stages)


@pytest.mark.families
def test_directions_are_read_and_added_where_the_card_says(whole: tuple[Served, Path]) -> None:
    served, root = whole
    settings, artifact = served.card.card.refusal, sdk.load(root)
    assert settings is not None
    found: dict[str, np.ndarray] = {}
    for stage in artifact.stages:
        own = settings.stages.get(stage)
        position = settings.position if own is None or own.position is None else own.position
        harmful, harmless = (
            artifact.activations(kind, stage, layer=settings.layer - 1, position=position)[
                (artifact.statements(kind)["split"] == "train").to_numpy()
            ].astype(np.float64)
            for kind in ("harmful", "harmless")
        )
        found[stage] = harmful.mean(axis=0) - harmless.mean(axis=0)
    added = refusal.scores(artifact).frame.filter(intervention="add")
    for row in added.iter_rows(named=True):
        own = settings.stages.get(row["stage"])
        scale = 1.0 if own is None or own.scale is None else own.scale
        assert row["layer"] == settings.layer
        assert row["scale"] == scale
        if row["direction"] in ("own", "transferred"):
            vector = found[row["direction_stage"]]
            length = scale if settings.unit_length else float(np.linalg.norm(vector)) * scale
            assert row["length"] == pytest.approx(length, rel=1e-5)
    first, last = artifact.stages[0], artifact.stages[-1]
    similar = refusal.similarity(artifact, first, last, settings.layer).frame
    own_positions = [settings.place(stage)[1] for stage in (first, last)]
    row = similar.filter(position=own_positions[0], position_later=own_positions[1])
    cosine = found[first] @ found[last]
    cosine /= np.linalg.norm(found[first]) * np.linalg.norm(found[last])
    assert row["cosine"].item() == pytest.approx(cosine, abs=1e-5)


@pytest.mark.families
def test_questions_stand_behind_the_examples_of_the_card(whole: tuple[Served, Path]) -> None:
    served, root = whole
    card, artifact = served.card.card, sdk.load(root)
    asking = [trace for trace in card.traces if trace.form == "true_false"]
    if not asking:
        assert card.worked_examples is None
        return
    entries = json.loads(public_files()["few_shot_samples.json"])
    examples = {entry["dataset_name"]: entry["few_shot_examples"] for entry in entries}
    assert list(artifact.manifest.defaults.truth_examples) == examples["cities"]
    for trace in asking:
        group = root / "traces" / "-".join(artifact.stages[:2]) / f"{trace.dataset}.zarr"
        stored = json.loads((group / "zarr.json").read_text())["attributes"]
        assert stored["examples"] == examples[trace.dataset]
        assert len(stored["pairs"]) == trace.pairs
