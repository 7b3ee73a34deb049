"""Truthfulness: where a model represents truth, and whether post-training moves it.

Three questions to the activations of true and false statements (Du et al. 2025, section 4):
:func:`directions`, which way is truth at each layer; :func:`similarity`, how well two stages agree
about it; :func:`transfer`, whether a probe trained on the earlier stage reads the later one.

Examples
--------
>>> import ptmech as sdk
>>> artifact = sdk.load("artifacts/demo")  # doctest: +SKIP
>>> sdk.truth.similarity(artifact, "base", "instruct").plot()  # doctest: +SKIP
>>> sdk.truth.transfer(artifact, "base", "instruct", probe="logistic").frame  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from ptmech._held_out import Centering, Fold, Replicates, average, table_rows
from ptmech._statements import Statements
from ptmech._truth_probes import TruthProbe
from ptmech.artifact import Artifact
from ptmech.directions import cosine_similarity
from ptmech.errors import DataError, unknown
from ptmech.results import Result

__all__ = [
    "Centering",
    "TruthDirections",
    "TruthSimilarity",
    "TruthTransfer",
    "directions",
    "similarity",
    "transfer",
]

MEAN = "mean"
"""Name of the row over all datasets in the frame of :class:`TruthTransfer`."""


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


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TruthTransfer(Result):
    """Leave-one-dataset-out results of own and transferred truth probes.

    Attributes
    ----------
    frame
        Four rows a dataset held out, and four for their ``"mean"``: ``dataset``; ``probe``, which
        is ``own_earlier`` (trained and tested on the earlier stage), ``own_later``,
        ``transferred`` (trained on the earlier stage, tested on the later) or ``difference``
        (transferred minus own_later, paired); ``accuracy``, ``accuracy_low``, ``accuracy_high``,
        ``auroc``, ``auroc_low``, ``auroc_high`` with 95 % bootstrap intervals over the groups of
        the test set (the probes are taken as given: the intervals say how far the test statements
        are a sample, not how far the training statements are); ``n_test``, ``n_train``, rows.
    layer
        The layer that was read.
    """

    layer: int


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


def transfer(
    artifact: Artifact,
    earlier: str,
    later: str,
    layer: int | None = None,
    probe: str | BaseEstimator = "mass_mean",
    centering: Centering = "each",
    *,
    datasets: Sequence[str] | None = None,
    site: str = "resid_post",
    position: int = -1,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> TruthTransfer:
    """Test whether a truth probe of the earlier stage reads the later stage.

    One dataset is held out at a time; probes are trained on the others, one for each stage, and
    tested on it (Du et al. 2025, section 4.2). A training row that shares a group with a test row
    is left out, so that ``neg_cities`` never tells a probe about ``cities``.

    Parameters
    ----------
    artifact, site, position
        As for :func:`directions`.
    earlier, later
        Names of two stages.
    layer
        Decoder block; None takes the one the artifact's card chose for truth, or else the middle
        one of those stored.
    probe
        Name of a probe (:data:`ptmech.probes.PROBES`) or an unfitted estimator, cloned for each
        fold. One whose ``fit`` takes ``polarity`` (TTPD) is given it.
    centering
        Always, each training dataset is centred by the mean of its own training rows, and every
        mean is of the stage its activations come from, whatever stage the probe is from. What
        differs is the held-out dataset. ``"each"``, as in the paper: by its own mean, which uses
        no label but the statements as a batch, and relies on their being balanced. ``"train"``:
        by the average of the training datasets' means, which uses nothing of the test set; the
        offset between topics then stays in, which costs accuracy but leaves the AUROC of a linear
        probe as it is.
    datasets
        Names of two or more statement sets; None as for :func:`directions`.
    n_bootstrap
        Replicates of the group bootstrap.
    seed
        Seed of the bootstrap. The same replicates serve all probes, so differences are paired.

    Raises
    ------
    UnknownNameError
        If a stage, dataset, probe, site, layer or position does not exist.
    DataError
        If there are fewer than two datasets, one of them cannot be used, nothing is left to train
        on, ``centering`` is neither of the two, ``n_bootstrap`` is below one, or the probe cannot
        be trained on labels alone.

    Examples
    --------
    >>> result = transfer(artifact, "base", "instruct", layer=20)  # doctest: +SKIP
    >>> result.frame.filter(dataset="mean", probe="difference")  # doctest: +SKIP
    """
    if centering not in get_args(Centering):
        raise DataError(f"centering must be 'train' or 'each', not {centering!r}")
    if n_bootstrap < 1:
        raise DataError(f"n_bootstrap must be at least 1, not {n_bootstrap}")
    truth_probe = TruthProbe(probe)
    pair = artifact.pair(earlier, later)
    statements = Statements.of(artifact, datasets)
    if len(statements.datasets) < 2:
        raise DataError(
            "leaving one dataset out needs at least two datasets, "
            f"not {', '.join(statements.datasets)} alone"
        )
    if layer is None:
        layer = _chosen_layer(artifact, site)
    activations = [
        statements.activations(artifact, stage, site=site, layer=layer, position=position)
        for stage in (pair.earlier, pair.later)
    ]
    rows: list[dict[str, Any]] = []
    replicates: list[Replicates] = []
    for held_out, name in enumerate(statements.datasets):
        fold = Fold.leaving_out(statements, held_out)
        replicates.append(
            fold.measure(
                statements,
                activations,
                truth_probe,
                centering=centering,
                n_bootstrap=n_bootstrap,
                seed=seed,
            )
        )
        sizes = {"n_test": int(fold.test.sum()), "n_train": int(fold.train.sum())}
        rows += [{"dataset": name, **row, **sizes} for row in table_rows(replicates[-1])]
    sizes = {"n_test": len(statements.labels), "n_train": None}
    rows += [{"dataset": MEAN, **row, **sizes} for row in table_rows(average(replicates))]
    return TruthTransfer(
        frame=pl.DataFrame(rows, infer_schema_length=None),
        layer=layer,
        artifact=artifact.id,
        arguments={
            "earlier": earlier,
            "later": later,
            "layer": layer,
            "probe": truth_probe.name,
            "centering": centering,
            "datasets": statements.datasets,
            "site": site,
            "position": position,
            "n_bootstrap": n_bootstrap,
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


def _chosen_layer(artifact: Artifact, site: str) -> int:
    layers = artifact.layers(site)
    chosen = artifact.manifest.defaults.truth_layer
    return layers[len(layers) // 2] if chosen is None else chosen
