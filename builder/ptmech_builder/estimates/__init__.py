"""What a build would take: operations, bytes and hours, on models and devices that are not here."""

from __future__ import annotations

from ptmech_builder.estimates.devices import DEVICES, Device, device_named
from ptmech_builder.estimates.estimate import Estimate, Machines, estimate
from ptmech_builder.estimates.report import Report, report_of
from ptmech_builder.estimates.shapes import SHAPES, shape_named
from ptmech_builder.estimates.workload import Workload, workload_of

__all__ = [
    "DEVICES",
    "SHAPES",
    "Device",
    "Estimate",
    "Machines",
    "Report",
    "Workload",
    "device_named",
    "estimate",
    "report_of",
    "shape_named",
    "workload_of",
]
