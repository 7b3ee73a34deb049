"""Artifacts made hostile or broken, each by a function of its own.

A function takes the folder of a good artifact and spoils it. Sizes and digests in the manifests are
put right again, so that what is hostile reaches its reader and is not stopped by a checksum; where
the checksum is the point, the function says so by :meth:`Folder.replace`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import struct
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from tests.faults import forged_parquet as forged

MANIFEST = "manifest.json"
STATEMENTS = "tables/statements.parquet"
TOKENS = "tables/tokens/base.parquet"
CITIES = "manifests/base/cities.json"
LAYER = "acts/base/cities/resid_post/L01.safetensors"
UNEMBEDDING = "weights/base/unembedding.safetensors"
NEURONS = "weights/base/neurons.parquet"
GRID = "traces/base-base/cities.zarr"

Attack = Callable[["Folder"], object]


class Folder:
    """An artifact's folder that is being spoiled.

    Files are hard links to those of the good one: nothing is ever written in place.
    """

    def __init__(self, root: Path, good: Path) -> None:
        for folder, _, names in os.walk(good):
            copied = root / Path(folder).relative_to(good)
            copied.mkdir()
            for name in names:
                os.link(os.path.join(folder, name), os.path.join(copied, name))
        self.root = root
        self.outside = root.with_name(f"{root.name}-outside")
        self.outside.mkdir()

    def read(self, path: str) -> bytes:
        return (self.root / path).read_bytes()

    def replace(self, path: str, data: bytes) -> Path:
        """Put other bytes where a file is; the manifests still promise the old ones."""
        target = self.root / path
        target.unlink(missing_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        return target

    def put(self, path: str, data: bytes, kind: str = "table") -> None:
        """Put other bytes where a file is, or a new file, as the manifests then promise it."""
        self.replace(path, data)
        self.promise(path, len(data), hashlib.sha256(data).hexdigest(), kind)

    def promise(self, path: str, size: int, sha256: str, kind: str = "table") -> None:
        promised = {"path": path, "bytes": size, "sha256": sha256}
        if path.startswith("acts/"):
            _, stage, dataset, _ = path.split("/", 3)

            def in_part(part: dict[str, Any]) -> None:
                for entry in part["files"]:
                    if entry["path"] == path:
                        entry |= promised

            self.edit_part(in_part, stage, dataset)
            return
        manifest = json.loads(self.read(MANIFEST))
        entries = [*manifest["extras"], *manifest["parts"]]
        held = [entry for entry in entries if entry["path"] == path]
        for entry in held:
            entry |= promised
        if not held:
            unit = hashlib.sha256(path.encode()).hexdigest()
            manifest["extras"].append({**promised, "kind": kind, "unit": unit})
        self.replace(MANIFEST, json.dumps(manifest).encode())

    def edit_manifest(self, edit: Callable[[dict[str, Any]], object]) -> None:
        manifest = json.loads(self.read(MANIFEST))
        edit(manifest)
        self.replace(MANIFEST, json.dumps(manifest).encode())

    def edit_part(
        self, edit: Callable[[dict[str, Any]], object], stage: str = "base", dataset: str = "cities"
    ) -> None:
        path = f"manifests/{stage}/{dataset}.json"
        part = json.loads(self.read(path))
        edit(part)
        self.put(path, json.dumps(part).encode())

    def edit_table(self, path: str, edit: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
        buffer = io.BytesIO()
        edit(pl.read_parquet(io.BytesIO(self.read(path)))).write_parquet(buffer)
        self.put(path, buffer.getvalue())

    def edit_json(self, path: str, edit: Callable[[dict[str, Any]], object]) -> None:
        node = json.loads(self.read(path))
        edit(node)
        self.put(path, json.dumps(node).encode())

    def unlist(self, path: str) -> None:
        def drop(manifest: dict[str, Any]) -> None:
            manifest["extras"] = [e for e in manifest["extras"] if e["path"] != path]

        self.edit_manifest(drop)
        (self.root / path).unlink()


def unspoiled(folder: Folder) -> None:
    """Nothing: the control."""


# JSON


def manifest_is(raw: bytes) -> Attack:
    """``manifest.json`` is these bytes."""
    return lambda folder: folder.replace(MANIFEST, raw)


def part_is(raw: bytes) -> Attack:
    """A part manifest is these bytes, as ``manifest.json`` promises."""
    return lambda folder: folder.put(CITIES, raw)


def manifest_has(**fields: Any) -> Attack:
    """``manifest.json`` has other values in some fields."""
    return lambda folder: folder.edit_manifest(lambda manifest: manifest.update(fields))


def manifest_encoded(encoding: str) -> Attack:
    """``manifest.json`` is in another encoding than UTF-8."""

    def attack(folder: Folder) -> None:
        folder.replace(MANIFEST, folder.read(MANIFEST).decode().encode(encoding))

    return attack


def manifest_around(before: bytes, after: bytes) -> Attack:
    """Something stands before or behind ``manifest.json``'s document."""
    return lambda folder: folder.replace(MANIFEST, before + folder.read(MANIFEST) + after)


