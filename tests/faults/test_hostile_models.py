"""Models from strangers: no code that comes with them is run, no pickle of theirs is opened."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from tests.faults.hostile import Canary

from ptmech.errors import ArtifactNotFoundError, FormatError, UnsupportedModelError


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that is there if somebody else's code has run."""
    return tmp_path / "canary"


@pytest.fixture
def folder(tmp_path: Path, canary: Path, at_length: bool) -> Path:
    """A tiny model that brings code of its own along, which nobody needs to read it."""
    if not at_length:
        pytest.skip("opens models with torch: run with --at-length")
    from tests.tiny_models import tiny_model, word_tokenizer

    root = tmp_path / "model"
    tiny_model("llama").save_pretrained(root)
    word_tokenizer(["a", "b"]).save_pretrained(root)
    code = f"from pathlib import Path\nPath({str(canary)!r}).write_text('ran')\n"
    (root / "evil.py").write_text(code, encoding="utf-8")
    classes = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    edit(root / "config.json", auto_map=classes)
    edit(root / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokens", None]})
    return root


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}), encoding="utf-8")


def opened(folder: Path) -> Any:
    from ptmech.live import LiveModel

    return LiveModel.from_pretrained(folder, device="cpu")


def test_code_beside_a_known_model_is_not_run(folder: Path, canary: Path) -> None:
    assert opened(folder).n_layers > 0
    assert not canary.exists()


def test_code_of_an_unknown_model_is_not_run(
    folder: Path, canary: Path, monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    monkeypatch.setattr("builtins.input", lambda _prompt: "y")  # whoever is asked says yes
    edit(folder / "config.json", model_type="evil", architectures=["Evil"])
    with pytest.raises(UnsupportedModelError, match="code that comes with a model is never run"):
        opened(folder)
    assert not canary.exists()
    record_property("bad inputs refused", 1)


def test_a_model_that_nobody_knows(folder: Path, canary: Path, record_property: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["auto_map"]
    config["model_type"] = "evil"
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UnsupportedModelError, match="has no code for"):
        opened(folder)
    record_property("bad inputs refused", 1)


def test_pickled_weights_are_not_opened(folder: Path, canary: Path, record_property: Any) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(ArtifactNotFoundError, match="safetensors"):
        opened(folder)
    assert not canary.exists()
    record_property("bad inputs refused", 1)


def test_a_pickle_called_safetensors_is_not_opened(
    folder: Path, canary: Path, record_property: Any
) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(FormatError, match="not sound safetensors"):
        opened(folder)
    assert not canary.exists()
    record_property("bad inputs refused", 1)
