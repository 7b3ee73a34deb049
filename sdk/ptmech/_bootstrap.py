"""Bootstrap intervals that resample groups, for accuracy and AUROC, all replicates at once.

Rows that state or deny the same fact are not independent, so it is groups that are drawn with
replacement, not rows. A replicate is a vector of row weights: how often the row's group was drawn.
Two measures taken under the same weights are paired, and so is their difference.
"""

from __future__ import annotations

from zlib import crc32

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
"""Coverage of every interval."""


def group_weights(groups: NDArray[np.str_], n_bootstrap: int, seed: int) -> NDArray[np.float64]:
    """Draw groups with replacement.

    Parameters
    ----------
    groups : array of shape [n]
        Group of each row.
    n_bootstrap
        Number of replicates.
    seed
        Seed. The draw depends on it and on the set of groups only, so that two datasets about the
        same facts (a set of statements and its negations) are resampled together.

    Returns
    -------
    array of shape [n_bootstrap, n]
        How often each row's group was drawn.
    """
    names, member = np.unique(groups, return_inverse=True)
    rng = np.random.default_rng([seed, crc32("\n".join(names).encode())])
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=n_bootstrap)
    return counts[:, member].astype(np.float64)


def accuracy(correct: NDArray[np.bool_], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weighted share of correct rows.

    Parameters
    ----------
    correct : array of shape [..., n]
        Whether each row was predicted correctly, by one probe or several.
    weights : array of shape [replicates, n]
        Weight of each row in each replicate.

    Returns
    -------
    array of shape [..., replicates]
    """
    return (correct @ weights.T) / weights.sum(axis=1)


def auroc(
    scores: NDArray[np.float64], labels: NDArray[np.bool_], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the weighted area under the receiver operating characteristic.

    The probability that a true row scores higher than a false one, ties counting one half.

    Parameters
    ----------
    scores : array of shape [n] or [probes, n]
        Score of each row, by one probe or several.
    labels : array of shape [n]
        Label of each row.
    weights : array of shape [replicates, n]
        Weight of each row in each replicate.

    Returns
    -------
    array of shape [replicates] or [probes, replicates]
        NaN in a replicate that drew one class only.
    """
    true, false = np.flatnonzero(labels), np.flatnonzero(~labels)
    of_true, of_false = weights.T[true], weights.T[false]
    pairs = of_true.sum(axis=0) * of_false.sum(axis=0)
    wins = np.empty((*scores.shape[:-1], len(weights)))
    # The weight of the false rows before each place in their ranking.
    before = np.zeros((len(false) + 1, len(weights)))
    for index in np.ndindex(scores.shape[:-1]):
        of_probe = scores[index]
        order = np.argsort(of_probe[false], kind="stable")
        np.cumsum(of_false[order], axis=0, out=before[1:])
        ranked, wanted = of_probe[false][order], of_probe[true]
        lowest, highest = (ranked.searchsorted(wanted, side) for side in ("left", "right"))
        wins[index] = np.einsum("tr,tr->r", of_true, before[lowest] + before[highest]) / 2
    return np.divide(wins, pairs, out=np.full(wins.shape, np.nan), where=pairs > 0)


def interval(replicates: NDArray[np.float64]) -> tuple[float, float]:
    """Return the percentile interval of replicates [n]; those that are NaN do not count."""
    defined = replicates[~np.isnan(replicates)]
    if not defined.size:
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def intervals(replicates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return :func:`interval` of each row of replicates [measures, n], as [measures, 2]."""
    if np.isnan(replicates).any():
        return np.array([interval(each) for each in replicates])
    return np.quantile(replicates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1).T
