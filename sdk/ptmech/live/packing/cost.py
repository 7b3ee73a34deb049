"""What running a set of texts costs as trees and in batches, told before anything runs.

Counted are the multiplications of one decoder block, which every block repeats. With a stream of
width d, a token costs about 12 d^2 in the block's linear maps, and in attention 2 d for every token
of its sequence, those that are masked included. Only the ratio of two such counts means anything,
and it hardly depends on the model or the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from ptmech.live.packing.batches import batches, padded_tokens
from ptmech.live.packing.prefix_trees import TokenIds, prefix_trees

Packing = Literal["tree", "batches"]
"""How texts run together."""

LONGEST_TREE = 256
"""Tokens of a tree. Longer ones share more, but attention grows with the square of the length."""

ENOUGH = 0.95
"""Cost of trees, as a part of that of batches, from which on they are not worth it."""

_LINEAR = 12
_ATTENTION = 2


class Width(Protocol):
    """What the cost depends on; :class:`ptmech.live.models.ModelShape` has it."""

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        ...


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How to run a set of texts, and what decided it.

    Attributes
    ----------
    packing
        The cheaper way that the model admits.
    why
        One sentence.
    tree_tokens, batch_tokens
        Tokens that go through the model, padding included.
    tree_cost, batch_cost
        Multiplications of one decoder block.
    """

    packing: Packing
    why: str
    tree_tokens: int
    batch_tokens: int
    tree_cost: float
    batch_cost: float

    @property
    def ratio(self) -> float:
        """Cost of trees, that of batches being 1."""
        return self.tree_cost / self.batch_cost

    @property
    def tokens(self) -> int:
        """Tokens that go through the model the chosen way."""
        return self.tree_tokens if self.packing == "tree" else self.batch_tokens


def tokens_at_once(packing: Packing, device_type: str) -> int:
    """Return how many tokens run in one forward where nobody says so.

    By rule, not by free memory: equal inputs on equal devices give equal bytes. On a CPU smaller
    forwards are the cheaper ones: what they compute stays in its caches.
    """
    if device_type != "cpu":
        return 8192
    return LONGEST_TREE if packing == "tree" else 320


def predicted_cost(sequences: Iterable[tuple[int, int]], d_model: int) -> float:
    """Return the multiplications of one decoder block.

    Parameters
    ----------
    sequences
        (how many, tokens of each), padding included.
    d_model
        Width of the residual stream.
    """
    return float(
        sum(
            number * length * d_model * (_LINEAR * d_model + _ATTENTION * length)
            for number, length in sequences
        )
    )


def choose_packing(
    token_ids: Sequence[TokenIds],
    shape: Width,
    *,
    refused: str = "",
    tokens_per_batch: int | None = None,
) -> Choice:
    """Choose how to run a set of texts, by cost.

    Parameters
    ----------
    token_ids
        One list of ids a row, at least one row.
    shape
        The model's width.
    refused
        Why the model cannot run trees, as :func:`ptmech.live.packing.support.without_tree` says;
        empty if it can.
    tokens_per_batch
        Tokens of one forward; None for the rule, taken as on a CPU.

    Returns
    -------
    Choice
        ``"tree"`` where it is at least a twentieth cheaper and nothing is in the way.
    """
    lengths = np.array([len(ids) for ids in token_ids])
    longest = min(LONGEST_TREE, tokens_per_batch or LONGEST_TREE)
    trees = [(1, tree.n_tokens) for tree in prefix_trees(token_ids, longest)]
    budget = tokens_per_batch or tokens_at_once("batches", "cpu")
    padded = [
        (batch.size, padded_tokens(lengths, batch) // batch.size)
        for batch in batches(lengths, budget)
    ]
    costs = [predicted_cost(sequences, shape.d_model) for sequences in (trees, padded)]
    tokens = [sum(number * length for number, length in each) for each in (trees, padded)]
    ratio = costs[0] / costs[1]
    counts = f"{tokens[0]:,} tokens instead of {tokens[1]:,}"
    if refused:
        packing, why = "batches", refused
    elif ratio < ENOUGH:
        packing, why = "tree", f"texts begin alike: {counts}"
    else:
        packing, why = "batches", f"texts share too little: {counts} as trees"
    return Choice(
        packing=packing,
        why=why,
        tree_tokens=tokens[0],
        batch_tokens=tokens[1],
        tree_cost=costs[0],
        batch_cost=costs[1],
    )
