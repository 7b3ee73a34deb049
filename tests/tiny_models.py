"""Tiny random models of every supported architecture, and their forwards written out by hand.

Norm gains and biases are random, too: left at one and zero they would hide mistakes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

N_LAYERS = 3
D_MODEL = 16
D_MLP = 24
VOCABULARY = 41

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": D_MODEL,
    "intermediate_size": D_MLP,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
_GEMMA = {"final_logit_softcapping": 2.0, "sliding_window": 4, "query_pre_attn_scalar": 4}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _COMMON,
    "mistral": {**_COMMON, "sliding_window": 5},
    "qwen2": _COMMON,
    "qwen3": _COMMON,
    "gemma2": {**_COMMON, **_GEMMA},
    "gemma3_text": {**_COMMON, **_GEMMA},
    "gpt2": {
        "vocab_size": VOCABULARY,
        "n_embd": D_MODEL,
        "n_inner": D_MLP,
        "n_layer": N_LAYERS,
        "n_head": 4,
        "n_positions": 128,
        "bos_token_id": None,
        "eos_token_id": None,
    },
}
FAMILIES = tuple(CONFIGS)


def tiny_model(model_type: str = "llama", *, seed: int = 0) -> Any:
    """A random causal language model in evaluation mode, float32."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **CONFIGS[model_type])
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.4 if parameter.ndim == 1 else 1.5 / parameter.shape[-1] ** 0.5
            parameter.add_(torch.randn_like(parameter) * spread)
    model.generation_config.eos_token_id = None
    return model.eval().requires_grad_(False)


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of one token a word, in this order after <unk> and <end>."""
    vocabulary = {word: index for index, word in enumerate(["<unk>", "<end>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>")


def blocks(model: Any) -> Sequence[Any]:
    """The decoder blocks."""
    return model.transformer.h if model.config.model_type == "gpt2" else model.model.layers


def attention_by_hand(block: Any, stream: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """What attention adds to the stream."""
    if hasattr(block, "attn"):  # GPT-2 hands cache and mask over by place
        kwargs = {"past_key_values": args[0], "attention_mask": args[1], **kwargs}
        return block.attn(block.ln_1(stream), **kwargs)[0]
    added = block.self_attn(hidden_states=block.input_layernorm(stream), **kwargs)[0]
    if hasattr(block, "post_feedforward_layernorm"):
        return block.post_attention_layernorm(added)
    return added


def mlp_by_hand(block: Any, stream: Tensor) -> Tensor:
    """What the MLP adds to the stream."""
    if hasattr(block, "ln_2"):
        return block.mlp(block.ln_2(stream))
    if hasattr(block, "post_feedforward_layernorm"):
        added = block.mlp(block.pre_feedforward_layernorm(stream))
        return block.post_feedforward_layernorm(added)
    return block.mlp(block.post_attention_layernorm(stream))


@contextmanager
def blocks_by_hand(model: Any, edit: Callable[[str, int, Tensor], Tensor]) -> Iterator[None]:
    """Run the blocks as written here, with `edit(site, layer, stream)` at each residual site."""

    def forward_of(block: Any, layer: int) -> Callable[..., Tensor]:
        def forward(stream: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            stream = edit("resid_pre", layer, stream)
            stream = stream + attention_by_hand(block, stream, *args, **kwargs)
            stream = edit("resid_mid", layer, stream)
            stream = stream + mlp_by_hand(block, stream)
            return edit("resid_post", layer, stream)

        return forward

    try:
        for layer, block in enumerate(blocks(model)):
            block.forward = forward_of(block, layer)
        yield
    finally:
        for block in blocks(model):
            del block.forward


def complete_by_hand(model: Any, tokens: Sequence[int], *, steps: int, ends: set[int]) -> list[int]:
    """Greedy completion of one prompt, a whole forward a token."""
    new: list[int] = []
    for _ in range(steps):
        best = int(model(torch.tensor([[*tokens, *new]]), use_cache=False).logits[0, -1].argmax())
        if best in ends:
            break
        new.append(best)
    return new


def hook_count(model: nn.Module) -> int:
    """How many forward hooks are on the model."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
