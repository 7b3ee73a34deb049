"""Statistics of the unembedding, and what they say about the neurons of the last MLP.

An *entropy neuron* (Stolfo et al. 2024) writes into directions that the unembedding nearly
ignores: its output is long but moves all logits about equally, so that it acts on the confidence
of the next-token distribution through the final norm and not on its ranking. Two numbers find
it: the length of its output weights and the variance of their cosines with the unembedding rows.

The variance needs no vocabulary x neurons matrix. With unit rows ``u_v`` of the unembedding, their
covariance ``C`` over the vocabulary and a neuron's unit output ``w``,

``var_v cos(w, u_v) = var_v (u_v . w) = w' C w``.

So one pass over the vocabulary, in blocks and in float64, gives :class:`UnembeddingStatistics`,
from which everything else is a product of d_model-sized matrices. The functions of this module
are shortcuts for a single question; to ask several, keep the statistics.

Conventions
-----------
``"raw"``
    The unembedding as stored; ``gamma`` is not used.
``"folded"``
    Each row times ``gamma``, the scale of the final norm: what acts on the normalised stream.
    Models that store the scale less one (Gemma) need ``gamma = 1 + weight``.
``"folded_centered"``
    The same, less its mean row over the vocabulary, which moves all logits alike and which the
    softmax does not see. For LayerNorm models also centre ``w_out`` over d_model beforehand.

An unembedding row of length zero (a padding token, or a row equal to the mean where that is taken
out) has cosine 0 with every neuron and counts as a token; a neuron of length zero has logit
variance 0 and null-space fraction 0. Neither gives NaN.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

from ptmech._arrays import finite_array
from ptmech._unembedding_rows import (
    Convention,
    SecondMoment,
    UnembeddingRows,
    UnitMoments,
    block_length,
)
from ptmech.errors import DataError

__all__ = [
    "Convention",
    "UnembeddingStatistics",
    "entropy_neurons",
    "logit_variance",
    "null_space_fraction",
    "singular_values",
]


@dataclass(frozen=True, eq=False)
class UnembeddingStatistics:
    """Second moments of an unembedding in one convention; all that its neurons are judged by.

    Attributes
    ----------
    convention
        ``"raw"``, ``"folded"`` or ``"folded_centered"``, see the module.
    n_tokens
        Rows of the unembedding.
    mean_row : array of shape [d_model], float64
        Mean row over the vocabulary, gamma folded in where the convention says so, *before*
        centring.
    unit_covariance : array of shape [d_model, d_model], float64
        Unbiased covariance over the vocabulary of the rows scaled to length one.
    gram : array of shape [d_model, d_model], float64
        ``W' W`` of the unembedding W in the convention.

    Examples
    --------
    >>> import numpy as np
    >>> w_u = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.5], [0.0, -0.5]])
    >>> statistics = UnembeddingStatistics.from_weights(w_u)
    >>> statistics.logit_variance(np.eye(2)).round(3)
    array([0.667, 0.667])
    >>> statistics.singular_values().round(3)
    array([1.414, 0.707])
    """

    convention: Convention
    n_tokens: int
    mean_row: NDArray[np.float64]
    unit_covariance: NDArray[np.float64]
    gram: NDArray[np.float64]

    @classmethod
    def from_weights(
        cls,
        w_u: ArrayLike,
        gamma: ArrayLike | None = None,
        *,
        convention: Convention = "folded_centered",
    ) -> Self:
        """Compute the statistics in bounded memory.

        Parameters
        ----------
        w_u : array of shape [vocabulary, d_model]
            The unembedding, any real dtype, ``ml_dtypes.bfloat16`` included; a memory map is read
            block by block.
        gamma : array of shape [d_model], optional
            Scale of the final norm; ones by default.
        convention
            See the module.

        Returns
        -------
        UnembeddingStatistics
            In float64.

        Raises
        ------
        DataError
            Fewer than two tokens, non-finite weights, or a gamma of another width.
        UnknownNameError
            There is no convention of that name.
        """
        rows = UnembeddingRows(w_u, gamma, convention)
        gram, moments = SecondMoment(rows.d_model), UnitMoments(rows.d_model)
        for block, unit in rows.blocks():
            gram.add(block)
            moments.add(unit)
        return cls(convention, rows.n_tokens, rows.mean_row, moments.covariance(), gram.matrix())

    def logit_variance(self, w_out: ArrayLike) -> NDArray[np.float64]:
        """Return the logit variance [d_mlp] of neurons, see :func:`logit_variance`.

        Parameters
        ----------
        w_out
            [d_model, d_mlp], one column a neuron.

        Returns
        -------
        array of shape [d_mlp], float64
            0 for a neuron of length zero.
        """
        return _quadratic_form(w_out, self.unit_covariance)

    def null_space_fraction(self, w_out: ArrayLike, k: int) -> NDArray[np.float64]:
        """Return the null-space fraction [d_mlp], see :func:`null_space_fraction`.

        Parameters
        ----------
        w_out
            [d_model, d_mlp], one column a neuron.
        k
            How many of the lowest singular directions count as the null space.

        Returns
        -------
        array of shape [d_mlp], float64
            From 0 to 1.

        Raises
        ------
        DataError
            If ``k`` is not from 1 to d_model.
        """
        vectors = self._spectrum[1]
        if not 1 <= k <= len(vectors):
            raise DataError(f"k must be from 1 to d_model = {len(vectors)}, not {k}")
        lowest = vectors[:, :k]
        fractions = [
            np.linalg.norm(lowest.T @ unit, axis=0) for unit in _unit_columns(w_out, len(vectors))
        ]
        return np.clip(np.concatenate(fractions), 0.0, 1.0)

    def singular_values(self) -> NDArray[np.float64]:
        """Return the singular values [d_model], see :func:`singular_values`.

        Returns
        -------
        array of shape [d_model], float64
            Largest first.
        """
        return np.sqrt(np.maximum(self._spectrum[0][::-1], 0.0))

    @cached_property
    def _spectrum(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Eigenvalues of the Gram matrix, ascending, and its eigenvectors in columns."""
        values, vectors = scipy.linalg.eigh(self.gram)
        return values, vectors


