"""Truth probes at every layer: where a probe of the earlier stage reads the later one."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import polars as pl
from sklearn.base import BaseEstimator
from sklearn.utils.parallel import Parallel, delayed
from threadpoolctl import ThreadpoolController

from ptmech._arguments import layer_numbers
from ptmech._held_out import Centering
from ptmech._truth_transfer import LayerTest, StoredLayer, TransferTest
from ptmech.artifact import Artifact
from ptmech.results import Result


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TruthSweep(Result):
    """Leave-one-dataset-out results of own and transferred truth probes, layer by layer.

    Attributes
    ----------
    frame
        ``layer``, then the columns of :class:`TruthTransfer`; for each layer its rows.
    layers
        The layers that were read, in the order of the frame.
    """

    layers: tuple[int, ...]


def sweep(
    artifact: Artifact,
    earlier: str,
    later: str,
    layers: int | Iterable[int] | None = None,
    probe: str | BaseEstimator = "mass_mean",
    centering: Centering = "each",
    *,
    datasets: Sequence[str] | None = None,
    site: str = "resid_post",
    position: int = -1,
    n_bootstrap: int = 1000,
    seed: int = 0,
    n_jobs: int | None = None,
) -> TruthSweep:
    """Test at every layer whether a truth probe of the earlier stage reads the later stage.

    The numbers of a layer are those of :func:`transfer` there. What does not depend on the layer
    (folds, bootstrap replicates) is made once.

    Parameters
    ----------
    artifact, earlier, later, probe, centering, datasets, site, position, n_bootstrap, seed
        As for :func:`transfer`.
    layers
        Decoder blocks, counted from 0; all those stored if None.
    n_jobs
        Layers at a time, each in a process of its own, as joblib counts them: -1 for one a core,
        None for one unless within :class:`joblib.parallel_config`. It pays for probes that are
        fitted by iteration, such as ``"logistic"``; the closed-form ones are done sooner than
        processes start. The numbers are the same for every value.

    Returns
    -------
    TruthSweep
        As :func:`transfer` gives it, for every layer.

    Raises
    ------
    UnknownNameError
        If a stage, dataset, probe, site, layer or position does not exist.
    DataError
        As for :func:`transfer`, or if a layer is named twice or none is.

    Examples
    --------
    >>> result = sweep(artifact, "base", "instruct", probe="logistic", n_jobs=-1)  # doctest: +SKIP
    >>> result.frame.filter(dataset="mean", probe="transferred")  # doctest: +SKIP
    """
    test = TransferTest.of(
        artifact,
        earlier,
        later,
        probe,
        centering,
        datasets=datasets,
        site=site,
        position=position,
        n_bootstrap=n_bootstrap,
        seed=seed,
    )
    stored = artifact.layers(site)
    chosen = stored if layers is None else layer_numbers(layers, every=stored)
    artifact.prefetch(test.arguments["datasets"], (earlier, later), site, chosen, extras=False)
    found: Any = Parallel(n_jobs=n_jobs)(
        delayed(_layer)(test.layer_test, test.stored(layer)) for layer in chosen
    )
    rows: list[dict[str, Any]] = []
    for layer, (of_layer, caught) in zip(chosen, found, strict=True):
        rows += [{"layer": layer, **row} for row in of_layer]
        for each in caught:
            warnings.warn(f"layer {layer}: {each.message}", each.category, stacklevel=2)
    return TruthSweep(
        frame=pl.DataFrame(rows, infer_schema_length=None),
        layers=chosen,
        artifact=artifact.id,
        arguments=test.asked(layers=chosen),
    )


def _layer(
    test: LayerTest, stored: StoredLayer
) -> tuple[list[dict[str, Any]], list[warnings.WarningMessage]]:
    # One thread, here as in every other process: how sums are split among threads shows in their
    # last digits, and processes that all take every core get in each other's way.
    with _thread_pools().limit(limits=1):
        return test.rows_and_warnings(stored)


@cache
def _thread_pools() -> ThreadpoolController:
    """Return the libraries of this process that have threads: looking for them takes a while."""
    return ThreadpoolController()
