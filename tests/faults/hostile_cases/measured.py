"""Tables of weights and scores: what is measured, and cannot have been."""

from __future__ import annotations

import polars as pl
from tests.faults import hostile as h
from tests.faults.hostile_cases.case import (
    DAMAGED,
    ESCAPE,
    FINE,
    FORMAT,
    RETURNED,
    Case,
)

SCORES = "scores/base/refusal.parquet"
COMPLETIONS = "scores/base/completions.parquet"
DIRECTIONS = "scores/base/directions.parquet"
TRUTH = "scores/base/truth.parquet"
ABLATED = "scores/base/neurons.parquet"
MEASURED = [
    Case("neurons without their norm", h.lacks(h.NEURONS, "norm"), "neurons", FORMAT, "norm"),
    Case(
        "neurons without variances",
        h.lacks(h.NEURONS, "logit_variance_folded_centered"),
        "command confidence",
        DAMAGED,
        "logit_variance",
    ),
    Case("neurons without numbers", h.lacks(h.NEURONS, "neuron"), "neurons", FORMAT, "neuron"),
    Case(
        "neurons that are texts",
        h.column(h.NEURONS, "norm", pl.lit("long")),
        "neurons",
        FORMAT,
        "norm",
    ),
    Case("a neuron's norm missing", h.first(h.NEURONS, "norm", None), "neurons", FORMAT, "norm"),
    Case("a norm below zero", h.first(h.NEURONS, "norm", -1.0), "neurons", FORMAT, "norm"),
    Case(
        "a norm that is no number",
        h.first(h.NEURONS, "norm", float("nan")),
        "neurons",
        FORMAT,
        "norm",
    ),
    Case(
        "a variance below zero",
        h.first(h.NEURONS, "logit_variance_folded_centered", -0.5),
        "neurons",
        FORMAT,
        "logit_variance",
    ),
    Case(
        "a null-space share of 7",
        h.first(h.NEURONS, "null_space_fraction", 7.0),
        "neurons",
        FORMAT,
        "null_space_fraction",
    ),
    Case("a neuron out of range", h.first(h.NEURONS, "neuron", 10**6), "neurons", FORMAT, "neuron"),
    Case("a neuron twice", h.first(h.NEURONS, "neuron", 1), "neurons", FORMAT, "neuron"),
    Case(
        "half of the neurons",
        h.table(h.NEURONS, lambda t: t.head(32)),
        "neurons",
        FORMAT,
        "neurons",
    ),
    Case("no neurons", h.table(h.NEURONS, lambda t: t.head(0)), "neurons", FORMAT, "neurons"),
    Case("statistics that are a pickle's", h.array_of_objects(h.NEURONS), "neurons", FORMAT, ""),
    Case(
        "scores without a rate",
        h.lacks(SCORES, "refusal_rate"),
        "refusal_scores",
        FORMAT,
        "refusal_rate",
    ),
    Case(
        "scores without a rate, on the command line",
        h.lacks(SCORES, "low"),
        "command refusal",
        DAMAGED,
        "low",
    ),
    Case("scores without a rate, summed up", h.lacks(SCORES, "high"), "summary", FORMAT, "high"),
    Case(
        "rates that are texts",
        h.column(SCORES, "refusal_rate", pl.lit("often")),
        "refusal_scores",
        FORMAT,
        "refusal_rate",
    ),
    Case(
        "a rate of 7",
        h.first(SCORES, "refusal_rate", 7.0),
        "refusal_scores",
        FORMAT,
        "refusal_rate",
    ),
    Case(
        "a rate of 7, summed up",
        h.first(SCORES, "refusal_rate", 7.0),
        "command summary",
        DAMAGED,
        "refusal_rate",
    ),
    Case(
        "a rate that is missing",
        h.column(SCORES, "refusal_rate", pl.lit(None, pl.Float64)),
        "command refusal",
        DAMAGED,
        "refusal_rate",
    ),
    Case(
        "a rate that is no number",
        h.first(SCORES, "high", float("nan")),
        "refusal_scores",
        FORMAT,
        "high",
    ),
    Case("-3 completions", h.first(SCORES, "n", -3), "refusal_scores", FORMAT, "'n'"),
    Case(
        "scores of another stage",
        h.column(SCORES, "stage", pl.lit("instruct")),
        "refusal_scores",
        FORMAT,
        "stage",
    ),
    Case(
        "scores of a stage of escapes",
        h.column(SCORES, "stage", pl.lit(ESCAPE)),
        "command refusal",
        DAMAGED,
        "stage",
    ),
    Case(
        "a direction of escapes",
        h.column(SCORES, "direction", pl.lit(ESCAPE)),
        "command refusal",
        DAMAGED,
        "direction",
    ),
    Case(
        "an intervention nobody made",
        h.column(SCORES, "intervention", pl.lit("[red]delete[/red]")),
        "refusal_scores",
        FORMAT,
        "intervention",
    ),
    Case(
        "completions without a text",
        h.lacks(COMPLETIONS, "completion"),
        "refusal_scores",
        FORMAT,
        "completion",
    ),
    Case(
        "completions of no row",
        h.first(COMPLETIONS, "row_uid", None),
        "refusal_scores",
        FORMAT,
        "row_uid",
    ),
    Case(
        "completions that are numbers",
        h.column(COMPLETIONS, "refused", pl.lit("maybe")),
        "refusal_scores",
        FORMAT,
        "refused",
    ),
    Case(
        "candidates without a layer",
        h.lacks(DIRECTIONS, "layer"),
        "candidate_scores",
        FORMAT,
        "layer",
    ),
    Case(
        "candidates without a layer, on the command line",
        h.lacks(DIRECTIONS, "layer"),
        "command refusal",
        DAMAGED,
        "layer",
    ),
    Case(
        "a candidate of layer 10**9",
        h.first(DIRECTIONS, "layer", 10**9),
        "candidate_scores",
        FORMAT,
        "layer",
    ),
    Case(
        "a candidate of position 3",
        h.first(DIRECTIONS, "position", 3),
        "candidate_scores",
        FORMAT,
        "position",
    ),
    Case(
        "a candidate of no place",
        h.first(DIRECTIONS, "position", None),
        "candidate_scores",
        FORMAT,
        "position",
    ),
    Case(
        "a divergence below zero",
        h.first(DIRECTIONS, "kl_div_score", -2.0),
        "candidate_scores",
        FORMAT,
        "kl_div_score",
    ),
    Case(
        "effects of truth without layers",
        h.lacks(TRUTH, "layers"),
        "truth_effects",
        FORMAT,
        "layers",
    ),
    Case(
        "layers that are texts",
        h.column(TRUTH, "layers", pl.lit("all")),
        "truth_effects",
        FORMAT,
        "layers",
    ),
    Case(
        "probabilities of 7",
        h.column(TRUTH, "p_true_before", pl.lit(7.0)),
        "truth_effects",
        FORMAT,
        "p_true_before",
    ),
    Case(
        "an AUROC of -1",
        h.column(TRUTH, "auroc_before", pl.lit(-1.0)),
        "command truth",
        DAMAGED,
        "auroc_before",
    ),
    Case(
        "an endless effect",
        h.column(TRUTH, "effect", pl.lit(float("inf"))),
        "truth_effects",
        FORMAT,
        "effect",
    ),
    Case(
        "effects of neurons without a measure",
        h.lacks(ABLATED, "measure"),
        "neuron_effects",
        FORMAT,
        "measure",
    ),
    Case(
        "a measure nobody knows",
        h.column(ABLATED, "measure", pl.lit("price")),
        "neuron_effects",
        FORMAT,
        "measure",
    ),
    Case(
        "a neuron of -7",
        h.column(ABLATED, "neuron", pl.lit(-7)),
        "neuron_effects",
        FORMAT,
        "neuron",
    ),
    Case(
        "a neuron of the next model",
        h.column(ABLATED, "neuron", pl.lit(10**6)),
        "neuron_effects",
        FORMAT,
        "neuron",
    ),
    Case(
        "effects of -2 texts",
        h.column(ABLATED, "texts", pl.lit(-2)),
        "command confidence",
        DAMAGED,
        "texts",
    ),
]

