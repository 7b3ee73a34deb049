"""Llamas with random weights, made where they run: nothing is downloaded, nothing drawn twice."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

SHAPES: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "llama-3.1-8b": {
            "vocab_size": 128_256,
            "hidden_size": 4096,
            "intermediate_size": 14_336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 8192,
        },
        "tiny": {
            "vocab_size": 512,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
        },
    }
)
"""Sizes by name, as transformers' configuration calls them."""

GAIN = 0.4
"""How much of a vector's length a random projection keeps. Near 1 a random model is chaotic: 32
blocks then blow the last bit of bf16 up to a tenth, which no trained model does."""


def llama_config(shape: str) -> LlamaConfig:
    """Return transformers' configuration of a shape of :data:`SHAPES`."""
    sizes: dict[str, Any] = dict(SHAPES[shape])
    return LlamaConfig(
        **sizes,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        tie_word_embeddings=False,
        use_cache=False,
    )


def random_llama(
    shape: str, device: torch.device, *, attention: str = "sdpa", seed: int = 0
) -> PreTrainedModel:
    """Make a Llama in bf16, with random weights drawn on the device itself.

    Parameters
    ----------
    shape
        A name of :data:`SHAPES`.
    device
        Where it is made and stays.
    attention
        The attention implementation, by transformers' name.
    seed
        Decides every weight.
    """
    # Parameters are mere shapes at first; the few buffers, which are computed, are not.
    with init_empty_weights(include_buffers=False):
        model: Any = AutoModelForCausalLM.from_config(
            llama_config(shape), dtype=torch.bfloat16, attn_implementation=attention
        )
    generator = torch.Generator(device).manual_seed(seed)
    for module in model.modules():
        for name, shaped in module.named_parameters(recurse=False):
            values = torch.empty(shaped.shape, dtype=torch.bfloat16, device=device)
            if shaped.ndim == 1:
                values.fill_(1.0)
            else:
                spread = 1.0 if isinstance(module, nn.Embedding) else GAIN / shaped.shape[1] ** 0.5
                values.normal_(0.0, spread, generator=generator)
            setattr(module, name, nn.Parameter(values, requires_grad=False))
    return model.to(device).eval()


def block_parameters(model: PreTrainedModel) -> int:
    """Count the entries of all matrices in the decoder blocks: what each token is multiplied by."""
    blocks = model.get_submodule("model.layers")
    return sum(values.numel() for values in blocks.parameters() if values.ndim == 2)
