"""Where each supported architecture keeps its parts: one declarative table.

A family is a row of :data:`ARCHITECTURES`, keyed by transformers' ``model_type``; nothing else in
ptmech asks which family a model belongs to. Most decoders name their modules as Llama does, so a
row states only what differs; one without a row that is built like one that has is found by
:mod:`ptmech.live.structure`. A new row counts once a test has shown, on a tiny random model, that
the sites it names obey :func:`ptmech.live.recording.site_self_check`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

NormKind = Literal["rms", "layer"]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Module paths and conventions of one transformers ``model_type``.

    Paths are dotted module names: `body` and `unembedding` start at the causal language model,
    `layers`, `embedding` and `final_norm` at the body, all others at one decoder block.

    Attributes
    ----------
    model_type
        What the model's configuration calls it.
    body
        The decoder without its unembedding; paths below are of modules in it, or in a block.
    unembedding
        The linear map from the normed stream to logits, in the whole model.
    layers, embedding, final_norm
        Decoder blocks, token embedding and last norm, in the body.
    attention
        The module that runs attention, in a block.
    norm_kind
        ``"rms"``, or ``"layer"`` for norms that also remove the mean over d_model.
    """

    model_type: str

    body: str = "model"
    unembedding: str = "lm_head"

    layers: str = "layers"
    embedding: str = "embed_tokens"
    final_norm: str = "norm"

    block: str = ""
    """The block itself: its input is ``resid_pre``, its output ``resid_post``."""
    attention: str = "self_attn"
    attn_out: str = "self_attn"
    """The module whose output attention adds to the stream (after any post-attention norm)."""
    before_mlp: str = "post_attention_layernorm"
    """What reads the stream for the MLP, a norm or the MLP itself: its input is ``resid_mid``, or
    in a parallel block ``resid_pre``."""
    mlp: str = "mlp"
    """The module whose output the MLP writes, before any norm."""
    mlp_out: str = "mlp"
    """The module whose output the MLP adds to the stream (after any post-MLP norm)."""
    down_projection: str = "mlp.down_proj"
    """The MLP's last linear map, one column a neuron; a mixture of experts has none."""
    experts: str | None = None
    """What holds the experts of a mixture. Blocks that have it have no neurons to name."""

    parallel: bool | str = False
    """Whether attention and MLP read the same stream side by side, instead of the MLP reading what
    attention left; or the name of the configuration entry that says so. ``attn_out`` must then lie
    inside of ``attention``."""
    rows_flattened: bool = False
    """Whether the block puts all tokens of a batch into one row before its MLP."""
    norm_kind: NormKind = "rms"
    gain_offset: float = 0.0
    """What the norms add to their stored weight before multiplying; 1 in Gemma."""
    projections_transposed: bool = False
    """Whether projections store [inputs, outputs], as GPT-2's ``Conv1D`` does."""
    logit_softcap: str | None = None
    """Name of the configuration entry with the cap of the logits, where there is one."""
    requires: tuple[tuple[str, Any], ...] = ()
    """Configuration entries and their values; with others such a model is built otherwise."""


_GEMMA2 = Architecture(
    model_type="gemma2",
    attn_out="post_attention_layernorm",
    before_mlp="pre_feedforward_layernorm",
    mlp_out="post_feedforward_layernorm",
    gain_offset=1.0,
    logit_softcap="final_logit_softcapping",
)

_MIXTRAL = Architecture(model_type="mixtral", experts="mlp.experts")

_ROWS = (
    Architecture(model_type="llama"),
    Architecture(model_type="mistral"),
    Architecture(model_type="qwen2"),
    Architecture(model_type="qwen3"),
    Architecture(model_type="phi3"),
    Architecture(model_type="smollm3"),
    _MIXTRAL,
    replace(_MIXTRAL, model_type="qwen2_moe"),
    replace(_MIXTRAL, model_type="qwen3_moe"),
    Architecture(
        model_type="olmo2",
        attn_out="post_attention_layernorm",
        before_mlp="mlp",
        mlp_out="post_feedforward_layernorm",
    ),
    _GEMMA2,
    replace(_GEMMA2, model_type="gemma3_text"),
    Architecture(
        model_type="gpt2",
        body="transformer",
        layers="h",
        embedding="wte",
        final_norm="ln_f",
        attention="attn",
        attn_out="attn",
        before_mlp="ln_2",
        down_projection="mlp.c_proj",
        norm_kind="layer",
        projections_transposed=True,
    ),
    Architecture(
        model_type="gpt_neox",
        body="gpt_neox",
        embedding="embed_in",
        final_norm="final_layer_norm",
        attention="attention",
        attn_out="attention.dense",
        down_projection="mlp.dense_4h_to_h",
        parallel="use_parallel_residual",
        norm_kind="layer",
    ),
    Architecture(
        model_type="opt",
        body="model.decoder",
        final_norm="final_layer_norm",
        before_mlp="final_layer_norm",
        mlp="fc2",
        mlp_out="fc2",
        down_projection="fc2",
        rows_flattened=True,
        norm_kind="layer",
        # Where norms follow the sums, as in OPT-350m, the stream is not the sum of its parts.
        requires=(("do_layer_norm_before", True),),
    ),
)

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {architecture.model_type: architecture for architecture in _ROWS}
)
"""The supported architectures by ``model_type``."""