def logit_variance(
    w_out: ArrayLike,
    w_u: ArrayLike,
    gamma: ArrayLike | None = None,
    convention: Convention = "folded_centered",
) -> NDArray[np.float64]:
    """Return how differently each neuron moves the logits of the vocabulary.

    The unbiased variance over the vocabulary of the cosine between a neuron's output weights and
    the unembedding rows (Stolfo et al. 2024, section 3; Du et al. 2025, section 6).

    Parameters
    ----------
    w_out : array of shape [d_model, d_mlp]
        Down-projection of the last MLP, one column a neuron.
    w_u : array of shape [vocabulary, d_model]
        The unembedding.
    gamma : array of shape [d_model], optional
        Scale of the final norm; ones by default.
    convention
        See the module.

    Returns
    -------
    array of shape [d_mlp], float64
        Independent of a neuron's length and sign. 0 for a neuron of length zero.

    Raises
    ------
    DataError
        Arrays that are misshapen, empty or not finite.
    UnknownNameError
        There is no convention of that name.

    Examples
    --------
    >>> logit_variance([[2.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [-1.0, 0.0]])
    array([2., 0.])
    """
    rows = UnembeddingRows(w_u, gamma, convention)
    moments = UnitMoments(rows.d_model)
    for _, unit in rows.blocks():
        moments.add(unit)
    return _quadratic_form(w_out, moments.covariance())


def null_space_fraction(
    w_out: ArrayLike,
    w_u: ArrayLike,
    k: int,
    gamma: ArrayLike | None = None,
    *,
    convention: Convention = "folded_centered",
) -> NDArray[np.float64]:
    """Return the share of each neuron's output that the unembedding nearly ignores.

    ``|V' w| / |w|`` with V the k right-singular directions of the unembedding with the lowest
    singular values, its effective null space (Stolfo et al. 2024, section 3).

    Parameters
    ----------
    w_out : array of shape [d_model, d_mlp]
        Down-projection of the last MLP, one column a neuron.
    w_u : array of shape [vocabulary, d_model]
        The unembedding.
    k
        Dimension of the effective null space, 1 to d_model.
    gamma : array of shape [d_model], optional
        Scale of the final norm; ones by default.
    convention
        See the module.

    Returns
    -------
    array of shape [d_mlp], float64
        From 0 to 1. 0 for a neuron of length zero; a random direction has about
        ``sqrt(k / d_model)``.

    Raises
    ------
    DataError
        Arrays that are misshapen, empty or not finite, or a ``k`` outside its range.
    UnknownNameError
        There is no convention of that name.
    """
    statistics = UnembeddingStatistics.from_weights(w_u, gamma, convention=convention)
    return statistics.null_space_fraction(w_out, k)


