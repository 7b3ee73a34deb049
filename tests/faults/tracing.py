"""System calls of a build: seen by strace, and made to fail or to kill by it.

A build computes in its first thread and writes in another. strace counts calls for each thread and
each name of a call. A point of attack is therefore the n-th call of a name in one of the two, taken
from the trace of an undisturbed build: builds are alike enough for it to be found again. Only that
thread is then attacked. Afterwards the trace tells what was really hit.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

WATCHED: Final = "%file,%desc"
"""Whatever has to do with files."""
CHANGING: Final = re.compile(
    "p?writev?(64)?|f(data)?sync|rename(at2?)?|(un)?link(at)?|rmdir|mkdir(at)?|f?truncate|fallocate"
    "|creat|close|flock|fcntl"
)
"""Calls that change what is on the disk, or who may; the rest only looks."""
_CALL = re.compile(r"^(?:(?P<thread>\d+) +)?(?P<name>\w+)\((?P<rest>.*)$")
_ATTACH_SECONDS = 10.0


@dataclass(frozen=True)
class Call:
    """One system call on an artifact folder.

    Attributes
    ----------
    name
        Of the call.
    nth
        How many calls of this name its thread has made by then, this one counted.
    line
        What strace wrote of it.
    aside
        Whether it is made by the thread that writes, not by the first one.
    """

    name: str
    nth: int
    line: str
    aside: bool

    @property
    def changes(self) -> bool:
        """Whether it may change the disk."""
        if self.name in {"openat", "open"}:
            return bool(re.search(r"O_(WRONLY|RDWR|CREAT|TRUNC)", self.line))
        return bool(CHANGING.fullmatch(self.name))


@cache
def why_no_tracing() -> str:
    """Say why processes cannot be traced here; empty if they can."""
    strace = shutil.which("strace")
    if strace is None:
        return "strace is not installed"
    with tempfile.TemporaryDirectory() as folder, subprocess.Popen(["sleep", "60"]) as sleeper:
        try:
            with traced(sleeper.pid, Path(folder) / "log"):
                return ""
        except RuntimeError as error:
            return str(error)
        finally:
            sleeper.kill()


@contextmanager
def traced(pid: int, log: Path, inject: str = "") -> Iterator[None]:
    """Trace a process and its threads until it ends or the block does.

    Parameters
    ----------
    pid
        A process that waits; if something is injected, the only thread that is traced.
    log
        File for the trace.
    inject
        What to inject, as strace's option has it: ``fsync:error=EIO:when=3``.
    """
    command = ["strace", "-q", "-y", "-s", "0", "-o", str(log), "-p", str(pid)]
    command += [] if inject else ["-f"]
    # What is injected into has to be traced; nothing else needs to be, then.
    command += ["-e", f"trace={inject.partition(':')[0] or WATCHED}"]
    command += ["-e", f"inject={inject}"] if inject else []
    strace = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + _ATTACH_SECONDS
        while not _is_traced(pid):
            if strace.poll() is not None or time.monotonic() > deadline:
                strace.kill()
                _, told = strace.communicate()
                raise RuntimeError(f"strace cannot attach: {told.strip()}")
            time.sleep(0.002)
        yield
    finally:
        strace.terminate()
        strace.communicate()


def _is_traced(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"TracerPid:\s*(\d+)", status)[1]) != 0  # type: ignore[index]


def thread_aside(pid: int) -> int:
    """Return the thread of a process that waits which is not its first one."""
    deadline = time.monotonic() + _ATTACH_SECONDS
    while len(threads := os.listdir(f"/proc/{pid}/task")) != 2:
        if time.monotonic() > deadline:
            raise RuntimeError(f"a build that waits has {len(threads)} threads, not two")
        time.sleep(0.002)
    return next(int(thread) for thread in threads if int(thread) != pid)


def calls_on(log: Path, root: Path, pid: int) -> list[Call]:
    """Return the calls of a process that have to do with a folder, in order."""
    seen: Counter[tuple[str, str]] = Counter()
    found: list[Call] = []
    for line in log.read_text(errors="replace").splitlines():
        match = _CALL.match(line)
        if match is None:
            continue
        thread, name, rest = match["thread"] or "", match["name"], match["rest"]
        seen[thread, name] += 1
        if os.fspath(root) in rest:
            found.append(Call(name, seen[thread, name], line, aside=thread != str(pid)))
    return found


def spread(calls: Sequence[Call], count: int, seed: int) -> list[Call]:
    """Return that many calls, evenly spread, the first one drawn by the seed."""
    if count >= len(calls):
        return list(calls)
    step = len(calls) / count
    start = (seed * 0.618033988749895) % 1 * step
    return [calls[int(start + step * index)] for index in range(count)]
