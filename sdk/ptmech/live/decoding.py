"""One token after another: rows that have ended leave the batch, and the cache with them.

A batch of replies is as long as its longest, and without leaving, every row would go on to be
computed to the end of that. Rows do not see each other, so those that stay get the same tokens.
Keys and values grow by the token: a cache of fixed length, as transformers has, would attend to all
the room that is still empty, and cannot give rows away.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from ptmech.live.sites import ModelSites

Holding = Callable[[Sequence[int]], AbstractContextManager[object]]
"""Announces, for the forwards in its block, which of the rows are still there."""

Scores = Callable[[Tensor, Sequence[int]], Tensor]
"""Turns logits [rows, vocabulary] of the rows that are still there into what is largest at the
token to take."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Read:
    """Prompts that a model has read, padded on the left.

    Attributes
    ----------
    last
        Normed stream at the last token of each row [rows, d_model].
    lengths
        How many tokens each row has [rows], on the CPU.
    cache
        Their keys and values.
    """

    last: Tensor
    lengths: Tensor
    cache: DynamicCache


def decode(
    sites: ModelSites,
    read: Read,
    *,
    ends: Collection[int],
    max_new_tokens: int,
    holding: Holding,
    scores: Scores = lambda logits, _rows: logits,
) -> list[list[int]]:
    """Take the best token again and again.

    Parameters
    ----------
    sites
        The model.
    read
        What it has read. Its cache is used up.
    ends
        Tokens that end a reply.
    max_new_tokens
        Length at which a reply is cut off.
    holding, scores
        See :data:`Holding` and :data:`Scores`; the likeliest token if nothing else is said.

    Returns
    -------
    list of list of int
        The new tokens of each row, up to and including the one that ends the reply.
    """
    last, cache, device = read.last, read.cache, sites.device
    rows = list(range(len(read.lengths)))
    replies: list[list[int]] = [[] for _ in rows]
    mask = left_padded_mask(read.lengths)
    # Where nothing is padded no mask is needed, nor a look at it in every forward.
    mask = None if bool(mask.all()) else mask.to(device)
    next_position = read.lengths.to(device).unsqueeze(1)
    for step in range(1, max_new_tokens + 1):
        tokens = scores(sites.project(last).float(), rows).argmax(dim=-1).to(device)
        stay: list[int] = []
        # Here, once a step, the device is waited for.
        for at, (row, token) in enumerate(zip(rows, tokens.tolist(), strict=True)):
            replies[row].append(token)
            if token not in ends:
                stay.append(at)
        if not stay or step == max_new_tokens:
            break
        if len(stay) < len(rows):
            rows = [rows[at] for at in stay]
            index = torch.tensor(stay, device=device)
            tokens, next_position = tokens[index], next_position[index]
            mask = None if mask is None else mask[index]
            _keep_rows(cache, index)
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        with holding(rows):
            last = _next(sites, tokens, mask, next_position, cache)
        next_position = next_position + 1
    return replies


def left_padded_mask(lengths: Tensor) -> Tensor:
    """Return the attention mask int64 [rows, tokens] of rows padded on the left."""
    columns = torch.arange(-int(lengths.max()), 0, device=lengths.device)
    return (columns >= -lengths.unsqueeze(1)).long()


def _next(
    sites: ModelSites,
    tokens: Tensor,
    mask: Tensor | None,
    positions: Tensor,
    cache: DynamicCache,
) -> Tensor:
    return sites.body(
        input_ids=tokens.unsqueeze(1),
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state[:, -1]


def _keep_rows(cache: DynamicCache, index: Tensor) -> None:
    held: Any = cache.layers
    for layer in held:
        layer.batch_select_indices(index.to(layer.device))
