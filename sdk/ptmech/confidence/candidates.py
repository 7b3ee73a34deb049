"""Candidates for entropy neurons, from stored weight statistics, and how two stages share them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np
import polars as pl
from scipy.stats import hypergeom

from ptmech._schemas import neurons_of
from ptmech.artifact import Artifact
from ptmech.errors import AlignmentError, unknown
from ptmech.results import Result
from ptmech.unembedding import Convention, entropy_neurons


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ConfidenceComparison(Result):
    """Entropy-neuron candidates of two stages.

    Attributes
    ----------
    frame
        One row for each neuron that is a candidate in either stage, the smallest logit variance
        of the earlier stage first: ``neuron``; then for each stage, with suffix ``_earlier`` or
        ``_later``: ``norm``, length of the output weights; ``logit_variance``; ``ratio``,
        ``norm / log(logit_variance)`` as in the paper, negative because logit variances are below
        one; ``null_space_fraction``; ``candidate``, whether it is one.
    neurons
        One row for each neuron of each stage, by neuron: ``stage``, ``neuron``, ``norm``,
        ``logit_variance``, ``ratio``, ``null_space_fraction``, ``eligible`` (the norm is above the
        quantile), ``candidate``.
    candidates_earlier, candidates_later
        Indices of each stage's candidates, the smallest logit variance first.
    overlap
        Intersection over union of the two sets of candidates; 0 if there are none.
    chance_overlap
        What to expect of two independent random picks among the eligible neurons of each stage,
        see :func:`chance_overlap`.
    mean_ratio_change
        Mean over ``frame`` of the absolute difference between the two ratios; NaN if it is empty.
    """

    neurons: pl.DataFrame
    candidates_earlier: tuple[int, ...]
    candidates_later: tuple[int, ...]
    overlap: float
    chance_overlap: float
    mean_ratio_change: float


def neurons(artifact: Artifact, stage: str) -> pl.DataFrame:
    """Return the statistics of every neuron of a stage's last MLP.

    Parameters
    ----------
    artifact
        An artifact with weight statistics.
    stage
        Name of the stage.

    Returns
    -------
    polars.DataFrame
        One row a neuron: ``neuron``; ``norm``, length of its output weights;
        ``logit_variance_raw``, ``logit_variance_folded``, ``logit_variance_folded_centered`` in
        the conventions of :mod:`ptmech.unembedding`; ``null_space_fraction``.

    Raises
    ------
    UnknownNameError
        If there is no such stage.
    NotStoredError
        If the artifact holds no weight statistics of it.
    FormatError
        If they do not fit their columns, or are not of its neurons.

    Examples
    --------
    >>> neurons(artifact, "base").sort("logit_variance_folded_centered")  # doctest: +SKIP
    """
    about = artifact.manifest.stage(stage)
    if about is None:
        raise unknown("stage", stage, artifact.stages)
    path = f"weights/{stage}/neurons.parquet"
    return neurons_of(artifact.table(path), path, about.d_mlp)


def candidates(
    artifact: Artifact,
    stage: str,
    *,
    convention: Convention = "folded_centered",
    norm_quantile: float = 0.75,
    n: int = 10,
) -> tuple[int, ...]:
    """Return a stage's candidates for entropy neurons, the smallest logit variance first.

    Parameters
    ----------
    artifact
        An artifact with weight statistics.
    stage
        Name of the stage.
    convention, norm_quantile, n
        As for :func:`compare`.

    Raises
    ------
    UnknownNameError
        If the stage or the convention does not exist.
    NotStoredError
        If the artifact holds no weight statistics of it.
    DataError
        If the quantile is outside 0 to 1, or ``n`` is below one.

    Examples
    --------
    >>> candidates(artifact, "base", n=5)  # doctest: +SKIP
    """
    _require_convention(convention)
    return _candidates(_judged(neurons(artifact, stage), convention, norm_quantile, n))


def candidates_of(table: pl.DataFrame, *, norm_quantile: float = 0.75, n: int = 10) -> list[int]:
    """Return the candidates among the neurons of a table as :func:`neurons` returns it."""
    return list(_candidates(_judged(table, "folded_centered", norm_quantile, n)))


def compare(
    artifact: Artifact,
    earlier: str,
    later: str,
    *,
    convention: Convention = "folded_centered",
    norm_quantile: float = 0.75,
    n: int = 10,
) -> ConfidenceComparison:
    """Compare the entropy-neuron candidates of two stages.

    A stage's candidates are, of the neurons whose norm is above a quantile of all norms, the ``n``
    with the smallest logit variance.

    Parameters
    ----------
    artifact
        An artifact with weight statistics of both stages.
    earlier, later
        Names of two stages.
    convention
        Which form of the unembedding the logit variance is taken of, see
        :mod:`ptmech.unembedding`.
    norm_quantile
        Only neurons longer than this quantile come into question.
    n
        How many candidates to take.

    Returns
    -------
    ConfidenceComparison
        Candidates side by side, their overlap, and what chance would give.

    Raises
    ------
    UnknownNameError
        If a stage or the convention does not exist.
    NotStoredError
        If the artifact holds no weight statistics of a stage.
    AlignmentError
        If the last MLPs have different numbers of neurons.
    DataError
        If both stages are the same, the quantile is outside 0 to 1, or ``n`` is below one.

    Examples
    --------
    >>> compare(artifact, "base", "instruct", n=5).plot()  # doctest: +SKIP
    """
    _require_convention(convention)
    artifact.pair(earlier, later)  # refuses unknown stages and twice the same
    first, last = (
        _judged(neurons(artifact, stage), convention, norm_quantile, n)
        for stage in (earlier, later)
    )
    if first.height != last.height:
        raise AlignmentError(
            f"the last MLP has {first.height} neurons in {earlier!r} and {last.height} in "
            f"{later!r}: these stages cannot be compared neuron by neuron"
        )
    frame = (
        first.drop("eligible", "rank")
        .join(last.drop("eligible", "rank"), on="neuron", suffix="_later", validate="1:1")
        .rename({name: f"{name}_earlier" for name in _JUDGED})
        .filter(pl.col("candidate_earlier") | pl.col("candidate_later"))
        .sort("logit_variance_earlier", "neuron")
    )
    chosen = [_candidates(judged) for judged in (first, last)]
    shared = set(chosen[0]) & set(chosen[1])
    return ConfidenceComparison(
        frame=frame,
        neurons=pl.concat(
            judged.drop("rank").insert_column(0, pl.lit(stage).alias("stage"))
            for stage, judged in ((earlier, first), (later, last))
        ),
        candidates_earlier=chosen[0],
        candidates_later=chosen[1],
        overlap=len(shared) / max(frame.height, 1),
        chance_overlap=chance_overlap(
            eligible=(int(first["eligible"].sum()), int(last["eligible"].sum())),
            eligible_in_both=int((first["eligible"] & last["eligible"]).sum()),
            picked=(len(chosen[0]), len(chosen[1])),
        ),
        mean_ratio_change=_mean_absolute(frame["ratio_later"] - frame["ratio_earlier"]),
        artifact=artifact.id,
        arguments={
            "earlier": earlier,
            "later": later,
            "convention": convention,
            "norm_quantile": norm_quantile,
            "n": n,
        },
    )


def chance_overlap(
    *, eligible: tuple[int, int], eligible_in_both: int, picked: tuple[int, int]
) -> float:
    """Return the expected intersection over union of two independent random picks.

    Exact, not simulated. Of a first pick, K neurons are eligible for the second too, K being
    hypergeometric; of those the second pick hits I, hypergeometric given K; the result is the mean
    of I / (picked[0] + picked[1] - I).

    Parameters
    ----------
    eligible
        How many neurons each pick is from.
    eligible_in_both
        How many neurons are eligible for both picks.
    picked
        How many neurons are picked, without replacement.

    Returns
    -------
    float
        From 0 to 1; 0 if nothing is picked.

    Examples
    --------
    >>> round(chance_overlap(eligible=(384, 384), eligible_in_both=384, picked=(10, 10)), 4)
    0.0139
    """
    if sum(picked) == 0:
        return 0.0
    hits = np.arange(min(picked) + 1)
    shareable = np.arange(min(picked[0], eligible_in_both) + 1)
    p_shareable = hypergeom.pmf(shareable, eligible[0], eligible_in_both, picked[0])
    p_hits = p_shareable @ hypergeom.pmf(hits, eligible[1], shareable[:, None], picked[1])
    return float(p_hits @ (hits / (sum(picked) - hits)))


_JUDGED = ("norm", "logit_variance", "ratio", "null_space_fraction", "candidate")
"""Columns that the frame of a comparison has once for each stage."""


def _require_convention(convention: str) -> None:
    if convention not in get_args(Convention):
        raise unknown("convention", convention, get_args(Convention))


def _judged(
    table: pl.DataFrame, convention: Convention, norm_quantile: float, n: int
) -> pl.DataFrame:
    """Return one row a neuron: what it is judged by, and whether it is a candidate."""
    norm = table["norm"].to_numpy()
    variance = table[f"logit_variance_{convention}"].to_numpy()
    chosen = entropy_neurons(norm, variance, norm_quantile=norm_quantile, n=n)
    ranks = pl.DataFrame({"neuron": table["neuron"].gather(chosen), "rank": np.arange(len(chosen))})
    return table.join(ranks, on="neuron", how="left", maintain_order="left").select(
        "neuron",
        "norm",
        logit_variance=variance,
        ratio=pl.col("norm") / pl.lit(pl.Series(variance)).log(),
        null_space_fraction="null_space_fraction",
        eligible=norm > np.quantile(norm, norm_quantile),
        candidate=pl.col("rank").is_not_null(),
        rank="rank",
    )


def _candidates(judged: pl.DataFrame) -> tuple[int, ...]:
    return tuple(judged.filter("candidate").sort("rank")["neuron"].to_list())


def _mean_absolute(values: pl.Series) -> float:
    return float(np.abs(values.to_numpy()).mean()) if values.len() else float("nan")