EMPTY = "not testable here"
"""What the summary says where an artifact holds too little for an answer."""
LATER = "scores/instruct/{}.parquet"
SUMMARY = [
    Case(
        "no refusals",
        h.table(LATER.format("refusal"), lambda t: t.head(0)),
        "summary",
        RETURNED,
        EMPTY,
    ),
    Case(
        "no random direction",
        h.table(LATER.format("refusal"), lambda t: t.filter(pl.col("direction") != "random")),
        "summary",
        RETURNED,
        EMPTY,
    ),
    Case(
        "no own direction",
        h.table(LATER.format("refusal"), lambda t: t.filter(pl.col("direction") != "own")),
        "summary",
        RETURNED,
        EMPTY,
    ),
    Case(
        "no direction",
        h.table(LATER.format("refusal"), lambda t: t.filter(pl.col("direction") == "none")),
        "command summary",
        FINE,
        EMPTY,
    ),
    Case(
        "no unedited model",
        h.table(LATER.format("refusal"), lambda t: t.filter(pl.col("direction") != "none")),
        "summary",
        RETURNED,
        EMPTY,
    ),
    Case(
        "no factors",
        h.column(LATER.format("refusal"), "scale", pl.lit(None, pl.Float64)),
        "summary",
        RETURNED,
        "refusal",
    ),
    Case(
        "no chosen neurons",
        h.table(LATER.format("neurons"), lambda t: t.filter(pl.col("neurons") != "chosen")),
        "summary",
        RETURNED,
        "weights alone",
    ),
    Case(
        "no single neurons",
        h.both(
            *(
                h.table(
                    f"scores/{stage}/neurons.parquet",
                    lambda t: t.filter(pl.col("ablated") != "one"),
                )
                for stage in ("base", "instruct")
            )
        ),
        "summary",
        RETURNED,
        "weights alone",
    ),
    Case(
        "no total effects",
        h.table(LATER.format("neurons"), lambda t: t.filter(pl.col("effect") != "total")),
        "summary",
        RETURNED,
        "weights alone",
    ),
    Case(
        "no shares",
        h.column(LATER.format("neurons"), "share", pl.lit(None, pl.Float64)),
        "summary",
        RETURNED,
        "confidence",
    ),
    Case(
        "no effects at all",
        h.table(LATER.format("neurons"), lambda t: t.head(0)),
        "command summary",
        FINE,
        "weights alone",
    ),
    Case("a grid without any effect", h.flat_grids, "summary", RETURNED, "knowledge"),
]
