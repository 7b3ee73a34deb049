"""Shards: a plan divided beforehand, between machines that know nothing of each other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Self

from ptmech.errors import DataError
from ptmech_builder.units import Unit


@dataclass(frozen=True)
class Shard:
    """One of several runs of the units that read no others.

    Which units it has follows from the plan alone, never from what is finished: shards of one plan
    have nothing in common and leave nothing out, wherever and whenever they run.

    Parameters
    ----------
    number
        Which one, from 1.
    of
        How many there are.

    Raises
    ------
    DataError
        If there is no such shard.

    Examples
    --------
    >>> Shard.parse("2/8")
    Shard(number=2, of=8)
    """

    number: int
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise DataError(
                f"there is no shard {self}: of n shards the first is 1/n, the last is n/n"
            )

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``i/n``."""
        numbers = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        if numbers is None:
            raise DataError(f"a shard is written i/n, such as 1/8, not {text!r}")
        return cls(int(numbers[1]), int(numbers[2]))

    def units(self, units: Sequence[Unit]) -> list[Unit]:
        """Return the shard's own among the units of a plan, in their order.

        They are two runs of neighbours, which share a model: one of the units whose tokens can be
        told beforehand, of about as many tokens in each shard, and one of the others, of about as
        many units.
        """
        alone = independent(units)
        counted = self._run([unit for unit in alone if unit.tokens])
        uncounted = self._run([unit for unit in alone if not unit.tokens])
        own = {unit.name for unit in (*counted, *uncounted)}
        return [unit for unit in alone if unit.name in own]

    def first(self, units: Sequence[Unit]) -> list[Unit]:
        """Return all units of a plan: its own, the following shards', then those that read others.

        The last come in an order that is turned likewise.
        """
        alone = independent(units)
        others = [unit for unit in units if unit.reads_units]
        own = {unit.name for unit in self.units(units)}
        start = next((at for at, unit in enumerate(alone) if unit.name in own), 0)
        turned = [*alone[start:], *alone[:start]]
        ahead = len(others) * (self.number - 1) // self.of
        return [
            *(unit for unit in turned if unit.name in own),
            *(unit for unit in turned if unit.name not in own),
            *others[ahead:],
            *others[:ahead],
        ]

    def _run(self, units: Sequence[Unit]) -> list[Unit]:
        """Return the units whose middle lies in the shard's share of the whole."""
        sizes = [unit.tokens or 1 for unit in units]
        total = sum(sizes)
        # Twice the middle: whole numbers, so that no rounding decides.
        middles = [2 * end - size for end, size in zip(accumulate(sizes), sizes, strict=True)]
        return [
            unit
            for unit, middle in zip(units, middles, strict=True)
            if middle * self.of // (2 * total) == self.number - 1
        ]


def independent(units: Sequence[Unit]) -> list[Unit]:
    """Return the units that read no others: they can be made in any order, anywhere."""
    return [unit for unit in units if not unit.reads_units]
