"""What engines have in common: how a worker builds, and how its employer follows and finishes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Self

from ptmech.errors import PtmechError
from ptmech_builder.build import BuildReport, run, standings
from ptmech_builder.making import standing_of
from ptmech_builder.plan import Plan
from ptmech_builder.progress import Progress
from ptmech_builder.receipts import Standing
from ptmech_builder.shards import Shard
from ptmech_builder.units import Unit
from ptmech_builder.writer import Writer


@dataclass(frozen=True)
class Job:
    """All that a worker has to know; it travels to wherever the worker is.

    Attributes
    ----------
    plan
        What to build.
    root
        Folder of the artifact, the same for all workers.
    threads
        Threads of torch on the CPU; 0 leaves them as they are.
    share
        Which units to begin with.
    """

    plan: Plan
    root: Path
    threads: int
    share: Shard

    def work(self) -> PtmechError | None:
        """Build silently together with others, and return what went wrong."""
        import torch

        if self.threads:
            torch.set_num_threads(self.threads)
        try:
            run(self.plan, self.root, Progress(quiet=True), beginning=self.share)
        except PtmechError as error:
            return error
        return None


class Following:
    """Watches from outside how the units of a folder get finished, and says so.

    Parameters
    ----------
    plan, root
        What is built, and where.
    progress
        Where lines go.

    Attributes
    ----------
    before
        How each unit stood when the watch began.
    missing
        Units that were not finished when last looked at.
    """

    def __init__(self, plan: Plan, root: Path, progress: Progress) -> None:
        self._plan = plan
        self._writer = Writer(root)
        self._progress = progress
        self._started = perf_counter()
        self.before: Mapping[str, Standing] = standings(plan.units, self._writer)
        self.missing: Sequence[Unit] = self._among(plan.units)

    @classmethod
    def begin(cls, plan: Plan, root: Path, progress: Progress, workers: str) -> Self:
        """Look for the first time, and say who is going to work."""
        self = cls(plan, root, progress)
        progress.line(
            f"{plan.card.name}: {len(plan.units)} units, {len(self.missing)} to make, by {workers}"
        )
        return self

    def look(self) -> None:
        """Say what has been finished since the last look."""
        still = self._among(self.missing)
        names = {unit.name for unit in still}
        done = len(self._plan.units) - len(still)
        for unit in self.missing:
            if unit.name not in names:
                self._progress.line(f"{unit.name}: finished ({done} of {len(self._plan.units)})")
        self.missing = still

    def finish(
        self, plan: Plan, root: Path, errors: Sequence[PtmechError], *, recheck: bool
    ) -> BuildReport:
        """Make what is still missing, write the manifest, and report on the whole.

        Raises
        ------
        PtmechError
            The first error of a worker, if something is missing because of one.
        """
        self.look()
        if self.missing and errors:
            raise errors[0]
        if self.missing:
            self._progress.line(f"{len(self.missing)} units are left, which are made here")
        own = run(plan, root, Progress(quiet=True), recheck=recheck)
        again = {name: standing.reason for name, standing in self.before.items() if standing.reason}
        made = [unit for unit in plan.units if self.before[unit.name].receipt is None]
        return replace(
            own,
            done=len(made),
            reused=len(plan.units) - len(made),
            elsewhere=0,
            tokens=sum(unit.tokens for unit in made),
            seconds=perf_counter() - self._started,
            again={**again, **own.again},
        )

    def _among(self, units: Sequence[Unit]) -> list[Unit]:
        return [unit for unit in units if standing_of(unit, self._writer).receipt is None]
