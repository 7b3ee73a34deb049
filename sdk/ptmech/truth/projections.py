"""Statements along truth directions that never saw them: how far apart true and false ones lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.metrics import roc_auc_score

from ptmech._held_out import Fold
from ptmech._statements import Statements
from ptmech._truth_probes import TruthProbe
from ptmech.artifact import Artifact
from ptmech.results import Result
from ptmech.truth.probing import chosen_layer


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TruthProjections(Result):
    """Projections of the statements of each dataset on truth directions of the others.

    Attributes
    ----------
    frame
        A row for each statement and reading: ``stage``, whose activations are projected;
        ``direction_stage``, whose direction they are projected on; ``dataset``, ``row_uid``,
        ``label`` (1 true, 0 false); ``projection``, less the dataset's mean and in units of its
        standard deviation, positive towards "true". 0 throughout where the direction has length
        zero or the dataset does not vary along it.
    separation
        A row for each dataset and reading: ``stage``, ``direction_stage``, ``dataset``; ``auroc``,
        the probability that a true statement lies beyond a false one; ``n``, statements.
    layer
        The layer that was read.
    """

    separation: pl.DataFrame
    layer: int


def projections(
    artifact: Artifact,
    earlier: str,
    later: str,
    layer: int | None = None,
    *,
    datasets: Sequence[str] | None = None,
    probe: str | BaseEstimator = "mass_mean",
    site: str = "resid_post",
    position: int = -1,
) -> TruthProjections:
    """Project true and false statements on the truth directions of two stages.

    One dataset is left out at a time, as for :func:`transfer`: its statements are projected on a
    direction that was found on the others. Each stage is read along its own direction, and the
    later stage along the earlier one's too (Du et al. 2025, section 4).

    Parameters
    ----------
    artifact, datasets, site, position
        As for :func:`transfer`.
    earlier, later
        Names of two stages.
    layer
        Decoder block; None takes the one the artifact's card chose for truth, or else the middle
        one of those stored.
    probe
        Name of a probe (:data:`ptmech.probes.PROBES`) or an unfitted estimator with a linear
        direction.

    Raises
    ------
    UnknownNameError
        If a stage, dataset, probe, site, layer or position does not exist.
    DataError
        If both stages are the same, there are fewer than two datasets, one of them cannot be used,
        nothing is left to find a direction on, or the probe has none.

    Examples
    --------
    >>> found = projections(artifact, "base", "instruct")  # doctest: +SKIP
    >>> found.separation.filter(stage="instruct", direction_stage="base")  # doctest: +SKIP
    """
    truth_probe = TruthProbe(probe)
    artifact.pair(earlier, later)
    statements = Statements.to_leave_one_out(artifact, datasets)
    if layer is None:
        layer = chosen_layer(artifact, site)
    folds = [Fold.leaving_out(statements, each) for each in range(len(statements.datasets))]
    samples = np.stack([fold.train for fold in folds])
    centred: dict[str, NDArray[np.float64]] = {}
    directions: dict[str, NDArray[np.float64]] = {}
    for stage in (earlier, later):
        stored = statements.stored(artifact, stage, site=site, layer=layer, position=position)
        activations = np.concatenate(stored, dtype=np.float64)
        directions[stage] = truth_probe.directions(statements, activations, samples)
        centred[stage] = statements.centred_blocks(stored)
    known = pl.concat(
        artifact.statements(name).select("dataset", "row_uid", "label")
        for name in statements.datasets
    )
    readings = ((earlier, earlier), (later, later), (later, earlier))
    frame = pl.concat(
        known.select(
            pl.lit(stage).alias("stage"),
            pl.lit(direction_stage).alias("direction_stage"),
            pl.all(),
            projection=_standardised(centred[stage], directions[direction_stage], folds),
        )
        for stage, direction_stage in readings
    )
    return TruthProjections(
        frame=frame,
        separation=_separation(frame),
        layer=layer,
        artifact=artifact.id,
        arguments={
            "earlier": earlier,
            "later": later,
            "layer": layer,
            "datasets": statements.datasets,
            "probe": truth_probe.name,
            "site": site,
            "position": position,
        },
    )


def _standardised(
    centred: NDArray[np.float64], directions: NDArray[np.float64], folds: Sequence[Fold]
) -> pl.Series:
    """Project each fold's test rows [n, d] on its direction, and divide by their deviation."""
    found = np.zeros(len(centred))
    for fold, direction in zip(folds, directions, strict=True):
        along = centred[fold.test] @ direction
        spread = along.std()
        if spread > 0:
            found[fold.test] = along / spread
    return pl.Series("projection", found)


def _separation(frame: pl.DataFrame) -> pl.DataFrame:
    keys = ["stage", "direction_stage", "dataset"]
    return pl.DataFrame(
        [
            {
                **dict(zip(keys, key, strict=True)),
                "auroc": float(roc_auc_score(group["label"], group["projection"])),
                "n": group.height,
            }
            for key, group in frame.group_by(keys, maintain_order=True)
        ]
    )
