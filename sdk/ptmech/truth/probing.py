"""Truth probes: what one that is trained on the earlier stage reads from the later one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl
from sklearn.base import BaseEstimator

from ptmech._held_out import MEAN, Centering
from ptmech._truth_transfer import TransferTest
from ptmech.artifact import Artifact
from ptmech.results import Result

__all__ = ["MEAN", "TruthTransfer", "chosen_layer", "transfer"]


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

    Returns
    -------
    TruthTransfer
        Accuracies on every dataset left out, and their mean, with intervals.

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
    if layer is None:
        layer = chosen_layer(artifact, site)
    return TruthTransfer(
        frame=pl.DataFrame(test.layer_test.rows(test.stored(layer)), infer_schema_length=None),
        layer=layer,
        artifact=artifact.id,
        arguments=test.asked(layer=layer),
    )


def chosen_layer(artifact: Artifact, site: str) -> int:
    """Return the layer that the artifact's card chose for truth, or else the middle one."""
    layers = artifact.layers(site)
    chosen = artifact.manifest.defaults.truth_layer
    return layers[len(layers) // 2] if chosen is None else chosen
