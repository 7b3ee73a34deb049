"""Disks that refuse one call: one plain line, nothing lost, and the next build goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from tests.faults.checks import at_any_instant, other_bytes, plain_line, torn
from tests.faults.nursery import Ended, Nursery
from tests.faults.siege import Siege
from tests.faults.tracing import Call, spread, why_no_tracing

SEED = 4099
ERRORS = ("EIO", "ENOSPC", "EMFILE", "EDQUOT", "EROFS", "EINTR")
UNMET = 2

Record = Callable[[str, Any], None]
Faults = Sequence[tuple[Call, str]]


@pytest.fixture
def traceable() -> None:
    if why_no_tracing():
        pytest.skip(f"no system call can be made to fail: {why_no_tracing()}")


@pytest.fixture(scope="module")
def shortest(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Siege:
    """One stage, one dataset."""
    return Siege(nursery, tmp_path_factory.mktemp("shortest"), "shortest", command=True)


def sweep(siege: Siege, faults: Faults) -> tuple[int, int, list[str]]:
    """Let one call of each build fail; count the faults and the builds that gave up."""
    injected, gave_up, violations = 0, 0, []
    for call, error in faults:
        root = siege.fresh()
        ended, log = siege.strike(
            root, f"{call.name}:error={error}:when={call.nth}", aside=call.aside
        )
        hit = [line for line in log.read_text(errors="replace").splitlines() if "INJECTED" in line]
        wrong: list[str] = []
        # Builds are alike, not equal: of what was hit elsewhere only what is left in the folder
        # counts.
        if hit and all(str(root) in line for line in hit):
            injected += 1
            gave_up += ended.code == UNMET
            wrong += ending(siege, root, ended)
        wrong += siege.aftermath(root)
        where = " ".join(hit or [call.line]).replace(str(siege.folder), "")
        violations += [f"{error} at {where}: {what}" for what in wrong]
    return injected, gave_up, violations


def ending(siege: Siege, root: Path, ended: Ended) -> list[str]:
    """Return what is wrong with how a build ended in which a call on the folder failed."""
    if ended.code == UNMET:
        return plain_line(ended.told)
    if ended.code or ended.told:
        return [f"it ended with {ended.code} and said {ended.told!r}"]
    # What it could not tidy up in the end, the next build does.
    return [*torn(root), *other_bytes(root, siege.wanted)]


def each_with_an_error(calls: Sequence[Call]) -> Iterator[tuple[Call, str]]:
    return zip(calls, cycle(ERRORS), strict=False)


@pytest.mark.usefixtures("traceable")
def test_any_call_on_the_folder_may_fail(
    shortest: Siege, at_length: bool, record_property: Record
) -> None:
    calls = shortest.calls if at_length else spread(shortest.changes, 10, SEED)
    injected, gave_up, violations = sweep(shortest, list(each_with_an_error(calls)))
    record_property("faults injected", injected)
    assert not violations, "\n".join(violations)
    assert injected >= 0.9 * len(calls)
    assert gave_up >= injected // (4 if at_length else 2)


@pytest.mark.usefixtures("traceable")
@pytest.mark.parametrize("name", ["read", "newfstatat", "getdents64"])
def test_a_call_that_only_looks_may_fail(
    nursery: Nursery, tmp_path: Path, name: str, at_length: bool, record_property: Record
) -> None:
    before = tmp_path / "before"
    assert nursery.build("shortest", before).code == 0
    siege = Siege(nursery, tmp_path, "shortest", ("--limit", "6"), before=before, command=True)
    calls = [call for call in siege.calls if call.name == name]
    assert calls
    faults = [(call, "EIO") for call in spread(calls, 60 if at_length else 1, SEED)]
    injected, _, violations = sweep(siege, faults)
    record_property("faults injected", injected)
    assert not violations, "\n".join(violations)


@pytest.mark.usefixtures("traceable")
def test_a_call_may_fail_in_a_build_of_every_kind_of_unit(
    nursery: Nursery, tmp_path: Path, at_length: bool, record_property: Record
) -> None:
    if not at_length:
        pytest.skip("a sample of this is too little to tell; --at-length runs it")
    siege = Siege(nursery, tmp_path, "whole", command=True)
    faults = list(each_with_an_error(spread(siege.calls, 120, SEED)))
    injected, _, violations = sweep(siege, faults)
    record_property("faults injected", injected)
    assert not violations, "\n".join(violations)


def test_a_build_may_run_out_of_open_files(
    shortest: Siege, at_length: bool, record_property: Record
) -> None:
    """With fewer than three handles left, the libraries beneath cannot start their threads."""
    refused, violations = 0, []
    for free in range(3, 12) if at_length else (4, 6):
        root = shortest.fresh()
        options = ("--quiet",)
        ended = shortest.nursery.build(
            "shortest", root, command=True, options=options, open_files=free
        )
        refused += ended.code != 0
        wrong = [*at_any_instant(root), *ending(shortest, root, ended), *shortest.aftermath(root)]
        violations += [f"with {free} open files: {what}" for what in wrong]
    record_property("faults injected", refused)
    assert not violations, "\n".join(violations)
    assert refused
