"""Directions against formulas written out in NumPy and scikit-learn's PCA."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from sklearn.decomposition import PCA

from ptmech.directions import (
    ablate,
    cosine_similarity,
    difference_in_means,
    principal_components,
    unit_vector,
)
from ptmech.errors import DataError

NUMBERS = st.floats(-1e3, 1e3, allow_nan=False, width=32)


def matrices(rows: int = 6, width: int = 5):
    return npst.arrays(np.float64, (rows, width), elements=NUMBERS)


def vectors(width: int = 5):
    return npst.arrays(np.float64, width, elements=NUMBERS)


def test_difference_in_means_is_the_difference_of_the_means(rng):
    positive, negative = rng.normal(size=(7, 4)), rng.normal(size=(3, 4))
    expected = sum(positive) / 7 - sum(negative) / 3
    np.testing.assert_allclose(difference_in_means(positive, negative), expected, rtol=1e-12)
    unit = difference_in_means(positive, negative, normalize=True)
    np.testing.assert_allclose(unit, expected / np.sqrt((expected**2).sum()), rtol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "result"),
    [
        (np.float16, np.float32),
        (ml_dtypes.bfloat16, np.float32),
        (np.float32, np.float32),
        (np.float64, np.float64),
        (np.int64, np.float64),
    ],
)
def test_results_are_float32_or_wider(dtype, result):
    positive, negative = np.ones((3, 2), dtype), np.zeros((2, 2), dtype)
    assert difference_in_means(positive, negative).dtype == result
    assert ablate(positive, np.array([0, 1], dtype)).dtype == result
    assert principal_components(positive, 1).dtype == result
    assert unit_vector(positive).dtype == result
    assert isinstance(cosine_similarity(positive[0], positive[1]), float)


def test_sums_survive_a_large_common_offset():
    """In float32 sums the offset of 4,000,000 would swallow a difference of one quarter."""
    offset = np.float32(4_000_000)
    positive = np.full((4097, 1), offset, np.float32)
    negative = np.full((4097, 1), offset, np.float32)
    positive[::2] += np.float32(0.25)
    assert difference_in_means(positive, negative)[0] == pytest.approx(0.25 * 2049 / 4097, rel=1e-6)


@given(vectors(), vectors(), st.floats(1e-150, 1e150), st.floats(-1e150, -1e-150))
def test_cosine_knows_angles_not_lengths(a, b, up, down):
    assume(np.linalg.norm(a) > 1e-3)
    assume(np.linalg.norm(b) > 1e-3)
    expected = a @ b / np.sqrt((a @ a) * (b @ b))
    assert cosine_similarity(a, b) == pytest.approx(expected, abs=1e-12)
    assert cosine_similarity(a * up, b) == pytest.approx(expected, abs=1e-12)
    assert cosine_similarity(a * down, b) == pytest.approx(-expected, abs=1e-12)
    assert -1 <= cosine_similarity(a, a) <= 1


def test_cosine_goes_layer_by_layer_and_broadcasts(rng):
    a, b = rng.normal(size=(6, 4)), rng.normal(size=(6, 4))
    a[2] = 0
    by_layer = cosine_similarity(a, b)
    assert by_layer.shape == (6,)
    assert by_layer[2] == 0.0
    for layer in (0, 1, 3, 4, 5):
        expected = a[layer] @ b[layer] / np.linalg.norm(a[layer]) / np.linalg.norm(b[layer])
        assert by_layer[layer] == pytest.approx(expected, abs=1e-12)
    against_one = cosine_similarity(a, b[0])
    np.testing.assert_allclose(against_one, [cosine_similarity(row, b[0]) for row in a])
    assert cosine_similarity(a[:, None], b[None]).shape == (6, 6)


@given(npst.arrays(np.float64, (2, 3, 5), elements=NUMBERS), vectors())
def test_ablation_is_orthogonal_and_idempotent(x, direction):
    assume(np.linalg.norm(direction) > 1e-3)
    once = ablate(x, direction)
    unit = direction / np.linalg.norm(direction)
    scale = np.abs(x).max() + 1
    np.testing.assert_allclose(once @ unit, 0, atol=1e-12 * scale)
    np.testing.assert_allclose(ablate(once, direction), once, atol=1e-12 * scale)
    np.testing.assert_allclose(ablate(x, -3.7 * direction), once, atol=1e-12 * scale)
    # What was taken away lies along the direction.
    np.testing.assert_allclose(x - once, (x @ unit)[..., None] * unit, atol=1e-12 * scale)


def test_ablation_leaves_its_input_alone(rng):
    x = rng.normal(size=(3, 4))
    before = x.copy()
    ablate(x, x[0])
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("shape", [(40, 6), (5, 12), (12, 12)])
def test_principal_components_span_what_scikit_learn_finds(rng, shape):
    x = rng.normal(size=shape) * np.linspace(5, 1, shape[1]) + 100
    k = 3
    ours = principal_components(x, k)
    theirs = PCA(k, svd_solver="full").fit(x).components_
    np.testing.assert_allclose(np.abs(np.sum(ours * theirs, axis=1)), 1, atol=1e-9)
    np.testing.assert_allclose(ours @ ours.T, np.eye(k), atol=1e-12)
    variances = np.var((x - x.mean(0)) @ ours.T, axis=0)
    assert np.all(np.diff(variances) < 0)


@settings(max_examples=30)
@given(matrices(), st.integers(1, 5))
def test_principal_components_ignore_offset_row_order_and_sign(x, k):
    components = principal_components(x, k)
    np.testing.assert_allclose(components @ components.T, np.eye(k), atol=1e-9)
    leading = np.take_along_axis(components, np.abs(components).argmax(1)[:, None], axis=1)
    assert np.all(leading > 0)
    singular = np.linalg.svd(x - x.mean(0), compute_uv=False)
    assume(np.all(np.abs(np.diff(singular))[:k] > 1e-2 * (singular[0] + 1)))
    assume(np.all(np.diff(np.sort(np.abs(components)))[:, -1] > 1e-3))
    np.testing.assert_allclose(principal_components(-x[::-1] + 7, k), components, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: difference_in_means(np.ones((0, 3)), np.ones((2, 3))), "positive is empty"),
        (lambda: difference_in_means(np.ones((2, 3)), np.ones(3)), "negative must have 2 axes"),
        (lambda: difference_in_means(np.ones((2, 3)), np.ones((2, 4))), "one width, not 3 and 4"),
        (lambda: difference_in_means([[np.nan]], [[1.0]]), "positive holds values that are not"),
        (
            lambda: difference_in_means(np.ones((2, 3)), np.ones((1, 3)), normalize=True),
            "length zero",
        ),
        (lambda: difference_in_means([["a"]], [["b"]]), "positive must be an array of numbers"),
        (lambda: difference_in_means([[1j]], [[1.0]]), "positive must be real"),
        (lambda: cosine_similarity([1.0, 2.0], [1.0]), "one width, not 2 and 1"),
        (lambda: cosine_similarity(np.ones((2, 3)), np.ones((4, 3))), "do not broadcast"),
        (lambda: cosine_similarity(1.0, [1.0]), "a must have at least one axis"),
        (lambda: ablate(np.ones((2, 3)), np.zeros(3)), "length zero"),
        (lambda: ablate(np.ones((2, 3)), np.ones(2)), "one width, not 3 and 2"),
        (lambda: ablate(np.ones((2, 3)), np.ones((1, 3))), "direction must have 1 axes"),
        (lambda: ablate([np.inf, 1.0], np.ones(2)), "x holds values that are not finite"),
        (lambda: principal_components(np.ones((2, 3)), 3), "k must be from 1 to 2"),
        (lambda: principal_components(np.ones((2, 3)), 0), "k must be from 1 to 2"),
        (lambda: unit_vector([[1.0, 0.0], [0.0, 0.0]]), "length zero"),
    ],
)
def test_unusable_input_is_one_clear_line(call, message):
    with pytest.raises(DataError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.fixture
def rng():
    return np.random.default_rng(0)
