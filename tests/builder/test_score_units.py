"""Stored scores are what a live call gives: one code, two doors."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from tests.tiny import Built, tiny_build

from ptmech import live, refusal
from ptmech.artifact import Artifact, load
from ptmech.errors import DataError

STAGES = ("base", "tuned")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return tiny_build(tmp_path_factory)


@pytest.fixture(scope="module")
def artifact(built: Built) -> Artifact:
    return load(built.root)


@pytest.fixture(scope="module")
def models(built: Built, artifact: Artifact) -> dict[str, Any]:
    folder = built.family.model
    return {stage: live.open(artifact, stage, folder=folder, device="cpu") for stage in STAGES}


def test_interventions_live_are_the_stored_ones(artifact: Artifact, models: Any) -> None:
    stored = refusal.scores(artifact)
    found = refusal.intervene(
        artifact, *STAGES, scales=(1.0, 2.0), prompts=3, max_new_tokens=3, models=models
    )
    assert_frame_equal(found.frame, stored.frame, rel_tol=1e-6)
    assert_frame_equal(found.completions, stored.completions)
    assert found.arguments["scales"] == [1.0, 2.0]
    one = refusal.intervene(
        artifact, *STAGES, stages=["tuned"], prompts=3, max_new_tokens=3, models=models
    )
    expected = stored.frame.filter(
        pl.col("stage") == "tuned", pl.col("scale").is_null() | (pl.col("scale") == 1)
    )
    assert_frame_equal(one.frame, expected, rel_tol=1e-6)


def test_other_places_texts_and_seeds_count(artifact: Artifact, models: Any) -> None:
    def call(**changes: Any) -> pl.DataFrame:
        return refusal.intervene(
            artifact,
            *STAGES,
            stages=["base"],
            prompts=3,
            max_new_tokens=1,
            models=models,
            **changes,
        ).frame

    plain = call()
    assert plain.equals(call(layer=2, position=-2, seed=0))
    for changes in ({"layer": 1}, {"position": -1}, {"plain_texts": ["Other words."]}):
        assert not plain.equals(call(**changes))
    loss = call(plain_texts=["Other words."]).filter(intervention="none")["plain_text_loss"][0]
    assert loss == pytest.approx(models["base"].loss(["Other words."]))


def test_candidates_live_are_the_stored_ones(artifact: Artifact, models: Any) -> None:
    for stage in STAGES:
        stored = refusal.candidate_scores(artifact, stage)
        found = refusal.candidates(artifact, stage, layers=[1, 2], prompts=2, model=models[stage])
        assert_frame_equal(found.frame, stored.frame, rel_tol=1e-4)
        assert found.n_layers == stored.n_layers == 3
        assert stored.frame.select("position", "layer").rows() == [
            (position, layer) for position in (-3, -2, -1) for layer in (1, 2)
        ]
        assert set(stored.frame["n_harmful"]) == {2}
        np.testing.assert_allclose(
            stored.frame["norm"],
            [
                np.linalg.norm(refusal.directions(artifact, stage).direction(layer, position))
                for position, layer in stored.frame.select("position", "layer").iter_rows()
            ],
        )


def test_candidates_are_every_layer_below_the_pruned_depth_unless_named(
    artifact: Artifact, models: Any
) -> None:
    model = models["base"]
    every = refusal.candidates(artifact, "base", prompts=1, model=model)
    assert set(every.frame["layer"]) == {0, 1}  # int(3 * 0.8) = 2
    few = refusal.candidates(artifact, "base", positions=[-2], layers=[2], prompts=1, model=model)
    assert few.frame.select("position", "layer").rows() == [(-2, 2)]
    with pytest.raises(DataError, match="refusal tokens"):
        refusal.candidates(artifact, "base", prompts=1, refusal_tokens=[-1], model=model)
    told = refusal.candidates(
        artifact, "base", layers=[1], prompts=1, refusal_tokens=[9], model=model
    )
    assert not told.frame["refusal_score"].equals(every.frame.filter(layer=1)["refusal_score"])


def test_the_plain_text_is_part_of_the_artifact(artifact: Artifact) -> None:
    assert artifact.table("tables/plain_text.parquet").columns == ["text"]
