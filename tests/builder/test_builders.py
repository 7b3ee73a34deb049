"""Who is at work in a folder: the dead are swept away, the living are left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from ptmech.errors import BusyError, StorageError
from ptmech_builder.builders import AT_ONCE, SOON, at_work

KEYS = {"one": "a" * 64, "two": "b" * 64}

OTHER_BUILD = """
import sys, time
from pathlib import Path
from ptmech_builder.builders import at_work

with at_work(Path(sys.argv[1]), {"one": "a" * 64, "two": "b" * 64}) as builder:
    builder.temporary.mkdir(parents=True)
    (builder.temporary / "half").write_bytes(b"half a file")
    with builder.claim("one"):
        print("holding", flush=True)
        time.sleep(60)
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that builds in the same folder and holds unit ``one``."""
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER_BUILD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "holding\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def work_files(root: Path) -> list[str]:
    return sorted(p.relative_to(root / ".build").as_posix() for p in (root / ".build").rglob("*"))


def test_a_build_leaves_nothing_of_itself(tmp_path: Path) -> None:
    with at_work(tmp_path, KEYS) as builder:
        builder.temporary.mkdir(parents=True)
        (builder.temporary / "half").touch()
        with builder.claim("one") as held:
            assert held
    assert work_files(tmp_path) == ["builders", "claims", "lock", "tmp"]


def test_what_an_error_leaves_is_removed_too(tmp_path: Path) -> None:
    def die() -> None:
        with at_work(tmp_path, KEYS) as builder:
            builder.temporary.mkdir(parents=True)
            (builder.temporary / "half").touch()
            raise RuntimeError("died")

    with pytest.raises(RuntimeError, match="died"):
        die()
    assert work_files(tmp_path) == ["builders", "claims", "lock", "tmp"]


def test_the_next_build_sweeps_after_a_dead_one(
    tmp_path: Path, other: subprocess.Popen[str]
) -> None:
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    assert any(name.endswith("/half") for name in work_files(tmp_path))
    with at_work(tmp_path, KEYS) as builder:
        assert builder.swept == 1
        assert not any(name.endswith("/half") for name in work_files(tmp_path))
        with builder.claim("one", AT_ONCE) as held:
            assert held
    with at_work(tmp_path, KEYS) as builder:
        assert builder.swept == 0


def test_files_that_no_build_owns_are_swept(tmp_path: Path) -> None:
    loose = tmp_path / ".build" / "tmp" / "loose"
    loose.parent.mkdir(parents=True)
    loose.touch()
    with at_work(tmp_path, KEYS) as builder:
        assert builder.swept == 1
        assert not loose.exists()


def test_a_live_build_is_left_alone(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    with at_work(tmp_path, KEYS) as builder:
        assert builder.swept == 0
        with builder.claim("one", AT_ONCE) as held:
            assert not held
        with builder.claim("two", AT_ONCE) as held:
            assert held
    assert any(name.endswith("/half") for name in work_files(tmp_path))


def test_a_claim_is_had_when_its_holder_dies(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    with at_work(tmp_path, KEYS) as builder:
        os.kill(other.pid, signal.SIGKILL)
        started = time.monotonic()
        with builder.claim("one") as held:
            assert held
        assert time.monotonic() - started < 30


def test_two_recipes_at_once_are_refused(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    with (
        pytest.raises(BusyError, match="makes two in another way: wait for it, or build into"),
        at_work(tmp_path, {**KEYS, "two": "c" * 64}),
    ):
        pytest.fail("both were at work")
    with at_work(tmp_path, {"three": "c" * 64}):
        pass


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / ".build").write_text("in the way")
    with pytest.raises(StorageError, match="finished units are kept"), at_work(tmp_path, KEYS):
        pytest.fail("there was nowhere to work")


def test_a_live_build_whose_plan_cannot_be_read_is_waited_for(
    tmp_path: Path, other: subprocess.Popen[str]
) -> None:
    [plan] = (tmp_path / ".build" / "builders").glob("*.json")
    for damage in (lambda: plan.write_text('{"one": '), plan.unlink):
        damage()
        with pytest.raises(BusyError, match="its plan cannot be read"), at_work(tmp_path, KEYS):
            pytest.fail("both were at work")


def test_a_gate_that_stays_shut_is_named(tmp_path: Path) -> None:
    lines: list[str] = []
    shut, path = threading.Event(), tmp_path / ".build" / "lock"

    def hold() -> None:
        with FileLock(path):
            shut.set()
            time.sleep(SOON + 1)

    with at_work(tmp_path, KEYS):
        holder = threading.Thread(target=hold)
    holder.start()
    shut.wait()
    with at_work(tmp_path, KEYS, lines.append):
        pass
    holder.join()
    assert lines == [f"waiting for another build to let go of {path}"]
