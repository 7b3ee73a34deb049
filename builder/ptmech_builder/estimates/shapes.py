"""Shapes of public models, from which their parameters follow."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ptmech.errors import unknown
from ptmech.live.models import ModelShape


def dense_shape(
    *,
    layers: int,
    width: int,
    heads: int,
    kv_heads: int,
    d_head: int,
    d_mlp: int,
    vocabulary: int,
    tied: bool = False,
    qkv_bias: bool = False,
    norms: int = 2,
) -> ModelShape:
    """Count a dense decoder with gated MLPs, grouped queries and RMSNorms.

    A block has matrices for queries and output, for keys and values, and three for the MLP.

    Parameters
    ----------
    layers, width, heads, kv_heads, d_head, d_mlp, vocabulary
        As in a model's configuration.
    tied
        Whether the unembedding is the embedding.
    qkv_bias
        Whether queries, keys and values have biases.
    norms
        Norms of a block.
    """
    attention = heads * d_head
    keys_values = 2 * kv_heads * d_head
    matrices = width * (2 * attention + keys_values + 3 * d_mlp)
    vectors = norms * width + qkv_bias * (attention + keys_values)
    embeddings = (1 if tied else 2) * vocabulary * width
    return ModelShape(
        n_layers=layers,
        d_model=width,
        parameters=embeddings + layers * (matrices + vectors) + width,
        block_weights=layers * matrices,
        attention_width=attention,
    )


SHAPES: Mapping[str, ModelShape] = MappingProxyType(
    {
        "smollm2-135m": dense_shape(
            layers=30, width=576, heads=9, kv_heads=3, d_head=64, d_mlp=1536,
            vocabulary=49_152, tied=True,
        ),
        "qwen2.5-0.5b": dense_shape(
            layers=24, width=896, heads=14, kv_heads=2, d_head=64, d_mlp=4864,
            vocabulary=151_936, tied=True, qkv_bias=True,
        ),
        "qwen2.5-72b": dense_shape(
            layers=80, width=8192, heads=64, kv_heads=8, d_head=128, d_mlp=29_568,
            vocabulary=152_064, qkv_bias=True,
        ),
        "mistral-7b": dense_shape(
            layers=32, width=4096, heads=32, kv_heads=8, d_head=128, d_mlp=14_336,
            vocabulary=32_000,
        ),
        "llama-2-13b": dense_shape(
            layers=40, width=5120, heads=40, kv_heads=40, d_head=128, d_mlp=13_824,
            vocabulary=32_000,
        ),
        "llama-3.1-8b": dense_shape(
            layers=32, width=4096, heads=32, kv_heads=8, d_head=128, d_mlp=14_336,
            vocabulary=128_256,
        ),
        "llama-3.1-70b": dense_shape(
            layers=80, width=8192, heads=64, kv_heads=8, d_head=128, d_mlp=28_672,
            vocabulary=128_256,
        ),
        "llama-3.1-405b": dense_shape(
            layers=126, width=16_384, heads=128, kv_heads=8, d_head=128, d_mlp=53_248,
            vocabulary=128_256,
        ),
        "gemma-2-9b": dense_shape(
            layers=42, width=3584, heads=16, kv_heads=8, d_head=256, d_mlp=14_336,
            vocabulary=256_000, tied=True, norms=4,
        ),
        "gemma-2-27b": dense_shape(
            layers=46, width=4608, heads=32, kv_heads=16, d_head=128, d_mlp=36_864,
            vocabulary=256_000, tied=True, norms=4,
        ),
    }
)  # fmt: skip
"""By name, as their configurations on the Hub say."""


def shape_named(name: str) -> ModelShape:
    """Return the shape of a public model.

    Raises
    ------
    UnknownNameError
        If it is none of :data:`SHAPES`.
    """
    found = SHAPES.get(name.lower())
    if found is None:
        raise unknown("shape", name, SHAPES)
    return found
