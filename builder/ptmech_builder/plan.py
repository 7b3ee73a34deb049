"""From a card to the units of a build: what will be done, and what it will cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from ptmech.errors import CardError, DataError, unknown
from ptmech.live.models import (
    ModelIdentity,
    ModelShape,
    Spread,
    load_model,
    load_shape,
    load_tokenizer,
    local_folder,
    model_identity,
    pick_device,
    pinned,
    require_quantisation,
    tokenizer_digest,
    torch_dtype,
)
from ptmech.manifest import StoredDtype
from ptmech.model_sources import ModelSource
from ptmech.storage.tables import MAX_ROWS
from ptmech_builder.activation_units import ActivationUnit
from ptmech_builder.adapter_units import AdapterUnit
from ptmech_builder.cards import Card, CardFile, DatasetCard, StageCard
from ptmech_builder.dataset_files import Origin, dataset_file
from ptmech_builder.neuron_units import neuron_units
from ptmech_builder.packed_units import packed_units
from ptmech_builder.plan_checks import (
    require_layers,
    require_neurons,
    require_one_shape,
    require_pairs,
)
from ptmech_builder.prompts import Prompts, make_prompts, tokens_table
from ptmech_builder.rows import read_rows
from ptmech_builder.score_units import refusal_units
from ptmech_builder.table_units import TableUnit
from ptmech_builder.trace_units import TraceUnit
from ptmech_builder.truth_units import truth_datasets, truth_units
from ptmech_builder.units import Unit
from ptmech_builder.weight_units import WeightsUnit
from ptmech_builder.worked_examples import with_worked_examples

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ptmech.live.model import LiveModel
    from ptmech.live.packing.cost import Choice


@dataclass(frozen=True, kw_only=True)
class Selection:
    """How a build is narrowed.

    Traces and scores compare every stage on every row; they are part of a build only where neither
    stages, nor their datasets, nor rows are narrowed.
    """

    stages: tuple[str, ...] | None = None
    datasets: tuple[str, ...] | None = None
    limit: int | None = None
    device: str = "auto"
    device_map: Spread | None = None
    dtype: StoredDtype | None = None


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One stage of a build: its model, and every prompt as its tokenizer sees it."""

    card: StageCard
    source: ModelSource
    identity: ModelIdentity
    adapter: Path | None
    shape: ModelShape
    tokenizer: PreTrainedTokenizerBase
    tokenizer_sha256: str
    prompts: Mapping[str, Prompts]

    @property
    def without_neurons(self) -> str:
        """Why the last MLP has no neurons with output weights to read; empty if it has."""
        if not self.shape.has_neurons:
            return "its last MLP is a mixture of experts"
        return "its weights are quantised" if self.card.quantisation else ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything a build will do, before any model is loaded.

    Attributes
    ----------
    origins
        Where the data of each dataset came from.
    units
        In the order in which they are done.
    narrowed
        Which stages, datasets and rows of the card were deselected; empty if none were.
    left_out
        Why units of the card are not part of this plan; empty if all are.
    choices
        By the name of each unit that runs rows: as a tree or in batches, and why.
    """

    card: Card
    card_sha256: str
    device: str
    device_map: Spread | None
    dtype: StoredDtype
    stages: tuple[StagePlan, ...]
    datasets: tuple[DatasetCard, ...]
    origins: Mapping[str, Origin]
    layers: Mapping[str, tuple[int, ...]]
    tolerance: float
    units: tuple[Unit, ...]
    narrowed: str
    left_out: str
    choices: Mapping[str, Choice] = field(default_factory=dict)

    @property
    def blocks(self) -> tuple[ActivationUnit, ...]:
        """The units that run rows through a model, in their order."""
        return tuple(unit for unit in self.units if isinstance(unit, ActivationUnit))

    def loaders(self) -> dict[str, Callable[[], LiveModel]]:
        """Return for each stage a function that loads its model."""
        return {stage.card.name: partial(self._load, stage) for stage in self.stages}

    def _load(self, stage: StagePlan) -> LiveModel:
        from ptmech.live.model import LiveModel

        dtype = torch_dtype(self.card.extraction.compute_dtype)
        loaded = load_model(
            stage.source,
            adapter=stage.adapter,
            device=self.device,
            device_map=self.device_map,
            dtype=dtype,
            add_beginning=stage.card.add_beginning,
            quantisation=stage.card.quantisation,
        )
        name = f"{self.card.name}/{stage.card.name}"
        return LiveModel(loaded.model, loaded.tokenizer, name, stage.card.rendering)


def make_plan(card_file: CardFile, selection: Selection) -> Plan:
    """Read the rows, render the prompts and list the units.

    Parameters
    ----------
    card_file
        The recipe.
    selection
        What to narrow it to.

    Raises
    ------
    UnknownNameError
        If the selection names a stage or dataset the card lacks.
    DataError, IntegrityError
        If a dataset cannot be used, or is not the one the card pins.
    ArtifactNotFoundError, AccessError, UnreachableError
        If a public dataset cannot be had.
    UnsupportedModelError
        If a stage's architecture is not known, or its weights are quantised and the card does not
        say so.
    CardError
        If the stages do not have the same number of layers and width, or lack what the card asks
        for.
    """
    card_file = with_worked_examples(card_file)
    card = card_file.card
    stage_cards = _selected("stage", card.stages, selection.stages)
    dataset_cards = _selected("dataset", card.datasets, selection.datasets)
    rows: dict[str, pl.DataFrame] = {}
    origins: dict[str, Origin] = {}
    for dataset in dataset_cards:
        file = dataset_file(card_file, dataset)
        rows[dataset.name] = read_rows(file, dataset, selection.limit)
        origins[dataset.name] = file.origin
    if (total := sum(frame.height for frame in rows.values())) > MAX_ROWS:
        raise DataError(f"{total:,} rows are more than one artifact holds, {MAX_ROWS:,}")
    stages = tuple(_plan_stage(card_file, stage, dataset_cards, rows) for stage in stage_cards)
    require_one_shape(stages)
    shape = stages[0].shape

    from ptmech.live.recording import PARITY_TOLERANCE
    from ptmech_builder.extract import wanted_layers

    extraction = card.extraction
    dtype = selection.dtype or extraction.dtype
    layers = wanted_layers(extraction.sites, shape.n_layers)
    require_layers(card, shape)
    require_neurons(card, stages)
    tolerance = extraction.parity_tolerance or max(
        PARITY_TOLERANCE[dtype], PARITY_TOLERANCE[extraction.compute_dtype]
    )
    tables = [
        TableUnit(stage="", path="tables/statements.parquet", frame=pl.concat(rows.values())),
        *(
            TableUnit(
                stage="",
                path=f"tables/tokens/{stage.card.name}.parquet",
                frame=tokens_table(list(stage.prompts.values()), stage.tokenizer),
            )
            for stage in stages
        ),
    ]
    forward: list[Unit] = []
    choices: dict[str, Choice] = {}
    for stage in stages:
        for dataset in dataset_cards:
            packed = packed_units(
                extraction, stage, dataset, layers=layers, dtype=dtype, tolerance=tolerance
            )
            forward += [each.unit for each in packed]
            choices |= {each.unit.name: each.choice for each in packed}
        if stage.adapter is not None and stage.card.ship_adapter:
            forward.append(
                AdapterUnit(
                    stage=stage.card.name,
                    folder=stage.adapter,
                    sha256=stage.identity.adapter or {},
                )
            )
        if card.weights is not None:
            weights = WeightsUnit(
                stage=stage.card.name,
                identity=stage.identity.digest,
                compute_dtype=card.extraction.compute_dtype,
                null_space_k=card.weights.null_space_k,
                neurons=not stage.without_neurons,
            )
            forward += [weights, *neuron_units(card_file, stage, weights)]
    comparing, not_compared = _comparing_units(card_file, selection, stages, rows, forward)
    return Plan(
        card=card,
        card_sha256=card_file.sha256,
        device=pick_device(selection.device, selection.device_map),
        device_map=selection.device_map,
        dtype=dtype,
        stages=stages,
        datasets=tuple(dataset_cards),
        origins=origins,
        layers=layers,
        tolerance=tolerance,
        units=(*tables, *forward, *comparing),
        choices=choices,
        narrowed=_narrowed(card, selection),
        left_out="; ".join(filter(None, (not_compared, _missing_neurons(card, stages)))),
    )


def _selected(
    kind: str, cards: Sequence[StageCard] | Sequence[DatasetCard], names: Sequence[str] | None
) -> list:
    there = {card.name: card for card in cards}
    if names is not None and not names:
        raise DataError(f"no {kind} is named; choose from: {', '.join(there)}")
    for name in names or ():
        if name not in there:
            raise unknown(kind, name, there)
    return [card for card in cards if names is None or card.name in names]


def _narrowed(card: Card, selection: Selection) -> str:
    """Say what of the card a selection leaves out, in words for the artifact's page."""
    said: list[str] = []
    for kind, cards, names in (
        ("stages", card.stages, selection.stages),
        ("datasets", card.datasets, selection.datasets),
    ):
        left_out = [each.name for each in cards if names is not None and each.name not in names]
        if left_out:
            said.append(f"without the {kind} {', '.join(left_out)}")
    if selection.limit is not None:
        said.append(f"at most {selection.limit} rows of each dataset")
    return "; ".join(said)


