"""Artifacts from strangers: each is refused in one typed line, in little memory and little time.

Every case (:mod:`tests.faults.hostile_cases`) spoils a good artifact, puts digests right, so that
what is hostile reaches its reader, and uses it in one way (:mod:`tests.faults.reading`), in a
process that is watched (:mod:`tests.faults.limits`). What an attack must not get is the same for
all: an exception that is not ours, more than one line, a control character, a line on standard
error, memory, time, a pickle opened.
"""

from __future__ import annotations

import pickle
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.faults import hostile as h
from tests.faults.hostile_cases import CASES
from tests.faults.hostile_cases.case import FAULTS, FINE, RETURNED, Case
from tests.faults.limits import MEBI, Outcome, Watch
from tests.synthetic import write_synthetic_artifact

MEMORY = 400 * MEBI
"""What a call may take beyond what its interpreter has."""
LONGEST = 600
"""Characters of the longest line: nobody reads more, and a name of a megabyte is an attack."""


@pytest.fixture(scope="module")
def watch() -> Iterator[Watch]:
    with Watch("tests.faults.reading") as warm:
        yield warm


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("good") / "artifact"
    return write_synthetic_artifact(root, n_layers=2, d_model=8, n_facts=6, n_instructions=20)


def outcome_of(case: Case, root: Path, watch: Watch) -> Outcome:
    function, arguments = case.call
    return watch.call(function, str(root), *arguments)


def require_bounded(outcome: Outcome) -> None:
    assert outcome.ended not in ("killed", "vanished"), (outcome.value, outcome.stderr[-2000:])
    assert outcome.memory < MEMORY
    assert "Traceback" not in outcome.stderr
    assert "panicked" not in outcome.stderr


def require_plain_line(line: str) -> None:
    """One line, short enough to read, that shows everything it holds."""
    assert line.strip()
    assert len(line.splitlines()) == 1
    assert len(line) <= LONGEST
    kinds = {unicodedata.category(character) for character in line} - {"Zs"}
    assert not kinds & {"Cc", "Cs", "Zl", "Zp"}, line
    assert not {"\u202a", "\u202b", "\u202d", "\u202e", "\u2066", "\u2067", "\u2068"} & set(line)


def judge(case: Case, outcome: Outcome) -> None:
    """Check that what came of a case is what must come of it, in plain lines."""
    lines = _lines_of_a_command(case, outcome) if _is_command(case) else _lines(case, outcome)
    assert any(case.says in line for line in lines), lines
    if case.expected in (RETURNED, FINE):
        return
    for line in lines:
        require_plain_line(line)


def _is_command(case: Case) -> bool:
    return case.operation.startswith("command")


def _lines_of_a_command(case: Case, outcome: Outcome) -> list[str]:
    """Return what a command says is wrong; ``verify`` says it on standard output."""
    assert (outcome.ended, outcome.value) == ("exited", case.expected), outcome
    listed = case.operation == "command verify" and outcome.stdout != ""
    said = outcome.stdout if listed or case.expected == FINE else outcome.stderr
    assert said == outcome.stdout + outcome.stderr  # and nothing on the other stream
    lines = said.removesuffix("\n").split("\n")
    assert listed or case.expected == FINE or len(lines) == 1, lines
    return lines


