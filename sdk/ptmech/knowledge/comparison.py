"""Comparing causal traces the way the paper does: in eleven grades, cell by cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import ArrayLike

from ptmech._arrays import finite_array
from ptmech.artifact import Artifact
from ptmech.errors import AlignmentError, DataError, NotStoredError
from ptmech.knowledge.traces import Trace, trace
from ptmech.results import Result

KNOWLEDGE_ROLES: Final = frozenset({"subject", "subject_last", "object"})
"""Roles of the tokens that name the fact."""

BINS: Final = 20
MARGIN: Final = 1e-5


@dataclass(frozen=True, kw_only=True)
class TraceComparison:
    """How alike two tracing matrices are, after :func:`normalize`.

    Attributes
    ----------
    pearson
        Correlation over all cells; NaN if one matrix has no high cell at all.
    max_difference
        Largest absolute difference of a cell, 0 to 1.
    max_difference_knowledge
        The same over the knowledge columns; None if they are not known.
    """

    pearson: float
    max_difference: float
    max_difference_knowledge: float | None


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class KnowledgeComparison(Result):
    """How alike the causal traces of two stages are.

    Attributes
    ----------
    frame
        One row a comparison: ``comparison``; ``pearson``, ``max_difference`` and
        ``max_difference_knowledge`` as in :class:`TraceComparison`. ``locations`` sets the two
        stages' own traces side by side; ``forward`` the later stage patched from the earlier one
        with the later stage's own; ``backward`` the earlier stage patched from the later one with
        the earlier stage's own.
    traces
        The stored traces that went into it, by (source, target).
    """

    traces: Mapping[tuple[str, str], Trace]


def normalize(matrix: ArrayLike) -> np.ndarray:
    """Sort the cells of a tracing matrix into eleven grades, as the paper compares them.

    The range from the smallest value - 1e-5 to the largest + 1e-5 is cut into 20 equal bins. The
    lower ten become 0, the upper ten 0.1, 0.2 ... 1.0: only what lies above the middle counts.

    Parameters
    ----------
    matrix
        Any shape; a :class:`Trace` stands for its ``matrix``.

    Returns
    -------
    numpy.ndarray
        Of the same shape, float64, values from 0, 0.1 ... 1.0. All 0 if the matrix is constant:
        then no cell stands out.

    Raises
    ------
    DataError
        If the matrix is empty or not finite.

    Examples
    --------
    >>> normalize([[-7.0, -3.0], [1.0, 5.0]])
    array([[0. , 0. ],
           [0.4, 1. ]])
    """
    values = finite_array(matrix, "matrix").astype(np.float64)
    lowest, highest = values.min(), values.max()
    if lowest == highest:
        return np.zeros_like(values)
    edges = np.linspace(lowest - MARGIN, highest + MARGIN, BINS + 1)
    # Where the margin drowns in the values, the largest one lies on the last edge.
    number = np.minimum(np.digitize(values, edges), BINS)
    return np.maximum(number - BINS // 2, 0) / (BINS // 2)


def compare(
    m1: Trace | ArrayLike, m2: Trace | ArrayLike, knowledge_columns: Sequence[int] | None = None
) -> TraceComparison:
    """Compare two tracing matrices (Du et al. 2025, section 3).

    Parameters
    ----------
    m1, m2
        Matrices [layers, tokens] or traces. Both are normalised first, see :func:`normalize`.
    knowledge_columns
        Columns of the tokens that name the fact. If None and both are traces: those whose role is
        subject (or object); otherwise they count as unknown.

    Returns
    -------
    TraceComparison
        ``.pearson``, ``.max_difference``, ``.max_difference_knowledge``.

    Raises
    ------
    DataError
        If a matrix is empty, not finite or not two-dimensional, their shapes differ, the columns
        of two traces play different roles, or a knowledge column does not exist.

    Examples
    --------
    >>> early = [[5.0, -7.0], [-7.0, -7.0]]
    >>> late = [[-7.0, -7.0], [-7.0, 5.0]]
    >>> compare(early, late).max_difference
    1.0
    >>> compare(early, early).pearson
    1.0
    """
    first, second = (finite_array(matrix, "matrix", ndim=2) for matrix in (m1, m2))
    if first.shape != second.shape:
        raise DataError(
            f"matrices of shapes {first.shape} and {second.shape} cannot be compared cell by cell"
        )
    if isinstance(m1, Trace) and isinstance(m2, Trace):
        if m1.roles != m2.roles:
            raise DataError("the columns of the two traces play different roles")
        if knowledge_columns is None:
            roles = enumerate(m1.roles)
            knowledge_columns = [column for column, role in roles if role in KNOWLEDGE_ROLES]
    chosen = list(knowledge_columns or ())
    if any(not 0 <= column < first.shape[1] for column in chosen):
        raise DataError(f"knowledge columns {chosen} in a matrix of {first.shape[1]} columns")
    grades, others = normalize(first), normalize(second)
    difference = np.abs(grades - others)
    return TraceComparison(
        pearson=_pearson(grades.ravel(), others.ravel()),
        max_difference=float(difference.max()),
        max_difference_knowledge=float(difference[:, chosen].max()) if chosen else None,
    )


def grouped(trace: Trace) -> np.ndarray:
    """Average the columns of a trace into three groups, for statements in free wording.

    There a column means something else in every pair, but each pair has tokens in which its two
    statements differ, others, and a last one (Du et al. 2025, section 3). Columns are averaged pair
    by pair, then the pairs; :func:`compare` takes the result.

    Parameters
    ----------
    trace
        Of pairs that say in which columns they differ.

    Returns
    -------
    numpy.ndarray
        [layers, 3]: differing tokens, the other tokens, the last token. A group that a pair lacks
        does not count for it; one that no pair has is NaN.

    Raises
    ------
    DataError
        If the trace does not say in which columns its pairs differ.

    Examples
    --------
    >>> compare(grouped(first), grouped(second)).pearson  # doctest: +SKIP
    """
    differing: list[list[int]] = trace.pairs["differing"].drop_nulls().to_list()
    if len(differing) < len(trace.grid):
        raise DataError("this trace does not say in which tokens its pairs differ; build it again")
    columns = np.arange(len(trace.tokens))
    last = columns == columns[-1]
    group = np.array([np.isin(columns, of_pair) for of_pair in differing]) & ~last
    members = np.stack([group, ~group & ~last, np.broadcast_to(last, group.shape)], axis=1)
    sums = np.einsum("plc,pgc->plg", trace.grid, members)
    counts = members.sum(axis=2)[:, None, :]
    means = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
    pairs_with = (counts > 0).sum(axis=0)
    empty = np.full(means.shape[1:], np.nan)
    return np.divide(means.sum(axis=0), pairs_with, out=empty, where=pairs_with > 0)


def compare_stages(
    artifact: Artifact, earlier: str, later: str, dataset: str
) -> KnowledgeComparison:
    """Compare where two stages keep a dataset's facts, and whether each can read the other.

    Parameters
    ----------
    artifact
        Built by a card that asks for traces of this dataset.
    earlier, later
        Names of two stages.
    dataset
        Name of the statement set.

    Returns
    -------
    KnowledgeComparison
        Those of the comparisons ``locations``, ``forward`` and ``backward`` whose traces are
        stored.

    Raises
    ------
    UnknownNameError
        If a stage or the dataset does not exist.
    NotStoredError
        If none of the comparisons can be made.
    DataError
        If both stages are the same.
    AlignmentError
        If the traces are not of the same pairs.

    Examples
    --------
    >>> import ptmech as sdk
    >>> from ptmech import knowledge
    >>> artifact = sdk.load("artifacts/demo")  # doctest: +SKIP
    >>> knowledge.compare_stages(artifact, "sft", "instruct", "cities").frame  # doctest: +SKIP
    """
    artifact.pair(earlier, later)  # refuses unknown stages and twice the same
    traces: dict[tuple[str, str], Trace] = {}
    missing: NotStoredError | None = None
    for source, target in product((earlier, later), repeat=2):
        try:
            traces[source, target] = trace(artifact, source, target, dataset)
        except NotStoredError as error:
            missing = error
    _require_same_pairs(traces, dataset)
    sides = {
        "locations": ((earlier, earlier), (later, later)),
        "forward": ((earlier, later), (later, later)),
        "backward": ((later, earlier), (earlier, earlier)),
    }
    rows = [
        {"comparison": name, **asdict(compare(traces[one], traces[other]))}
        for name, (one, other) in sides.items()
        if one in traces and other in traces
    ]
    if not rows:
        raise missing or NotStoredError(f"{artifact.id} holds no traces of {dataset!r} to compare")
    return KnowledgeComparison(
        frame=pl.DataFrame(rows, schema_overrides={"max_difference_knowledge": pl.Float64}),
        artifact=artifact.id,
        arguments={"earlier": earlier, "later": later, "dataset": dataset},
        traces=traces,
    )


def _require_same_pairs(traces: Mapping[tuple[str, str], Trace], dataset: str) -> None:
    """Check that matrices that are compared are means over the same pairs."""
    named = [
        (f"{source} into {target}", trace.pairs.select("true_uid", "false_uid"))
        for (source, target), trace in traces.items()
    ]
    for name, found in named:
        first, expected = named[0]
        if not found.equals(expected):
            raise AlignmentError(
                f"traces of {dataset!r}: {first} has {expected.height} pairs, {name} has "
                f"{found.height}, and they are not the same ones; rebuild the artifact"
            )


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])
