"""Statistics of unembedding and neurons against the vocabulary x neurons matrix written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from tests.tiny_models import D_MLP, D_MODEL, MIXTURES, VOCABULARY, tiny_model

from ptmech.errors import DataError, UnsupportedModelError
from ptmech.live.sites import ModelSites
from ptmech.live.weight_statistics import (
    neuron_outputs,
    neuron_statistics,
    unembedding_statistics,
    unembedding_tensors,
)

K = 3


def weight_statistics(sites: ModelSites, k: int) -> tuple[pl.DataFrame, dict[str, np.ndarray]]:
    statistics = unembedding_statistics(sites)
    return neuron_statistics(sites, statistics, k), unembedding_tensors(statistics)


def tensors(model: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """W_out [d_model, d_mlp], W_U [vocabulary, d_model] and gamma by the modules' own names."""
    state = {name: value.double().numpy() for name, value in model.state_dict().items()}
    match model.config.model_type:
        case "gpt2":
            # Conv1D stores [inputs, outputs]; the final LayerNorm ignores the mean over d_model.
            w_out = state["transformer.h.2.mlp.c_proj.weight"].T
            w_out = w_out - w_out.mean(axis=0, keepdims=True)
            gamma = state["transformer.ln_f.weight"]
        case "gpt_neox":
            w_out = state["gpt_neox.layers.2.mlp.dense_4h_to_h.weight"]
            w_out = w_out - w_out.mean(axis=0, keepdims=True)
            gamma = state["gpt_neox.final_layer_norm.weight"]
        case "opt":
            w_out = state["model.decoder.layers.2.fc2.weight"]
            w_out = w_out - w_out.mean(axis=0, keepdims=True)
            gamma = state["model.decoder.final_layer_norm.weight"]
        case "gemma2":
            w_out, gamma = state["model.layers.2.mlp.down_proj.weight"], state["model.norm.weight"]
            gamma = 1 + gamma
            gain = 1 + state["model.layers.2.post_feedforward_layernorm.weight"]
            w_out = gain[:, None] * w_out  # the norm behind the MLP scales what reaches the stream
        case _:
            w_out, gamma = state["model.layers.2.mlp.down_proj.weight"], state["model.norm.weight"]
    return w_out, state["lm_head.weight"], gamma


def cosines(w_out: np.ndarray, w_u: np.ndarray) -> np.ndarray:
    """Cosine of every vocabulary row with every neuron [vocabulary, d_mlp]."""
    return np.array(
        [
            [row @ column / (np.linalg.norm(row) * np.linalg.norm(column)) for column in w_out.T]
            for row in w_u
        ]
    )


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2", "qwen2", "gpt_neox", "opt"])
def model(request: pytest.FixtureRequest) -> Any:
    return tiny_model(request.param)


@pytest.fixture(scope="module")
def found(model: Any) -> tuple[pl.DataFrame, dict[str, np.ndarray]]:
    return weight_statistics(ModelSites.of(model), K)


def test_norms_are_those_of_the_columns(model: Any, found: Any) -> None:
    w_out, _, _ = tensors(model)
    assert w_out.shape == (D_MODEL, D_MLP)
    np.testing.assert_allclose(neuron_outputs(ModelSites.of(model)), w_out, atol=1e-6)
    neurons, _ = found
    assert neurons["neuron"].to_list() == list(range(D_MLP))
    assert neurons["neuron"].dtype == pl.Int32
    np.testing.assert_allclose(neurons["norm"], np.sqrt((w_out**2).sum(axis=0)), rtol=1e-6)


@pytest.mark.parametrize("convention", ["raw", "folded", "folded_centered"])
def test_logit_variance_is_that_of_the_written_out_matrix(
    model: Any, found: Any, convention: str
) -> None:
    w_out, w_u, gamma = tensors(model)
    assert w_u.shape == (VOCABULARY, D_MODEL)
    rows = w_u if convention == "raw" else w_u * gamma
    if convention == "folded_centered":
        rows = rows - rows.mean(axis=0)
    expected = cosines(w_out, rows).var(axis=0, ddof=1)
    neurons, _ = found
    np.testing.assert_allclose(neurons[f"logit_variance_{convention}"], expected, rtol=1e-5)


def test_conventions_differ(found: Any) -> None:
    neurons, _ = found
    raw, folded, centered = (
        neurons[f"logit_variance_{name}"].to_numpy()
        for name in ("raw", "folded", "folded_centered")
    )
    assert np.abs(raw - folded).max() > 1e-3
    assert np.abs(folded - centered).max() > 1e-5


def test_the_null_space_is_that_of_the_full_decomposition(model: Any, found: Any) -> None:
    w_out, w_u, gamma = tensors(model)
    folded = w_u * gamma
    _, values, vectors = np.linalg.svd(folded - folded.mean(axis=0), full_matrices=False)
    lowest = vectors[-K:]
    expected = np.linalg.norm(lowest @ w_out, axis=0) / np.linalg.norm(w_out, axis=0)
    neurons, unembedding = found
    np.testing.assert_allclose(neurons["null_space_fraction"], expected, atol=1e-5)
    assert unembedding["singular_values"].dtype == np.float64
    np.testing.assert_allclose(unembedding["singular_values"], values, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(unembedding["mean_row"], folded.mean(axis=0), rtol=1e-5, atol=1e-7)


def test_nothing_else_is_given_away(found: Any) -> None:
    neurons, unembedding = found
    assert set(unembedding) == {"singular_values", "mean_row"}
    assert all(array.shape == (D_MODEL,) for array in unembedding.values())
    assert all(dtype.is_numeric() for dtype in neurons.dtypes)


@pytest.mark.parametrize("family", MIXTURES)
def test_a_mixture_of_experts_has_an_unembedding_but_no_neurons(family: str) -> None:
    model = tiny_model(family)
    sites = ModelSites.of(model)
    statistics = unembedding_statistics(sites)
    folded = model.lm_head.weight.double().numpy() * model.model.norm.weight.double().numpy()
    values = np.linalg.svd(folded - folded.mean(axis=0), compute_uv=False)
    found = statistics["folded_centered"].singular_values()
    np.testing.assert_allclose(found, values, rtol=1e-5, atol=1e-6)
    with pytest.raises(UnsupportedModelError, match="mixture of experts"):
        neuron_statistics(sites, statistics, K)


def test_a_null_space_as_wide_as_the_model_is_refused() -> None:
    sites = ModelSites.of(tiny_model())
    with pytest.raises(DataError, match=f"null_space_k = {D_MODEL} must be below d_model"):
        weight_statistics(sites, D_MODEL)


def test_the_order_of_the_vocabulary_does_not_matter() -> None:
    model = tiny_model()
    before, _ = weight_statistics(ModelSites.of(model), K)
    order = np.random.default_rng(0).permutation(VOCABULARY)
    model.lm_head.weight.data = model.lm_head.weight.data[order]
    after, _ = weight_statistics(ModelSites.of(model), K)
    for name in before.columns:
        np.testing.assert_allclose(before[name], after[name], rtol=1e-9, atol=1e-12)