def _plan_stage(
    card_file: CardFile,
    stage: StageCard,
    datasets: Sequence[DatasetCard],
    rows: Mapping[str, pl.DataFrame],
) -> StagePlan:
    adapter = card_file.adapter(stage)
    source = pinned(card_file.model(stage))  # a branch must not move during a build
    require_quantisation(
        local_folder(source, with_weights=False),
        stage.quantisation,
        adapter=adapter,
        name=f"stage {stage.name!r}",
    )
    tokenizer = load_tokenizer(source, add_beginning=stage.add_beginning)
    return StagePlan(
        card=stage,
        source=source,
        identity=model_identity(source, adapter, stage.quantisation),
        adapter=adapter,
        shape=load_shape(source),
        tokenizer=tokenizer,
        tokenizer_sha256=tokenizer_digest(tokenizer),
        prompts={d.name: make_prompts(rows[d.name], d, stage, tokenizer) for d in datasets},
    )


def _missing_neurons(card: Card, stages: Sequence[StagePlan]) -> str:
    """Say for which stages weight statistics are of the unembedding alone."""
    if card.weights is None:
        return ""
    missing = (f"{s.card.name} ({s.without_neurons})" for s in stages if s.without_neurons)
    listed = ", ".join(missing)
    return f"neuron statistics of {listed}" if listed else ""


