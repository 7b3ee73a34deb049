"""Reading safetensors without copying, with ``numpy`` alone.

The header is parsed and checked here rather than by the safetensors package, because a mapped
array needs no copy and because files from strangers deserve stricter rules: no duplicate names, no
overlap, no offset outside the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ptmech.errors import FormatError

MAX_HEADER_BYTES = 2**20
MAX_AXES = 8

DTYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
"""The element types an artifact may hold, by their safetensors names."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError("a name occurs twice")
    return names


def _whole(value: object) -> int:
    """Return a JSON number that is a whole one, from 0 to 2**63 - 1."""
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{value!r} is no count or offset")
    return value


def _layout(path: Path) -> tuple[int, dict[str, tuple[np.dtype[Any], tuple[int, ...], int]]]:
    """Read the header: where the data begins, and dtype, shape and offset of each tensor."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        prefix = stream.read(8)
        header_bytes = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or header_bytes > min(MAX_HEADER_BYTES, size - 8):
            raise ValueError("its header is longer than the file or than a header may be")
        header = json.loads(stream.read(header_bytes).decode(), object_pairs_hook=_unique)
    start = 8 + header_bytes
    tensors: dict[str, tuple[np.dtype[Any], tuple[int, ...], int]] = {}
    spans: list[tuple[int, int]] = [(0, 0)]
    for name, fields in header.items():
        if name == "__metadata__":
            continue
        dtype = DTYPES[fields["dtype"]]
        shape = tuple(_whole(length) for length in fields["shape"])
        begin, end = (_whole(offset) for offset in fields["data_offsets"])
        if len(shape) > MAX_AXES or end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"tensor {name!r} does not fill its span")
        spans.append((begin, end))
        tensors[name] = (dtype, shape, begin)
    spans = [*sorted(spans), (size - start, size - start)]
    if any(before[1] != after[0] for before, after in pairwise(spans)):
        raise ValueError("its tensors overlap, leave holes or reach outside the file")
    return start, tensors


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Map every tensor of a safetensors file, read-only and without a copy.

    Parameters
    ----------
    path
        A local file.

    Returns
    -------
    dict
        Name to array; ``BF16`` becomes ``ml_dtypes.bfloat16``, bit for bit.

    Raises
    ------
    FormatError
        If the file is not a well-formed safetensors file.
    """
    arrays: dict[str, np.ndarray] = {}
    try:
        start, tensors = _layout(path)
        data = np.memmap(path, dtype=np.uint8, mode="r")
        for name, (dtype, shape, begin) in tensors.items():
            first = start + begin
            raw = data[first : first + math.prod(shape) * dtype.itemsize]
            arrays[name] = raw.view(dtype).reshape(shape)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"{path.name} is not a sound safetensors file: {error}") from error
    return arrays