def singular_values(
    w_u: ArrayLike,
    gamma: ArrayLike | None = None,
    *,
    convention: Convention = "folded_centered",
) -> NDArray[np.float64]:
    """Return the singular values of the unembedding, the largest first.

    Parameters
    ----------
    w_u : array of shape [vocabulary, d_model]
        The unembedding.
    gamma : array of shape [d_model], optional
        Scale of the final norm; ones by default.
    convention
        See the module.

    Returns
    -------
    array of shape [d_model], float64
        From the Gram matrix, so exact down to about 1e-8 of the largest. Always d_model values,
        zeros included where the vocabulary is smaller.

    Raises
    ------
    DataError
        Arrays that are misshapen, empty or not finite.
    UnknownNameError
        There is no convention of that name.
    """
    return UnembeddingStatistics.from_weights(w_u, gamma, convention=convention).singular_values()


def entropy_neurons(
    norm: ArrayLike, logit_variance: ArrayLike, norm_quantile: float = 0.75, n: int = 10
) -> NDArray[np.intp]:
    """Return the candidates for entropy neurons: long output weights, little logit variance.

    Parameters
    ----------
    norm : array of shape [d_mlp]
        Lengths of the neurons' output weights.
    logit_variance : array of shape [d_mlp]
        Their logit variances.
    norm_quantile
        Only neurons longer than this quantile of the lengths come into question.
    n
        How many of those to take.

    Returns
    -------
    array of at most n indices
        Ascending by logit variance, ties by index. Fewer than n where fewer are long enough.

    Raises
    ------
    DataError
        Arrays that are empty, not finite or not of one length; a quantile outside 0 to 1; or an n
        below one.

    Examples
    --------
    >>> entropy_neurons([1, 5, 6, 7], [0.1, 0.4, 0.3, 0.2], norm_quantile=0.25, n=2)
    array([3, 2])
    """
    lengths = finite_array(norm, "norm", ndim=1)
    variances = finite_array(logit_variance, "logit_variance", ndim=1)
    if lengths.shape != variances.shape:
        raise DataError(
            "norm and logit_variance must be of one length, "
            f"not {len(lengths)} and {len(variances)}"
        )
    if not 0 <= norm_quantile <= 1:
        raise DataError(f"norm_quantile must be from 0 to 1, not {norm_quantile}")
    if n < 1:
        raise DataError(f"n must be at least 1, not {n}")
    lengths = lengths.astype(np.float64)
    long = np.flatnonzero(lengths > np.quantile(lengths, norm_quantile))
    return long[np.argsort(variances[long], kind="stable")[:n]]


def _quadratic_form(w_out: ArrayLike, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``w' M w`` for every column w of ``w_out`` scaled to length one."""
    values = [
        np.einsum("ij,ij->j", unit, matrix @ unit) for unit in _unit_columns(w_out, len(matrix))
    ]
    # A variance of zero may come out as -1e-18, and its logarithm is asked for later.
    return np.maximum(np.concatenate(values), 0.0)


def _unit_columns(w_out: ArrayLike, d_model: int) -> Iterator[NDArray[np.float64]]:
    """Yield blocks of the neurons, columns scaled to length one; columns of zeros stay zeros."""
    neurons: NDArray[Any] = np.asanyarray(w_out)
    if neurons.ndim != 2 or len(neurons) != d_model or neurons.size == 0:
        raise DataError(f"w_out must be [d_model = {d_model}, d_mlp], not of shape {neurons.shape}")
    step = block_length(d_model)
    for start in range(0, neurons.shape[1], step):
        block = finite_array(neurons[:, start : start + step], "w_out").astype(np.float64)
        length = np.linalg.norm(block, axis=0)
        yield block / np.where(length > 0, length, 1.0)
