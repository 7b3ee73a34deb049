"""Unembedding statistics against the materialised vocabulary x neurons matrix and an SVD."""

from __future__ import annotations

import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptmech import _unembedding_rows
from ptmech.errors import DataError, UnknownNameError
from ptmech.unembedding import (
    UnembeddingStatistics,
    entropy_neurons,
    logit_variance,
    null_space_fraction,
    singular_values,
)

CONVENTIONS = ["raw", "folded", "folded_centered"]


def weights(vocabulary=60, d_model=8, d_mlp=12, seed=0):
    rng = np.random.default_rng(seed)
    w_u = rng.normal(size=(vocabulary, d_model)) * np.linspace(0.1, 2, d_model) + 0.5
    return rng.normal(size=(d_model, d_mlp)), w_u, rng.uniform(0.5, 2.0, d_model)


def in_convention(w_u, gamma, convention):
    """The formula of the convention on the whole matrix."""
    if convention == "raw":
        return w_u
    folded = w_u * gamma
    return folded - folded.mean(axis=0) if convention == "folded_centered" else folded


def materialised_logit_variance(w_out, w_u):
    cosines = np.empty((len(w_u), w_out.shape[1]))
    for token, row in enumerate(w_u):
        for neuron, column in enumerate(w_out.T):
            cosines[token, neuron] = row @ column / np.linalg.norm(row) / np.linalg.norm(column)
    return cosines.var(axis=0, ddof=1)


@pytest.fixture
def tiny_blocks(monkeypatch):
    """Blocks of three tokens and three neurons, which divide neither 60 nor 13 evenly."""
    monkeypatch.setattr(_unembedding_rows, "_BLOCK_SIZE", 7 * 8 + 1)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_logit_variance_equals_the_materialised_matrix(convention, dtype):
    w_out, w_u, gamma = (array.astype(dtype) for array in weights())
    wide = [array.astype(np.float64) for array in (w_out, w_u, gamma)]
    expected = materialised_logit_variance(wide[0], in_convention(wide[1], wide[2], convention))
    variance = logit_variance(w_out, w_u, gamma, convention=convention)
    np.testing.assert_allclose(variance, expected, rtol=1e-10)
    assert variance.dtype == np.float64


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_null_space_fraction_equals_the_singular_value_decomposition(convention):
    w_out, w_u, gamma = weights()
    matrix = in_convention(w_u, gamma, convention)
    _, values, right = np.linalg.svd(matrix, full_matrices=False)
    np.testing.assert_allclose(singular_values(w_u, gamma, convention=convention), values)
    for k in (1, 3, 8):
        lowest = right[-k:]
        expected = np.linalg.norm(lowest @ w_out, axis=0) / np.linalg.norm(w_out, axis=0)
        fraction = null_space_fraction(w_out, w_u, k, gamma=gamma, convention=convention)
        np.testing.assert_allclose(fraction, expected, atol=1e-9)
    np.testing.assert_allclose(fraction, 1)  # k = d_model


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_statistics_answer_as_the_functions_do(convention):
    w_out, w_u, gamma = weights()
    statistics = UnembeddingStatistics.from_weights(w_u, gamma, convention=convention)
    matrix = in_convention(w_u, gamma, convention)
    unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    np.testing.assert_allclose(statistics.unit_covariance, np.cov(unit.T), atol=1e-12)
    np.testing.assert_allclose(statistics.gram, matrix.T @ matrix, atol=1e-9)
    expected_mean = (w_u if convention == "raw" else w_u * gamma).mean(0)
    np.testing.assert_allclose(statistics.mean_row, expected_mean)
    assert (statistics.n_tokens, statistics.convention) == (60, convention)
    np.testing.assert_array_equal(
        statistics.logit_variance(w_out), logit_variance(w_out, w_u, gamma, convention=convention)
    )
    np.testing.assert_array_equal(
        statistics.null_space_fraction(w_out, 2),
        null_space_fraction(w_out, w_u, 2, gamma=gamma, convention=convention),
    )


