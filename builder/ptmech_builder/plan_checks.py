"""What of a card cannot work with its models or rows, found before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ptmech.errors import CardError, DataError
from ptmech_builder.score_units import candidate_layers

if TYPE_CHECKING:
    import polars as pl
    from transformers import PreTrainedTokenizerBase

    from ptmech.live.models import ModelShape
    from ptmech_builder.cards import Card, TraceCard
    from ptmech_builder.stage_plan import StagePlan


def require_one_shape(stages: Sequence[StagePlan]) -> None:
    """Check that the stages can be compared layer by layer.

    Raises
    ------
    CardError
        If they do not have the same number of layers and width.
    """
    if len({(stage.shape.n_layers, stage.shape.d_model) for stage in stages}) > 1:
        described = ", ".join(f"{s.card.name} {s.shape.n_layers}x{s.shape.d_model}" for s in stages)
        raise CardError(f"stages of one family need the same layers and width: {described}")


def require_layers(card: Card, shape: ModelShape) -> None:
    """Check what only the model's shape tells, before anything runs.

    Raises
    ------
    CardError
        If a layer or a null space is larger than the models.
    """
    asked = {
        "truth.layer": card.truth.layer if card.truth else 0,
        "refusal.layer": card.refusal.layer if card.refusal else 0,
        **{
            f"refusal.stages.{name}.layer": place.layer or 0
            for name, place in (card.refusal.stages if card.refusal else {}).items()
        },
        "refusal.candidates.layers": max(candidate_layers(card.refusal, shape.n_layers), default=0),
    }
    for key, layer in asked.items():
        if layer >= shape.n_layers:
            raise CardError(f"{key} = {layer}, but the models have layers 0..{shape.n_layers - 1}")
    if card.weights is not None and card.weights.null_space_k >= shape.d_model:
        raise CardError(
            f"weights.null_space_k = {card.weights.null_space_k} must be below the models' width, "
            f"{shape.d_model}"
        )


def require_neurons(card: Card, stages: Sequence[StagePlan]) -> None:
    """Check that neurons that are to be ablated can be chosen by their output weights.

    Raises
    ------
    CardError
        If a stage has none to show.
    """
    if card.confidence is None:
        return
    for stage in stages:
        if stage.without_neurons:
            raise CardError(
                f"confidence ablates neurons, which stage {stage.card.name!r} does not show: "
                f"{stage.without_neurons}; leave that section out"
            )


def require_pairs(trace: TraceCard, rows: pl.DataFrame, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that the statements make prompts to trace, before any model runs.

    Raises
    ------
    DataError
        If they make none.
    """
    from ptmech.knowledge import completion_prompts, pairs

    try:
        if trace.form == "completion":  # pairs are of facts the models know: not known yet
            completion_prompts(rows, examples=trace.examples)
        else:
            pairs(rows, tokenizer, **trace.options)
    except DataError as error:
        raise DataError(f"traces of {trace.dataset!r}: {error}") from error
