"""Tables: on the terminal, and in ``docs/performance.md``."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.interleaved import Absent, Cost

PACKAGES = (
    "torch",
    "transformers",
    "numpy",
    "scikit-learn",
    "safetensors",
    "zarr",
    "datasets",
    "huggingface_hub",
    "transformer-lens",
    "nnsight",
)
BEGIN, END = "<!-- begin: make bench -->", "<!-- end: make bench -->"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of a report.

    Attributes
    ----------
    title
        What it is about, with its sizes.
    columns
        Headings.
    rows
        Cells, as many a row as there are columns.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    @property
    def markdown(self) -> str:
        """The table as Markdown, its columns lined up for those who read the source."""
        lines = [self.columns, *self.rows]
        widths = [max(len(line[at]) for line in lines) for at in range(len(self.columns))]
        padded = [
            [cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines
        ]
        padded.insert(1, ["-" * width for width in widths])
        body = "\n".join(f"| {' | '.join(line)} |" for line in padded)
        return f"**{self.title}**\n\n{body}\n"


@dataclass(frozen=True, kw_only=True)
class Section:
    """The answer to one question."""

    title: str
    about: str
    tables: Sequence[Table]

    @property
    def markdown(self) -> str:
        """The section of the document."""
        tables = [table.markdown for table in self.tables]
        return "\n".join([f"## {self.title}\n\n{self.about.strip()}\n", *tables])


def cost_table(title: str, costs: Sequence[Cost | Absent], *, unit: str) -> Table:
    """Return the ratios of ways as a table; `unit` says which way is 1."""
    return Table(
        title=title,
        columns=["way", f"cost, {unit} = 1", "rounds", "deviation"],
        rows=[
            [each.name, each.reason, "", ""] if isinstance(each, Absent) else _cost_row(each)
            for each in costs
        ],
    )


def _cost_row(cost: Cost) -> list[str]:
    low, high = cost.spread
    deviation = f"{cost.deviation:.0e}" if cost.deviation else ""
    return [cost.name, figure(cost.median), f"{figure(low)} to {figure(high)}", deviation]


def figure(ratio: float) -> str:
    """Write a ratio with the digits that mean something: 0.012, 0.47, 1.04, 37.1, 240."""
    if ratio >= 100:
        return f"{ratio:.0f}"
    if ratio >= 10:
        return f"{ratio:.1f}"
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.3f}"


def environment() -> str:
    """Say on what the figures were taken, without saying on whose machine."""
    cores = os.cpu_count() or 1
    known = [f"{name} {found}" for name in PACKAGES if (found := _version(name))]
    return (
        f"Taken with one thread on a machine with {cores} core{'s' * (cores > 1)} "
        f"({platform.machine()}), Python {platform.python_version()}, {', '.join(known)}."
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def write(path: Path, sections: Sequence[Section]) -> None:
    """Replace what stands between the two marks of a document; the rest is written by hand.

    Raises
    ------
    ValueError
        If the document does not have the marks.
    """
    text = path.read_text(encoding="utf-8")
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{path} has no lines {BEGIN!r} and {END!r} to write between")
    body = "\n".join(section.markdown for section in sections)
    path.write_text(
        f"{head}{BEGIN}\n\n{environment()}\n\n{body}\n{END}{tail}", encoding="utf-8", newline="\n"
    )