@pytest.mark.usefixtures("tiny_blocks")
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_blocks_do_not_show(convention):
    w_out, w_u, gamma = weights(d_mlp=13)
    matrix = in_convention(w_u, gamma, convention)
    statistics = UnembeddingStatistics.from_weights(w_u, gamma, convention=convention)
    np.testing.assert_allclose(
        statistics.logit_variance(w_out), materialised_logit_variance(w_out, matrix), rtol=1e-10
    )
    np.testing.assert_allclose(statistics.null_space_fraction(w_out, 8), np.ones(13))
    np.testing.assert_allclose(
        statistics.singular_values(), np.linalg.svd(matrix, compute_uv=False), rtol=1e-9
    )


def test_gamma_defaults_to_ones_and_raw_leaves_it_out():
    w_out, w_u, gamma = weights()
    np.testing.assert_array_equal(
        logit_variance(w_out, w_u), logit_variance(w_out, w_u, np.ones(8))
    )
    np.testing.assert_array_equal(
        logit_variance(w_out, w_u, gamma, convention="raw"),
        logit_variance(w_out, w_u, convention="folded"),
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.lists(st.floats(1e-6, 1e6), min_size=12, max_size=12))
def test_logit_variance_knows_directions_not_lengths(seed, sizes):
    w_out, w_u, gamma = weights(seed=seed)
    signs = np.where(np.arange(12) % 2, 1, -1)
    expected = logit_variance(w_out, w_u, gamma)
    np.testing.assert_allclose(logit_variance(w_out * sizes * signs, w_u, gamma), expected)
    # Cosines do not know the rows' lengths either, unless rows are centred.
    lengths = np.random.default_rng(seed).uniform(0.1, 10, (60, 1))
    np.testing.assert_allclose(
        logit_variance(w_out, w_u * lengths, gamma, convention="folded"),
        logit_variance(w_out, w_u, gamma, convention="folded"),
        rtol=1e-9,
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.lists(st.floats(-50, 50), min_size=8, max_size=8))
def test_centring_forgets_what_all_tokens_share(seed, shift):
    w_out, w_u, gamma = weights(seed=seed)
    np.testing.assert_allclose(
        logit_variance(w_out, w_u + shift, gamma), logit_variance(w_out, w_u, gamma), rtol=1e-6
    )


def test_a_planted_entropy_neuron_is_found():
    """One long neuron writes into a direction the unembedding barely reads."""
    rng = np.random.default_rng(0)
    w_out, w_u, _ = weights(vocabulary=500, d_model=16, d_mlp=40)
    silent = np.linalg.qr(rng.normal(size=(16, 16)))[0][0]
    w_u -= 0.999 * np.outer(w_u @ silent, silent)
    w_out[:, 17] = 30 * silent
    statistics = UnembeddingStatistics.from_weights(w_u, np.ones(16))
    variance = statistics.logit_variance(w_out)
    found = entropy_neurons(np.linalg.norm(w_out, axis=0), variance, n=3)
    assert found[0] == 17
    assert statistics.null_space_fraction(w_out, 1)[17] > 0.99
    assert statistics.null_space_fraction(w_out, 1)[:17].max() < 0.9


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_zero_rows_and_zero_neurons_give_no_nan(convention):
    w_out, w_u, gamma = weights()
    w_u[[3, 9]] = 0
    w_out[:, 5] = 0
    matrix = in_convention(w_u, gamma, convention)
    variance = logit_variance(w_out, w_u, gamma, convention=convention)
    fraction = null_space_fraction(w_out, w_u, 3, gamma=gamma, convention=convention)
    assert (variance[5], fraction[5]) == (0.0, 0.0)
    assert np.isfinite(variance).all()
    assert np.isfinite(fraction).all()
    others = np.arange(12) != 5
    length = np.linalg.norm(matrix, axis=1, keepdims=True)
    cosines = (
        matrix / np.where(length > 0, length, 1) @ w_out / np.linalg.norm(w_out, axis=0).clip(1e-9)
    )
    np.testing.assert_allclose(variance[others], cosines.var(axis=0, ddof=1)[others], rtol=1e-9)


