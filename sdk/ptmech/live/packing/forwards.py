"""From rows to forwards: what the body is called with, and where each row's tokens are in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ptmech.live.generation import pad
from ptmech.live.packing.batches import batches
from ptmech.live.packing.cost import LONGEST_TREE, Packing
from ptmech.live.packing.prefix_trees import Numbers, TokenIds, Tree, prefix_trees, seen_by
from ptmech.live.packing.support import SLIDING, layer_kinds
from ptmech.live.sites import ModelSites


@dataclass(frozen=True, eq=False)
class Forward:
    """One call of the body.

    Attributes
    ----------
    rows
        [rows] int64: the caller's rows that are in it.
    arguments
        Named arguments of the body, on its device; ``input_ids`` is [sequences, tokens].
    wanted
        [k] int64, on the body's device: the tokens that are wanted, each once, counted through all
        sequences.
    places
        [rows x positions] int64, on the body's device: which of `wanted` are a row's tokens; None
        if they are all different, and stand there in the order of the rows.
    """

    rows: Numbers
    arguments: Mapping[str, Any]
    wanted: Tensor
    places: Tensor | None

    @property
    def n_tokens(self) -> int:
        """Tokens that go through the model, padding included."""
        return self.arguments["input_ids"].numel()

    def of_rows(self, values: Tensor) -> Tensor:
        """Give each row its own of the values [k, width]: [rows, positions, width]."""
        if self.places is not None:
            values = values.index_select(0, self.places.to(values.device))
        return values.reshape(len(self.rows), -1, values.shape[-1])


def forwards(
    sites: ModelSites,
    token_ids: Sequence[TokenIds],
    indices: NDArray[np.integer],
    rows: Numbers,
    *,
    packing: Packing,
    tokens_per_batch: int,
) -> Iterator[Forward]:
    """Pack rows into forwards.

    Parameters
    ----------
    sites
        The model.
    token_ids
        One list of ids for each of all rows.
    indices
        [all rows, positions]: tokens wanted of each row, counted from its first.
    rows
        Which rows to run.
    packing
        As trees or in batches.
    tokens_per_batch
        Tokens of a forward, padding included. A row of more than that has one of its own.
    """
    chosen = [token_ids[row] for row in rows.tolist()]
    if packing == "batches":
        lengths = np.array([len(ids) for ids in chosen])
        for batch in batches(lengths, tokens_per_batch):
            yield _batch(sites, [chosen[at] for at in batch], indices[rows[batch]], rows[batch])
        return
    trees = prefix_trees(chosen, min(tokens_per_batch, LONGEST_TREE))
    sizes = np.array([tree.n_tokens for tree in trees])
    for batch in batches(sizes, tokens_per_batch):
        yield _trees(sites, [trees[at] for at in batch], indices, rows)


def _batch(
    sites: ModelSites, token_ids: Sequence[TokenIds], indices: NDArray[np.integer], rows: Numbers
) -> Forward:
    input_ids, mask = pad(token_ids, side="right")
    arguments = {
        "input_ids": _sent(input_ids, sites),
        "attention_mask": _sent(mask, sites),
    }
    begins = np.arange(len(rows)) * input_ids.shape[1]
    return Forward(rows, arguments, *_gathering(begins[:, None] + indices, sites))


def _trees(
    sites: ModelSites, trees: Sequence[Tree], indices: NDArray[np.integer], rows: Numbers
) -> Forward:
    """Pad trees into one batch; `indices` and the trees' rows both go by entry of `rows`."""
    width = max(tree.n_tokens for tree in trees)
    wanted = [
        number * width + tree.nodes(indices[rows[tree.rows]]) for number, tree in enumerate(trees)
    ]
    padded = np.zeros((3, len(trees), width), dtype=np.int64)
    # Padding sees itself: a row of a softmax without anything would not be a number.
    padded[2] = np.arange(1, width + 1)
    for number, tree in enumerate(trees):
        padded[:, number, : tree.n_tokens] = tree.token_ids, tree.depths, tree.ends
    input_ids, depths, ends = _sent(torch.from_numpy(padded), sites)
    arguments = {
        "input_ids": input_ids,
        "position_ids": depths,
        "attention_mask": _masks(sites, depths, ends),
    }
    return Forward(
        np.concatenate([rows[tree.rows] for tree in trees]),
        arguments,
        *_gathering(np.concatenate(wanted), sites),
    )


def _gathering(wanted: Numbers, sites: ModelSites) -> tuple[Tensor, Tensor | None]:
    """Return which tokens are wanted, each once, and which of them each entry of `wanted` is."""
    once, places = np.unique(wanted, return_inverse=True)
    if once.size == wanted.size:
        return _sent(torch.from_numpy(wanted.reshape(-1)), sites), None
    return (
        _sent(torch.from_numpy(once), sites),
        _sent(torch.from_numpy(places.reshape(-1)), sites),
    )


def _sent(values: Tensor, sites: ModelSites) -> Tensor:
    """Send whole numbers to where the body runs, without waiting for what still runs there."""
    return values.to(sites.device, non_blocking=sites.device.type == "cuda")


def _masks(sites: ModelSites, depths: Tensor, ends: Tensor) -> Tensor | dict[str, Tensor]:
    """Return the mask of the trees, or one for each kind of attention layer the model has."""
    config: Any = sites.body.config
    windows = {
        kind: config.sliding_window if kind == SLIDING else None for kind in layer_kinds(config)
    }
    at = torch.arange(ends.shape[1], device=ends.device)
    masks = {
        kind: _as_attended(sites, seen_by(at, ends, depths, window).unsqueeze(1))
        for kind, window in windows.items()
    }
    return masks if len(masks) > 1 else next(iter(masks.values()))


def _as_attended(sites: ModelSites, mask: Tensor) -> Tensor:
    """Bring a mask [trees, 1, tokens, tokens] into the form that the model's attention takes."""
    config: Any = sites.body.config
    if config._attn_implementation == "sdpa":
        return mask
    dtype: Any = sites.model.dtype
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(
        ~mask, torch.finfo(dtype).min
    )
