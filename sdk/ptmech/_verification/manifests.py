"""``manifest.json`` against itself, before any other file is opened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import PurePosixPath
from typing import Final

from ptmech._schemas import STATEMENTS
from ptmech._verification.inspection import Inspection
from ptmech.manifest import MANIFEST, Extra, Manifest

_KINDS: Final = {
    "tables": "table",
    "weights": "weights",
    "adapters": "adapter",
    "traces": "trace",
    "scores": "scores",
}
"""Kind of the files of each folder."""


def check_manifest(inspection: Inspection) -> None:
    """Check what its schema leaves open, and which files have to be among those listed.

    What a narrowed build may lack is not asked for.
    """
    manifest = inspection.manifest
    for problem in (
        *_headings(manifest),
        *_stages(manifest),
        *_parts(manifest),
        *_parity(manifest),
        *_defaults(manifest),
        *_tables(manifest),
    ):
        inspection.add(MANIFEST, problem)
    for entry in manifest.extras:
        for problem in _extra(manifest, entry):
            inspection.add(entry.path, problem)


def check_listing(inspection: Inspection) -> None:
    """Check that no file is listed twice, in whichever manifest."""
    manifest = inspection.manifest
    parts = [inspection.part(entry) for entry in manifest.parts]
    files = [file for part in parts if part is not None for file in part.files]
    times = Counter(entry.path for entry in (*manifest.extras, *manifest.parts, *files))
    for path, count in times.items():
        if count > 1:
            inspection.add(path, f"is listed {count} times")


def _headings(manifest: Manifest) -> Iterator[str]:
    for name in ("title", "licence"):
        if not getattr(manifest, name).strip():
            yield f"has no {name}"
    for stage in manifest.stages:
        if not stage.sha256:
            yield f"stage {stage.name!r} does not say which weights it is"


def _stages(manifest: Manifest) -> Iterator[str]:
    shapes = {(stage.n_layers, stage.d_model) for stage in manifest.stages}
    if len(shapes) > 1:
        yield f"its stages differ in layers and width: {sorted(shapes)}"
    for dataset in manifest.datasets:
        if dataset.rows < 1 or not dataset.positions:
            yield f"dataset {dataset.name!r} has {dataset.rows} rows at {dataset.positions}"


def _parts(manifest: Manifest) -> Iterator[str]:
    """Check that every stage has each dataset once."""
    held = Counter((part.stage, part.dataset) for part in manifest.parts)
    for stage, dataset in product(manifest.stages, manifest.datasets):
        count = held[stage.name, dataset.name]
        if count != 1:
            yield f"has {count or 'no'} parts of {dataset.name!r} at stage {stage.name!r}"


def _parity(manifest: Manifest) -> Iterator[str]:
    parity = manifest.parity
    if parity is None:
        if manifest.parts:
            yield "does not say how exact its activations are"
        return
    if not parity.worst <= parity.tolerance:
        yield f"parity: {parity.worst:.3g} is beyond the tolerance, {parity.tolerance:.3g}"
    if parity.rows < 1:
        yield f"parity was checked on {parity.rows} rows"
    if (parity.stage, parity.dataset) not in {(p.stage, p.dataset) for p in manifest.parts}:
        yield f"parity is of {parity.dataset!r} at stage {parity.stage!r}, which is no part"


def _tables(manifest: Manifest) -> Iterator[str]:
    there = {entry.path for entry in manifest.extras}
    tokens = (f"tables/tokens/{stage.name}.parquet" for stage in manifest.stages)
    for path in (STATEMENTS, *tokens):
        if path not in there:
            yield f"does not list {path}"


def _extra(manifest: Manifest, entry: Extra) -> Iterator[str]:
    """Check folder, kind and stage of a file, and the digest of an adapter's weights."""
    folder, *rest = PurePosixPath(entry.path).parts
    if folder not in _KINDS:
        yield "is in no folder that an artifact has"
        return
    if entry.kind != _KINDS[folder]:
        yield f"is listed as {entry.kind!r} where {folder}/ holds {_KINDS[folder]!r}"
    if folder in ("weights", "adapters", "scores"):
        stage = manifest.stage(rest[0]) if len(rest) > 1 else None
        if stage is None:
            yield "is of no stage that the manifest names"
            return
        promised = stage.sha256.get(f"adapter/{rest[-1]}")
        weights = folder == "adapters" and rest[-1].endswith(".safetensors")
        if weights and promised != entry.sha256:
            yield f"is not the adapter that stage {stage.name!r} was built with"


def _defaults(manifest: Manifest) -> Iterator[str]:
    chosen = manifest.defaults
    names = {
        "truth_datasets": chosen.truth_datasets,
        "truth_asked": (chosen.truth_asked,) if chosen.truth_asked else (),
        "trace_datasets": chosen.trace_datasets,
    }
    if chosen.refusal_layer is not None and not manifest.narrowed:
        names |= {"harmful": (chosen.harmful,), "harmless": (chosen.harmless,)}
    for field, datasets in names.items():
        for name in datasets:
            if manifest.dataset(name) is None:
                yield f"defaults: {field} is {name!r}, a dataset that is not there"
    yield from _refusal_places(manifest)


def _refusal_places(manifest: Manifest) -> Iterator[str]:
    """Check stages and positions that refusal directions are read at."""
    chosen = manifest.defaults
    if chosen.refusal_layer is None:
        return
    if not manifest.narrowed:
        for stage in {*chosen.refusal_layers, *chosen.refusal_positions}:
            if manifest.stage(stage) is None:
                yield f"defaults: a refusal direction of {stage!r}, a stage that is not there"
    for name in (chosen.harmful, chosen.harmless):
        dataset = manifest.dataset(name)
        for position in {chosen.refusal_position, *chosen.refusal_positions.values()}:
            if dataset is not None and position not in dataset.positions:
                yield f"defaults: refusal position {position} is not stored of {name!r}"