def manifest_text(old: str, new: str) -> Attack:
    """``manifest.json`` says something else in one place, which need not be JSON."""

    def attack(folder: Folder) -> None:
        text = folder.read(MANIFEST).decode()
        assert old in text
        folder.replace(MANIFEST, text.replace(old, new, 1).encode())

    return attack


def manifest_padded(mebibytes: int) -> Attack:
    """``manifest.json`` is a good document and very much white space."""
    return manifest_around(b" " * (mebibytes * 2**20), b"")


def deep(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def deep_in_a_string(folder: Folder) -> None:
    """Brackets in a text are no depth; what follows them is."""
    text = b'{"\\"[[[[\\\\": ' + b'{"a": [' * 2_000 + b"]}" * 2_000 + b"}"
    folder.replace(MANIFEST, text)


def many_values(number: int) -> bytes:
    """As many empty lists: two bytes each in the file, sixty in memory."""
    return b"[" + b"[]," * number + b"[]]"


def many_names(number: int) -> bytes:
    return b"{" + b",".join(b'"%d":0' % at for at in range(number)) + b"}"


def many_entries(number: int) -> Attack:
    """``manifest.json`` lists a million files."""

    def attack(folder: Folder) -> None:
        manifest = json.loads(folder.read(MANIFEST))
        entry = json.dumps(manifest["extras"][0])
        manifest["extras"] = "HERE"
        text = json.dumps(manifest).replace('"HERE"', f"[{','.join([entry] * number)}]")
        folder.replace(MANIFEST, text.encode())

    return attack


# Paths


def listed_as(path: str) -> Attack:
    """``manifest.json`` gives a table a path of the attacker's choice."""

    def attack(folder: Folder) -> None:
        def rename(manifest: dict[str, Any]) -> None:
            for entry in manifest["extras"]:
                if entry["path"] == STATEMENTS:
                    entry["path"] = path

        folder.edit_manifest(rename)

    return attack


def part_listed_as(path: str) -> Attack:
    """``manifest.json`` gives a part a path of the attacker's choice."""
    return lambda folder: folder.edit_manifest(lambda m: m["parts"][0].update(path=path))


def activations_listed_as(path: str) -> Attack:
    """A part gives its activations a path of the attacker's choice."""
    return lambda folder: folder.edit_part(lambda part: part["files"][0].update(path=path))


def also_listed(path: str) -> Attack:
    """``manifest.json`` lists one file more."""

    def attack(folder: Folder) -> None:
        folder.edit_manifest(lambda m: m["extras"].append({**m["extras"][0], "path": path}))

    return attack


def linked(path: str, target: str, *, listed: bool = True) -> Attack:
    """A file is a link, to where the file's very bytes are."""

    def attack(folder: Folder) -> None:
        data = folder.read(path)
        (folder.outside / "stolen").write_bytes(data)
        (folder.root / path).unlink()
        (folder.root / path).symlink_to(target.format(outside=folder.outside, name=Path(path).name))

    return attack


def folder_linked(path: str) -> Attack:
    """A folder of the artifact is a link to the same folder outside."""

    def attack(folder: Folder) -> None:
        moved = folder.outside / "moved"
        (folder.root / path).rename(moved)
        (folder.root / path).symlink_to(moved, target_is_directory=True)

    return attack


def endless(device: str) -> Attack:
    """A file is a link to a device that never ends, promised with no bytes as its size says."""

    def attack(folder: Folder) -> None:
        (folder.root / STATEMENTS).unlink()
        (folder.root / STATEMENTS).symlink_to(device)
        folder.promise(STATEMENTS, 0, hashlib.sha256(b"").hexdigest())

    return attack


def pipe(path: str) -> Attack:
    """A file is a pipe nobody writes into: to open it is to wait for ever."""

    def attack(folder: Folder) -> None:
        (folder.root / path).unlink()
        os.mkfifo(folder.root / path)
        if path != MANIFEST:
            folder.promise(path, 0, hashlib.sha256(b"").hexdigest())

    return attack


def directory(path: str) -> Attack:
    """There is a folder where a file should be."""

    def attack(folder: Folder) -> None:
        (folder.root / path).unlink()
        (folder.root / path).mkdir()
        if path != MANIFEST:
            size = (folder.root / path).stat().st_size
            folder.promise(path, size, hashlib.sha256(b"").hexdigest())

    return attack


def gone(path: str) -> Attack:
    return lambda folder: (folder.root / path).unlink()


def flipped(path: str) -> Attack:
    """One bit of a file is another, and its digest is not put right."""

    def attack(folder: Folder) -> None:
        raw = bytearray(folder.read(path))
        raw[len(raw) // 2] ^= 1
        folder.replace(path, bytes(raw))

    return attack


def truncated(path: str, *, resealed: bool = True) -> Attack:
    """A file is cut short by a third."""

    def attack(folder: Folder) -> None:
        raw = folder.read(path)
        (folder.put if resealed else folder.replace)(path, raw[: len(raw) * 2 // 3])

    return attack


def sparse(path: str, size: int) -> Attack:
    """A file of very many zeros that take no room on the disk; its digest is not its own."""

    def attack(folder: Folder) -> None:
        os.truncate(folder.replace(path, b""), size)

    return attack


def holds(path: str, raw: bytes) -> Attack:
    """A file is these bytes, as the manifests promise."""
    return lambda folder: folder.put(path, raw)


# Numbers


def stage_has(**fields: Any) -> Attack:
    return lambda folder: folder.edit_manifest(lambda m: m["stages"][0].update(fields))


def dataset_has(**fields: Any) -> Attack:
    return lambda folder: folder.edit_manifest(lambda m: m["datasets"][0].update(fields))


def part_has(**fields: Any) -> Attack:
    return lambda folder: folder.edit_part(lambda part: part.update(fields))


def file_has(**fields: Any) -> Attack:
    """The first file of a part at layer 1 claims something else of itself."""

    def attack(folder: Folder) -> None:
        def edit(part: dict[str, Any]) -> None:
            next(f for f in part["files"] if f["path"] == LAYER).update(fields)

        folder.edit_part(edit)

    return attack


def unit_has(**fields: Any) -> Attack:
    return lambda folder: folder.edit_part(lambda part: part["units"][0].update(fields))


def entry_has(**fields: Any) -> Attack:
    """The table of statements is listed with other facts."""

    def attack(folder: Folder) -> None:
        def edit(manifest: dict[str, Any]) -> None:
            next(e for e in manifest["extras"] if e["path"] == STATEMENTS).update(fields)

        folder.edit_manifest(edit)

    return attack


def part_entry_has(**fields: Any) -> Attack:
    return lambda folder: folder.edit_manifest(lambda m: m["parts"][0].update(fields))


def file_listed_again(folder: Folder) -> None:
    """A block of activations is there twice."""

    def edit(part: dict[str, Any]) -> None:
        part["files"].append(next(f for f in part["files"] if f["path"] == LAYER))

    folder.edit_part(edit)


def blocks(*spans: tuple[int, int]) -> Attack:
    """Blocks of a part begin and end where they like."""

    def attack(folder: Folder) -> None:
        def edit(part: dict[str, Any]) -> None:
            unit = part["units"][0]
            part["units"] = [
                {**unit, "block": block, "first_row": first, "rows": rows}
                for block, (first, rows) in enumerate(spans)
            ]

        folder.edit_part(edit)

    return attack


def file_not_listed(folder: Folder) -> None:
    """A part forgets one of its files."""

    def edit(part: dict[str, Any]) -> None:
        part["files"] = [file for file in part["files"] if file["path"] != LAYER]

    folder.edit_part(edit)


def default_is(**fields: Any) -> Attack:
    return lambda folder: folder.edit_manifest(lambda m: m["defaults"].update(fields))


# safetensors


def safetensors(header: bytes | Mapping[str, Any], data: bytes = b"", length: int | None = None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def tensor(dtype: str, shape: Sequence[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def tensors(header: bytes | Mapping[str, Any], data: bytes = b"", length: int | None = None):
    """The statistics of an unembedding are a file with this header."""
    return holds(UNEMBEDDING, safetensors(header, data, length))


def arrays(path: str, **edits: Callable[[np.ndarray], np.ndarray]) -> Attack:
    """Change tensors of a file of activations or statistics, and write it anew."""

    def attack(folder: Folder) -> None:
        from safetensors.numpy import load, save

        held = load(folder.read(path))
        for name, edit in edits.items():
            held[name] = edit(held[name])
        folder.put(path, save({name: np.ascontiguousarray(array) for name, array in held.items()}))

    return attack


def without_row_ids(folder: Folder) -> None:
    from safetensors.numpy import load, save

    folder.put(LAYER, save({"activations": load(folder.read(LAYER))["activations"]}))


def many_tensors(number: int) -> bytes:
    entry = json.dumps(tensor("U8", [0], 0, 0)).encode()
    return b"{" + b",".join(b'"t%d":%s' % (at, entry) for at in range(number)) + b"}"


# Tables


def table(path: str, edit: Callable[[pl.DataFrame], pl.DataFrame]) -> Attack:
    return lambda folder: folder.edit_table(path, edit)


def column(path: str, name: str, values: Any) -> Attack:
    """One column of a table is another expression, or a constant."""
    expression = values if isinstance(values, pl.Expr) else pl.lit(values)
    return table(path, lambda frame: frame.with_columns(expression.alias(name)))


def first(path: str, name: str, value: Any) -> Attack:
    """The first value of a column is another."""
    changed = pl.when(pl.int_range(pl.len()) == 0).then(pl.lit(value)).otherwise(pl.col(name))
    return table(
        path, lambda frame: frame.with_columns(changed.cast(frame[name].dtype).alias(name))
    )


def lacks(path: str, name: str) -> Attack:
    return table(path, lambda frame: frame.drop(name))


def parquet(*columns: forged.Column, rows: int, path: str = STATEMENTS, **lies: Any) -> Attack:
    """A table is a Parquet file written by hand."""
    return holds(path, forged.parquet(columns, rows, **lies))


def footer_claims(length: int) -> Attack:
    """The last bytes of a Parquet file say that its footer is as long as this."""

    def attack(folder: Folder) -> None:
        raw = folder.read(STATEMENTS)
        folder.put(STATEMENTS, raw[:-8] + length.to_bytes(4, "little") + raw[-4:])

    return attack


def wide(columns: int) -> Attack:
    """A table of very many columns, none of which holds anything."""

    def attack(folder: Folder) -> None:
        folder.put(
            STATEMENTS, forged.parquet([forged.Column(f"c{at}", []) for at in range(columns)], 0)
        )

    return attack


def spoiled_page(folder: Folder) -> None:
    """Bytes in the middle of a table's data are others; size and digest are put right."""
    raw = bytearray(folder.read(STATEMENTS))
    for at in range(4, 400):
        raw[at] ^= 0xFF
    folder.put(STATEMENTS, bytes(raw))


# zarr


def array_says(**fields: Any) -> Attack:
    """The grid's ``zarr.json`` has other values in some fields."""
    return lambda folder: folder.edit_json(f"{GRID}/grid/zarr.json", lambda n: n.update(fields))


def array_of(shape: Sequence[int], chunk: Sequence[int]) -> Attack:
    grid = {"name": "regular", "configuration": {"chunk_shape": list(chunk)}}
    return array_says(shape=list(shape), chunk_grid=grid)


def codecs(*described: Mapping[str, Any]) -> Attack:
    return array_says(codecs=list(described))


LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}
CRC = {"name": "crc32c"}


def compressed_bomb(codec: str) -> Attack:
    """The grid's only chunk is half a gibibyte of zeros, compressed, of a shape that fits."""

    def attack(folder: Folder) -> None:
        array_of([6, 4, 2**24], [6, 4, 2**24])(folder)
        how: dict[str, Any] = {"name": codec, "configuration": {"level": 1}}
        if codec == "zstd":
            how["configuration"]["checksum"] = False
        codecs(LITTLE, how)(folder)
        packed = forged.zeros(1536, forged.ZSTD if codec == "zstd" else forged.GZIP)
        folder.put(f"{GRID}/grid/c/0/0/0", packed, "trace")

    return attack


def chunk_is(raw: bytes) -> Attack:
    return lambda folder: folder.put(f"{GRID}/grid/c/0/0/0", raw, "trace")


def chunk_gone(folder: Folder) -> None:
    """A chunk is neither there nor listed: zarr itself would read zeros."""
    folder.unlist(f"{GRID}/grid/c/0/0/0")


def chunk_short(folder: Folder) -> None:
    raw = folder.read(f"{GRID}/grid/c/0/0/0")
    folder.put(f"{GRID}/grid/c/0/0/0", raw[: len(raw) // 2], "trace")


def chunk_flipped(folder: Folder) -> None:
    """A bit of a chunk is another, and the digest is put right: what is left is zarr's own sum."""
    raw = bytearray(folder.read(f"{GRID}/grid/c/0/0/0"))
    raw[7] ^= 1
    folder.put(f"{GRID}/grid/c/0/0/0", bytes(raw), "trace")


def group_within(folder: Folder) -> None:
    """The group holds a group, and that one arrays."""
    node = {"zarr_format": 3, "node_type": "group", "attributes": {}}
    folder.put(f"{GRID}/more/zarr.json", json.dumps(node).encode(), "trace")
    inner = folder.read(f"{GRID}/grid/zarr.json")
    folder.put(f"{GRID}/more/grid/zarr.json", inner, "trace")
    folder.put(f"{GRID}/more/grid/c/0/0/0", folder.read(f"{GRID}/grid/c/0/0/0"), "trace")


def attributes_say(**fields: Any) -> Attack:
    """What the trace says of itself is something else."""
    return lambda folder: folder.edit_json(
        f"{GRID}/zarr.json", lambda node: node["attributes"].update(fields)
    )


def attributes_without(name: str) -> Attack:
    return lambda folder: folder.edit_json(
        f"{GRID}/zarr.json", lambda node: node["attributes"].pop(name)
    )


def grid_holds(value: float) -> Attack:
    """One value of the grid is another."""

    def attack(folder: Folder) -> None:
        values = np.zeros((6, 2, 7), "<f8")
        values[0, 0, 0] = value
        array_says(codecs=[LITTLE], data_type="float64")(folder)
        chunk_is(values.tobytes())(folder)

    return attack


# Rows


def rows(reorder: Callable[[np.ndarray], np.ndarray]) -> Attack:
    """Activations and the ids of their rows are reordered, doubled or left out together."""

    def attack(folder: Folder) -> None:
        def edit(part: dict[str, Any]) -> None:
            count = len(order)
            next(f for f in part["files"] if f["path"] == LAYER)["rows"] = count

        order = reorder(np.arange(12))
        arrays(LAYER, activations=lambda a: a[order], row_uid=lambda a: a[order])(folder)
        folder.edit_part(edit)

    return attack


def text_becomes(change: Callable[[str], str]) -> Attack:
    """The first text of the table is another, its id is the old one."""

    def edit(frame: pl.DataFrame) -> pl.DataFrame:
        texts = frame["text"].to_list()
        texts[0] = change(texts[0])
        return frame.with_columns(pl.Series("text", texts))

    return table(STATEMENTS, edit)


def first_row_is(source_id: str | None = None, text: str | None = None) -> Attack:
    """The first row has another name or text, and the id that belongs to it."""

    def edit(frame: pl.DataFrame) -> pl.DataFrame:
        row = frame.row(0, named=True)
        row |= {"source_id": source_id or row["source_id"], "text": text or row["text"]}
        fields = (row["dataset"], row["source_id"], unicodedata.normalize("NFC", row["text"]))
        digest = hashlib.sha256("\0".join(fields).encode()).digest()
        row["row_uid"] = int.from_bytes(digest[:8], "big")
        return pl.concat([pl.DataFrame([row], schema=frame.schema), frame[1:]])

    return table(STATEMENTS, edit)


def flat_grids(folder: Folder) -> None:
    """Nothing that is patched into the later stage does anything."""
    where = "traces/instruct-instruct/cities.zarr"
    for name, value in (("grid", 0.0), ("unpatched", 0.0), ("source", 1.0)):
        node = json.loads(folder.read(f"{where}/{name}/zarr.json"))
        node["codecs"] = [LITTLE]
        folder.put(f"{where}/{name}/zarr.json", json.dumps(node).encode(), "trace")
        chunk = "/".join(["c", *"0" * len(node["shape"])])
        values = np.full(node["shape"], value, "<f4")
        folder.put(f"{where}/{name}/{chunk}", values.tobytes(), "trace")


# Cards


def card(raw: bytes) -> Attack:
    """A card is these bytes."""
    return lambda folder: folder.replace("card.toml", raw)


# Pickle


class Canary:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.path, "unpickled"))


def pickled(path: str, kind: str = "weights") -> Attack:
    """A file is a pickle that leaves a trace if anyone opens it as one."""

    def attack(folder: Folder) -> None:
        folder.put(path, pickle.dumps(Canary(folder.outside / "canary")), kind)

    return attack


def array_of_objects(path: str) -> Attack:
    """A file is a NumPy array of objects, which NumPy stores as a pickle."""

    def attack(folder: Folder) -> None:
        buffer = io.BytesIO()
        objects = np.array([Canary(folder.outside / "canary")], dtype=object)
        np.save(buffer, objects, allow_pickle=True)
        folder.put(path, buffer.getvalue(), "weights")

    return attack


def weights_archive(path: str) -> Attack:
    """A file is what torch.save writes: a zip with a pickle in it."""

    def attack(folder: Folder) -> None:
        import zipfile

        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            canary = pickle.dumps(Canary(folder.outside / "canary"), 2)
            archive.writestr("archive/data.pkl", canary)
            archive.writestr("archive/version", "3\n")
        folder.put(path, buffer.getvalue(), "weights")

    return attack


def float_bytes(value: float, kind: str = "<f") -> bytes:
    return struct.pack(kind, value)


def both(*attacks: Attack) -> Attack:
    """Several at once."""

    def attack(folder: Folder) -> None:
        for each in attacks:
            each(folder)

    return attack
