"""One unit is written while the next one computes: in order, bounded, and with nothing lost."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.faults.pretend import MeansUnit, PretendBlock, Recipe, pretend_build, pretend_plan
from tests.tiny import digests

from ptmech.errors import DataError, StorageError
from ptmech_builder.builders import AT_ONCE, at_work
from ptmech_builder.receipts import Receipt
from ptmech_builder.units import Made
from ptmech_builder.workbench import Workbench
from ptmech_builder.writer import Writer

RECIPE = Recipe(rows=9)
PATIENCE = 30
BLOCKS = [unit.name for unit in pretend_plan(RECIPE).units if isinstance(unit, PretendBlock)]

Happened = list[tuple[str, str]]
Make = Callable[[PretendBlock, Workbench], Made]


@pytest.fixture
def happened(monkeypatch: pytest.MonkeyPatch) -> Happened:
    """What was computed and what was finished, in order."""
    events: Happened = []
    finish = Writer.finish

    def finish_noted(self: Writer, receipt: Receipt) -> Receipt:
        written = finish(self, receipt)
        events.append(("finished", receipt.unit))
        return written

    for kind in (PretendBlock, MeansUnit):

        def make_noted(self: Any, bench: Workbench, make: Any = kind.make) -> Made:
            events.append(("begun", self.name))
            made = make(self, bench)
            events.append(("computed", self.name))
            return made

        monkeypatch.setattr(kind, "make", make_noted)
    monkeypatch.setattr(Writer, "finish", finish_noted)
    return events


def before_each_file(monkeypatch: pytest.MonkeyPatch, happens: Callable[[str], None]) -> None:
    put = Writer.put

    def put_then(self: Writer, path: str, data: bytes) -> Any:
        happens(path)
        return put(self, path, data)

    monkeypatch.setattr(Writer, "put", put_then)


def is_of(block: str, path: str) -> bool:
    _, stage, dataset, number = block.split(".")
    return path.startswith(f"acts/{stage}/{dataset}/") and f".{number}-of-" in path


def test_the_next_unit_computes_while_one_is_written(
    tmp_path: Path, happened: Happened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file of the first block is written before the second one is computed: else this hangs."""
    ahead = threading.Event()
    computed = PretendBlock.make

    def telling(self: PretendBlock, bench: Workbench) -> Made:
        made = computed(self, bench)
        if self.name == BLOCKS[1]:
            ahead.set()
        return made

    def wait(path: str) -> None:
        if is_of(BLOCKS[0], path):
            assert ahead.wait(PATIENCE)

    monkeypatch.setattr(PretendBlock, "make", telling)
    before_each_file(monkeypatch, wait)
    pretend_build(RECIPE, tmp_path)
    assert happened.index(("computed", BLOCKS[1])) < happened.index(("finished", BLOCKS[0]))


def test_never_more_than_one_unit_waits(
    tmp_path: Path, happened: Happened, monkeypatch: pytest.MonkeyPatch
) -> None:
    too_far = threading.Event()
    computed = PretendBlock.make

    def telling(self: PretendBlock, bench: Workbench) -> Made:
        if self.name == BLOCKS[2]:
            too_far.set()
        return computed(self, bench)

    def linger(path: str) -> None:
        if is_of(BLOCKS[0], path):
            assert not too_far.wait(0.1)

    monkeypatch.setattr(PretendBlock, "make", telling)
    before_each_file(monkeypatch, linger)
    pretend_build(RECIPE, tmp_path)
    for number, block in enumerate(BLOCKS[2:], 2):
        assert happened.index(("finished", BLOCKS[number - 2])) < happened.index(("begun", block))


def test_a_unit_that_reads_others_waits_for_them(tmp_path: Path, happened: Happened) -> None:
    pretend_build(RECIPE, tmp_path)
    for stage in ("base", "tuned"):
        begun = happened.index(("begun", f"means.{stage}"))
        blocks = [block for block in BLOCKS if f".{stage}." in block]
        assert all(happened.index(("finished", block)) < begun for block in blocks)


def test_a_claim_is_held_until_the_receipt_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = pretend_plan(RECIPE)
    ways = {unit.name: unit.way for unit in plan.units}
    free: list[bool] = []

    def try_to_claim(path: str) -> None:
        if is_of(BLOCKS[0], path):
            with at_work(tmp_path, ways) as other, other.claim(BLOCKS[0], AT_ONCE) as held:
                free.append(held)

    before_each_file(monkeypatch, try_to_claim)
    pretend_build(RECIPE, tmp_path)
    assert free
    assert not any(free)


def test_what_is_computed_is_written_when_the_next_unit_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = PretendBlock.make

    def failing(self: PretendBlock, bench: Workbench) -> Made:
        if self.name == BLOCKS[2]:
            raise DataError("made up")
        return make(self, bench)

    with monkeypatch.context() as patch:
        patch.setattr(PretendBlock, "make", failing)
        with pytest.raises(DataError, match="made up"):
            pretend_build(RECIPE, tmp_path)
    receipts = {path.stem for path in (tmp_path / ".build" / "receipts").iterdir()}
    assert {*BLOCKS[:2]} <= receipts
    assert pretend_build(RECIPE, tmp_path).reused == len(receipts)


@pytest.mark.parametrize("block", [BLOCKS[0], BLOCKS[-1]])
def test_what_the_disk_refuses_in_the_background_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: str
) -> None:
    def refuse(path: str) -> None:
        if is_of(block, path):
            raise StorageError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        before_each_file(patch, refuse)
        with pytest.raises(StorageError, match="full"):
            pretend_build(RECIPE, tmp_path / "refused")
    assert not (tmp_path / "refused" / "manifest.json").exists()
    assert not list((tmp_path / "refused" / ".build" / "builders").iterdir())
    assert pretend_build(RECIPE, tmp_path / "refused").reused
    pretend_build(RECIPE, tmp_path / "whole")
    assert digests(tmp_path / "refused") == digests(tmp_path / "whole")


def test_no_thread_is_left(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    pretend_build(RECIPE, tmp_path)
    assert set(threading.enumerate()) <= before
