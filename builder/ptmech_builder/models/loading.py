"""Load a stage: weights from wherever its source says, adapter merged in, tokenizer, identity.

Whatever the source, it has become a folder of safetensors on this machine before anything is
loaded, so there is one way to load and no special case for a model family.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ptmech_builder.models.files import ModelIdentity, local_folder, model_identity, pinned
from ptmech_builder.models.gguf import quiet_transformers
from ptmech_builder.models.sources import Frozen, ModelSource, PackagedModel

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
    from transformers import AutoConfig

    from ptmech.live.architectures import architecture_of

    with quiet_transformers():
        whole = AutoConfig.from_pretrained(local_folder(source, with_weights=False))
    config = whole.get_text_config()
    architecture_of(config.model_type)  # raises for one whose sites are not known
    return ModelShape(n_layers=config.num_hidden_layers, d_model=config.hidden_size)


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
