"""From the receipts of finished units to the manifests of an artifact."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from ptmech.manifest import (
    ActivationFile,
    Dataset,
    Defaults,
    Extra,
    Manifest,
    Parity,
    Part,
    PartEntry,
    Stage,
    canonical_json,
)
from ptmech.model_sources import FolderModel
from ptmech_builder.cards import Card
from ptmech_builder.plan import Plan
from ptmech_builder.receipts import Receipt
from ptmech_builder.writer import Writer


def assemble(plan: Plan, receipts: Mapping[str, Receipt], writer: Writer) -> Manifest:
    """Write the part manifests and return the manifest of the whole.

    Parameters
    ----------
    plan
        What was built.
    receipts
        Of every unit of the plan, by name.
    writer
        Where part manifests go, unless these very bytes stand there already.
    """
    parts = tuple(
        _write_part(plan, stage.card.name, dataset, receipts, writer)
        for stage in plan.stages
        for dataset in stage.prompts
    )
    extras = tuple(
        file for unit in plan.units for file in receipts[unit.name].files if isinstance(file, Extra)
    )
    card = plan.card
    first = plan.stages[0].prompts
    return Manifest(
        name=card.name,
        title=card.title,
        description=card.description,
        licence=card.licence,
        card_sha256=plan.card_sha256,
        narrowed=plan.narrowed,
        stages=tuple(_stages(plan, receipts)),
        datasets=tuple(
            Dataset(
                name=dataset.name,
                title=dataset.title,
                kind=dataset.kind,
                rows=int(first[dataset.name].uids.size),
                positions=dataset.positions,
                sha256=plan.origins[dataset.name].sha256,
                source=plan.origins[dataset.name].source,
                note=dataset.note,
            )
            for dataset in plan.datasets
        ),
        sites=plan.layers,
        dtype=plan.dtype,
        compute_dtype=card.extraction.compute_dtype,
        parity=_worst_parity(plan, receipts),
        defaults=_defaults(card, [dataset.name for dataset in plan.datasets]),
        versions=_versions(receipts),
        parts=parts,
        extras=extras,
    )


def _write_part(
    plan: Plan, stage: str, dataset: str, receipts: Mapping[str, Receipt], writer: Writer
) -> PartEntry:
    finished = [
        receipts[unit.name]
        for unit in plan.blocks
        if (unit.stage, unit.prompts.dataset) == (stage, dataset)
    ]
    files = [f for receipt in finished for f in receipt.files if isinstance(f, ActivationFile)]
    units = [receipt.activation for receipt in finished if receipt.activation is not None]
    rows = sum(unit.rows for unit in units)
    part = Part(
        stage=stage,
        dataset=dataset,
        rows=rows,
        d_model=plan.stages[0].shape.d_model,
        positions=next(d.positions for d in plan.datasets if d.name == dataset),
        dtype=plan.dtype,
        units=tuple(units),
        files=tuple(sorted(files, key=lambda file: file.path)),
    )
    entry = writer.put_if_new(f"manifests/{stage}/{dataset}.json", canonical_json(part))
    return PartEntry(
        **entry.model_dump(),
        stage=stage,
        dataset=dataset,
        rows=rows,
        data_bytes=sum(file.bytes for file in files),
    )


def _stages(plan: Plan, receipts: Mapping[str, Receipt]) -> Iterable[Stage]:
    for stage in plan.stages:
        facts = next(
            receipts[unit.name].facts for unit in plan.blocks if unit.stage == stage.card.name
        )
        yield Stage(
            name=stage.card.name,
            title=stage.card.title,
            model=stage.identity.source,
            source=None if isinstance(stage.source, FolderModel) else stage.source,
            sha256=stage.identity.digests,
            architecture=facts["architecture"],
            n_layers=facts["n_layers"],
            d_model=facts["d_model"],
            d_mlp=facts["d_mlp"],
            vocabulary=facts["vocabulary"],
            tokenizer_sha256=stage.tokenizer_sha256,
            template=stage.card.template,
            template_options=stage.card.template_options,
            add_beginning=stage.card.add_beginning,
            quantisation=stage.card.quantisation,
            note=stage.card.note,
        )


def _versions(receipts: Mapping[str, Receipt]) -> dict[str, str]:
    """Name the packages that made the units: several versions after an upgrade on the way."""
    used: dict[str, set[str]] = defaultdict(set)
    for receipt in receipts.values():
        for package, made_by in receipt.versions.items():
            used[package].add(made_by)
    return {package: ", ".join(sorted(versions)) for package, versions in used.items()}


def _worst_parity(plan: Plan, receipts: Mapping[str, Receipt]) -> Parity | None:
    blocks = [(receipts[unit.name], unit) for unit in plan.blocks]
    found = [(r.activation.parity, u, r) for r, u in blocks if r.activation is not None]
    if not found:
        return None
    worst, unit, _ = max(found, key=lambda entry: entry[0])
    return Parity(
        worst=worst,
        tolerance=plan.tolerance,
        rows=sum(int(receipt.facts["parity_rows"]) for _, _, receipt in found),
        stage=unit.stage,
        dataset=unit.prompts.dataset,
    )


def _defaults(card: Card, datasets: list[str]) -> Defaults:
    """Say what the card's author chose, as far as this build holds it."""
    truth, refusal = card.truth, card.refusal
    asked = truth.intervention if truth else None
    chosen = Defaults(
        truth_layer=truth.layer if truth else None,
        truth_datasets=tuple(n for n in truth.datasets if n in datasets) if truth else (),
        truth_asked=asked.dataset if asked and asked.dataset in datasets else None,
        truth_first_layer=asked.first_layer if asked else None,
        truth_examples=asked.examples if asked and asked.dataset in datasets else (),
        trace_datasets=tuple(t.dataset for t in card.traces if t.dataset in datasets),
    )
    if refusal is None:
        return chosen
    return chosen.model_copy(
        update={
            "refusal_layer": refusal.layer,
            "refusal_position": refusal.position,
            "refusal_layers": {
                name: own.layer for name, own in refusal.stages.items() if own.layer is not None
            },
            "refusal_positions": {
                name: own.position
                for name, own in refusal.stages.items()
                if own.position is not None
            },
            "harmful": refusal.harmful,
            "harmless": refusal.harmless,
        }
    )
