"""Load a stage: weights from wherever its source says, adapter merged in, tokenizer, identity.

Whatever the source, it has become a folder of safetensors on this machine before anything is
loaded, so there is one way to load and no special case for a model family.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import ValidationError

from ptmech.errors import ArtifactNotFoundError, DataError, unknown
from ptmech.live.models.files import ModelIdentity, local_folder, model_identity, pinned
from ptmech.live.models.gguf import quiet_transformers
from ptmech.manifest import StoredDtype
from ptmech.model_sources import FolderModel, Frozen, HubModel, ModelSource, PackagedModel

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class ModelShape(Frozen):
    """How many decoder blocks a model has, and how wide its residual stream is."""

    n_layers: int
    d_model: int


@dataclass(frozen=True)
class LoadedModel:
    """A stage in memory, ready for forward passes: eval mode, no gradients.

    Attributes
    ----------
    model
        The causal language model, with the adapter already merged.
    tokenizer
        Its tokenizer, which pads on the right.
    identity
        What was loaded.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    identity: ModelIdentity


def source_of(id_or_path: str | Path, revision: str | None) -> ModelSource:
    """Say where the weights of an id or a folder come from.

    Raises
    ------
    DataError
        A revision of a folder.
    ArtifactNotFoundError
        Neither a folder nor what an id on the Hub looks like.
    """
    folder = Path(id_or_path).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise DataError(f"{str(id_or_path)!r} is a local folder: it takes no revision")
        return FolderModel(path=folder)
    with suppress(ValidationError):  # neither of the two, then
        if isinstance(id_or_path, str):
            return HubModel(hub=id_or_path, revision=revision or "main")
    raise ArtifactNotFoundError(
        f"{str(id_or_path)!r} is neither a folder nor the id of a model on the Hub (owner/name)"
    )


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a source without its weights.

    It pads on the right, so that position ids and explicit last-token indices stay plain.

    Raises
    ------
    PrerequisiteError, IntegrityError, ArtifactNotFoundError
        As in :func:`model_identity`.
    """
    return _tokenizer(local_folder(source, with_weights=False), source)


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return one sha256 over all that decides how a tokenizer renders and splits a prompt."""
    fast: Any = tokenizer.backend_tokenizer
    described = f"{fast.to_str()}\0{tokenizer.chat_template}"
    return hashlib.sha256(described.encode()).hexdigest()


def load_shape(source: ModelSource) -> ModelShape:
    """Read number of layers and width from the configuration, without loading weights.

    Raises
    ------
    UnsupportedModelError
        The sites of such an architecture are not known.
    PrerequisiteError, IntegrityError, ArtifactNotFoundError
        As in :func:`model_identity`.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from ptmech.live.structure import find_architecture

    with quiet_transformers():
        config = AutoConfig.from_pretrained(local_folder(source, with_weights=False))
        config = config.get_text_config()
        with torch.device("meta"):
            find_architecture(AutoModelForCausalLM.from_config(config))
    return ModelShape(n_layers=config.num_hidden_layers, d_model=config.hidden_size)


def pick_device(wanted: str) -> str:
    """Say which torch device to use: ``"auto"`` is the GPU if there is one, else the CPU.

    Raises
    ------
    DataError
        A device that cannot be used here.
    """
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"device {wanted!r} cannot be used: {reason}") from error
    return wanted


def torch_dtype(name: str) -> torch.dtype:
    """Return torch's element type of that name.

    Raises
    ------
    UnknownNameError
        It is not one of those that artifacts are computed and stored in.
    """
    import torch

    known = get_args(StoredDtype)
    if name not in known:
        raise unknown("dtype", name, known)
    return getattr(torch, name)


def load_model(
    source: ModelSource,
    *,
    adapter: Path | None = None,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    attention: Literal["sdpa", "eager"] = "sdpa",
) -> LoadedModel:
    """Load a stage: weights, adapter merged in, tokenizer and identity.

    Parameters
    ----------
    source
        Where the weights come from.
    adapter
        Folder of a peft LoRA adapter, merged in float32 before the cast to `dtype`.
    device
        A torch device, or ``"auto"`` to spread a model over all GPUs.
    dtype
        Floating-point type of the model; None means float32.
    attention
        The attention implementation of transformers.

    Raises
    ------
    PrerequisiteError, IntegrityError, ArtifactNotFoundError
        As in :func:`model_identity`; IntegrityError also when downloaded or cached bytes differ
        from what the identity says.

    Examples
    --------
    >>> loaded = load_model(FolderModel(path="models/tiny"))  # doctest: +SKIP
    >>> loaded.model.training  # doctest: +SKIP
    False
    """
    import torch
    from transformers import AutoModelForCausalLM

    wanted = dtype or torch.float32
    source = pinned(source)  # a branch must not move between hashing and loading
    identity = model_identity(source, adapter)
    folder = local_folder(source)
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32 if adapter else wanted,
            attn_implementation=attention,
            use_safetensors=True,
            device_map=device if device == "auto" else None,
        )
    if adapter is not None:
        model = _merged(model, adapter)
    torch.nn.Module.to(model, device=None if device == "auto" else device, dtype=wanted)
    model.eval().requires_grad_(False)
    return LoadedModel(model=model, tokenizer=_tokenizer(folder, source), identity=identity)


def _merged(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """W + (alpha / rank) B A in every adapted module, in the model's float32."""
    from peft import PeftModel

    with quiet_transformers():
        return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)


def _tokenizer(folder: Path, source: ModelSource) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right")
    if isinstance(source, PackagedModel) and source.chat_template is not None:
        tokenizer.chat_template = source.chat_template
    return tokenizer
