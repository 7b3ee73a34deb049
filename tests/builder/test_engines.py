"""Engines: several workers on one folder, some of them killed, and the bytes of a build in one."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tests.faults.pretend import PretendBlock, Recipe, pretend_build, pretend_plan
from tests.tiny import digests, shortest, tiny_family, write_card
from typer.testing import CliRunner
from typing_extensions import override

from ptmech.cli import create_app
from ptmech.errors import DataError, ParityError, PrerequisiteError
from ptmech_builder import engines
from ptmech_builder.engines import processes, run_on
from ptmech_builder.plan import Plan
from ptmech_builder.progress import Progress
from ptmech_builder.units import Made
from ptmech_builder.workbench import Workbench

RECIPE = Recipe(rows=9)
HERE = Path(__file__).parents[2]
PATIENCE = 120


class Listening(Progress):
    """Keeps its lines."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    @override
    def line(self, text: str) -> None:
        self.lines.append(text)


@dataclass(frozen=True, kw_only=True)
class Fateful(PretendBlock):
    """A block that does something to its worker, where the worker is none of the test's own."""

    fate: str
    folder: Path
    parent: int

    @override
    def make(self, bench: Workbench) -> Made:
        if os.getpid() != self.parent:
            mark = self.folder / f"{self.name}.begun"
            first = not mark.exists()
            mark.touch()
            match self.fate:
                case "killed once" if first:
                    os.kill(os.getpid(), signal.SIGKILL)
                case "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "refused":
                    raise ParityError("made up")
                case "slow":
                    time.sleep(PATIENCE)
                case _:
                    pass
        return super().make(bench)


def fateful_plan(fate: str, folder: Path, *, at: int = 4) -> Plan:
    """The plan of RECIPE, one of whose blocks brings a fate."""
    plan = pretend_plan(RECIPE)
    units = list(plan.units)
    block = units[at]
    assert isinstance(block, PretendBlock)
    own = {name: getattr(block, name) for name in block.__dataclass_fields__}
    units[at] = Fateful(**own, fate=fate, folder=folder, parent=os.getpid())
    return replace(plan, units=tuple(units))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digest of every file of a build in one piece."""
    root = tmp_path_factory.mktemp("whole")
    pretend_build(RECIPE, root)
    return digests(root)


# Processes -------------------------------------------------------------------------------------


def test_two_processes_make_what_one_makes(whole: dict[str, str], tmp_path: Path) -> None:
    progress = Listening()
    plan = pretend_plan(RECIPE)
    report = run_on("processes", plan, tmp_path, progress, workers=2)
    assert digests(tmp_path) == whole
    assert (report.done, report.reused) == (len(plan.units), 0)
    assert report.tokens == sum(unit.tokens for unit in plan.units)
    assert "by 2 processes on cpu" in progress.lines[0]
    finished = {line.partition(":")[0] for line in progress.lines if ": finished (" in line}
    assert finished == {unit.name for unit in plan.units}
    again = run_on("processes", plan, tmp_path, progress, workers=2)
    assert (again.done, again.reused) == (0, len(plan.units))


@pytest.mark.parametrize(("fate", "workers"), [("killed once", 2), ("killed", 1)])
def test_a_worker_that_is_killed_is_replaced(
    whole: dict[str, str], tmp_path: Path, fate: str, workers: int
) -> None:
    """By another worker, or in the end by the parent."""
    progress = Listening()
    plan = fateful_plan(fate, tmp_path)
    run_on("processes", plan, tmp_path / "artifact", progress, workers=workers)
    assert digests(tmp_path / "artifact") == whole
    died = [line for line in progress.lines if "was ended by signal 9" in line]
    assert len(died) == (1 if fate == "killed once" else workers)
    assert any("made here" in line for line in progress.lines) == (fate == "killed")


def test_an_error_of_a_worker_is_raised_as_it_is(tmp_path: Path) -> None:
    progress = Listening()
    plan = fateful_plan("refused", tmp_path)
    with pytest.raises(ParityError, match=r"^made up$"):
        run_on("processes", plan, tmp_path / "artifact", progress, workers=1)
    assert "worker 1/1 gave up: made up" in progress.lines
    assert not (tmp_path / "artifact" / "manifest.json").exists()


SCRIPT = """
import sys
from pathlib import Path
from ptmech_builder.engines import run_on
from ptmech_builder.progress import Progress
from tests.builder.test_engines import fateful_plan

if __name__ == "__main__":
    engine, fate, folder, workers = sys.argv[1:]
    plan = fateful_plan(fate, Path(folder))
    root = Path(folder) / "artifact"
    run_on(engine, plan, root, Progress(), device="cpu", workers=int(workers))
