"""The same prompts under several variants of one intervention, all in one batch.

Comparing directions means running the same few prompts again and again, each time with another
vector. Here the variants share their forwards: a batch holds every prompt once for each variant,
rows of one variant together. Three things make that cheap. Below the first layer that tells the
variants apart they are one run (:mod:`ptmech.live.effects.branching`). Chat prompts begin alike,
and a causal model reads that beginning without knowing what follows: it is run once for each
variant, not once for each row. And one step of many rows costs less than many steps of few.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from typing_extensions import override

from ptmech._arguments import whole_number
from ptmech.errors import DataError
from ptmech.live.decoding import Read, decode
from ptmech.live.edits import Placed, SiteEdit
from ptmech.live.effects.branching import branching, keys_and_values, with_rows
from ptmech.live.generation import (
    TokenIds,
    batches,
    end_tokens,
    pad,
    run_body,
    texts_of_two,
    token_losses,
)
from ptmech.live.layout import in_pieces
from ptmech.live.precision import precise
from ptmech.live.sites import ModelSites

READ_AT_ONCE = 64
"""Rows of prompts that are read together: enough to keep a processor busy, and few enough that
sorted prompts are padded to hardly more than their own length."""


_OF_ROWS: ContextVar[Tensor | None] = ContextVar("ptmech_variants_of_rows", default=None)


@contextmanager
def _variants_of_rows(variants: Tensor) -> Generator[None]:
    """Announce the variant of each row [rows]: some rows of every variant may have left."""
    token = _OF_ROWS.set(variants)
    try:
        yield
    finally:
        _OF_ROWS.reset(token)


@dataclass(frozen=True, eq=False, kw_only=True)
class VariantEdit(SiteEdit):
    """Another vector for each variant, at every token.

    Attributes
    ----------
    vectors
        [variants, d_model]. A variant whose vector is zero leaves the model alone. A forward's rows
        are a multiple of the variants, those of one variant together.
    """

    vectors: Tensor

    @property
    @override
    def width(self) -> int:
        return self.vectors.shape[1]

    def _by_variant(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return values [variants, tokens, d_model] and vectors [variants, 1, d_model].

        Where rows have left, every row that stays stands for itself.
        """
        exact, variants = precise(values), len(self.vectors)
        vectors, of_rows = self._placed.like(exact), _OF_ROWS.get()
        if of_rows is not None:
            return exact, vectors[of_rows.to(exact.device)].unsqueeze(1)
        if len(values) % variants:
            raise DataError(f"a forward of {len(values)} rows does not hold {variants} variants")
        return exact.reshape(variants, -1, self.width), vectors.unsqueeze(1)

    @cached_property
    def _placed(self) -> Placed:
        return Placed(self.vectors)


@dataclass(frozen=True, eq=False, kw_only=True)
class VariantAblation(VariantEdit):
    """Remove the component along each variant's vector, which has length one or zero."""

    @override
    def __call__(self, values: Tensor) -> Tensor:
        exact, units = self._by_variant(values)
        along = exact @ units.transpose(1, 2)
        return torch.baddbmm(exact, along, units, alpha=-1).reshape(values.shape).to(values.dtype)


@dataclass(frozen=True, eq=False, kw_only=True)
class VariantAddition(VariantEdit):
    """Add each variant's vector."""

    @override
    def __call__(self, values: Tensor) -> Tensor:
        exact, vectors = self._by_variant(values)
        return (exact + vectors).reshape(values.shape).to(values.dtype)


@torch.inference_mode()
@in_pieces()
def read_variants(
    sites: ModelSites,
    prompts: Sequence[TokenIds],
    variants: int,
    measure: Callable[[Tensor, list[int]], Tensor],
    *,
    first_layer: int = 0,
    batch_size: int = READ_AT_ONCE,
) -> Tensor:
    """Measure the logits of the token after each prompt, under each variant.

    Parameters
    ----------
    sites
        A model under a :class:`VariantEdit`; interventions beside it must act on every token.
    prompts
        Token ids.
    variants
        How many there are.
    measure
        Turns logits [variants, rows, vocabulary] float32, on the device where they are, and which
        prompts the rows are, into numbers [variants, rows, ...].
    first_layer
        Below it the edit does nothing.
    batch_size
        Rows that run together, all variants of one prompt at least.

    Returns
    -------
    Tensor
        [variants, prompts, ...] on the CPU.

    Raises
    ------
    DataError
        No prompts, or one without tokens.
    """
    found: list[Tensor] = []
    order: list[int] = []
    beginning = _Beginning.of(sites, prompts, variants, first_layer)
    for batch in batches(prompts, _prompts_at_once(batch_size, variants)):
        last = beginning.read([prompts[row] for row in batch]).last
        logits = sites.project(last).float().unflatten(0, (variants, -1))
        found.append(measure(logits, batch))
        order += batch
    return torch.cat(found, dim=1).cpu()[:, torch.tensor(order).argsort()]


