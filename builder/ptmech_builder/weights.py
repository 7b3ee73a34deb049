"""Statistics of the unembedding and of the last MLP's neurons, from the weights alone.

Neither the unembedding nor any projection is stored: only figures derived from them.
"""

from __future__ import annotations

from typing import get_args

import numpy as np
import polars as pl
from torch import Tensor

from ptmech.errors import DataError
from ptmech.live.sites import ModelSites
from ptmech.unembedding import Convention, UnembeddingStatistics

CONVENTIONS: tuple[Convention, ...] = get_args(Convention)


def neuron_outputs(sites: ModelSites) -> np.ndarray:
    """Return what each neuron of the last MLP writes to the stream [d_model, d_mlp].

    In models with LayerNorm the mean over d_model is removed, because the final norm ignores it.
    """
    w_out = _array(sites.w_out)
    return w_out - w_out.mean(axis=0) if sites.norm_kind == "layer" else w_out


def weight_statistics(
    sites: ModelSites, null_space_k: int
) -> tuple[pl.DataFrame, dict[str, np.ndarray]]:
    """Compute what ``weights/<stage>/`` holds.

    Parameters
    ----------
    sites
        A loaded model.
    null_space_k
        Number of lowest right-singular directions that count as the null space.

    Returns
    -------
    neurons : polars.DataFrame
        One row a neuron of the last MLP: ``neuron``, ``norm``, ``logit_variance_<convention>`` for
        every convention, ``null_space_fraction`` (convention ``folded_centered``).
    unembedding : dict
        ``singular_values`` [d_model] of the folded and centred unembedding, descending, and
        ``mean_row`` [d_model] of the folded one; float64.

    Raises
    ------
    DataError
        If the model is narrower than `null_space_k`.
    """
    if null_space_k >= sites.d_model:
        raise DataError(f"null_space_k = {null_space_k} must be below d_model = {sites.d_model}")
    w_out, w_u, gamma = neuron_outputs(sites), _array(sites.w_u), _array(sites.gamma)
    statistics = {
        convention: UnembeddingStatistics.from_weights(w_u, gamma, convention=convention)
        for convention in CONVENTIONS
    }
    standard = statistics["folded_centered"]
    neurons = pl.DataFrame(
        {
            "neuron": np.arange(w_out.shape[1], dtype=np.int32),
            "norm": np.linalg.norm(w_out.astype(np.float64), axis=0),
            **{
                f"logit_variance_{convention}": statistics[convention].logit_variance(w_out)
                for convention in CONVENTIONS
            },
            "null_space_fraction": standard.null_space_fraction(w_out, null_space_k),
        }
    )
    unembedding = {"singular_values": standard.singular_values(), "mean_row": standard.mean_row}
    return neurons, unembedding


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()
