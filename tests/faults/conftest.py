"""Fixtures of the tests of faults."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.faults.nursery import Nursery


@pytest.fixture(scope="session")
def at_length(request: pytest.FixtureRequest) -> bool:
    """Whether to try every point of attack, not just a sample."""
    return bool(request.config.getoption("--at-length"))


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Where builds come from, by the hundred."""
    server = Nursery(tmp_path_factory.mktemp("nursery"))
    yield server
    server.close()
