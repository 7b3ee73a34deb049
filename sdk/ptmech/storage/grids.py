"""Reading the small zarr groups of an artifact, with no hole left unseen.

zarr reads a chunk that is not there as a constant, so a lost file would turn into zeros. Here every
chunk that the shape asks for must be among the files, the constant is NaN while reading, and every
value must be finite: that also finds a chunk left out inside a shard. For the same reason a writer
must store chunks of zeros too (a fill value of NaN, or zarr's ``array.write_empty_chunks``).

Grids are not compressed, so the bytes on the disk bound the bytes in memory: files smaller than
their arrays are refused before anything is decoded.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

import numpy as np
import zarr
from pydantic import BaseModel, Field, field_validator, model_validator
from zarr.buffer import cpu
from zarr.storage import MemoryStore

from ptmech._json import fitting, parse_json
from ptmech._text import shortened, visible
from ptmech.errors import FormatError, first_line

MAX_ARRAY_BYTES: Final = 2**30
"""Larger than any grid of ours: a shape beyond it is a mistake or an attack."""
MAX_ARRAYS: Final = 32
MAX_CHUNKS: Final = 2**16
"""Of one array, those within shards counted: each is an errand of its own for zarr."""
MAX_NODE_BYTES: Final = 16 * 2**20
"""Of a description: that of 60,000 pairs of prompts fits."""

_NODE: Final = "zarr.json"
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")

Length = Annotated[int, Field(strict=True, ge=1, le=MAX_ARRAY_BYTES)]
Shape = Annotated[tuple[Length, ...], Field(max_length=8, fail_fast=True)]


class _Separator(BaseModel):
    separator: Literal["/"] = "/"


class _KeyEncoding(BaseModel):
    name: Literal["default"]
    configuration: _Separator = _Separator()


class _ChunkShape(BaseModel):
    chunk_shape: Shape


class _ChunkGrid(BaseModel):
    name: Literal["regular"]
    configuration: _ChunkShape


class _Plain(BaseModel):
    """A codec that keeps or adds bytes, and never makes many of few."""

    name: Literal["bytes", "crc32c"]


_Codecs = Annotated[tuple[_Plain, ...], Field(min_length=1, max_length=2)]


class _Shards(BaseModel):
    chunk_shape: Shape
    codecs: _Codecs
    index_codecs: _Codecs


class _Sharding(BaseModel):
    name: Literal["sharding_indexed"]
    configuration: _Shards


class _Array(BaseModel):
    """What an array of floats says of itself, as far as it is needed to trust it."""

    zarr_format: Literal[3]
    node_type: Literal["array"]
    shape: Shape
    data_type: Literal["float16", "float32", "float64"]
    chunk_grid: _ChunkGrid
    chunk_key_encoding: _KeyEncoding
    codecs: Annotated[
        tuple[Annotated[_Plain | _Sharding, Field(discriminator="name")], ...],
        Field(min_length=1, max_length=2),
    ]
    storage_transformers: Annotated[tuple[Any, ...], Field(max_length=0)] = ()

    @field_validator("codecs", mode="before")
    @classmethod
    def _is_not_compressed(cls, codecs: Any) -> Any:
        known = ("bytes", "crc32c", "sharding_indexed")
        for codec in codecs if isinstance(codecs, list) else ():
            name = codec.get("name") if isinstance(codec, dict) else None
            if isinstance(name, str) and name not in known:
                raise ValueError(f"compressed or changed by {name!r}; grids are stored as they are")
        return codecs

    @model_validator(mode="after")
    def _is_bounded(self) -> Self:
        chunk = self.chunk_grid.configuration.chunk_shape
        if len(chunk) != len(self.shape):
            raise ValueError(f"chunks of {chunk} do not fit the shape {self.shape}")
        if max(math.prod(self.shape), math.prod(chunk)) * self.itemsize > MAX_ARRAY_BYTES:
            raise ValueError(f"shape {self.shape}, chunks of {chunk}: larger than any grid of ours")
        if math.prod(self.chunk_counts) * self._chunks_of_a_shard() > MAX_CHUNKS:
            raise ValueError(f"shape {self.shape} is cut into more than {MAX_CHUNKS} chunks")
        return self

    def _chunks_of_a_shard(self) -> int:
        shard = self.chunk_grid.configuration.chunk_shape
        counts = [1]
        for codec in self.codecs:
            if isinstance(codec, _Sharding):
                inner = codec.configuration.chunk_shape
                if len(inner) != len(shard) or any(
                    length % step for length, step in zip(shard, inner, strict=True)
                ):
                    raise ValueError(f"chunks of {inner} do not fit shards of {shard}")
                counts.append(math.prod(shard) // math.prod(inner))
        return math.prod(counts)

    @property
    def itemsize(self) -> int:
        """Bytes of a value."""
        return np.dtype(self.data_type).itemsize

    def bytes_of(self, place: tuple[int, ...]) -> int:
        """Count the bytes of values in a chunk or shard; its file also has checksums and an index.

        A shard at the end of an axis lacks the chunks beyond it; a chunk is always whole.
        """
        shard = self.chunk_grid.configuration.chunk_shape
        inner = next(
            (c.configuration.chunk_shape for c in self.codecs if isinstance(c, _Sharding)), shard
        )
        lengths = (
            -(-min(length - at * outer, outer) // step) * step
            for length, at, outer, step in zip(self.shape, place, shard, inner, strict=True)
        )
        return math.prod(lengths) * self.itemsize

    @property
    def chunk_counts(self) -> list[int]:
        """Chunks (or shards) along each axis."""
        chunk = self.chunk_grid.configuration.chunk_shape
        return [-(-length // step) for length, step in zip(self.shape, chunk, strict=True)]


class _Group(BaseModel):
    zarr_format: Literal[3]
    node_type: Literal["group"]
    attributes: dict[str, Any] = {}


def read_group(
    files: Mapping[str, bytes], where: str = "group"
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read a zarr v3 group of floating-point arrays.

    Parameters
    ----------
    files
        All files of the group by their paths below it: ``zarr.json``, ``grid/zarr.json``,
        ``grid/c/0/0/0`` and so on. Their bytes have been checked against the manifest.
    where
        What the caller calls the group; error messages start with it.

    Returns
    -------
    attributes : dict
        Of the group.
    arrays : dict
        Name to array, of the stored dtype.

    Raises
    ------
    FormatError
        If it is no zarr v3 group of floating-point arrays, an array is compressed, too large or
        larger than its files, a chunk is missing or cannot be decoded, or a value is not finite.

    Examples
    --------
    >>> root = b'{"zarr_format": 3, "node_type": "group", "attributes": {"form": "completion"}}'
    >>> read_group({"zarr.json": root})
    ({'form': 'completion'}, {})
    """
    group = fitting(_Group, _json(files, _NODE, where), f"{where}/{_NODE}")
    names = sorted(path.removesuffix(f"/{_NODE}") for path in files if path.endswith(f"/{_NODE}"))
    if len(names) > MAX_ARRAYS:
        raise FormatError(f"{where} has {len(names)} arrays; there may be {MAX_ARRAYS}")
    if odd := [name for name in names if not _NAME.fullmatch(name)]:
        raise FormatError(f"{where}: no array can be called {shortened(visible(odd[0]))!r}")
    return group.attributes, {name: _read_array(files, name, f"{where}/{name}") for name in names}


