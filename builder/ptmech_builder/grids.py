"""Grids as zarr: sharded, checksummed, and handed over as bytes.

The group is made in memory and written file by file through the writer, so that a grid gets the
same guarantees as every other file, and so that its bytes depend on its content alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import zarr
from zarr.abc.buffer import Buffer
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.storage import MemoryStore


def grid_files(arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Any]) -> dict[str, bytes]:
    """Serialise float32 arrays and their description to the files of one zarr group.

    Parameters
    ----------
    arrays
        Name to array; the first axis is the shard's, one pair a chunk.
    attributes
        Of the group; plain values.

    Returns
    -------
    dict
        Path within the group to bytes, in order of path.
    """
    files: dict[str, Buffer] = {}
    group = zarr.create_group(MemoryStore(files), zarr_format=3, attributes=dict(attributes))
    for name, values in sorted(arrays.items()):
        array = group.create_array(
            name,
            shape=values.shape,
            dtype="float32",
            chunks=(1, *values.shape[1:]),
            shards=values.shape,
            compressors=Crc32cCodec(),
            serializer=BytesCodec(endian="little"),
            fill_value=float("nan"),
        )
        array[...] = values
    return {key: buffer.to_bytes() for key, buffer in sorted(files.items())}
