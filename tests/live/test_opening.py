"""Stages of an artifact, opened as live models; and models of one's own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tests.no_torch import WITHOUT_TORCH
from tests.tiny import Built, tiny_build
from transformers import AutoModelForCausalLM, AutoTokenizer

import ptmech as sdk
from ptmech import live
from ptmech.errors import (
    ArtifactNotFoundError,
    DataError,
    IntegrityError,
    NotStoredError,
    ParityError,
    UnknownNameError,
    UnsupportedModelError,
)
from ptmech.live.models.gguf import quiet_transformers
from ptmech.live.sites import ModelSites

PROMPTS = ["Rome is in Italy.", "Coal is black.", "x"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return tiny_build(tmp_path_factory)


@pytest.fixture(scope="module")
def tuned_by_hand(built: Built) -> Any:
    """The later stage as transformers and peft alone load it."""
    model = AutoModelForCausalLM.from_pretrained(built.family.model, dtype=torch.float32)
    with quiet_transformers():
        return PeftModel.from_pretrained(model, str(built.family.adapter)).merge_and_unload().eval()


def opened(built: Built, stage: str = "tuned", **options: Any) -> live.LiveModel:
    return live.open(sdk.load(built.root), stage, folder=built.family.model, **options)


def test_a_stage_is_the_model_it_was_built_from(built: Built, tuned_by_hand: Any) -> None:
    model = opened(built)
    tokenizer = AutoTokenizer.from_pretrained(built.family.model)
    assert model.name == f"{sdk.load(built.root).id}/tuned"
    assert not model.model.training
    assert not any(parameter.requires_grad for parameter in model.model.parameters())
    for prompt, logits in zip(PROMPTS, model.forward(PROMPTS), strict=True):
        with torch.no_grad():
            expected = tuned_by_hand(**tokenizer(prompt, return_tensors="pt")).logits[0]
        assert torch.allclose(logits, expected, rtol=1e-4, atol=1e-5)
    base = opened(built, "base").logits(PROMPTS)
    assert not torch.allclose(base, model.logits(PROMPTS), atol=1e-3)


def test_live_activations_are_the_stored_ones(built: Built) -> None:
    artifact = sdk.load(built.root)
    for stage in artifact.stages:
        model, dataset = opened(built, stage), artifact.datasets[0]
        table = artifact.tokens(stage).filter(dataset=dataset)
        stored = artifact.activations(dataset, stage, layer=1)
        found = model.activations(table["token_ids"].to_list(), layers=1)
        assert torch.allclose(found[:, 0, 0], torch.tensor(stored), rtol=1e-4, atol=1e-5)


def test_a_chat_prompt_is_the_template_s_tokens_once(built: Built) -> None:
    model = opened(built)
    tokenizer = model.tokenizer
    expected = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Name three trees."}], add_generation_prompt=True
    )
    ids = expected["input_ids"] if not isinstance(expected, list) else expected
    assert model.chat(["Name three trees."]) == [list(ids)]
    assert model.chat(["Name three trees."])[0].count(tokenizer.bos_token_id) == 1


def test_a_folder_stage_needs_its_folder(built: Built) -> None:
    artifact = sdk.load(built.root)
    with pytest.raises(NotStoredError, match="folder="):
        live.open(artifact, "base")
    with pytest.raises(UnknownNameError, match=r"unknown stage 'bse'.*'base'"):
        live.open(artifact, "bse")
    with pytest.raises(ArtifactNotFoundError, match=r"config\.json"):
        live.open(artifact, "base", folder=built.root)


def test_other_weights_and_another_tokenizer_are_refused(built: Built, tmp_path: Path) -> None:
    artifact, folder = sdk.load(built.root), tmp_path / "model"
    shutil.copytree(built.family.model, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] + 1e-3
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(IntegrityError, match=r"the weights of .*/base .*: model.safetensors"):
        live.open(artifact, "base", folder=folder)
    shutil.copy(built.family.model / "model.safetensors", folder)
    live.open(artifact, "base", folder=folder)
    described = json.loads((folder / "tokenizer.json").read_text())
    described["added_tokens"][0]["lstrip"] = not described["added_tokens"][0]["lstrip"]
    (folder / "tokenizer.json").write_text(json.dumps(described))
    with pytest.raises(IntegrityError, match="the tokenizer of"):
        live.open(artifact, "base", folder=folder)


def test_a_damaged_adapter_is_refused(built: Built, tmp_path: Path) -> None:
    root = tmp_path / "artifact"
    shutil.copytree(built.root, root)
    adapter = root / "adapters" / "tuned" / "adapter_model.safetensors"
    data = bytearray(adapter.read_bytes())
    data[-1] ^= 1
    adapter.write_bytes(data)
    with pytest.raises(IntegrityError, match="adapter_model"):
        live.open(sdk.load(root), "tuned", folder=built.family.model)


def test_sites_that_are_not_what_they_say_are_noticed(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    unembed = ModelSites.unembed
    monkeypatch.setattr(ModelSites, "unembed", lambda self, resid: unembed(self, resid) * 1.001)
    with pytest.raises(ParityError, match=r"/base deviate by .* cannot be used"):
        opened(built, "base")


def test_a_model_of_one_s_own(built: Built) -> None:
    model = live.LiveModel.from_pretrained(built.family.model)
    assert torch.equal(model.logits(PROMPTS), opened(built, "base").logits(PROMPTS))
    assert "llama" in repr(model)
    assert "float32 on cpu" in repr(model)
    half = live.LiveModel.from_pretrained(str(built.family.model), dtype="bfloat16")
    assert half.model.dtype == torch.bfloat16
    assert half.activations(PROMPTS, layers=[0, 2], positions=[-1]).dtype == torch.bfloat16


def test_activations_of_all_tokens_or_chosen_ones(built: Built, tuned_by_hand: Any) -> None:
    model = opened(built)
    same = ["abcd", "dcba"]
    with torch.no_grad():
        ids = model.tokenizer(same, return_tensors="pt")["input_ids"]
        states = tuned_by_hand(ids, output_hidden_states=True).hidden_states
    whole = model.activations(same, "resid_pre", layers=[2, 1], positions="all")
    assert torch.allclose(whole, torch.stack([states[2], states[1]], dim=1), atol=1e-6)
    ends = model.activations(same, "resid_pre", layers=2, positions=[[-1, 0], [1, 2]])
    expected = torch.stack([states[2][0, [-1, 0]], states[2][1, [1, 2]]])
    assert torch.allclose(ends[:, 0], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda m: m.activations(["ab", "abc"], positions="all"), DataError, "equally many"),
        (lambda m: m.activations(["ab"], positions=-9), DataError, "-9 lies outside of prompt 0"),
        (lambda m: m.activations(["ab"], positions=[[0], [0]]), DataError, "2 rows"),
        (lambda m: m.activations(["ab"], "mlp"), UnknownNameError, "unknown site 'mlp'"),
        (lambda m: m.activations(["ab"], layers=3), UnknownNameError, "unknown layer 3"),
        (lambda m: m.logits([]), DataError, "there must be one"),
        (lambda m: m.logits([[]]), DataError, "prompt 0 has no tokens"),
        (lambda m: m.logits([[1], [10**6]]), DataError, "prompt 1 has a token outside"),
        (lambda m: m.generate(["ab"], temperature=-1.0), DataError, "temperature"),
        (lambda m: m.generate(["ab"], temperature=1.0, top_p=0.0), DataError, "top_p"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(
    built: Built, wrong: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        wrong(opened(built, "base"))
    assert "\n" not in str(caught.value)


def test_what_cannot_be_loaded_is_refused(built: Built, tmp_path: Path) -> None:
    with pytest.raises(ArtifactNotFoundError, match="neither a folder nor the id"):
        live.LiveModel.from_pretrained("no-such-folder")
    with pytest.raises(DataError, match="takes no revision"):
        live.LiveModel.from_pretrained(built.family.model, "main")
    with pytest.raises(UnknownNameError, match="unknown dtype 'float8'"):
        live.LiveModel.from_pretrained(built.family.model, dtype="float8")  # pyright: ignore
    with pytest.raises(DataError, match="device 'moon' cannot be used"):
        live.LiveModel.from_pretrained(built.family.model, device="moon")
    folder = tmp_path / "model"
    shutil.copytree(built.family.model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "olmo"}))
    with pytest.raises(UnsupportedModelError, match="'olmo'"):
        live.LiveModel.from_pretrained(folder)


@pytest.mark.parametrize("name", ["open", "LiveModel", "ablate", "causal_trace"])
def test_without_torch_the_way_to_it_is_named(name: str) -> None:
    code = (
        f"{WITHOUT_TORCH}\nfrom ptmech import live, errors\n"
        f"try:\n    live.{name}\nexcept errors.PrerequisiteError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'ptmech[live]'" in done.stdout
    assert done.stdout.count("\n") == 1
