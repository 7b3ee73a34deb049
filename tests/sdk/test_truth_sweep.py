"""Probes at every layer and of every fold at once, against one fit at a time and scikit-learn."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from tests.synthetic import STATEMENT_SETS

from ptmech import truth
from ptmech._bootstrap import auroc
from ptmech._statements import Statements
from ptmech._truth_probes import TruthProbe
from ptmech.errors import DataError, UnknownNameError
from ptmech.probes import LogisticProbe, MassMeanProbe
from ptmech.probes.cells import Cells
from ptmech.probes.class_sums import ClassSums

STAGES = ("base", "instruct")


def made(*, sizes=(90, 70, 110, 80), width=24, offset=0.0, shared=20, seed=0):
    """Statements of several datasets and their activations; the first two share some groups."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    n = len(owner)
    labels = rng.random(n) < 0.4 + 0.05 * owner
    groups = np.array([f"g{row}" for row in range(n)])
    groups[sizes[0] : sizes[0] + shared] = groups[:shared]
    statements = Statements(
        datasets=tuple(f"set{index}" for index in range(len(sizes))),
        owner=owner,
        labels=labels,
        polarity=np.ones(n, dtype=np.int8),
        groups=groups,
    )
    mixing = rng.normal(size=(width, width))
    rows = rng.normal(size=(n, width)) @ mixing + np.outer(labels, rng.normal(size=width))
    return statements, rows + offset * rng.normal(size=(len(sizes), width))[owner]


def samples_of(statements: Statements):
    kept = []
    for index in range(len(statements.datasets)):
        tested = set(statements.groups[statements.owner == index])
        kept.append([group not in tested for group in statements.groups])
    return np.array(kept)


def fitted_together(probe: Any, statements: Statements, rows: np.ndarray, samples: np.ndarray):
    cells = Cells.of(statements.owner, statements.labels, samples)
    blocks = [rows[statements.owner == index] for index in range(len(statements.datasets))]
    return TruthProbe(probe).fit_samples(statements, ClassSums(blocks, cells), samples)


def centred_by_hand(statements: Statements, rows: np.ndarray, sample: np.ndarray):
    centred = rows.astype(np.float64)
    for index in range(len(statements.datasets)):
        mine = (statements.owner == index) & sample
        if mine.any():
            centred[mine] -= centred[mine].mean(axis=0)
            centred[np.ix_(mine, np.ptp(rows[mine], axis=0) == 0)] = 0.0
    return centred[sample], statements.labels[sample]


PROBES = {
    "plain": MassMeanProbe(),
    "whitened": MassMeanProbe(whiten=True),
    "half shrunk": MassMeanProbe(whiten=True, shrinkage=0.5),
    "only scaled": MassMeanProbe(whiten=True, shrinkage=1.0),
    "not shrunk": MassMeanProbe(whiten=True, shrinkage=0.0),
}


def still_columns(rows, statements):
    """Columns that never vary, only in one dataset, or in all but a dataset; and an outlier."""
    rows[:, 0] = 7.3
    rows[statements.owner == 1, 1] = -0.1
    rows[statements.owner != 2, 2] = 1e3
    rows[:, 3] *= 1e4
    return rows


@pytest.mark.parametrize("name", PROBES)
@pytest.mark.parametrize(
    "case",
    [
        {},
        {"offset": 1e5},
        {"sizes": (40, 36, 50, 44), "width": 180},
        {"sizes": (60, 60)},
        {"shared": 0},
        {"still": 1},
    ],
)
def test_sums_give_what_fitting_each_sample_gives(name, case):
    options = {key: value for key, value in case.items() if key != "still"}
    statements, rows = made(**options)
    if "still" in case:
        rows = still_columns(rows, statements)
    samples = samples_of(statements)
    together = fitted_together(PROBES[name], statements, rows, samples)
    for sample, found in zip(samples, together, strict=True):
        x, y = centred_by_hand(statements, rows, sample)
        alone = MassMeanProbe(**PROBES[name].get_params()).fit(x, y)
        size = np.abs(alone.weights_).max()
        np.testing.assert_allclose(found.weights_, alone.weights_, atol=1e-6 * size, rtol=1e-6)
        assert found.intercept_ == pytest.approx(alone.intercept_, rel=1e-6, abs=1e-6)
        assert found.threshold_ == pytest.approx(alone.threshold_, rel=1e-6, abs=1e-6)
        np.testing.assert_array_equal(found.direction_ == 0, alone.direction_ == 0)


def test_float32_rows_far_from_the_origin_keep_their_direction():
    statements, rows = made(offset=1e3)
    rows = rows.astype(np.float32)
    samples = samples_of(statements)
    for sample, found in zip(
        samples, fitted_together("whitened_mass_mean", statements, rows, samples), strict=True
    ):
        x, y = centred_by_hand(statements, rows, sample)
        expected = MassMeanProbe(whiten=True).fit(x, y).direction_
        np.testing.assert_allclose(found.direction_, expected, rtol=1e-8)


