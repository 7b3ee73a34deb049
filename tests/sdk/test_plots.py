"""Charts: valid Vega-Lite that shows the result's numbers."""

from __future__ import annotations

import subprocess
import sys

import polars as pl
import pytest
import vl_convert

from ptmech import confidence, plots, truth
from ptmech.errors import DataError, PrerequisiteError
from ptmech.results import Result

STAGES = ("base", "instruct")

ANALYSES = {
    "TruthDirections": lambda artifact: truth.directions(artifact, "base"),
    "TruthSimilarity": lambda artifact: truth.similarity(artifact, *STAGES, n_splits=2),
    "TruthSweep": lambda artifact: truth.sweep(artifact, *STAGES, n_bootstrap=20),
    "TruthTransfer": lambda artifact: truth.transfer(artifact, *STAGES, n_bootstrap=20),
    "ConfidenceComparison": lambda artifact: confidence.compare(artifact, *STAGES),
}


def svg(chart) -> str:
    return vl_convert.vegalite_to_svg(chart.to_dict())


@pytest.mark.parametrize("name", ANALYSES)
def test_every_result_draws_itself(synthetic, name):
    result = ANALYSES[name](synthetic)
    assert type(result).__name__ == name
    chart = result.plot()
    marks = [chart.to_dict(), *chart.to_dict().get("layer", [])]
    assert any("tooltip" in mark.get("encoding", {}) for mark in marks)
    assert svg(chart).startswith("<svg")


def test_transfer_shows_values_with_their_intervals(synthetic):
    result = ANALYSES["TruthTransfer"](synthetic)
    text = svg(result.plot())
    for row in result.frame.iter_rows(named=True):
        assert f"{row['accuracy_low']:.3f} to {row['accuracy_high']:.3f}" in text
        assert row["dataset"] in text


def test_similarity_names_stages_and_split_halves(synthetic):
    text = svg(ANALYSES["TruthSimilarity"](synthetic).plot())
    for series in ("base and instruct", "base, disjoint halves", "instruct, disjoint halves"):
        assert series in text


def test_many_neurons_are_thinned_but_no_candidate_is(synthetic):
    result = ANALYSES["ConfidenceComparison"](synthetic)
    crowd = pl.concat([result.neurons] * 60)  # 7,680 rows: more than altair embeds by default
    crowded = confidence.ConfidenceComparison(**{**vars(result), "neurons": crowd})
    datasets = crowded.plot().to_dict()["datasets"].values()
    assert sorted(len(rows) for rows in datasets) == [20 * 60, 4000]


def test_a_result_without_a_chart_says_which_have_one():
    class Odd(Result):
        pass

    with pytest.raises(DataError, match=r"no chart for a Odd; .*TruthTransfer"):
        Odd(frame=pl.DataFrame(), artifact="a@b", arguments={}).plot()


def test_a_subclass_is_drawn_like_its_parent(synthetic):
    class Special(truth.TruthDirections):
        pass

    result = ANALYSES["TruthDirections"](synthetic)
    assert plots.draw(Special(**vars(result))).to_dict() == result.plot().to_dict()


def test_without_altair_the_way_out_is_named(synthetic, monkeypatch):
    result = ANALYSES["TruthDirections"](synthetic)
    monkeypatch.setitem(sys.modules, "altair", None)
    with pytest.raises(PrerequisiteError, match=r"pip install 'ptmech\[report\]'"):
        result.plot()


def test_importing_plots_does_not_import_altair():
    code = "import sys, ptmech.plots; sys.exit('altair' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
