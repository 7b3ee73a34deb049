"""What the live model says: greedy completions, next-token logits, loss on plain text.

All of it runs under whatever interventions are active. Rows are sorted by length, padded with a
mask, and returned in the order they came in; neither padding nor the other rows of a batch change
a result beyond rounding.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ptmech.errors import DataError
from ptmech.live.sites import ModelSites

TokenIds = Sequence[int]


def pad(rows: Sequence[TokenIds], *, side: Literal["left", "right"]) -> tuple[Tensor, Tensor]:
    """Pad token lists to one length.

    Parameters
    ----------
    rows
        Token ids, one list a row.
    side
        Where the padding goes.

    Returns
    -------
    input_ids, attention_mask
        Both int64 [rows, tokens]; the mask is 1 where a token is real. Padding has id 0, which
        every vocabulary knows; what it does is masked.
    """
    width = max(len(row) for row in rows)
    input_ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for index, row in enumerate(rows):
        real = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        input_ids[index, real] = torch.as_tensor(row, dtype=torch.long)
        mask[index, real] = 1
    return input_ids, mask


@torch.inference_mode()
def greedy_tokens(
    model: nn.Module,
    tokenizer: Any,
    token_lists: Sequence[TokenIds],
    *,
    max_new_tokens: int,
    batch_size: int = 32,
) -> list[list[int]]:
    """Complete prompts greedily, as token ids.

    Parameters
    ----------
    model
        A transformers causal language model.
    tokenizer
        Its tokenizer, which knows the token that ends a reply.
    token_lists
        Prompts as token ids, special tokens included.
    max_new_tokens
        Length at which a completion is cut off.
    batch_size
        Prompts that run together.

    Returns
    -------
    list of list of int
        The new tokens of each prompt, up to and including the one that ends the reply. Sampling
        settings and penalties that came with the model are ignored: the most likely token is taken
        every time.

    Raises
    ------
    DataError
        A prompt without tokens.
    """
    sites = ModelSites.of(model)
    ends = _end_tokens(model, tokenizer)
    replies: list[list[int]] = [[] for _ in token_lists]
    with _plain_generation(model, ends):
        for batch in _batches(token_lists, batch_size):
            input_ids, mask = pad([token_lists[row] for row in batch], side="left")
            runner: Any = model
            whole = runner.generate(
                input_ids.to(sites.device),
                attention_mask=mask.to(sites.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
            )
            for row, new in zip(batch, whole[:, input_ids.shape[1] :].tolist(), strict=True):
                stop = next((at for at, token in enumerate(new) if token in ends), len(new))
                replies[row] = new[: stop + 1]
    return replies


def greedy_completions(
    model: nn.Module,
    tokenizer: Any,
    token_lists: Sequence[TokenIds],
    *,
    max_new_tokens: int,
    batch_size: int = 32,
) -> list[str]:
    """Complete prompts greedily, as text.

    Parameters
    ----------
    model, tokenizer, token_lists, max_new_tokens, batch_size
        As for :func:`greedy_tokens`.

    Returns
    -------
    list of str
        The new text of each prompt, without special tokens and without the token that ends it.

    Raises
    ------
    DataError
        A prompt without tokens.
    """
    replies = greedy_tokens(
        model, tokenizer, token_lists, max_new_tokens=max_new_tokens, batch_size=batch_size
    )
    ends = _end_tokens(model, tokenizer)
    return [
        tokenizer.decode([token for token in reply if token not in ends], skip_special_tokens=True)
        for reply in replies
    ]


@torch.inference_mode()
def next_token_logits(
    model: nn.Module, token_lists: Sequence[TokenIds], *, batch_size: int = 32
) -> Tensor:
    """Logits [rows, vocabulary] of the token after each prompt, float32 on the CPU.

    Only the last token of each row meets the unembedding.

    Raises
    ------
    DataError
        No prompts, or a prompt without tokens.
    """
    sites = ModelSites.of(model)
    logits = torch.empty(len(token_lists), sites.vocabulary)
    for batch in _batches(token_lists, batch_size):
        normed, _ids, mask = _run_body(sites, [token_lists[row] for row in batch])
        last = mask.sum(dim=1) - 1
        rows = normed[torch.arange(len(batch), device=normed.device), last.to(normed.device)]
        logits[batch] = sites.project(rows).float().cpu()
    return logits


@torch.inference_mode()
def next_token_loss(
    model: nn.Module,
    token_lists: Sequence[TokenIds],
    *,
    batch_size: int = 8,
    tokens_at_once: int = 512,
) -> float:
    """Mean cross-entropy of plain texts in nats a token: the coherence figure.

    Every token but the first of each text counts once.

    Parameters
    ----------
    model
        A transformers causal language model.
    token_lists
        Texts as token ids, each of at least two tokens.
    batch_size
        Texts that run together.
    tokens_at_once
        Tokens that meet the unembedding together; bounds the memory of the logits.

    Raises
    ------
    DataError
        No texts, or one of fewer than two tokens.
    """
    if any(len(tokens) < 2 for tokens in token_lists):
        raise DataError("the loss of a text needs at least two tokens")
    sites = ModelSites.of(model)
    total, count = 0.0, 0
    for batch in _batches(token_lists, batch_size):
        normed, input_ids, mask = _run_body(sites, [token_lists[row] for row in batch])
        predicted = mask[:, 1:].bool()
        before = normed[:, :-1][predicted.to(normed.device)]
        targets = input_ids[:, 1:][predicted].to(before.device)
        for rows, expected in zip(
            before.split(tokens_at_once), targets.split(tokens_at_once), strict=True
        ):
            logits = sites.project(rows).float()
            total += float(cross_entropy(logits, expected.to(logits.device), reduction="sum"))
        count += len(targets)
    return total / count


def _run_body(sites: ModelSites, rows: Sequence[TokenIds]) -> tuple[Tensor, Tensor, Tensor]:
    input_ids, mask = pad(rows, side="right")
    output = sites.body(
        input_ids=input_ids.to(sites.device), attention_mask=mask.to(sites.device), use_cache=False
    )
    return output.last_hidden_state, input_ids, mask


def _batches(token_lists: Sequence[TokenIds], batch_size: int) -> list[list[int]]:
    """Row numbers in batches, longest first, so that memory is exhausted at once or never."""
    if not token_lists or not all(len(tokens) for tokens in token_lists):
        raise DataError("prompts must have at least one token, and there must be one")
    order = sorted(range(len(token_lists)), key=lambda row: -len(token_lists[row]))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _end_tokens(model: nn.Module, tokenizer: Any) -> list[int]:
    config: Any = model.generation_config
    ends: list[int] = []
    for stated in (config.eos_token_id, tokenizer.eos_token_id):
        ends.extend([stated] if isinstance(stated, int) else stated or ())
    return list(dict.fromkeys(ends))


@contextmanager
def _plain_generation(model: nn.Module, ends: list[int]) -> Generator[None]:
    # transformers fills whatever a call leaves open from the model's own settings, among them
    # repetition penalties, so these have to be set aside.
    from transformers import GenerationConfig

    holder: Any = model
    own = holder.generation_config
    holder.generation_config = GenerationConfig(eos_token_id=ends or None, pad_token_id=0)
    try:
        yield
    finally:
        holder.generation_config = own
