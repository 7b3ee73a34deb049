"""What the README shows works as written."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.no_torch import WITHOUT_TORCH

pytestmark = pytest.mark.demo

ROOT = Path(__file__).parents[2]


def readme_examples() -> tuple[str, str]:
    stored, live = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return stored, live


@pytest.mark.usefixtures("demo_path")
def test_the_example_runs_where_torch_cannot_be_imported():
    blocked = WITHOUT_TORCH + readme_examples()[0]
    done = subprocess.run(
        [sys.executable, "-c", blocked], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "transferred" in done.stdout


@pytest.mark.usefixtures("demo_path")
def test_the_live_example_runs():
    done = subprocess.run(
        [sys.executable, "-c", readme_examples()[1]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "subject_last" in done.stdout
    assert "torch.Size([2, 49152])" in done.stdout


@pytest.mark.usefixtures("demo_path")
@pytest.mark.parametrize(
    "command", ["info", "truth", "refusal", "knowledge", "confidence", "summary"]
)
def test_every_perspective_answers_where_torch_cannot_be_imported(command):
    code = (
        f"import sys; sys.argv = ['ptmech', {command!r}, 'artifacts/demo']\n"
        "from ptmech.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH + code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
