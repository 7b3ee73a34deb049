"""Directions in activation space: what separates two groups, how two directions agree, removal.

Plain functions of plain arrays. They accept any real dtype, ``ml_dtypes.bfloat16`` included, and
add up in float64: the coordinates of a residual stream differ by three orders of magnitude, and a
difference of two large means is exactly what float32 sums get wrong.

Examples
--------
>>> import numpy as np
>>> harmful = np.array([[2.0, 1.0], [4.0, 1.0]])
>>> harmless = np.array([[0.0, 1.0], [0.0, 1.0]])
>>> refusal = difference_in_means(harmful, harmless)
>>> refusal
array([3., 0.])
>>> ablate(harmful, refusal)
array([[0., 1.],
       [0., 1.]])
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray

from ptmech._arrays import finite_array, working_dtype
from ptmech.errors import DataError

__all__ = [
    "ablate",
    "cosine_similarity",
    "difference_in_means",
    "principal_components",
    "unit_vector",
]


def difference_in_means(
    positive: ArrayLike,
    negative: ArrayLike,
    normalize: bool = False,  # noqa: FBT001 - arrays first, then the one switch
) -> NDArray[Any]:
    """Return the mean of one group of activations minus the mean of the other.

    The mass-mean direction of Marks & Tegmark (2023, section 5) when the groups are true and
    false statements; the refusal direction of Arditi et al. (2024, section 2.3) when they are
    harmful and harmless instructions.

    Parameters
    ----------
    positive : array of shape [n, d]
        Activations the direction points towards.
    negative : array of shape [m, d]
        Activations it points away from.
    normalize
        Scale the result to length one.

    Returns
    -------
    array of shape [d]
        Of the inputs' dtype, float32 at the least; summed in float64.

    Raises
    ------
    DataError
        A group that is empty, not two-dimensional or not finite; groups of different width; or
        ``normalize`` where the two means are equal.

    Examples
    --------
    >>> difference_in_means([[1.0, 4.0], [3.0, 4.0]], [[2.0, 0.0]], normalize=True)
    array([0., 1.])
    """
    first = finite_array(positive, "positive", ndim=2)
    second = finite_array(negative, "negative", ndim=2)
    if first.shape[1] != second.shape[1]:
        raise DataError(
            "positive and negative must be of one width, "
            f"not {first.shape[1]} and {second.shape[1]}"
        )
    difference = first.mean(axis=0, dtype=np.float64) - second.mean(axis=0, dtype=np.float64)
    if normalize:
        difference = unit_vector(difference)
    return difference.astype(working_dtype(first, second), copy=False)


def unit_vector(direction: ArrayLike) -> NDArray[Any]:
    """Scale directions to length one.

    Parameters
    ----------
    direction : array of shape [..., d]
        One direction, or one along the last axis for each leading index.

    Returns
    -------
    array of shape [..., d]
        Of the input's dtype, float32 at the least.

    Raises
    ------
    DataError
        A direction of length zero, which points nowhere; or an empty or non-finite array.

    Examples
    --------
    >>> unit_vector([3.0, 4.0])
    array([0.6, 0.8])
    """
    array = finite_array(direction, "direction")
    unit, length = _unit_and_length(array)
    if not np.all(length):
        raise DataError("direction has length zero and points nowhere")
    return unit.astype(working_dtype(array), copy=False)


def cosine_similarity(a: ArrayLike, b: ArrayLike) -> float | NDArray[np.float64]:
    """Return the cosine of the angle between directions, along the last axis.

    Parameters
    ----------
    a, b : arrays of shape [..., d]
        Directions; the leading axes broadcast, so that ``[l, d]`` with ``[l, d]`` compares layer
        by layer and ``[l, d]`` with ``[d]`` compares every layer with one direction.

    Returns
    -------
    float or array of float64
        A float for two single directions, else an array of the broadcast leading shape, within
        [-1, 1]. A direction of length zero has no angle; its cosine is defined as 0.0, so that one
        dead layer does not spoil a curve over layers.

    Raises
    ------
    DataError
        Empty or non-finite arrays, or shapes that do not fit together.

    Examples
    --------
    >>> cosine_similarity([1.0, 0.0], [1.0, 0.0])
    1.0
    >>> cosine_similarity([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]], [0.0, 1.0])
    array([0., 1., 0.])
    """
    first = finite_array(a, "a")
    second = finite_array(b, "b")
    if first.shape[-1] != second.shape[-1]:
        raise DataError(
            f"a and b must be of one width, not {first.shape[-1]} and {second.shape[-1]}"
        )
    try:
        np.broadcast_shapes(first.shape, second.shape)
    except ValueError as error:
        raise DataError(
            f"a and b do not broadcast: shapes {first.shape} and {second.shape}"
        ) from error
    cosine = np.sum(_unit_and_length(first)[0] * _unit_and_length(second)[0], axis=-1)
    # Rounding may leave 1 + 2e-16, which arccos would answer with NaN.
    cosine = np.clip(cosine, -1.0, 1.0)
    return float(cosine) if cosine.ndim == 0 else cosine


def ablate(x: ArrayLike, direction: ArrayLike) -> NDArray[Any]:
    """Remove from activations their component along a direction.

    ``x - (x . u) u`` with the unit vector ``u``: the directional ablation of Arditi et al.
    (2024, section 2.4). What is left is orthogonal to the direction.

    Parameters
    ----------
    x : array of shape [..., d]
        Activations.
    direction : array of shape [d]
        The direction; its length and sign do not matter.

    Returns
    -------
    array of shape [..., d]
        A new array of ``x``'s dtype, float32 at the least; computed in float64.

    Raises
    ------
    DataError
        A direction of length zero, of another width than ``x`` or not one-dimensional; empty or
        non-finite arrays.

    Examples
    --------
    >>> ablate([[1.0, 2.0], [3.0, 4.0]], [0.0, -5.0])
    array([[1., 0.],
           [3., 0.]])
    """
    activations = finite_array(x, "x")
    along = finite_array(direction, "direction", ndim=1).astype(np.float64)
    if activations.shape[-1] != along.shape[0]:
        raise DataError(
            "x and direction must be of one width, "
            f"not {activations.shape[-1]} and {along.shape[0]}"
        )
    unit = unit_vector(along)
    wide = activations.astype(np.float64)
    wide -= (wide @ unit)[..., None] * unit
    return wide.astype(working_dtype(activations), copy=False)


def principal_components(x: ArrayLike, k: int) -> NDArray[Any]:
    """Return the k directions along which activations vary most.

    Parameters
    ----------
    x : array of shape [n, d]
        Activations; their mean is taken out first.
    k
        How many components, 1 to ``min(n, d)``.

    Returns
    -------
    array of shape [k, d]
        Orthonormal rows, the direction of the largest variance first, of ``x``'s dtype, float32
        at the least. A component has no sign of its own: each is turned so that its coordinate of
        largest magnitude is positive, which makes the result reproducible.

    Raises
    ------
    DataError
        An empty, non-finite or not two-dimensional ``x``, or a ``k`` outside its range.

    Examples
    --------
    >>> principal_components([[0.0, 1.0], [-3.0, 1.0], [-6.0, 1.0]], 1)
    array([[1., 0.]])
    """
    activations = finite_array(x, "x", ndim=2)
    largest = min(activations.shape)
    if not 1 <= k <= largest:
        raise DataError(f"k must be from 1 to {largest} for shape {activations.shape}, not {k}")
    centred = activations.astype(np.float64)
    centred -= centred.mean(axis=0)
    components = scipy.linalg.svd(
        centred, full_matrices=False, overwrite_a=True, check_finite=False
    )[2][:k]
    leading = np.argmax(np.abs(components), axis=1)
    signs = np.where(components[np.arange(k), leading] < 0, -1.0, 1.0)
    # Adding zero turns the -0.0 of a flipped row into 0.0.
    return (components * signs[:, None] + 0.0).astype(working_dtype(activations), copy=False)


def _unit_and_length(array: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return unit vectors along the last axis and their lengths; zero vectors stay zero.

    Dividing by the largest coordinate first keeps the squares of huge and tiny vectors in range;
    the length is relative to that coordinate and so only good for telling zero from not zero.
    """
    wide = array.astype(np.float64)
    largest = np.max(np.abs(wide), axis=-1, keepdims=True)
    wide /= np.where(largest > 0, largest, 1.0)
    length = np.linalg.norm(wide, axis=-1, keepdims=True)
    return wide / np.where(length > 0, length, 1.0), length
