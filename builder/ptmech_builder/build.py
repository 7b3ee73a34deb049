"""Running a plan: every unit that is not finished yet, then the manifest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

from ptmech.errors import StorageError
from ptmech.manifest import MANIFEST, Manifest, canonical_json
from ptmech_builder.assembly import assemble
from ptmech_builder.builders import AT_ONCE, PATIENTLY, Builder, at_work
from ptmech_builder.plan import Plan
from ptmech_builder.progress import Progress
from ptmech_builder.receipts import Receipt, Standing
from ptmech_builder.units import Unit
from ptmech_builder.workbench import Workbench
from ptmech_builder.writer import Writer

ATTEMPTS = 3
"""How often the units of a plan are made, at most, when they are lost again meanwhile."""

RECORDED = ("ptmech", "torch", "transformers", "tokenizers", "numpy", "polars", "zarr")
"""Packages whose versions a receipt records."""


@dataclass(frozen=True)
class BuildReport:
    """What a build did.

    Attributes
    ----------
    done, reused
        Number of units made now, and of the others.
    elsewhere
        How many of those another build made meanwhile.
    again
        Units made now though they had been made before, each with the reason.
    swept
        Unfinished files of builds that had died here, which were removed.
    tokens, seconds
        Tokens that went through a model now, and wall-clock time.
    manifest
        The finished artifact's manifest.
    """

    done: int
    reused: int
    tokens: int
    seconds: float
    manifest: Manifest
    elsewhere: int = 0
    again: Mapping[str, str] = field(default_factory=dict)
    swept: int = 0


def run(plan: Plan, root: Path, progress: Progress, *, recheck: bool = False) -> BuildReport:
    """Build an artifact, or finish one.

    Several builds of one card may run on one folder: they share its units.

    Parameters
    ----------
    plan
        What to build.
    root
        Folder of the artifact; made if it is missing.
    progress
        Where bars and lines go.
    recheck
        Whether to hash finished files again though nobody has touched them.

    Raises
    ------
    ParityError
        If activations deviate from a plain forward; the unit's files are not written.
    DataError
        If a unit's input cannot be used.
    BusyError
        If another build is making the same files by another recipe in this folder.
    StorageError
        If the disk refuses; finished units are kept.
    """
    started = perf_counter()
    ways = {unit.name: unit.way for unit in plan.units}
    with at_work(root, ways, progress.line) as builder:
        writer = Writer(root, builder.temporary, recheck=recheck)
        bench = Workbench(plan.loaders(), root, progress)
        found = _look(plan, writer, progress)
        _say_what_was_found(plan.card.name, found, builder.swept, progress)
        if any(standing.damaged for standing in found.values()):
            _withdraw(builder, writer)
        made: list[Unit] = []
        manifest, now = None, found
        while manifest is None:
            made += _make_missing(plan.units, now, bench, writer, builder)
            with builder.claim(MANIFEST):
                # Meanwhile a file may have been lost, or a unit begun anew by another build.
                now = standings(plan.units, Writer(root))
                bench.receipts = finished_among(now)
                if len(bench.receipts) == len(plan.units):
                    manifest = assemble(plan, bench.receipts, writer)
                    writer.put_if_new(MANIFEST, canonical_json(manifest))
                elif len(made) > ATTEMPTS * len(plan.units):
                    raise StorageError(
                        f"{root}: files vanish as fast as they are made; see to who else is at "
                        "work there"
                    )
    here = {unit.name for unit in made}
    finished = {*finished_among(found)}
    return BuildReport(
        done=len(here),
        reused=len(plan.units) - len(here),
        elsewhere=len(plan.units) - len(here | finished),
        tokens=sum(unit.tokens for unit in made),
        seconds=perf_counter() - started,
        manifest=manifest,
        again={unit.name: reason for unit in made if (reason := found[unit.name].reason)},
        swept=builder.swept,
    )


def standings(units: Sequence[Unit], writer: Writer) -> dict[str, Standing]:
    """Tell of every unit whether it is finished in the writer's folder, and if not, why."""
    return {unit.name: _standing(unit, writer) for unit in units}


def finished_among(found: Mapping[str, Standing]) -> dict[str, Receipt]:
    """Return the receipts of the units that are finished."""
    return {
        name: standing.receipt for name, standing in found.items() if standing.receipt is not None
    }


