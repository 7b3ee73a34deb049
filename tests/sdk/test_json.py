"""JSON from strangers: what it says, once, or one line about why not; never much memory."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from ptmech._json import MAX_DEPTH, MAX_KEYS, MAX_VALUES, fitting, parse_json
from ptmech.errors import FormatError

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
)
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.dictionaries(st.text('abcé\n"\\'), inner),
    max_leaves=30,
)


@settings(max_examples=200, deadline=None)
@given(DOCUMENTS, st.booleans(), st.sampled_from([None, 1]))
def test_sound_documents_mean_what_they_say(document: Any, escaped: bool, indent: int) -> None:
    raw = json.dumps(document, ensure_ascii=escaped, indent=indent).encode()
    assert parse_json(raw, "x.json") == document


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | st.text('[]{}",:0123456789.eE+-ntfu\\ ', max_size=60))
def test_whatever_comes_is_json_or_one_line(raw: bytes | str) -> None:
    data = raw if isinstance(raw, bytes) else raw.encode()
    try:
        found = parse_json(data, "x.json")
    except FormatError as error:
        message = str(error)
    else:
        assert found == json.loads(data)
        return
    assert message.startswith("x.json")
    assert len(message.splitlines()) == 1


def nested(depth: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    return opening * depth + b"1" + closing * depth


REFUSED = {
    "nothing": (b"", "is not JSON"),
    "cut off": (b'{"a": [1, 2', "is not JSON"),
    "a pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 12\n",
        "is a Git LFS pointer, not the file it stands for: git lfs pull",
    ),
    "a web page": (b"\n<!doctype html><title>Log in</title>", "is a web page, not JSON"),
    "two documents": (b"{} {}", "is not JSON"),
    "a comment": (b"{} // x", "is not JSON"),
    "not UTF-8": (b'{"a": "\xff"}', "is not JSON"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "is not JSON"),
    "UTF-32": ('{"a": 1}'.encode("utf-32-le"), "is not JSON"),
    "a byte order mark": (b"\xef\xbb\xbf{}", "is not JSON"),
    "an overlong slash": (b'"\xc0\xaf"', "is not JSON"),
    "a raw surrogate": (b'"\xed\xa0\x80"', "is not JSON"),
    "half a character": (rb'["\ud83d"]', "half a character"),
    "half a character in a key": (rb'[[{"\uDC00": 1}]]', "half a character"),
    "a key twice": (b'{"a": 1, "a": 1}', "the key 'a' is there twice"),
    "a key twice, deep": (b'[{"b": {"a": 1, "\\u0061": 2}}]', "the key 'a' is there twice"),
    "a key of two lines, twice": (b'{"a\\nb": 1, "a\\nb": 1}', "the key 'a b' is there twice"),
    "NaN": (b'{"a": NaN}', "NaN is no number"),
    "Infinity": (b"[Infinity]", "Infinity is no number"),
    "-Infinity": (b"[-Infinity]", "-Infinity is no number"),
    "1e999": (b"[1e999]", "the number 1e999 is too large"),
    "2**64": (b"[18446744073709551616]", "the number 18446744073709551616 is too large"),
    "-2**63 - 1": (b"[-9223372036854775809]", "too large"),
    "5,000 digits": (b"[" + b"9" * 5000 + b"]", "is too large"),
    "33 lists": (nested(33), "nested deeper than 32"),
    "33 objects": (nested(33, b'{"a":', b"}"), "nested deeper than 32"),
    "a million lists": (nested(10**6), "nested deeper than 32"),
    "lists that never end": (b"[" * 10**6, "nested deeper than 32"),
    "too many values": (b"[" + b"[]," * MAX_VALUES + b"1]", "more than 1048576 values"),
    "too many keys": (
        json.dumps({str(key): key for key in range(MAX_KEYS + 1)}).encode(),
        "an object of 10001 keys",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(what: str) -> None:
    raw, words = REFUSED[what]
    with pytest.raises(FormatError, match=words) as caught:
        parse_json(raw, "manifest.json")
    message = str(caught.value)
    assert message.startswith("manifest.json")
    assert message.isprintable()
    assert len(message) < 200


def test_the_limits_themselves_are_allowed() -> None:
    assert parse_json(nested(MAX_DEPTH), "x")
    assert parse_json(b"[18446744073709551615, -9223372036854775808]", "x") == [2**64 - 1, -(2**63)]
    assert parse_json(rb'"\ud83d\ude00"', "x") == "\U0001f600"
    assert len(parse_json(json.dumps({str(n): n for n in range(MAX_KEYS)}).encode(), "x")) == 10_000


def test_size_is_looked_at_first() -> None:
    with pytest.raises(FormatError, match="x has 3 bytes, more than the 2 it may have"):
        parse_json(b"???", "x", max_bytes=2)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")

    numbers: tuple[int, ...] = Field(default=(), max_length=10, fail_fast=True)


@pytest.mark.parametrize(
    "document",
    [
        {"numbers": ["x"] * 10**5},
        {"numbers": list(range(11))},
        {str(key): 1 for key in range(9999)},
        {"evil\nkey\u2028\x1b[31m" + "x" * 999: 1},
    ],
    ids=["wrong", "long", "unknown", "hostile"],
)
def test_what_does_not_fit_is_one_short_line(document: Any) -> None:
    with pytest.raises(FormatError, match=r"^x\.json: ") as caught:
        fitting(Strict, document, "x.json")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


BOMB = """
import resource, sys
from ptmech._json import parse_json
from ptmech.errors import FormatError
limit = {limit}
raw = {raw}
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
try:
    parse_json(raw, "manifest.json")
except FormatError as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize(
    "raw",
    [
        'b"[" + b"[]," * 20_000_000 + b"[]]"',
        'b"[" + b\'{"":0},\' * 9_000_000 + b"{}]"',
        'b"[" * 60_000_000',
        "b'[\"' + b\"\\\\ud800\" * 10_000_000 + b'\"]'",
        'b"{" + b",".join(b\'"%d":0\' % n for n in range(1_000_000)) + b"}"',
    ],
    ids=["lists", "objects", "brackets", "surrogates", "keys"],
)
def test_refusing_costs_no_memory(raw: str) -> None:
    """What a bomb of up to 64 MiB costs, bomb included, under a limit of the kernel's."""
    code = BOMB.format(raw=raw, limit=300 * 2**20 + baseline())
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("manifest.json")
    assert "MemoryError" not in done.stderr


def baseline() -> int:
    """Return the bytes of data that an idle interpreter with the reader imported takes."""
    code = (
        "import ptmech._json; "
        "print([line.split()[1] for line in open('/proc/self/status') if 'VmData' in line][0])"
    )
    return 1024 * int(subprocess.check_output([sys.executable, "-c", code], text=True))


def test_the_limit_of_these_tests_bites() -> None:
    code = BOMB.format(raw="bytes(400 * 2**20)", limit=300 * 2**20 + baseline())
    code = code.replace("raw = bytes", "make = lambda: bytes").replace("(raw,", "(make(),")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "MemoryError" in done.stderr
