"""How a stage answers: its own replies, and how often they refuse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from ptmech.live.generation import generate_tokens
from ptmech.refusal import is_refusal
from ptmech_builder.safety_tuning.losses import rendered

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def greedy_replies(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    tokens: int,
) -> list[list[int]]:
    """Return greedy replies to chat prompts, as token ids up to and including the end of turn.

    Parameters
    ----------
    model, tokenizer
        The stage that answers.
    prompts
        User messages, rendered in the tokenizer's chat template.
    tokens
        Longest reply.

    Returns
    -------
    list of list of int
        In the order of `prompts`.
    """
    texts = [rendered(tokenizer, prompt) for prompt in prompts]
    encoded: Any = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return generate_tokens(model, tokenizer, encoded, max_new_tokens=tokens)


def refusal_counts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: pl.DataFrame,
    *,
    tokens: int = 12,
) -> dict[str, dict[str, int]]:
    """Count refusals by split.

    Parameters
    ----------
    model, tokenizer
        The stage that answers.
    prompts
        Columns ``text`` and ``split``.
    tokens
        Reply tokens to look at; the phrases are shorter.

    Returns
    -------
    dict
        ``{split: {"refused": ..., "prompts": ...}}``.
    """
    replies = greedy_replies(model, tokenizer, prompts["text"].to_list(), tokens=tokens)
    texts = [tokenizer.decode(reply, skip_special_tokens=True) for reply in replies]
    judged = prompts.with_columns(refused=pl.Series([is_refusal(str(text)) for text in texts]))
    return {
        str(split): {"refused": int(rows["refused"].sum()), "prompts": rows.height}
        for (split,), rows in sorted(judged.group_by("split"))
    }
