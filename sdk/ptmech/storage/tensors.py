"""Reading safetensors without copying, with ``numpy`` alone.

The header is parsed and checked here rather than by the safetensors package, because a mapped
array needs no copy and because files from strangers deserve stricter rules: no duplicate names, no
name that is a path, no overlap, no offset outside the file, no byte that belongs to no tensor.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from ptmech._json import parse_json
from ptmech._text import shortened, visible
from ptmech.errors import FormatError, StorageError, first_line

MAX_AXES = 8
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,254}")
_ABOUT = "__metadata__"
_FIELDS = {"dtype", "shape", "data_offsets"}

DTYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "BOOL": np.dtype("?"),
}
"""The element types that safetensors files hold, by their names in there."""


@dataclass(frozen=True)
class Bounds:
    """How much a header may declare.

    Attributes
    ----------
    tensors
        How many tensors.
    header_bytes
        How long the header is.
    """

    tensors: int
    header_bytes: int


OURS = Bounds(tensors=4096, header_bytes=2**20)
"""Files that a build writes: two tensors each."""
ADAPTERS = Bounds(tensors=100_000, header_bytes=32 * 2**20)
"""Adapters, which come as they were trained: for every expert of a mixture, several tensors."""


def _whole(value: object) -> int:
    """Return a JSON number that is a whole one, from 0 to 2**63 - 1."""
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{_quoted(value)} is no count or offset")
    return value


def _quoted(value: object) -> str:
    return shortened(visible(" ".join(repr(value).split())), 60)


def _checked(name: str, fields: Any) -> Any:
    """Return what a header says of a tensor, if that is all it should be and no more."""
    if not _NAME.fullmatch(name) or ".." in name:
        raise ValueError(f"no tensor can be called {_quoted(name)}")
    if not isinstance(fields, dict) or fields.keys() != _FIELDS:
        raise ValueError(f"tensor {name!r} has other fields than {', '.join(sorted(_FIELDS))}")
    if not isinstance(fields["dtype"], str) or fields["dtype"] not in DTYPES:
        raise ValueError(f"tensor {name!r} is of the type {_quoted(fields['dtype'])}")
    if not isinstance(fields["shape"], list) or len(fields["shape"]) > MAX_AXES:
        raise ValueError(f"tensor {name!r} has no shape of at most {MAX_AXES} axes")
    if not isinstance(fields["data_offsets"], list) or len(fields["data_offsets"]) != 2:
        raise ValueError(f"tensor {name!r} does not say where it begins and ends")
    return fields


def _about(value: object) -> None:
    """Check the header's own texts, which nothing here reads."""
    texts = list(value.values()) if isinstance(value, dict) else [None]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"its {_ABOUT} is no list of texts by name")


def _layout(
    stream: BinaryIO, name: str, bounds: Bounds
) -> tuple[int, dict[str, tuple[np.dtype[Any], tuple[int, ...], int]]]:
    """Read the header: where the data begins, and dtype, shape and offset of each tensor."""
    size = os.fstat(stream.fileno()).st_size
    prefix = stream.read(8)
    header_bytes = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or header_bytes > min(bounds.header_bytes, size - 8):
        raise ValueError("its header is longer than the file or than a header may be")
    header = parse_json(
        stream.read(header_bytes), f"{name} (its header)", max_keys=bounds.tensors + 1
    )
    if not isinstance(header, dict):
        raise TypeError("its header is not a JSON object")
    _about(header.pop(_ABOUT, {}))
    if len(header) > bounds.tensors:
        raise ValueError(f"it holds {len(header)} tensors; there may be {bounds.tensors}")
    start = 8 + header_bytes
    tensors: dict[str, tuple[np.dtype[Any], tuple[int, ...], int]] = {}
    spans: list[tuple[int, int]] = [(0, 0)]
    for name, fields in header.items():
        about = _checked(name, fields)
        dtype = DTYPES[about["dtype"]]
        shape = tuple(_whole(length) for length in about["shape"])
        begin, end = (_whole(offset) for offset in about["data_offsets"])
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"tensor {name!r} does not fill its span")
        spans.append((begin, end))
        tensors[name] = (dtype, shape, begin)
    spans = [*sorted(spans), (size - start, size - start)]
    if any(before[1] != after[0] for before, after in pairwise(spans)):
        raise ValueError("its tensors overlap, leave holes or reach outside the file")
    return start, tensors


def read_tensors(path: Path, *, bounds: Bounds = OURS) -> dict[str, np.ndarray]:
    """Map every tensor of a safetensors file, read-only and without a copy.

    Parameters
    ----------
    path
        A local file.
    bounds
        How much its header may declare.

    Returns
    -------
    dict
        Name to array; ``BF16`` becomes ``ml_dtypes.bfloat16``, bit for bit.

    Raises
    ------
    FormatError
        If the file is not a well-formed safetensors file.
    StorageError
        If the disk does not let it be read.
    """
    arrays: dict[str, np.ndarray] = {}
    try:
        with path.open("rb") as stream:  # opened once: the header is that of what is mapped
            start, tensors = _layout(stream, path.name, bounds)
            data = np.memmap(stream, dtype=np.uint8, mode="r")
        for name, (dtype, shape, begin) in tensors.items():
            first = start + begin
            raw = data[first : first + math.prod(shape) * dtype.itemsize]
            arrays[name] = raw.view(dtype).reshape(shape)
    except FormatError:
        raise
    except OSError as error:  # also one that counts as a ValueError, as of a file that cannot seek
        raise StorageError(
            f"{path.name} cannot be read ({error.strerror or first_line(error)}): see to the disk"
        ) from error
    except (ValueError, TypeError) as error:
        raise FormatError(f"{path.name} is not a sound safetensors file: {error}") from error
    return arrays
