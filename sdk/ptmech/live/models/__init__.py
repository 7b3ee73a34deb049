"""Where the weights of a stage come from, what identifies them, and how they are loaded.

A source says where to look: a file inside an installed package, a repository on the Hub at one
revision, or a folder. Whatever it is, it ends as a folder of safetensors on this machine, and from
there on every stage is loaded by the same few lines.
"""

from ptmech.live.models.files import ADAPTER_FILES, ModelIdentity, model_identity, pinned
from ptmech.live.models.loading import (
    LoadedModel,
    ModelShape,
    load_model,
    load_shape,
    load_tokenizer,
    pick_device,
    source_of,
    tokenizer_digest,
    torch_dtype,
)

__all__ = [
    "ADAPTER_FILES",
    "LoadedModel",
    "ModelIdentity",
    "ModelShape",
    "load_model",
    "load_shape",
    "load_tokenizer",
    "model_identity",
    "pick_device",
    "pinned",
    "source_of",
    "tokenizer_digest",
    "torch_dtype",
]
