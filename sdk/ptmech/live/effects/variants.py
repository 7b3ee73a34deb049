"""The same prompts under several variants of one intervention, all in one batch.

Comparing directions means running the same few prompts again and again, each time with another
vector. Here the variants share their forwards: a batch holds every prompt once for each variant,
rows of one variant together. Two things make that cheap. Chat prompts begin alike, and a causal
model reads that beginning without knowing what follows: it is run once for each variant, not once
for each row. And one step of many rows costs less than many steps of few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from typing_extensions import override

from ptmech._arguments import whole_number
from ptmech.errors import DataError
from ptmech.live.edits import SiteEdit
from ptmech.live.generation import TokenIds, batches, end_tokens, pad
from ptmech.live.layout import in_pieces
from ptmech.live.precision import precise
from ptmech.live.sites import ModelSites


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
        """Return values [variants, tokens, d_model] and vectors [variants, 1, d_model]."""
        variants = len(self.vectors)
        if len(values) % variants:
            raise DataError(f"a forward of {len(values)} rows does not hold {variants} variants")
        exact = precise(values)
        return exact.reshape(variants, -1, self.width), self.vectors.to(exact).unsqueeze(1)


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
def logits_of_variants(
    sites: ModelSites, prompts: Sequence[TokenIds], variants: int, *, batch_size: int
) -> Tensor:
    """Logits of the token after each prompt, under each variant.

    Parameters
    ----------
    sites
        A model under a :class:`VariantEdit`; interventions beside it must act on every token.
    prompts
        Token ids.
    variants
        How many there are.
    batch_size
        Rows that run together, all variants of one prompt at least.

    Returns
    -------
    Tensor
        [variants, prompts, vocabulary] float32 on the CPU.

    Raises
    ------
    DataError
        No prompts, or one without tokens.
    """
    shared = common_beginning(prompts)
    logits = torch.empty(variants, len(prompts), sites.vocabulary)
    for batch in batches(prompts, max(1, whole_number("batch_size", batch_size) // variants)):
        read = _read(sites, [prompts[row] for row in batch], variants, shared)
        logits[:, batch] = sites.project(read.last).float().cpu().unflatten(0, (variants, -1))
    return logits


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
) -> list[list[str]]:
    """Greedy completions of each prompt under each variant.

    What :func:`ptmech.live.generation.generate_texts` gives one variant at a time.

    Parameters
    ----------
    model, tokenizer
        A model under a :class:`VariantEdit`; interventions beside it must act on every token.
    prompts, variants, batch_size
        As for :func:`logits_of_variants`.
    max_new_tokens
        Length at which a completion is cut off.

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
    shared = common_beginning(prompts)
    texts = [[""] * len(prompts) for _ in range(variants)]
    for batch in batches(prompts, max(1, whole_number("batch_size", batch_size) // variants)):
        read = _read(sites, [prompts[row] for row in batch], variants, shared)
        replies = _continue(sites, read, ends, max_new_tokens)
        for at, reply in enumerate(replies):
            variant, row = divmod(at, len(batch))
            texts[variant][batch[row]] = tokenizer.decode(reply, skip_special_tokens=True)
    return texts


def common_beginning(prompts: Sequence[TokenIds]) -> int:
    """Count the tokens with which all prompts begin; at least one of each prompt is left over."""
    shortest = min((len(tokens) for tokens in prompts), default=0)
    for at in range(shortest - 1):
        if len({int(tokens[at]) for tokens in prompts}) > 1:
            return at
    return max(0, shortest - 1)


class _Read(NamedTuple):
    """A batch of prompts the model has read: rows = variants x prompts."""

    last: Tensor
    """Normed stream at the last token of each row [rows, d_model]."""
    cache: DynamicCache
    mask: Tensor
    """[rows, tokens]: real tokens of the cache, padding behind them."""


def _read(sites: ModelSites, prompts: Sequence[TokenIds], variants: int, shared: int) -> _Read:
    # Made without the configuration, the cache keeps every token also where attention slides.
    cache = DynamicCache()
    if shared:
        beginning = torch.as_tensor([prompts[0][:shared]]).expand(variants, -1)
        sites.body(input_ids=beginning.to(sites.device), past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(len(prompts))
    own, own_mask = pad([tokens[shared:] for tokens in prompts], side="right")
    # Padded behind the prompts, so that the model numbers their tokens right by itself.
    mask = torch.cat([own_mask.new_ones(len(own), shared), own_mask], dim=1)
    mask = mask.repeat(variants, 1).to(sites.device)
    output = sites.body(
        input_ids=own.repeat(variants, 1).to(sites.device),
        attention_mask=mask,
        past_key_values=cache,
        use_cache=True,
    )
    normed = output.last_hidden_state
    last = (own_mask.sum(dim=1) - 1).repeat(variants).to(normed.device)
    return _Read(normed[torch.arange(len(normed), device=normed.device), last], cache, mask)


def _continue(
    sites: ModelSites, read: _Read, ends: Sequence[int], max_new_tokens: int
) -> list[list[int]]:
    """Take the likeliest token again and again: the new tokens of each row, without the end."""
    width, lengths = read.mask.shape[1], read.mask.sum(dim=1)
    _align_right(read.cache, width - lengths)
    mask = read.mask.flip(dims=(1,))
    ending = torch.tensor(ends, dtype=torch.long, device=mask.device)
    running = torch.ones_like(lengths, dtype=torch.bool)
    replies: list[list[int]] = [[] for _ in lengths]
    last = read.last
    for step in range(max_new_tokens):
        tokens = sites.project(last).float().argmax(dim=-1).to(mask.device)
        running &= ~torch.isin(tokens, ending)
        for row in running.nonzero()[:, 0].tolist():
            replies[row].append(int(tokens[row]))
        if step + 1 == max_new_tokens or not bool(running.any()):
            break
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        last = sites.body(
            input_ids=tokens.unsqueeze(1),
            attention_mask=mask,
            position_ids=(lengths + step).unsqueeze(1),
            past_key_values=read.cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
    return replies


def _align_right(cache: DynamicCache, padding: Tensor) -> None:
    """Move each row of a cache so that its padding stands in front.

    A sliding window counts cached tokens, so between the prompt and its reply there must be none
    that are not real.
    """
    if not bool(padding.any()):
        return
    for layer in cache.layers:
        held: Any = layer
        for name in ("keys", "values"):
            found: Tensor = getattr(held, name)
            columns = torch.arange(found.shape[2], device=found.device)
            source = (columns - padding.to(found.device).unsqueeze(1)).clamp_min(0)
            index = source[:, None, :, None].expand_as(found)
            setattr(held, name, found.gather(2, index))
