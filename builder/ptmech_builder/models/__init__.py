"""Where the weights of a stage come from, what identifies them, and how they are loaded.

A source says where to look: a file inside an installed package, a repository on the Hub at one
revision, or a folder. Whatever it is, it ends as a folder of safetensors on this machine, and from
there on every stage is loaded by the same few lines.
"""

from ptmech_builder.models.files import ADAPTER_FILES, ModelIdentity, model_identity
from ptmech_builder.models.loading import (
    LoadedModel,
    ModelShape,
    load_model,
    load_shape,
    load_tokenizer,
    tokenizer_digest,
)
from ptmech_builder.models.sources import FolderModel, HubModel, ModelSource, PackagedModel

__all__ = [
    "ADAPTER_FILES",
    "FolderModel",
    "HubModel",
    "LoadedModel",
    "ModelIdentity",
    "ModelShape",
    "ModelSource",
    "PackagedModel",
    "load_model",
    "load_shape",
    "load_tokenizer",
    "model_identity",
    "tokenizer_digest",
]