def reasons_to_repeat(found: Mapping[str, Standing]) -> Iterator[str]:
    """Say which units have to be made again though they were made before, one line a reason."""
    units_by_reason: dict[str, list[str]] = defaultdict(list)
    for unit, standing in found.items():
        if standing.reason:
            units_by_reason[standing.reason].append(unit)
    for reason, units in units_by_reason.items():
        more = f" and {len(units) - 3} more" if len(units) > 3 else ""
        yield f"to make again ({reason}): {', '.join(units[:3])}{more}"


def _say_what_was_found(
    name: str, found: Mapping[str, Standing], swept: int, progress: Progress
) -> None:
    finished = sum(standing.receipt is not None for standing in found.values())
    again = sum(bool(standing.reason) for standing in found.values())
    progress.line(
        f"{name}: {len(found)} units, {finished} finished, {again} to make again, "
        f"{len(found) - finished - again} new"
    )
    for line in reasons_to_repeat(found):
        progress.line(line)
    if swept:
        progress.line(f"removed {swept} unfinished files of builds that died here")


def _look(plan: Plan, writer: Writer, progress: Progress) -> dict[str, Standing]:
    """Tell how each unit stands, and mark files that had to be hashed, so that it was for once."""
    found: dict[str, Standing] = {}
    with progress.bar(len(plan.units), "looking at what is finished", "unit") as bar:
        for unit in plan.units:
            standing = _standing(unit, writer)
            if standing.receipt is not None and standing.hashed:
                standing = Standing(writer.mark_anew(standing.receipt))
            found[unit.name] = standing
            bar.update()
    return found


def _withdraw(builder: Builder, writer: Writer, unit: str = "") -> None:
    """Take the manifest away, and a unit's receipt, while nobody is writing a manifest."""
    with builder.claim(MANIFEST):
        writer.withdraw()
        if unit:
            writer.begin(unit)


def _standing(unit: Unit, writer: Writer) -> Standing:
    found = writer.standing(unit.name, unit.key, unit.recipe_digests)
    if found.receipt is not None and not unit.accepts(found.receipt):
        return Standing(None, "checked less strictly than the card now asks")
    return found


def _make_missing(
    units: Sequence[Unit],
    found: Mapping[str, Standing],
    bench: Workbench,
    writer: Writer,
    builder: Builder,
) -> list[Unit]:
    """Make what is missing, and gather every receipt; return the units made here.

    A unit that another build is making is put off, until only such are left or one is needed.
    """
    bench.receipts = finished_among(found)
    made: list[Unit] = []
    put_off: list[Unit] = []

    def settle(unit: Unit, seconds: float) -> bool:
        with builder.claim(unit.name, seconds) as held:
            if not held:
                return False
            finished = _standing(unit, writer).receipt  # by another build, since we looked
            if finished is None:
                finished = _finish(unit, bench, writer, builder)
                made.append(unit)
            bench.receipts[unit.name] = finished
            return True

    def settle_put_off() -> None:
        for unit in put_off:
            settle(unit, PATIENTLY)
        put_off.clear()

    for unit in units:
        if unit.name in bench.receipts:
            continue
        if unit.reads_units:
            settle_put_off()
        if not settle(unit, AT_ONCE):
            put_off.append(unit)
    settle_put_off()
    return made


def _finish(unit: Unit, bench: Workbench, writer: Writer, builder: Builder) -> Receipt:
    """Make a unit, write its files, then its receipt."""
    started = perf_counter()
    made = unit.make(bench)
    # The unit replaces files of the artifact that may stand here: it is no longer whole.
    _withdraw(builder, writer, unit.name)
    entries = tuple(
        unit.entry(output, writer.put(output.path, output.data)) for output in made.files
    )
    receipt = writer.finish(
        Receipt(
            unit=unit.name,
            key=unit.key,
            recipe=unit.recipe_digests,
            activation=unit.finished(made),
            files=entries,
            facts={**made.facts, "parity_rows": made.rows},
            versions=bench.shared("versions", _versions),
        )
    )
    seconds = perf_counter() - started
    rate = f", {unit.tokens / seconds:,.0f} tokens/s" if unit.tokens else ""
    bench.progress.line(f"{unit.name}: {len(entries)} files, {seconds:.1f} s{rate}")
    return receipt


def _versions() -> dict[str, str]:
    return {package: version(package) for package in RECORDED}
