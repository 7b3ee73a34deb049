"""Truth probes at every layer, one dataset held out at a time, against a scikit-learn loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

import ptmech as sdk
from benchmarks.interleaved import Numbers, Way, measure
from benchmarks.report import Table, cost_table
from benchmarks.setting import Benchmark, Setting
from ptmech import Artifact
from ptmech.probes import LogisticProbe, MassMeanProbe

ABOUT = """
Probes of two stages, each tested on one statement set and trained on the others, and the earlier
stage's probe on the later stage: `truth.sweep` without its bootstrap (one replicate),
against the loop over layers, stages and datasets that one writes with scikit-learn, on activations
read from the same artifact. Compared are the areas under the ROC curves. The slow ways take some of
the layers.

- **mass mean**: the loop subtracts class means and fits a one-dimensional `LogisticRegression`.
- **LDA**: `MassMeanProbe(whiten=True, shrinkage=0)`; the loop, `LinearDiscriminantAnalysis` as it
  comes.
- **logistic regression**: the same penalty and both at the optimum; the loop's, with
  `tol=1e-6` and as many steps as it takes. What scikit-learn does by default stops earlier, and
  its accuracy depends on where.
"""
ROUNDS = 3
EARLIER, LATER, TRANSFERRED = "own_earlier", "own_later", "transferred"
OURS, LOOP = "ptmech, truth.sweep", "scikit-learn loop"
TOLERANCE = 5e-3
"""Of an area under a curve of 40,000 pairs, few of which change sides when digits do."""
MAX_STEPS = 100_000

Scorer = Callable[[NDArray[np.float64]], NDArray[np.float64]]
Fit = Callable[[NDArray[np.float64], NDArray[np.bool_]], Scorer]


def run(setting: Setting) -> list[Table]:
    """Compare for three kinds of probe, as many layers as time allows."""
    artifact, rounds = setting.artifact, setting.rounds or ROUNDS
    stored = artifact.layers()
    middle = stored[len(stored) // 2]
    kinds: list[tuple[str, BaseEstimator, Fit, Sequence[int], Sequence[int]]] = [
        ("mass mean", MassMeanProbe(), mass_mean, stored, stored[5::10]),
        ("LDA", MassMeanProbe(whiten=True, shrinkage=0.0), lda, stored[5::10], [middle]),
        ("logistic regression", LogisticProbe(), logistic, [middle], [middle]),
    ]
    tables: list[Table] = []
    for name, probe, fit, layers, some in kinds:
        costs = measure(
            ways(artifact, probe, fit, layers=layers, sampled=some),
            reference=OURS,
            rounds=rounds,
            tolerance=TOLERANCE,
        )
        sets = len(artifact.manifest.defaults.truth_datasets)
        title = f"{name}: two stages, {sets} statement sets, {len(layers)} of {len(stored)} layers"
        tables.append(cost_table(title, costs, unit="ptmech"))
    return tables


def ways(
    artifact: Artifact,
    probe: BaseEstimator,
    fit: Fit,
    *,
    layers: Sequence[int],
    sampled: Sequence[int],
) -> list[Way]:
    """Return ptmech's sweep, and the loop over some of its layers."""
    common = [layer for layer in sampled if layer in layers] or list(layers[:1])
    return [
        Way(name=OURS, run=lambda: sweep(artifact, probe, layers)),
        Way(name=LOOP, run=lambda: loop(artifact, fit, common), share=len(common) / len(layers)),
    ]


def sweep(artifact: Artifact, probe: BaseEstimator, layers: Sequence[int]) -> Numbers:
    """Return the areas [statement sets] by probe and layer."""
    earlier, later = artifact.stages[:2]
    frame = sdk.truth.sweep(artifact, earlier, later, layers, probe, n_bootstrap=1).frame
    found: dict[Any, Any] = {}
    for (layer, name), rows in frame.group_by("layer", "probe", maintain_order=True):
        if name in (EARLIER, LATER, TRANSFERRED):
            held_out = rows.filter(rows["dataset"] != sdk.truth.MEAN)
            found[name, layer] = held_out["auroc"].to_numpy()
    return found


def loop(artifact: Artifact, fit: Fit, layers: Sequence[int]) -> Numbers:
    """Return the same, fold by fold."""
    sets = artifact.manifest.defaults.truth_datasets
    labels = {name: artifact.labels(name) for name in sets}
    found: dict[Any, Any] = {}
    for layer in layers:
        centred = {
            stage: {name: _centred(artifact, name, stage, layer) for name in sets}
            for stage in artifact.stages[:2]
        }
        earlier, later = centred.values()
        areas: dict[str, list[float]] = {EARLIER: [], LATER: [], TRANSFERRED: []}
        for held_out in sets:
            others = [name for name in sets if name != held_out]
            known = np.concatenate([labels[name] for name in others])
            of_earlier, of_later = (
                fit(np.concatenate([stage[name] for name in others]), known)
                for stage in (earlier, later)
            )
            for probe, score, stage in (
                (EARLIER, of_earlier, earlier),
                (LATER, of_later, later),
                (TRANSFERRED, of_earlier, later),
            ):
                areas[probe].append(float(roc_auc_score(labels[held_out], score(stage[held_out]))))
        found |= {(probe, layer): np.array(values) for probe, values in areas.items()}
    return found


def _centred(artifact: Artifact, dataset: str, stage: str, layer: int) -> NDArray[np.float64]:
    values = artifact.activations(dataset, stage, layer=layer, dtype=np.float64)
    return values - values.mean(axis=0)


def mass_mean(activations: NDArray[np.float64], labels: NDArray[np.bool_]) -> Scorer:
    """Fit a mass-mean probe: direction and threshold."""
    theta = activations[labels].mean(axis=0) - activations[~labels].mean(axis=0)
    line = LogisticRegression(C=1e6).fit((activations @ theta)[:, None], labels)
    return lambda values: line.decision_function((values @ theta)[:, None])


def lda(activations: NDArray[np.float64], labels: NDArray[np.bool_]) -> Scorer:
    """Fit scikit-learn's linear discriminant analysis."""
    return LinearDiscriminantAnalysis().fit(activations, labels).decision_function


def logistic(activations: NDArray[np.float64], labels: NDArray[np.bool_]) -> Scorer:
    """Fit scikit-learn's logistic regression until it has converged."""
    model = LogisticRegression(tol=1e-6, max_iter=MAX_STEPS)
    return model.fit(activations, labels).decision_function


BENCHMARK = Benchmark(
    name="probes", title="Probe sweeps against a scikit-learn loop", about=ABOUT, run=run
)
