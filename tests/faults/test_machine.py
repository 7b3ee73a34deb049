"""One folder, whatever happens to it, in whatever order.

Hypothesis builds, kills builds between and within writes, damages files and receipts, changes the
recipe and builds again, and after every step compares the folder with its own manifests by nothing
but sha256. A failure prints the shortest sequence of steps that leads to it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tests.faults.disk import recorded
from tests.faults.pretend import Recipe, pretend_build, pretend_plan

from ptmech.errors import PtmechError, StorageError
from ptmech.loading import load
from ptmech.verify import verify
from ptmech_builder.build import run
from ptmech_builder.progress import Progress
from ptmech_builder.receipts import Receipt, Standing
from ptmech_builder.writer import Writer

RECIPES = [
    Recipe(),
    Recipe(dtype="bfloat16"),
    Recipe(rows=3),
    Recipe(last_statement="Milk is purple."),
    Recipe(tuned=1),
    Recipe(rows=8, dtype="float16"),
]
RECIPE = st.none() | st.sampled_from(RECIPES)
"""Of the next build; None for the one before."""
LONGEST = 220
"""Changes that a whole build makes, and a few more."""


class DiedError(BaseException):
    """The end of a process: nothing that comes after it reaches the disk."""


@cache
def fresh(recipe: Recipe) -> dict[str, bytes]:
    """Return the files of an undisturbed build."""
    with tempfile.TemporaryDirectory() as folder:
        pretend_build(recipe, Path(folder))
        return artifact_files(Path(folder))


def artifact_files(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and ".build" not in path.relative_to(root).parts
    }


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def listed(files: dict[str, bytes]) -> Iterator[tuple[str, int, str]]:
    """Go through all that the manifests of a folder promise, as far as they can be read."""
    manifest = json.loads(files["manifest.json"])
    for entry in (*manifest["extras"], *manifest["parts"]):
        yield entry["path"], entry["bytes"], entry["sha256"]
    for part in manifest["parts"]:
        data = files.get(part["path"], b"")
        if sha256(data) == part["sha256"]:
            for entry in json.loads(data)["files"]:
                yield entry["path"], entry["bytes"], entry["sha256"]


class Folder(RuleBasedStateMachine):
    """The folder of an artifact, and what was done to it by hand."""

    tally: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp())
        self.root = self.base / "artifact"
        self.recipe = RECIPES[0]
        self.damaged: dict[str, bytes | None] = {}
        """Files damaged by hand, as they were after it; None if they are gone."""
        self.unmarked = False
        """Whether a file was damaged behind the back of its modification time."""

    def teardown(self) -> None:
        shutil.rmtree(self.base)

    @initialize(recipe=st.none() | st.sampled_from(RECIPES))
    def begin(self, recipe: Recipe | None) -> None:
        """Begin with an empty folder, or with a finished artifact."""
        if recipe is not None:
            self.recipe = recipe
            pretend_build(recipe, self.root)

    # What happens ------------------------------------------------------------------------------

    @rule(recipe=RECIPE, changes=st.integers(0, LONGEST))
    def build_and_die(self, recipe: Recipe | None, changes: int) -> None:
        """Build, and die just before one of the changes, or in the middle of a write."""
        self.recipe = recipe or self.recipe
        left = count(changes, -1)

        def live_or_die() -> None:
            if next(left) <= 0:
                raise DiedError

        self.root.mkdir(exist_ok=True)
        valid = self.valid_units()
        made: list[str] = []
        with noting(made), recorded(self.root, live_or_die):
            try:
                run(
                    pretend_plan(self.recipe),
                    self.root,
                    Progress(quiet=True),
                    recheck=self.unmarked,
                )
                self.tally["lived"] += 1
            except DiedError:
                self.tally["deaths"] += 1
        assert valid.isdisjoint(made)

    @rule(recipe=RECIPE, recheck=st.booleans())
    def build(self, recipe: Recipe | None, recheck: bool) -> None:
        """Build, or finish what an earlier build began."""
        self.recipe = recipe or self.recipe
        valid = self.valid_units()
        made: list[str] = []
        plan = pretend_plan(self.recipe)
        with noting(made):
            report = run(plan, self.root, Progress(quiet=True), recheck=recheck or self.unmarked)
        names = {unit.name for unit in plan.units}
        assert set(made) == names - valid
        assert (report.done, report.reused) == (len(made), len(valid & names))
        self.damaged.clear()
        self.unmarked = False
        files, whole = artifact_files(self.root), fresh(self.recipe)
        assert {name: files.get(name) for name in whole} == whole
        assert not list((self.root / ".build" / "tmp").glob("*"))
        self.tally["builds"] += 1

    @precondition(lambda self: bool(artifact_files(self.root)))
    @rule(
        pick=st.just(-1) | st.integers(0, 99),
        how=st.sampled_from(["a bit", "a bit, unmarked", "cut", "longer", "gone", "empty"]),
        where=st.integers(0, 10**6),
    )
    def damage_a_file(self, pick: int, how: str, where: int) -> None:
        files = artifact_files(self.root)
        name = "manifest.json" if pick == -1 else sorted(files)[pick % len(files)]
        if name not in files:
            return
        path, data = self.root / name, files[name]
        before = path.stat()
        if not data:
            return
        match how:
            case "gone":
                path.unlink()
            case "cut":
                os.truncate(path, where % len(data))
            case "empty":
                os.truncate(path, 0)
            case "longer":
                path.write_bytes(data + b"\0")
            case _:
                at = where % len(data)
                with path.open("r+b") as stream:
                    stream.seek(at)
                    stream.write(bytes([data[at] ^ 1 << where % 8]))
                if how == "a bit, unmarked":
                    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
                    self.unmarked = True
        self.damaged[name] = path.read_bytes() if path.exists() else None
        self.tally["damaged"] += 1

    @precondition(lambda self: bool(self.receipts()))
    @rule(
        pick=st.integers(0, 10**6),
        how=st.sampled_from(
            ["gone", "cut", "another's", "no JSON", "not UTF-8", "no receipt", "rubbish beside it"]
        ),
    )
    def damage_a_receipt(self, pick: int, how: str) -> None:
        there = self.receipts()
        path = there[pick % len(there)]
        match how:
            case "gone":
                path.unlink()
            case "cut":
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            case "another's":
                path.write_bytes(there[(pick + 1) % len(there)].read_bytes())
            case "no JSON":
                path.write_bytes(b"{")
            case "not UTF-8":
                path.write_bytes(b"\xff\xfe\x00")
            case "no receipt":
                path.write_bytes(b'{"unit": "x"}')
            case _:
                self._leave_rubbish()

    def _leave_rubbish(self) -> None:
        """Leave what a build of an older version, or a dead one, may have left."""
        rubbish = self.root / ".build" / "tmp"
        rubbish.mkdir(parents=True, exist_ok=True)
        (rubbish / "0123").write_bytes(b"half a file")
        (rubbish / "4567").mkdir(exist_ok=True)
        (rubbish / "4567" / "89").write_bytes(b"another half")

    # What holds --------------------------------------------------------------------------------

    @precondition(lambda self: (self.root / "manifest.json").exists())
    @rule()
    def verify_it(self) -> None:
        """Damage by hand is found, file by file; without it there are no faults."""
        broken = self.broken()
        # Nothing vouches for manifest.json itself: a title may be changed and nobody can tell.
        by_hand = "manifest.json" in broken
        try:
            faults = verify(load(str(self.root)))
        except PtmechError:
            assert by_hand
            return
        if by_hand:
            return
        assert broken <= {fault.path for fault in faults}
        assert bool(broken) == bool(faults), [str(fault) for fault in faults]
        self.tally["verified"] += 1

    @invariant()
    def no_manifest_or_a_whole_artifact(self) -> None:
        by_hand = {
            name
            for name, data in self.damaged.items()
            if (self.root / name).exists() == (data is not None)
            and (data is None or (self.root / name).read_bytes() == data)
        }
        assert self.broken() <= by_hand

    def broken(self) -> set[str]:
        """Return the files that are not what the manifests promise, by nothing but sha256."""
        files = artifact_files(self.root) if self.root.exists() else {}
        if "manifest.json" not in files:
            return set()
        if files["manifest.json"] == self.damaged.get("manifest.json"):
            return {"manifest.json"}
        return {
            name
            for name, size, sha in listed(files)
            if name not in files or (len(files[name]), sha256(files[name])) != (size, sha)
        }

    def receipts(self) -> list[Path]:
        return sorted((self.root / ".build" / "receipts").glob("*.json"))

    def valid_units(self) -> set[str]:
        """Return the units of the present recipe that are finished and whole."""
        return {unit.name for unit in pretend_plan(self.recipe).units if self._valid(unit)}

    def _valid(self, unit: Any) -> bool:
        try:
            path = self.root / ".build" / "receipts" / f"{unit.name}.json"
            receipt = json.loads(path.read_bytes())
            return receipt["key"] == unit.key and all(
                sha256((self.root / entry["path"]).read_bytes()) == entry["sha256"]
                for entry in receipt["files"]
            )
        except (OSError, ValueError, KeyError):
            return False


class noting:
    """Note the units that are made."""

    def __init__(self, made: list[str]) -> None:
        self._made = made
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> None:
        finish = Writer.finish

        def noted(writer: Writer, receipt: Receipt) -> Receipt:
            self._made.append(receipt.unit)
            return finish(writer, receipt)

        self._patch.setattr(Writer, "finish", noted)

    def __exit__(self, *_: object) -> None:
        self._patch.undo()


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here depends on what a power cut leaves, or on how packages are found."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
    monkeypatch.setattr("ptmech_builder.build.version", cache(version), raising=False)


def machine() -> type[Folder]:
    """Return the machine with a tally of its own."""
    return type("Folder", (Folder,), {"tally": Counter()})


def play(folder: type[Folder], *, examples: int, steps: int) -> None:
    run_state_machine_as_test(
        folder,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            derandomize=True,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )


def test_whatever_happens_nothing_is_lost_and_nothing_lies(
    at_length: bool,
) -> None:
    folder = machine()
    play(folder, examples=150 if at_length else 16, steps=30 if at_length else 12)
    happened = folder.tally
    assert min(happened[name] for name in ("deaths", "builds", "damaged", "verified")) > 2


def keeps_the_manifest(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Writer, "withdraw", lambda _self: None)


def looks_at_keys_alone(patch: pytest.MonkeyPatch) -> None:
    whole = Writer.standing

    def standing(self: Writer, unit: str, key: str, *args: Any, **options: Any) -> Standing:
        path = self.root / ".build" / "receipts" / f"{unit}.json"
        try:
            receipt = Receipt.model_validate_json(path.read_bytes())
        except (OSError, ValueError):
            return whole(self, unit, key, *args, **options)
        if receipt.key == key:
            return Standing(receipt)
        return whole(self, unit, key, *args, **options)

    patch.setattr(Writer, "standing", standing)


def looks_at_names_alone(patch: pytest.MonkeyPatch) -> None:
    whole = Writer.standing

    def standing(self: Writer, unit: str, key: str, *args: Any, **options: Any) -> Standing:
        path = self.root / ".build" / "receipts" / f"{unit}.json"
        try:
            return Standing(Receipt.model_validate_json(path.read_bytes()))
        except (OSError, ValueError):
            return whole(self, unit, key, *args, **options)

    patch.setattr(Writer, "standing", standing)


def forgets(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Writer, "standing", lambda *_args, **_options: Standing(None))


def rebuilt(folder: Folder) -> None:
    """Die while another recipe is built over a finished artifact."""
    folder.build_and_die(recipe=RECIPES[1], changes=90)
    folder.no_manifest_or_a_whole_artifact()


def repaired(folder: Folder) -> None:
    """Lose a file, and build again."""
    folder.damage_a_file(pick=0, how="gone", where=0)
    folder.build(recipe=None, recheck=False)


def changed(folder: Folder) -> None:
    """Build another recipe."""
    folder.build(recipe=RECIPES[1], recheck=False)


def resumed(folder: Folder) -> None:
    """Build the same recipe again."""
    folder.build(recipe=None, recheck=False)


@pytest.mark.parametrize(
    ("habit", "story"),
    [
        (keeps_the_manifest, rebuilt),
        (looks_at_keys_alone, repaired),
        (looks_at_names_alone, changed),
        (forgets, resumed),
    ],
)
def test_a_builder_with_a_bad_habit_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
    habit: Callable[[pytest.MonkeyPatch], None],
    story: Callable[[Folder], None],
) -> None:
    """What the machine holds to be true is what a bad habit breaks, in the shortest story."""
    told(story)
    fresh(RECIPES[1])
    habit(monkeypatch)
    with pytest.raises((AssertionError, StorageError)):  # a builder that never ends gives up
        told(story)


def told(story: Callable[[Folder], None]) -> None:
    folder = machine()()
    try:
        folder.begin(recipe=RECIPES[0])
        story(folder)
    finally:
        folder.teardown()
