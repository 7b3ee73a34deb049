"""Runs many ``ptmech`` command lines in one process, as a user with a telling name and secrets.

``python -m tests.faults.canary_commands STEPS OUT``: `STEPS` is a JSON list of steps. Each is a
command line and what goes wrong meanwhile, and leaves ``OUT/NAME.stdout`` and ``OUT/NAME.stderr``
as the file descriptors saw them; ``OUT/codes.json`` tells the exit codes.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

from tests.faults.canaries import CLOUD, HOST, KEY, PASSWORD, STORED, TOKEN


@contextmanager
def to_files(out: Path, name: str) -> Generator[None]:
    """Lead the two standard file descriptors into files."""
    saved = {number: os.dup(number) for number in (1, 2)}
    try:
        for number, stream in ((1, "stdout"), (2, "stderr")):
            file = os.open(out / f"{name}.{stream}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
            os.dup2(file, number)
            os.close(file)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, file in saved.items():
            os.dup2(file, number)
            os.close(file)


@contextmanager
def largest_file(size: int) -> Generator[None]:
    """Let no file grow beyond a size, as a full disk would not."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def secrets_of_a_library() -> str:
    """What a careless library might say."""
    return (
        f"GET https://reader:{PASSWORD}@example.org/x?X-Amz-Signature=99&token={STORED} with "
        f"{{'authorization': 'Bearer {TOKEN}', 'x-aws': '{CLOUD}'}} from {Path.home()}/.netrc by "
        f"{os.environ['USER']}@{HOST}, //{HOST}:8080/x and /scratch/{os.environ['USER']}/x\n"
        f"-----BEGIN OPENSSH PRIVATE KEY-----\n{KEY}\n-----END OPENSSH PRIVATE KEY-----"
    )


def bug(*_: Any, **__: Any) -> None:
    """An error that nobody meant to raise, from another one, below one's home."""
    file = Path.home() / "plugins" / "careless.py"
    source = "def careless(secret):\n    raise KeyError(secret)\n"
    names: dict[str, Any] = {}
    exec(compile(source, str(file), "exec"), names)
    try:
        names["careless"](secrets_of_a_library())
    except KeyError as careless:
        raise RuntimeError(secrets_of_a_library()) from careless


def noise(*_: Any, **__: Any) -> None:
    """Warnings, log lines and prints of libraries, then an error of ours."""
    from ptmech.errors import DataError

    # `HF_HUB_VERBOSITY` may silence the client's own logger, but not others.
    logger = logging.getLogger("careless")
    handler = logging.StreamHandler()
    logger.addHandler(handler)
    logger.warning("%s", secrets_of_a_library().replace("\n", " "))
    logger.removeHandler(handler)
    warnings.warn(secrets_of_a_library().replace("\n", " "), UserWarning, stacklevel=2)
    sys.stdout.write(secrets_of_a_library().splitlines()[0] + "\n")
    sys.stderr.write(f"cut in {TOKEN[:9]}")
    sys.stderr.write(f"{TOKEN[9:]} two\n")
    raise DataError(secrets_of_a_library())


def interrupt(*_: Any, **__: Any) -> None:
    signal.raise_signal(signal.SIGINT)
    time.sleep(10)


INSTEAD_OF_LOADING = {"bug": bug, "noise": noise, "interrupt": interrupt}


@contextmanager
def powerless() -> Generator[None]:
    """Be nobody for a while, where one is root; others lack the rights to start with."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def run(step: dict[str, Any], out: Path) -> int | str | None:
    """Run one command line; return what it exits with."""
    from ptmech.cli import main

    # A limit on the size of files is an error of the write, not the end of the process.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with ExitStack() as stack:
        stack.enter_context(mock.patch("sys.argv", ["ptmech", *step["command"]]))
        stack.enter_context(mock.patch.dict(os.environ, step.get("environment", {})))
        if action := step.get("instead"):
            stack.enter_context(mock.patch("ptmech.loading.load", INSTEAD_OF_LOADING[action]))
        stack.enter_context(to_files(out, step["name"]))
        if step.get("unguarded"):
            stack.enter_context(mock.patch("ptmech.cli.application.discreet_output", nullcontext))
        if step.get("powerless"):
            stack.enter_context(powerless())
        if size := step.get("largest_file"):
            stack.enter_context(largest_file(size))
        try:
            main()
        except SystemExit as left:
            return left.code
        return None


def damaged_copy(original: Path, copy: Path, file: Path) -> None:
    """Copy an artifact and change the middle byte of one of its files."""
    shutil.copytree(original, copy)
    data = bytearray((copy / file).read_bytes())
    data[len(data) // 2] ^= 128
    (copy / file).write_bytes(data)


def main_of_all(steps: Path, out: Path) -> None:
    """Furnish the home if it is bare, then run the steps in order."""
    from tests.hub.client import Hasty

    if not (Path.home() / "cards").exists():
        from tests.faults.canary_home import furnish  # needs torch

        furnish(Path.home())
    for client in ("huggingface_hub.utils._http", "huggingface_hub.file_download"):
        mock.patch(f"{client}.time", Hasty()).start()
    mock.patch("ptmech.storage.remote.sleep", Hasty().sleep).start()
    file = out / "codes.json"
    codes: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for step in json.loads(steps.read_text()):
        if damage := step.get("damage"):
            damaged_copy(*map(Path, damage))
        codes[step["name"]] = run(step, out)
        file.write_text(json.dumps(codes))


if __name__ == "__main__":
    main_of_all(Path(sys.argv[1]), Path(sys.argv[2]))
