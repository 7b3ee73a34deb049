"""Which models can run trees: those whose attention takes a mask of ours, and whose past is causal.

Asked of the configuration alone, so that it can be told before any weights are there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ptmech.live.architectures import ARCHITECTURES

MASKED_ATTENTION = ("sdpa", "eager")
"""Implementations of attention that take any mask; the others, such as flash attention, do not."""

FULL, SLIDING = "full_attention", "sliding_attention"
"""How transformers calls the two kinds of attention layers that a tree has a mask for."""

_BY_LENGTH = ("dynamic", "longrope")


def without_tree(config: Any) -> str:
    """Say why a model cannot run prefix trees; empty if it can.

    Parameters
    ----------
    config
        The configuration of a causal language model of transformers, of its text part.

    Returns
    -------
    str
        The reason, naming what is in the way.
    """
    attention = getattr(config, "_attn_implementation", None)
    # Before a model is loaded, none may be chosen; what transformers then chooses takes masks.
    if attention is not None and attention not in MASKED_ATTENTION:
        return f"its attention ({attention}) takes no mask of one's own"
    if config.model_type not in ARCHITECTURES:
        return f"models of type {config.model_type!r} are not known to take a mask of one's own"
    if getattr(config, "alibi", False):
        return "its attention goes by distance in the sequence (ALiBi)"
    bidirectional = getattr(config, "use_bidirectional_attention", None)
    if bidirectional or not getattr(config, "is_causal", True):
        return "its tokens attend to later ones"
    other = next((kind for kind in layer_kinds(config) if kind not in (FULL, SLIDING)), None)
    if other is not None:
        return f"it has attention layers of kind {other!r}"
    by_length = next((kind for kind in _rope_kinds(config) if kind in _BY_LENGTH), None)
    if by_length is not None:
        return f"its position embeddings ({by_length}) depend on the longest text that runs along"
    return ""


def layer_kinds(config: Any) -> tuple[str, ...]:
    """Return the kinds of attention layers a model has, each once."""
    stated = getattr(config, "layer_types", None)
    if stated is not None:
        return tuple(dict.fromkeys(stated))
    return (FULL,) if getattr(config, "sliding_window", None) is None else (SLIDING,)


def _rope_kinds(config: Any) -> tuple[str, ...]:
    stated: Any = getattr(config, "rope_parameters", None) or {}
    parts = [part for part in stated.values() if isinstance(part, Mapping)] or [stated]
    return tuple(part.get("rope_type", "default") for part in parts)
