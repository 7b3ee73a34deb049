"""The group bootstrap: its measures against scikit-learn, its coverage by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from ptmech import _bootstrap


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_weighted_measures_equal_those_of_scikit_learn(data):
    n = data.draw(st.integers(2, 25))
    column = {"min_size": n, "max_size": n}
    labels = np.array(data.draw(st.lists(st.booleans(), **column)))
    scores = np.array(data.draw(st.lists(st.integers(-3, 3), **column)), dtype=float)
    weights = np.array(data.draw(st.lists(st.integers(0, 4), **column)), dtype=float)
    found = _bootstrap.auroc(scores, labels, weights[None])
    if weights[labels].sum() == 0 or weights[~labels].sum() == 0:
        assert np.isnan(found).all()
    else:
        expected = roc_auc_score(labels, scores, sample_weight=weights)
        assert found == pytest.approx([expected])
        accuracy = _bootstrap.accuracy(labels, weights[None])
        assert accuracy == pytest.approx([np.average(labels, weights=weights)])


def test_groups_are_drawn_whole_and_as_many_as_there_are():
    groups = np.array(["a", "b", "a", "c", "b"])
    weights = _bootstrap.group_weights(groups, 500, 0)
    assert weights.shape == (500, 5)
    np.testing.assert_array_equal(weights[:, 0], weights[:, 2])
    np.testing.assert_array_equal(weights[:, 1], weights[:, 4])
    np.testing.assert_array_equal(weights[:, [0, 1, 3]].sum(axis=1), np.full(500, 3.0))
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.15)


def test_sets_about_the_same_facts_are_drawn_together():
    there = _bootstrap.group_weights(np.array(["a", "b", "c"]), 50, 1)
    back = _bootstrap.group_weights(np.array(["c", "b", "a", "a"]), 50, 1)
    np.testing.assert_array_equal(there, back[:, [2, 1, 0]])
    other = _bootstrap.group_weights(np.array(["a", "b", "d"]), 50, 1)
    assert not np.array_equal(there, other)


def test_intervals_cover_where_rows_of_a_group_agree():
    rng = np.random.default_rng(0)
    truth, n_groups, size, covered, covered_by_rows = 0.7, 60, 5, 0, 0
    groups = np.repeat(np.arange(n_groups), size).astype(str)
    rows = np.arange(n_groups * size).astype(str)
    for seed in range(200):
        correct = np.repeat(rng.random(n_groups) < truth, size)
        for ids in (groups, rows):
            weights = _bootstrap.group_weights(ids, 300, seed)
            low, high = _bootstrap.interval(_bootstrap.accuracy(correct, weights))
            inside = low <= truth <= high
            if ids is groups:
                covered += inside
            else:
                covered_by_rows += inside
    assert 0.89 <= covered / 200 <= 0.99
    assert covered_by_rows / 200 < 0.75  # what resampling rows would promise and not keep


def test_an_interval_leaves_out_what_is_not_defined():
    assert _bootstrap.interval(np.array([np.nan, 1.0, 1.0])) == (1.0, 1.0)
    assert np.isnan(_bootstrap.interval(np.array([np.nan]))).all()