def _lines(case: Case, outcome: Outcome) -> list[str]:
    """Return the message of an error, or the faults that were listed."""
    assert outcome.stderr == ""
    if case.expected in (FAULTS, RETURNED):
        assert outcome.ended == "returned", outcome.where
        return str(outcome.value).split("\n")
    assert outcome.ended == "raised", outcome.value
    assert f"ptmech.errors.{case.expected}" in outcome.kinds, outcome.where
    assert outcome.kinds[0].startswith("ptmech.errors."), outcome.where
    return [str(outcome.value)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Go through all cases at length, and else through every other one."""
    if "name" in metafunc.fixturenames:
        step = 1 if metafunc.config.getoption("--at-length") else 2
        metafunc.parametrize("name", list(CASES)[::step])


def test_is_refused_in_one_line(
    name: str, good: Path, watch: Watch, tmp_path: Path, record_property: Any
) -> None:
    case = CASES[name]
    folder = h.Folder(tmp_path / "artifact", good)
    case.attack(folder)
    outcome = outcome_of(case, folder.root, watch)
    require_bounded(outcome)
    assert not (folder.outside / "canary").exists()
    judge(case, outcome)
    if case.expected not in (RETURNED, FINE):  # the summary answers, and says what it lacks
        record_property("bad inputs refused", 1)


# Controls: good artifacts pass, and the harness finds what it is there to find.

OPERATIONS = sorted({case.operation for case in CASES.values() if case.attack is not h.unspoiled})


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_good_artifact_passes(operation: str, good: Path, watch: Watch) -> None:
    if operation == "card":
        pytest.skip("a good artifact holds no card; tests of cards read good ones")
    outcome = outcome_of(Case("", h.unspoiled, operation, FINE, ""), good, watch)
    require_bounded(outcome)
    assert outcome.ended in ("returned", "exited"), outcome.where
    assert outcome.ended == "returned" or outcome.value == 0
    assert outcome.stderr == ""
    if operation == "verify":
        assert outcome.value == ""


def test_memory_is_seen(watch: Watch) -> None:
    modest, greedy = (watch.call("take", mebibytes) for mebibytes in (50, 500))
    assert 49 * MEBI < modest.memory < 100 * MEBI
    assert greedy.memory > 499 * MEBI
    with pytest.raises(AssertionError):
        require_bounded(greedy)


def test_memory_ends(watch: Watch) -> None:
    outcome = watch.call("take", 4000)
    assert (outcome.ended, outcome.kinds[0]) == ("raised", "builtins.MemoryError")


def test_time_ends(watch: Watch) -> None:
    outcome = watch.call("loop", seconds=1)
    assert outcome.ended == "killed"
    with pytest.raises(AssertionError):
        require_bounded(outcome)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("trip", ()),
        ("write", ("a line",)),
        ("refuse", ("two\nlines",)),
        ("refuse", ("\x1b[31mred",)),
        ("refuse", ("\u202eturned",)),
        ("refuse", ("long" * 1000,)),
        ("refuse", ("",)),
        ("refuse", ("without the word",)),
        ("pretend", ()),
    ],
)
def test_what_is_not_one_typed_line_is_seen(
    watch: Watch, function: str, arguments: tuple[str, ...]
) -> None:
    outcome = watch.call(function, *arguments)
    with pytest.raises(AssertionError):
        judge(Case("", h.unspoiled, function, "FormatError", "red"), outcome)


def test_one_typed_line_passes(watch: Watch) -> None:
    outcome = watch.call("refuse", "it is red")
    judge(Case("", h.unspoiled, "refuse", "FormatError", "red"), outcome)


def test_the_canary_sings(tmp_path: Path, good: Path) -> None:
    folder = h.Folder(tmp_path / "artifact", good)
    h.pickled(h.UNEMBEDDING)(folder)
    pickle.loads(folder.read(h.UNEMBEDDING))
    assert (folder.outside / "canary").exists()


# Text that is no attack on a reader, and does nothing where it is shown.


@pytest.mark.parametrize(
    "text",
    [
        "[red]delete[/red] [link=https://example.org]x[/link]",
        "<script>alert(1)</script>",
        ":bomb: ${HOME} `id` $(id) %s {0} {name}",
        "# a heading | a cell --- **bold**",
        "\u05e9\u05dc\u05d5\u05dd Z\u00fcrich \u6771\u4eac",
    ],
)
def test_text_shows_what_it_is(text: str, good: Path, watch: Watch, tmp_path: Path) -> None:
    folder = h.Folder(tmp_path / "artifact", good)
    h.manifest_has(title=text)(folder)
    outcome = watch.call("command", str(folder.root), "info")
    assert (outcome.ended, outcome.value, outcome.stderr) == ("exited", 0, "")
    assert f": {text}\n" in outcome.stdout
