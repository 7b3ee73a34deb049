"""Making units one after another: while one computes, the one before it is put on the disk.

One thread writes, the manifest too, and never more than one unit waits for it, so that a build
holds the results of two units at most. The thread that computes takes the claims of units and gives
them back: a claim is held until the receipt is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from time import perf_counter
from typing import Final, Self, TypeVar

from ptmech.manifest import MANIFEST
from ptmech_builder.builders import AT_ONCE, SOON, Builder
from ptmech_builder.receipts import Receipt, Standing
from ptmech_builder.units import Made, Unit
from ptmech_builder.workbench import Workbench
from ptmech_builder.writer import Writer

Done = TypeVar("Done")

THREAD: Final = "ptmech-writer"
"""What the thread that writes is called."""


@dataclass(frozen=True)
class _Writing:
    """A unit on its way to the disk, and the claim that is held meanwhile."""

    unit: Unit
    receipt: Future[Receipt]
    claim: ExitStack


class Making:
    """The units that one build makes.

    A context: when it ends, however it does, what was computed whole is on the disk.

    Parameters
    ----------
    bench
        What units work with; its receipts are added to.
    writer
        Writes their files.
    builder
        The build, as others on its folder see it.
    versions
        Tells the versions of the packages that are at work.

    Attributes
    ----------
    made
        The units made here whose receipts are there.
    """

    def __init__(
        self,
        bench: Workbench,
        writer: Writer,
        builder: Builder,
        versions: Callable[[], Mapping[str, str]],
    ) -> None:
        self.made: list[Unit] = []
        self._bench = bench
        self._writer = writer
        self._builder = builder
        self._versions = versions
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=THREAD)
        self._writing: _Writing | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.catch_up()
        finally:
            self._thread.shutdown()

    def make_unclaimed(self, units: Iterable[Unit]) -> list[Unit]:
        """Make the units that are neither finished nor claimed by another build; return the rest.

        Units that read others are left out too as long as there is such a rest of those that do
        not, since they may read one of it.
        """
        rest: list[Unit] = []
        all_can_be_read = True
        for unit in units:
            if unit.name in self._bench.receipts:
                continue
            if unit.reads_units:
                self.catch_up()
                settled = all_can_be_read and self._settle(unit, AT_ONCE)
            else:
                settled = self._settle(unit, AT_ONCE)
                all_can_be_read &= settled
            if not settled:
                rest.append(unit)
        self.catch_up()
        return rest

    def make(self, units: Iterable[Unit]) -> None:
        """Make what is not finished; wait for units that other builds are making."""
        rest = list(units)
        while rest := self.make_unclaimed(rest):
            # Those that read no others come first: the rest may wait for them.
            unit = min(rest, key=lambda unit: unit.reads_units)
            if not self._settle(unit, SOON):
                self._bench.progress.line(f"{unit.name}: another build is making it, waiting")
                while not self._settle(unit, SOON):
                    pass

    def catch_up(self) -> None:
        """Wait until everything computed so far is on the disk.

        Raises
        ------
        StorageError
            If the disk refuses.
        """
        if self._writing is None:
            return
        wait([self._writing.receipt])
        written, self._writing = self._writing, None
        with written.claim:
            self._bench.receipts[written.unit.name] = written.receipt.result()
        self.made.append(written.unit)

    def in_turn(self, work: Callable[[], Done]) -> Done:
        """Have the thread that writes do something once everything before it is written.

        Whatever needs a claim of its own takes it in there: if the wait for it is interrupted, the
        claim must outlast the wait.
        """
        self.catch_up()
        return self._thread.submit(work).result()

    def _settle(self, unit: Unit, seconds: float) -> bool:
        """Make a unit unless another build has; return whether it is finished, or being written."""
        with ExitStack() as claim:
            held = claim.enter_context(self._builder.claim(unit.name, seconds))
            finished = standing_of(unit, self._writer).receipt  # by another build, since we looked
            if finished is not None:
                self._bench.receipts[unit.name] = finished
            elif held:
                self._make(unit, claim)
            return held or finished is not None

    def _make(self, unit: Unit, claim: ExitStack) -> None:
        started = perf_counter()
        made = unit.make(self._bench)
        self.catch_up()
        versions = self._bench.shared("versions", self._versions)

        def write() -> Receipt:
            receipt = put_down(unit, made, self._writer, self._builder, versions)
            seconds = perf_counter() - started
            rate = f", {unit.tokens / seconds:,.0f} tokens/s" if unit.tokens else ""
            self._bench.progress.line(
                f"{unit.name}: {len(receipt.files)} files, {seconds:.1f} s{rate}"
            )
            return receipt

        receipt = self._thread.submit(write)
        self._writing = _Writing(unit, receipt, claim.pop_all())


def put_down(
    unit: Unit, made: Made, writer: Writer, builder: Builder, versions: Mapping[str, str]
) -> Receipt:
    """Write the files of a unit, then its receipt."""
    # The unit replaces files of the artifact that may stand here: it is no longer whole.
    withdraw(builder, writer, unit.name)
    entries = tuple(
        unit.entry(output, writer.put(output.path, output.data)) for output in made.files
    )
    return writer.finish(
        Receipt(
            unit=unit.name,
            key=unit.key,
            recipe=unit.recipe_digests,
            activation=unit.finished(made),
            files=entries,
            facts={**made.facts, "parity_rows": made.rows},
            versions=versions,
        )
    )


def withdraw(builder: Builder, writer: Writer, unit: str = "") -> None:
    """Take the manifest away, and a unit's receipt, while nobody is writing a manifest."""
    with builder.claim(MANIFEST):
        writer.withdraw()
        if unit:
            writer.begin(unit)


def standing_of(unit: Unit, writer: Writer) -> Standing:
    """Tell whether a unit is finished in the writer's folder, and if not, why."""
    found = writer.standing(unit.name, unit.key, unit.recipe_digests)
    if found.receipt is not None and not unit.accepts(found.receipt):
        return Standing(None, "checked less strictly than the card now asks")
    return found
