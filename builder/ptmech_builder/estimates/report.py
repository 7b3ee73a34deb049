"""What a planned build would take, stage by stage, in words and as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from ptmech_builder.estimates.devices import device_named
from ptmech_builder.estimates.estimate import FOR_WEIGHTS, Estimate, Machines, estimate
from ptmech_builder.estimates.shapes import shape_named
from ptmech_builder.estimates.workload import Workload, workload_of

if TYPE_CHECKING:
    from ptmech.manifest import StoredDtype
    from ptmech_builder.plan import Plan

_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")


@dataclass(frozen=True)
class Report:
    """Estimates of a plan's stages.

    Attributes
    ----------
    stages
        Name, workload and estimate of each.
    assumed
        One sentence each.
    """

    stages: Sequence[tuple[str, Workload, Estimate]]
    assumed: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        stages = [
            {
                "stage": name,
                **_values(workload),
                **_values(found),
                "device_hours": found.device_hours,
            }
            for name, workload, found in self.stages
        ]
        return {"stages": stages, "hours": self.hours, "assumed": list(self.assumed)}

    @property
    def hours(self) -> float | None:
        """Wall clock of all stages, one after the other."""
        known = [found.hours for _, _, found in self.stages if found.hours is not None]
        return sum(known) if len(known) == len(self.stages) else None

    def lines(self) -> list[str]:
        """Return a table with a line a stage, then what was assumed."""
        shown = [
            f"{'activations of stage':<22}{'prompt tokens':>16}{'run tokens':>16}{'FLOP':>9}"
            f"{'stored':>10}{'hours':>10}{'device-h':>10}"
        ]
        for name, work, found in self.stages:
            flops = "-" if found.flops is None else f"{found.flops:.2g}"
            shown.append(
                f"{name:<22}{work.prompt_tokens:>16,.0f}{work.run_tokens:>16,.0f}{flops:>9}"
                f"{in_units(found.stored_bytes):>10}"
                f"{_hours(found.hours):>10}{_hours(found.device_hours):>10}"
            )
        if self.hours is not None:
            shown.append(f"{'all stages':<22}{_hours(self.hours):>61}")
        return [*shown, *self.assumed]


def report_of(
    made: Plan,
    *,
    shape: str | None = None,
    device: str | None = None,
    workers: int = 1,
    utilisation: float | None = None,
    tokens_per_second: float | None = None,
    tokens: float | None = None,
) -> Report:
    """Estimate the activations of every stage of a plan.

    Parameters
    ----------
    made
        The plan, whose prompts and packing are taken.
    shape
        Name of a public model to take in place of the card's, computed in bfloat16.
    device
        Name of what each worker computes on.
    workers, utilisation, tokens_per_second
        As in :class:`Machines`.
    tokens
        Tokens that each stage's prompts are scaled to.

    Raises
    ------
    UnknownNameError
        If shape or device are not known.
    DataError, UnsupportedModelError
        As in :class:`Machines` and :func:`estimate`.
    """
    from ptmech_builder.extract import wanted_layers

    machines = Machines(
        device=None if device is None else device_named(device),
        workers=workers,
        tokens_per_second=tokens_per_second,
        **({} if utilisation is None else {"utilisation": utilisation}),
    )
    named = None if shape is None else shape_named(shape)
    extraction = made.card.extraction
    compute_dtype: StoredDtype = extraction.compute_dtype if named is None else "bfloat16"
    stages: list[tuple[str, Workload, Estimate]] = []
    for stage in made.stages:
        taken = named or stage.shape
        work = workload_of(unit for unit in made.blocks if unit.stage == stage.card.name)
        work = work if tokens is None else work.scaled(tokens)
        found = estimate(
            taken,
            work,
            machines,
            layers=wanted_layers(extraction.sites, taken.n_layers),
            compute_dtype=compute_dtype,
            dtype=made.dtype,
        )
        stages.append((stage.card.name, work, found))
    size = max((named or stage.shape).parameters for stage in made.stages)
    about = f"model: {shape or 'as the card says'}, {size:,} parameters, {compute_dtype}"
    return Report(stages, (about, *_assumed(machines, stages, device, compute_dtype, tokens)))


def _assumed(
    machines: Machines,
    stages: Sequence[tuple[str, Workload, Estimate]],
    device: str | None,
    compute_dtype: StoredDtype,
    tokens: float | None,
) -> list[str]:
    worst = max((found for _, _, found in stages), key=lambda found: found.weight_bytes)
    weights = f"weights: {in_units(worst.weight_bytes)} a worker"
    if worst.devices is not None and machines.device is not None:
        room = f"{FOR_WEIGHTS:.0%} of {machines.device.memory_gb:g} GB may hold weights"
        weights += f", on {worst.devices} {device} ({room})"
        if worst.devices > 1:
            weights += "; --device-map auto spreads them, and one at a time computes"
    said = [weights]
    rates = [rate for _, _, found in stages if (rate := found.bytes_per_second) is not None]
    if rates:
        if machines.tokens_per_second is not None:
            speed = f"{machines.tokens_per_second:,g} tokens a second, as given, by each"
        elif machines.device is not None:
            peak = machines.device.peak(compute_dtype) / 1e12
            speed = f"{machines.utilisation:g} of a peak of {peak:g} TFLOPS in {compute_dtype} each"
        else:
            speed = "unknown speed"
        said += [
            f"workers: {machines.workers}; assumed {speed}",
            f"storage: all workers together must write {in_units(max(rates))}/s; slower disks and "
            "networks take longer",
        ]
    if tokens is not None:
        said.append("assumed of further rows: as long as the card's, and as much alike")
    return [*said, "not counted: loading models, checks, traces, scores and weight statistics"]


def in_units(number: float) -> str:
    """Write bytes with a decimal prefix.

    Examples
    --------
    >>> in_units(141_107_412_992)
    '141.1 GB'
    """
    power = 0
    while number >= 999.95 and power < len(_PREFIXES) - 1:
        number, power = number / 1000, power + 1
    return f"{number:.1f} {_PREFIXES[power]}B"


def _hours(hours: float | None) -> str:
    return "-" if hours is None else f"{hours:,.1f}" if hours >= 1 else f"{hours:.2g}"


def _values(record: Workload | Estimate) -> dict[str, Any]:
    return {each.name: getattr(record, each.name) for each in fields(record)}