def test_whitened_directions_are_those_of_scikit_learn():
    statements, rows = made()
    samples = samples_of(statements)
    for sample, found in zip(
        samples, fitted_together("whitened_mass_mean", statements, rows, samples), strict=True
    ):
        x, y = centred_by_hand(statements, rows, sample)
        residuals = x - np.where(y[:, None], x[y].mean(axis=0), x[~y].mean(axis=0))
        spread = residuals.std(axis=0)
        amount = ledoit_wolf_shrinkage(residuals / spread, assume_centered=True)
        within = (1 - amount) * np.cov(residuals / spread, rowvar=False, bias=True)
        within += amount * np.eye(len(within))
        theta = (x[y].mean(axis=0) - x[~y].mean(axis=0)) / spread
        expected = np.linalg.solve(within, theta) / spread
        np.testing.assert_allclose(found.direction_, expected, rtol=1e-9, atol=1e-12)
    unshrunk = MassMeanProbe(whiten=True, shrinkage=1e-12)
    found = fitted_together(unshrunk, statements, rows, samples)[0]
    x, y = centred_by_hand(statements, rows, samples[0])
    model = LinearDiscriminantAnalysis(solver="lsqr").fit(x, y)
    cosine = found.direction_ @ model.coef_[0]
    cosine /= np.linalg.norm(found.direction_) * np.linalg.norm(model.coef_[0])
    assert cosine == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("inverse_penalty", [0.01, 1.0, 100.0])
@pytest.mark.parametrize(
    "case",
    [{}, {"offset": 1e5}, {"shared": 0}, {"still": 1}, {"width": 240}, {"separable": 1}],
)
def test_logistic_probes_are_scikit_learn_s_at_convergence(case, inverse_penalty):
    statements, rows = made(**{key: case[key] for key in case if key not in ("still", "separable")})
    if "still" in case:
        rows = still_columns(rows, statements) / [1, 1, 1, 1e3, *[1] * 20]
    if "separable" in case:
        rows[:, 5] += 50 * statements.labels
    samples = samples_of(statements)
    together = fitted_together(LogisticProbe(inverse_penalty, tol=1e-12), statements, rows, samples)
    for sample, found in zip(samples, together, strict=True):
        x, y = centred_by_hand(statements, rows, sample)
        oracle = LogisticRegression(
            C=inverse_penalty, solver="newton-cholesky", tol=1e-12, max_iter=1000
        ).fit(x, y)
        size = np.abs(oracle.coef_).max()
        np.testing.assert_allclose(found.weights_, oracle.coef_[0], atol=1e-6 * size, rtol=0)
        odds = oracle.decision_function(x)
        np.testing.assert_allclose(
            found.decision_function(x), odds, atol=1e-6 * np.abs(odds).max(), rtol=0
        )
        assert found.converged_
        np.testing.assert_array_equal(found.predict(x), oracle.predict(x))


def test_logistic_probes_share_their_newton_steps():
    statements, rows = made()
    samples = samples_of(statements)
    found = fitted_together("logistic", statements, rows, samples)
    assert len({probe.n_iter_ for probe in found}) == 1
    scaled = fitted_together(LogisticProbe(standardize=True), statements, rows, samples)
    for sample, probe in zip(samples, scaled, strict=True):
        x, y = centred_by_hand(statements, rows, sample)
        expected = LogisticProbe(standardize=True).fit(x, y).weights_
        np.testing.assert_allclose(probe.weights_, expected, rtol=1e-9)


def test_a_logistic_probe_that_stops_early_says_so():
    statements, rows = made()
    samples = samples_of(statements)
    with pytest.warns(ConvergenceWarning, match="stopped after 1 step"):
        found = fitted_together(LogisticProbe(max_iter=1), statements, rows, samples)
    assert not any(probe.converged_ for probe in found)


@pytest.mark.parametrize("probe", ["mass_mean", "logistic"])
def test_activations_that_are_not_finite_are_refused(probe):
    statements, rows = made()
    rows[4, 2] = np.nan
    with pytest.raises(DataError, match=r"NaN|finite"):
        fitted_together(probe, statements, rows, samples_of(statements))


def test_samples_of_one_class_are_refused():
    statements, rows = made()
    samples = samples_of(statements)
    samples[1] &= statements.labels
    with pytest.raises(DataError, match="one class only"):
        fitted_together("mass_mean", statements, rows, samples)


@pytest.mark.parametrize("ties", [False, True])
def test_weighted_auroc_is_scikit_learn_s(ties):
    rng = np.random.default_rng(3)
    scores = rng.integers(0, 6, 50).astype(float) if ties else rng.normal(size=50)
    labels = rng.random(50) < 0.5
    weights = rng.integers(0, 4, size=(20, 50)).astype(float)
    found = auroc(scores, labels, weights)
    for value, weight in zip(found, weights, strict=True):
        expected = roc_auc_score(labels, scores, sample_weight=weight)
        assert value == pytest.approx(expected, abs=1e-12)


