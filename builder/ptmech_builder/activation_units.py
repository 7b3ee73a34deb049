"""Activations: a block of rows of one dataset through one stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import override

from ptmech.live.packing.cost import Packing
from ptmech.manifest import ActivationFile, FileEntry, StoredDtype, canonical_json
from ptmech.manifest import ActivationUnit as FinishedBlock
from ptmech_builder.prompts import Prompts
from ptmech_builder.receipts import Receipt
from ptmech_builder.units import Kind, Made, Output, Unit
from ptmech_builder.writer import digest, tensor_bytes

if TYPE_CHECKING:
    from ptmech.live.packing.running import Ran
    from ptmech_builder.workbench import Workbench


@dataclass(frozen=True, kw_only=True)
class ActivationUnit(Unit):
    """A block of rows of one dataset through one stage: one pass, all sites and layers."""

    identity: str
    """Digest of weights and adapter."""
    tokenizer: str
    """Digest of the tokenizer."""
    prompts: Prompts
    """The rows of this block."""
    block: int
    n_blocks: int
    first_row: int
    layers: Mapping[str, tuple[int, ...]]
    d_model: int
    compute_dtype: StoredDtype
    dtype: StoredDtype
    packing: Packing = "batches"
    """How rows run together; who shares a forward decides the lowest bits."""
    tokens_per_batch: int | None = None
    """Tokens of one forward pass, padding included; None for the rule of the device."""
    parity_rows: int
    tolerance: float

    @property
    @override
    def kind(self) -> Kind:
        return "activations"

    @property
    @override
    def name(self) -> str:
        return f"acts.{self.stage}.{self.prompts.dataset}.{self.block:05d}"

    @override
    def recipe(self) -> Mapping[str, Any]:
        return {
            "weights": self.identity,
            "tokenizer": self.tokenizer,
            "rows": digest(self.prompts.uids.astype("<u8").tobytes()),
            "template": digest("".join(self.prompts.rendered_sha256).encode()),
            "token_ids": digest(canonical_json({"": [*map(list, self.prompts.token_ids)]})),
            "positions": list(self.prompts.positions),
            "sites": {site: list(layers) for site, layers in self.layers.items()},
            "blocks": [self.block, self.n_blocks, self.first_row],
            "compute_dtype": self.compute_dtype,
            "dtype": self.dtype,
            "packing": self.packing,
            "tokens_per_batch": self.tokens_per_batch,
        }

    @property
    @override
    def demand(self) -> str:
        return f"{self.parity_rows} rows within {self.tolerance}"

    @override
    def accepts(self, receipt: Receipt) -> bool:
        block = receipt.activation
        checked = int(receipt.facts.get("parity_rows", 0))
        wanted = min(self.parity_rows, self.prompts.uids.size)
        return block is not None and block.parity <= self.tolerance and checked >= wanted

    @property
    @override
    def tokens(self) -> int:
        return self.prompts.tokens

    @property
    @override
    def expected_files(self) -> int:
        return sum(len(layers) for layers in self.layers.values())

    @property
    @override
    def expected_bytes(self) -> int:
        width = 2 if self.dtype != "float32" else 4
        rows, positions = self.prompts.indices.shape
        return self.expected_files * rows * (positions * self.d_model * width + 8)

    @override
    def make(self, bench: Workbench) -> Made:
        from ptmech_builder.extract import check_parity, extract

        sites = bench.sites(self.stage)
        wanted = [(site, layer) for site, layers in self.layers.items() for layer in layers]
        ran: list[Ran] = []
        with bench.progress.bar(self.tokens, f"{self.stage} {self.prompts.dataset}") as bar:
            found = extract(
                sites,
                self.prompts,
                wanted,
                dtype=self.dtype,
                packing=self.packing,
                tokens_per_batch=self.tokens_per_batch,
                advance=bar.update,
                note=ran.append,
            )
        bench.check_sites(self.stage, self.prompts.token_ids[0], self.tolerance)
        parity = check_parity(
            sites, self.prompts, found, n_rows=self.parity_rows, tolerance=self.tolerance
        )
        files = (
            Output(self._path(site, layer), self._bytes(site, layer, values), site, layer)
            for (site, layer), values in found.items()
        )
        facts = {**bench.stage_facts(self.stage), "ran": asdict(ran[0])}
        return Made(files, facts, parity.worst, parity.rows)

    @override
    def entry(self, output: Output, file: FileEntry) -> ActivationFile:
        return ActivationFile(
            **file.model_dump(),
            site=output.site,
            layer=output.layer,
            block=self.block,
            rows=self.prompts.uids.size,
        )

    @override
    def finished(self, made: Made) -> FinishedBlock:
        return FinishedBlock(
            key=self.key,
            block=self.block,
            first_row=self.first_row,
            rows=self.prompts.uids.size,
            parity=made.parity,
        )

    def _path(self, site: str, layer: int) -> str:
        several = f".{self.block:05d}-of-{self.n_blocks:05d}" if self.n_blocks > 1 else ""
        folder = f"acts/{self.stage}/{self.prompts.dataset}/{site}"
        return f"{folder}/L{layer:02d}{several}.safetensors"

    def _bytes(self, site: str, layer: int, values: np.ndarray) -> bytes:
        about = {
            "stage": self.stage,
            "dataset": self.prompts.dataset,
            "site": site,
            "layer": layer,
            "positions": list(self.prompts.positions),
        }
        uids = self.prompts.uids.astype(np.uint64)
        return tensor_bytes({"activations": values, "row_uid": uids}, about)
