"""What no line of the SDK and of the builder may do, read from their syntax."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCES = sorted((*REPOSITORY.glob("sdk/**/*.py"), *REPOSITORY.glob("builder/**/*.py")))

MODULES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
"""What opens files that are programs."""
CALLS = {"__import__", "compile", "eval", "exec", "os.system", "yaml.load", "yaml.unsafe_load"}
"""What runs text."""
METHODS = {"extractall", "unpack_archive"}
"""What lets an archive say where its files go."""
ARGUMENTS = {"allow_pickle", "shell", "trust_remote_code"}
"""What may be said only to say no."""


def forbidden(code: str) -> Iterator[str]:
    """Yield what a piece of code does that it may not, each with its line."""
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.Import(names=names):
                found = [name.name for name in names if name.name.split(".")[0] in MODULES]
            case ast.ImportFrom(module=str(module)):
                found = [module] if module.split(".")[0] in MODULES else []
            case ast.Call():
                found = list(_in_a_call(node))
            case _:
                found = []
        yield from (f"line {getattr(node, 'lineno', 0)}: {name}" for name in found)


def _in_a_call(call: ast.Call) -> Iterator[str]:
    name = ast.unparse(call.func)
    if name in CALLS or name.rpartition(".")[2] in METHODS:
        yield name
    named = {keyword.arg: keyword.value for keyword in call.keywords}
    for argument in ARGUMENTS & named.keys():
        if ast.unparse(named[argument]) != "False":
            yield f"{name}({argument}=...)"
    if name == "torch.load" and ast.unparse(named.get("weights_only", call)) != "True":
        yield name


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_nothing_runs_what_it_reads(path: Path) -> None:
    assert list(forbidden(path.read_text(encoding="utf-8"))) == []


def test_all_sources_are_looked_at() -> None:
    assert len(SOURCES) > 100


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "import joblib.parallel",
        "from pickle import loads",
        "eval(text)",
        "exec(text)",
        "compile(text, 'f', 'exec')",
        "yaml.load(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "numpy.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=wanted)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "subprocess.run(text, shell=True)",
        "tarfile.open(path).extractall(folder)",
        "shutil.unpack_archive(path)",
    ],
)
def test_what_runs_what_it_reads_is_seen(code: str) -> None:
    assert list(forbidden(code))


@pytest.mark.parametrize(
    "code",
    [
        "re.compile(text)",
        "yaml.safe_load(text)",
        "torch.load(path, weights_only=True)",
        "numpy.load(path, allow_pickle=False)",
        "from_pretrained(path, trust_remote_code=False)",
        "subprocess.run([text])",
    ],
)
def test_what_does_not_is_left_alone(code: str) -> None:
    assert list(forbidden(code)) == []
