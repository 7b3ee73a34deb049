"""Part manifests and activation files: against ``manifest.json``, each other and the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ptmech._json import parse_json
from ptmech._verification.inspection import Inspection
from ptmech._verification.rows import Claim, Rows
from ptmech.errors import FormatError
from ptmech.manifest import MANIFEST, ActivationFile, ActivationUnit, FileEntry, Part, PartEntry


def check_parts(inspection: Inspection, rows: Rows) -> None:
    """Check every part manifest and every file that it lists."""
    keys: dict[tuple[str, str], str] = {}
    for entry in inspection.manifest.parts:
        part = inspection.part(entry)
        if part is None:
            continue
        for problem in (
            *_promises(inspection, entry, part),
            *_coverage(inspection, entry, part),
            *_parity(inspection, part),
        ):
            inspection.add(entry.path, problem)
        for unit in part.units:
            where = f"{entry.path}, block {unit.block}"
            other = keys.setdefault((part.stage, unit.key), where)
            if other != where:
                inspection.add(entry.path, f"block {unit.block} has the key of {other}")
        units = {unit.block: unit for unit in part.units}
        for file in part.files:
            _check_file(inspection, file, entry.path, part, units.get(file.block), rows)


def check_finite(inspection: Inspection, entry: FileEntry, tensors: dict[str, np.ndarray]) -> None:
    """Note tensors that hold anything but finite numbers."""
    for name, array in tensors.items():
        count = array.size - int(np.count_nonzero(np.isfinite(array)))
        if count:
            inspection.add(entry.path, f"tensor {name!r} holds {count} values that are not finite")


def described(path: Path) -> dict[str, Any]:
    """Return what a sound safetensors file says of itself; nothing if it says nothing of ours.

    Only files that :func:`ptmech.storage.read_tensors` has accepted come here.
    """
    with path.open("rb") as stream:
        header = stream.read(int.from_bytes(stream.read(8), "little"))
    try:
        about = parse_json(
            parse_json(header, path.name)["__metadata__"]["ptmech"].encode(), path.name
        )
    except (KeyError, TypeError, AttributeError, FormatError):
        return {}
    return about if isinstance(about, dict) else {}


def _promises(inspection: Inspection, entry: PartEntry, part: Part) -> Iterator[str]:
    """Compare what a part says of itself with what ``manifest.json`` says of it."""
    manifest = inspection.manifest
    stage, dataset = manifest.stage(entry.stage), manifest.dataset(entry.dataset)
    facts: list[tuple[str, object, object]] = [
        ("rows", part.rows, entry.rows),
        ("bytes of activations", sum(file.bytes for file in part.files), entry.data_bytes),
        ("dtype", part.dtype, manifest.dtype),
    ]
    if stage is not None:
        facts.append(("d_model", part.d_model, stage.d_model))
    if dataset is not None:
        facts.append(("rows of the dataset", part.rows, dataset.rows))
        facts.append(("positions", part.positions, dataset.positions))
    for what, found, promised in facts:
        if found != promised:
            yield f"{what}: {found} where {MANIFEST} has {promised}"


def _coverage(inspection: Inspection, entry: PartEntry, part: Part) -> Iterator[str]:
    """Check that the blocks follow each other and that every site and layer has each of them."""
    row = 0
    for number, unit in enumerate(sorted(part.units, key=lambda unit: unit.block)):
        if unit.block != number:
            yield f"block {unit.block} stands where block {number} should"
        if unit.first_row != row:
            yield f"block {unit.block} begins at {unit.first_row}, not {row}"
        if unit.rows < 1:
            yield f"block {unit.block} has {unit.rows} rows"
        row = unit.first_row + unit.rows
    if row != part.rows:
        yield f"its blocks hold {row} rows of {part.rows}"
    stage = inspection.manifest.stage(entry.stage)
    promised = Counter(
        (site, layer, unit.block)
        for site, layers in inspection.manifest.sites.items()
        for layer in layers
        if stage is None or layer < stage.n_layers
        for unit in part.units
    )
    held = Counter((file.site, file.layer, file.block) for file in part.files)
    for name, places in (("lacks", promised - held), ("has too many of", held - promised)):
        for site, layer, block in places:
            yield f"{name} {site} layer {layer}, block {block}"


def _parity(inspection: Inspection, part: Part) -> Iterator[str]:
    """Check that no block deviates more than the whole artifact says."""
    parity = inspection.manifest.parity
    if parity is None:
        return
    for unit in part.units:
        if not 0 <= unit.parity <= parity.worst:
            yield (
                f"block {unit.block} deviates by {unit.parity:.3g} where {MANIFEST} says that "
                f"none does by more than {parity.worst:.3g}"
            )


def _check_file(
    inspection: Inspection,
    file: ActivationFile,
    owner: str,
    part: Part,
    unit: ActivationUnit | None,
    rows: Rows,
) -> None:
    tensors = inspection.tensors(file)
    if tensors is None:
        return
    expected = {
        "activations": (part.dtype, (file.rows, len(part.positions), part.d_model)),
        "row_uid": ("uint64", (file.rows,)),
    }
    found = {name: (array.dtype.name, array.shape) for name, array in tensors.items()}
    if found != expected:
        inspection.add(file.path, f"holds {found} where it should hold {expected}")
        return
    check_finite(inspection, file, tensors)
    _check_description(inspection, file, part)
    if unit is None or unit.rows != file.rows:
        inspection.add(file.path, f"its {file.rows} rows are not those of block {file.block}")
        return
    uids = np.asarray(tensors["row_uid"])
    rows.claim(part.dataset, Claim(file.path, owner, unit.first_row, uids))


def _check_description(inspection: Inspection, file: ActivationFile, part: Part) -> None:
    """Check that a file is the one it says it is: files may be swapped whole."""
    promised = {
        "stage": part.stage,
        "dataset": part.dataset,
        "site": file.site,
        "layer": file.layer,
        "positions": list(part.positions),
    }
    about = described(inspection.artifact.path(file))
    differing = [name for name in promised if about.get(name, promised[name]) != promised[name]]
    if differing:
        name = differing[0]
        inspection.add(
            file.path, f"says that it is of {name} {about[name]!r}, not {promised[name]!r}"
        )
    folder = f"acts/{part.stage}/{part.dataset}/{file.site}/L{file.layer:02d}."
    if not file.path.startswith(folder):
        inspection.add(file.path, f"is not where {file.site} of layer {file.layer} belongs")
