"""Power cuts at any instant: no half artifact, no receipt that lies, nothing finished lost.

A killed process leaves everything it wrote in the memory of the system; a power cut does not. So
real builds are recorded, and a model of the disk (:mod:`tests.faults.disk`) says what may stand
there after each of their steps. A rule of thumb for reading failures: the number is the step after
which the power went, and the same test fails at the same step again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tests.faults.disk import (
    ROOT,
    Disk,
    Event,
    Log,
    Note,
    Stand,
    State,
    Sync,
    UnmodelledError,
    continued,
    recorded,
    require_complete,
    standing_in,
)
from tests.faults.pretend import Recipe, pretend_plan

from ptmech_builder.build import run
from ptmech_builder.plan import Plan
from ptmech_builder.progress import Progress
from ptmech_builder.receipts import Receipt
from ptmech_builder.writer import Writer

NAME = "artifact"
"""The artifact's folder on the disk; the disk's own top folder was always there."""
OLD, NEW = Recipe(), Recipe(dtype="bfloat16", tuned=1)

Record = Callable[[str, object], None]


# Builds that are watched -----------------------------------------------------------------------


@dataclass(frozen=True)
class Watched:
    """A build, everything it did to its disk, and what it should come to."""

    plan: Plan
    log: Log
    whole: Mapping[str, bytes]
    """Files of the artifact when nothing goes wrong."""
    finished_before: frozenset[str]
    """Units that needed not be made."""
    earlier: Plan | None = None
    """What stood there before."""

    @property
    def plans(self) -> tuple[Plan, ...]:
        return (self.plan,) if self.earlier is None else (self.plan, self.earlier)


def build(plan: Plan, root: Path) -> None:
    run(plan, root, Progress(quiet=True))


def watched(disk: Path, plan: Plan, earlier: Plan | None = None) -> Watched:
    """Build on a disk, and note when a unit begins and when it is finished."""
    disk.mkdir(parents=True, exist_ok=True)
    root = disk / NAME
    finished = accepted(root, [plan])
    begin, finish = Writer.begin, Writer.finish
    with pytest.MonkeyPatch.context() as patch, recorded(disk) as log:

        def begin_noted(self: Writer, unit: str) -> None:
            log.events.append(Note(f"begin {unit}"))
            begin(self, unit)

        def finish_noted(self: Writer, receipt: Receipt) -> Receipt:
            written = finish(self, receipt)
            log.events.append(Note(f"finish {receipt.unit}"))
            return written

        patch.setattr(Writer, "begin", begin_noted)
        patch.setattr(Writer, "finish", finish_noted)
        build(plan, root)
        log.events.append(Note("done"))
    require_complete(log, disk)
    return Watched(
        plan, log, artifact_files(root), frozenset(unit for unit, _ in finished), earlier
    )


def pretended(disk: Path, recipe: Recipe = OLD, earlier: Recipe | None = None) -> Watched:
    """Watch a build without models, over a finished artifact if its recipe is given."""
    if earlier is not None:
        build(pretend_plan(earlier), disk / NAME)
    return watched(disk, pretend_plan(recipe), None if earlier is None else pretend_plan(earlier))


def artifact_files(root: Path) -> dict[str, bytes]:
    files, _ = standing_in(root)
    return {name: data for name, data in files.items() if not name.startswith(".build/")}


def units_of(plans: Sequence[Plan]) -> set[tuple[str, str]]:
    """Return name and key of every unit of some plans."""
    return {(unit.name, unit.key) for plan in plans for unit in plan.units}


def accepted(root: Path, plans: Sequence[Plan]) -> dict[tuple[str, str], Receipt]:
    """Return the receipts that count in a folder, by unit and key."""
    writer = Writer(root)
    found = {(unit, key): writer.receipt(unit, key) for unit, key in units_of(plans)}
    return {place: receipt for place, receipt in found.items() if receipt is not None}


# What must hold after a power cut --------------------------------------------------------------


@cache
def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def broken_promises(files: Mapping[str, bytes]) -> Iterator[str]:
    """Compare an artifact with its own manifests, by nothing but JSON and sha256."""
    raw = files.get(f"{NAME}/manifest.json")
    if raw is None:
        return
    try:
        manifest = json.loads(raw)
        entries = [*manifest["extras"], *manifest["parts"]]
        for part in manifest["parts"]:
            entries += json.loads(files.get(f"{NAME}/{part['path']}", b"{}")).get("files", ())
    except (ValueError, KeyError, TypeError) as error:
        yield f"manifest.json cannot be read: {error}"
        return
    for entry in entries:
        data = files.get(f"{NAME}/{entry['path']}")
        if data is None:
            yield f"manifest.json is there, {entry['path']} is not"
        elif (len(data), sha256(data)) != (entry["bytes"], entry["sha256"]):
            yield f"manifest.json is there, {entry['path']} is damaged"


Seen = tuple[Any, ...]
"""A unit's receipt and the files it lists: all that decides whether it counts."""


