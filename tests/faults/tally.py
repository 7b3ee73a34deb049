"""What the tests of faults have been through, summed up at the end of a run.

A test records a number with ``record_property`` under one of the names below. Numbers of tests that
passed are added up, whatever process ran them.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import pytest

COUNTED: Final = (
    "kills survived",
    "power cuts survived",
    "faults injected",
    "bad inputs refused",
    "races",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--at-length",
        action="store_true",
        help="tests of faults: every point of attack instead of a sample (`make faults`)",
    )


def pytest_terminal_summary(terminalreporter: Any) -> None:
    tally: Counter[str] = Counter()
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name in COUNTED:
                tally[name] += int(value)
    if tally:
        terminalreporter.section("faults")
        for name in COUNTED:
            terminalreporter.write_line(f"{name}: {tally[name]:,}")
