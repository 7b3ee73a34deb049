"""From a model's shape and a workload to operations, bytes and hours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ptmech.errors import DataError, UnsupportedModelError
from ptmech.live.models import ModelShape
from ptmech.manifest import StoredDtype
from ptmech_builder.estimates.devices import Device
from ptmech_builder.estimates.workload import Workload

UTILISATION = 0.4
"""Part of a device's peak that large batches reach; assumed where nobody says otherwise."""

FOR_WEIGHTS = 0.9
"""Part of a device's memory that weights may fill; the rest is for what runs."""

_UID_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class Machines:
    """What a build runs on.

    Attributes
    ----------
    device
        What each worker computes on; None if only its speed is known.
    workers
        Processes, each with a model of its own.
    utilisation
        Part of the device's peak that is reached.
    tokens_per_second
        Measured rate of one worker, of tokens that go through the model; takes the place of peak
        and utilisation.

    Raises
    ------
    DataError
        If a number cannot be.
    """

    device: Device | None = None
    workers: int = 1
    utilisation: float = UTILISATION
    tokens_per_second: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.utilisation <= 1:
            raise DataError(f"utilisation is a part of 1, not {self.utilisation:g}")
        if self.workers < 1:
            raise DataError(f"at least one worker is needed, not {self.workers}")
        rate = self.tokens_per_second
        if rate is not None and not (rate > 0 and math.isfinite(rate)):
            raise DataError(f"tokens per second must be a number above 0, not {rate:g}")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What the activations of one stage take.

    Attributes
    ----------
    flops
        Operations, a multiplication and an addition being two; None for a mixture of experts.
    stored_bytes
        Of the activations and their row ids.
    weight_bytes
        What one worker's model needs in memory.
    devices
        Over which a worker's model is spread; None where the device is not known.
    hours
        Wall clock; None where neither a device nor a rate is known.
    """

    flops: float | None
    stored_bytes: float
    weight_bytes: float
    devices: int | None
    hours: float | None
    workers: int

    @property
    def device_hours(self) -> float | None:
        """Hours times devices that are held; spread over several, a model uses one at a time."""
        if self.hours is None:
            return None
        return self.hours * self.workers * (self.devices or 1)

    @property
    def bytes_per_second(self) -> float | None:
        """How fast all workers together must store; slower disks decide how long it takes."""
        return self.stored_bytes / (self.hours * 3600) if self.hours else None


def forward_flops(shape: ModelShape, workload: Workload) -> float:
    """Return the operations of a model's blocks; the unembedding is not run for activations.

    Each token takes two for every weight of the blocks' matrices, and in each block two for every
    element of its scores and of its weighted sum, whole squares of a sequence's tokens::

        2 * block_weights * tokens + 4 * layers * attention_width * sum(tokens^2)

    Raises
    ------
    UnsupportedModelError
        If the model is a mixture of experts, of which a token uses a part, or is not counted.
    """
    if not shape.has_neurons:
        raise UnsupportedModelError(
            "a mixture of experts is not estimated: a token uses a part of its weights; measure a "
            "rate and give it by --tokens-per-second, or name a dense model by --shape"
        )
    if not (shape.block_weights and shape.attention_width):
        raise UnsupportedModelError("this shape's weights are not counted; name one by --shape")
    linear = 2 * shape.block_weights * workload.run_tokens
    return linear + 4 * shape.n_layers * shape.attention_width * workload.attended


def estimate(
    shape: ModelShape,
    workload: Workload,
    machines: Machines,
    *,
    layers: Mapping[str, tuple[int, ...]],
    compute_dtype: StoredDtype,
    dtype: StoredDtype,
) -> Estimate:
    """Predict what storing a stage's activations takes.

    Parameters
    ----------
    shape
        The stage's model.
    workload
        What it runs.
    machines
        What it runs on.
    layers
        The layers stored of each site.
    compute_dtype, dtype
        Element types of the weights and of what is stored.

    Raises
    ------
    UnsupportedModelError
        As in :func:`forward_flops`; a mixture of experts is fine where the rate is measured.
    """
    measured = machines.tokens_per_second is not None
    flops = None if measured and not shape.has_neurons else forward_flops(shape, workload)
    weight_bytes = shape.parameters * _width(compute_dtype)
    files = sum(map(len, layers.values()))
    element = shape.d_model * _width(dtype)
    stored = files * (workload.positions * element + workload.rows * _UID_BYTES)
    device = machines.device
    if machines.tokens_per_second is not None:
        seconds = workload.run_tokens / machines.tokens_per_second
    elif device is not None and flops is not None:
        seconds = flops / (device.peak(compute_dtype) * machines.utilisation)
    else:
        seconds = None
    return Estimate(
        flops=flops,
        stored_bytes=stored,
        weight_bytes=weight_bytes,
        devices=None
        if device is None
        else math.ceil(weight_bytes / (device.memory_gb * 1e9 * FOR_WEIGHTS)),
        hours=None if seconds is None else seconds / 3600 / machines.workers,
        workers=machines.workers,
    )


def _width(dtype: StoredDtype) -> int:
    return 4 if dtype == "float32" else 2