"""


def started(engine: str, fate: str, folder: Path, workers: int) -> subprocess.Popen[str]:
    """A build in a process of its own, as a user starts it."""
    (folder / "script.py").write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, str(folder / "script.py"), engine, fate, str(folder), str(workers)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(HERE)},
        cwd=HERE,
        start_new_session=True,
    )


def members(group: int) -> list[int]:
    """The processes of a session that are alive."""
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == group and fields[0] != "Z":
            found.append(int(entry.parent.name))
    return found


def wait_until(true: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.05)


def interrupted(engine: str, folder: Path) -> str:
    """Interrupt a build while a worker makes a unit, as Ctrl-C does; return what was said."""
    build = started(engine, "slow", folder, 1)
    try:
        wait_until(lambda: list(folder.glob("*.begun")) or build.poll() is not None)
        assert build.poll() is None, build.communicate()
        os.killpg(build.pid, signal.SIGINT)
        _, said = build.communicate(timeout=PATIENCE)
        wait_until(lambda: not members(build.pid))
    finally:
        if build.poll() is None:
            os.killpg(build.pid, signal.SIGKILL)
            build.communicate()
    assert build.returncode == -signal.SIGINT, said
    return said


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_an_interrupt_ends_the_workers(whole: dict[str, str], tmp_path: Path) -> None:
    said = interrupted("processes", tmp_path)
    assert said.count("Traceback") == 1, said  # of the script, not of its workers
    root = tmp_path / "artifact"
    assert not (root / "manifest.json").exists()
    assert not list((root / ".build" / "builders").iterdir())
    assert pretend_build(RECIPE, root).reused > 0
    assert digests(root) == whole


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_workers_do_not_outlive_their_parent(tmp_path: Path) -> None:
    build = started("processes", "slow", tmp_path, 1)
    wait_until(lambda: list(tmp_path.glob("*.begun")) or build.poll() is not None)
    build.kill()
    build.communicate()
    wait_until(lambda: not members(build.pid))


@pytest.mark.parametrize(
    ("device", "workers", "gpus", "devices"),
    [
        ("auto", None, 0, ["cpu"]),
        ("auto", 3, 0, ["cpu"] * 3),
        ("auto", None, 2, ["cuda:0", "cuda:1"]),
        ("cuda", 3, 2, ["cuda:0", "cuda:1", "cuda:0"]),
        ("cuda:1", 2, 2, ["cuda:1", "cuda:1"]),
        ("cpu", None, 2, ["cpu"]),
    ],
)
def test_each_worker_has_a_device(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    workers: int | None,
    gpus: int,
    devices: list[str],
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    assert processes.pick_devices(device, workers) == devices


def test_the_command_builds_a_real_model_in_processes(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    family = tiny_family(tmp_path_factory)
    card = write_card(tmp_path / "card", shortest(family.recipe(tmp_path / "card")))
    for name, options in (("plain", ()), ("shared", ("--engine", "processes", "--workers", "2"))):
        words = ["build", str(card), "--out", str(tmp_path / name), "--device", "cpu", *options]
        result = CliRunner().invoke(create_app(), words)
        assert result.exit_code == 0, result.output
    assert "by 2 processes on cpu" in result.stderr
    assert digests(tmp_path / "shared") == digests(tmp_path / "plain")


# Ray -------------------------------------------------------------------------------------------


def test_without_ray_the_way_to_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(engines, "find_spec", lambda name: None if name == "ray" else find(name))
    with pytest.raises(PrerequisiteError, match=r"pip install 'ptmech\[cluster\]'"):
        engines.pick_engine("ray")


def test_what_does_not_go_together(tmp_path: Path) -> None:
    plan = pretend_plan(RECIPE)
    with pytest.raises(DataError, match="at least one"):
        run_on("processes", plan, tmp_path, Progress(quiet=True), workers=0)


def test_a_ray_worker_may_be_killed_in_a_unit(whole: dict[str, str], tmp_path: Path) -> None:
    build = started("ray", "killed once", tmp_path, 2)
    _, said = build.communicate(timeout=PATIENCE)
    assert build.returncode == 0, said
    assert list(tmp_path.glob("*.begun")), "the worker never came to the unit"
    assert digests(tmp_path / "artifact") == whole
    assert "by 2 Ray actors with" in said
    assert "made here" not in said
    assert not members(build.pid)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_an_interrupt_ends_ray(whole: dict[str, str], tmp_path: Path) -> None:
    interrupted("ray", tmp_path)
    root = tmp_path / "artifact"
    assert not (root / "manifest.json").exists()
    assert pretend_build(RECIPE, root).reused > 0
    assert digests(root) == whole
