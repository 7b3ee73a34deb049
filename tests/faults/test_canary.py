"""Nothing that is written tells who runs it, where, or with which secrets.

A user with a telling name, at home on a machine with a telling name, with secrets in the
environment and in files, builds, asks, publishes and does everything wrong that can be done wrong.
Then every byte that came of it is searched for any of these names and secrets, in any spelling.
"""

from __future__ import annotations

import ast
import base64
import json
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file
from tests.faults.canaries import (
    CANARIES,
    CLOUD,
    HOST,
    KEY,
    PASSWORD,
    STORED,
    TOKEN,
    USER,
    Find,
    find_in_bytes,
    find_in_file,
    find_in_texts,
    find_in_tree,
    spellings,
)
from tests.hub import LocalHub
from tests.hub.store import User

ROOT = Path(__file__).parents[2]
REPOSITORY = "keeper/canary"
UNMET, DAMAGED, INTERRUPTED, BUG = 2, 3, 130, 1
UNGUARDED = "unguarded"
"""The step without the command's own streams: a control."""


# What is done -------------------------------------------------------------------------------------


def fine(home: Path) -> list[dict[str, Any]]:
    """Commands that work, in an order in which they can."""
    card, acts = home / "cards/tiny.toml", home / "acts/tiny"
    telling = home / "cards/telling.toml"
    publish = ["publish", acts, REPOSITORY, "--card", card]
    return [
        {"name": "plan", "command": ["plan", card, "--out", acts]},
        {"name": "plan-json", "command": ["plan", card, "--out", acts, "--json"]},
        {"name": "build", "command": ["build", card, "--out", acts, "--device", "cpu"]},
        {"name": "build-again", "command": ["build", card, "--out", acts, "--device", "cpu"]},
        {"name": "build-telling", "command": ["build", telling, "--out", home / "acts/telling"]},
        {"name": "pin", "command": ["pin", card]},
        {"name": "pin-loose", "command": ["pin", home / "cards/loose.toml"]},
        {"name": "verify", "command": ["verify", acts]},
        {"name": "verify-json", "command": ["verify", acts, "--json"]},
        {"name": "info", "command": ["info", acts]},
        {"name": "info-json", "command": ["info", acts, "--json"]},
        {"name": "refusal", "command": ["refusal", acts]},
        {"name": "refusal-json", "command": ["refusal", acts, "--json"]},
        {"name": "confidence", "command": ["confidence", acts, "--n", "2"]},
        {"name": "dry-run", "command": [*publish, "--dry-run"]},
        {"name": "page", "command": [*publish, "--readme"]},
        {"name": "publish", "command": publish},
        {"name": "info-hub", "command": ["info", REPOSITORY]},
        {"name": "help", "command": ["publish", "--help"]},
    ]


