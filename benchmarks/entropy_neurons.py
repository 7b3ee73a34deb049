"""Logit variances of neurons: a quadratic form, against the cosines of neurons and vocabulary."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from benchmarks.interleaved import Absent, Cost, Way, measure
from benchmarks.report import Table, cost_table
from benchmarks.setting import Benchmark, Setting
from ptmech.unembedding import UnembeddingStatistics, logit_variance

ABOUT = """
For every neuron of an MLP, the variance over the vocabulary of the cosine between its output
weights and the unembedding rows, the final norm's scale folded in and the mean row taken out.

- **ptmech**: the covariance of the unit rows in float64 blocks, then a quadratic form a neuron. For
  all layers the covariance is kept, with the Gram matrix that the null space needs, so that for
  each only the quadratic form is left.
- **materialised**: unit rows times unit neurons in float32, a matrix of vocabulary by neurons, then
  its variance.
- **materialised, four moments**: mean, variance, skew and kurtosis of the same matrix, as published
  code on such neurons takes them; only the variance is used.

"All layers" is timed on some of them for the two last. Memory is what a process of its own needs at
its peak beyond the weights.
"""
ROUNDS = 3
OURS = "ptmech"
TOLERANCE = 1e-4
SAMPLED_LAYERS = 2


@dataclass(frozen=True)
class Weights:
    """Of a model, float32.

    Attributes
    ----------
    w_u
        Unembedding [vocabulary, d_model].
    gamma
        Scale of the final norm [d_model].
    w_out
        What the neurons of each layer write [layers, d_model, d_mlp].
    """

    w_u: NDArray[np.float32]
    gamma: NDArray[np.float32]
    w_out: NDArray[np.float32]

    def layers(self, n: int) -> Weights:
        """Return the last layers alone."""
        return Weights(self.w_u, self.gamma, self.w_out[-n:])


def run(setting: Setting) -> list[Table]:
    """Compare on the last layer, and on all."""
    weights = weights_of(setting)
    rounds = setting.rounds or ROUNDS
    size = f"{weights.w_out.shape[2]:,} neurons, {len(weights.w_u):,} words"
    one = weights.layers(1)
    last = measure(ways(one), reference=OURS, rounds=rounds, tolerance=TOLERANCE)
    every = measure(
        ways(weights, sampled=SAMPLED_LAYERS), reference=OURS, rounds=rounds, tolerance=TOLERANCE
    )
    return [
        _with_memory(cost_table(f"one layer: {size}", last, unit="ptmech"), last, peaks(one)),
        cost_table(f"all {len(weights.w_out)} layers: {size} each", every, unit="ptmech"),
    ]


def weights_of(setting: Setting) -> Weights:
    """Take the weights of the artifact's first stage."""
    sites = setting.model.sites
    blocks: Any = sites.layers
    outputs = [block.mlp.down_proj.weight.detach().numpy() for block in blocks]
    return Weights(
        sites.w_u.detach().numpy(), sites.gamma.detach().numpy().copy(), np.stack(outputs)
    )


def ways(weights: Weights, *, sampled: int | None = None) -> list[Way]:
    """Return all ways; where `sampled`, the slow ones take only so many of the layers."""
    part = weights if sampled is None else weights.layers(sampled)
    share = len(part.w_out) / len(weights.w_out)
    return [
        Way(name=OURS, run=lambda: quadratic_form(weights)),
        Way(name="materialised", run=lambda: materialised(part), share=share),
        Way(name="materialised, four moments", run=lambda: four_moments(part), share=share),
    ]


def quadratic_form(weights: Weights) -> dict[int, NDArray[np.float64]]:
    """ptmech: layers counted from the end, -1 the last one."""
    if len(weights.w_out) == 1:
        return {-1: logit_variance(weights.w_out[0], weights.w_u, weights.gamma)}
    statistics = UnembeddingStatistics.from_weights(weights.w_u, weights.gamma)
    return {
        layer - len(weights.w_out): statistics.logit_variance(w_out)
        for layer, w_out in enumerate(weights.w_out)
    }


