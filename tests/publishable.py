"""A small artifact that can be published: the synthetic one, with a card that fits it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from tests.synthetic import INSTRUCTION_SETS, STATEMENT_SETS, write_synthetic_artifact

from ptmech.manifest import canonical_json
from ptmech_builder.cards import CardFile, read_card
from ptmech_builder.units import parquet_bytes

REMOTE = {
    "cities": "github:some-lab/truths@" + "4abef9d2" * 5 + "/sets/cities.csv",
    "harmless": "hub:some-lab/kind@" + "dce01c9b" * 5 + "/data/kind one.parquet",
}
"""Datasets of the card that come from public places; the others lie beside it."""


@dataclass(frozen=True)
class Publishable:
    """An artifact and its card, both in folders of a test."""

    root: Path
    card_path: Path

    @property
    def card(self) -> CardFile:
        return read_card(self.card_path)

    @property
    def manifest(self) -> dict[str, Any]:
        return json.loads((self.root / "manifest.json").read_bytes())

    def change_manifest(self, **fields: Any) -> None:
        """Replace fields of the manifest; the files stay as they are."""
        changed = canonical_json({**self.manifest, **fields})
        (self.root / "manifest.json").write_bytes(changed)

    def change_table(self, path: str, change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
        """Rewrite a table, listed as it should be."""
        data = parquet_bytes(change(pl.read_parquet(self.root / path)))
        (self.root / path).write_bytes(data)
        about = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        extras = self.manifest["extras"]
        self.change_manifest(extras=[{**e, **about} if e["path"] == path else e for e in extras])

    def add_file(self, path: str, data: bytes, kind: str = "scores") -> None:
        """Put one more file into the artifact, listed as it should be."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        entry = {"path": path, "bytes": len(data), "sha256": digest, "kind": kind, "unit": digest}
        self.change_manifest(extras=[*self.manifest["extras"], entry])


def write_publishable(
    folder: Path,
    *,
    hub: Mapping[str, Any] | None = None,
    manifest: Mapping[str, Any] | None = None,
    licence: str = "cc0-1.0",
    sample: bool = False,
    **synthetic: Any,
) -> Publishable:
    """Write artifact and card; `hub` is the card's section of that name."""
    root = write_synthetic_artifact(folder / "artifact", **synthetic)
    card_path = folder / "synthetic.toml"
    stages = synthetic.get("stages", ("base", "instruct"))
    lines = [
        "format = 1",
        'name = "synthetic"',
        'title = "Synthetic"',
        'description = "Planted."',
        f"licence = {json.dumps(licence)}",
    ]
    if hub:
        lines += ["[hub]", *(f"{key} = {json.dumps(value)}" for key, value in hub.items())]
    for stage in stages:
        lines += [
            "[[stages]]",
            f'name = "{stage}"',
            f'title = "{stage}"',
            'model = { path = "model" }',
        ]
    for dataset in (*STATEMENT_SETS, *INSTRUCTION_SETS):
        statements = dataset in STATEMENT_SETS
        lines += [
            "[[datasets]]",
            f'name = "{dataset}"',
            f'title = "{dataset}"',
            f'kind = "{"statements" if statements else "instructions"}"',
            f'file = "{REMOTE.get(dataset, f"sets/{dataset}.csv")}"',
        ]
        if sample and dataset == "harmless":
            lines += ["sample = { train = 20, validation = 5, test = 5, seed = 7 }"]
    card_path.write_text("\n".join(lines) + "\n")
    made = Publishable(root, card_path)
    datasets = made.manifest["datasets"]
    for dataset in datasets:
        dataset["source"] = REMOTE.get(dataset["name"], f"{dataset['name']}.csv")
    made.change_manifest(
        datasets=datasets,
        licence=licence,
        card_sha256=hashlib.sha256(card_path.read_bytes()).hexdigest(),
        **(manifest or {}),
    )
    return made
