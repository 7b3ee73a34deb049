"""Canaries: names and secrets that nothing may repeat, and a search that finds them in disguise."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, quote_plus

import polars as pl

USER = "canaryuser-7431"
HOST = "canary-host-9127"
TOKEN = "hf_CANARY7431tokenInTheEnvironment"
STORED = "canary-stored-login-5527"
PASSWORD = "canarypassword-3318"
CLOUD = "cAnArY/cloud+secret/0123456789abcdefXYZ"
KEY = "Q2FuYXJ5IGtleSBvZiBzZXZlcmFsIGxpbmVz"
"""A line of a private key."""

CANARIES = (USER, HOST, TOKEN, STORED, PASSWORD, CLOUD, KEY)


@dataclass(frozen=True)
class Find:
    """A canary, how it was spelled, and where."""

    canary: str
    spelling: str
    where: str


def spellings(canary: str) -> dict[str, tuple[bytes, ...]]:
    """Every way in which a text of ours, of a library or of a file could hold a canary."""
    text = canary.encode()
    return {
        "plain": (text,),
        "lower case": (text.lower(),),
        "URL": (quote(canary, safe="").encode(), quote_plus(canary).encode()),
        "twice URL": (quote(quote(canary, safe=""), safe="").encode(),),
        "JSON": (json.dumps(canary)[1:-1].replace("/", "\\/").encode(),),
        "code points": ("".join(f"\\u{ord(letter):04x}" for letter in canary).encode(),),
        "back slashes": (canary.replace("/", "\\").encode(), canary.replace("/", "\\\\").encode()),
        "UTF-16": (canary.encode("utf-16-le"), canary.encode("utf-16-be")),
        "base64": tuple(in_base64(text)),
        "hex": (text.hex().encode(), text.hex().upper().encode()),
    }


def in_base64(text: bytes) -> Iterator[bytes]:
    """What base64 makes of a text at each of the three offsets, less what its neighbours change."""
    for offset in range(3):
        padded = b"\0" * offset + text
        whole = base64.b64encode(padded[: len(padded) // 3 * 3])
        inner = whole[4:] if offset else whole
        yield inner
        yield inner.replace(b"+", b"-").replace(b"/", b"_")


def find_in_bytes(data: bytes, where: str, canaries: Iterable[str] = CANARIES) -> list[Find]:
    """Every canary in some bytes, in any spelling."""
    lowered = data.lower()
    return [
        Find(canary, spelling, where)
        for canary in canaries
        for spelling, forms in spellings(canary).items()
        if any(form in (lowered if spelling == "lower case" else data) for form in forms)
    ]


def find_in_file(path: Path) -> list[Find]:
    """Every canary in a file: its bytes, its name, and what a compressed table decodes to."""
    found = find_in_bytes(path.read_bytes(), str(path.name))
    if path.suffix == ".parquet":
        found += find_in_bytes(decoded(path), f"{path.name}, decoded")
    return found


def decoded(path: Path) -> bytes:
    """A Parquet file as text: its metadata, every cell, and texts that are cut into pieces."""
    frame = pl.read_parquet(path)
    pieces = [str(pl.read_parquet_metadata(path)), frame.write_ndjson()]
    for name, dtype in frame.schema.items():
        if dtype == pl.List(pl.String):
            pieces += frame[name].list.join("").drop_nulls().to_list()
    return "\n".join(pieces).encode()


def find_in_tree(root: Path) -> list[Find]:
    """Every canary below a folder: in files, and in the names of files and folders."""
    found: list[Find] = []
    for path in sorted(root.rglob("*")):
        inside = path.relative_to(root).as_posix()
        found += find_in_bytes(inside.encode(), f"the name {inside}")
        if path.is_file():
            found += find_in_file(path)
    return found


def find_in_texts(texts: Mapping[str, str | bytes]) -> list[Find]:
    """Every canary in named texts."""
    return [
        find
        for where, text in texts.items()
        for find in find_in_bytes(text.encode() if isinstance(text, str) else text, where)
    ]
