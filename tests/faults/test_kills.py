"""Builds that are killed: at system calls, at random times, twice, while they replace another."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.faults.broken import BROKEN
from tests.faults.nursery import Nursery
from tests.faults.siege import Siege
from tests.faults.tracing import spread, why_no_tracing

SEED = 20240607
FOLDER_CALLS = ("fsync", "rename", "mkdir", "unlink", "flock")
"""Calls that a build makes on its folder only."""

Record = Callable[[str, Any], None]


@pytest.fixture
def traceable() -> None:
    if why_no_tracing():
        pytest.skip(f"no system call can be picked: {why_no_tracing()}")


@pytest.fixture(scope="module")
def plain(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Siege:
    """Two stages: tables, activations, weights, an adapter."""
    return Siege(nursery, tmp_path_factory.mktemp("plain"), "plain")


@pytest.fixture
def whole(nursery: Nursery, tmp_path: Path) -> Siege:
    """Every kind of unit."""
    return Siege(nursery, tmp_path, "whole")


@pytest.fixture(params=["another dtype", "fewer rows"])
def rebuild(request: pytest.FixtureRequest, nursery: Nursery, tmp_path: Path) -> Siege:
    """A build into the folder of a finished artifact of the same card, made another way."""
    options = ("--dtype", "bfloat16") if request.param == "another dtype" else ("--limit", "6")
    before = tmp_path / "before"
    assert nursery.build("plain", before).code == 0
    return Siege(nursery, tmp_path, "plain", options, before=before)


@pytest.mark.usefixtures("traceable")
def test_a_build_may_be_killed_at_any_system_call(
    plain: Siege, at_length: bool, record_property: Record
) -> None:
    points = plain.changes if at_length else spread(plain.changes, 10, SEED)
    died, violations = plain.sweep(points)
    record_property("kills survived", died)
    assert not violations, "\n".join(violations)
    assert died >= 0.9 * len(points)
    assert died >= (200 if at_length else 8)


@pytest.mark.usefixtures("traceable")
def test_a_build_of_every_kind_of_unit_may_be_killed(
    whole: Siege, at_length: bool, record_property: Record
) -> None:
    points = spread(whole.calls, 100 if at_length else 1, SEED)
    died, violations = whole.sweep(points)
    record_property("kills survived", died)
    assert not violations, "\n".join(violations)
    assert died >= 0.6 * len(points)


@pytest.mark.usefixtures("traceable")
def test_what_replaces_a_finished_artifact_may_be_killed(
    rebuild: Siege, at_length: bool, record_property: Record
) -> None:
    points = spread(rebuild.changes, 100 if at_length else 3, SEED)
    died, violations = rebuild.sweep(points)
    record_property("kills survived", died)
    assert not violations, "\n".join(violations)
    assert died >= 0.6 * len(points)


@pytest.mark.usefixtures("traceable")
def test_the_build_after_a_kill_may_be_killed_too(
    plain: Siege, at_length: bool, record_property: Record
) -> None:
    chance = random.Random(SEED)
    died, violations = 0, []
    for call in spread(plain.changes, 40 if at_length else 2, SEED + 1):
        root = plain.fresh()
        injections = [(f"{call.name}:signal=KILL:when={call.nth}", call.aside)]
        injections += [
            (f"{chance.choice(FOLDER_CALLS)}:signal=KILL:when={chance.randint(1, 12)}", True)
            for _ in range(2)
        ]
        for inject, aside in injections:
            died += plain.strike(root, inject, aside=aside)[0].killed
        violations += [f"killed at {injections}: {what}" for what in plain.aftermath(root)]
    record_property("kills survived", died)
    assert not violations, "\n".join(violations)
    assert died >= (80 if at_length else 2)


def test_a_build_may_be_killed_at_any_time(
    plain: Siege, at_length: bool, record_property: Record
) -> None:
    chance = random.Random(SEED)
    kills = 60 if at_length or why_no_tracing() else 4
    began = time.perf_counter()
    plain.nursery.fork(plain.job(plain.fresh())).release().wait()
    longest = time.perf_counter() - began
    died, tries, violations = 0, 0, []
    while died < kills and tries < 3 * kills:
        tries += 1
        root = plain.fresh()
        child = plain.nursery.fork(plain.job(root)).release()
        seconds = chance.uniform(0.05, longest)
        time.sleep(seconds)
        child.kill()
        died += child.wait().killed
        violations += [f"killed after {seconds:.3f} s: {what}" for what in plain.aftermath(root)]
    record_property("kills survived", died)
    assert not violations, "\n".join(violations)
    assert died == kills


# Negative controls: the same sweep, over writers that are wrong -----------------------------------


@pytest.fixture
def broken(nursery: Nursery, tmp_path: Path) -> Callable[[str], Siege]:
    return lambda writer: Siege(nursery, tmp_path, "shortest", writer=writer)


def test_writers_are_wrong_in_every_way_that_is_tested_below() -> None:
    assert set(BROKEN) == {"in place", "receipt first", "manifest first"}


@pytest.mark.usefixtures("traceable")
def test_the_sweep_finds_a_writer_that_writes_in_place(broken: Callable[[str], Siege]) -> None:
    siege = broken("in place")
    writes = [call for call in siege.calls if call.name == "write" and "manifest.json" in call.line]
    assert writes
    died, violations = siege.sweep(writes)
    assert died
    assert any("manifest" in what for what in violations), violations


@pytest.mark.usefixtures("traceable")
def test_the_sweep_finds_a_receipt_that_goes_first(broken: Callable[[str], Siege]) -> None:
    siege = broken("receipt first")
    renames = [call for call in siege.calls if call.name.startswith("rename")]
    after = next(at for at, call in enumerate(renames) if ".build/receipts/" in call.line) + 1
    died, violations = siege.sweep(renames[after : after + 1])
    assert died
    assert any("is missing" in what or "next build failed" in what for what in violations)


@pytest.mark.usefixtures("traceable")
def test_the_sweep_finds_a_manifest_that_goes_first(broken: Callable[[str], Siege]) -> None:
    siege = broken("manifest first")
    renames = [call for call in siege.calls if call.name.startswith("rename")]
    died, violations = siege.sweep(renames[2:3])
    assert died
    assert any("manifest stands" in what for what in violations), violations


@pytest.mark.usefixtures("traceable")
def test_the_sweep_finds_nothing_at_those_points_of_a_right_writer(
    nursery: Nursery, tmp_path: Path
) -> None:
    siege = Siege(nursery, tmp_path, "shortest")
    renames = [call for call in siege.calls if call.name.startswith("rename")]
    died, violations = siege.sweep([renames[1], renames[2], renames[-1]])
    assert died == 3
    assert not violations, "\n".join(violations)
