"""Running a plan: every unit that is not finished yet, then the manifest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Final

from ptmech.errors import StorageError
from ptmech.manifest import MANIFEST, Manifest, canonical_json
from ptmech_builder.assembly import assemble
from ptmech_builder.builders import Builder, at_work
from ptmech_builder.making import Making, standing_of, withdraw
from ptmech_builder.plan import Plan
from ptmech_builder.progress import Progress
from ptmech_builder.receipts import Receipt, Standing
from ptmech_builder.shards import Shard, independent
from ptmech_builder.units import Unit
from ptmech_builder.workbench import Workbench
from ptmech_builder.writer import Writer

ATTEMPTS: Final = 3
"""How often the units of a plan are made, at most, when they are lost again meanwhile."""

RECORDED: Final = ("ptmech", "torch", "transformers", "tokenizers", "numpy", "polars", "zarr")
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
        The finished artifact's manifest; None if a shard is done and others are not.
    missing
        How many units have to be finished by others before a shard can go on.
    """

    done: int
    reused: int
    tokens: int
    seconds: float
    manifest: Manifest | None
    elsewhere: int = 0
    again: Mapping[str, str] = field(default_factory=dict)
    swept: int = 0
    missing: int = 0


def run(
    plan: Plan,
    root: Path,
    progress: Progress,
    *,
    recheck: bool = False,
    shard: Shard | None = None,
    beginning: Shard | None = None,
) -> BuildReport:
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
    shard
        Only the units of this shard are made, without waiting for any that another build is
        making. Once every unit that reads no others is finished, by whomever, the build goes on
        like any other; until then it ends without a manifest.
    beginning
        The shard to begin with, for builds that share everything and still had better not all
        load the same models.

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
        manifest, now, missing = None, found, 0
        with Making(bench, writer, builder, _versions) as making:
            if any(standing.damaged for standing in found.values()):
                making.in_turn(lambda: withdraw(builder, writer))
            if shard is not None:
                bench.receipts = finished_among(now)
                making.make_unclaimed(shard.units(plan.units))
                now = standings(plan.units, Writer(root))
                missing = sum(now[unit.name].receipt is None for unit in independent(plan.units))
            while manifest is None and not missing:
                bench.receipts = finished_among(now)
                making.make(plan.units if beginning is None else beginning.first(plan.units))
                now, manifest = making.in_turn(lambda: _conclude(plan, builder, writer))
                if manifest is None and len(making.made) > ATTEMPTS * len(plan.units):
                    raise StorageError(
                        f"{root}: files vanish as fast as they are made; see to who else is at "
                        "work there"
                    )
    here = {unit.name for unit in making.made}
    finished = {*finished_among(found)}
    by_now = {*finished_among(now)}
    return BuildReport(
        done=len(here),
        reused=len(by_now - here),
        elsewhere=len(by_now - here - finished),
        tokens=sum(unit.tokens for unit in making.made),
        seconds=perf_counter() - started,
        manifest=manifest,
        again={unit.name: reason for unit in making.made if (reason := found[unit.name].reason)},
        swept=builder.swept,
        missing=missing,
    )


def _conclude(
    plan: Plan, builder: Builder, writer: Writer
) -> tuple[Mapping[str, Standing], Manifest | None]:
    """Write the manifest if every unit stands; tell how they do.

    Meanwhile a file may have been lost, or a unit begun anew by another build.
    """
    with builder.claim(MANIFEST):
        now = standings(plan.units, Writer(writer.root))
        receipts = finished_among(now)
        if len(receipts) < len(plan.units):
            return now, None
        manifest = assemble(plan, receipts, writer)
        writer.put_if_new(MANIFEST, canonical_json(manifest))
        return now, manifest


def standings(units: Sequence[Unit], writer: Writer) -> dict[str, Standing]:
    """Tell of every unit whether it is finished in the writer's folder, and if not, why."""
    return {unit.name: standing_of(unit, writer) for unit in units}


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
            standing = standing_of(unit, writer)
            if standing.receipt is not None and standing.hashed:
                standing = Standing(writer.mark_anew(standing.receipt))
            found[unit.name] = standing
            bar.update()
    return found


def _versions() -> dict[str, str]:
    return {package: version(package) for package in RECORDED}