def test_rows_equal_to_the_mean_count_as_zero_not_as_rounding():
    w_out, _, gamma = weights()
    w_u = np.full((50, 8), 0.1) * np.linspace(1, 3, 8)
    np.testing.assert_allclose(logit_variance(w_out, w_u, gamma), 0, atol=1e-24)


def test_more_directions_than_tokens():
    w_out, w_u, gamma = weights(vocabulary=5)
    values = singular_values(w_u, gamma)
    assert values.shape == (8,)
    np.testing.assert_allclose(values[4:], 0, atol=1e-6)
    assert np.all(np.diff(values) <= 0)
    assert null_space_fraction(w_out, w_u, 4, gamma=gamma).max() <= 1


def test_memory_stays_bounded():
    """The materialised matrix would take 160 MB; the weights themselves are 2.6 MB."""
    rng = np.random.default_rng(0)
    w_u = rng.normal(size=(20_000, 32)).astype(np.float32)
    w_out = rng.normal(size=(32, 1000)).astype(np.float32)
    tracemalloc.start()
    logit_variance(w_out, w_u)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6


def test_entropy_neurons_follow_their_definition():
    rng = np.random.default_rng(0)
    norm, variance = rng.uniform(size=200), rng.uniform(size=200)
    long = [i for i in range(200) if norm[i] > np.percentile(norm, 75)]
    expected = sorted(long, key=lambda i: variance[i])[:10]
    assert entropy_neurons(norm, variance).tolist() == expected
    assert entropy_neurons(norm, variance, n=1000).tolist() == sorted(
        long, key=variance.__getitem__
    )
    assert len(entropy_neurons(norm, variance, norm_quantile=0.9, n=1000)) == 20
    assert entropy_neurons(np.ones(5), np.ones(5)).size == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w_out, w_u, gamma: (w_out.T, w_u, gamma), "w_out must be"),
        (lambda w_out, w_u, gamma: (w_out, w_u[0], gamma), "w_u must be"),
        (lambda w_out, w_u, gamma: (w_out, w_u[:1], gamma), "two tokens or more"),
        (lambda w_out, w_u, gamma: (w_out, w_u, gamma[:3]), "width d_model = 8, not 3"),
        (lambda w_out, w_u, gamma: (w_out, w_u * np.nan, gamma), "w_u holds values that are not"),
        (lambda w_out, w_u, gamma: (w_out * np.inf, w_u, gamma), "w_out holds values that are"),
    ],
)
def test_unusable_weights_are_one_clear_line(change, message):
    w_out, w_u, gamma = change(*weights())
    for call in (logit_variance, lambda *arrays: null_space_fraction(*arrays[:2], 3, arrays[2])):
        with pytest.raises(DataError, match=message) as caught:
            call(w_out, w_u, gamma)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("k", [0, 9, -1])
def test_a_null_space_larger_than_the_space_is_refused(k):
    with pytest.raises(DataError, match="k must be from 1 to d_model = 8"):
        null_space_fraction(*weights()[:2], k)


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        (([1.0, 2.0], [1.0]), {}, "one length, not 2 and 1"),
        (([1.0], [1.0]), {"norm_quantile": 1.5}, "norm_quantile must be from 0 to 1"),
        (([1.0], [1.0]), {"n": 0}, "n must be at least 1"),
        (([1.0], [np.nan]), {}, "logit_variance holds values"),
        (([], []), {}, "norm is empty"),
    ],
)
def test_entropy_neurons_refuse_unusable_input(arrays, options, message):
    with pytest.raises(DataError, match=message):
        entropy_neurons(*arrays, **options)


def test_an_unknown_convention_names_the_known_ones():
    w_out, w_u, gamma = weights()
    with pytest.raises(UnknownNameError, match="did you mean 'folded_centered'"):
        logit_variance(w_out, w_u, gamma, convention="folded_centred")
