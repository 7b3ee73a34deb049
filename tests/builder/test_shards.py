"""Shards: nothing twice, nothing left out, and the bytes of a build in one piece."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st
from tests.faults.pretend import PretendBlock, Recipe, pretend_build, pretend_plan
from tests.tiny import digests, shortest, tiny_family, write_card
from typer.testing import CliRunner

from ptmech.cli import create_app
from ptmech.errors import DataError
from ptmech_builder.build import BuildReport, run
from ptmech_builder.progress import Progress
from ptmech_builder.shards import Shard, independent

RECIPE = Recipe(rows=17)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digest of every file of a build in one piece."""
    root = tmp_path_factory.mktemp("whole")
    pretend_build(RECIPE, root)
    return digests(root)


def build(root: Path, number: int, of: int) -> BuildReport:
    return run(pretend_plan(RECIPE), root, Progress(quiet=True), shard=Shard(number, of))


def unit(name: int, tokens: int, *, reads: bool = False) -> Any:
    return SimpleNamespace(name=f"{name}", tokens=tokens, reads_units=reads)


units = st.lists(st.tuples(st.sampled_from([0, 1, 7, 100, 5000]), st.booleans()), max_size=40)


@given(units, st.integers(1, 12))
def test_shards_divide_what_reads_nothing(sizes: list[tuple[int, bool]], of: int) -> None:
    plan = [unit(at, tokens, reads=reads) for at, (tokens, reads) in enumerate(sizes)]
    shards = [Shard(number, of).units(plan) for number in range(1, of + 1)]
    own = [one.name for shard in shards for one in shard]
    assert sorted(own) == sorted(one.name for one in plan if not one.reads_units)
    for kind in (True, False):
        in_order = [one.name for shard in shards for one in shard if bool(one.tokens) is kind]
        assert in_order == sorted(in_order, key=int)
    # No shard has more than its share and one unit.
    counted = [one.tokens for one in plan if not one.reads_units]
    if any(counted):
        most = max(sum(one.tokens for one in shard) for shard in shards)
        assert most <= sum(counted) / of + max(counted)


@given(units, st.integers(1, 12), st.data())
def test_whoever_shares_everything_begins_with_a_shard(
    sizes: list[tuple[int, bool]], of: int, data: st.DataObject
) -> None:
    plan = [unit(at, tokens, reads=reads) for at, (tokens, reads) in enumerate(sizes)]
    shard = Shard(data.draw(st.integers(1, of)), of)
    order = shard.first(plan)
    own = shard.units(plan)
    assert order[: len(own)] == own
    assert sorted(one.name for one in order) == sorted(one.name for one in plan)
    reading = [one.reads_units for one in order]
    assert reading == sorted(reading)


@pytest.mark.parametrize("text", ["", "3", "1/", "/2", "a/b", "1/2/3", "-1/2", "1.5/2", "1" * 9])
def test_what_is_no_shard(text: str) -> None:
    with pytest.raises(DataError, match="is written i/n, such as 1/8"):
        Shard.parse(text)


@pytest.mark.parametrize("text", ["0/2", "3/2", "0/0"])
def test_a_shard_that_is_not_there(text: str) -> None:
    with pytest.raises(DataError, match=f"no shard {text}: of n shards the first is 1/n"):
        Shard.parse(text)


@pytest.mark.parametrize("of", [1, 2, 3, 5, 40])
def test_shards_one_after_another(whole: dict[str, str], tmp_path: Path, of: int) -> None:
    order = list(range(1, of + 1))
    for attempt in ("in order", "shuffled"):
        root = tmp_path / attempt
        left = len(independent(pretend_plan(RECIPE).units))
        for number in order:
            left -= len(Shard(number, of).units(pretend_plan(RECIPE).units))
            report = build(root, number, of)
            assert report.missing == left
            assert (report.manifest is None) == bool(left)
        assert digests(root) == whole
        random.Random(of).shuffle(order)


def test_there_is_no_manifest_before_everything_stands(tmp_path: Path) -> None:
    report = build(tmp_path, 2, 3)
    assert 0 < report.done < len(pretend_plan(RECIPE).units)
    assert report.done == len(Shard(2, 3).units(pretend_plan(RECIPE).units))
    assert not (tmp_path / "manifest.json").exists()
    assert build(tmp_path, 2, 3).done == 0  # nothing twice


def test_a_shard_finds_what_a_whole_build_made(whole: dict[str, str], tmp_path: Path) -> None:
    pretend_build(RECIPE, tmp_path)
    report = build(tmp_path, 1, 2)
    assert (report.done, report.missing) == (0, 0)
    assert digests(tmp_path) == whole


def test_a_whole_build_goes_on_after_a_shard(whole: dict[str, str], tmp_path: Path) -> None:
    done = build(tmp_path, 1, 2).done
    assert pretend_build(RECIPE, tmp_path).reused == done
    assert digests(tmp_path) == whole


def test_shards_at_the_same_time(
    whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits in its first block for all others: they do run at once."""
    of = 3
    together, met = threading.Barrier(of, timeout=30), threading.local()
    make = PretendBlock.make

    def waiting(self: PretendBlock, bench: Any) -> Any:
        if not hasattr(met, "others"):
            met.others = together.wait()
        return make(self, bench)

    monkeypatch.setattr(PretendBlock, "make", waiting)
    with ThreadPoolExecutor(of) as pool:
        reports = list(pool.map(lambda number: build(tmp_path, number, of), range(1, of + 1)))
    assert sum(report.done for report in reports) == len(pretend_plan(RECIPE).units)
    assert any(report.manifest is not None for report in reports)
    assert digests(tmp_path) == whole


# The command line ------------------------------------------------------------------------------


def command(*arguments: object) -> Result:
    words = ["build", *map(str, arguments), "--device", "cpu"]
    return CliRunner().invoke(create_app(), words)


def test_the_command_divides_a_real_build(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    family = tiny_family(tmp_path_factory)
    card = write_card(tmp_path / "card", shortest(family.recipe(tmp_path / "card")))
    plain, divided = tmp_path / "plain", tmp_path / "divided"
    assert command(card, "--out", plain).exit_code == 0
    said = [command(card, "--out", divided, "--shard", f"{i}/2") for i in (2, 1)]
    assert [result.exit_code for result in said] == [0, 0]
    assert "units of other shards are missing" in said[0].stderr.splitlines()[-1]
    assert "missing" not in said[1].stderr
    assert digests(divided) == digests(plain)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--shard", "5/4"), "there is no shard 5/4"),
        (("--shard", "half"), "a shard is written i/n"),
        (("--engine", "procesess"), "unknown engine 'procesess'; did you mean 'processes'?"),
        (("--workers", "2"), "--workers goes with --engine"),
        (("--engine", "processes", "--shard", "1/2"), "--shard is for builds in one process"),
        (("--engine", "processes", "--device-map", "auto"), "--device-map spreads one model"),
    ],
)
def test_a_bad_option_is_one_line(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    options: tuple[str, ...],
    line: str,
) -> None:
    family = tiny_family(tmp_path_factory)
    card = write_card(tmp_path / "card", shortest(family.recipe(tmp_path / "card")))
    out = tmp_path / "artifact"
    words = ["build", str(card), "--out", str(out), "--quiet", *options]
    result = CliRunner().invoke(create_app(), words)
    assert result.exit_code == 2
    (said,) = result.stderr.splitlines()
    assert line in said
    assert not out.exists()