def logits_of_variants(
    sites: ModelSites,
    prompts: Sequence[TokenIds],
    variants: int,
    *,
    first_layer: int = 0,
    batch_size: int = READ_AT_ONCE,
) -> Tensor:
    """Return the logits themselves [variants, prompts, vocabulary]; as :func:`read_variants`."""
    return read_variants(
        sites,
        prompts,
        variants,
        lambda logits, _rows: logits,
        first_layer=first_layer,
        batch_size=batch_size,
    )


@torch.inference_mode()
@in_pieces()
def complete_variants(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[TokenIds],
    variants: int,
    *,
    max_new_tokens: int,
    batch_size: int,
    first_layer: int = 0,
) -> list[list[str]]:
    """Greedy completions of each prompt under each variant.

    What :func:`ptmech.live.generation.generate_texts` gives one variant at a time.

    Parameters
    ----------
    model, tokenizer
        A model under a :class:`VariantEdit`; interventions beside it must act on every token.
    prompts, variants, first_layer
        As for :func:`read_variants`.
    max_new_tokens
        Length at which a completion is cut off.
    batch_size
        Rows that go on together, all variants of one prompt at least; those that have ended leave.

    Returns
    -------
    list of list of str
        For each variant the new text of each prompt.

    Raises
    ------
    DataError
        No prompts, or one without tokens.
    """
    sites = ModelSites.of(model)
    ends = end_tokens(model, tokenizer)
    texts = [[""] * len(prompts) for _ in range(variants)]
    beginning = _Beginning.of(sites, prompts, variants, first_layer)
    reading = _prompts_at_once(min(batch_size, READ_AT_ONCE), variants)
    for batch in batches(prompts, _prompts_at_once(batch_size, variants)):
        parts = [batch[at : at + reading] for at in range(0, len(batch), reading)]
        reads = [beginning.read([prompts[row] for row in part]) for part in parts]
        of_rows = torch.arange(variants, device=sites.device).repeat_interleave(len(batch))
        replies = decode(
            sites,
            _together(reads, variants),
            ends=ends,
            max_new_tokens=max_new_tokens,
            holding=lambda rows, of_rows=of_rows: _variants_of_rows(of_rows[list(rows)]),
        )
        for at, reply in enumerate(replies):
            variant, row = divmod(at, len(batch))
            said = [token for token in reply if token not in ends]
            texts[variant][batch[row]] = tokenizer.decode(said, skip_special_tokens=True)
    return texts


@torch.inference_mode()
@in_pieces()
def losses_of_variants(
    sites: ModelSites,
    texts: Sequence[TokenIds],
    variants: int,
    *,
    first_layer: int = 0,
    batch_size: int = 16,
) -> list[float]:
    """Mean cross-entropy of plain texts in nats a token, under each variant.

    What :func:`ptmech.live.generation.next_token_loss` gives one variant at a time.

    Parameters
    ----------
    sites, variants, first_layer, batch_size
        As for :func:`read_variants`.
    texts
        Token ids, at least two of each text.

    Raises
    ------
    DataError
        No texts, or one of fewer than two tokens.
    """
    totals, count = torch.zeros(variants, dtype=torch.float64), 0
    for batch in batches(texts_of_two(texts), _prompts_at_once(batch_size, variants)):
        with branching(sites, variants, first_layer):
            normed, input_ids, mask = run_body(sites, texts, batch)
        for number, of_variant in enumerate(normed.unflatten(0, (variants, -1))):
            totals[number] += token_losses(sites, of_variant, input_ids, mask)
        count += int(mask[:, 1:].sum())
    return (totals / count).tolist()


