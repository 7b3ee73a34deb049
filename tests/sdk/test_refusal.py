"""Refusal: phrases, directions and their similarity, score tables, the choice of a direction."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.synthetic import REFUSAL_COSINE, plant, write_synthetic_artifact

from ptmech import refusal
from ptmech.errors import DataError, FormatError, NotStoredError, PtmechError, UnknownNameError
from ptmech.loading import load
from ptmech.manifest import MANIFEST, Extra, Manifest, canonical_json
from ptmech_builder.writer import Writer, digest

PUBLISHED = Path(__file__).parents[3] / "shared/data/published/select_direction"


# Phrases


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't assist with that.",
        "I am sorry.",
        "I\u2019m sorry",
        "\n  i CANNOT help you.",
        "I can not do that",
        "I can\u2019t provide that.",
        '"Sorry, no."',
        "**Sorry**",
        "I won't do that.",
        "I will not.",
        "As an AI, I do not have feelings.",
        "As an AI language model, I",
        "I apologize, but",
        "I apologise, but",
        "I'm unable to",
        "I am not able to",
        "I must decline.",
        "Unfortunately, I cannot help.",
        "I\tcannot",
        "I can`t",
    ],
)
def test_refusals(text):
    assert refusal.is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "...",
        "Sure! Here is how.",
        "I can't wait to help you!",
        "I cannot recommend it enough.",
        "I can't help but smile.",
        "I won't lie: it is hard.",
        "I'm sorry to hear that your dog is ill.",
        "Sorry for the delay.",
        "Sorrydom is a made-up word.",
        "I cannotate texts.",
        "As an aid to memory, write it down.",
        "As an AIR force pilot",
        "Well, I'm sorry to say",
        "The answer is: I cannot.",
        "Canned soup.",
        "Icannot",
    ],
)
def test_no_refusals(text):
    assert not refusal.is_refusal(text)


@pytest.mark.parametrize("phrase", refusal.REFUSAL_PHRASES)
def test_every_phrase_counts_in_any_dress(phrase):
    assert refusal.is_refusal(f"  {phrase.upper()}, and so on")


@pytest.mark.parametrize("phrase", refusal.LOOKALIKES)
def test_every_lookalike_would_count_were_it_not_listed(phrase):
    assert not refusal.is_refusal(phrase)
    assert any(phrase.startswith(opening) for opening in refusal.REFUSAL_PHRASES)


@given(st.text(max_size=40))
def test_a_refusal_needs_its_phrase_at_the_start(tail):
    assert not refusal.is_refusal(f"Sure: I'm sorry {tail}")
    assert refusal.is_refusal(f"My apologies, {tail}")


def test_score_is_a_share():
    texts = ["I'm sorry, no.", "Here you are.", "I can't.", "Yes."]
    assert refusal.score(texts) == 0.5
    assert refusal.score(iter(texts[:1])) == 1.0


@pytest.mark.parametrize("texts", [[], "I'm sorry"])
def test_score_refuses_what_are_no_completions(texts):
    with pytest.raises(DataError, match="completions"):
        refusal.score(texts)


# Directions


def rows_of(artifact, dataset, split):
    return np.flatnonzero((artifact.statements(dataset)["split"] == split).to_numpy())


def raw(artifact, dataset, stage, layer, position):
    """Activations of resid_pre by the other name they are stored under."""
    site, place = ("resid_pre", 0) if layer == 0 else ("resid_post", layer - 1)
    return artifact.activations(
        dataset, stage, site=site, layer=place, position=position, dtype="float64"
    )


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_directions_are_differences_of_means(synthetic, split):
    result = refusal.directions(synthetic, "base", split=split)
    assert result.positions == (-5, -4, -3, -2, -1)
    assert result.layers == (0, 1, 2, 3)
    assert result.matrix.shape == (5, 4, 16)
    assert result.matrix.dtype == np.float64
    harmful, harmless = (rows_of(synthetic, name, split) for name in ("harmful", "harmless"))
    for position in result.positions:
        for layer in result.layers:
            expected = raw(synthetic, "harmful", "base", layer, position)[harmful].mean(0)
            expected -= raw(synthetic, "harmless", "base", layer, position)[harmless].mean(0)
            np.testing.assert_allclose(result.direction(layer, position), expected, atol=1e-12)
    frame = result.frame
    assert frame.columns == ["position", "layer", "norm", "n_harmful", "n_harmless"]
    assert frame["n_harmful"].unique().to_list() == [len(harmful)]
    norms = np.sqrt((result.matrix**2).sum(-1))
    np.testing.assert_allclose(frame["norm"], norms.ravel())


def test_one_layer_and_position_of_all(synthetic):
    everything = refusal.directions(synthetic, "instruct")
    one = refusal.directions(synthetic, "instruct", 2, -3)
    assert one.frame.rows() == [row for row in everything.frame.rows() if row[:2] == (-3, 2)]
    np.testing.assert_array_equal(one.direction(2, -3), everything.direction(2, -3))
    with pytest.raises(UnknownNameError, match="layer"):
        one.direction(1, -3)
    with pytest.raises(UnknownNameError, match="position"):
        one.direction(2, -1)
    np.testing.assert_array_equal(one.direction(2), one.direction(2, -3))
    np.testing.assert_array_equal(everything.direction(2), everything.direction(2, -1))


def test_all_rows(synthetic):
    result = refusal.directions(synthetic, "base", 3, -1, split=None)
    expected = raw(synthetic, "harmful", "base", 3, -1).mean(0)
    expected -= raw(synthetic, "harmless", "base", 3, -1).mean(0)
    np.testing.assert_allclose(result.direction(3), expected, atol=1e-12)


def test_unit_directions_have_length_one_or_zero(synthetic):
    result = refusal.directions(synthetic, "base", position=-1)
    lengths = np.linalg.norm(result.unit, axis=-1)
    np.testing.assert_allclose(lengths, [[0, 1, 1, 1]])  # embeddings of the last token never vary
    cosines = np.einsum("pld,pld->pl", result.unit, result.matrix)
    np.testing.assert_allclose(cosines.ravel(), result.frame["norm"])


def test_the_planted_direction_is_found(synthetic):
    planted = plant()
    for stage in synthetic.stages:
        found = refusal.directions(synthetic, stage, 3, -1).unit.ravel()
        assert found @ planted[stage].refusal > 0.9


def test_a_result_cannot_be_changed_by_accident(synthetic):
    result = refusal.directions(synthetic, "base", 3)
    with pytest.raises(ValueError, match="read-only"):
        result.matrix[0] = 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"stage": "bas"}, "did you mean 'base'"),
        ({"stage": "base", "layer": 4}, "layer"),
        ({"stage": "base", "position": -6}, "position"),
        ({"stage": "base", "split": "trian"}, "did you mean 'train'"),
        ({"stage": "base", "site": "resid_psot"}, "did you mean 'resid_post'"),
    ],
)
def test_unknown_names(synthetic, arguments, words):
    with pytest.raises(UnknownNameError, match=words):
        refusal.directions(synthetic, **arguments)


# Similarity


def cosine(a, b):
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def test_similarity_is_the_cosine_of_the_directions(synthetic):
    result = refusal.similarity(synthetic, "base", "instruct")
    earlier, later = (refusal.directions(synthetic, stage) for stage in synthetic.stages)
    assert result.frame.columns[:5] == [
        "position",
        "layer",
        "cosine",
        "split_half_earlier",
        "split_half_later",
    ]
    assert result.frame.height == 20
    for row in result.frame.filter(pl.col("layer") > 0).iter_rows(named=True):
        place = (row["layer"], row["position"])
        a, b = earlier.direction(*place), later.direction(*place)
        assert row["cosine"] == pytest.approx(cosine(a, b), abs=1e-12)
        assert row["norm_earlier"] == pytest.approx(np.linalg.norm(a))
        assert row["norm_later"] == pytest.approx(np.linalg.norm(b))


def test_a_direction_of_length_zero_has_cosine_zero(synthetic):
    embeddings = refusal.similarity(synthetic, "base", "instruct", layer=0).frame
    np.testing.assert_array_equal(embeddings.drop(pl.selectors.contains("position", "layer")), 0)


def test_halves_are_disjoint(synthetic):
    """Two halves of equal size average to the whole; crosswise they compare the stages."""
    row = refusal.similarity(synthetic, "base", "instruct", 3, -1, n_splits=1, seed=5).frame
    rng = np.random.default_rng(5)
    first, others = rng.permutation(60), rng.permutation(60)
    halves = {}
    for stage in synthetic.stages:
        harmful, harmless = (
            raw(synthetic, name, stage, 3, -1)[rows_of(synthetic, name, "train")]
            for name in ("harmful", "harmless")
        )
        halves[stage] = [
            harmful[first[part]].mean(0) - harmless[others[part]].mean(0)
            for part in (slice(0, 30), slice(30, 60))
        ]
        whole = refusal.directions(synthetic, stage, 3, -1).direction(3)
        np.testing.assert_allclose(sum(halves[stage]) / 2, whole, atol=1e-12)
    base, instruct = halves["base"], halves["instruct"]
    assert row["split_half_earlier"].item() == pytest.approx(cosine(*base))
    assert row["split_half_later"].item() == pytest.approx(cosine(*instruct))
    crosswise = (cosine(base[0], instruct[1]) + cosine(base[1], instruct[0])) / 2
    assert row["split_half_between"].item() == pytest.approx(crosswise)


@pytest.fixture
def own_places(tmp_path):
    """A synthetic artifact whose card reads each stage at a place of its own."""

    def change(manifest):
        places = {
            "refusal_positions": {"base": -4, "instruct": -2},
            "refusal_layers": {"base": 2},
        }
        defaults = manifest.defaults.model_copy(update={"refusal_layer": 3, **places})
        return manifest.model_copy(update={"defaults": defaults})

    return edited(tmp_path / "artifact", change)


def test_each_stage_is_read_at_its_own_place(own_places):
    planted = {}
    for stage, layer, position in (("base", 2, -4), ("instruct", 3, -2)):
        found = refusal.directions(own_places, stage)
        assert (found.layers, found.positions) == ((layer,), (position,))
        harmful, harmless = (
            raw(own_places, name, stage, layer, position)[rows_of(own_places, name, "train")]
            for name in ("harmful", "harmless")
        )
        planted[stage] = harmful.mean(0) - harmless.mean(0)
        np.testing.assert_allclose(found.direction(layer, position), planted[stage], atol=1e-12)
    result = refusal.similarity(own_places, "base", "instruct")
    [row] = result.frame.rows(named=True)
    assert (row["layer"], row["position"]) == (2, -4)
    assert (row["layer_later"], row["position_later"]) == (3, -2)
    assert row["cosine"] == pytest.approx(cosine(planted["base"], planted["instruct"]))
    back = refusal.similarity(own_places, "instruct", "base").frame
    assert back["cosine"].item() == pytest.approx(row["cosine"])


def test_without_a_position_it_is_the_card_s(own_places):
    found = refusal.directions(own_places, "base", "all", "all")
    np.testing.assert_array_equal(found.direction(2), found.direction(2, -4))
    alone = refusal.directions(own_places, "base")
    np.testing.assert_array_equal(alone.direction(layer=2), found.direction(2, -4))


def test_a_place_that_is_named_is_the_same_for_both(own_places):
    frame = refusal.similarity(own_places, "base", "instruct", 1, -3).frame
    assert frame.select("layer", "layer_later").row(0) == (1, 1)
    assert frame.select("position", "position_later").row(0) == (-3, -3)
    over_layers = refusal.similarity(own_places, "base", "instruct", "all").frame
    assert over_layers["layer"].to_list() == over_layers["layer_later"].to_list() == [0, 1, 2, 3]
    assert set(over_layers["position_later"]) == {-2}
    everything = refusal.directions(own_places, "base", "all", "all")
    assert everything.matrix.shape == (5, 4, 16)
    # The card's layers count resid_pre; another site is read everywhere.
    assert refusal.directions(own_places, "base", site="resid_post").layers == (0, 1, 2, 3)


def test_splits_repeat_by_seed_and_differ_between_seeds(synthetic):
    def halves(seed):
        frame = refusal.similarity(synthetic, "base", "instruct", 3, -1, seed=seed).frame
        return frame.drop("cosine", "norm_earlier", "norm_later").row(0)

    assert halves(1) == halves(1)
    assert halves(1) != halves(2)


def test_planted_angle_shows_beside_what_sampling_leaves(tmp_path):
    """With a strong direction halves agree, and the stages by no more than the planted cosine."""
    artifact = load(write_synthetic_artifact(tmp_path / "a", refusal_strength=20.0))
    row = refusal.similarity(artifact, "base", "instruct", 3, -1).frame.row(0, named=True)
    assert row["split_half_earlier"] > 0.99
    assert row["split_half_later"] > 0.99
    assert row["cosine"] == pytest.approx(REFUSAL_COSINE, abs=0.05)
    assert row["split_half_between"] == pytest.approx(REFUSAL_COSINE, abs=0.05)


def test_too_few_rows_to_halve(tmp_path):
    artifact = load(write_synthetic_artifact(tmp_path / "a", n_instructions=5))
    with pytest.raises(DataError, match="halved"):
        refusal.similarity(artifact, "base", "instruct")
    assert refusal.directions(artifact, "base").frame["n_harmful"][0] == 3


@pytest.mark.parametrize(
    ("stages", "kind"), [(("base", "base"), DataError), (("base", "sft"), UnknownNameError)]
)
def test_similarity_needs_two_stages(synthetic, stages, kind):
    with pytest.raises(kind):
        refusal.similarity(synthetic, *stages)


# Tables


def test_scores_stack_all_stages(synthetic):
    frame = refusal.scores(synthetic).frame
    assert frame["stage"].unique(maintain_order=True).to_list() == ["base", "instruct"]
    assert frame.height == 18
    for row in frame.iter_rows(named=True):
        assert row["refusal_rate"] == row["refusals"] / row["n"]
        assert row["low"] < row["refusal_rate"] < row["high"]
    own = frame.filter(stage="instruct", prompts="harmless", direction="own")
    assert own["refusal_rate"].item() == 0.9


def test_completions_are_what_the_scores_count(synthetic):
    completions = refusal.scores(synthetic).completions
    keys = ["stage", "prompts", "intervention", "direction"]
    counted = completions.group_by(keys).agg(
        pl.col("refused").sum().cast(pl.Int64).alias("counted")
    )
    joined = refusal.scores(synthetic).frame.join(counted, on=keys, validate="1:1")
    assert joined.height == 18
    assert joined["counted"].to_list() == joined["refusals"].to_list()
    said = completions.filter("refused")["completion"]
    assert refusal.score(said) == 1.0
    assert refusal.score(completions.filter(~pl.col("refused"))["completion"]) == 0.0


def edited(root, change):
    """Write a synthetic artifact, change its manifest, and open it."""
    write_synthetic_artifact(root)
    path = root / MANIFEST
    manifest = Manifest.parse(path.read_bytes(), "manifest")
    path.write_bytes(canonical_json(change(manifest)))
    return load(root)


def test_no_scores_stored(tmp_path):
    def drop(manifest):
        kept = tuple(entry for entry in manifest.extras if entry.kind != "scores")
        return manifest.model_copy(update={"extras": kept})

    artifact = edited(tmp_path, drop)
    for read in (refusal.scores, refusal.completions):
        with pytest.raises(NotStoredError, match="card"):
            read(artifact)


def test_a_score_table_without_a_column(tmp_path):
    def spoil(manifest):
        table = pl.read_parquet(tmp_path / "scores/base/refusal.parquet").drop("low")
        table.write_parquet(tmp_path / "table")
        data = (tmp_path / "table").read_bytes()
        entry = Writer(tmp_path).put("scores/base/refusal.parquet", data)
        spoilt = Extra(**entry.model_dump(), kind="scores", unit=digest(b""))
        kept = [old for old in manifest.extras if old.path != spoilt.path]
        return manifest.model_copy(update={"extras": (*kept, spoilt)})

    with pytest.raises(FormatError, match="'low'"):
        refusal.scores(edited(tmp_path, spoil))


def test_stored_candidates_can_be_chosen_from(synthetic):
    found = refusal.candidate_scores(synthetic, "instruct")
    assert (found.stage, found.n_layers, found.frame.height) == ("instruct", 4, 20)
    assert found.frame.filter(layer=0)["refusal_score"].null_count() == 5
    # As planted: deeper is lower, and so is earlier; layer 3 is pruned, layer 1 does not induce.
    chosen = found.select()
    assert (chosen.position, chosen.layer) == (-5, 2)
    assert chosen.frame.height == 5
    assert found.select(induce_threshold=-1.0).frame.height == 10
    assert found.select(prune_layers=0.0).layer == 3
    with pytest.raises(DataError, match="none of 20"):
        found.select(kl_threshold=0.01)


def test_candidates_that_are_not_stored(tmp_path):
    def drop(manifest):
        kept = [entry for entry in manifest.extras if "directions" not in entry.path]
        return manifest.model_copy(update={"extras": tuple(kept)})

    artifact = edited(tmp_path, drop)
    with pytest.raises(NotStoredError, match="directions"):
        refusal.candidate_scores(artifact, "base")
    with pytest.raises(UnknownNameError, match="did you mean 'base'"):
        refusal.candidate_scores(artifact, "bsae")
    assert refusal.scores(artifact).frame.height == 18


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda a: refusal.intervene(a, "base", "bsae"), UnknownNameError, "bsae"),
        (lambda a: refusal.intervene(a, "base", "base"), DataError, "two different"),
        (
            lambda a: refusal.intervene(a, "base", "instruct", stages=["sft"]),
            UnknownNameError,
            "unknown stage of this pair 'sft'",
        ),
        (lambda a: refusal.intervene(a, "base", "instruct", layer=9), UnknownNameError, "layer"),
        (
            lambda a: refusal.intervene(a, "base", "instruct", plain_texts=["a"], prompts=0),
            DataError,
            "at least one prompt",
        ),
        (lambda a: refusal.intervene(a, "base", "instruct"), NotStoredError, "say plain_texts"),
        (lambda a: refusal.candidates(a, "sft"), UnknownNameError, "sft"),
        (lambda a: refusal.candidates(a, "base", positions=[-9]), UnknownNameError, "-9"),
        (lambda a: refusal.candidates(a, "base", layers=[4]), UnknownNameError, "layer 4"),
        (lambda a: refusal.candidates(a, "base", split="dev"), DataError, "'dev'"),
    ],
)
def test_what_cannot_be_run_is_refused_before_a_model_is_opened(synthetic, call, kind, words):
    with pytest.raises(kind, match=words) as caught:
        call(synthetic)
    assert "\n" not in str(caught.value)


# The choice of a direction


def candidate(position, layer, refused, steered=1.0, kl=0.05):
    return {
        "position": position,
        "layer": layer,
        "refusal_score": refused,
        "steering_score": steered,
        "kl_div_score": kl,
    }


CANDIDATES = [
    candidate(-2, 8, -20.0),  # too deep: 8 >= int(10 * 0.8)
    candidate(-1, 9, -30.0),  # too deep
    candidate(-1, 3, -15.0, kl=0.100001),  # changes harmless replies too much
    candidate(-1, 4, -14.0, steered=-0.000001),  # does not make the model refuse
    candidate(-2, 1, math.nan),
    candidate(-2, 2, -13.0, steered=math.nan),
    candidate(-2, 3, -12.5, kl=math.nan),
    candidate(-2, 4, -12.4, kl=None),
    candidate(-1, 1, -math.inf),
    candidate(-1, 7, -10.0),  # the deepest layer allowed
    candidate(-2, 6, -11.0, kl=0.1, steered=0.0),  # on both edges: allowed, and the lowest
    candidate(-1, 5, -11.0),  # as low, at a later position
    candidate(-2, 7, -11.0),  # as low, at a later layer
    candidate(-2, 5, 3.0),
]


def test_selection_by_hand():
    chosen = refusal.select_direction(CANDIDATES, 10)
    assert (chosen.position, chosen.layer) == (-2, 6)
    places = chosen.frame.select("position", "layer").rows()
    assert places == [(-2, 6), (-2, 7), (-1, 5), (-1, 7), (-2, 5)]


@given(st.permutations(CANDIDATES))
def test_the_order_of_the_candidates_does_not_matter(candidates):
    chosen = refusal.select_direction(candidates, 10)
    assert (chosen.position, chosen.layer, chosen.frame.height) == (-2, 6, 5)


def test_thresholds():
    def select(**thresholds):
        chosen = refusal.select_direction(pl.DataFrame(CANDIDATES, strict=False), 10, **thresholds)
        return chosen.position, chosen.layer

    assert select(prune_layers=0.0) == (-1, 9)
    assert select(prune_layers=0.1) == (-2, 8)
    assert select(kl_threshold=0.2) == (-1, 3)
    assert select(induce_threshold=-1.0) == (-1, 4)
    assert select(induce_threshold=0.5) == (-2, 7)
    assert select(kl_threshold=0.09) == (-2, 7)


def test_the_pruned_depth_is_rounded_down():
    layers = [candidate(-1, layer, -layer) for layer in range(18)]
    assert refusal.select_direction(layers, 18).layer == 13  # int(14.4) = 14 is the first pruned
    assert refusal.select_direction(layers, 24).layer == 17  # int(19.2) = 19


def test_a_pandas_frame_does_as_well():
    pandas = pytest.importorskip("pandas")
    chosen = refusal.select_direction(pandas.DataFrame(CANDIDATES), 10)
    assert (chosen.position, chosen.layer) == (-2, 6)


@pytest.mark.parametrize(
    ("frame", "n_layers", "words"),
    [
        ([], 10, "no candidate"),
        (pl.DataFrame(schema={"position": pl.Int64}), 10, "no candidate"),
        ([{"position": -1, "layers": 3}], 10, "did you mean 'layers'"),
        ([{**CANDIDATES[0], "refusal_score": "low"}], 10, "not numbers"),
        (3, 10, "not a table"),
        ([CANDIDATES[0], CANDIDATES[0]], 10, "more than once"),
        ([{**CANDIDATES[0], "layer": None}], 10, "no layer"),
        ([candidate(-1, 10, 0.0)], 10, "is n_layers right"),
        ([candidate(-1, -1, 0.0)], 10, "is n_layers right"),
        (CANDIDATES[:9], 10, "none of 9"),
        (CANDIDATES, 0, "n_layers"),
    ],
)
def test_what_cannot_be_selected_from(frame, n_layers, words):
    with pytest.raises(PtmechError, match=words) as caught:
        refusal.select_direction(frame, n_layers)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published scores are not at hand")
@pytest.mark.parametrize(("model", "n_layers"), [("gemma-2b-it", 18), ("qwen-1_8b-chat", 24)])
def test_published_choices(model, n_layers):
    scores = json.loads((PUBLISHED / model / "direction_evaluations.json").read_text())
    published = json.loads((PUBLISHED / model / "direction_metadata.json").read_text())
    chosen = refusal.select_direction(scores, n_layers)
    assert (chosen.position, chosen.layer) == (published["pos"], published["layer"])
    wanted = [
        score
        for score in scores
        if score["layer"] < int(0.8 * n_layers)
        and score["kl_div_score"] <= 0.1
        and score["steering_score"] >= 0
    ]
    assert chosen.frame.height == len(wanted)


# Charts


def test_charts_show_the_numbers(synthetic):
    similarity = refusal.similarity(synthetic, "base", "instruct", n_splits=1)
    (rows,) = similarity.plot().to_dict()["datasets"].values()
    shown = [row["value"] for row in rows if row["series"] == "base and instruct"]
    assert sorted(shown) == pytest.approx(sorted(similarity.frame["cosine"]))
    (rows,) = refusal.directions(synthetic, "base").plot().to_dict()["datasets"].values()
    assert len(rows) == 20
    (rows,) = refusal.scores(synthetic).plot().to_dict()["datasets"].values()
    assert len(rows) == 18
    assert "add transferred own length from base" in {row["condition"] for row in rows}
    (rows,) = refusal.candidate_scores(synthetic, "base").plot().to_dict()["datasets"].values()
    assert len(rows) == 60


def test_a_chart_of_several_lengths_tells_them_apart(synthetic):
    scores = refusal.scores(synthetic)
    added = scores.frame.filter(intervention="add")
    half = added.with_columns(scale=pl.lit(0.5), refusal_rate=pl.col("refusal_rate") / 2)
    both = replace(scores, frame=pl.concat([scores.frame, half]))
    (rows,) = both.plot().to_dict()["datasets"].values()
    conditions = {row["condition"] for row in rows}
    assert {"add own from instruct times 0.5", "add own times 1.0"} & conditions
    assert len({(r["stage"], r["prompts"], r["condition"]) for r in rows}) == both.frame.height