@cache
def files_of(receipt: bytes) -> tuple[str, ...]:
    try:
        return tuple(f"{NAME}/{entry['path']}" for entry in json.loads(receipt)["files"])
    except (ValueError, KeyError, TypeError):
        return ()


class Examiner:
    """Stands states up in a folder and says what is wrong with them."""

    def __init__(self, folder: Path, build: Watched) -> None:
        self.build = build
        self.stand = Stand(folder)
        self.key_of = {unit.name: unit.key for unit in build.plan.units}
        self.seen: dict[State, tuple[list[str], set[tuple[str, str]]]] = {}
        """What contradicts itself in a state, and which receipts count in it."""
        self._known: dict[Seen, Receipt | None] = {}

    def examine(self, state: State, finished: set[str], *, done: bool) -> Iterator[str]:
        """Say which promises a state breaks."""
        if state not in self.seen:
            counted = self._receipts(state)
            faults = [*broken_promises(state.files), *lying_receipts(state, counted)]
            self.seen[state] = faults, set(counted)
        faults, counting = self.seen[state]
        yield from faults
        for unit in sorted(finished):
            if (unit, self.key_of[unit]) not in counting:
                yield f"{unit} was finished and has to be made again"
        if done and f"{NAME}/manifest.json" not in state.files:
            yield "the build was done and there is no manifest.json"

    def _receipts(self, state: State) -> dict[tuple[str, str], Receipt]:
        """Ask the writer which receipts count; once for the same receipt with the same files."""
        found: dict[tuple[str, str], Receipt | None] = {}
        unknown: dict[tuple[str, str], Seen] = {}
        for unit, key in units_of(self.build.plans):
            raw = state.files.get(f"{NAME}/.build/receipts/{unit}.json")
            files = () if raw is None else files_of(raw)
            seen = (unit, key, raw, *((state.nodes.get(f), state.files.get(f)) for f in files))
            if seen in self._known:
                found[unit, key] = self._known[seen]
            else:
                unknown[unit, key] = seen
        if unknown:
            self.stand.show(state, self.build.log)
            with self.stand.with_marks():
                writer = Writer(self.stand.root / NAME)
                for (unit, key), seen in unknown.items():
                    found[unit, key] = self._known[seen] = writer.receipt(unit, key)
        return {place: receipt for place, receipt in found.items() if receipt is not None}


def lying_receipts(state: State, counted: Mapping[tuple[str, str], Receipt]) -> Iterator[str]:
    """Hash the files of receipts that count."""
    for (unit, _), receipt in counted.items():
        for entry in receipt.files:
            data = state.files.get(f"{NAME}/{entry.path}")
            if data is None or sha256(data) != entry.sha256:
                yield f"the receipt of {unit} counts, and {entry.path} is not what it promises"


@dataclass
class Findings:
    """What cutting the power again and again came to."""

    cuts: int
    faults: list[str]
    states: list[State]
    """Every different state."""