class Recording(ClassifierMixin, BaseEstimator):
    """Warns at every fit, so that whoever reads must hear of it."""

    def fit(self, X: Any, y: Any) -> Any:  # noqa: ARG002
        warnings.warn("a fit to remember", RuntimeWarning, stacklevel=2)
        self.classes_ = np.unique(y)
        return self

    def decision_function(self, X: Any) -> Any:
        return X[:, 0]

    def predict(self, X: Any) -> Any:
        return X[:, 0] > 0


class TestSweep:
    @pytest.mark.parametrize("probe", ["mass_mean", "whitened_mass_mean", "logistic", "ttpd"])
    @pytest.mark.parametrize("centering", ["each", "train"])
    def test_says_at_every_layer_what_transfer_says(self, synthetic, probe, centering):
        options: dict[str, Any] = {
            "probe": probe,
            "centering": centering,
            "datasets": STATEMENT_SETS,
            "n_bootstrap": 20,
        }
        frame = truth.sweep(synthetic, *STAGES, [0, 3], **options).frame
        assert frame.columns[0] == "layer"
        for layer in (0, 3):
            expected = truth.transfer(synthetic, *STAGES, layer=layer, **options).frame
            found = frame.filter(layer=layer).drop("layer")
            assert_frame_equal(found, expected, abs_tol=1e-9)
            assert found["accuracy"].equals(expected["accuracy"])

    def test_equals_the_paper_s_steps_at_a_layer(self, synthetic):
        frame = truth.sweep(synthetic, *STAGES, [1], n_bootstrap=2).frame
        names = frame["dataset"].unique(maintain_order=True).to_list()[:-1]
        for held_out in names:
            features, labels = [], []
            for name in (name for name in names if name != held_out):
                x = synthetic.activations(name, "base", layer=1).astype(np.float64)
                features.append(x - x.mean(axis=0))
                labels.append(synthetic.labels(name))
            x, y = np.concatenate(features), np.concatenate(labels)
            theta = x[y].mean(axis=0) - x[~y].mean(axis=0)
            line = LogisticRegression(C=np.inf, tol=1e-10).fit((x @ theta)[:, None], y)
            test = synthetic.activations(held_out, "instruct", layer=1).astype(np.float64)
            read = (test - test.mean(axis=0)) @ theta
            truths = synthetic.labels(held_out)
            row = frame.row(
                by_predicate=(pl.col("dataset") == held_out) & (pl.col("probe") == "transferred"),
                named=True,
            )
            assert row["accuracy"] == np.mean(line.predict(read[:, None]) == truths)
            assert row["auroc"] == pytest.approx(roc_auc_score(truths, read))

    def test_is_the_same_for_every_number_of_jobs(self, synthetic):
        options: dict[str, Any] = {"layers": [1, 2], "probe": "logistic", "n_bootstrap": 10}
        alone = truth.sweep(synthetic, *STAGES, **options).frame
        assert truth.sweep(synthetic, *STAGES, **options, n_jobs=2).frame.equals(alone)

    def test_warnings_of_a_layer_are_heard_and_name_it(self, synthetic):
        with pytest.warns(RuntimeWarning, match="layer 2: a fit to remember"):
            truth.sweep(synthetic, *STAGES, 2, probe=Recording(), n_bootstrap=2)

    def test_reads_the_layers_asked_for(self, synthetic):
        assert truth.sweep(synthetic, *STAGES, 2, n_bootstrap=2).layers == (2,)
        result = truth.sweep(synthetic, *STAGES, [3, 1], n_bootstrap=2)
        assert result.frame["layer"].unique(maintain_order=True).to_list() == [3, 1]
        assert result.arguments["layers"] == (3, 1)
        assert list(result.arguments)[:3] == ["earlier", "later", "layers"]
        with pytest.raises(UnknownNameError, match="layer"):
            truth.sweep(synthetic, *STAGES, [1, 9])
        with pytest.raises(DataError, match="twice"):
            truth.sweep(synthetic, *STAGES, [1, 1])


def test_stored_activations_are_mapped_not_copied(synthetic):
    dataset = synthetic.datasets[0]
    stored = synthetic.activations(dataset, "base", layer=1, dtype=None)
    again = synthetic.activations(dataset, "base", layer=1, dtype=None)
    owner = stored
    while owner.base is not None and not isinstance(owner, np.memmap):
        owner = owner.base
    assert isinstance(owner, np.memmap)
    assert not stored.flags.writeable
    assert np.shares_memory(stored, owner)
    np.testing.assert_array_equal(stored, again)
    statements = Statements.of(synthetic, [dataset])
    (rows,) = statements.stored(synthetic, "base", site="resid_post", layer=1, position=-1)
    assert isinstance(rows, np.memmap)


def test_opening_an_artifact_reads_its_manifest_alone(synthetic_path):
    code = f"""
import sys, ptmech
from ptmech import load
folder, opened = {str(synthetic_path)!r}, []
def record(event, arguments):
    if event == "open" and str(arguments[0]).startswith(folder):
        opened.append(str(arguments[0])[len(folder):].lstrip("/"))
sys.addaudithook(record)
load(folder)
print(opened)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['manifest.json']"
