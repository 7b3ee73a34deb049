"""Entropy-neuron candidates of two stages, against formulas on the planted weights."""

from __future__ import annotations

import hashlib

import numpy as np
import polars as pl
import pytest
import vl_convert
from tests.synthetic import (
    D_MLP,
    ENTROPY_NEURONS,
    NEURON_EFFECTS,
    plant,
    write_synthetic_artifact,
)

from ptmech import confidence, unembedding
from ptmech.confidence.averages import EFFECTS, Averages, effects_table
from ptmech.errors import AlignmentError, DataError, FormatError, NotStoredError, UnknownNameError
from ptmech.loading import load
from ptmech.manifest import canonical_json

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


@pytest.mark.parametrize(("quantile", "n"), [(0.75, 10), (0.5, 4)])
def test_candidates_of_a_stage_are_those_of_a_comparison(synthetic, quantile, n):
    _, _, expected = judged_by_hand("instruct", quantile, n)
    found = confidence.candidates(synthetic, "instruct", norm_quantile=quantile, n=n)
    assert list(found) == expected


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

    narrowed = [
        stage.model_copy(update={"d_mlp": 60}) if stage.name == "instruct" else stage
        for stage in synthetic.manifest.stages
    ]
    manifest = synthetic.manifest.model_copy(update={"stages": tuple(narrowed)})
    monkeypatch.setattr(synthetic, "manifest", manifest)
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
        (lambda a: confidence.candidates(a, "bose"), UnknownNameError, "'base'"),
        (
            lambda a: confidence.candidates(a, "base", convention="row"),
            UnknownNameError,
            "did you mean 'raw'",
        ),
        (lambda a: confidence.ablate_neurons(a, [1], ["a b"]), DataError, "which stage"),
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


# --- effects, measured and stored ----------------------------------------------------------------


def test_stored_effects_are_those_of_all_stages(synthetic):
    result = confidence.effects(synthetic)
    assert dict(result.frame.schema) == dict(EFFECTS)
    assert result.frame["stage"].unique(maintain_order=True).to_list() == list(STAGES)
    for (group, ablated), (total, direct) in NEURON_EFFECTS.items():
        rows = result.frame.filter(neurons=group, ablated=ablated, measure="entropy")
        sizes = {"total": total, "direct": direct, "norm": total - direct}
        for effect, size in sizes.items():
            np.testing.assert_allclose(rows.filter(effect=effect)["absolute"], size)
        np.testing.assert_allclose(rows.filter(effect="norm")["share"], 1 - direct / total)
    assert "not about other neurons" in type(result).__doc__


def test_the_chart_sets_total_beside_direct_effects(synthetic):
    text = vl_convert.vegalite_to_svg(confidence.effects(synthetic).plot().to_dict())
    for neuron in ENTROPY_NEURONS:
        assert f"chosen {neuron}" in text
    for value in (NEURON_EFFECTS["chosen", "one"], NEURON_EFFECTS["random", "each"]):
        for size in value:
            assert f"{size:.5f}" in text
    assert all(stage in text for stage in STAGES)


def test_effects_that_are_not_there_or_not_whole_are_named(tmp_path):
    root = write_synthetic_artifact(tmp_path / "artifact", n_facts=4, n_instructions=5)
    path = root / "scores/base/neurons.parquet"
    shortened = pl.read_parquet(path).drop("share")
    entries = {entry.path: entry for entry in load(root).manifest.extras}

    def rewrite(extras):
        manifest = load(root).manifest.model_copy(update={"extras": tuple(extras)})
        (root / "manifest.json").write_bytes(canonical_json(manifest))

    shortened.write_parquet(path)
    data = path.read_bytes()
    changed = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    entry = entries["scores/base/neurons.parquet"].model_copy(update=changed)
    rewrite({**entries, entry.path: entry}.values())
    with pytest.raises(FormatError, match="lacks the column 'share'"):
        confidence.effects(load(root))
    rewrite(e for name, e in entries.items() if not name.endswith("/neurons.parquet"))
    with pytest.raises(NotStoredError, match="holds no effects of neurons"):
        confidence.effects(load(root))


def test_averages_weigh_every_token_alike():
    """Texts of three and one tokens; the groups' rows come in the order of the ablations."""
    text = np.array([0, 0, 0, 1])
    rng = np.random.default_rng(3)
    total, direct = rng.normal(size=(2, 6, 2, 4))
    frame = effects_table(
        Averages.over(text, n_bootstrap=500, seed=0),
        np.array([[1.0, 2.0, 3.0, 6.0], [0.0, 0.0, 0.0, 4.0]]),
        total,
        direct,
        groups={"chosen": [9, 4, 30], "random": [2]},
        stage="s",
        layer=3,
    )
    assert frame.height == (5 + 3) * 2 * 3
    entropy = frame.filter(measure="entropy")
    assert set(entropy["unedited"]) == {3.0}
    assert set(frame.filter(measure="loss")["unedited"]) == {1.0}
    cases = {
        ("chosen", "one", 4): [1],
        ("chosen", "each", None): [0, 1, 2],
        ("chosen", "together", None): [3],
        ("random", "one", 2): [4],
        ("random", "together", None): [5],
    }
    for (group, ablated, neuron), which in cases.items():
        rows = {
            row["effect"]: row
            for row in entropy.filter(
                pl.col("neuron").eq_missing(neuron), neurons=group, ablated=ablated
            ).iter_rows(named=True)
        }
        t, d = total[which, 0], direct[which, 0]
        for effect, values in (("total", t), ("direct", d), ("norm", t - d)):
            assert rows[effect]["change"] == pytest.approx(values.mean())
            assert rows[effect]["absolute"] == pytest.approx(np.abs(values).mean())
            # Two texts: a draw is one of them twice, or both.
            by_text = [np.abs(values[:, :3]).mean(), np.abs(values[:, 3]).mean()]
            assert rows[effect]["absolute_low"] == pytest.approx(min(by_text))
            assert rows[effect]["absolute_high"] == pytest.approx(max(by_text))
        share = 1 - np.abs(d).mean() / np.abs(t).mean()
        assert rows["norm"]["share"] == pytest.approx(share)


def test_a_neuron_that_does_nothing_has_no_share():
    nothing = np.zeros((2, 2, 3))
    frame = effects_table(
        Averages.over(np.array([0, 1, 1]), n_bootstrap=10, seed=0),
        nothing[0],
        nothing,
        nothing,
        groups={"chosen": [0]},
        stage="s",
        layer=0,
    )
    assert frame.filter(effect="norm")["share"].is_nan().all()
