"""Fixtures that several test modules share."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.faults.tally import pytest_addoption, pytest_terminal_summary
from tests.hub.fixtures import hub
from tests.synthetic import write_synthetic_artifact

from ptmech.artifact import Artifact
from ptmech.loading import load

__all__ = [
    "hub",
    "pytest_addoption",
    "pytest_terminal_summary",
    "synthetic",
    "synthetic_path",
]


@pytest.fixture(scope="session")
def synthetic_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small artifact with planted structure. Never write into it."""
    return write_synthetic_artifact(tmp_path_factory.mktemp("synthetic") / "artifact")


@pytest.fixture(scope="session")
def synthetic(synthetic_path: Path) -> Artifact:
    """A small artifact with planted structure; :func:`tests.synthetic.plant` tells what."""
    return load(synthetic_path)