def cut_the_power(
    build: Watched,
    folder: Path,
    *,
    points: int | None = None,
    mixtures: int = 2,
    until: str | None = None,
) -> Findings:
    """Cut the power after steps of a build, and examine what may be left.

    Parameters
    ----------
    points
        After how many steps; by default after each.
    mixtures
        How many states of every step are drawn at random, besides the extreme ones.
    until
        Stop at the first fault that this pattern is found in.
    """
    log = build.log
    every = range(len(log.events) + 1)
    chosen = set(every if points is None else every[:: max(1, len(every) // points)])
    chosen.add(len(log.events))
    examiner = Examiner(folder, build)
    finished, done = set(build.finished_before), False
    cuts = 0
    faults: list[str] = []
    disk = Disk(log)
    for step in every:
        if step:
            event = log.events[step - 1]
            disk.apply(event)
            match event:
                case Note(text) if text.startswith("begin "):
                    finished.discard(text.removeprefix("begin "))
                case Note(text) if text.startswith("finish "):
                    finished.add(text.removeprefix("finish "))
                case Note("done"):
                    done = True
                case _:
                    pass
        if step not in chosen:
            continue
        for state in dict.fromkeys(disk.states(seed=step, mixtures=mixtures)):
            cuts += 1
            found = [*examiner.examine(state, finished, done=done)]
            faults += [f"step {step}: {fault}" for fault in found]
            if until is not None and any(re.search(until, fault) for fault in found):
                return Findings(cuts, faults, [*examiner.seen])
    return Findings(cuts, faults, [*examiner.seen])


@pytest.fixture
def quick(at_length: bool) -> dict[str, Any]:
    """How often the power is cut: everywhere, or at about 150 steps."""
    return {"points": None, "mixtures": 8} if at_length else {"points": 150, "mixtures": 2}


def test_a_build_may_lose_power_at_any_step(
    tmp_path: Path, quick: dict[str, Any], record_property: Record
) -> None:
    build = pretended(tmp_path / "disk")
    found = cut_the_power(build, tmp_path / "stand", **quick)
    assert not found.faults
    assert found.cuts > 300
    record_property("power cuts survived", found.cuts)


def test_a_rebuild_over_another_artifact_may_lose_power_at_any_step(
    tmp_path: Path, quick: dict[str, Any], record_property: Record
) -> None:
    build = pretended(tmp_path / "disk", NEW, earlier=OLD)
    assert 0 < len(build.finished_before) < len(build.plan.units)
    found = cut_the_power(build, tmp_path / "stand", **quick)
    assert not found.faults
    assert found.cuts > 300
    record_property("power cuts survived", found.cuts)


def test_a_real_build_may_lose_power_at_any_step(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    quick: dict[str, Any],
    record_property: Record,
) -> None:
    from tests.tiny import plan_of, shortest, tiny_family, write_card

    recipe = tiny_family(tmp_path_factory).recipe(tmp_path / "card")
    recipe = {**shortest(recipe), "extraction": {"rows_per_block": 8, "tokens_per_batch": 256}}
    build = watched(tmp_path / "disk", plan_of(write_card(tmp_path / "card", recipe)))
    found = cut_the_power(build, tmp_path / "stand", **quick)
    assert not found.faults
    assert found.cuts > 300
    record_property("power cuts survived", found.cuts + finish(build, found.states, tmp_path, 3))


# The build after the power cut -----------------------------------------------------------------


def finish(build: Watched, states: Sequence[State], tmp_path: Path, samples: int | None) -> int:
    """Build again on some of the states that were left, and compare with an undisturbed build."""
    if samples is not None:
        states = Random(0).sample(list(states), samples)
    for number, state in enumerate(states):
        stand = Stand(tmp_path / "again" / str(number))
        stand.show(state, build.log)
        root = stand.root / NAME
        with stand.with_marks(), pytest.MonkeyPatch.context() as patch:
            valid = {unit for unit, _ in accepted(root, [build.plan])}
            made: set[str] = set()
            whole = Writer.finish

            def noted(
                self: Writer, receipt: Receipt, *, made: set[str] = made, whole: Any = whole
            ) -> Receipt:
                made.add(receipt.unit)
                return whole(self, receipt)

            patch.setattr(Writer, "finish", noted)
            run(build.plan, root, Progress(quiet=True))
        assert artifact_files(root) == build.whole
        assert made.isdisjoint(valid)
        assert made | valid == {unit.name for unit in build.plan.units}
    return len(states)


@pytest.mark.parametrize("earlier", [None, OLD], ids=["fresh", "over another"])
def test_the_build_after_a_power_cut_ends_with_the_same_bytes(
    tmp_path: Path, at_length: bool, record_property: Record, earlier: Recipe | None
) -> None:
    build = pretended(tmp_path / "disk", NEW, earlier=earlier)
    found = cut_the_power(build, tmp_path / "stand", points=None if at_length else 40)
    finished = finish(build, found.states, tmp_path, 200 if at_length else 10)
    record_property("power cuts survived", finished)


def test_a_build_that_was_killed_and_finished_later_is_as_safe(
    tmp_path: Path, at_length: bool, record_property: Record
) -> None:
    """What a killed build left without flushing it must not be relied on by the next one."""
    first = pretended(tmp_path / "disk")
    steps = range(1, len(first.log.events), 10 if at_length else 40)
    for step in steps:
        disk = Disk(first.log)
        for event in first.log.events[:step]:
            disk.apply(event)
        second = tmp_path / f"killed {step}"
        Stand(second).show(disk.now(), first.log)
        again = watched(second, first.plan)
        assert again.whole == first.whole
        both = Watched(
            plan=first.plan,
            log=continued(first.log, step, again.log),
            whole=first.whole,
            finished_before=frozenset(),
        )
        found = cut_the_power(both, tmp_path / f"stand {step}", points=12)
        assert not found.faults
        record_property("power cuts survived", found.cuts)


# Writers that break the rules are found out ----------------------------------------------------


def forgets_files(disk: Disk, event: Event) -> bool:
    """No fsync of files."""
    return isinstance(event, Sync) and event.node not in disk.log.folders


def forgets_folders(disk: Disk, event: Event) -> bool:
    """No fsync of folders."""
    return isinstance(event, Sync) and event.node in disk.log.folders


def forgets_new_folders(disk: Disk, event: Event) -> bool:
    """No fsync of a folder in which nothing but folders was made."""
    if not isinstance(event, Sync) or event.node not in disk.log.folders:
        return False
    entries = disk.unsafe_entries(event.node).values()
    return all(node in disk.log.folders for node in entries)


def forgets_removals(disk: Disk, event: Event) -> bool:
    """No fsync of a folder from which nothing but names were taken."""
    if not isinstance(event, Sync) or event.node not in disk.log.folders:
        return False
    return all(node is None for node in disk.unsafe_entries(event.node).values())


@pytest.mark.parametrize(
    ("forgotten", "earlier", "fault"),
    [
        (forgets_files, None, r"manifest\.json (cannot be read|is there, .* damaged)"),
        (forgets_files, None, "the receipt of .* counts"),
        (forgets_folders, None, "was finished and has to be made again"),
        (forgets_new_folders, None, "manifest.json is there, .* is not"),
        (forgets_removals, OLD, "is damaged"),
    ],
    ids=["files (readers)", "files (receipts)", "folders", "parents of new folders", "removals"],
)
def test_a_writer_that_forgets_to_flush_is_found_out(
    tmp_path: Path,
    forgotten: Callable[[Disk, Event], bool],
    earlier: Recipe | None,
    fault: str,
) -> None:
    build = pretended(tmp_path / "disk", NEW, earlier=earlier)
    careless = Watched(
        build.plan, build.log.without(forgotten), build.whole, build.finished_before, build.earlier
    )
    if forgotten is forgets_new_folders:
        # The artifact's own folder was made safe by hand, as by somebody who made it beforehand.
        careless.log.events.insert(first_entry(careless.log), Sync(ROOT))
    found = cut_the_power(careless, tmp_path / "stand", until=fault, mixtures=1)
    assert [each for each in found.faults if re.search(fault, each)]


def first_entry(log: Log) -> int:
    return 1 + next(n for n, event in enumerate(log.events) if getattr(event, "name", "") == NAME)


def in_place(patch: pytest.MonkeyPatch) -> None:
    """Files are written under their own names."""

    def put(self: Writer, path: str, data: bytes) -> Any:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        for folder in (target.parent, *target.parent.parents):
            descriptor = os.open(folder, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
            if folder == self.root.parent:
                break
        return self.describe(path, data)

    patch.setattr(Writer, "put", put)


def receipt_first(patch: pytest.MonkeyPatch) -> None:
    """A unit's receipt is written before its files are flushed."""
    waiting: list[Path] = []
    put, finish = Writer.put, Writer.finish

    def put_unflushed(self: Writer, path: str, data: bytes) -> Any:
        flush = os.fsync

        def later(descriptor: int) -> None:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                flush(descriptor)

        if path.startswith("manifest"):
            return put(self, path, data)
        waiting.append(self.root / path)
        with pytest.MonkeyPatch.context() as hasty:
            hasty.setattr(os, "fsync", later)
            return put(self, path, data)

    def finish_first(self: Writer, receipt: Receipt) -> Receipt:
        written = finish(self, receipt)
        for path in waiting:
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        waiting.clear()
        return written

    patch.setattr(Writer, "put", put_unflushed)
    patch.setattr(Writer, "finish", finish_first)


def manifest_first(patch: pytest.MonkeyPatch) -> None:
    """``manifest.json`` is written before the part manifests that it lists."""
    waiting: dict[str, bytes] = {}
    put_if_new = Writer.put_if_new

    def put_later(self: Writer, path: str, data: bytes) -> Any:
        if path.startswith("manifests/"):
            waiting[path] = data
            return self.describe(path, data)
        entry = put_if_new(self, path, data)
        for later, content in waiting.items():
            self.put(later, content)
        return entry

    patch.setattr(Writer, "put_if_new", put_later)


def keeps_the_manifest(patch: pytest.MonkeyPatch) -> None:
    """The manifest of the artifact that stood there is never taken away."""
    patch.setattr(Writer, "withdraw", lambda _self: None)


@pytest.mark.parametrize(
    ("habit", "earlier", "fault"),
    [
        (in_place, None, "manifest.json cannot be read"),
        (receipt_first, None, "the receipt of .* counts"),
        (manifest_first, None, "manifest.json is there, manifests/.* is not"),
        (keeps_the_manifest, OLD, "manifest.json is there, .* is damaged"),
    ],
)
def test_a_writer_of_the_wrong_order_is_found_out(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    habit: Callable[[pytest.MonkeyPatch], None],
    earlier: Recipe | None,
    fault: str,
) -> None:
    if earlier is not None:
        build(pretend_plan(earlier), tmp_path / "disk" / NAME)
    habit(monkeypatch)
    careless = watched(
        tmp_path / "disk",
        pretend_plan(NEW),
        None if earlier is None else pretend_plan(earlier),
    )
    monkeypatch.undo()
    found = cut_the_power(careless, tmp_path / "stand", until=fault, mixtures=1)
    assert [each for each in found.faults if re.search(fault, each)]


# The harness itself ----------------------------------------------------------------------------


def possible(disk: Path, work: Callable[[], object]) -> set[frozenset[tuple[str, bytes]]]:
    """Return what may stand on a disk after some work and a power cut."""
    with recorded(disk) as log:
        work()
    require_complete(log, disk)
    after = Disk(log)
    for event in log.events:
        after.apply(event)
    return {frozenset(state.files.items()) for state in after.states(seed=1, mixtures=60)}


def test_what_is_flushed_is_there_and_what_is_not_may_not_be(tmp_path: Path) -> None:
    def whole() -> None:
        with (tmp_path / "new").open("wb") as stream:
            stream.write(b"content")
            stream.flush()
            os.fsync(stream.fileno())
        (tmp_path / "new").replace(tmp_path / "name")
        folder = os.open(tmp_path, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)

    assert possible(tmp_path, whole) == {frozenset({("name", b"content")})}
    found = possible(tmp_path, lambda: (tmp_path / "name").write_bytes(b"other"))
    contents = {dict(state)["name"] for state in found}
    assert contents >= {b"content", b"other", bytes(5), b"", b"oth"}


def test_an_entry_is_as_safe_as_its_folder(tmp_path: Path) -> None:
    def unflushed_folder() -> None:
        (tmp_path / "a").mkdir()
        with (tmp_path / "a" / "file").open("wb", buffering=0) as stream:
            stream.write(b"content")
            os.fsync(stream.fileno())
        folder = os.open(tmp_path / "a", os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)

    assert possible(tmp_path, unflushed_folder) == {
        frozenset(),
        frozenset({("a/file", b"content")}),
    }


def test_a_rename_may_come_before_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "name").write_bytes(b"old")

    def hasty() -> None:
        (tmp_path / "new").write_bytes(b"fresh")
        os.replace(tmp_path / "new", tmp_path / "name")

    found = {dict(state).get("name") for state in possible(tmp_path, hasty)}
    assert found >= {b"old", b"fresh", b"", bytes(5)}


def test_the_recorder_knows_every_way_of_writing(tmp_path: Path) -> None:
    def busy() -> None:
        (tmp_path / "deep" / "er").mkdir(parents=True)
        (tmp_path / "deep" / "er" / "text").write_text("line\n")
        with (tmp_path / "deep" / "er" / "text").open("a") as stream:
            stream.write("another\n")
        with open(tmp_path / "both", "w+b") as stream:
            stream.write(b"0123456789")
            stream.seek(3)
            stream.write(b"xyz")
            stream.truncate(8)
        descriptor = os.open(tmp_path / "low", os.O_CREAT | os.O_RDWR)
        os.write(descriptor, b"abc")
        os.pwrite(descriptor, b"Z", 10)
        os.ftruncate(descriptor, 9)
        with os.fdopen(descriptor, "r+b") as stream:
            stream.write(b"A")
        os.link(tmp_path / "low", tmp_path / "linked")
        (tmp_path / "low").unlink()
        (tmp_path / "deep").rename(tmp_path / "elsewhere")
        (tmp_path / "elsewhere" / "new").touch()
        with tempfile.NamedTemporaryFile(dir=tmp_path, delete=False) as stream:
            stream.write(b"temporary")
        (tmp_path / "gone" / "down").mkdir(parents=True)
        (tmp_path / "gone" / "down" / "file").write_bytes(b"1")
        shutil.rmtree(tmp_path / "gone")
        with (tmp_path / "elsewhere" / "exclusive").open("xb") as stream:
            stream.write(b"2")

    with recorded(tmp_path) as log:
        busy()
    require_complete(log, tmp_path)
    with recorded(tmp_path) as log:
        for path in sorted(tmp_path.iterdir()):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    require_complete(log, tmp_path)
    assert standing_in(tmp_path) == ({}, set())


def test_a_change_that_nobody_saw_makes_the_harness_red(tmp_path: Path) -> None:
    with recorded(tmp_path) as log:
        (tmp_path / "seen").write_bytes(b"1")
        subprocess.run(["touch", str(tmp_path / "unseen")], check=True)
    with pytest.raises(UnmodelledError, match="unseen"):
        require_complete(log, tmp_path)
