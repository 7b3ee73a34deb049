"""Running packed rows through the body of a model, as far up as something is wanted."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from numpy.typing import NDArray
from torch import Tensor, nn

from ptmech.errors import DataError
from ptmech.live.packing.cost import Packing, tokens_at_once
from ptmech.live.packing.forwards import Forward, forwards
from ptmech.live.packing.host_copies import HostCopies, SiteLayer, Take
from ptmech.live.packing.prefix_trees import TokenIds
from ptmech.live.packing.support import without_tree
from ptmech.live.sites import ModelSites, Visitor


@dataclass(frozen=True, kw_only=True)
class Ran:
    """How rows were run in the end.

    Attributes
    ----------
    packing
        As trees or in batches.
    tokens_per_batch
        Tokens of a forward, padding included: less than asked for where memory ran out.
    without_tree
        Why batches were run where trees were asked for; empty if they were not.
    not_finite
        The wanted (site, layer) pairs some values of which are not finite.
    """

    packing: Packing
    tokens_per_batch: int
    without_tree: str = ""
    not_finite: tuple[SiteLayer, ...] = ()


@torch.inference_mode()
def run_packed(
    sites: ModelSites,
    token_ids: Sequence[TokenIds],
    indices: NDArray[np.integer],
    wanted: Sequence[SiteLayer],
    *,
    packing: Packing,
    tokens_per_batch: int | None = None,
    dtype: torch.dtype | None = None,
    take: Take,
) -> Ran:
    """Run rows and hand on the wanted sites at chosen tokens, a forward at a time.

    Only the body runs, and of it no block above the last one wanted. Where memory runs out, the
    rows that are not done yet go on in forwards of half the size.

    Parameters
    ----------
    sites
        The model, without interventions.
    token_ids
        One list of ids a row.
    indices
        [rows, positions]: tokens wanted of each row, counted from its first.
    wanted
        (site, layer) pairs.
    packing
        How to run them. A model that cannot run trees is run in batches.
    tokens_per_batch
        Tokens of a forward, padding included; None for the rule of
        :func:`ptmech.live.packing.cost.tokens_at_once`. A row of more than that runs alone.
    dtype
        Element type of what is handed on; None for the model's own.
    take
        Called with row numbers [rows] and their values {(site, layer): [rows, positions, d_model]}
        on the CPU, forward by forward; every row comes exactly once.

    Returns
    -------
    Ran
        How they were run in the end.

    Raises
    ------
    DataError
        A row without tokens, or one that does not fit into memory even alone; a token that a row
        does not have.
    UnknownNameError
        A site or layer the model does not have.
    """
    reason = without_tree(sites.body.config) if packing == "tree" else ""
    packing = "batches" if reason else packing
    tokens = tokens_per_batch or tokens_at_once(packing, sites.device.type)
    for site, layer in wanted:
        sites.check(site, layer)
    _require_tokens(token_ids, indices)
    copies = HostCopies(take, dtype)
    left = np.arange(len(token_ids))
    while left.size:
        done: list[int] = []
        for forward in forwards(
            sites, token_ids, indices, left, packing=packing, tokens_per_batch=tokens
        ):
            values = _values(sites, forward, wanted)
            if values is None:
                _require_several(forward, token_ids)
                tokens = forward.n_tokens // 2
                break
            copies.put(forward, values)
            done.extend(forward.rows.tolist())
        left = np.setdiff1d(left, done)
    copies.finish()
    return Ran(
        packing=packing,
        tokens_per_batch=tokens,
        without_tree=reason,
        not_finite=tuple(place for place in wanted if place in copies.not_finite),
    )


def _values(
    sites: ModelSites, forward: Forward, wanted: Sequence[SiteLayer]
) -> dict[SiteLayer, Tensor] | None:
    """Run a forward; None if memory did not suffice."""
    top = max((layer for _site, layer in wanted), default=sites.n_layers - 1)
    try:
        # The hook that stops comes last, so that the last block's sites are read before.
        with _gathering(sites, wanted, forward.wanted) as found, _stopping_above(sites, top):
            sites.body(**forward.arguments, use_cache=False)
    except RuntimeError as error:
        if not _is_shortage(error):
            raise
    else:
        return found
    # Only now, without the error, nothing holds on to what the forward left.
    clear_device_cache(garbage_collection=True)
    return None


@contextmanager
def _gathering(
    sites: ModelSites, wanted: Sequence[SiteLayer], tokens: Tensor
) -> Generator[dict[SiteLayer, Tensor]]:
    """Keep chosen tokens [k], counted through all rows, of the next forward: [k, d_model] each.

    Like :func:`ptmech.live.recording.record`, but nothing is read back from the device, which would
    make the next forward wait for this one: the tokens are known to be there.
    """
    found: dict[SiteLayer, Tensor] = {}
    on: dict[torch.device, Tensor] = {}

    def keeper(place: SiteLayer) -> Visitor:
        def keep(stream: Tensor) -> None:
            if stream.device not in on:
                on[stream.device] = tokens.to(stream.device)
            found[place] = stream.flatten(0, 1).index_select(0, on[stream.device])

        return keep

    with ExitStack() as hooks:
        for place in dict.fromkeys(wanted):
            hooks.callback(sites.attach(*place, keeper(place)).remove)
        yield found


class _Enough(Exception):
    """Ends a forward from within: everything that is wanted has been read."""


@contextmanager
def _stopping_above(sites: ModelSites, layer: int) -> Generator[None]:
    """End forwards after a block, before the next one runs."""
    if layer == sites.n_layers - 1:  # only the final norm is left
        yield
        return

    def stop(_block: nn.Module, _args: Any, _output: Any) -> None:
        raise _Enough

    handle = sites.layers[layer].register_forward_hook(stop)
    try:
        with suppress(_Enough):
            yield
    finally:
        handle.remove()


def _is_shortage(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)


def _require_tokens(token_ids: Sequence[TokenIds], indices: NDArray[np.integer]) -> None:
    """Raise for tokens that a row does not have; on the device it would be too late to say so."""
    lengths = np.array([len(ids) for ids in token_ids], dtype=np.int64).reshape(-1, 1)
    outside = (indices < 0) | (indices >= lengths)
    if outside.any():
        row, column = (int(at[0]) for at in outside.nonzero())
        raise DataError(
            f"token {indices[row, column]} is wanted of row {row}, which has {lengths[row, 0]}"
        )


def _require_several(forward: Forward, token_ids: Sequence[TokenIds]) -> None:
    """Raise if a forward is no more than its longest row: nothing smaller can hold that."""
    longest = max(len(token_ids[row]) for row in forward.rows.tolist())
    if forward.n_tokens <= longest:
        raise DataError(
            f"a row of {longest} tokens does not fit into memory, even alone; shorten it, compute "
            "in a smaller element type or spread the model over devices"
        )
