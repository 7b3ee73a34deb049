"""The device of a run: its name, its versions, its clock and what it can do at best."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping
from time import perf_counter
from types import MappingProxyType

import torch

PEAK_TFLOPS: Mapping[str, float] = MappingProxyType(
    {
        "A100": 312,
        "A40": 150,
        "L40S": 362,
        "L4": 121,
        "RTX 3090": 71,
        "RTX 4090": 165,
        "H100 PCIe": 756,
        "H100 NVL": 835,
        "H100": 989,
        "H200 NVL": 835,
        "H200": 989,
        "GH200": 989,
        "B200": 2250,
    }
)
"""Dense bf16 matrix products with sums in float32, in TFLOP/s, by what the name of a device holds;
from the makers' data sheets, without sparsity."""


def peak_tflops(name: str) -> float | None:
    """Return the peak of a device by its name; None for one that is not in the table.

    Examples
    --------
    >>> peak_tflops("NVIDIA H100 PCIe"), peak_tflops("NVIDIA H100 80GB HBM3"), peak_tflops("x")
    (756, 989, None)
    """
    words = name.split()
    for known in sorted(PEAK_TFLOPS, key=len, reverse=True):
        if f" {known} " in f" {' '.join(words).replace('-', ' ')} ":
            return PEAK_TFLOPS[known]
    return None


def device_name(device: torch.device) -> str:
    """Return the name that the maker gave a GPU, or ``"CPU"``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def driver_version(device: torch.device) -> str | None:
    """Return the version of a GPU's driver as nvidia-smi tells it; None where nobody does."""
    command = shutil.which("nvidia-smi")
    if device.type != "cuda" or command is None:
        return None
    query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    told = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
    return told[0] if told else None


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall-clock time of one call, until the device has nothing left to do."""
    _wait(device)
    started = perf_counter()
    work()
    _wait(device)
    return perf_counter() - started


def peak_bytes(work: Callable[[], object], device: torch.device) -> int | None:
    """Return the most memory that tensors on a GPU held during one call; None on a CPU."""
    if device.type != "cuda":
        work()
        return None
    _wait(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    _wait(device)
    return torch.cuda.max_memory_allocated(device)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