def failing(home: Path) -> list[dict[str, Any]]:
    """Commands that cannot work, with the exit code of each."""
    cards, acts = home / "cards", home / "acts/tiny"
    with_password = f"https://reader:{PASSWORD}@example.org"
    elsewhere = home.parent.parent / "scratch" / USER
    build, telling = ["build", cards / "tiny.toml"], cards / "telling.toml"

    def card(name: str, command: str = "plan", *options: Any, **more: Any) -> dict[str, Any]:
        line = [command, cards / f"{name}.toml", "--out", home / "acts/none", *options]
        return {"name": f"{command}-{name}", "command": line, **more}

    def hub(status: int | str) -> dict[str, Any]:
        return {"name": f"hub-{status}", "command": ["info", f"keeper/answers-{status}"]}

    unmet: list[dict[str, Any]] = [
        {"name": "no-artifact", "command": ["info", home / "nowhere"]},
        {"name": "no-artifact-elsewhere", "command": ["info", elsewhere / "nowhere"]},
        {"name": "a-file", "command": ["info", home / "a-file"]},
        {"name": "loop", "command": ["plan", home / "loop"]},
        {"name": "a-folder", "command": ["plan", home / "cards"]},
        *(card(name) for name in ("nothing", "bad-key", "bad-value", "no-data", "password")),
        *(card(name) for name in ("no-toml", "no-adapter", "no-model", "torn-data", "hub-model")),
        card("tiny", "plan", "--statements", home / "mine.csv"),
        card("wrong-digest", "build", "--data-dir", home / "copies"),
        {"name": "no-folder", "command": [*build, "--out", "/proc/none"]},
        {
            "name": "in-a-file",
            "command": ["build", cards / "tiny.toml", "--out", home / "a-file/x"],
        },
        {
            "name": "full-disk",
            "command": [*build, "--out", home / "acts/full"],
            "largest_file": 6_000,
        },
        {"name": "bad-option", "command": ["info", f"--{TOKEN}"]},
        {"name": "bad-number", "command": ["refusal", acts, "--layer", home / "x"]},
        {"name": "one-too-many", "command": ["info", acts, home / "one" / "too" / "many" / TOKEN]},
        {"name": "no-command", "command": [f"{home}/{TOKEN}"]},
        {"name": "password", "command": ["info", f"{with_password}/acts"]},
        {"name": "password-port", "command": ["info", f"{with_password}:port/acts"]},
        {"name": "password-scheme", "command": ["info", f"ftp://reader:{PASSWORD}@example.org/x"]},
        {"name": "token-query", "command": ["info", f"https://example.org/x?token={STORED}"]},
        {
            "name": "publish-telling",
            "command": ["publish", home / "acts/telling", REPOSITORY, "--card", telling],
        },
        {"name": "publish-name", "command": ["publish", acts, f"{with_password}/x"]},
        *(hub(answer) for answer in (401, 403, 404, 500, "nothing")),
        {
            "name": "publish-forbidden",
            "command": ["publish", acts, "keeper/forbidden", "--card", cards / "tiny.toml"],
        },
        {"name": "no-server", "command": ["info", "https://localhost:9/acts"]},
        {"name": "unreadable", "command": ["info", acts], "powerless": True},
        {
            "name": "unwritable",
            "command": [*build, "--out", home / "closed/acts"],
            "powerless": True,
        },
    ]
    damaged: list[dict[str, Any]] = [
        card("wrong-digest"),
        card("broken-model", "build"),
        {
            "name": "damaged",
            "command": ["verify", home / "acts/damaged"],
            "damage": [acts, home / "acts/damaged", "weights/base/neurons.parquet"],
        },
        {
            "name": "torn",
            "command": ["info", home / "acts/torn"],
            "damage": [acts, home / "acts/torn", "manifest.json"],
        },
    ]
    return [
        *({**step, "code": UNMET} for step in unmet),
        *({**step, "code": DAMAGED} for step in damaged),
        {"name": "noise", "command": ["info", acts], "instead": "noise", "code": UNMET},
        {"name": "interrupt", "command": ["info", acts], "instead": "interrupt"}
        | {"code": INTERRUPTED},
        {"name": UNGUARDED, "command": ["info", acts], "instead": "noise", "code": UNMET}
        | {"unguarded": True},
        {"name": "bug", "command": ["info", acts], "instead": "bug", "code": BUG},
    ]


def offline(home: Path) -> list[dict[str, Any]]:
    """Commands that ask a Hub that does not answer, at an address with a password."""
    publish = ["publish", home / "acts/tiny", REPOSITORY, "--card", home / "cards/tiny.toml"]
    return [
        {"name": "offline-info", "command": ["info", "keeper/other"], "code": UNMET},
        {"name": "offline-dry-run", "command": [*publish, "--dry-run"]},
    ]


@dataclass(frozen=True)
class Done:
    """What came of it all."""

    home: Path
    out: Path
    hub: LocalHub
    codes: dict[str, Any]
    steps: list[dict[str, Any]]

    def stderr(self, name: str) -> str:
        return (self.out / f"{name}.stderr").read_text()

    def stdout(self, name: str) -> str:
        return (self.out / f"{name}.stdout").read_text()


