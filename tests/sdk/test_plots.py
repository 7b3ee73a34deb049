"""Charts: valid Vega-Lite that shows the result's numbers."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import polars as pl
import polars.selectors as cs
import pytest
import vl_convert
from hypothesis import given
from hypothesis import strategies as st

from ptmech import confidence, knowledge, plots, refusal, truth
from ptmech.errors import DataError, PrerequisiteError
from ptmech.plots.densities import densities
from ptmech.plots.drawing import shown_token
from ptmech.results import Result
from ptmech.summary import summarize

STAGES = ("base", "instruct")

ANALYSES = {
    "Trace": lambda artifact: knowledge.trace(artifact, *STAGES, "cities"),
    "KnowledgeComparison": lambda artifact: knowledge.compare_stages(artifact, *STAGES, "cities"),
    "TruthEffects": truth.effects,
    "TruthProjections": lambda artifact: truth.projections(artifact, *STAGES),
    "RefusalDirections": lambda artifact: refusal.directions(artifact, "base"),
    "RefusalSimilarity": lambda artifact: refusal.similarity(artifact, *STAGES, n_splits=1),
    "RefusalScores": refusal.scores,
    "RefusalCompletions": refusal.completions,
    "DirectionScores": lambda artifact: refusal.candidate_scores(artifact, "base"),
    "NeuronEffects": confidence.effects,
    "Summary": lambda artifact: summarize(artifact, *STAGES),
    "TruthDirections": lambda artifact: truth.directions(artifact, "base"),
    "TruthSimilarity": lambda artifact: truth.similarity(artifact, *STAGES, n_splits=2),
    "TruthSweep": lambda artifact: truth.sweep(artifact, *STAGES, n_bootstrap=20),
    "TruthTransfer": lambda artifact: truth.transfer(artifact, *STAGES, n_bootstrap=20),
    "ConfidenceComparison": lambda artifact: confidence.compare(artifact, *STAGES),
}


@pytest.fixture(scope="module")
def results(synthetic) -> dict[str, Result]:
    return {name: analyse(synthetic) for name, analyse in ANALYSES.items()}


def svg(chart, background: str = "white") -> str:
    return vl_convert.vegalite_to_svg(chart.to_dict(), config={"background": background})


def marks_of(spec) -> list[dict]:
    """Every view of a chart that draws something, wherever it is nested."""
    inner = [spec[name] for name in ("layer", "concat", "hconcat", "vconcat") if name in spec]
    views = [view for views in inner for view in views] + ([spec["spec"]] if "spec" in spec else [])
    return [mark for view in views for mark in marks_of(view)] or [spec]


def rows_of(chart) -> list[dict]:
    return [row for rows in chart.to_dict()["datasets"].values() for row in rows]


def test_every_chart_is_tested():
    assert set(ANALYSES) == set(plots.CHARTS)


@pytest.mark.parametrize("name", ANALYSES)
def test_every_result_draws_itself(results, name):
    result = results[name]
    assert type(result).__name__ == name
    chart = result.plot()
    spec = chart.to_dict()
    shared = {key for view in (spec, spec.get("spec", {})) for key in view.get("encoding", {})}
    for mark in marks_of(spec):
        told = "tooltip" in mark.get("encoding", {}) or "tooltip" in shared
        assert told or mark["mark"]["type"] == "rule", mark
    assert "title" in spec
    assert "#dddddd" not in svg(chart)


@pytest.mark.parametrize("name", ANALYSES)
def test_no_chart_needs_a_white_page(results, name):
    chart = results[name].plot()
    assert "background" not in chart.to_dict()
    on_black = svg(chart, "#111")
    # What stands in cells and pills of its own shade stays dark: no other text may be.
    if name not in {"TruthTransfer", "Summary"}:
        marks = re.findall(r'<text aria-label=[^>]*fill="([^"]+)"', on_black)
        assert set(marks) <= {"#dddddd"}
    assert 'stroke="black"' not in on_black


@pytest.mark.parametrize("name", ANALYSES)
def test_a_result_without_rows_says_so(results, name):
    result = results[name]
    table = plots.CHARTS[name].table
    empty = replace(result, **{table: getattr(result, table).clear()})
    assert "no rows, nothing to draw" in svg(empty.plot())


@pytest.mark.parametrize("value", [float("nan"), 0.0])
@pytest.mark.parametrize("name", ANALYSES)
def test_numbers_that_are_none_and_zeros_break_no_chart(results, name, value):
    changed = [pl.lit(value, pl.Float64).alias(each) for each in _measured(results[name].frame)]
    tables = {"frame": results[name].frame.with_columns(changed)}
    if name == "ConfidenceComparison":
        neurons = results[name].neurons
        columns = [pl.lit(value, pl.Float64).alias(each) for each in _measured(neurons)]
        tables["neurons"] = neurons.with_columns(columns)
    text = svg(replace(results[name], **tables).plot())
    assert not re.findall(r"(?<![A-Za-z])(NaN|Infinity|undefined)", text)


def _measured(frame: pl.DataFrame) -> list[str]:
    return [name for name in frame.select(cs.float()).columns if name != "scale"]


@pytest.mark.parametrize("name", ANALYSES)
def test_a_single_row_is_drawn(results, name):
    table = plots.CHARTS[name].table
    one = replace(results[name], **{table: getattr(results[name], table).head(1)})
    assert svg(one.plot()).startswith("<svg")


class TestProjections:
    def test_densities_integrate_to_one(self, results):
        frame = pl.DataFrame([row for row in rows_of(results["TruthProjections"].plot())])
        panels = frame.partition_by("dataset", "reading")
        assert len(panels) == 5 * 3
        for panel in panels:
            for name in ("true", "false"):
                area = np.trapezoid(panel[name], panel["projection"])
                assert area == pytest.approx(1, abs=0.01)

    def test_densities_are_those_of_a_gaussian_kernel(self):
        sample = np.array([-1.0, 0.2, 0.5, 3.0])
        grid, (found, nothing) = densities([sample, np.array([])], 65)
        width = sample.std() * 4**-0.2
        for place, density in zip(grid, found, strict=True):
            bells = [
                np.exp(-(((place - each) / width) ** 2) / 2) / np.sqrt(2 * np.pi) / width
                for each in sample
            ]
            assert density == pytest.approx(sum(bells) / 4)
        assert grid[0] < -1
        assert grid[-1] > 3
        assert not nothing.any()

    @given(st.lists(st.lists(st.integers(-(10**6), 10**6), max_size=9), min_size=1, max_size=3))
    def test_densities_of_whatever_samples_integrate_to_one(self, samples):
        grid, found = densities([np.array(sample, dtype=np.float64) for sample in samples], 48)
        for sample, density in zip(samples, found, strict=True):
            area = np.trapezoid(density, grid)
            assert area == pytest.approx(1 if sample else 0, abs=1e-3)

    def test_each_panel_tells_how_well_it_separates(self, results):
        text = svg(results["TruthProjections"].plot())
        for auroc in results["TruthProjections"].separation["auroc"]:
            assert f"AUROC {auroc:.2f}" in text

    def test_without_a_direction_there_is_no_curve(self, synthetic):
        chart = truth.projections(synthetic, *STAGES, 0, site="resid_pre").plot()
        assert {row["true"] for row in rows_of(chart)} == {0.0}
        assert "no direction" in svg(chart)


class TestTraces:
    def test_the_difference_is_later_minus_earlier(self, results):
        traces = results["KnowledgeComparison"].traces
        found = {
            (row["layer"], row["column"]): row["difference"]
            for row in rows_of(results["KnowledgeComparison"].plot())
            if "difference" in row
        }
        expected = traces["instruct", "instruct"].scaled - traces["base", "base"].scaled
        assert len(found) == expected.size
        for (layer, column), value in found.items():
            assert value == pytest.approx(expected[layer, column], rel=1e-6)

    def test_columns_are_named_by_place_token_and_role(self, results):
        text = svg(results["KnowledgeComparison"].plot())
        for label in ("3 Li (subject)", "4 ma (subject_last)", "6 in (last)"):
            assert text.count(f">{label}<") == 5  # four traces and the difference
        assert "instruct minus base" in text

    def test_of_one_pair_of_stages_is_a_map_alone(self, results):
        compared = results["KnowledgeComparison"]
        for kept in (("base", "base"), ("base", "instruct")):
            text = svg(replace(compared, traces={kept: compared.traces[kept]}).plot())
            assert " into ".join(kept) in text
            assert "minus" not in text

    def test_without_a_scale_it_says_why(self, results):
        trace = results["Trace"]
        nowhere = trace.frame.with_columns(scaled=pl.lit(float("nan")))
        assert "there is nothing to restore" in svg(replace(trace, frame=nowhere).plot())


@pytest.mark.parametrize(
    ("token", "shown"),
    [(" Paris", "·Paris"), ("\n", "\\n"), ("  ", "··"), ("a b ", "a b·"), ("\x1b", "\\x1b")],
)
def test_tokens_show_what_is_hardly_seen(token, shown):
    assert shown_token(token) == shown


class TestConfidence:
    def test_margins_count_every_neuron_once(self, results):
        bins = [row for row in rows_of(results["ConfidenceComparison"].plot()) if "low" in row]
        neurons = results["ConfidenceComparison"].neurons
        counted = pl.DataFrame(bins).group_by("stage").agg(pl.col("neurons").sum())
        # Two margins, each over all neurons.
        assert dict(counted.iter_rows()) == {
            stage: 2 * neurons.filter(stage=stage).height for stage in STAGES
        }

    def test_margins_are_bins_side_by_side(self, results):
        bins = pl.DataFrame(
            [row for row in rows_of(results["ConfidenceComparison"].plot()) if "low" in row]
        )
        for row, after in pairwise(bins.filter(stage="base").iter_rows(named=True)):
            assert after["low"] == pytest.approx(row["high"]) or after["low"] < row["low"] * 1e6

    def test_candidates_are_marked_and_their_overlap_told(self, results):
        result = results["ConfidenceComparison"]
        marked = [row for row in rows_of(result.plot()) if row.get("candidate")]
        chosen = result.candidates_earlier + result.candidates_later
        assert sorted(row["neuron"] for row in marked) == sorted(chosen)
        assert f"overlap {result.overlap:.2f}, by chance" in svg(result.plot())


class TestTexts:
    def test_completions_show_the_first_prompts_of_either_kind(self, results):
        frame = results["RefusalCompletions"].frame
        text = svg(results["RefusalCompletions"].plot())
        for kind in ("harmful", "harmless"):
            prompts = frame.filter(prompts=kind)["prompt"].unique(maintain_order=True)
            assert all(f">{prompt}<" in text for prompt in prompts[:2])
            assert f">{prompts[2]}<" not in text
        assert "like a refusal" in text

    def test_a_reply_is_text_whatever_it_says(self, results):
        result = results["RefusalCompletions"]
        wicked = "<script>alert(1)</script> \x1b[31m\u202e" + "x" * 999
        frame = result.frame.with_columns(completion=pl.lit(wicked))
        text = svg(replace(result, frame=frame).plot())
        assert "<script" not in text
        assert "\x1b" not in text
        assert "\\x1b[31m\\u202e" in text

    def test_the_summary_gives_every_answer(self, results):
        text = svg(results["Summary"].plot())
        for row in results["Summary"].frame.iter_rows(named=True):
            assert f">{row['perspective']}<" in text
            assert f">{row['answer']}<" in text


def test_transfer_shows_values_with_their_intervals(synthetic):
    result = ANALYSES["TruthTransfer"](synthetic)
    text = svg(result.plot())
    for row in result.frame.iter_rows(named=True):
        interval = f"{row['accuracy_low']:.3f} to {row['accuracy_high']:.3f}"
        assert interval.replace("-", "\N{MINUS SIGN}") in text
        assert row["dataset"] in text


def test_similarity_names_stages_and_split_halves(synthetic):
    text = svg(ANALYSES["TruthSimilarity"](synthetic).plot())
    for series in ("base and instruct", "base, disjoint halves", "instruct, disjoint halves"):
        assert series in text


def test_many_neurons_are_thinned_but_no_candidate_is(synthetic):
    result = ANALYSES["ConfidenceComparison"](synthetic)
    crowd = pl.concat([result.neurons] * 60)  # 7,680 rows: more than altair embeds by default
    crowded = confidence.ConfidenceComparison(**{**vars(result), "neurons": crowd})
    drawn = [row for row in rows_of(crowded.plot()) if "neuron" in row]
    assert sum("candidate" in row for row in drawn) == 20 * 60
    assert sum("candidate" not in row for row in drawn) == 4000


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