def _read_array(files: Mapping[str, bytes], name: str, where: str) -> np.ndarray:
    node = _json(files, f"{name}/{_NODE}", where)
    promised = fitting(_Array, node, f"{where}/{_NODE}")
    for place in np.ndindex(*promised.chunk_counts):
        key = "/".join(("c", *map(str, place)))
        chunk = files.get(f"{name}/{key}")
        if chunk is None:
            raise FormatError(f"{where}: the chunk {key} is missing; build or download it again")
        if len(chunk) < promised.bytes_of(place):
            raise FormatError(
                f"{where}: the chunk {key} has {len(chunk)} bytes, too few for its values: it "
                "cannot be decoded; build or download it again"
            )
    contents = {
        path.removeprefix(f"{name}/"): data
        for path, data in files.items()
        if path.startswith(f"{name}/")
    }
    contents[_NODE] = json.dumps({**node, "fill_value": "NaN"}).encode()
    store = MemoryStore(
        {path: cpu.Buffer.from_bytes(data) for path, data in contents.items()}, read_only=True
    )
    try:
        array = np.asarray(zarr.open_array(store, mode="r", zarr_format=3)[...])
    except Exception as error:  # codecs raise whatever they stumble over in bytes from strangers
        raise FormatError(f"{where} cannot be decoded: {first_line(error)}") from error
    if not np.isfinite(array).all():
        raise FormatError(f"{where} holds a value that is not finite, or lacks part of a shard")
    return array


def _json(files: Mapping[str, bytes], path: str, where: str) -> dict[str, Any]:
    if path not in files:
        raise FormatError(f"{where}: the file {path} is missing; build or download it again")
    node = parse_json(files[path], f"{where}: {path}", max_bytes=MAX_NODE_BYTES)
    if not isinstance(node, dict):
        raise FormatError(f"{where}: {path} is not a JSON object")
    return node
