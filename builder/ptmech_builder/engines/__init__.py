"""Where the units of a build run: here, in processes of this machine, or on a Ray cluster.

Every engine runs the same build on the same folder, several times at once. Claims divide the units,
receipts say what is finished, and so it makes no difference how many workers there are, which of
them die, or when: the bytes are those of a build in one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

from ptmech.errors import DataError, PrerequisiteError, unknown
from ptmech_builder.build import BuildReport, run
from ptmech_builder.plan import Plan
from ptmech_builder.progress import Progress
from ptmech_builder.shards import Shard

Engine = Literal["local", "processes", "ray"]
ENGINES: Final[Sequence[Engine]] = ("local", "processes", "ray")


def pick_engine(name: str) -> Engine:
    """Return the engine of a name.

    Raises
    ------
    UnknownNameError
        If there is none.
    PrerequisiteError
        If it needs Ray, which is not installed.
    """
    if name not in ENGINES:
        raise unknown("engine", name, ENGINES)
    if name == "ray" and find_spec("ray") is None:
        raise PrerequisiteError("--engine ray needs Ray: pip install 'ptmech[cluster]'")
    return name


def run_on(
    engine: Engine,
    plan: Plan,
    root: Path,
    progress: Progress,
    *,
    device: str = "auto",
    workers: int | None = None,
    shard: Shard | None = None,
    recheck: bool = False,
) -> BuildReport:
    """Build an artifact on an engine; see :func:`ptmech_builder.build.run`.

    Parameters
    ----------
    engine
        Where units run.
    plan, root, progress, shard, recheck
        As for a build in one process.
    device
        As it was asked for: engines choose the devices of their workers themselves.
    workers
        How many; by default one a GPU.

    Raises
    ------
    DataError
        If these do not go together.
    """
    if engine == "local":
        if workers is not None:
            raise DataError("--workers goes with --engine processes or --engine ray")
        return run(plan, root, progress, recheck=recheck, shard=shard)
    if shard is not None:
        raise DataError(
            f"--shard is for builds in one process each: leave it out, --engine {engine} divides "
            "the units itself"
        )
    if plan.device_map is not None:
        raise DataError(
            "--device-map spreads one model over all GPUs, which leaves none to other workers: "
            "use --engine local"
        )
    if workers is not None and workers < 1:
        raise DataError(f"--workers {workers} does nothing: at least one is needed")
    if engine == "processes":
        from ptmech_builder.engines.processes import run_in_processes

        return run_in_processes(
            plan, root, progress, device=device, workers=workers, recheck=recheck
        )
    from ptmech_builder.engines.on_ray import run_on_ray

    return run_on_ray(plan, root, progress, device=device, workers=workers, recheck=recheck)