def common_beginning(prompts: Sequence[TokenIds]) -> int:
    """Count the tokens with which all prompts begin; at least one of each prompt is left over."""
    shortest = min((len(tokens) for tokens in prompts), default=0)
    for at in range(shortest - 1):
        if len({int(tokens[at]) for tokens in prompts}) > 1:
            return at
    return max(0, shortest - 1)


def _prompts_at_once(batch_size: int, variants: int) -> int:
    return max(1, whole_number("batch_size", batch_size) // variants)


class _Read(NamedTuple):
    """Prompts the model has read: rows = variants x prompts."""

    last: Tensor
    """Normed stream at the last token of each row [rows, d_model]."""
    lengths: Tensor
    """How many tokens each row has [rows], on the CPU."""
    cache: DynamicCache
    """Of real tokens first, and padding behind them."""


@dataclass(frozen=True, eq=False)
class _Beginning:
    """What all prompts begin with, read once for each variant.

    Attributes
    ----------
    sites, variants, first_layer
        As for :func:`read_variants`.
    tokens
        How many tokens that is.
    cache
        Their keys and values: of one row below `first_layer`, of one a variant from there on.
    """

    sites: ModelSites
    variants: int
    first_layer: int
    tokens: int
    cache: DynamicCache

    @classmethod
    def of(
        cls, sites: ModelSites, prompts: Sequence[TokenIds], variants: int, first_layer: int
    ) -> Self:
        """Read it."""
        shared, cache = common_beginning(prompts), DynamicCache()
        if shared:
            tokens = torch.as_tensor([prompts[0][:shared]], device=sites.device)
            with branching(sites, variants, first_layer):
                sites.body(input_ids=tokens, past_key_values=cache, use_cache=True)
        return cls(sites, variants, first_layer, shared, cache)

    def read(self, prompts: Sequence[TokenIds]) -> _Read:
        """Read prompts to their end."""
        sites, n = self.sites, len(prompts)
        own, own_mask = pad([tokens[self.tokens :] for tokens in prompts], side="right")
        # Padded behind the prompts, so that the model numbers their tokens right by itself.
        mask = torch.cat([own_mask.new_ones(n, self.tokens), own_mask], dim=1)
        cache = with_rows(self.cache, lambda held, _layer: held.repeat_interleave(n, dim=0))
        with branching(sites, self.variants, self.first_layer):
            normed: Tensor = sites.body(
                input_ids=own.to(sites.device),
                attention_mask=mask.to(sites.device),
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
        lengths = mask.sum(dim=1).repeat(self.variants)
        rows = torch.arange(len(normed), device=normed.device)
        last = normed[rows, (lengths - self.tokens - 1).to(normed.device)]
        return _Read(last, lengths, self._for_every_row(cache))

    def _for_every_row(self, cache: DynamicCache) -> DynamicCache:
        """Give every variant rows of its own in the layers that the variants share, too."""

        def pick(held: Tensor, layer: int) -> Tensor:
            return held if layer >= self.first_layer else held.repeat(self.variants, 1, 1, 1)

        return with_rows(cache, pick)


def _together(reads: Sequence[_Read], variants: int) -> Read:
    """Put prompts that were read apart into one batch, their padding in front.

    A sliding window counts cached tokens, so between the prompt and its reply there must be none
    that are not real.
    """

    def joined(parts: Sequence[Tensor]) -> Tensor:
        by_variant = [part.unflatten(0, (variants, -1)) for part in parts]
        return torch.cat(by_variant, dim=1).flatten(0, 1)

    lengths = joined([read.lengths for read in reads])
    width = int(lengths.max())
    cache = DynamicCache()
    for layer, parts in enumerate(zip(*(keys_and_values(r.cache) for r in reads), strict=True)):
        keys, values = (
            joined([_right(one, r.lengths, width) for one, r in zip(held, reads, strict=True)])
            for held in zip(*parts, strict=True)
        )
        cache.update(keys, values, layer)
    return Read(last=joined([read.last for read in reads]), lengths=lengths, cache=cache)


def _right(held: Tensor, lengths: Tensor, width: int) -> Tensor:
    """Move what a cache holds to the right end of a width, each row by its own length."""
    columns = torch.arange(width, device=held.device)
    source = (columns - width + lengths.to(held.device).unsqueeze(1)).clamp_min(0)
    return held.gather(2, source[:, None, :, None].expand(-1, held.shape[1], -1, held.shape[3]))
