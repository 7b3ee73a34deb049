"""Entropy-neuron candidates of two stages, against formulas on the planted weights."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from tests.synthetic import D_MLP, ENTROPY_NEURONS, plant, write_synthetic_artifact

from ptmech import confidence, unembedding
from ptmech.artifact import load
from ptmech.errors import AlignmentError, DataError, UnknownNameError

STAGES = ("base", "instruct")


def judged_by_hand(stage: str, quantile: float, n: int):
    """Norms, logit variances and candidates from the weights themselves."""
    planted = plant()[stage]
    rows = planted.unembedding - planted.unembedding.mean(axis=0)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    norms = np.sqrt((planted.output_weights**2).sum(axis=0))
    variances = np.array(
        [np.var(rows @ planted.output_weights[:, i] / norms[i], ddof=1) for i in range(len(norms))]
    )
    eligible = [i for i in range(len(norms)) if norms[i] > np.quantile(norms, quantile)]
    return norms, variances, sorted(eligible, key=lambda i: variances[i])[:n]


def test_functions_are_those_of_unembedding():
    for name in ("logit_variance", "null_space_fraction", "entropy_neurons"):
        assert getattr(confidence, name) is getattr(unembedding, name)


@pytest.mark.parametrize("stage", STAGES)
def test_neurons_are_those_of_the_stage(synthetic, stage):
    frame = confidence.neurons(synthetic, stage)
    norms, variances, _ = judged_by_hand(stage, 0.75, 10)
    assert frame["neuron"].to_list() == list(range(D_MLP))
    np.testing.assert_allclose(frame["norm"], norms)
    np.testing.assert_allclose(frame["logit_variance_folded_centered"], variances)


@pytest.mark.parametrize(("quantile", "n"), [(0.75, 10), (0.5, 4), (0.95, 10)])
def test_candidates_and_overlap_equal_the_definition(synthetic, quantile, n):
    result = confidence.compare(synthetic, *STAGES, norm_quantile=quantile, n=n)
    by_hand = [judged_by_hand(stage, quantile, n) for stage in STAGES]
    earlier, later = (set(each[2]) for each in by_hand)
    assert list(result.candidates_earlier) == by_hand[0][2]
    assert list(result.candidates_later) == by_hand[1][2]
    assert result.overlap == pytest.approx(len(earlier & later) / len(earlier | later))
    assert set(result.frame["neuron"]) == earlier | later
    changes = []
    for row in result.frame.iter_rows(named=True):
        ratios = []
        for suffix, (norms, variances, chosen) in zip(("earlier", "later"), by_hand, strict=True):
            i = row["neuron"]
            ratios.append(norms[i] / np.log(variances[i]))
            assert row[f"norm_{suffix}"] == pytest.approx(norms[i])
            assert row[f"logit_variance_{suffix}"] == pytest.approx(variances[i])
            assert row[f"ratio_{suffix}"] == pytest.approx(ratios[-1])
            assert row[f"candidate_{suffix}"] == (i in chosen)
        changes.append(abs(ratios[0] - ratios[1]))
    assert result.mean_ratio_change == pytest.approx(np.mean(changes))


def test_planted_entropy_neurons_come_first(synthetic):
    result = confidence.compare(synthetic, *STAGES, n=3)
    assert set(result.candidates_earlier) == set(result.candidates_later) == set(ENTROPY_NEURONS)
    assert result.overlap == 1
    assert result.frame["null_space_fraction_earlier"].min() > 0.99


def test_neurons_of_a_comparison_hold_both_stages(synthetic):
    result = confidence.compare(synthetic, *STAGES)
    assert result.neurons.height == 2 * D_MLP
    counts = result.neurons.group_by("stage", maintain_order=True).agg(
        pl.col("candidate", "eligible").sum()
    )
    assert counts.rows() == [("base", 10, 16), ("instruct", 10, 16)]
    assert repr(result).startswith("ConfidenceComparison(earlier='base'")


def test_convention_chooses_the_column(synthetic):
    for convention in ("raw", "folded"):
        result = confidence.compare(synthetic, *STAGES, convention=convention)
        table = confidence.neurons(synthetic, "base").sort("neuron")
        np.testing.assert_array_equal(
            result.neurons.filter(pl.col("stage") == "base")["logit_variance"],
            table[f"logit_variance_{convention}"],
        )


@pytest.mark.parametrize(
    ("eligible", "in_both", "picked"),
    [((16, 16), 16, (10, 10)), ((16, 20), 9, (5, 7)), ((30, 30), 0, (4, 4)), ((6, 6), 6, (6, 6))],
)
def test_chance_overlap_equals_a_simulation(eligible, in_both, picked):
    rng = np.random.default_rng(0)
    first = np.arange(eligible[0])
    second = np.arange(eligible[1]) + eligible[0] - in_both
    values = []
    for _ in range(4000):
        a = set(rng.choice(first, picked[0], replace=False))
        b = set(rng.choice(second, picked[1], replace=False))
        values.append(len(a & b) / len(a | b))
    exact = confidence.chance_overlap(eligible=eligible, eligible_in_both=in_both, picked=picked)
    assert exact == pytest.approx(np.mean(values), abs=4 * np.std(values) / np.sqrt(4000) + 1e-12)


def test_no_neuron_longer_than_the_longest(synthetic):
    result = confidence.compare(synthetic, *STAGES, norm_quantile=1.0)
    assert result.frame.is_empty()
    assert (result.overlap, result.chance_overlap) == (0.0, 0.0)
    assert np.isnan(result.mean_ratio_change)


def test_stages_of_different_width_do_not_compare(synthetic, monkeypatch):
    table = type(synthetic).table

    def shortened(self, path: str) -> pl.DataFrame:
        frame = table(self, path)
        return frame.head(60) if "/instruct/" in path else frame

    monkeypatch.setattr(type(synthetic), "table", shortened)
    with pytest.raises(AlignmentError, match="64 neurons in 'base' and 60 in 'instruct'"):
        confidence.compare(synthetic, *STAGES)


def test_reads_no_activations(tmp_path):
    root = write_synthetic_artifact(tmp_path / "artifact", n_facts=4, n_instructions=5)
    for file in (root / "acts").rglob("*.safetensors"):
        file.unlink()
    assert confidence.compare(load(root), *STAGES).overlap > 0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda a: confidence.neurons(a, "bose"), UnknownNameError, "'base'"),
        (lambda a: confidence.compare(a, "base", "base"), DataError, "two different stages"),
        (lambda a: confidence.compare(a, "base", "sft"), UnknownNameError, "'sft'"),
        (
            lambda a: confidence.compare(a, *STAGES, convention="folded_centred"),
            UnknownNameError,
            "folded_centered",
        ),
        (lambda a: confidence.compare(a, *STAGES, n=0), DataError, "n must be at least 1"),
        (lambda a: confidence.compare(a, *STAGES, norm_quantile=2.0), DataError, "norm_quantile"),
    ],
)
def test_errors_are_one_clear_line(synthetic, call, error, message):
    with pytest.raises(error, match=message) as caught:
        call(synthetic)
    assert "\n" not in str(caught.value)
