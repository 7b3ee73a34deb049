"""Timing several ways to the same numbers: in turns, after they have shown that they agree.

Absolute times of a shared machine mean little, and neighbours and clock frequencies drift. So every
way runs once in each round, in an order that rotates, and what counts is its time over that of the
reference way in the same round; of these ratios the median and the range are kept.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter, process_time
from typing import Any

import numpy as np

Numbers = Mapping[Any, Any]
"""What a way finds: arrays by name; masked arrays where it finds a part of them."""

Clock = Callable[[], float]
CPU_TIME: Clock = process_time
"""Of this process: what neighbours do hardly shows."""
WALL_TIME: Clock = perf_counter
"""For what waits: files and other processes."""


class DifferentNumbersError(ArithmeticError):
    """Ways that are to be compared do not do the same."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to do a task.

    Attributes
    ----------
    name
        What the table calls it.
    run
        Does the task and returns what it found.
    share
        The part of the task that `run` does, where the whole would take too long and all parts of
        it cost the same.
    silent
        Whether it stores nothing, and so has no numbers to compare.
    """

    name: str
    run: Callable[[], Numbers]
    share: float = 1.0
    silent: bool = False


@dataclass(frozen=True)
class Absent:
    """A way that cannot be taken here, and why."""

    name: str
    reason: str = "not installed"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a way costs; the reference way is 1.

    Attributes
    ----------
    name
        Of the way.
    ratios
        One a round.
    deviation
        Its worst difference from the reference's numbers, relative to the largest of each array;
        None for one that has no numbers.
    """

    name: str
    ratios: Sequence[float] = field(repr=False)
    deviation: float | None

    @property
    def median(self) -> float:
        """The figure to report."""
        return statistics.median(self.ratios)

    @property
    def spread(self) -> tuple[float, float]:
        """The lowest and the highest ratio of a round."""
        return min(self.ratios), max(self.ratios)


def measure(
    ways: Sequence[Way | Absent],
    *,
    reference: str,
    rounds: int,
    tolerance: float,
    numbers: str = "",
    clock: Clock = CPU_TIME,
    repeats: int = 1,
) -> list[Cost | Absent]:
    """Show that ways agree, then time them.

    Parameters
    ----------
    ways
        Them, in the order of the result. Those that are absent come back as they are.
    reference
        Name of the way whose time is 1.
    rounds
        How often each is timed; 0 only compares the numbers.
    tolerance
        Accepted relative deviation.
    numbers
        Name of the way whose numbers the others must match; the reference if empty.
    clock
        What is measured.
    repeats
        How often a way runs each time, for those that take less than the clock can tell.

    Raises
    ------
    DifferentNumbersError
        If they do not agree; nothing is timed then.
    """
    present = [way for way in ways if isinstance(way, Way)]
    found = {way.name: way.run() for way in present if not way.silent}
    for way in present:
        if way.silent:
            way.run()  # warm like the others
    expected = numbers or reference
    deviations = {
        name: require_same(each, found[expected], name, expected, tolerance)
        for name, each in found.items()
    }
    del found
    ratios = _ratios(present, reference, rounds, clock, repeats)
    return [
        Cost(name=way.name, ratios=ratios[way.name], deviation=deviations.get(way.name))
        if isinstance(way, Way)
        else way
        for way in ways
    ]


def _ratios(
    ways: Sequence[Way], reference: str, rounds: int, clock: Clock, repeats: int
) -> dict[str, list[float]]:
    ratios: dict[str, list[float]] = {way.name: [] for way in ways}
    for number in range(rounds):
        first = number % len(ways)
        taken: dict[str, float] = {}
        for way in (*ways[first:], *ways[:first]):
            started = clock()
            for _ in range(repeats):
                way.run()
            taken[way.name] = (clock() - started) / way.share
        for name, seconds in taken.items():
            ratios[name].append(seconds / taken[reference])
    return ratios


def require_same(
    found: Numbers, expected: Numbers, name: str, reference: str, tolerance: float
) -> float:
    """Return the worst deviation of what a way found, relative to each array's largest value.

    Raises
    ------
    DifferentNumbersError
        If that is more than the tolerance, if something is not finite or of another shape, or if
        the two have nothing in common.
    """
    common = [key for key in expected if key in found]
    if not common:
        raise DifferentNumbersError(f"{name} found nothing that {reference} found")
    worst = 0.0
    for key in common:
        ours, theirs = _array(found[key]), _array(expected[key])
        if ours.shape != theirs.shape:
            raise DifferentNumbersError(
                f"{key}: {name} has the shape {ours.shape}, {reference} {theirs.shape}"
            )
        differences: Any = np.ma.abs(ours - theirs).compressed()
        if not differences.size:
            raise DifferentNumbersError(f"{key}: {name} found nothing that {reference} found")
        largest = float(np.ma.abs(theirs).max())
        deviation = float(differences.max()) / (largest or 1.0)
        # Said this way round, what is not a number is beyond every tolerance.
        if not deviation <= tolerance:
            raise DifferentNumbersError(
                f"{key}: {name} differs from {reference} by {deviation:.2g}, more than "
                f"{tolerance:.2g}; nothing was timed"
            )
        worst = max(worst, deviation)
    return worst


def _array(values: Any) -> Any:
    return np.ma.masked_array(np.ma.atleast_1d(values)).astype(np.float64)
