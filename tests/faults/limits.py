"""Running something hostile: in a process of its own, with little memory, little time, watched.

A fresh interpreter takes seconds to import what reads an artifact, so one parent imports it once,
computes nothing (a thread that has started does not survive a fork) and is forked for every call.
The parent's own command line is ``python -m tests.faults.limits MODULE``: it imports the module,
then answers requests, one JSON document a line.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

REPOSITORY = Path(__file__).resolve().parents[2]
MEBI = 2**20

ADDRESS_SPACE = 768 * MEBI
"""What a call may map beyond what its parent has mapped already."""
SECONDS = 10
"""What a call may compute; it is killed then."""
PATIENCE = 6
"""How many times as long a call may last, on a machine with other work."""


@dataclass(frozen=True)
class Outcome:
    """What became of one call.

    Attributes
    ----------
    ended
        ``returned``, ``raised``, ``exited`` (SystemExit), ``killed`` (by a signal, ours for the
        time or the system's) or ``vanished``.
    value
        What it returned, the message of what it raised, the code it exited with, or the signal.
    kinds
        Qualified names of the exception's class and of all its bases.
    where
        The exception's traceback.
    stdout, stderr
        What it wrote, whoever wrote it: Python or a library below it.
    memory
        Bytes of the largest resident set, less what there was when it began.
    seconds
        From fork to end.
    """

    ended: str
    value: Any
    kinds: tuple[str, ...]
    where: str
    stdout: str
    stderr: str
    memory: int
    seconds: float


class Watch:
    """A warmed-up parent, and what is asked of it.

    Parameters
    ----------
    module
        Whose functions can be called. Importing it imports everything the calls need.
    """

    def __init__(self, module: str) -> None:
        surroundings = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "POLARS_MAX_THREADS": "1",
            "MALLOC_ARENA_MAX": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self._parent = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.limits", module],
            cwd=REPOSITORY,
            env=surroundings,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.close()
        self._parent.wait(timeout=SECONDS)
        self._parent.stdout.close()

    def call(
        self,
        function: str,
        *arguments: Any,
        seconds: int = SECONDS,
        address_space: int = ADDRESS_SPACE,
    ) -> Outcome:
        """Call a function of the module with plain arguments, and say what became of it."""
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        request = {
            "function": function,
            "arguments": arguments,
            "seconds": seconds,
            "address_space": address_space,
        }
        self._parent.stdin.write(json.dumps(request) + "\n")
        self._parent.stdin.flush()
        answer = self._parent.stdout.readline()
        if not answer:
            raise RuntimeError("the warmed-up parent has ended")
        found = json.loads(answer)
        return Outcome(**{**found, "kinds": tuple(found["kinds"])})


def serve(module: str) -> None:
    """Answer requests from standard input until it is closed."""
    functions = vars(importlib.import_module(module))
    for line in sys.stdin:
        request = json.loads(line)
        sys.stdout.write(json.dumps(_watched(functions[request["function"]], request)) + "\n")
        sys.stdout.flush()


def _watched(function: Any, request: dict[str, Any]) -> dict[str, Any]:
    with (
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
        tempfile.TemporaryFile() as result,
    ):
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            _obey(function, request, [stream.fileno() for stream in (out, err, result)])
        status, peak = _awaited(child, started + PATIENCE * request["seconds"])
        seconds = time.monotonic() - started
        written = [_all_of(stream) for stream in (out, err, result)]
    before, _, answer = written[2].partition(b"\n")
    report: dict[str, Any] = {"ended": "vanished", "value": status, "kinds": (), "where": ""}
    if os.WIFSIGNALED(status):
        report |= {"ended": "killed", "value": signal.Signals(os.WTERMSIG(status)).name}
    elif answer:
        report |= json.loads(answer)
    return {
        **report,
        "stdout": written[0].decode(errors="backslashreplace"),
        "stderr": written[1].decode(errors="backslashreplace"),
        "memory": peak - int(before),
        "seconds": seconds,
    }


def _obey(function: Any, request: dict[str, Any], streams: list[int]) -> None:
    """In the child: make the call, write what became of it, and never return."""
    out, err, result = streams
    os.write(result, b"%d\n" % _resident())  # of the child: a fork does not map all of its parent
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(os.open(os.devnull, os.O_RDONLY)),
        os.fdopen(1, "w", encoding="utf-8"),
        os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace"),
    )
    ceiling = _mapped() + request["address_space"]
    resource.setrlimit(resource.RLIMIT_AS, (ceiling, ceiling))
    resource.setrlimit(resource.RLIMIT_CPU, (request["seconds"], request["seconds"]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("always")  # a warning is a line on standard error, and counts as one
    report = _made(function, request["arguments"])
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os.write(result, json.dumps(report).encode())
    os._exit(0)


def _made(function: Any, arguments: list[Any]) -> dict[str, Any]:
    try:
        value = function(*arguments)
    except SystemExit as end:
        return {"ended": "exited", "value": end.code or 0}
    except BaseException as error:  # a panic of polars is no Exception
        kinds = [f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__]
        where = "".join(traceback.format_exception(error, limit=-12))[-6000:]
        return {"ended": "raised", "value": str(error), "kinds": kinds, "where": where}
    return {"ended": "returned", "value": value}


def _awaited(child: int, deadline: float) -> tuple[int, int]:
    """Return how the child ended, and its peak of memory in bytes; end it at the deadline."""
    while True:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        if ended:
            return status, usage.ru_maxrss * 1024
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            _, status, usage = os.wait4(child, 0)
            return status, usage.ru_maxrss * 1024
        time.sleep(0.002)


def _all_of(stream: Any) -> bytes:
    stream.seek(0)
    return stream.read(4 * MEBI)


def _resident() -> int:
    return _pages(1)


def _mapped() -> int:
    return _pages(0)


def _pages(field: int) -> int:
    counts = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(counts[field]) * resource.getpagesize()


if __name__ == "__main__":
    serve(sys.argv[1])
