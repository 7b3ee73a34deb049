"""Probes against scikit-learn's contract, scikit-learn's optima and planted directions."""

from __future__ import annotations

import warnings

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import check_grad
from scipy.stats import ortho_group
from sklearn.covariance import ledoit_wolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.utils.estimator_checks import check_estimator

from ptmech.errors import DataError, UnknownNameError
from ptmech.probes import (
    PROBES,
    CCSProbe,
    LogisticProbe,
    MassMeanProbe,
    TTPDProbe,
    fit_logistic_line,
    make_probe,
)
from ptmech.probes import ccs as ccs_module


class MirroredCCS(CCSProbe):
    """CCS as ``check_estimator`` can call it: every negation is the mirror image."""

    def fit(self, X, y=None):
        is_real = isinstance(X, np.ndarray) and X.dtype.kind == "f"
        return super().fit(X, y, negation=-X if is_real else X)


#: What mirrored negations cannot show: there is nothing about truth in them.
CCS_EXPECTED_FAILURES = {
    "check_classifiers_train": "CCS does not learn from labels, so it need not fit them",
}


def planted(n=200, d=12, *, gap=1.5, seed=0):
    """Rows of unit noise around +-gap/2 along a random unit direction, labels, the direction."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=d)
    direction /= np.linalg.norm(direction)
    labels = rng.integers(0, 2, n).astype(bool)
    labels[:2] = [False, True]
    rows = rng.normal(size=(n, d)) + gap * (labels - 0.5)[:, None] * direction
    return rows, labels, direction


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


@pytest.fixture(params=["mass_mean", "whitened_mass_mean", "logistic", "ttpd"])
def probe(request):
    return make_probe(request.param)


# --- the contract --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "estimator",
    [
        MassMeanProbe(),
        MassMeanProbe(whiten=True),
        LogisticProbe(),
        LogisticProbe(standardize=True),
        TTPDProbe(),
    ],
    ids=repr,
)
def test_scikit_learn_checks(estimator):
    check_estimator(estimator, on_skip=None)


def test_scikit_learn_checks_of_ccs():
    check_estimator(MirroredCCS(), expected_failed_checks=CCS_EXPECTED_FAILURES, on_skip=None)


def test_probes_find_a_planted_direction(probe):
    rows, labels, direction = planted(n=2000, gap=3.0)
    probe.fit(rows, labels)
    assert cosine(probe.direction_, direction) > 0.98
    assert probe.score(rows, labels) > 0.9


@pytest.mark.parametrize("labels", [(False, True), (0, 1), (-1, 1), ("false", "true"), (3, 7)])
def test_the_greater_label_is_true(probe, labels):
    rows, truth, direction = planted(gap=6.0)
    probe.fit(rows, np.where(truth, labels[1], labels[0]))
    assert list(probe.classes_) == list(labels)
    assert cosine(probe.direction_, direction) > 0.8
    assert probe.predict(20.0 * direction[None])[0] == labels[1]
    assert probe.predict(-20.0 * direction[None])[0] == labels[0]


def test_log_odds_probabilities_and_predictions_agree(probe):
    rows, labels, _ = planted()
    probe.fit(rows, labels)
    log_odds = probe.decision_function(rows)
    np.testing.assert_allclose(log_odds, rows @ probe.weights_ + probe.intercept_)
    np.testing.assert_allclose(probe.predict_proba(rows)[:, 1], 1 / (1 + np.exp(-log_odds)))
    np.testing.assert_array_equal(probe.predict(rows), log_odds > 0)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16])
def test_narrow_dtypes_are_widened_not_computed_in(probe, dtype):
    rows, labels, _ = planted()
    narrow = rows.astype(dtype)
    expected = make_clone(probe).fit(narrow.astype(np.float64), labels)
    np.testing.assert_array_equal(probe.fit(narrow, labels).weights_, expected.weights_)
    assert probe.weights_.dtype == np.float64


def make_clone(probe):
    return type(probe)(**probe.get_params())


def test_probes_work_in_cross_validation(probe):
    rows, labels, _ = planted(gap=5.0)
    assert cross_val_score(probe, rows, labels, cv=3).mean() > 0.9


@pytest.mark.parametrize("value", [0.0, 0.1, 1234.567])
@pytest.mark.parametrize("positives", [3, 5, 8])
def test_constant_activations_give_the_larger_class(probe, value, positives):
    """The embedding layer, where every statement ends in the same token."""
    rows = np.full((10, 6), value)
    labels = np.arange(10) < positives
    probe.fit(rows, labels)
    assert not probe.direction_.any()
    log_odds = probe.decision_function(rows)
    np.testing.assert_allclose(log_odds, np.log(positives / (10 - positives)), atol=1e-6)


@pytest.mark.parametrize(
    ("rows", "labels", "message"),
    [
        (np.ones((4, 2)), [True] * 4, "two labels, and here is one class"),
        (np.ones((0, 2)), [], "0 sample"),
        (np.ones((3, 2)), [0, 1, 2], "Only binary classification"),
        (np.ones((3, 2)), [0, 1], "inconsistent numbers of samples"),
        (np.array([[1.0], [np.nan]]), [0, 1], "contains NaN"),
        (np.array([[1.0], [np.inf]]), [0, 1], "contains infinity"),
        (np.ones(3), [0, 1, 0], "Reshape your data"),
        (np.ones((3, 2)), [0.1, 0.2, 0.7], "Unknown label type"),
    ],
)
def test_unusable_data_is_one_clear_line(probe, rows, labels, message):
    with pytest.raises(DataError, match=message) as caught:
        probe.fit(rows, labels)
    assert "\n" not in str(caught.value)


def test_prediction_on_another_width_is_refused(probe):
    rows, labels, _ = planted()
    probe.fit(rows, labels)
    with pytest.raises(DataError, match="expecting 12 features"):
        probe.predict(rows[:, :3])


def test_make_probe():
    assert [type(make_probe(name)) for name in PROBES] == [
        MassMeanProbe,
        MassMeanProbe,
        LogisticProbe,
        TTPDProbe,
        CCSProbe,
    ]
    assert make_probe("whitened_mass_mean").whiten is True
    assert make_probe("mass_mean").whiten is False
    assert make_probe("logistic", C=0.5).C == 0.5
    with pytest.raises(UnknownNameError, match="unknown probe 'logistc'; did you mean 'logistic'"):
        make_probe("logistc")


# --- the threshold -------------------------------------------------------------------------------


def likelihood_gradient(line, projection, labels):
    residual = 1 / (1 + np.exp(-(line.slope * projection + line.intercept))) - labels
    return max(abs(residual.mean()), abs((residual * projection).mean()))


def test_threshold_equals_unpenalised_scikit_learn(rng):
    projection = rng.normal(size=300) * 40 + 1000
    labels = projection + rng.normal(size=300) * 30 > 1010
    model = LogisticRegression(C=np.inf, tol=1e-10, solver="newton-cholesky")
    scaled = (projection - 1000) / 40
    model.fit(scaled[:, None], labels)
    line = fit_logistic_line(projection, labels)
    slope = model.coef_[0, 0] / 40
    assert line.slope == pytest.approx(slope, rel=1e-6)
    assert line.threshold == pytest.approx(1000 - model.intercept_[0] / slope, rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 8), st.integers(3, 60))
def test_threshold_maximises_the_likelihood_of_overlapping_classes(seed, gap, n):
    rng = np.random.default_rng(seed)
    labels = np.arange(2 * n) < n
    projection = rng.normal(size=2 * n) + gap * labels
    assume(projection[labels].min() < projection[~labels].max() - 1e-3)
    assume(projection[~labels].min() < projection[labels].max() - 1e-3)
    line = fit_logistic_line(projection, labels)
    assert likelihood_gradient(line, projection, labels) < 1e-9
    if abs(line.slope) > 1e-6:
        assert line.slope * line.threshold + line.intercept == pytest.approx(0, abs=1e-6)


def test_nearly_separable_classes_converge():
    for overlap in 10.0 ** -np.arange(1, 8):
        projection = np.array([-1.0, -0.5, 0.0, 0.5, 1.0, overlap])
        labels = np.array([False, False, True, True, True, False])
        line = fit_logistic_line(projection, labels)
        assert likelihood_gradient(line, projection, labels) < 1e-9


def test_separable_classes_meet_in_the_middle():
    projection = np.array([1.0, 2.0, 5.0, 9.0])
    line = fit_logistic_line(projection, [False, False, True, True])
    assert line.threshold == pytest.approx(3.5)
    log_odds = line.slope * projection + line.intercept
    np.testing.assert_allclose(log_odds[1:3], [-np.log(5), np.log(5)])
    downward = fit_logistic_line(projection, [True, True, False, False])
    assert downward.threshold == pytest.approx(3.5)
    assert downward.slope == pytest.approx(-line.slope)
    # The limit of the likelihood: a penalty that goes to nothing leads to the same place.
    nearly = LogisticRegression(C=1e8, tol=1e-12, solver="newton-cholesky")
    nearly.fit(projection[:, None], [0, 0, 1, 1])
    assert -nearly.intercept_[0] / nearly.coef_[0, 0] == pytest.approx(3.5, abs=0.01)


def test_many_problems_at_once_equal_one_at_a_time(rng):
    projection = rng.normal(size=(3, 4, 50))
    labels = rng.integers(0, 2, 50).astype(bool)
    projection[0, 0] = 2.5
    projection[1] += 10 * labels
    where = rng.random((4, 50)) < 0.8
    together = fit_logistic_line(projection, labels, where=where)
    assert together.slope.shape == (3, 4)
    for layer in range(3):
        for fold in range(4):
            rows = where[fold]
            alone = fit_logistic_line(projection[layer, fold, rows], labels[rows])
            for ours, expected in zip(together, alone, strict=True):
                assert ours[layer, fold] == pytest.approx(float(expected), rel=1e-6, abs=1e-9)


def test_threshold_needs_both_classes_and_fitting_shapes():
    with pytest.raises(DataError, match="both classes"):
        fit_logistic_line([1.0, 2.0], [True, True])
    with pytest.raises(DataError, match="both classes"):
        fit_logistic_line([1.0, 2.0], [True, False], where=[True, False])
    with pytest.raises(DataError, match="do not fit together"):
        fit_logistic_line([1.0, 2.0], [True, False, True])


# --- mass mean -----------------------------------------------------------------------------------


def test_mass_mean_is_the_difference_in_means_with_a_fitted_threshold():
    rows, labels, _ = planted()
    probe = MassMeanProbe().fit(rows, labels)
    theta = rows[labels].mean(0) - rows[~labels].mean(0)
    np.testing.assert_allclose(probe.direction_, theta, atol=1e-12)
    model = LogisticRegression(C=np.inf, tol=1e-10, solver="newton-cholesky")
    model.fit((rows @ theta)[:, None], labels)
    np.testing.assert_allclose(
        probe.decision_function(rows), model.decision_function((rows @ theta)[:, None]), atol=1e-5
    )
    assert probe.threshold_ == pytest.approx(-model.intercept_[0] / model.coef_[0, 0], abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.01, 100))
def test_mass_mean_turns_with_the_space(seed, scale):
    rows, labels, _ = planted(n=60, d=5, seed=seed)
    turn = ortho_group.rvs(5, random_state=seed)
    shift = np.random.default_rng(seed).normal(size=5)
    plain = MassMeanProbe().fit(rows, labels)
    turned = MassMeanProbe().fit(scale * rows @ turn + shift, labels)
    np.testing.assert_allclose(turned.direction_, scale * plain.direction_ @ turn, rtol=1e-6)
    np.testing.assert_allclose(
        turned.decision_function(scale * rows @ turn + shift),
        plain.decision_function(rows),
        atol=1e-6,
    )


@pytest.mark.parametrize("shape", [(80, 6), (20, 50)])
def test_whitening_solves_the_shrunk_within_class_covariance(shape):
    rows, labels, _ = planted(*shape)
    rows[:, 1] *= 1000
    probe = MassMeanProbe(whiten=True).fit(rows, labels)
    means = np.where(labels[:, None], rows[labels].mean(0), rows[~labels].mean(0))
    residuals = rows - means
    scale = residuals.std(0)
    shrunk = ledoit_wolf(residuals / scale, assume_centered=True)[0] * np.outer(scale, scale)
    theta = rows[labels].mean(0) - rows[~labels].mean(0)
    np.testing.assert_allclose(probe.direction_, np.linalg.solve(shrunk, theta), rtol=1e-8)


def test_whitening_without_shrinkage_is_linear_discriminant_analysis():
    rows, labels, _ = planted()
    rows = rows @ np.random.default_rng(1).normal(size=(12, 12))
    lda = LinearDiscriminantAnalysis(solver="lsqr").fit(rows, labels)
    probe = MassMeanProbe(whiten=True, shrinkage=0.0).fit(rows, labels)
    np.testing.assert_allclose(probe.direction_, lda.coef_[0], rtol=1e-6)
    nearly = MassMeanProbe(whiten=True, shrinkage=1e-10).fit(rows, labels)
    np.testing.assert_allclose(nearly.direction_, lda.coef_[0], rtol=1e-4)


def test_full_shrinkage_only_scales():
    rows, labels, _ = planted()
    probe = MassMeanProbe(whiten=True, shrinkage=1.0).fit(rows, labels)
    means = np.where(labels[:, None], rows[labels].mean(0), rows[~labels].mean(0))
    theta = rows[labels].mean(0) - rows[~labels].mean(0)
    np.testing.assert_allclose(probe.direction_, theta / ((rows - means) ** 2).mean(0))


def test_an_outlier_dimension_does_not_drown_the_others():
    rows, labels, _ = planted(n=300, d=40, gap=2.0)
    expected = MassMeanProbe(whiten=True).fit(rows, labels)
    scale = np.ones(40)
    scale[7] = 1000.0
    probe = MassMeanProbe(whiten=True).fit(rows * scale, labels)
    np.testing.assert_allclose(probe.direction_ * scale, expected.direction_, rtol=1e-6)


def test_classes_without_spread_need_no_whitening():
    rows = np.repeat([[0.1, 1.0], [0.7, 1.0]], 3, axis=0)
    probe = MassMeanProbe(whiten=True).fit(rows, [0, 0, 0, 1, 1, 1])
    np.testing.assert_allclose(probe.direction_, [0.6, 0.0])


@pytest.mark.parametrize("shrinkage", [-0.1, 1.1, "ledoit"])
def test_shrinkage_outside_its_range_is_refused(shrinkage):
    rows, labels, _ = planted()
    with pytest.raises(DataError, match="shrinkage must be"):
        MassMeanProbe(whiten=True, shrinkage=shrinkage).fit(rows, labels)


# --- logistic ------------------------------------------------------------------------------------


@pytest.mark.parametrize("C", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("shape", [(150, 8), (40, 90)])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_logistic_finds_scikit_learns_optimum_in_raw_coordinates(C, shape, size):
    rows, labels, _ = planted(*shape)
    model = LogisticRegression(C=C, tol=1e-9, max_iter=10_000, solver="newton-cholesky")
    model.fit(rows, labels)
    probe = LogisticProbe(C / size**2, tol=1e-9).fit(rows * size, labels)
    assert probe.converged_
    np.testing.assert_allclose(probe.direction_ * size, model.coef_[0], rtol=1e-4, atol=1e-6)
    assert probe.intercept_ == pytest.approx(model.intercept_[0], rel=1e-4, abs=1e-6)


def test_logistic_without_penalty():
    rows, labels, _ = planted()
    probe = LogisticProbe(np.inf).fit(rows, labels)
    residual = 1 / (1 + np.exp(-probe.decision_function(rows))) - labels
    np.testing.assert_allclose(rows.T @ residual / len(rows), 0, atol=1e-5)


def test_logistic_converges_beside_outlier_dimensions():
    rows, labels, _ = planted(n=400, d=100)
    rows[:, [3, 40]] *= 1000
    rows[:, 3] += 50_000
    probe = LogisticProbe().fit(rows, labels)
    assert probe.converged_
    residual = 1 / (1 + np.exp(-probe.decision_function(rows))) - labels
    centred = rows - rows.mean(0)
    gradient = (centred.T @ residual + probe.weights_) / len(rows)
    assert np.abs(gradient).max() < 1e-5
    assert probe.n_iter_ < 100


def test_standardized_logistic_does_not_see_units():
    rows, labels, _ = planted()
    scale = np.logspace(-3, 3, 12)
    model = LogisticRegression(C=1.0, tol=1e-9, solver="newton-cholesky")
    model.fit((rows - rows.mean(0)) / rows.std(0), labels)
    probe = LogisticProbe(standardize=True, tol=1e-9).fit(rows * scale, labels)
    np.testing.assert_allclose(
        probe.direction_ * scale * rows.std(0), model.coef_[0], rtol=1e-4, atol=1e-7
    )
    plain = LogisticProbe().fit(rows, labels)
    assert not np.allclose(plain.direction_, probe.direction_ * scale, rtol=1e-2)


def test_logistic_says_when_it_has_not_converged():
    rows, labels, _ = planted()
    probe = LogisticProbe(max_iter=1)
    with pytest.warns(ConvergenceWarning, match="stopped after 1 steps"):
        probe.fit(rows, labels)
    assert not probe.converged_


# --- truth and polarity --------------------------------------------------------------------------


def truth_and_polarity(n=800, d=20, seed=0, *, noise=0.5):
    """Activations with a general, a polarity-sensitive and a polarity direction, orthonormal."""
    rng = np.random.default_rng(seed)
    general, sensitive, polar = ortho_group.rvs(d, random_state=seed)[:3]
    truth = rng.choice([-1.0, 1.0], n)
    polarity = rng.choice([-1.0, 1.0], n)
    rows = (
        noise * rng.normal(size=(n, d))
        + np.outer(truth, general)
        + 2 * np.outer(truth * polarity, sensitive)
        + 1.5 * np.outer(polarity, polar)
        + 3
    )
    return rows, truth > 0, polarity, (general, sensitive, polar)


def test_ttpd_finds_the_three_directions():
    rows, labels, polarity, (general, sensitive, polar) = truth_and_polarity()
    probe = TTPDProbe().fit(rows, labels, polarity=polarity)
    assert cosine(probe.direction_, general) > 0.98
    assert cosine(probe.polarity_sensitive_direction_, sensitive) > 0.98
    assert cosine(probe.polarity_direction_, polar) > 0.9
    assert np.linalg.norm(probe.polarity_direction_) == pytest.approx(1)
    assert probe.score(rows, labels) > 0.95


def test_ttpd_holds_where_the_mixture_of_polarities_shifts():
    """Trained mostly on affirmative statements, a mass-mean probe inverts negated ones."""
    rows, labels, polarity, _ = truth_and_polarity()
    train = (polarity > 0) | (np.arange(len(rows)) % 10 == 0)
    negated = ~train
    ttpd = TTPDProbe().fit(rows[train], labels[train], polarity[train])
    mass_mean = MassMeanProbe().fit(rows[train], labels[train])
    assert ttpd.score(rows[negated], labels[negated]) > 0.9
    assert mass_mean.score(rows[negated], labels[negated]) < 0.5


def test_ttpd_follows_its_formula():
    rows, labels, polarity, _ = truth_and_polarity(n=60, d=6, noise=2.0)
    probe = TTPDProbe().fit(rows, labels, polarity)
    truth = np.where(labels, 1, -1)
    centred = rows.copy()
    for sign in (-1, 1):
        centred[polarity == sign] -= rows[polarity == sign].mean(0)
    signs = np.stack([truth, truth * polarity], 1)
    general = (np.linalg.pinv(signs) @ centred)[0]
    np.testing.assert_allclose(probe.direction_, general, atol=1e-10)
    polar = LogisticRegression(C=1.0, tol=1e-10, solver="newton-cholesky").fit(rows, polarity)
    plane = np.stack([general, polar.coef_[0] / np.linalg.norm(polar.coef_[0])])
    decision = LogisticRegression(C=np.inf, tol=1e-10, solver="newton-cholesky")
    decision.fit(rows @ plane.T, labels)
    np.testing.assert_allclose(
        probe.decision_function(rows), decision.decision_function(rows @ plane.T), atol=1e-3
    )


@pytest.mark.parametrize("polarity", [None, np.ones(200), np.array(["affirmative"] * 200)])
def test_ttpd_without_polarities_predicts_as_mass_mean(polarity):
    rows, labels, _ = planted()
    ttpd = TTPDProbe().fit(rows, labels, polarity)
    mass_mean = MassMeanProbe().fit(rows, labels)
    assert cosine(ttpd.direction_, mass_mean.direction_) == pytest.approx(1)
    np.testing.assert_allclose(
        ttpd.decision_function(rows), mass_mean.decision_function(rows), atol=1e-8
    )
    assert ttpd.polarity_direction_ is None
    assert ttpd.polarity_sensitive_direction_ is None


def test_ttpd_refuses_unusable_polarities():
    rows, labels, _ = planted(n=30)
    with pytest.raises(DataError, match="one label for each row"):
        TTPDProbe().fit(rows, labels, np.ones(4))
    with pytest.raises(DataError, match="two labels, not 30"):
        TTPDProbe().fit(rows, labels, np.arange(30))


# --- contrast-consistent search ------------------------------------------------------------------


def contrast_pairs(n=150, d=10, *, signal=2.0, seed=0):
    """Statements and negations whose truth lies along one direction, negation along another."""
    rng = np.random.default_rng(seed)
    direction, negation_word = ortho_group.rvs(d, random_state=seed)[:2]
    labels = rng.integers(0, 2, n).astype(bool)
    truth = np.where(labels, signal, -signal)
    shared = rng.normal(size=(n, d))
    statements = shared + np.outer(truth, direction) + 0.3 * rng.normal(size=(n, d))
    negations = shared - np.outer(truth, direction) + 0.3 * rng.normal(size=(n, d))
    return statements, negations + 5 * negation_word, labels, direction


def test_ccs_finds_truth_without_labels():
    statements, negations, labels, direction = contrast_pairs()
    probe = CCSProbe().fit(statements, negation=negations)
    assert probe.converged_
    assert abs(cosine(probe.direction_, direction)) > 0.9
    accuracy = probe.score(statements, labels)
    assert max(accuracy, 1 - accuracy) > 0.9
    assert list(probe.classes_) == [False, True]


def test_labels_only_turn_ccs_the_right_way_round():
    statements, negations, labels, direction = contrast_pairs()
    probe = CCSProbe().fit(statements, labels, negation=negations)
    turned = CCSProbe().fit(statements, ~labels, negation=negations)
    assert cosine(probe.direction_, direction) > 0.9
    np.testing.assert_array_equal(probe.weights_, -turned.weights_)
    assert probe.intercept_ == -turned.intercept_
    assert probe.score(statements, labels) > 0.9


def test_ccs_predicts_single_statements_consistently():
    statements, negations, labels, _ = contrast_pairs(n=300)
    probe = CCSProbe().fit(statements[:200], labels[:200], negation=negations[:200])
    assert probe.score(statements[200:], labels[200:]) > 0.9


def test_ccs_is_reproducible_and_starts_are_seeded():
    statements, negations, _, _ = contrast_pairs()
    first = CCSProbe(random_state=3).fit(statements, negation=negations)
    again = CCSProbe(random_state=3).fit(statements, negation=negations)
    np.testing.assert_array_equal(first.weights_, again.weights_)
    one = CCSProbe(random_state=3, n_restarts=1).fit(statements, negation=negations)
    assert first.loss_ <= one.loss_


def test_ccs_loss_is_the_paper_s_and_its_gradient_is_right(rng):
    plus, minus = rng.normal(size=(20, 4)), rng.normal(size=(20, 4))
    parameters = rng.normal(size=5)
    loss = ccs_module._loss_and_gradient
    p_plus = 1 / (1 + np.exp(-(plus @ parameters[:4] + parameters[4])))
    p_minus = 1 / (1 + np.exp(-(minus @ parameters[:4] + parameters[4])))
    expected = np.mean((p_plus - (1 - p_minus)) ** 2 + np.minimum(p_plus, p_minus) ** 2)
    expected += 0.05 * (parameters[:4] ** 2).sum()
    assert loss(parameters, plus, minus, 0.1)[0] == pytest.approx(expected)
    error = check_grad(
        lambda w: loss(w, plus, minus, 0.1)[0], lambda w: loss(w, plus, minus, 0.1)[1], parameters
    )
    assert error < 1e-6


def test_ccs_does_not_see_units_or_offsets():
    statements, negations, labels, _ = contrast_pairs()
    scale, shift = np.logspace(-2, 3, 10), np.arange(10.0)
    plain = CCSProbe().fit(statements, labels, negation=negations)
    moved = CCSProbe().fit(statements * scale + shift, labels, negation=negations * scale - shift)
    np.testing.assert_allclose(
        moved.decision_function(statements * scale + shift),
        plain.decision_function(statements),
        atol=1e-3,
    )


def test_ccs_refuses_unusable_pairs():
    statements, negations, labels, _ = contrast_pairs(n=20)
    with pytest.raises(DataError, match="pass negation="):
        CCSProbe().fit(statements, labels)
    with pytest.raises(DataError, match="one row for each statement"):
        CCSProbe().fit(statements, labels, negation=negations[:5])
    with pytest.raises(DataError, match="expecting 10 features"):
        CCSProbe().fit(statements, labels, negation=negations[:, :5])
    with pytest.raises(DataError, match="one class only"):
        CCSProbe().fit(statements, np.ones(20), negation=negations)
    with pytest.raises(DataError, match="n_restarts"):
        CCSProbe(n_restarts=0).fit(statements, labels, negation=negations)
    statements[0, 0] = np.nan
    with pytest.raises(DataError, match="NaN"):
        CCSProbe().fit(statements, negation=negations)


def test_ccs_on_constant_activations_has_no_direction():
    rows = np.full((10, 4), 0.1)
    probe = CCSProbe().fit(rows, np.arange(10) < 5, negation=rows + 1)
    assert np.all(np.isfinite(probe.decision_function(rows)))
    np.testing.assert_allclose(probe.direction_, 0, atol=1e-4)


def test_fitting_is_silent(probe):
    rows, labels, _ = planted(n=20, d=60, gap=20.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probe.fit(rows, labels)
    assert probe.score(rows, labels) == 1.0


@pytest.fixture
def rng():
    return np.random.default_rng(0)
