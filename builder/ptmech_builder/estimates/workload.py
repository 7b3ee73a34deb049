"""What a model is given to run: how many rows, and the sequences these are packed into."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from ptmech.errors import DataError
from ptmech.live.packing.batches import batches, padded_tokens
from ptmech.live.packing.cost import LONGEST_TREE, tokens_at_once
from ptmech.live.packing.prefix_trees import prefix_trees

if TYPE_CHECKING:
    from ptmech_builder.activation_units import ActivationUnit


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Rows of one stage and the sequences they run in.

    Attributes
    ----------
    positions
        Stored positions, of all rows together.
    prompt_tokens
        Tokens of the rows' prompts.
    run_tokens
        Tokens that go through the model: without those that are shared, with padding.
    attended
        Sum over sequences of the square of their tokens.
    """

    rows: float
    positions: float
    prompt_tokens: float
    run_tokens: float
    attended: float

    def scaled(self, prompt_tokens: float) -> Self:
        """Return more or less of the same: rows that share as much as these do.

        Raises
        ------
        DataError
            If that is no number of tokens.
        """
        if not (prompt_tokens > 0 and math.isfinite(prompt_tokens)):
            raise DataError(f"tokens must be a number above 0, not {prompt_tokens:g}")
        factor = prompt_tokens / self.prompt_tokens
        return type(self)(
            rows=self.rows * factor,
            positions=self.positions * factor,
            prompt_tokens=prompt_tokens,
            run_tokens=self.run_tokens * factor,
            attended=self.attended * factor,
        )


def workload_of(units: Iterable[ActivationUnit]) -> Workload:
    """Count what units of one stage run, packed as a CPU does without a setting of the card's."""
    rows = positions = prompt_tokens = run_tokens = attended = 0
    for unit in units:
        rows += unit.prompts.uids.size
        positions += unit.prompts.indices.size
        prompt_tokens += unit.tokens
        for number, length in _sequences(unit):
            run_tokens += number * length
            attended += number * length**2
    return Workload(
        rows=rows,
        positions=positions,
        prompt_tokens=prompt_tokens,
        run_tokens=run_tokens,
        attended=attended,
    )


def _sequences(unit: ActivationUnit) -> list[tuple[int, int]]:
    """Return (how many, tokens of each), padding included."""
    if unit.packing == "tree":
        longest = min(LONGEST_TREE, unit.tokens_per_batch or LONGEST_TREE)
        return [(1, tree.n_tokens) for tree in prefix_trees(unit.prompts.token_ids, longest)]
    lengths = unit.prompts.lengths
    budget = unit.tokens_per_batch or tokens_at_once("batches", "cpu")
    return [
        (batch.size, padded_tokens(lengths, batch) // batch.size)
        for batch in batches(lengths, budget)
    ]
