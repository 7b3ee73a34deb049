"""Who is at work in a folder: live builds, what dead ones left behind, and whose unit is whose.

A build shows that it lives by a lock on ``.build/builders/<id>.lock``, which the operating system
takes back when it dies, however it dies. Whatever belongs to a build whose lock is free is swept
away by the next one. Builds of the same units share them: one makes a unit while it holds that
unit's claim, the others go on to the next. Comings and goings take place one at a time, behind
``.build/lock``.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from uuid import uuid4

from filelock import FileLock, Timeout

from ptmech._json import parse_json
from ptmech.errors import BusyError, FormatError
from ptmech.manifest import canonical_json
from ptmech_builder.folders import make_lasting
from ptmech_builder.storage_errors import storage_errors
from ptmech_builder.writer import WORK

AT_ONCE: Final = 0.0
SOON: Final = 2.0
PATIENTLY: Final = -1.0
"""How long to wait for a lock, in seconds: the last until its holder is done or dead."""

GATE: Final = "lock"

Say = Callable[[str], None]
"""Takes a line for whoever watches."""


class Builder:
    """A build at work in a folder, from :func:`at_work`.

    Attributes
    ----------
    temporary
        Folder for its unfinished files.
    swept
        Unfinished files of dead builds that were removed when it came.
    """

    def __init__(self, work: Path, name: str, swept: int, say: Say) -> None:
        self.temporary = work / "tmp" / name
        self.swept = swept
        self._claims = work / "claims"
        self._say = say

    @contextmanager
    def claim(self, unit: str, seconds: float = PATIENTLY) -> Generator[bool]:
        """Hold a unit, so that no other build of this folder makes it meanwhile.

        Parameters
        ----------
        unit
            Its name.
        seconds
            How long to wait for another build that holds it; whoever waits for ever says so.

        Yields
        ------
        bool
            Whether it is held.
        """
        lock = FileLock(self._claims / f"{unit}.lock")
        with storage_errors(Path(lock.lock_file)):
            held = _acquired(lock, SOON if seconds == PATIENTLY else seconds)
            if not held and seconds == PATIENTLY:
                self._say(f"{unit}: another build is making it, waiting")
                held = _acquired(lock, PATIENTLY)
        try:
            yield held
        finally:
            if held:
                lock.release()


@contextmanager
def at_work(
    root: Path, plan: Mapping[str, str], say: Say = lambda _line: None
) -> Generator[Builder]:
    """Announce a build for as long as it lasts, and sweep up after dead ones.

    Parameters
    ----------
    root
        Folder of the artifact; made if it is missing.
    plan
        How each unit of the build is made, by name: equal texts, equal files.
    say
        Takes a line for whoever has to wait.

    Raises
    ------
    BusyError
        If a live build makes one of the units in another way.
    StorageError
        If the disk refuses.
    """
    work = root / WORK
    name = uuid4().hex
    builders = work / "builders"
    presence = FileLock(builders / f"{name}.lock")
    with storage_errors(work):
        make_lasting(root)
        for folder in (builders, work / "claims"):
            folder.mkdir(parents=True, exist_ok=True)
        with _gate(work, say):
            live, swept = _sweep(work)
            _require_same_plans(root, live, plan)
            # The plan first: a live build without one would be a riddle to the others.
            (builders / f"{name}.json").write_bytes(canonical_json(plan))
            presence.acquire()
    try:
        yield Builder(work, name, swept, say)
    finally:
        presence.release()
        # The disk may be what ended the build: what cannot be tidied now, the next build sweeps.
        with suppress(OSError):
            gate = FileLock(work / GATE)
            if _acquired(gate, SOON):
                _sweep(work)
                gate.release()


@contextmanager
def _gate(work: Path, say: Say) -> Generator[None]:
    gate = FileLock(work / GATE)
    if not _acquired(gate, SOON):
        say(f"waiting for another build to let go of {work / GATE}")
        _acquired(gate, PATIENTLY)
    try:
        yield
    finally:
        gate.release()


def _acquired(lock: FileLock, seconds: float) -> bool:
    try:
        with warnings.catch_warnings():  # of a disk without locks, where files stand in for them
            warnings.simplefilter("ignore", UserWarning)
            lock.acquire(timeout=seconds)
    except Timeout:
        return False
    return True


def _sweep(work: Path) -> tuple[list[Path], int]:
    """Remove what dead builds left; return the plans of live ones, and how many files went."""
    builders = work / "builders"
    live = [path.stem for path in builders.glob("*.lock") if _is_held(path)]
    for left in builders.iterdir():
        if left.stem not in live:
            left.unlink()
    swept = 0
    for left in sorted((work / "tmp").glob("*")):
        if left.name in live:
            continue
        if left.is_dir():
            swept += len(list(left.iterdir()))
            shutil.rmtree(left)
        else:
            swept += 1
            left.unlink()
    if not live:
        for claim in (work / "claims").iterdir():
            claim.unlink()
    return [builders / f"{name}.json" for name in live], swept


def _is_held(path: Path) -> bool:
    lock = FileLock(path)
    free = _acquired(lock, AT_ONCE)
    lock.release()
    return not free


def _require_same_plans(root: Path, live: list[Path], plan: Mapping[str, str]) -> None:
    for file in live:
        try:
            other = parse_json(file.read_bytes(), file.name)
        except (FormatError, FileNotFoundError) as error:
            raise BusyError(
                f"another build is at work in {root} and its plan cannot be read: wait for it, or "
                "build into another folder with --out"
            ) from error
        for unit, how in plan.items():
            if other.get(unit, how) != how:
                raise BusyError(
                    f"another build is at work in {root} and makes {unit} in another way: "
                    "wait for it, or build into another folder with --out"
                )
