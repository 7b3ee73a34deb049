"""Forwards whose rows branch into variants half-way up: what is below is computed once for all.

Variants of an intervention differ from its own layer on. Below that layer they are one and the
same run, so there the body carries every prompt once; at the layer each row becomes one row a
variant. The body itself does not know: it goes on calling its blocks with what it prepared for the
prompts, and the blocks from there on are handed that once for each variant.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import DynamicCache

from ptmech.live.sites import ModelSites


@contextmanager
def branching(sites: ModelSites, variants: int, layer: int) -> Generator[None]:
    """Let the rows of every forward in this block branch at the input of a decoder block.

    A cache holds one row a prompt below `layer`, and from there on one a prompt and variant.

    Parameters
    ----------
    sites
        The model. Interventions at this layer's ``resid_pre`` and above act on the branched rows:
        all prompts under the first variant, then all under the second, and so on.
    variants
        How many rows each row becomes.
    layer
        The first block that tells the variants apart.
    """
    if variants == 1:
        yield
        return
    first = sites.layers[layer]

    def once_a_variant(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        rows = len(args[0] if args else kwargs["hidden_states"])
        # Above the first of these blocks the stream has branched already.
        return _repeated((args, kwargs), rows if block is first else rows // variants, variants)

    with ExitStack() as hooks:
        for block in sites.layers[layer:]:
            # Before the hooks of interventions, which see the branched rows.
            handle = block.register_forward_pre_hook(once_a_variant, with_kwargs=True, prepend=True)
            hooks.callback(handle.remove)
        yield


def with_rows(cache: DynamicCache, pick: Callable[[Tensor, int], Tensor]) -> DynamicCache:
    """Return a cache of its own with other rows.

    Parameters
    ----------
    cache
        Any cache that holds every token.
    pick
        Makes a layer's new keys, or values, from the old ones [rows, heads, tokens, width] and the
        layer's number.
    """
    # Made without the configuration, a cache keeps every token also where attention slides.
    picked = DynamicCache()
    for layer, (keys, values) in enumerate(keys_and_values(cache)):
        picked.update(pick(keys, layer), pick(values, layer), layer)
    return picked


def keys_and_values(cache: DynamicCache) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield keys and values of each layer, both [rows, heads, tokens, width]."""
    held: Any = cache.layers
    for layer in held:
        yield layer.keys, layer.values


def _repeated(value: Any, rows: int, times: int) -> Any:
    """Repeat whatever has one row a prompt; what fits every row has one of its own, or none."""
    if isinstance(value, tuple):
        return tuple(_repeated(part, rows, times) for part in value)
    if isinstance(value, dict):
        return {name: _repeated(part, rows, times) for name, part in value.items()}
    if isinstance(value, Tensor) and value.ndim > 1 and len(value) == rows:
        return value.repeat(times, *[1] * (value.ndim - 1))
    return value
