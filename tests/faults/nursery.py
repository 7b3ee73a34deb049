"""Builds by the hundred: a process that has imported everything once and forks a child a build.

``python -m tests.faults.nursery FOLDER`` writes the tiny family and its cards into the folder, then
takes requests, one line of JSON each, and answers each with one line. A child waits after its birth
until it is released, so that it can be traced or joined by others first. Neither polars nor
anything else that keeps threads is used before the fork.

:class:`Nursery` is the other end; it needs no torch.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Final, TypedDict

PATIENCE: Final = 100
"""Seconds after which a child is ended by the alarm: none may take so long."""
BARREN: Final = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
"""No threads before the fork."""
NEEDED: Final = (
    "peft",
    "ptmech.cli",
    "ptmech.live.effects.candidates",
    "ptmech.live.effects.refusal",
    "ptmech.live.generation",
    "ptmech.live.weight_statistics",
    "ptmech_builder.commands",
    "ptmech_builder.engines",
)
"""Modules that a build imports on its way."""


@dataclass(frozen=True)
class Job:
    """A build to be forked.

    Attributes
    ----------
    card
        Name of one of the nursery's cards.
    root
        Folder of the artifact.
    options
        Of the command line, such as ``("--limit", "4")``.
    command
        Whether to go through the command line, or to call the builder.
    writer
        Name of a broken writer of :mod:`tests.faults.broken`; empty for the real one.
    finished
        A finished artifact of the same card, for writers that look into the future.
    open_files
        Limit on open files; 0 for none.
    """

    card: str
    root: str
    options: tuple[str, ...] = ()
    command: bool = False
    writer: str = ""
    finished: str = ""
    open_files: int = 0


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes
    ----------
    code
        Its exit code; negative for the number of the signal that ended it.
    done, reused
        Numbers of units of a build that was called and went well.
    error
        Names of the class of the error of such a call, and of its bases.
    told
        What it wrote on standard error; for a call the message of its error.
    """

    code: int
    done: int = 0
    reused: int = 0
    error: tuple[str, ...] = ()
    told: str = ""

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL


@dataclass
class Child:
    """A build that was born and waits."""

    nursery: Nursery
    pid: int

    def release(self) -> Child:
        """Let it begin."""
        self.nursery.ask("release", pid=self.pid)
        return self

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> Ended:
        """Wait for its end."""
        answer = self.nursery.ask("wait", pid=self.pid)
        return Ended(**{**answer, "error": tuple(answer.get("error", ()))})


class Nursery:
    """The client of a nursery.

    Parameters
    ----------
    folder
        Folder for its models and cards, and for what children say.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        here = Path(__file__).parents[2]
        self._errors = (folder / "nursery.txt").open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.nursery", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=here,
            env={**os.environ, **BARREN},
        )
        self.folder = folder
        assert self._hear() == {"ready": True}

    def ask(self, what: str, **about: Any) -> dict[str, Any]:
        """Send a request and return the answer."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"what": what, **about}) + "\n")
        self._process.stdin.flush()
        return self._hear()

    def fork(self, job: Job) -> Child:
        """Let a child be born; it waits."""
        return Child(self, self.ask("fork", job=asdict(job))["pid"])

    def build(self, card: str, root: Path, **about: Any) -> Ended:
        """Build from beginning to end."""
        return self.fork(Job(card, str(root), **about)).release().wait()

    def close(self) -> None:
        self._process.communicate(timeout=20)
        self._errors.close()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError((self.folder / "nursery.txt").read_text())
        return json.loads(line)


# What follows runs in the nursery -----------------------------------------------------------------


class _Waiting(TypedDict):
    gate: int
    outcome: Path
    errors: Path


@dataclass
class _Home:
    folder: Path
    waiting: dict[int, _Waiting] = field(default_factory=dict)


def _furnish(folder: Path) -> None:
    """Import whatever a build needs, warm up what is slow at first, write models and cards."""
    import torch
    from tests import tiny

    from ptmech.live.models.loading import load_shape
    from ptmech.model_sources import FolderModel

    for module in NEEDED:
        import_module(module)
    model = tiny.save_model(folder / "model")
    load_shape(FolderModel(path=model))
    torch.arange(2, device="meta")
    for value in ("", 0, 0.0, False, None, (), [], {}):
        isinstance(value, Mapping)  # asks every class there is, the first time
    family = tiny.Family(model, tiny.save_adapter(folder / "adapter", model))
    recipe = family.recipe(folder / "cards")
    plain = {**recipe, "datasets": recipe["datasets"][:1], "truth": {"layer": 1}}
    del plain["refusal"]
    tiny.write_card(folder / "cards", plain, "plain")
    tiny.write_card(folder / "cards", recipe, "whole")
    tiny.write_card(folder / "cards", tiny.shortest(recipe), "shortest")


