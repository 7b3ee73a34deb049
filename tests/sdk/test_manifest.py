"""Manifests of strangers: bounded, plain, and in agreement with themselves."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.synthetic import write_synthetic_artifact

from ptmech._paths import require_apart
from ptmech.errors import FormatError
from ptmech.manifest import FileEntry, Manifest, Part, canonical_json, parse_schema

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic_artifact(tmp_path_factory.mktemp("manifest") / "artifact")


@pytest.fixture
def document(root: Path) -> dict[str, Any]:
    return json.loads((root / "manifest.json").read_bytes())


@pytest.fixture
def part(root: Path) -> dict[str, Any]:
    return json.loads((root / "manifests/base/cities.json").read_bytes())


def refused(schema: type[Manifest | Part], document: dict[str, Any], words: str) -> None:
    with pytest.raises(FormatError, match=words) as caught:
        parse_schema(schema, json.dumps(document).encode(), "manifest.json")
    assert str(caught.value).startswith("manifest.json: ")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


# Paths -----------------------------------------------------------------------------------------

OUTSIDE = [
    "", "/", "/etc/passwd", "//server/share", "..", "../x", "a/..", "a/../../x", "a/b/../c", ".",
    "./a", "a/./b", "a//b", "a/", "\\", "a\\b", "..\\x", "\\\\server\\share", "C:", "C:/x", "c:x",
    "C:\\x", "file:///etc/passwd", "https://x/y", "hf://datasets/x", "s3:x", "~", "~/x", "~root",
    "$HOME/x", "%2e%2e/x", "a%2fb", "%00", "a%5cb", "a\0b", "\0", "a\nb", "a\rb", "a\tb", "a b",
    " a", "a ", "a/ b", "a.", "a./b", "a/b.", "...", ".build/x", ".git/config", "-rf", "a:stream",
    "a.txt::$DATA", "a*", "a?", "a|b", "<a>", '"a"', "\x1b[31m", "\u202egnp.exe",
    "a\u2215b", "a\u2044b", "\uff0e\uff0e/x", "\u2024\u2024/x", "a\uff0fb", "a\uff3cb", "\u2025/x",
    "\u0430cts/x", "caf\u00e9", "cafe\u0301", "a\u200bb", "a\ufeffb", "a\u00a0b", "\ud800",
    "a\u3002\u3002/x",
]  # fmt: skip
DEVICES = [
    "con", "CON", "nul", "nul.txt", "NUL.tar.gz", "aux/x", "a/aux.json", "prn", "com1", "COM9.log",
    "lpt1", "a/lpt9.parquet", "com0",
]  # fmt: skip


def entry(path: str) -> FileEntry:
    return FileEntry(path=path, bytes=0, sha256="0" * 64)


@pytest.mark.parametrize("path", OUTSIDE)
def test_paths_that_are_none_of_ours_are_refused(path: str) -> None:
    with pytest.raises(ValidationError, match=r"not a plain relative path|valid string"):
        entry(path)


@pytest.mark.parametrize("path", DEVICES)
def test_devices_of_windows_are_refused(path: str) -> None:
    with pytest.raises(ValidationError, match="names a device of Windows"):
        entry(path)


@pytest.mark.parametrize(
    "path", ["a", "null", "console.json", "a/con-1", "auxiliary/x", "com10", "_a", "0", "a.b-c_d/e"]
)
def test_plain_paths_are_paths(path: str) -> None:
    assert entry(path).path == path


@settings(max_examples=300)
@given(st.text(max_size=30) | st.text("ab./\\:.~%CON nul", max_size=12))
def test_whatever_is_taken_stays_below_and_is_spelled_one_way(path: str) -> None:
    try:
        taken = entry(path).path
    except ValidationError:
        return
    root = Path("/root/of/artifact")
    assert (root / taken).resolve() == root.joinpath(*taken.split("/"))
    assert (root / taken).resolve().is_relative_to(root)
    assert taken.isascii()
    assert taken.isprintable()


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (["a/b", "a/B"], "'a/B' and 'a/b' differ by case alone"),
        (["acts/x", "Acts/y"], "'Acts' and 'acts' differ by case alone"),
        (["a/b/c", "a/B/d"], "'a/B' and 'a/b' differ by case alone"),
        (["a", "a/b"], "'a' is both a file and a folder"),
        (["a/b", "a/b/c/d"], "'a/b' is both a file and a folder"),
        (["a/b", "A/b/c"], "differ by case alone|both a file and a folder"),
    ],
)
def test_paths_that_disks_confuse_are_refused(paths: list[str], words: str) -> None:
    for order in (paths, paths[::-1]):
        with pytest.raises(ValueError, match=words):
            require_apart(order)


def test_different_paths_are_apart() -> None:
    require_apart(["a/b", "a/c", "a/b", "ab", "a.b", "b/a"])


# Numbers, texts, lists ---------------------------------------------------------------------------

NUMBERS: dict[str, tuple[Change, str]] = {
    "negative bytes": (lambda d: d["extras"][0].update(bytes=-1), r"extras\.0\.bytes"),
    "bytes beyond any disk": (lambda d: d["extras"][0].update(bytes=2**63), r"extras\.0\.bytes"),
    "a part of a terabyte": (lambda d: d["parts"][0].update(bytes=2**40), r"parts\.0\.bytes"),
    "bytes as text": (lambda d: d["extras"][0].update(bytes="7"), r"extras\.0\.bytes"),
    "bytes as truth": (lambda d: d["extras"][0].update(bytes=True), r"extras\.0\.bytes"),
    "fractions of bytes": (lambda d: d["extras"][0].update(bytes=7.5), r"extras\.0\.bytes"),
    "negative rows": (lambda d: d["datasets"][0].update(rows=-1), r"datasets\.0\.rows"),
    "2**40 rows": (lambda d: d["datasets"][0].update(rows=2**40), r"datasets\.0\.rows"),
    "2**40 rows of a part": (lambda d: d["parts"][0].update(rows=2**40), r"parts\.0\.rows"),
    "negative data": (lambda d: d["parts"][0].update(data_bytes=-1), r"parts\.0\.data_bytes"),
    "2**60 bytes of data": (lambda d: d["parts"][0].update(data_bytes=2**60), r"data_bytes"),
    "no layers": (lambda d: d["stages"][0].update(n_layers=0), r"stages\.0\.n_layers"),
    "a million layers": (lambda d: d["stages"][0].update(n_layers=10**6), r"stages\.0\.n_layers"),
    "no width": (lambda d: d["stages"][0].update(d_model=0), r"stages\.0\.d_model"),
    "2**40 wide": (lambda d: d["stages"][0].update(d_model=2**40), r"stages\.0\.d_model"),
    "2**40 neurons": (lambda d: d["stages"][0].update(d_mlp=2**40), r"stages\.0\.d_mlp"),
    "2**40 tokens": (lambda d: d["stages"][0].update(vocabulary=2**40), r"vocabulary"),
    "position 0": (lambda d: d["datasets"][0].update(positions=[0]), r"positions\.0"),
    "position -2**40": (lambda d: d["datasets"][0].update(positions=[-(2**40)]), r"positions\.0"),
    "a position twice": (lambda d: d["datasets"][0].update(positions=[-1, -1]), "a number twice"),
    "2,000 positions": (
        lambda d: d["datasets"][0].update(positions=list(range(-2000, 0))),
        "at most 1024 items",
    ),
    "a layer too many": (lambda d: d["sites"].update(mlp_out=[10**6]), r"sites\.mlp_out\.0"),
    "a layer of no model": (
        lambda d: d["sites"].update(mlp_out=[99]),
        r"sites\.mlp_out: layer 99, but the models have \d+ layers",
    ),
    "a negative layer": (lambda d: d["sites"].update(mlp_out=[-1]), r"sites\.mlp_out\.0"),
    "a layer twice": (lambda d: d["sites"].update(mlp_out=[0, 0]), "a number twice"),
    "a chosen layer of no model": (
        lambda d: d["defaults"].update(truth_layer=99),
        r"defaults\.truth_layer: layer 99",
    ),
    "a stage's layer of no model": (
        lambda d: d["defaults"].update(refusal_layers={"base": 99}),
        r"defaults\.refusal_layers\.base: layer 99",
    ),
    "a chosen position 0": (lambda d: d["defaults"].update(refusal_position=0), "refusal_position"),
    "a negative deviation": (lambda d: d["parity"].update(worst=-1), r"parity\.worst"),
    "a title of a megabyte": (lambda d: d.update(title="x" * 2**20), "title: .*at most 2000"),
    "a description of a megabyte": (lambda d: d.update(description="x" * 2**20), "description"),
    "a note of a megabyte": (lambda d: d["stages"][0].update(note="x" * 2**20), "note"),
    "an instruction of a megabyte": (
        lambda d: d["stages"][0].update(template="x" * 2**20),
        "template",
    ),
    "100 stages": (lambda d: d.update(stages=d["stages"] * 50), "stages: .*at most 64 items"),
    "2,000 datasets": (lambda d: d.update(datasets=d["datasets"][:1] * 2000), "at most 1000 items"),
    "150,000 wrong extras": (lambda d: d.update(extras=[{}] * 150_000), r"extras\.0\."),
    "a stage called con": (lambda d: d["stages"][0].update(name="con"), "is a device on Windows"),
    "a dataset called nul": (lambda d: d["datasets"][0].update(name="nul"), "device on Windows"),
    "a part of no stage": (
        lambda d: d["parts"][0].update(stage="ghost", path="manifests/ghost/cities.json"),
        "there is no stage 'ghost'",
    ),
    "a part of no dataset": (
        lambda d: d["parts"][0].update(dataset="ghost", path="manifests/base/ghost.json"),
        "there is no dataset 'ghost'",
    ),
    "a part elsewhere": (
        lambda d: d["parts"][0].update(path="manifests/base/other.json"),
        r"parts\.0: .*should be 'manifests/base/",
    ),
    "an extra among activations": (lambda d: d["extras"][0].update(path="acts/x"), "is no place"),
    "an extra among parts": (
        lambda d: d["extras"][0].update(path="Manifests/base/cities.json"),
        "is no place",
    ),
    "an extra that is the manifest": (
        lambda d: d["extras"][0].update(path="manifest.json"),
        "is no place",
    ),
    "two promises for one file": (
        lambda d: d["extras"].append({**d["extras"][0], "bytes": 1}),
        "is listed twice, as two different files",
    ),
    "two files by case": (
        lambda d: d["extras"].append({**d["extras"][0], "path": d["extras"][0]["path"].upper()}),
        "differ by case alone",
    ),
    "a file that is a folder": (
        lambda d: d["extras"].append({**d["extras"][0], "path": d["extras"][0]["path"] + "/x"}),
        "is both a file and a folder",
    ),
}


@pytest.mark.parametrize("what", NUMBERS)
def test_manifests_beyond_reason_are_refused(document: dict[str, Any], what: str) -> None:
    change, words = NUMBERS[what]
    change(document)
    refused(Manifest, document, words)


PARTS: dict[str, tuple[Change, str]] = {
    "format 0": (lambda d: d.update(format=0), "format"),
    "a negative block": (lambda d: d["files"][0].update(block=-1), r"files\.0\.block"),
    "block 2**40": (lambda d: d["files"][0].update(block=2**40), r"files\.0\.block"),
    "no rows in a file": (lambda d: d["files"][0].update(rows=0), r"files\.0\.rows"),
    "2**40 rows in a file": (lambda d: d["files"][0].update(rows=2**40), r"files\.0\.rows"),
    "layer 5,000": (lambda d: d["files"][0].update(layer=5000), r"files\.0\.layer"),
    "first row -1": (lambda d: d["units"][0].update(first_row=-1), r"units\.0\.first_row"),
    "deviation -1": (lambda d: d["units"][0].update(parity=-1.0), r"units\.0\.parity"),
    "a million files": (lambda d: d.update(files=[{}] * 100_001), r"files\.0\.|at most 100000"),
    "another part's file": (
        lambda d: d["files"][0].update(path="acts/base/facts/x.safetensors"),
        "is not below acts/base/cities/",
    ),
    "a table as activations": (
        lambda d: d["files"][0].update(path="tables/statements.parquet"),
        "is not below acts/base/cities/",
    ),
    "two promises": (
        lambda d: d["files"].append({**d["files"][0], "sha256": "0" * 64}),
        "is listed twice",
    ),
    "2**30 positions": (lambda d: d.update(positions=[-(2**30)]), r"positions\.0"),
}


@pytest.mark.parametrize("what", PARTS)
def test_parts_beyond_reason_are_refused(part: dict[str, Any], what: str) -> None:
    change, words = PARTS[what]
    change(part)
    refused(Part, part, words)


def test_a_large_family_fits(document: dict[str, Any], part: dict[str, Any]) -> None:
    """A model of 405 billion parameters, 126 layers, a billion tokens of rows."""
    for stage in document["stages"]:
        stage.update(n_layers=126, d_model=16_384, d_mlp=53_248, vocabulary=128_256)
    document["sites"] = {"resid_post": list(range(126)), "mlp_out": list(range(126))}
    for dataset in document["datasets"]:
        dataset["rows"] = 50_000_000
    document["parts"][0].update(data_bytes=126 * 2 * 50_000_000 * 16_384 * 2 // 64)
    parse_schema(Manifest, json.dumps(document).encode(), "manifest.json")
    file = part["files"][0]
    part["files"] = [
        {**file, "path": f"acts/base/cities/resid_post/L{layer:03d}.{block}", "layer": layer}
        for layer in range(126)
        for block in range(200)
    ]
    assert len(parse_schema(Part, json.dumps(part).encode(), "part").files) == 25_200


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_manifest_with_anything_anywhere_is_read_or_refused_in_one_line(
    root: Path, data: st.DataObject
) -> None:
    document = json.loads((root / "manifest.json").read_bytes())
    here: Any = document
    while True:
        keys = list(here) if isinstance(here, dict) else list(range(len(here)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(here[key], dict | list) or not here[key] or data.draw(st.booleans()):
            break
        here = here[key]
    here[key] = data.draw(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just([]) | st.just({})
        | st.floats(allow_nan=False, allow_infinity=False) | st.just("../x") | st.just([[[1]]])
    )  # fmt: skip
    try:
        read = Manifest.parse(json.dumps(document).encode(), "manifest.json")
    except FormatError as error:
        message = str(error)
    else:
        assert Manifest.parse(canonical_json(read), "again") == read
        return
    assert message.startswith("manifest.json")
    assert message.isprintable()


LIMITED = """
import json, resource, sys
from ptmech.manifest import Manifest
from ptmech.errors import FormatError
document = json.load(open(sys.argv[1]))
document[sys.argv[2]] = {value}
raw = json.dumps(document).encode()
used = [int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")]
resource.setrlimit(resource.RLIMIT_DATA, (used[0] * 2**10 + 300 * 2**20,) * 2)
try:
    Manifest.parse(raw, "manifest.json")
except FormatError as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("extras", "[{}] * 500_000"),
        ("extras", "[1] * 1_000_000"),
        ("stages", "[[]] * 500_000"),
        ("versions", "{str(n): n for n in range(9_999)}"),
        ("parts", "[document['parts'][0]] * 140_000"),
    ],
)
def test_a_million_mistakes_cost_no_memory(root: Path, key: str, value: str) -> None:
    code = LIMITED.format(value=value)
    done = subprocess.run(
        [sys.executable, "-c", code, str(root / "manifest.json"), key],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("manifest.json")
    assert "MemoryError" not in done.stderr
