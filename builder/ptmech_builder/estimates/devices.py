"""What accelerators can do at most, as their vendors' data sheets say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ptmech.errors import unknown
from ptmech.manifest import StoredDtype


@dataclass(frozen=True)
class Device:
    """One accelerator.

    Attributes
    ----------
    tflops_16
        Peak of dense matrix products in bfloat16 or float16, 10^12 operations a second.
    tflops_32
        The same in float32, without the shortened mantissa of TF32.
    memory_gb
        10^9 bytes.
    """

    tflops_16: float
    tflops_32: float
    memory_gb: float

    def peak(self, dtype: StoredDtype) -> float:
        """Return operations a second in an element type."""
        return (self.tflops_32 if dtype == "float32" else self.tflops_16) * 1e12


DEVICES: Mapping[str, Device] = MappingProxyType(
    {
        "a100": Device(312, 19.5, 80),
        "a100-40gb": Device(312, 19.5, 40),
        "h100": Device(989, 67, 80),
        "h100-pcie": Device(756, 51, 80),
        "h200": Device(989, 67, 141),
        "l4": Device(121, 30.3, 24),
        "l40s": Device(362, 91.6, 48),
        "rtx-4090": Device(165, 82.6, 24),
        "mi300x": Device(1307, 163, 192),
    }
)
"""By name; ``a100`` and ``h100`` are the SXM modules."""


def device_named(name: str) -> Device:
    """Return an accelerator by its name.

    Raises
    ------
    UnknownNameError
        If its figures are not known.
    """
    found = DEVICES.get(name.lower().replace(" ", "-").replace("_", "-"))
    if found is None:
        raise unknown("device", name, DEVICES)
    return found
