"""Statements along truth directions, against the formula written out."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from tests.synthetic import AFFIRMATIVE_SETS, write_synthetic_artifact

from ptmech import truth
from ptmech.errors import DataError, UnknownNameError
from ptmech.loading import load

STAGES = ("base", "instruct")
READINGS = (("base", "base"), ("instruct", "instruct"), ("instruct", "base"))


def written_out(artifact, stage, direction_stage, held_out, datasets, layer):
    """Mean of true minus mean of false rows of the others, centred; the rest projected on it."""

    def centred(name, of, rows=slice(None)):
        x = artifact.activations(name, of, layer=layer).astype(np.float64)[rows]
        return x - x.mean(axis=0)

    groups = set(artifact.statements(held_out)["group"])
    features, labels = [], []
    for name in datasets:
        if name == held_out:
            continue
        rows = ~artifact.statements(name)["group"].is_in(groups).to_numpy()
        if rows.any():
            features.append(centred(name, direction_stage, rows))
            labels.append(artifact.labels(name)[rows])
    x, y = np.concatenate(features), np.concatenate(labels)
    direction = x[y].mean(axis=0) - x[~y].mean(axis=0)
    along = centred(held_out, stage) @ direction / np.linalg.norm(direction)
    return along / along.std()


@pytest.mark.parametrize("datasets", [AFFIRMATIVE_SETS, ("cities", "neg_cities", "facts")])
def test_are_the_projections_written_out(synthetic, datasets):
    found = truth.projections(synthetic, *STAGES, 2, datasets=datasets)
    assert found.layer == 2
    assert found.frame.select("stage", "direction_stage").unique(maintain_order=True).rows() == [
        *READINGS
    ]
    for stage, direction_stage in READINGS:
        for name in datasets:
            rows = found.frame.filter(stage=stage, direction_stage=direction_stage, dataset=name)
            statements = synthetic.statements(name)
            assert rows["row_uid"].to_list() == statements["row_uid"].to_list()
            assert rows["label"].to_list() == statements["label"].to_list()
            expected = written_out(synthetic, stage, direction_stage, name, datasets, 2)
            np.testing.assert_allclose(rows["projection"], expected, atol=1e-9)


def test_are_centred_at_deviation_one_and_separate_what_was_planted(synthetic):
    found = truth.projections(synthetic, *STAGES)
    assert found.layer == 3
    keys = ["stage", "direction_stage", "dataset"]
    for row in (
        found.frame.group_by(keys)
        .agg(mean=pl.col("projection").mean(), std=pl.col("projection").std(ddof=0))
        .iter_rows(named=True)
    ):
        assert row["mean"] == pytest.approx(0, abs=1e-9)
        assert row["std"] == pytest.approx(1)
    assert found.separation["auroc"].min() > 0.8
    assert found.frame.filter(label=1)["projection"].mean() > 0.5


def test_separate_as_well_as_the_probes_of_a_transfer(synthetic):
    found = truth.projections(synthetic, *STAGES)
    tested = truth.transfer(synthetic, *STAGES, n_bootstrap=2).frame
    names = {
        "own_earlier": ("base", "base"),
        "own_later": ("instruct", "instruct"),
        "transferred": ("instruct", "base"),
    }
    for probe, (stage, direction_stage) in names.items():
        for name in AFFIRMATIVE_SETS:
            auroc = tested.filter(probe=probe, dataset=name)["auroc"].item()
            row = found.separation.filter(
                stage=stage, direction_stage=direction_stage, dataset=name
            )
            assert row["auroc"].item() == pytest.approx(auroc)
            assert row["n"].item() == 80


def test_on_a_direction_of_length_zero_are_zero(synthetic):
    found = truth.projections(synthetic, *STAGES, 0, site="resid_pre")
    assert set(found.frame["projection"]) == {0.0}
    assert set(found.separation["auroc"]) == {0.5}


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"later": "base"}, DataError, "twice"),
        ({"later": "instuct"}, UnknownNameError, "did you mean 'instruct'"),
        ({"layer": 9}, UnknownNameError, "layer"),
        ({"datasets": ["cities"]}, DataError, "at least two datasets"),
        ({"datasets": ["cities", "neg_cities"]}, DataError, "nothing is left"),
        ({"probe": "mas_mean"}, UnknownNameError, "mass_mean"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(synthetic, changed, error, message):
    arguments = {"earlier": "base", "later": "instruct", **changed}
    with pytest.raises(error, match=message):
        truth.projections(synthetic, **arguments)


def test_a_dataset_of_one_class_is_named(tmp_path):
    root = write_synthetic_artifact(tmp_path / "one", n_facts=6, only_true=["facts"])
    with pytest.raises(DataError, match="'facts' holds true statements only"):
        truth.projections(load(root), *STAGES)
