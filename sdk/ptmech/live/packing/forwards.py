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
from ptmech.live.packing.prefix_trees import Numbers, TokenIds, Tree, prefix_trees
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
    gathered
        [sequences, k] int64: the tokens of each sequence that are wanted, each once.
    places
        [rows, positions] int64: where a row's tokens are among all gathered ones.
    """

    rows: Numbers
    arguments: Mapping[str, Any]
    gathered: Tensor
    places: Tensor

    @property
    def n_tokens(self) -> int:
        """Tokens that go through the model, padding included."""
        return self.arguments["input_ids"].numel()


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
        "input_ids": input_ids.to(sites.device),
        "attention_mask": mask.to(sites.device),
    }
    gathered = torch.from_numpy(indices.astype(np.int64))
    places = torch.arange(gathered.numel()).reshape(gathered.shape)
    return Forward(rows, arguments, gathered.to(sites.device), places)


def _trees(
    sites: ModelSites, trees: Sequence[Tree], indices: NDArray[np.integer], rows: Numbers
) -> Forward:
    """Pad trees into one batch; `indices` and the trees' rows both go by entry of `rows`."""
    wanted = [tree.nodes(indices[rows[tree.rows]]) for tree in trees]
    unique = [np.unique(nodes) for nodes in wanted]
    most = max(nodes.size for nodes in unique)
    places = [
        tree * most + np.searchsorted(once, nodes)
        for tree, (once, nodes) in enumerate(zip(unique, wanted, strict=True))
    ]
    input_ids, _ = pad([tree.token_ids.tolist() for tree in trees], side="right")
    depths, _ = pad([tree.depths.tolist() for tree in trees], side="right")
    gathered, _ = pad([nodes.tolist() for nodes in unique], side="right")
    arguments = {
        "input_ids": input_ids.to(sites.device),
        "position_ids": depths.to(sites.device),
        "attention_mask": _masks(sites, trees, input_ids.shape[1]),
    }
    return Forward(
        np.concatenate([rows[tree.rows] for tree in trees]),
        arguments,
        gathered.to(sites.device),
        torch.from_numpy(np.concatenate(places)),
    )


def _masks(sites: ModelSites, trees: Sequence[Tree], width: int) -> Tensor | dict[str, Tensor]:
    """Return the mask of the trees, or one for each kind of attention layer the model has."""
    config: Any = sites.body.config
    windows = {
        kind: config.sliding_window if kind == SLIDING else None for kind in layer_kinds(config)
    }
    masks = {kind: _mask(sites, trees, width, window) for kind, window in windows.items()}
    return masks if len(masks) > 1 else next(iter(masks.values()))


def _mask(sites: ModelSites, trees: Sequence[Tree], width: int, window: int | None) -> Tensor:
    """Return a mask [trees, 1, tokens, tokens] in the form that the model's attention takes."""
    # Padding attends to itself: a row of a softmax without anything would not be a number.
    seen = np.broadcast_to(np.eye(width, dtype=np.bool_), (len(trees), 1, width, width)).copy()
    for number, tree in enumerate(trees):
        seen[number, 0, : tree.n_tokens, : tree.n_tokens] = tree.visible(window)
    mask = torch.from_numpy(seen).to(sites.device)
    config: Any = sites.body.config
    if config._attn_implementation == "sdpa":
        return mask
    dtype: Any = sites.model.dtype
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(
        ~mask, torch.finfo(dtype).min
    )
