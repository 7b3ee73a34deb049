"""From a card to the units of a build: what will be done, and what it will cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import polars as pl

from ptmech.errors import DataError
from ptmech.live.models import (
    Spread,
    load_model,
    pick_device,
    torch_dtype,
)
from ptmech.manifest import StoredDtype
from ptmech.storage.tables import MAX_ROWS
from ptmech_builder.activation_units import ActivationUnit
from ptmech_builder.adapter_units import AdapterUnit
from ptmech_builder.cards import Card, CardFile, DatasetCard
from ptmech_builder.comparing_units import comparing_units
from ptmech_builder.dataset_files import Origin, dataset_file
from ptmech_builder.neuron_units import neuron_units
from ptmech_builder.packed_units import packed_units
from ptmech_builder.plan_checks import (
    require_layers,
    require_neurons,
    require_one_shape,
)
from ptmech_builder.prompts import tokens_table
from ptmech_builder.rows import read_rows
from ptmech_builder.selection import Selection
from ptmech_builder.stage_plan import StagePlan, plan_stage
from ptmech_builder.table_units import TableUnit
from ptmech_builder.units import Unit
from ptmech_builder.weight_units import WeightsUnit
from ptmech_builder.worked_examples import with_worked_examples

if TYPE_CHECKING:
    from ptmech.live.model import LiveModel
    from ptmech.live.packing.cost import Choice


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
    stage_cards = selection.stage_cards(card)
    dataset_cards = selection.dataset_cards(card)
    rows: dict[str, pl.DataFrame] = {}
    origins: dict[str, Origin] = {}
    for dataset in dataset_cards:
        file = dataset_file(card_file, dataset)
        rows[dataset.name] = read_rows(file, dataset, selection.limit)
        origins[dataset.name] = file.origin
    if (total := sum(frame.height for frame in rows.values())) > MAX_ROWS:
        raise DataError(f"{total:,} rows are more than one artifact holds, {MAX_ROWS:,}")
    stages = tuple(plan_stage(card_file, stage, dataset_cards, rows) for stage in stage_cards)
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
    comparing, not_compared = comparing_units(card_file, selection, stages, rows, forward)
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
        narrowed=selection.left_out(card),
        left_out="; ".join(filter(None, (not_compared, _missing_neurons(card, stages)))),
    )


def _missing_neurons(card: Card, stages: Sequence[StagePlan]) -> str:
    """Say for which stages weight statistics are of the unembedding alone."""
    if card.weights is None:
        return ""
    missing = (f"{s.card.name} ({s.without_neurons})" for s in stages if s.without_neurons)
    listed = ", ".join(missing)
    return f"neuron statistics of {listed}" if listed else ""
