"""The one check that what a caller hands over is an array of finite numbers of the right shape."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ptmech.errors import DataError


def finite_array(values: ArrayLike, name: str, *, ndim: int | None = None) -> NDArray[Any]:
    """Return ``values`` as a real, finite, non-empty array, or say in one line what is wrong.

    Parameters
    ----------
    values
        Anything NumPy can read, ``ml_dtypes.bfloat16`` included. The dtype is left as it is.
    name
        What the caller calls it; the error message starts with it.
    ndim
        Number of axes it must have; None allows any number from one.

    Raises
    ------
    DataError
        Not numeric, a wrong number of axes, empty, or with an infinity or a NaN in it.
    """
    try:
        array = np.asarray(values)
        finite = bool(np.isfinite(array).all())
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} must be an array of numbers") from error
    if np.iscomplexobj(array):
        raise DataError(f"{name} must be real, not {array.dtype}")
    if array.ndim == 0 or (ndim is not None and array.ndim != ndim):
        wanted = "at least one axis" if ndim is None else f"{ndim} axes"
        raise DataError(f"{name} must have {wanted}, not shape {array.shape}")
    if array.size == 0:
        raise DataError(f"{name} is empty, shape {array.shape}")
    if not finite:
        raise DataError(f"{name} holds values that are not finite")
    return array


def working_dtype(*arrays: NDArray[Any]) -> np.dtype[Any]:
    """Return the dtype results are given in: the inputs' own, but float32 at the least."""
    return np.result_type(np.float32, *arrays)
