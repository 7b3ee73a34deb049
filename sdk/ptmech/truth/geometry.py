"""Truth directions: which way is truth at each layer, and do two stages agree about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from ptmech._statements import Statements
from ptmech._truth_probes import TruthProbe
from ptmech.artifact import Artifact
from ptmech.directions import cosine_similarity
from ptmech.errors import DataError, unknown
from ptmech.results import Result


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TruthDirections(Result):
    """The truth direction of one stage at every layer.

    Attributes
    ----------
    frame
        One row a layer: ``layer``; ``norm``, the direction's length in activation units (0 where
        the activations do not vary, as at the embedding of a common last token); ``n_rows`` and
        ``n_true``, statements used.
    matrix : array of shape [layers, d_model], float64
        The directions, unscaled, in the order of ``layers``. They point from false to true.
    layers
        Decoder blocks, counted from 0.
    """

    matrix: NDArray[np.float64]
    layers: tuple[int, ...]

    def at(self, layer: int) -> NDArray[np.float64]:
        """Return the direction [d_model] at one layer.

        Parameters
        ----------
        layer
            Decoder block, counted from 0.

        Returns
        -------
        array of shape [d_model], float64
            Unscaled; it points from false to true.

        Raises
        ------
        UnknownNameError
            If there is no such layer.
        """
        if layer not in self.layers:
            raise unknown("layer", layer, self.layers)
        return self.matrix[self.layers.index(layer)]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TruthSimilarity(Result):
    """How well the truth directions of two stages agree at every layer.

    Attributes
    ----------
    frame
        One row a layer, all values cosines: ``layer``; ``cosine`` between the stages, each
        direction from all rows; ``split_half_earlier`` and ``split_half_later``, within one stage
        between two disjoint halves of the facts, what estimation alone leaves of a perfect
        agreement; ``split_half_between``, the earlier stage's direction on one half with the later
        stage's on the other, to be compared with these two. ``cosine`` is higher than
        ``split_half_between`` because both its directions share the rows and so their errors.
        The split-half columns are means over the splits. 0 where a direction has length zero.
    """


def directions(
    artifact: Artifact,
    stage: str,
    datasets: Sequence[str] | None = None,
    probe: str | BaseEstimator = "mass_mean",
    *,
    site: str = "resid_post",
    position: int = -1,
) -> TruthDirections:
    """Return the truth direction of a stage at every layer.

    Each dataset is centred by its own mean, then one probe is fitted on all of them together.

    Parameters
    ----------
    artifact
        An artifact with statements.
    stage
        Name of the stage.
    datasets
        Names of statement sets. None takes those the artifact's card chose, or else all labelled
        sets without negations.
    probe
        Name of a probe (:data:`ptmech.probes.PROBES`) or an unfitted estimator with a linear
        direction; ``"mass_mean"`` is the difference in means of Marks & Tegmark (2023).
    site, position
        Which activations to read.

    Returns
    -------
    TruthDirections
        A direction a layer, earliest layer first.

    Raises
    ------
    UnknownNameError
        If stage, dataset, probe, site or position do not exist.
    DataError
        If a dataset is empty, without labels or of one class only.

    Examples
    --------
    >>> truth = directions(artifact, "base")  # doctest: +SKIP
    >>> truth.matrix.shape, truth.at(20).shape  # doctest: +SKIP
    ((30, 576), (576,))
    """
    truth_probe = TruthProbe(probe)
    statements = Statements.of(artifact, datasets)
    layers = artifact.layers(site)
    artifact.prefetch(statements.datasets, stage, site, extras=False)
    everything = np.ones((1, len(statements.labels)), dtype=np.bool_)
    matrix = np.stack(
        [
            truth_probe.directions(
                statements,
                statements.activations(artifact, stage, site=site, layer=layer, position=position),
                everything,
            )[0]
            for layer in layers
        ]
    )
    frame = pl.DataFrame(
        {
            "layer": layers,
            "norm": np.linalg.norm(matrix, axis=1),
            "n_rows": [everything.size] * len(layers),
            "n_true": [int(statements.labels.sum())] * len(layers),
        }
    )
    return TruthDirections(
        frame=frame,
        matrix=matrix,
        layers=layers,
        artifact=artifact.id,
        arguments={
            "stage": stage,
            "datasets": statements.datasets,
            "probe": truth_probe.name,
            "site": site,
            "position": position,
        },
    )


def similarity(
    artifact: Artifact,
    earlier: str,
    later: str,
    datasets: Sequence[str] | None = None,
    *,
    probe: str | BaseEstimator = "mass_mean",
    site: str = "resid_post",
    position: int = -1,
    n_splits: int = 10,
    seed: int = 0,
) -> TruthSimilarity:
    """Compare the truth directions of two stages, layer by layer.

    Parameters
    ----------
    artifact, datasets, probe, site, position
        As for :func:`directions`.
    earlier, later
        Names of two stages.
    n_splits
        How often the facts are split into halves.
    seed
        Seed of the splits; both stages and all layers are split alike.

    Returns
    -------
    TruthSimilarity
        A row a layer: the cosine, and those of split halves.

    Raises
    ------
    UnknownNameError
        If a stage, dataset, probe, site or position does not exist.
    DataError
        If both stages are the same, a dataset cannot be used, or ``n_splits`` is below one.

    Examples
    --------
    >>> agreement = similarity(artifact, "base", "instruct")  # doctest: +SKIP
    >>> agreement.frame.select("layer", "cosine", "split_half_between")  # doctest: +SKIP
    """
    if n_splits < 1:
        raise DataError(f"n_splits must be at least 1, not {n_splits}")
    truth_probe = TruthProbe(probe)
    pair = artifact.pair(earlier, later)
    statements = Statements.of(artifact, datasets)
    rng = np.random.default_rng(seed)
    first_halves = np.stack([statements.halves(rng) for _ in range(n_splits)])
    everything = np.ones((1, first_halves.shape[1]), dtype=np.bool_)
    samples = np.concatenate([everything, first_halves, ~first_halves])
    layers = artifact.layers(site)
    artifact.prefetch(statements.datasets, (pair.earlier, pair.later), site, extras=False)
    rows: list[dict[str, Any]] = []
    for layer in layers:
        earlier_directions, later_directions = (
            truth_probe.directions(statements, activations, samples)
            for activations in (
                statements.activations(artifact, stage, site=site, layer=layer, position=position)
                for stage in (pair.earlier, pair.later)
            )
        )
        rows.append({"layer": layer, **_agreement(earlier_directions, later_directions)})
    return TruthSimilarity(
        frame=pl.DataFrame(rows),
        artifact=artifact.id,
        arguments={
            "earlier": earlier,
            "later": later,
            "datasets": statements.datasets,
            "probe": truth_probe.name,
            "site": site,
            "position": position,
            "n_splits": n_splits,
            "seed": seed,
        },
    )


def _agreement(earlier: NDArray[np.float64], later: NDArray[np.float64]) -> dict[str, float]:
    """Return the cosines of one layer from directions [1 + 2 n_splits, d_model] of each stage.

    In order: from all rows, from the first half of each split, from the second half of each.
    """
    n_splits = len(earlier) // 2
    first, second = slice(1, 1 + n_splits), slice(1 + n_splits, None)

    def mean_cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        return float(np.mean(cosine_similarity(a, b)))

    crosswise = (
        mean_cosine(earlier[first], later[second]),
        mean_cosine(earlier[second], later[first]),
    )
    return {
        "cosine": mean_cosine(earlier[0], later[0]),
        "split_half_earlier": mean_cosine(earlier[first], earlier[second]),
        "split_half_later": mean_cosine(later[first], later[second]),
        "split_half_between": sum(crosswise) / 2,
    }
