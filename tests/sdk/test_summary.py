"""The four answers, each by the rule its documentation states."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import pytest
from tests.synthetic import write_synthetic_artifact

from ptmech import confidence, refusal, truth
from ptmech.artifact import Artifact
from ptmech.errors import DataError, UnknownNameError
from ptmech.loading import load
from ptmech.manifest import canonical_json
from ptmech.summary import NOT_TESTABLE, summarize


def answers(artifact: Artifact) -> dict[str, dict[str, str]]:
    frame = summarize(artifact, *artifact.stages).frame
    return {row["perspective"]: row for row in frame.iter_rows(named=True)}


def test_one_row_a_perspective_and_no_empty_cell(synthetic: Artifact):
    frame = summarize(synthetic, "base", "instruct").frame
    assert frame["perspective"].to_list() == ["knowledge", "truthfulness", "refusal", "confidence"]
    assert NOT_TESTABLE not in frame["answer"].to_list()
    assert all(cell for row in frame.iter_rows() for cell in row)


def test_the_planted_directions_are_answered_as_planted(synthetic: Artifact):
    found = answers(synthetic)
    assert found["truthfulness"]["answer"] == "yes"
    assert found["knowledge"]["answer"] == "yes"


def test_refusal_is_answered_from_the_intervals_of_the_scores(synthetic: Artifact):
    rows = {
        row["direction"]: row
        for row in refusal.scores(synthetic)
        .frame.filter(pl.col("stage") == "instruct", pl.col("prompts") == "harmless")
        .to_dicts()
    }
    transferred, own, random = (rows[n] for n in ("transferred_own_length", "own", "random"))
    apart = transferred["high"] < own["low"]
    above_random = transferred["low"] > random["high"]
    expected = ("in part" if above_random else "no") if apart else "yes"
    assert apart or above_random
    found = answers(synthetic)["refusal"]
    assert found["answer"] == expected
    assert f"{own['refusal_rate']:.2f}" in found["evidence"]
    assert f"{random['refusal_rate']:.2f}" in found["control"]


def test_refusal_shows_ablation_beside_addition_with_intervals(synthetic: Artifact):
    found = answers(synthetic)["refusal"]
    scored = refusal.scores(synthetic).frame.filter(stage="instruct")
    for row in scored.iter_rows(named=True):
        shown = f"{row['refusal_rate']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        assert shown in found["control" if row["direction"] == "random" else "evidence"]
    assert "2.70" in found["control"]
    assert found["control"].count("2.90 / 2.90 / 2.90") == 2


def with_scores(synthetic: Artifact, monkeypatch, direction: str, prompts: str, **cells: float):
    """Answers on scores of which one row of the later stage is another."""
    scores = refusal.scores(synthetic)
    here = (pl.col("stage") == "instruct") & (pl.col("prompts") == prompts)
    columns = [
        pl.when(here & (pl.col("direction") == direction))
        .then(pl.lit(value))
        .otherwise(pl.col(name))
        .alias(name)
        for name, value in cells.items()
    ]
    changed = replace(scores, frame=scores.frame.with_columns(columns))
    monkeypatch.setattr(refusal, "scores", lambda _: changed)
    return answers(synthetic)["refusal"]


@pytest.mark.parametrize("direction", ["own", "transferred_own_length", "random"])
@pytest.mark.parametrize(
    ("loss", "shown"), [(3.69, True), (3.71, False), (14.0, False), (float("nan"), False)]
)
def test_a_model_broken_by_addition_shows_no_transfer(
    synthetic: Artifact, monkeypatch, direction, loss, shown
):
    found = with_scores(synthetic, monkeypatch, direction, "harmless", plain_text_loss=loss)
    assert (found["answer"] != "not shown") is shown
    said = "without a control" if direction == "random" else "addition breaks the model"
    assert (said in found["evidence"]) is not shown


def test_an_own_direction_no_better_than_random_leaves_nothing_to_transfer(
    synthetic: Artifact, monkeypatch
):
    rows = refusal.scores(synthetic).frame.filter(stage="instruct", prompts="harmless")
    own = rows.row(by_predicate=pl.col("direction") == "own", named=True)
    found = with_scores(synthetic, monkeypatch, "random", "harmless", high=own["low"])
    assert found["answer"] == "not shown"


@pytest.mark.parametrize(
    ("above_random", "as_own", "answer"),
    [
        (True, True, "yes"),
        (True, False, "in part"),
        (False, True, "not shown"),
        (False, False, "no"),
    ],
)
def test_what_cannot_be_told_apart_is_not_shown(
    synthetic: Artifact, monkeypatch, above_random, as_own, answer
):
    rows = refusal.scores(synthetic).frame.filter(stage="instruct", prompts="harmless")
    own, random = (
        rows.row(by_predicate=pl.col("direction") == name, named=True) for name in ("own", "random")
    )
    assert random["high"] < own["low"]
    cells = {
        "low": random["high"] + (1e-6 if above_random else 0.0),
        "high": own["low"] - (0.0 if as_own else 1e-6),
    }
    found = with_scores(synthetic, monkeypatch, "transferred_own_length", "harmless", **cells)
    assert found["answer"] == answer


@pytest.mark.parametrize(
    ("low", "high", "own_low", "answer"),
    [
        (-0.04, 0.01, 0.6, "yes"),
        (-0.05, 0.01, 0.6, "not shown"),
        (-0.2, -0.05, 0.6, "not shown"),
        (-0.2, -0.06, 0.6, "no"),
        (-0.04, 0.01, 0.5, "not shown"),
    ],
)
def test_a_probe_transfers_if_its_interval_says_so(
    synthetic: Artifact, monkeypatch, low, high, own_low, answer
):
    found = truth.transfer(synthetic, "base", "instruct", n_bootstrap=10)
    mean = pl.col("dataset") == truth.MEAN
    for probe, column, value in (
        ("difference", "accuracy_low", low),
        ("difference", "accuracy_high", high),
        ("own_later", "accuracy_low", own_low),
    ):
        here = mean & (pl.col("probe") == probe)
        cell = pl.when(here).then(pl.lit(value)).otherwise(pl.col(column)).alias(column)
        found = replace(found, frame=found.frame.with_columns(cell))
    monkeypatch.setattr(truth, "transfer", lambda *_: found)
    assert answers(synthetic)["truthfulness"]["answer"] == answer


@pytest.mark.parametrize(
    ("direction", "cells", "said"),
    [
        ("random", {"plain_text_loss": 2.9}, None),
        ("random", {"plain_text_loss": 14.0}, "ablation breaks the model"),
        ("own", {"plain_text_loss": 14.0}, "ablation breaks the model"),
        ("random", {"low": 0.0}, "a random direction takes as many"),
    ],
)
def test_lost_refusals_of_a_lost_model_are_no_evidence(
    synthetic: Artifact, monkeypatch, direction, cells, said
):
    evidence = with_scores(synthetic, monkeypatch, direction, "harmful", **cells)["evidence"]
    assert ("no evidence" in evidence) is (said is not None)
    assert said is None or said in evidence


def test_confidence_is_answered_by_the_causal_test(synthetic: Artifact, monkeypatch):
    found = answers(synthetic)["confidence"]
    assert found["answer"] == "yes"
    for said in ("overlap by 1.00", "0.0600 and 0.0600 nats", "+0.67 and +0.67", "0.0600)"):
        assert said in found["evidence"]
    assert "random neurons move it by 0.0040 and 0.0040 nats" in found["control"]
    effects = confidence.effects(synthetic)
    for column in ("share", "absolute"):
        # In one stage the candidates do no better than random neurons.
        weak = effects.frame.with_columns(
            pl.when(pl.col("stage") == "base", pl.col("neurons") == "chosen")
            .then(pl.col(f"{column}_low") / 20)
            .otherwise(pl.col(f"{column}_low"))
            .alias(f"{column}_low")
        )
        monkeypatch.setattr(
            confidence, "effects", lambda _, weak=weak: replace(effects, frame=weak)
        )
        assert answers(synthetic)["confidence"]["answer"] == "not shown"
    one_stage = replace(effects, frame=effects.frame.filter(stage="base"))
    monkeypatch.setattr(confidence, "effects", lambda _: one_stage)
    found = answers(synthetic)["confidence"]
    assert found["answer"] == "not shown"
    assert "no causal test" in found["control"]


def test_what_an_artifact_lacks_is_not_testable(tmp_path):
    path = write_synthetic_artifact(tmp_path / "bare")
    whole = load(path).manifest
    kept = tuple(extra for extra in whole.extras if extra.kind in ("table", "weights"))
    bare = whole.model_copy(update={"extras": kept})
    (path / "manifest.json").write_bytes(canonical_json(bare))
    found = answers(load(path))
    assert found["knowledge"]["answer"] == found["refusal"]["answer"] == NOT_TESTABLE
    assert found["truthfulness"]["answer"] != NOT_TESTABLE
    assert found["confidence"]["answer"] == "not shown"


@pytest.mark.parametrize(
    ("stages", "error"), [(("base", "base"), DataError), (("base", "instrct"), UnknownNameError)]
)
def test_stages_must_be_two_that_exist(synthetic: Artifact, stages, error):
    with pytest.raises(error):
        summarize(synthetic, *stages)
