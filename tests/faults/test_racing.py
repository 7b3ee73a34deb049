"""Several builders on one folder: they share the work, and one may die of it."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.faults.checks import plain_line, receipts
from tests.faults.nursery import Child, Nursery
from tests.faults.siege import Siege

SEED = 77
PATIENCE = 30.0

Record = Callable[[str, Any], None]


@pytest.fixture(scope="module")
def plain(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Siege:
    return Siege(nursery, tmp_path_factory.mktemp("race"), "plain")


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.002)


def wait_for_receipts(root: Path, count: int) -> None:
    wait_until(lambda: len(receipts(root)) >= count)


def start(siege: Siege, root: Path, builders: int) -> list[Child]:
    """Let builders begin at the same moment."""
    children = [siege.nursery.fork(siege.job(root)) for _ in range(builders)]
    return [child.release() for child in children]


def stop_in_the_middle(siege: Siege, root: Path) -> Child:
    """Begin a build and hold it once it has finished a unit but not all.

    It is not held while it has the manifest to itself, which takes a blink: until it lets go, or
    dies, no other build of the folder may change a file that a manifest could list.
    """
    (child,) = start(siege, root, 1)
    wait_for_receipts(root, 1)
    os.kill(child.pid, signal.SIGSTOP)
    while has_open(child.pid, "claims/manifest.json.lock"):
        os.kill(child.pid, signal.SIGCONT)
        time.sleep(0.002)
        os.kill(child.pid, signal.SIGSTOP)
    assert len(receipts(root)) < len(siege.keys)
    return child


def has_open(pid: int, name: str) -> bool:
    wait_until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    return any(
        os.readlink(descriptor).endswith(name) for descriptor in Path(f"/proc/{pid}/fd").iterdir()
    )


def test_racing_builders_share_the_units(
    plain: Siege, at_length: bool, record_property: Record
) -> None:
    shared = 0
    for builders in (2, 3, 4) * 8 if at_length else (2, 4):
        root = plain.fresh()
        ended = [child.wait() for child in start(plain, root, builders)]
        assert [(one.code, one.error) for one in ended] == [(0, ())] * builders, ended
        assert sum(one.done for one in ended) == len(plain.keys), ended
        assert all(one.done + one.reused == len(plain.keys) for one in ended)
        assert plain.unlike_an_undisturbed(root) == []
        shared += sum(one.done > 0 for one in ended) > 1
    record_property("races", len((2, 3, 4) * 8 if at_length else (2, 4)))
    assert shared


def test_one_of_the_racing_builders_may_be_killed(
    plain: Siege, at_length: bool, record_property: Record
) -> None:
    chance = random.Random(SEED)
    rounds, died = 20 if at_length else 2, 0
    for _ in range(rounds):
        root = plain.fresh()
        victim, *others = start(plain, root, 3)
        wait_for_receipts(root, chance.randint(0, 4))
        victim.kill()
        died += victim.wait().killed
        ended = [child.wait() for child in others]
        assert [(one.code, one.error) for one in ended] == [(0, ())] * 2, ended
        assert plain.aftermath(root) == []
    record_property("races", rounds)
    record_property("kills survived", died)
    assert died


def test_all_of_the_racing_builders_may_be_killed(
    plain: Siege, at_length: bool, record_property: Record
) -> None:
    chance = random.Random(SEED)
    rounds, died = 20 if at_length else 1, 0
    for _ in range(rounds):
        root = plain.fresh()
        children = start(plain, root, 3)
        for child in children:
            time.sleep(chance.uniform(0.05, 0.3))
            child.kill()
        died += sum(child.wait().killed for child in children)
        assert plain.aftermath(root) == []
    record_property("races", rounds)
    record_property("kills survived", died)
    assert died


def test_a_builder_that_hangs_holds_up_only_its_own_unit(
    plain: Siege, record_property: Record
) -> None:
    root = plain.fresh()
    first = stop_in_the_middle(plain, root)
    (second,) = start(plain, root, 1)
    wait_for_receipts(root, 3)
    os.kill(first.pid, signal.SIGCONT)
    ended = [first.wait(), second.wait()]
    assert [(one.code, one.error) for one in ended] == [(0, ())] * 2, ended
    assert sum(one.done for one in ended) == len(plain.keys)
    assert plain.unlike_an_undisturbed(root) == []
    record_property("races", 1)


@pytest.mark.parametrize("options", [("--dtype", "bfloat16"), ("--limit", "6")])
def test_another_recipe_is_turned_away_while_a_build_lives(
    plain: Siege, options: tuple[str, ...], record_property: Record
) -> None:
    root = plain.fresh()
    first = stop_in_the_middle(plain, root)
    other = replace(plain.job(root), options=options)
    called = plain.nursery.fork(other).release().wait()
    commanded = replace(other, command=True, options=(*options, "--quiet"))
    told = plain.nursery.fork(commanded).release().wait()
    os.kill(first.pid, signal.SIGCONT)
    ended = first.wait()
    assert "BusyError" in called.error, called
    assert told.code == 2
    assert plain_line(told.told) == []
    assert (ended.code, ended.error) == (0, ())
    assert plain.unlike_an_undisturbed(root) == []
    record_property("races", 1)
    # Once the first is done, its folder is free.
    assert plain.nursery.fork(other).release().wait().error == ()
