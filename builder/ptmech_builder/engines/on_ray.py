"""Units on a Ray cluster: an actor a GPU, which keeps its models and comes back when it is lost."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import ray  # pyright: ignore[reportMissingImports] - an extra: ptmech[cluster]
from ray.exceptions import RayError  # pyright: ignore[reportMissingImports]

from ptmech.errors import PtmechError
from ptmech_builder.build import BuildReport
from ptmech_builder.engines.workers import Following, Job
from ptmech_builder.plan import Plan
from ptmech_builder.progress import Progress
from ptmech_builder.shards import Shard

LOOK_SECONDS: Final = 1.0
"""How often the driver looks at what is finished."""


def run_on_ray(
    plan: Plan,
    root: Path,
    progress: Progress,
    *,
    device: str = "auto",
    workers: int | None = None,
    recheck: bool = False,
) -> BuildReport:
    """Build on a Ray cluster; see :func:`ptmech_builder.build.run`.

    The cluster is the one that ``RAY_ADDRESS`` names, or one on this machine for as long as the
    build takes. The folder, and whatever the card takes from folders, must be in the same place on
    all machines, on a file system whose locks hold between them.

    Parameters
    ----------
    device
        ``cpu`` leaves GPUs alone; else each worker has one if the cluster has any.
    workers
        Number of actors; by default one a GPU, or one a machine where there is none.

    Raises
    ------
    PtmechError
        As a build in one process; what was finished stays.
    """
    root = root.absolute()
    with _Cluster():
        slots = _slots(device, workers)
        following = Following.begin(plan, root, progress, slots.described)
        errors: list[PtmechError] = []
        if following.missing:
            errors = _employ(slots, replace(plan, device=slots.device), root, following, progress)
    return following.finish(plan, root, errors, recheck=recheck)


@dataclass(frozen=True)
class _Slots:
    """The places of a cluster that workers take."""

    count: int
    gpus: int
    """Of each."""
    cpus: float
    """Of each."""

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"

    @property
    def described(self) -> str:
        each = "a GPU each" if self.gpus else f"{self.cpus:g} CPUs each"
        return f"{self.count} Ray actors with {each}"


class _Worker:
    """What an actor runs."""

    def work(self, plan: Plan, root: Path, threads: int, share: Shard) -> PtmechError | None:
        return Job(plan, root, threads, share).work()


class _Cluster:
    """A connection to the cluster, for as long as the context lasts."""

    def __enter__(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        joined = bool(os.environ.get("RAY_ADDRESS"))
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if joined:
            ray.init(address="auto", **quiet)
        else:
            ray.init(address="local", include_dashboard=False, **quiet)

    def __exit__(self, *_: object) -> None:
        ray.shutdown()


def _slots(device: str, workers: int | None) -> _Slots:
    resources = ray.cluster_resources()
    gpus = 0 if device == "cpu" else int(resources.get("GPU", 0))
    if gpus:
        # GPUs that are asked for twice would never come: workers beyond them wait in vain.
        return _Slots(min(workers or gpus, gpus), 1, 1)
    count = workers or sum(node["Alive"] for node in ray.nodes())
    cpus = resources.get("CPU", 1) / count
    return _Slots(count, 0, int(cpus) if cpus >= 1 else cpus)


def _employ(
    slots: _Slots, plan: Plan, root: Path, following: Following, progress: Progress
) -> list[PtmechError]:
    """Let actors share the units until nothing is missing, or nobody works any more."""
    actor: Any = ray.remote(_Worker).options(
        num_gpus=slots.gpus, num_cpus=slots.cpus, max_restarts=-1, max_task_retries=-1
    )
    plan_there: Any = ray.put(plan)
    team: list[Any] = []
    errors: list[PtmechError] = []
    try:
        working: dict[Any, str] = {}
        for number in range(1, slots.count + 1):
            share = Shard(number, slots.count)
            team.append(actor.remote())
            job = team[-1].work.remote(plan_there, root, int(slots.cpus) or 1, share)
            working[job] = str(share)
        # An actor that was lost waits for a new place: for ever, if there is none. Its units
        # have then been made by others.
        while working and following.missing:
            ended, _ = ray.wait(list(working), timeout=LOOK_SECONDS)
            following.look()
            errors += _heard({working.pop(job): job for job in ended}, progress)
    finally:
        for worker in team:
            ray.kill(worker)
    return errors


def _heard(ended: dict[str, Any], progress: Progress) -> Sequence[PtmechError]:
    """Take the last word of workers that have ended."""
    errors: list[PtmechError] = []
    for name, job in ended.items():
        try:
            error: PtmechError | None = ray.get(job)
        except RayError as lost:  # its text tells of machines: the name of its kind is enough
            kind = type(getattr(lost, "cause", None) or lost).__name__
            progress.line(f"worker {name} ended with {kind}; others take over what it leaves")
        else:
            if error is not None:
                progress.line(f"worker {name} gave up: {error}")
                errors.append(error)
    return errors
