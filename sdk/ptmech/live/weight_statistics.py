"""Statistics of the unembedding and of the last MLP's neurons, from the weights alone.

Neither the unembedding nor any projection is stored: only figures derived from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray
from torch import Tensor

from ptmech.errors import DataError
from ptmech.live.sites import ModelSites
from ptmech.unembedding import Convention, UnembeddingStatistics

CONVENTIONS: Final[tuple[Convention, ...]] = get_args(Convention)
STANDARD: Final[Convention] = "folded_centered"
"""The convention of null spaces and singular values."""

Statistics = Mapping[Convention, UnembeddingStatistics]


def unembedding_statistics(
    sites: ModelSites, conventions: Sequence[Convention] = CONVENTIONS
) -> Statistics:
    """Compute the second moments of a model's unembedding in some conventions.

    Raises
    ------
    UnsupportedModelError
        If the unembedding is quantised.
    """
    w_u, gamma = _array(sites.w_u), _array(sites.gamma)
    return {
        convention: UnembeddingStatistics.from_weights(w_u, gamma, convention=convention)
        for convention in conventions
    }


def unembedding_tensors(statistics: Statistics) -> dict[str, NDArray[np.float64]]:
    """Return what ``weights/<stage>/unembedding.safetensors`` holds.

    Returns
    -------
    dict
        ``singular_values`` [d_model], descending, and ``mean_row`` [d_model].
    """
    standard = statistics[STANDARD]
    return {"singular_values": standard.singular_values(), "mean_row": standard.mean_row}


def neuron_outputs(sites: ModelSites) -> NDArray[np.float32]:
    """Return what each neuron of the last MLP writes to the stream [d_model, d_mlp].

    A norm between the MLP and the stream, as Gemma has it, multiplies by its gain: without it
    these were not the directions that the stream gets. Its one factor a token is left out. In
    models with LayerNorm the mean over d_model is removed, because the final norm ignores it.

    Raises
    ------
    UnsupportedModelError
        If the last MLP is a mixture of experts, or quantised.
    """
    norm = sites.mlp_norm_parts(sites.n_layers - 1)
    w_out = _array(sites.w_out if norm is None else norm.linear(sites.w_out.T).T)
    return w_out - w_out.mean(axis=0) if sites.norm_kind == "layer" else w_out


def neuron_statistics(
    sites: ModelSites,
    statistics: Statistics,
    null_space_k: int | None,
    neurons: NDArray[np.intp] | None = None,
) -> pl.DataFrame:
    """Compute what ``weights/<stage>/neurons.parquet`` holds.

    Parameters
    ----------
    sites
        The model.
    statistics
        Of its unembedding, by convention.
    null_space_k
        Number of lowest right-singular directions that count as the null space; None leaves that
        column out.
    neurons
        Numbers of the neurons [n]; all of the last MLP if None.

    Returns
    -------
    polars.DataFrame
        One row a neuron: ``neuron``, ``norm``, ``logit_variance_<convention>`` for every
        convention and, if asked for, ``null_space_fraction`` (convention ``folded_centered``).

    Raises
    ------
    DataError
        If the model is not wider than `null_space_k`.
    UnsupportedModelError
        If the last MLP is a mixture of experts, or quantised.
    """
    if null_space_k is not None and null_space_k >= sites.d_model:
        raise DataError(f"null_space_k = {null_space_k} must be below d_model = {sites.d_model}")
    w_out = neuron_outputs(sites)
    numbers = np.arange(w_out.shape[1]) if neurons is None else neurons
    w_out = w_out[:, numbers]
    columns: dict[str, NDArray[np.generic]] = {
        "neuron": numbers.astype(np.int32),
        "norm": np.linalg.norm(w_out.astype(np.float64), axis=0),
    }
    for convention, moments in statistics.items():
        columns[f"logit_variance_{convention}"] = moments.logit_variance(w_out)
    if null_space_k is not None:
        standard = statistics[STANDARD]
        columns["null_space_fraction"] = standard.null_space_fraction(w_out, null_space_k)
    return pl.DataFrame(columns)


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.detach().float().cpu().numpy()
