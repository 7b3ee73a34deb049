"""The demo artifact, and a folder to try things in that has it at hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from tests.docs.pages import ROOT


@pytest.fixture(scope="session")
def demo_folder() -> Path:
    """The demo artifact as `make demo` leaves it; built if it is not there."""
    path = ROOT / "artifacts/demo"
    path.parent.mkdir(exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not (path / "manifest.json").exists():
            command = [sys.executable, "-c", "from ptmech.cli import main; main()"]
            build = ["build", "demo", "--out", str(path), "--quiet"]
            subprocess.run([*command, *build], cwd=ROOT, check=True)
    return path


@pytest.fixture
def desk(demo_folder: Path, tmp_path: Path) -> Path:
    """A folder like the repository's root to somebody who only reads the demo artifact."""
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts/demo").symlink_to(demo_folder)
    return tmp_path