def machine_named(folder: Path) -> tuple[list[str], dict[str, str]]:
    """How to run a process on a machine of the canary's name: a prefix, and variables."""
    prefix = ["unshare", "--uts", "sh", "-c", f'hostname {HOST} && exec "$@"', "sh"]
    if shutil.which("unshare") and not subprocess.run([*prefix, "true"], check=False).returncode:
        return prefix, {}
    (folder / "sitecustomize.py").write_text(
        f"import platform, socket\nsocket.gethostname = platform.node = lambda: {HOST!r}\n"
    )
    return [], {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


def environment_of(home: Path, hub: LocalHub) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LANG")}
    cache = home / ".cache" / "huggingface"
    cache.mkdir(parents=True, exist_ok=True)
    (cache / "token").write_text(STORED)
    return {
        **kept,
        **hub.environment(cache),
        "HOME": str(home),
        "USER": USER,
        "LOGNAME": USER,
        "HF_TOKEN": TOKEN,
        "AWS_SECRET_ACCESS_KEY": CLOUD,
        "HF_HUB_VERBOSITY": "error",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }


def run(
    steps: list[dict[str, Any]], out: Path, prefix: list[str], environment: dict[str, str]
) -> None:
    """Run the steps in one process of the canary's."""
    plan = out.parent / "steps.json"
    plan.write_text(json.dumps(steps, default=str))
    command = [*prefix, sys.executable, "-m", "tests.faults.canary_commands", str(plan), str(out)]
    process = subprocess.run(
        command, env=environment, cwd=out.parent, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    folder = tmp_path_factory.mktemp("canary")
    home, out = folder / "home" / USER, folder / "out"
    for each in (home, out, folder / "site"):
        each.mkdir(parents=True)
    with LocalHub() as hub:
        hub.store.users["keeper"] = User("keeper", TOKEN)
        for status in (401, 403, 500):
            hub.fail(f"answers-{status}", status=status, times=None, message=f"no, {TOKEN}")
        hub.drop("answers-nothing", times=None)
        hub.fail("keeper/forbidden", status=403, times=None, message=f"not from {USER}@{HOST}")
        hub.fail("keeper/refused", status=401, times=None, message=f"not with {TOKEN}")
        prefix, variables = machine_named(folder / "site")
        environment = {**environment_of(home, hub), **variables}
        nobody_there = f"http://reader:{PASSWORD}@127.0.0.1:9"
        run([*fine(home), *failing(home)], out, prefix, environment)
        run(offline(home), out, prefix, {**environment, "HF_ENDPOINT": nobody_there})
        steps = [*fine(home), *failing(home), *offline(home)]
        codes = json.loads((out / "codes.json").read_text())
        yield Done(home, out, hub, codes, steps)


def shown(found: list[Find]) -> str:
    return "\n".join(map(str, found))


# What came of it ----------------------------------------------------------------------------------


def test_everything_went_as_it_was_meant_to(done: Done) -> None:
    expected = {step["name"]: step.get("code", 0) for step in done.steps}
    assert len(expected) == len(done.steps)
    for name, code in expected.items():
        assert (done.codes[name] or 0) == code, f"{name}: {done.stderr(name)}"


def test_no_output_tells_anything(done: Done) -> None:
    outputs = {path.name: path.read_bytes() for path in done.out.iterdir()}
    assert len(outputs) == 2 * len(done.steps) + 1
    guarded = {name: text for name, text in outputs.items() if not name.startswith(UNGUARDED)}
    found = find_in_texts(guarded)
    assert not found, shown(found)


def test_no_file_of_an_artifact_tells_anything(done: Done) -> None:
    roots = [path for path in (done.home / "acts").iterdir() if path.name != "telling"]
    assert {"tiny", "full"} <= {root.name for root in roots}
    files = [path for root in roots for path in root.rglob("*") if path.is_file()]
    kinds = {path.suffix for path in files}
    assert {".json", ".parquet", ".safetensors"} <= kinds
    assert any(".build" in path.parts for path in files)
    found = [find for root in roots for find in find_in_tree(root)]
    assert not found, shown(found)


def test_nothing_that_was_published_tells_anything(done: Done, tmp_path: Path) -> None:
    files = done.hub.files("dataset", REPOSITORY)
    assert {"README.md", "manifest.json"} <= files.keys()
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    found = find_in_tree(tmp_path)
    commits = done.hub.commits("dataset", REPOSITORY)
    said = {
        "commits": " ".join(f"{commit.title} {commit.message}" for commit in commits),
        "pull requests": str(done.hub.pulls("dataset", REPOSITORY)),
        "tags": " ".join(done.hub.tags("dataset", REPOSITORY)),
        "addresses": " ".join(f"{each.raw_path}?{each.query}" for each in done.hub.requests),
    }
    found += find_in_texts(said)
    assert not found, shown(found)


def test_a_card_is_pinned_without_a_word_about_this_machine(done: Done) -> None:
    before = (done.home / "loose-before.toml").read_text().splitlines()
    after = (done.home / "cards/loose.toml").read_text().splitlines()
    added = [line for line in after if line not in before]
    assert len(added) == 1
    assert not find_in_texts({"the pinned card": "\n".join(added)})


def test_what_is_wrong_takes_one_line(done: Done) -> None:
    for step in done.steps:
        name, code = step["name"], step.get("code", 0)
        if code in (UNMET, DAMAGED, INTERRUPTED) and name not in ("noise", "damaged", UNGUARDED):
            *before, line = done.stderr(name).splitlines()
            assert line.startswith("ptmech: "), name
            assert not any("ptmech: " in each or "Traceback" in each for each in before), name
            assert done.stdout(name) == "", name


def test_a_bug_says_where_it_is_and_how_to_report_it(done: Done) -> None:
    lines = done.stderr("bug").splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert '  File "~/plugins/careless.py", line 2, in careless' in lines
    assert lines[-1].startswith("ptmech: this is a bug in ptmech ")
    assert "report it with the lines above" in lines[-1]
    assert sum(line.startswith("ptmech: ") for line in lines) == 1


def test_what_is_hidden_leaves_the_rest_readable(done: Done) -> None:
    assert done.stderr("no-artifact").startswith("ptmech: no artifact folder '~/nowhere'; ")
    assert "~/cards/bad-key.toml line" in done.stderr("plan-bad-key")
    assert "'extraction.***'" in done.stderr("plan-bad-key")
    assert "/scratch/$USER/nowhere'" in done.stderr("no-artifact-elsewhere")
    assert "'https://***@example.org:port/acts'" in done.stderr("password-port")
    assert done.stdout("pin").startswith("~/cards/tiny.toml: ")
    said = (
        "GET https://***@example.org/x?X-Amz-Signature=***&token=*** with {'authorization': "
        "'Bearer ***', 'x-aws': '***'} from ~/.netrc by $USER@$HOSTNAME, //$HOSTNAME:8080/x "
        "and /scratch/$USER/x"
    )
    assert done.stdout("noise").splitlines() == [said]
    logged, warned, cut, refused = done.stderr("noise").splitlines()
    assert logged == f"{said} ***"
    assert warned == f"ptmech: UserWarning: {said} ***"
    assert cut == "cut in *** two"
    assert refused == f"ptmech: {said} ***"


def test_a_card_that_tells_is_not_published(done: Done) -> None:
    assert "contains a path of this machine" in done.stderr("publish-telling")


# The search finds what there is -------------------------------------------------------------------


@pytest.mark.parametrize("canary", CANARIES)
def test_every_spelling_is_found(canary: str) -> None:
    for spelling, forms in spellings(canary).items():
        for form in forms:
            found = find_in_bytes(b"before " + form + b" behind", "here")
            assert (canary, spelling) in {(find.canary, find.spelling) for find in found}
    assert not find_in_bytes(b"nothing to see, but hf_, canary and a user", "here")


@pytest.mark.parametrize("canary", CANARIES)
@pytest.mark.parametrize("offset", range(3))
def test_base64_is_found_at_every_offset(canary: str, offset: int) -> None:
    wrapped = base64.b64encode(b"x" * (6 + offset) + canary.encode() + b"behind")
    assert "base64" in {find.spelling for find in find_in_bytes(wrapped, "here")}


@pytest.mark.parametrize("canary", CANARIES)
def test_every_place_is_searched(canary: str, tmp_path: Path) -> None:
    half = len(canary) // 2
    cells = [f"{canary[:half]}, {canary[half:]}", *(f"row {index % 7}" for index in range(500))]
    tables = {
        "cell.parquet": pl.DataFrame({"text": [*cells, canary, *cells]}),
        "pieces.parquet": pl.DataFrame({"tokens": [["a"], list(canary), None]}),
        "column.parquet": pl.DataFrame({canary: [1.0]}),
    }
    for name, frame in tables.items():
        frame.write_parquet(tmp_path / name, compression="zstd", compression_level=19)
    pl.DataFrame({"x": [1]}).write_parquet(tmp_path / "about.parquet", metadata={"from": canary})
    save_file({"x": np.zeros(3)}, tmp_path / "header.safetensors", metadata={"from": canary})
    (tmp_path / "grid.zarr").mkdir()
    about = {"attributes": {"made": {"by": canary}}}
    (tmp_path / "grid.zarr" / "zarr.json").write_text(json.dumps(about))
    (tmp_path / f"of {canary.replace('/', '-')}").touch()
    (tmp_path / "lock").write_text(f"pid 7 {canary}\n")
    for path in sorted(tmp_path.rglob("*")):
        if path.is_file() and path.stat().st_size:
            assert find_in_file(path), path.name
    # Only to be found decoded.
    assert not find_in_bytes((tmp_path / "cell.parquet").read_bytes(), "compressed")
    named = {find.where for find in find_in_tree(tmp_path)}
    assert len(named) >= 8
    trace = "".join(traceback.format_exception(RuntimeError(canary)))
    texts = {"log": f"WARNING:root:got {canary}\n", "trace": trace, "none": "nothing"}
    assert {find.where for find in find_in_texts(texts)} == {"log", "trace"}


def test_the_same_words_are_found_where_nothing_hides_them(done: Done) -> None:
    """The noise of libraries, without the command's streams: each canary is in it."""
    told = {
        stream: {
            find.canary for find in find_in_bytes(getattr(done, stream)(UNGUARDED).encode(), stream)
        }
        for stream in ("stdout", "stderr")
    }
    assert told["stderr"] == set(CANARIES)
    assert told["stdout"] == set(CANARIES) - {KEY}  # which stands on a line of its own


# What no module does ------------------------------------------------------------------------------

READS_THE_ENVIRONMENT = {
    "sdk/ptmech/_cache.py": {"PTMECH_CACHE", "XDG_CACHE_HOME"},
    "sdk/ptmech/_privacy.py": {"every secret"},
    "sdk/ptmech/cli/application.py": {"HF_HUB_VERBOSITY"},
    "builder/ptmech_builder/downloads.py": {"MIRROR"},
    "builder/ptmech_builder/engines/on_ray.py": {"RAY_ADDRESS", "RAY_USAGE_STATS_ENABLED"},
}
"""Modules that read or set variables of the environment, and which."""

ASKS_WHO_AND_WHERE = {"sdk/ptmech/_privacy.py"}
NAMES_OF_USER_AND_MACHINE = {"getuser", "gethostname", "getfqdn", "getlogin", "uname", "node"}


@cache
def modules() -> tuple[tuple[str, ast.Module], ...]:
    return tuple(
        (path.relative_to(ROOT).as_posix(), ast.parse(path.read_text()))
        for folder in ("sdk", "builder")
        for path in sorted((ROOT / folder).rglob("*.py"))
    )


def environment_reads(tree: ast.Module) -> set[str]:
    """Which variables a module reads; "every secret" where it goes through all of them."""
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    read: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module="os", names=names):
                if {alias.name for alias in names} & {"environ", "getenv"}:
                    read.add("imported by name")
                continue
            case ast.Attribute(attr="environ" | "environb" | "getenv" | "getenvb"):
                user = parents[node]
            case _:
                continue
        while isinstance(user, ast.Attribute):
            user = parents[user]
        if isinstance(user, ast.Call) and node not in ast.walk(user.func):
            read.add("every secret")
            continue
        match user:
            case ast.Call(args=[first, *_]):
                read.add(getattr(first, "value", getattr(first, "id", "every secret")))
            case _:
                read.add("every secret")
    return read


def test_few_modules_read_the_environment() -> None:
    found = {path: environment_reads(tree) for path, tree in modules()}
    assert {path: read for path, read in found.items() if read} == READS_THE_ENVIRONMENT


@pytest.mark.parametrize(
    ("source", "read"),
    [
        ("import os\nlogger.info('%s', os.environ)", {"every secret"}),
        ("import os\nprint(f'{os.environ}')", {"every secret"}),
        ("import os\nx = os.getenv('HF_TOKEN')", {"HF_TOKEN"}),
        ("import os\nx = os.environ.get('A', '') + os.environ['B']", {"A", "every secret"}),
        ("from os import environ", {"imported by name"}),
        ("import os\nos.path.exists('x')", set()),
    ],
)
def test_the_check_sees_every_way_to_read_it(source: str, read: set[str]) -> None:
    assert environment_reads(ast.parse(source)) == read


def test_one_module_asks_who_and_where() -> None:
    asking = {
        path
        for path, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in NAMES_OF_USER_AND_MACHINE
    }
    assert asking == ASKS_WHO_AND_WHERE


def test_no_module_shows_the_values_of_variables_in_a_traceback() -> None:
    """Local variables hold tokens."""
    options = {
        (path, keyword.arg)
        for path, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg in ("capture_locals", "pretty_exceptions_show_locals", "show_locals")
    }
    assert options == set()
