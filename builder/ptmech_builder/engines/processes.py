"""One process a GPU, or several on the CPU: the engine for one machine."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from threading import Thread
from typing import Final

import torch

from ptmech._output import discreet_output, told
from ptmech.cli import BUG, INTERRUPTED
from ptmech.errors import PtmechError
from ptmech_builder.build import BuildReport
from ptmech_builder.engines.workers import Following, Job
from ptmech_builder.plan import Plan
from ptmech_builder.progress import Progress
from ptmech_builder.shards import Shard

LOOK_SECONDS: Final = 1.0
"""How often the parent looks at what is finished."""
LEAVE_SECONDS: Final = 30.0
"""How long a worker that is told to end has for the unit it is writing."""


def run_in_processes(
    plan: Plan,
    root: Path,
    progress: Progress,
    *,
    device: str = "auto",
    workers: int | None = None,
    recheck: bool = False,
) -> BuildReport:
    """Build with several processes that share the units; see :func:`ptmech_builder.build.run`.

    What a worker leaves undone that dies is taken over by the others, in the end by this process.

    Parameters
    ----------
    device
        ``auto`` and ``cuda`` give each worker a GPU of its own, in turns if there are fewer; all
        workers share any other device.
    workers
        Number of processes; by default one a GPU, and one where there is none.

    Raises
    ------
    PtmechError
        As a build in one process; what was finished stays.
    """
    devices = pick_devices(device, workers)
    following = Following.begin(plan, root, progress, _described(devices))
    if not following.missing:
        return following.finish(plan, root, (), recheck=recheck)
    context = get_context("spawn")
    threads = max(1, torch.get_num_threads() // len(devices))
    team: list[_Worker] = []
    try:
        for number, own in enumerate(devices, 1):
            share = Shard(number, len(devices))
            job = Job(replace(plan, device=own), root, threads, share)
            hearing, telling = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(job, telling), name=str(share))
            process.start()
            telling.close()  # the worker's end is its own: this one must not keep it open
            team.append(_Worker(process, hearing))
        working = list(team)
        while working:
            wait([worker.process.sentinel for worker in working], timeout=LOOK_SECONDS)
            following.look()
            for worker in [worker for worker in working if not worker.process.is_alive()]:
                working.remove(worker)
                worker.hear(progress)
        errors = [worker.error for worker in team if worker.error is not None]
    finally:
        for worker in team:
            worker.dismiss()
    return following.finish(plan, root, errors, recheck=recheck)


def pick_devices(device: str, workers: int | None) -> list[str]:
    """Return the device of each worker."""
    gpus = torch.cuda.device_count() if device in {"auto", "cuda"} else 0
    if not gpus:
        return ["cpu" if device == "auto" else device] * (workers or 1)
    return [f"cuda:{number % gpus}" for number in range(workers or gpus)]


def _described(devices: Sequence[str]) -> str:
    if len(devices) == 1:
        return f"one process on {devices[0]} (--workers N for more)"
    return f"{len(devices)} processes on {', '.join(dict.fromkeys(devices))}"


class _Worker:
    """A process at work, as its parent sees it."""

    def __init__(self, process: SpawnProcess, hearing: Connection) -> None:
        self.process = process
        self.error: PtmechError | None = None
        self._hearing = hearing

    def hear(self, progress: Progress) -> None:
        """Take the last word of a worker that has ended."""
        try:
            self.error = self._hearing.recv()
        except EOFError:
            code = self.process.exitcode or 0
            how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
            progress.line(f"worker {self.process.name} {how}; others take over what it leaves")
        else:
            if self.error is not None:
                progress.line(f"worker {self.process.name} gave up: {self.error}")

    def dismiss(self) -> None:
        """End it if it is alive."""
        if self.process.is_alive():
            self.process.terminate()
            self.process.join(LEAVE_SECONDS)
            self.process.kill()
        self.process.join()
        self._hearing.close()


def _work(job: Job, telling: Connection) -> None:
    """Be a worker: build, and tell the parent what went wrong."""
    # The parent decides who ends: Ctrl-C reaches every process of a terminal.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    Thread(target=_end_with_the_parent, daemon=True).start()
    with discreet_output():
        try:
            telling.send(job.work())
        except KeyboardInterrupt:
            raise SystemExit(INTERRUPTED) from None
        except Exception as bug:
            sys.stderr.write(told(bug))
            raise SystemExit(BUG) from None


def _end_with_the_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
