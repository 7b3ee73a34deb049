"""What the live model says: completions, next-token logits, loss on plain text.

All of it runs under whatever interventions are active. Rows are sorted by length, padded with a
mask, and returned in the order they came in; neither padding nor the other rows of a batch change
a result beyond rounding, nor which tokens are sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import DynamicCache

from ptmech._arguments import whole_number
from ptmech.errors import DataError
from ptmech.live.decoding import Read, Scores, decode
from ptmech.live.layout import running_rows
from ptmech.live.sites import ModelSites

TokenIds = Sequence[int]


@dataclass(frozen=True)
class Sampling:
    """How to draw the next token, where it is not simply the likeliest.

    Attributes
    ----------
    temperature
        What logits are divided by; above 0.
    top_p
        Only the likeliest tokens that together reach this probability can be drawn; 1 keeps all.
    seed
        Each row draws from a stream of its own, decided by the seed and the row's number: the same
        row gets the same tokens in any batch.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperature > 0 or not np.isfinite(self.temperature):
            raise DataError(f"the temperature must be above 0 and finite, not {self.temperature}")
        whole_number("seed", self.seed, least=0)
        if not 0 < self.top_p <= 1:
            raise DataError(f"top_p must be above 0 and at most 1, not {self.top_p}")


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
def generate_tokens(
    model: nn.Module,
    tokenizer: Any,
    token_lists: Sequence[TokenIds],
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    batch_size: int = 32,
) -> list[list[int]]:
    """Complete prompts, as token ids.

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
    sampling
        How to draw tokens; None, the default, takes the likeliest one every time.
    batch_size
        Prompts that run together; those that have ended leave.

    Returns
    -------
    list of list of int
        The new tokens of each prompt, up to and including the one that ends the reply. Sampling
        settings and penalties that came with the model are ignored.

    Raises
    ------
    DataError
        A prompt without tokens.
    """
    whole_number("max_new_tokens", max_new_tokens)
    sites = ModelSites.of(model)
    ends = end_tokens(model, tokenizer)
    total = len(token_lists)
    replies: list[list[int]] = [[] for _ in range(total)]
    for batch in batches(token_lists, batch_size):
        draws: dict[str, Scores] = {} if sampling is None else {"scores": _Draws(sampling, batch)}

        def still(rows: Sequence[int], batch: list[int] = batch) -> AbstractContextManager[None]:
            return running_rows([batch[row] for row in rows], total)

        found = decode(
            sites,
            _read(sites, token_lists, batch),
            ends=ends,
            max_new_tokens=max_new_tokens,
            holding=still,
            **draws,
        )
        for row, reply in zip(batch, found, strict=True):
            replies[row] = reply
    return replies


def _read(sites: ModelSites, token_lists: Sequence[TokenIds], batch: Sequence[int]) -> Read:
    """Read some of the prompts to their end."""
    input_ids, mask = pad([token_lists[row] for row in batch], side="left")
    positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
    config: Any = sites.body.config
    cache = DynamicCache(config=config)
    with running_rows(batch, len(token_lists), mask=mask):
        output = sites.body(
            input_ids=input_ids.to(sites.device),
            attention_mask=None if bool(mask.all()) else mask.to(sites.device),
            position_ids=positions.to(sites.device),
            past_key_values=cache,
            use_cache=True,
        )
    return Read(last=output.last_hidden_state[:, -1], lengths=mask.sum(dim=1), cache=cache)


def generate_texts(
    model: nn.Module,
    tokenizer: Any,
    token_lists: Sequence[TokenIds],
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    batch_size: int = 32,
) -> list[str]:
    """Complete prompts, as text.

    Parameters
    ----------
    model, tokenizer, token_lists, max_new_tokens, sampling, batch_size
        As for :func:`generate_tokens`.

    Returns
    -------
    list of str
        The new text of each prompt, without special tokens and without the token that ends it.

    Raises
    ------
    DataError
        A prompt without tokens.
    """
    replies = generate_tokens(
        model,
        tokenizer,
        token_lists,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        batch_size=batch_size,
    )
    ends = end_tokens(model, tokenizer)
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
    for batch in batches(token_lists, batch_size):
        normed, _ids, mask = run_body(sites, token_lists, batch)
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
    sites = ModelSites.of(model)
    total, count = 0.0, 0
    for batch in batches(texts_of_two(token_lists), batch_size):
        normed, input_ids, mask = run_body(sites, token_lists, batch)
        total += token_losses(sites, normed, input_ids, mask, tokens_at_once=tokens_at_once)
        count += int(mask[:, 1:].sum())
    return total / count


