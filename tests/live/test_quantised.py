"""Quantised weights are refused unless someone asks for them by name."""

from __future__ import annotations

import json
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import save_adapter, save_model
from tests.tiny_models import CONFIGS, tiny_model

from ptmech.errors import FormatError, PrerequisiteError, UnsupportedModelError
from ptmech.live.interventions import intervene, mean_ablate
from ptmech.live.model import LiveModel
from ptmech.live.models import load_model, model_identity, quantised
from ptmech.live.sites import ModelSites
from ptmech.model_sources import FolderModel

METHODS: dict[str, tuple[dict[str, Any], str | None]] = {
    "gptq": ({"quant_method": "gptq", "bits": 4}, "4bit"),
    "awq": ({"quant_method": "awq", "bits": 4}, "4bit"),
    "fp8": ({"quant_method": "fp8", "activation_scheme": "dynamic"}, "8bit"),
    "8 bits": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "8bit"),
    "4 bits": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "4bit"),
    "groups": ({"quant_method": "compressed-tensors", "config_groups": {}}, None),
    "3 bits": ({"quant_method": "gptq", "bits": 3}, None),
    "nameless": ({"bits": 8}, "8bit"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model")


def say(folder: Path, about: dict[str, Any], *, key: str = "quantization_config") -> None:
    """Have the configuration say that the weights are quantised."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: about}))


@pytest.mark.parametrize("method", METHODS)
def test_quantised_weights_are_refused_with_method_and_way_out(folder: Path, method: str) -> None:
    about, bits = METHODS[method]
    say(folder, about)
    with pytest.raises(UnsupportedModelError) as caught:
        LiveModel.from_pretrained(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert "folder:model" in message
    assert about.get("quant_method", "does not name") in message
    assert (f'quantisation = "{bits}"' if bits else "unquantised weights") in message


def test_the_configuration_may_say_it_elsewhere(folder: Path) -> None:
    say(folder, {"quant_method": "compressed-tensors"}, key="compression_config")
    with pytest.raises(UnsupportedModelError, match="compressed-tensors"):
        load_model(FolderModel(path=folder))


def test_a_configuration_that_is_no_json_is_one_line(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama"')
    with pytest.raises(FormatError, match=r"config\.json is not JSON: .*; save the model again"):
        load_model(FolderModel(path=folder))


@pytest.mark.parametrize(
    ("method", "asked"), [("gptq", "8bit"), ("fp8", "4bit"), ("groups", "8bit")]
)
def test_weights_quantised_otherwise_than_asked_for_are_refused(
    folder: Path, method: str, asked: Any
) -> None:
    say(folder, METHODS[method][0])
    with pytest.raises(UnsupportedModelError, match="are quantised"):
        load_model(FolderModel(path=folder), quantisation=asked)


def test_what_is_missing_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setattr(quantised, "find_spec", lambda _name: None)
    with pytest.raises(PrerequisiteError, match=r"8bit weights need .*pip install bitsandbytes$"):
        LiveModel.from_pretrained(folder, quantisation="8bit")
    say(folder, METHODS["gptq"][0])
    with pytest.raises(PrerequisiteError, match="folder:model cannot be loaded: ") as caught:
        load_model(FolderModel(path=folder), quantisation="4bit")
    assert "\n" not in str(caught.value)
    assert not list(scratch.iterdir())


def test_no_adapter_is_merged_into_quantised_weights(folder: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", folder)
    with pytest.raises(UnsupportedModelError, match="adapter cannot be merged into the 8bit"):
        load_model(FolderModel(path=folder), adapter=adapter, quantisation="8bit")


def test_to_what_weights_are_quantised_is_part_of_what_they_are(folder: Path) -> None:
    source = FolderModel(path=folder)
    plain, eight, four = (model_identity(source, quantisation=q) for q in (None, "8bit", "4bit"))
    assert len({plain.digest, eight.digest, four.digest}) == 3
    assert plain.digests == eight.digests == four.digests


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_a_quantised_model_has_sites_but_no_weights_to_read(
    folder: Path, bits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # bitsandbytes computes with 32 rows at once.
    wide = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "vocab_size": 400}
    monkeypatch.setitem(CONFIGS, "llama", {**CONFIGS["llama"], **wide})
    tiny_model().save_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bitsandbytes, about computing in half precision
        live = LiveModel.from_pretrained(folder, device="cpu", quantisation=bits)
        whole = LiveModel.from_pretrained(folder, device="cpu")
        tokens = [[3, 7, 11, 2, 30]]
        quantised_logits, logits = live.logits(tokens), whole.logits(tokens)
        assert 0 < float((quantised_logits - logits).abs().max()) < float(logits.abs().max())
        assert live.sites.d_mlp == whole.sites.d_mlp
        assert torch.equal(live.sites.w_u, whole.sites.w_u)
        with intervene(live.model, mean_ablate([1], [3.0])):
            assert not torch.equal(live.logits(tokens), quantised_logits)
    with pytest.raises(UnsupportedModelError, match="quantised model's neurons"):
        _ = ModelSites.of(live.model).w_out
