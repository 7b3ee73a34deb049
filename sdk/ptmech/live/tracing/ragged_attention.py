"""Attention for many patched runs packed into one row: each sees the clean run and itself.

A decoder block works token by token except in attention. So the tokens of runs that differ in
length go through it as one long row, and only attention takes them apart again. transformers lets
a model's attention be replaced by a registered function, which a block hands its queries, keys and
values, after position embeddings, together with whatever it was given as a mask; here the "mask" is
a :class:`Past`, which knows the packing and the clean run's keys and values.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from ptmech.errors import UnsupportedModelError
from ptmech.live.sites import ModelSites

NAME = "ptmech_ragged"
"""Name of the attention implementation."""


class Span(NamedTuple):
    """Runs of one shape, packed one after the other: [runs, prompts, tokens].

    Attributes
    ----------
    runs
        How many runs branch off from each prompt.
    prompts
        [prompts] whole numbers: the rows of the clean run that they branch off from.
    start
        The token at which they branch off: all before it is the clean run's.
    queries
        How many tokens of each run, up to its last one, are in the packed row.
    """

    runs: int
    prompts: Tensor
    start: int
    queries: int

    @property
    def length(self) -> int:
        """Number of tokens in the packed row."""
        return self.runs * len(self.prompts) * self.queries


@dataclass(frozen=True, eq=False)
class Past:
    """What the packed tokens attend to besides each other; stands in place of a mask.

    Attributes
    ----------
    spans
        How the row is packed.
    keys, values
        Of the clean run at this layer, [rows, key heads, tokens, head width].
    own
        Keys and values of every packed run's tokens from its start on, one pair a span, each
        [prompts, key heads, runs, tokens, head width]. None if they are those in the row.
    only_keys
        Whether to stop the block, with :class:`KeysFound`, as soon as keys and values are there.
    """

    spans: Sequence[Span]
    keys: Tensor
    values: Tensor
    own: Sequence[tuple[Tensor, Tensor]] | None = None
    only_keys: bool = False

    def for_keys(self) -> Past:
        """Return a past that stops the block as soon as the keys and values are there."""
        return replace(self, only_keys=True)

    def for_queries(self, queries: int, own: Sequence[tuple[Tensor, Tensor]]) -> Past:
        """Return the past of a row that holds only the last `queries` tokens of each run."""
        spans = [span._replace(queries=queries) for span in self.spans]
        return replace(self, spans=spans, own=own)


class KeysFound(Exception):
    """Carries the keys and values of the packed runs, as :attr:`Past.own` holds them."""

    def __init__(self, own: Sequence[tuple[Tensor, Tensor]]) -> None:
        super().__init__("keys and values are there")
        self.own = own


@contextmanager
def ragged_attention(sites: ModelSites) -> Generator[None]:
    """Let the model's blocks attend through a :class:`Past`, until the block ends."""
    config: Any = sites.model.config
    own = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = own


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Past,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' eager attention does, span by span.

    Parameters
    ----------
    module
        The attention module.
    query
        [1, heads, packed tokens, head width].
    key, value
        [1, key heads, packed tokens, head width].
    attention_mask
        The past.
    scaling, softcap, sliding_window
        As the module states them: factor of the scores, their soft limit, and how many tokens back
        attention reaches.
    others
        What transformers passes besides; attention sinks are not supported.

    Returns
    -------
    Tensor, None
        [1, packed tokens, heads, head width], and no weights.

    Raises
    ------
    UnsupportedModelError
        The module attends in a way that is not written here.
    KeysFound
        The past asked for no more.
    """
    if others.get("s_aux") is not None:
        raise UnsupportedModelError(f"{type(module).__name__} uses attention sinks")
    past = attention_mask
    lengths = [span.length for span in past.spans]
    own = past.own or [
        (_by_prompt(k, span), _by_prompt(v, span))
        for span, k, v in zip(
            past.spans, key[0].split(lengths, dim=1), value[0].split(lengths, dim=1), strict=True
        )
    ]
    if past.only_keys:
        raise KeysFound(own)
    query = query[0] * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    mixed = [
        _attend_span(
            packed,
            span,
            _rows(past.keys, span),
            _rows(past.values, span),
            *keys_and_values,
            softcap=softcap,
            window=sliding_window,
        )
        for packed, span, keys_and_values in zip(
            query.split(lengths, dim=1), past.spans, own, strict=True
        )
    ]
    return torch.cat(mixed).unsqueeze(0), None


AttentionInterface.register(NAME, attend)


def _attend_span(
    packed: Tensor,
    span: Span,
    old_keys: Tensor,
    old_values: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    softcap: float | None,
    window: int | None,
) -> Tensor:
    """Attend within one span.

    Parameters
    ----------
    packed
        Scaled queries [heads, runs * prompts * queries, width].
    span
        The span.
    old_keys, old_values
        Of the clean run before the span's start, [prompts, key heads, tokens, width].
    keys, values
        Of the runs themselves, [prompts, key heads, runs, tokens, width].

    Returns
    -------
    Tensor
        [runs * prompts * queries, heads, width].
    """
    _prompts, key_heads, runs, tokens, _width = keys.shape
    by_head = _by_prompt(packed, span).unflatten(1, (key_heads, -1)).transpose(2, 3)
    # [prompts, key heads, runs, heads of one key * queries, width]: the runs of a prompt share its
    # old keys, the heads of one key share that key.
    queries = by_head.flatten(3, 4)
    on_old = (queries.flatten(2, 3) @ old_keys.transpose(-1, -2)).unflatten(2, (runs, -1))
    on_own = queries @ keys.transpose(-1, -2)
    if softcap is not None:
        on_old, on_own = (softcap * torch.tanh(scores / softcap) for scores in (on_old, on_own))
    # Where attention does not slide, all old tokens are in sight.
    last = span.start + tokens
    seen = torch.arange(last, device=packed.device)
    looking = seen[last - span.queries :, None].repeat(by_head.shape[3], 1)
    on_own = on_own.masked_fill(_hidden(seen[span.start :], looking, window), float("-inf"))
    if window is not None:
        on_old = on_old.masked_fill(_hidden(seen[: span.start], looking, window), float("-inf"))
    scores = torch.cat([on_old, on_own], dim=-1)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(queries.dtype)
    on_old, on_own = weights.split([span.start, tokens], dim=-1)
    mixed = (on_old.flatten(2, 3) @ old_values).unflatten(2, (runs, -1)) + on_own @ values
    # to [runs, prompts, queries, key heads, heads of one key, width]
    mixed = mixed.unflatten(3, (-1, span.queries)).permute(2, 0, 4, 1, 3, 5)
    return mixed.flatten(3, 4).flatten(0, 2)


def _rows(store: Tensor, span: Span) -> Tensor:
    """Return what the clean run keeps for a span's prompts, before its start."""
    if len(span.prompts) < len(store):  # else a view does
        store = store[span.prompts.to(store.device)]
    return store[:, :, : span.start]


def _by_prompt(packed: Tensor, span: Span) -> Tensor:
    """[heads, packed tokens, width] as [prompts, heads, runs, tokens, width]."""
    runs = packed.unflatten(1, (span.runs, len(span.prompts), -1))
    return runs.permute(2, 0, 1, 3, 4)


def _hidden(seen: Tensor, looking: Tensor, window: int | None) -> Tensor:
    """Tell which of the tokens [seen] those that look [looking, 1] may not see."""
    hidden = seen > looking
    return hidden if window is None else hidden | (seen <= looking - window)
