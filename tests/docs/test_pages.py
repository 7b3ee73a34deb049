"""What the pages show runs as written, and prints what they say."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tests.docs.pages import DOCS, PAGES, Block, blocks, cheap_commands, difference

RUNNING = Path(__file__).with_name("running.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}

COMMAND_LINE = "from ptmech.cli import main; main()"

README_COMMANDS = {
    f"ptmech {name} artifacts/demo"
    for name in ("info", "truth", "refusal", "knowledge", "confidence", "summary")
}
RUN_ELSEWHERE = {
    "own-pair.md": "tests/hub/test_own_pair.py builds its card and runs its code",
}
NOT_RUN = {"how-to/intervene.md": 1, "how-to/large-models.md": 2}
"""How many blocks of a page say that they are not run."""


def python_of(page: str) -> list[Block]:
    if page in RUN_ELSEWHERE:
        return []
    found = blocks(page)
    return [block for block in found if block.language == "python" and block.not_run is None]


def commands() -> dict[str, tuple[str, Block]]:
    """What shell blocks ask the demo artifact, each command once, with the block that shows most.

    What the README shows too is run by tests/demo/test_readme.py.
    """
    found: dict[str, tuple[str, Block]] = {}
    for page in PAGES:
        for block in blocks(page):
            for command in cheap_commands(block) if block.not_run is None else ():
                if block.shown is not None or command not in {*found, *README_COMMANDS}:
                    found[command] = page, block
    return found


@pytest.mark.demo
@pytest.mark.parametrize("page", [page for page in PAGES if python_of(page)])
def test_the_code_of_a_page_prints_what_it_shows(page: str, desk: Path, tmp_path: Path):
    told = python_of(page)
    given, made = tmp_path / "blocks.json", tmp_path / "printed.json"
    given.write_text(
        json.dumps([{"page": page, "line": block.line, "code": block.code} for block in told])
    )
    done = subprocess.run(
        [sys.executable, str(RUNNING), str(given), str(made)],
        cwd=desk,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    wrong = [
        f"{page}:{block.line}: {found}\n{printed}"
        for block, printed in zip(told, json.loads(made.read_text()), strict=True)
        if block.shown is not None and (found := difference(block.shown, printed))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.demo
@pytest.mark.parametrize("command", commands())
def test_a_command_answers_what_its_page_shows(command: str, desk: Path):
    page, block = commands()[command]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND_LINE, *shlex.split(command)[1:]],
        cwd=desk,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{page}:{block.line}: {command}\n{done.stderr}"
    if block.shown is not None:
        assert difference(block.shown, done.stdout) is None, done.stdout


def test_few_blocks_are_not_run_and_all_say_why():
    found = {page: len(left) for page in PAGES if (left := [b for b in blocks(page) if b.not_run])}
    assert found == NOT_RUN


def test_code_that_is_run_elsewhere_is_there():
    assert all((DOCS / page).exists() for page in RUN_ELSEWHERE)


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("0.125\n", "0.126\n"),
        ("│ a ┆ 0.5 │\n╞═══╪═════╡", "│ a   ┆ -0.5 │\n╞═════╪══════╡".replace("-", "")),
        ("demo@0123456789ab", "demo@ba9876543210"),
        ("first\n...\nlast", "first\nmuch\nmore\nlast"),
    ],
)
def test_outputs_that_are_the_same(shown: str, printed: str):
    assert difference(shown, printed) is None


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("0.125", "0.127"),
        ("12 rows", "13 rows"),
        ("0.5", "-0.5"),
        ("cities", "cites"),
        ("one line", "one line\nand another"),
        ("first\n...\nlast", "first\nmuch\nmore"),
        ("layer15", "layer16"),
    ],
)
def test_outputs_that_differ(shown: str, printed: str):
    assert difference(shown, printed) is not None
