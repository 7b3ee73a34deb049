"""A build under attack: how it goes undisturbed, how it is struck, and what must be true after.

A :class:`Siege` knows the bytes and the system calls of one undisturbed build of one card. Each
attack takes a fresh folder, lets something happen to a build in it, and hands the folder to
:meth:`Siege.aftermath`, which lists every broken promise.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from tests.faults import checks
from tests.faults.nursery import Ended, Job, Nursery
from tests.faults.tracing import Call, calls_on, thread_aside, traced


@dataclass
class Siege:
    """One card, built in many folders.

    Attributes
    ----------
    nursery
        Where builds come from.
    folder
        For artifacts and traces; the artifact under attack is always at the same path in it.
    card, options, writer
        See :class:`tests.faults.nursery.Job`.
    before
        A finished artifact of another recipe, that stands in the folder at the beginning.
    command
        Whether builds under strace go through the command line, or call the builder.
    """

    nursery: Nursery
    folder: Path
    card: str
    options: tuple[str, ...] = ()
    writer: str = ""
    before: Path | None = None
    command: bool = False

    @cached_property
    def finished(self) -> Path:
        """An undisturbed artifact."""
        root = self.folder / "undisturbed"
        ended = self.nursery.build(self.card, root, options=self.options)
        assert ended.code == 0, ended
        assert not ended.error, ended
        return root

    @cached_property
    def wanted(self) -> dict[str, str]:
        return checks.contents(self.finished)

    @cached_property
    def keys(self) -> dict[str, str]:
        """Key of each unit."""
        found = {unit: receipt["key"] for unit, receipt in checks.receipts(self.finished).items()}
        assert found
        return found

    @cached_property
    def calls(self) -> list[Call]:
        """Every system call of an undisturbed build on its folder."""
        root = self.fresh()
        log = self.folder / "trace"
        child = self.nursery.fork(self._traceable_job(root))
        with traced(child.pid, log):
            ended = child.release().wait()
        assert (ended.code, ended.error) == (0, ()), ended
        calls = calls_on(log, root, child.pid)
        assert calls
        return calls

    @property
    def changes(self) -> list[Call]:
        """Those of :attr:`calls` that may change the disk."""
        return [call for call in self.calls if call.changes]

    def job(self, root: Path) -> Job:
        """Return an undisturbed build in a folder."""
        finished = str(self.finished) if self.writer else ""
        return Job(self.card, str(root), self.options, writer=self.writer, finished=finished)

    def fresh(self) -> Path:
        """Return the folder to be attacked, as it stands before the build."""
        root = self.folder / "attacked" / "artifact"
        if root.parent.exists():
            shutil.rmtree(root.parent)
        root.parent.mkdir(parents=True)
        if self.before is not None:
            shutil.copytree(self.before, root)
        return root

    def strike(self, root: Path, inject: str, *, aside: bool) -> tuple[Ended, Path]:
        """Build under strace, which attacks one thread; return how that ended and the trace."""
        log = self.folder / "trace"
        child = self.nursery.fork(self._traceable_job(root))
        with traced(thread_aside(child.pid) if aside else child.pid, log, inject):
            ended = child.release().wait()
        return ended, log

    def _traceable_job(self, root: Path) -> Job:
        job = self.job(root)
        if not self.command:
            return job
        return replace(job, command=True, options=(*job.options, "--quiet"))

    def aftermath(self, root: Path) -> list[str]:
        """Return what is wrong now, and after the same build has been run again."""
        violations = checks.at_any_instant(root)
        held = checks.finished_units(root, self.keys)
        again = self.nursery.fork(self.job(root)).release().wait()
        if again.code or again.error:
            return [*violations, f"the next build failed: {again}"]
        if again.reused != len(held):
            violations.append(f"{len(held)} units were finished, {again.reused} reused")
        return [*violations, *checks.redone(root, held), *self.unlike_an_undisturbed(root)]

    def unlike_an_undisturbed(self, root: Path) -> list[str]:
        """Return how a finished folder differs from one that nothing happened to."""
        return [
            *checks.torn(root),
            *checks.other_bytes(root, self.wanted),
            *checks.leftovers(root, self.keys),
        ]

    def kill(self, call: Call) -> tuple[bool, list[str]]:
        """Kill a build as it makes a call; tell whether it died of it, and what is wrong."""
        root = self.fresh()
        ended, _ = self.strike(root, f"{call.name}:signal=KILL:when={call.nth}", aside=call.aside)
        where = call.line.replace(str(self.folder), "")
        return ended.killed, [f"killed at {where}: {what}" for what in self.aftermath(root)]

    def sweep(self, calls: Sequence[Call]) -> tuple[int, list[str]]:
        """Kill a build at each of the calls; count the dead, and list what is wrong."""
        outcomes = [self.kill(call) for call in calls]
        return sum(died for died, _ in outcomes), [what for _, wrong in outcomes for what in wrong]