def materialised(weights: Weights) -> dict[int, NDArray[np.float32]]:
    """All cosines at once."""
    rows = _rows(weights)
    rows /= rows.norm(dim=1, keepdim=True)
    found: dict[int, NDArray[np.float32]] = {}
    for layer, w_out in enumerate(weights.w_out):
        columns = torch.from_numpy(w_out)
        cosines = rows @ (columns / columns.norm(dim=0))
        found[layer - len(weights.w_out)] = cosines.var(dim=0).numpy()
    return found


def four_moments(weights: Weights) -> dict[int, NDArray[np.float32]]:
    """Take mean, variance, skew and kurtosis of the same matrix, a neuron each."""
    rows, found = _rows(weights), dict[int, NDArray[np.float32]]()
    rows /= rows.norm(dim=1, keepdim=True)
    for layer, w_out in enumerate(weights.w_out):
        columns = torch.from_numpy(w_out)
        cosines = rows @ columns / columns.norm(dim=0)
        deviations = cosines - cosines.mean(dim=0)
        variance = cosines.var(dim=0)
        scores = deviations / variance.sqrt()
        _skew, _kurtosis = (scores**3).mean(dim=0), (scores**4).mean(dim=0)
        found[layer - len(weights.w_out)] = variance.numpy()
    return found


def _rows(weights: Weights) -> torch.Tensor:
    rows = torch.from_numpy(weights.w_u) * torch.from_numpy(weights.gamma)
    return rows - rows.mean(dim=0)


MEMORY: Mapping[str, Callable[[Weights], object]] = {
    OURS: quadratic_form,
    "materialised": materialised,
    "materialised, four moments": four_moments,
}
"""What is run to see how much memory it needs."""


def peaks(weights: Weights) -> dict[str, int]:
    """Return the bytes that each way needs beyond the weights, in a process of its own."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "weights.npz"
        np.savez(path, w_u=weights.w_u, gamma=weights.gamma, w_out=weights.w_out)
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            found = pool.starmap(_peak, [(name, str(path)) for name in MEMORY], chunksize=1)
    return dict(zip(MEMORY, found, strict=True))


def _peak(name: str, path: str) -> int:
    torch.set_num_threads(1)
    with np.load(path) as stored:
        weights = Weights(stored["w_u"], stored["gamma"], stored["w_out"])
    few = Weights(weights.w_u[:64], weights.gamma, weights.w_out[:, :, :8])
    MEMORY[name](few)  # what libraries load on first use is not what is asked
    with _HighestMemory() as memory:
        MEMORY[name](weights)
    return memory.bytes


class _HighestMemory:
    """How much memory the process takes at its highest, beyond what it has at the beginning.

    Looked at ten times in a hundredth of a second: the system's own high-water mark also knows
    what loading the weights took, and that of the process it was started from.
    """

    def __enter__(self) -> Self:
        self._process = psutil.Process()
        self._before = self._highest = self._process.memory_info().rss
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def bytes(self) -> int:
        """The difference."""
        return self._highest - self._before

    def _look(self) -> None:
        while not self._done.wait(0.001):
            self._highest = max(self._highest, self._process.memory_info().rss)


def _with_memory(table: Table, costs: list[Cost | Absent], peaks: Mapping[str, int]) -> Table:
    return Table(
        title=table.title,
        columns=[*table.columns, "peak memory"],
        rows=[
            [*row, f"{peaks[cost.name] / 2**20:.0f} MiB"]
            for row, cost in zip(table.rows, costs, strict=True)
        ],
    )


BENCHMARK = Benchmark(
    name="entropy_neurons",
    title="Logit variances of neurons against the matrix of cosines",
    about=ABOUT,
    run=run,
)
