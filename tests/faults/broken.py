"""Writers that break a promise each: what the tests of faults must turn red on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ptmech.manifest import FileEntry, canonical_json, parse_schema
from ptmech_builder.receipts import Receipt, Standing
from ptmech_builder.writer import Writer


def break_writer(name: str, finished: Path) -> None:
    """Break the writer of this process.

    Parameters
    ----------
    name
        One of :data:`BROKEN`.
    finished
        A finished artifact of the same card.
    """
    BROKEN[name](finished)


def _replace(**methods: Callable[..., Any]) -> None:
    for name, method in methods.items():
        getattr(Writer, name)  # what is to be broken must be there
        setattr(Writer, name, method)


def _in_place(_finished: Path) -> None:
    """Write under the final name, with no temporary file."""

    def place(self: Writer, target: Path, data: bytes) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())

    _replace(_place=place)


def _receipt_first(_finished: Path) -> None:
    """Write the receipt before the files it speaks of, and believe receipts unseen."""
    put, place = Writer.put, Writer._place
    late: list[tuple[str, bytes]] = []
    begun: list[str] = []

    def begin(self: Writer, unit: str) -> None:
        begun.append(unit)

    def defer(self: Writer, path: str, data: bytes) -> FileEntry:
        if not begun:
            return put(self, path, data)
        late.append((path, data))
        return self.describe(path, data)

    def finish(self: Writer, receipt: Receipt) -> Receipt:
        begun.clear()
        place(self, self.root / f".build/receipts/{receipt.unit}.json", canonical_json(receipt))
        while late:
            put(self, *late.pop(0))
        return receipt

    def standing(self: Writer, unit: str, key: str, *_args: Any, **_options: Any) -> Standing:
        path = self.root / ".build" / "receipts" / f"{unit}.json"
        if not path.is_file():
            return Standing(None)
        receipt = parse_schema(Receipt, path.read_bytes(), path.name)
        return Standing(receipt if receipt.key == key else None)

    _replace(begin=begin, put=defer, finish=finish, standing=standing)


def _manifest_first(finished: Path) -> None:
    """Write the manifest before the files it lists."""
    begin = Writer.begin

    def withdraw(self: Writer) -> None:
        return

    def begin_with_the_manifest(self: Writer, unit: str) -> None:
        begin(self, unit)
        self.put("manifest.json", (finished / "manifest.json").read_bytes())

    _replace(withdraw=withdraw, begin=begin_with_the_manifest)


BROKEN: Final = {
    "in place": _in_place,
    "receipt first": _receipt_first,
    "manifest first": _manifest_first,
}