def _comparing_units(
    card_file: CardFile,
    selection: Selection,
    stages: Sequence[StagePlan],
    rows: Mapping[str, pl.DataFrame],
    forward: Sequence[Unit],
) -> tuple[list[Unit], str]:
    """Return the trace and score units, or why there are none."""
    card = card_file.card
    if not card.traces and card.refusal is None and not truth_datasets(card):
        return [], ""
    needed = {trace.dataset for trace in card.traces} | truth_datasets(card)
    if card.refusal is not None:
        needed |= {card.refusal.harmful, card.refusal.harmless}
    whole = selection.limit is None and len(stages) == len(card.stages) and needed <= set(rows)
    if not whole:
        return [], "traces and scores need every stage, every row and their datasets"
    for trace in card.traces:
        require_pairs(trace, rows[trace.dataset], stages[0].tokenizer)
        if len({stage.prompts[trace.dataset].digest for stage in stages}) > 1:
            raise CardError(
                f"traces of {trace.dataset!r} patch one stage's tokens into another's, but the "
                "stages' tokenizers split its statements differently"
            )
    identities = {stage.card.name: stage.identity.digest for stage in stages}
    units: list[Unit] = [
        TraceUnit(
            stage=target.card.name,
            source=source.card.name,
            settings=trace,
            identities=identities,
            compute_dtype=card.extraction.compute_dtype,
            tokenizers={stage.card.name: stage.tokenizer_sha256 for stage in stages},
            rows=rows[trace.dataset],
        )
        for source, target in _by_shared_models(stages)
        for trace in card.traces
    ]
    units += refusal_units(card_file, stages, rows, forward)
    units += truth_units(card, stages, rows, forward)
    return units, ""


def _by_shared_models(stages: Sequence[StagePlan]) -> list[tuple[StagePlan, StagePlan]]:
    """Pair each stage with each, also with itself; neighbours share models that are in memory."""
    ordered: list[tuple[StagePlan, StagePlan]] = []
    for number, stage in enumerate(stages):
        ordered.append((stage, stage))
        for earlier in reversed(stages[:number]):
            ordered += [(earlier, stage), (stage, earlier)]
    return ordered