def _serve(home: _Home) -> None:
    answer: dict[str, Any] = {"ready": True}
    while True:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
        line = sys.stdin.readline()
        if not line:
            break
        request = json.loads(line)
        match request["what"]:
            case "fork":
                answer = {"pid": _fork(home, Job(**request["job"]))}
            case "release":
                os.write(home.waiting[request["pid"]]["gate"], b"!")
                answer = {}
            case _:
                answer = _wait(home, request["pid"])
    for pid in home.waiting:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _fork(home: _Home, job: Job) -> int:
    reading, writing = os.pipe()
    number = len(list(home.folder.glob("outcomes/*.json")))
    outcome = home.folder / "outcomes" / f"{number}.json"
    outcome.parent.mkdir(exist_ok=True)
    outcome.touch()
    errors = outcome.with_suffix(".txt")
    pid = os.fork()
    if pid:
        os.close(reading)
        home.waiting[pid] = {"gate": writing, "outcome": outcome, "errors": errors}
        return pid
    os.close(writing)
    code = 70
    try:
        code = _live(home, job, reading, outcome, errors)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _live(home: _Home, job: Job, gate: int, outcome: Path, errors: Path) -> int:
    """Be the child: wait, build, tell."""
    _begin_the_thread_that_writes()
    nowhere = os.open(os.devnull, os.O_RDWR)
    told = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    os.dup2(told, 2)
    result = outcome.open("w")
    signal.alarm(PATIENCE)
    with os.fdopen(gate, "rb") as gate_stream:
        gate_stream.read(1)
    if job.open_files:
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + job.open_files,) * 2)
    if job.writer:
        from tests.faults.broken import break_writer

        break_writer(job.writer, Path(job.finished))
    card = home.folder / "cards" / f"{job.card}.toml"
    if job.command:
        return _command(card, job)
    json.dump(_call(card, job), result)
    result.close()
    return 0


def _begin_the_thread_that_writes() -> None:
    """Have it there, asleep, before the build: so it can be traced from its first call on."""
    from ptmech_builder import making

    thread = ThreadPoolExecutor(1)
    thread.submit(os.getpid).result()
    making.ThreadPoolExecutor = lambda *_args, **_options: thread  # type: ignore[assignment]


def _command(card: Path, job: Job) -> int:
    from ptmech.cli import create_app

    arguments = ["build", str(card), "--out", job.root, "--device", "cpu", *job.options]
    try:
        create_app()(arguments, prog_name="ptmech")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    return 0


def _call(card: Path, job: Job) -> Mapping[str, Any]:
    from tests.tiny import plan_of

    from ptmech.errors import PtmechError
    from ptmech_builder.build import run
    from ptmech_builder.progress import Progress

    names = dict(zip(job.options[::2], job.options[1::2], strict=True))
    selection: dict[str, Any] = {}
    if "--dtype" in names:
        selection["dtype"] = names["--dtype"]
    if "--limit" in names:
        selection["limit"] = int(names["--limit"])
    try:
        report = run(plan_of(card, **selection), Path(job.root), Progress(quiet=True))
    except PtmechError as error:
        return {"error": [cls.__name__ for cls in type(error).__mro__], "told": str(error)}
    return {"done": report.done, "reused": report.reused}


def _wait(home: _Home, pid: int) -> Mapping[str, Any]:
    """Reap a child and return what it told, as :class:`Ended` has it."""
    waiting = home.waiting.pop(pid)
    _, status = os.waitpid(pid, 0)
    os.close(waiting["gate"])
    ended = Ended(os.waitstatus_to_exitcode(status), told=waiting["errors"].read_text())
    outcome = waiting["outcome"].read_text()
    return asdict(replace(ended, **json.loads(outcome)) if outcome else ended)


if __name__ == "__main__":
    place = Path(sys.argv[1])
    _furnish(place)
    _serve(_Home(place))
