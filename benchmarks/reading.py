"""Reading one layer: an artifact, against the files people keep activations in today."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import datasets
import ml_dtypes
import numpy as np
import torch
import zarr
from datasets import Dataset, Features
from numpy.typing import NDArray
from tests.synthetic import write_synthetic_artifact

import ptmech as sdk
from benchmarks.interleaved import WALL_TIME, Way, measure
from benchmarks.report import Table, cost_table
from benchmarks.setting import Benchmark, Setting

ABOUT = """
One layer of all rows as a float32 array, from files that have been read before. The unit is
`numpy.fromfile` of the artifact's own file, told where its values begin, and, of bf16, widening
them to float32. Wall time, as this is input.

- **ptmech**: `artifact.activations`, which compares the row ids of the file with the table of
  statements; and with `dtype=None` the same but mapped as it is stored, without a copy, which
  costs when it is used: so once more with the sum of all values, beside that of `numpy.fromfile`.
  That the bytes are the promised ones and the values finite is found out at the first read; the
  artifact just opened pays for it: manifest, table of statements, sha256, a look at every value.
- **torch.save**: a file a layer and 25 rows, as the paper's code leaves them, put together again.
- **Arrow**: a column a layer in a dataset of `datasets`, which has no bf16 and so keeps float32.
- **zarr**: version 3, an array of layers by rows by width, a shard a layer, not compressed; bf16 as
  its bits.
"""
ROUNDS = 7
REFERENCE = "numpy.fromfile"
Dtype = Literal["float32", "bfloat16"]
DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16")
BATCH, REPEATS = 25, 3
MISSING_SETS = ("neg_cities", "facts", "element_symb", "animal_class", "inventors")


@dataclass(frozen=True)
class Size:
    """Of what is stored."""

    layers: int = 9
    rows: int = 4000
    d_model: int = 1024

    @property
    def layer(self) -> int:
        """The one that is read."""
        return self.layers // 2


def run(setting: Setting) -> list[Table]:
    """Compare for both element types."""
    size, tables = Size(), list[Table]()
    for dtype in DTYPES:
        with TemporaryDirectory() as folder:
            costs = measure(
                ways(Path(folder), size, dtype),
                reference=REFERENCE,
                rounds=setting.rounds or ROUNDS,
                tolerance=0.0,
                clock=WALL_TIME,
                repeats=REPEATS,
            )
        title = f"{dtype}: one of {size.layers} layers, {size.rows:,} rows of {size.d_model:,}"
        tables.append(cost_table(title, costs, unit="fromfile"))
    return tables


def ways(folder: Path, size: Size, dtype: Dtype) -> list[Way]:
    """Write the same numbers in every format, and return how each is read."""
    root = write_synthetic_artifact(
        folder / "artifact",
        stages=["base"],
        n_layers=size.layers,
        d_model=size.d_model,
        n_facts=size.rows // 2,
        n_instructions=8,
        dtype=dtype,
        empty=MISSING_SETS,
    )
    artifact = sdk.load(root)

    def stored(layer: int) -> NDArray[Any]:
        return artifact.activations("cities", "base", layer=layer, dtype=None)

    def ours(opened: sdk.Artifact = artifact) -> NDArray[np.float32]:
        return opened.activations("cities", "base", layer=size.layer)

    file = root / f"acts/base/cities/resid_post/L{size.layer:02d}.safetensors"
    raw = _raw(file, stored(size.layer).dtype, size)
    readers: dict[str, Callable[[], Any]] = {
        REFERENCE: raw,
        "ptmech": ours,
        "ptmech, dtype=None": lambda: stored(size.layer),
        "ptmech, just opened": lambda: ours(sdk.load(root)),
        f"{REFERENCE}, summed": lambda: _summed(raw()),
        "ptmech, dtype=None, summed": lambda: _summed(stored(size.layer)),
        "torch.save, 25 rows a file": _torch_files(folder / "torch", stored, size),
        "Arrow (datasets)": _arrow(folder / "arrow", stored, size),
        "zarr": _zarr(folder / "acts.zarr", stored, size),
    }
    return [
        Way(name=name, run=lambda read=read: {"layer": read()}) for name, read in readers.items()
    ]


Stored = Callable[[int], NDArray[Any]]


def _raw(path: Path, dtype: np.dtype[Any], size: Size) -> Callable[[], Any]:
    with path.open("rb") as stream:
        header_bytes = int.from_bytes(stream.read(8), "little")
        begin, _ = json.loads(stream.read(header_bytes))["activations"]["data_offsets"]

    def read() -> NDArray[np.float32]:
        found = np.fromfile(path, dtype, size.rows * size.d_model, offset=8 + header_bytes + begin)
        return found.reshape(-1, size.d_model).astype(np.float32, copy=False)

    return read


def _summed(values: NDArray[Any]) -> NDArray[Any]:
    values.sum(dtype=np.float32)
    return values


def _torch_files(folder: Path, stored: Stored, size: Size) -> Callable[[], Any]:
    folder.mkdir()
    for layer in range(size.layers):
        values = _tensor(stored(layer))
        for start in range(0, size.rows, BATCH):
            part = values[start : start + BATCH].clone()
            torch.save(part, folder / f"layer_{layer}_{start}.pt")
    paths = [folder / f"layer_{size.layer}_{start}.pt" for start in range(0, size.rows, BATCH)]

    def read() -> NDArray[np.float32]:
        return torch.cat([torch.load(path, weights_only=True) for path in paths]).float().numpy()

    return read


def _arrow(folder: Path, stored: Stored, size: Size) -> Callable[[], Any]:
    feature = datasets.Sequence(datasets.Value("float32"), length=size.d_model)
    names = [f"layer_{layer}" for layer in range(size.layers)]
    columns = {name: list(stored(layer).astype(np.float32)) for layer, name in enumerate(names)}
    Dataset.from_dict(columns, Features(dict.fromkeys(names, feature))).save_to_disk(folder)
    opened = datasets.load_from_disk(folder).with_format("numpy")
    name = names[size.layer]
    return lambda: opened.select_columns([name])[:][name]


def _zarr(path: Path, stored: Stored, size: Size) -> Callable[[], Any]:
    bits = {2: np.dtype(np.uint16), 4: np.dtype(np.float32)}[stored(0).dtype.itemsize]
    array = zarr.create_array(
        path,
        shape=(size.layers, size.rows, size.d_model),
        dtype=bits,
        chunks=(1, max(1, size.rows // 4), size.d_model),
        shards=(1, size.rows, size.d_model),
        compressors=None,
    )
    for layer in range(size.layers):
        array[layer] = stored(layer).view(bits)
    dtype = stored(0).dtype

    def read() -> NDArray[np.float32]:
        return np.asarray(array[size.layer]).view(dtype).astype(np.float32, copy=False)

    return read


def _tensor(values: NDArray[Any]) -> torch.Tensor:
    if values.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(values.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(values.copy())


BENCHMARK = Benchmark(
    name="reading", title="Reading one layer against other files", about=ABOUT, run=run
)
