"""Trees hold every row whole, each shared beginning once, and let no token see another's text."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ptmech.errors import DataError
from ptmech.live.packing.batches import batches, padded_tokens
from ptmech.live.packing.prefix_trees import Tree, most_shared, prefix_trees, seen_by

# Few ids and short rows: many share beginnings, some are the same, some begin another.
ROWS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7), max_size=14)
LONGEST = st.integers(1, 30)


def distinct_prefixes(rows: list[list[int]]) -> int:
    """How many different beginnings rows have: what has to be computed at the least."""
    return len({tuple(row[:stop]) for row in rows for stop in range(1, len(row) + 1)})


def text_before(tree: Tree, node: int) -> list[int]:
    """The tokens from the first one to a node, found by walking up."""
    found: list[int] = []
    while node >= 0:
        found.insert(0, int(tree.token_ids[node]))
        node = int(tree.parents[node])
    return found


@given(rows=ROWS, longest=LONGEST)
@example(rows=[[1, 2], [1, 2], [1]], longest=1)
def test_every_row_is_there_once_with_all_its_tokens(rows: list[list[int]], longest: int) -> None:
    trees = prefix_trees(rows, longest)
    assert sorted(row for tree in trees for row in tree.rows.tolist()) == list(range(len(rows)))
    for tree in trees:
        for row, way in zip(tree.rows.tolist(), tree.ways, strict=True):
            assert tree.token_ids[way].tolist() == rows[row]
            assert tree.depths[way].tolist() == list(range(len(rows[row])))
            assert tree.parents[way].tolist() == [-1, *way[:-1].tolist()]
            assert text_before(tree, int(way[-1])) == rows[row]


@given(rows=ROWS, longest=LONGEST)
def test_a_tree_holds_each_beginning_once_and_keeps_to_its_length(
    rows: list[list[int]], longest: int
) -> None:
    trees = prefix_trees(rows, longest)
    for tree in trees:
        own = [rows[row] for row in tree.rows.tolist()]
        assert tree.n_tokens == distinct_prefixes(own) <= sum(map(len, own))
        assert tree.n_tokens <= max(longest, *map(len, own))
        assert (tree.parents < np.arange(tree.n_tokens)).all()
    for before, after in pairwise(trees):
        # Greedy: the next row, with what it adds, would not have fitted.
        both = [rows[row] for row in [*before.rows.tolist(), int(after.rows[0])]]
        assert distinct_prefixes(both) > longest


@given(rows=ROWS)
def test_one_tree_shares_all_there_is_to_share(rows: list[list[int]]) -> None:
    assert sum(tree.n_tokens for tree in prefix_trees(rows, 10**6)) == distinct_prefixes(rows)


@given(rows=ROWS, longest=LONGEST, shuffled=st.randoms())
def test_the_order_of_the_rows_does_not_matter(
    rows: list[list[int]], longest: int, shuffled: np.random.Generator
) -> None:
    other = [*rows]
    shuffled.shuffle(other)
    for one, two in zip(prefix_trees(rows, longest), prefix_trees(other, longest), strict=True):
        np.testing.assert_array_equal(one.token_ids, two.token_ids)
        np.testing.assert_array_equal(one.parents, two.parents)


@given(rows=ROWS, longest=LONGEST, window=st.none() | st.integers(1, 5))
def test_a_token_sees_its_own_text_and_nothing_else(
    rows: list[list[int]], longest: int, window: int | None
) -> None:
    for tree in prefix_trees(rows, longest):
        seen = seen_by(np.arange(tree.n_tokens), tree.ends, tree.depths, window)
        for node in range(tree.n_tokens):
            ancestors = np.flatnonzero(seen[node])
            before = text_before(tree, node)
            assert tree.token_ids[ancestors].tolist() == before[-(window or len(before)) :]
            assert ancestors[-1] == node


def test_nodes_are_the_tokens_asked_for() -> None:
    (tree,) = prefix_trees([[4, 5, 6], [4, 9], [4, 5, 7]], 10)
    assert tree.rows.tolist() == [0, 2, 1]
    nodes = tree.nodes(np.array([[0, 2], [1, 2], [0, 1]]))
    assert tree.token_ids[nodes].tolist() == [[4, 6], [5, 7], [4, 9]]


def test_a_row_without_tokens_is_named() -> None:
    with pytest.raises(DataError, match="row 1 has no tokens"):
        prefix_trees([[3], []], 8)


def test_the_row_that_shares_most() -> None:
    rows = [[1, 2, 3, 4], [9, 9], [1, 2, 3, 5, 6], [1, 7]]
    assert most_shared(rows) in (0, 2)
    assert most_shared([[1, 2], [3], [4, 1]]) is None
    assert most_shared([[1, 2]]) is None


@given(
    lengths=st.lists(st.integers(1, 60), max_size=40).map(np.array),
    budget=st.integers(1, 200),
)
def test_batches_hold_every_row_once_and_keep_the_budget(lengths: np.ndarray, budget: int) -> None:
    split = list(batches(lengths, budget))
    rows = np.concatenate(split) if split else np.array([])
    assert sorted(rows) == list(range(lengths.size))
    for batch in split:
        assert padded_tokens(lengths, batch) == lengths[batch].max() * batch.size
        assert batch.size == 1 or padded_tokens(lengths, batch) <= budget
    for before, after in pairwise(split):
        # Sorted, and greedy: the next row would not have fitted.
        assert lengths[before].max() <= lengths[after].min()
        assert lengths[after].min() * (before.size + 1) > budget