def token_losses(
    sites: ModelSites,
    normed: Tensor,
    input_ids: Tensor,
    mask: Tensor,
    *,
    tokens_at_once: int = 512,
) -> float:
    """Add up the cross-entropy in nats of every token but the first of each row.

    Parameters
    ----------
    sites, normed, input_ids, mask
        What :func:`run_body` ran, and returned.
    tokens_at_once
        Tokens that meet the unembedding together; bounds the memory of the logits.
    """
    # Where tokens are is known here, and what they lose is added up there: the device is waited for
    # once.
    rows, columns = mask[:, 1:].nonzero(as_tuple=True)
    before = normed[rows.to(normed.device), columns.to(normed.device)]
    targets = input_ids[rows, columns + 1].to(before.device)
    total = torch.zeros((), dtype=torch.float64)
    for streams, expected in zip(
        before.split(tokens_at_once), targets.split(tokens_at_once), strict=True
    ):
        logits = sites.project(streams).float()
        lost = cross_entropy(logits, expected.to(logits.device), reduction="sum").double()
        total = total.to(lost.device) + lost
    return float(total)


def texts_of_two(token_lists: Sequence[TokenIds]) -> Sequence[TokenIds]:
    """Return texts that have a loss, which the first token of a text has not.

    Raises
    ------
    DataError
        A text of fewer than two tokens.
    """
    if any(len(tokens) < 2 for tokens in token_lists):
        raise DataError("the loss of a text needs at least two tokens")
    return token_lists


@torch.inference_mode()
def token_logits(
    model: nn.Module, token_lists: Sequence[TokenIds], *, batch_size: int = 8
) -> list[Tensor]:
    """Logits [tokens, vocabulary] after every token of each prompt, float32 on the CPU.

    Raises
    ------
    DataError
        No prompts, or a prompt without tokens.
    """
    sites = ModelSites.of(model)
    logits: list[Tensor] = [torch.empty(0)] * len(token_lists)
    for batch in batches(token_lists, batch_size):
        normed, _ids, mask = run_body(sites, token_lists, batch)
        for row, stream, tokens in zip(batch, normed, mask.sum(dim=1).tolist(), strict=True):
            logits[row] = sites.project(stream[:tokens]).float().cpu()
    return logits


def run_body(
    sites: ModelSites, token_lists: Sequence[TokenIds], batch: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Run some of the rows through the body, padded on the right.

    Returns
    -------
    normed, input_ids, mask
        The stream after the final norm [rows, tokens, d_model], and what :func:`pad` made.
    """
    input_ids, mask = pad([token_lists[row] for row in batch], side="right")
    with running_rows(batch, len(token_lists), mask=mask):
        output = sites.body(
            input_ids=input_ids.to(sites.device),
            attention_mask=mask.to(sites.device),
            use_cache=False,
        )
    return output.last_hidden_state, input_ids, mask


def batches(token_lists: Sequence[TokenIds], batch_size: int) -> list[list[int]]:
    """Row numbers in batches, longest first, so that memory is exhausted at once or never."""
    whole_number("batch_size", batch_size)
    if not token_lists or not all(len(tokens) for tokens in token_lists):
        raise DataError("prompts must have at least one token, and there must be one")
    order = sorted(range(len(token_lists)), key=lambda row: -len(token_lists[row]))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def end_tokens(model: nn.Module, tokenizer: Any) -> list[int]:
    """Return the tokens that end a reply, as the model and its tokenizer name them."""
    config: Any = model.generation_config
    ends: list[int] = []
    for stated in (config.eos_token_id, tokenizer.eos_token_id):
        ends.extend([stated] if isinstance(stated, int) else stated or ())
    return list(dict.fromkeys(ends))


class _Draws:
    """Scores whose maximum is a draw from the softmax of the logits: they have Gumbel noise on top.

    transformers would draw all rows of a batch from one stream of random numbers, so that a row's
    tokens would depend on its neighbours; here each row has its own.
    """

    def __init__(self, sampling: Sampling, rows: Sequence[int]) -> None:
        from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

        warpers: list[Any] = [TemperatureLogitsWarper(float(sampling.temperature))]
        if sampling.top_p < 1:
            warpers.append(TopPLogitsWarper(sampling.top_p))
        self._warped: Any = LogitsProcessorList(warpers)
        self._streams = [np.random.default_rng([sampling.seed, row]) for row in rows]

    def __call__(self, logits: Tensor, rows: Sequence[int]) -> Tensor:
        # What was said so far, which some warpers look at, is nothing to these two.
        scores = self._warped(torch.empty(len(rows), 0, dtype=torch.long), logits)
        noise = np.stack([self._streams[row].gumbel(size=scores.shape[1]) for row in rows])
        return scores.double() + torch.from_numpy(noise).to(scores.device)
