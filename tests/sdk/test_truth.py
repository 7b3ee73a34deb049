"""Truth directions, their similarity and the transfer of probes, against formulas written out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from tests.synthetic import AFFIRMATIVE_SETS, STATEMENT_SETS, plant, write_synthetic_artifact

from ptmech import truth
from ptmech._statements import Statements
from ptmech.artifact import Artifact
from ptmech.errors import DataError, NotStoredError, UnknownNameError
from ptmech.loading import load

STAGES = ("base", "instruct")


def rows_of(artifact: Artifact, stage: str, dataset: str, layer: int, site: str = "resid_post"):
    features = artifact.activations(dataset, stage, site=site, layer=layer).astype(np.float64)
    return features, artifact.labels(dataset), artifact.statements(dataset)["group"].to_list()


def centred_stack(artifact: Artifact, stage: str, datasets: Sequence[str], layer: int):
    features, labels = [], []
    for name in datasets:
        x, y, _ = rows_of(artifact, stage, name, layer)
        features.append(x - x.mean(axis=0))
        labels.append(y)
    return np.concatenate(features), np.concatenate(labels)


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


class TestDirections:
    def test_are_the_difference_of_the_class_means(self, synthetic):
        result = truth.directions(synthetic, "instruct")
        assert result.layers == (0, 1, 2, 3)
        for row, layer in enumerate(result.layers):
            x, y = centred_stack(synthetic, "instruct", AFFIRMATIVE_SETS, layer)
            theta = x[y].mean(axis=0) - x[~y].mean(axis=0)
            np.testing.assert_allclose(result.matrix[row], theta, atol=1e-10)
            np.testing.assert_array_equal(result.at(layer), result.matrix[row])
            assert result.frame["norm"][row] == pytest.approx(np.linalg.norm(theta))
        assert result.frame["n_rows"].to_list() == [400] * 4
        assert result.frame["n_true"].to_list() == [200] * 4

    @pytest.mark.parametrize("stage", STAGES)
    def test_find_what_was_planted(self, synthetic, stage):
        planted = plant()[stage]
        affirmative = truth.directions(synthetic, stage).at(3)
        assert cosine(affirmative, planted.truth + planted.polarity) > 0.97
        both = truth.directions(synthetic, stage, datasets=["cities", "neg_cities"]).at(3)
        assert cosine(both, planted.truth) > 0.9
        assert abs(cosine(both, planted.polarity)) < 0.2

    def test_of_a_last_token_that_never_varies_are_zero(self, synthetic):
        result = truth.directions(synthetic, "base", site="resid_pre")
        assert result.layers == (0, 1, 2, 3)
        np.testing.assert_array_equal(result.at(0), np.zeros(16))
        np.testing.assert_array_equal(
            result.matrix[1:], truth.directions(synthetic, "base").matrix[:3]
        )

    def test_of_logistic_regression_are_its_weights(self, synthetic):
        found = truth.directions(synthetic, "base", probe="logistic").at(2)
        x, y = centred_stack(synthetic, "base", AFFIRMATIVE_SETS, 2)
        model = LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000).fit(x, y)
        np.testing.assert_allclose(found, model.coef_[0], atol=1e-4)

    @pytest.mark.parametrize("probe", ["whitened_mass_mean", "ttpd", RidgeClassifier()])
    def test_come_from_any_linear_probe(self, synthetic, probe):
        planted = plant()["base"]
        found = truth.directions(synthetic, "base", probe=probe, datasets=STATEMENT_SETS).at(3)
        assert cosine(found, planted.truth) > 0.7

    def test_carry_their_arguments_and_print(self, synthetic):
        result = truth.directions(synthetic, "base", ["facts"], probe=RidgeClassifier(alpha=2.0))
        assert result.arguments["probe"] == "RidgeClassifier(alpha=2.0)"
        assert result.arguments["datasets"] == ("facts",)
        assert result.artifact == synthetic.id
        assert repr(result).startswith("TruthDirections(stage='base'")


class TestSimilarity:
    def test_cosine_is_that_of_the_stages_directions(self, synthetic):
        frame = truth.similarity(synthetic, *STAGES, n_splits=1).frame
        assert frame["layer"].to_list() == [0, 1, 2, 3]
        for layer in range(4):
            thetas = []
            for stage in STAGES:
                x, y = centred_stack(synthetic, stage, AFFIRMATIVE_SETS, layer)
                thetas.append(x[y].mean(axis=0) - x[~y].mean(axis=0))
            assert frame["cosine"][layer] == pytest.approx(cosine(*thetas))

    def test_split_halves_rise_with_the_signal_and_expose_shared_noise(self, synthetic):
        frame = truth.similarity(synthetic, *STAGES, n_splits=20).frame
        strong, none = frame.row(3, named=True), frame.row(0, named=True)
        for column in ("split_half_earlier", "split_half_later", "split_half_between"):
            assert strong[column] > 0.9
            assert abs(none[column]) < 0.6
        # No truth is planted at layer 0; the rows' common noise alone makes the stages agree.
        assert none["cosine"] > 0.7
        assert none["cosine"] - none["split_half_between"] > 0.3

    def test_split_halves_are_cosines_of_directions_of_disjoint_facts(self, synthetic):
        seed, layer = 7, 2
        frame = truth.similarity(synthetic, *STAGES, STATEMENT_SETS, n_splits=1, seed=seed).frame
        statements = Statements.of(synthetic, STATEMENT_SETS)
        half = statements.halves(np.random.default_rng(seed))
        assert not set(statements.groups[half]) & set(statements.groups[~half])
        for name in statements.datasets:
            mine = statements.owner == statements.datasets.index(name)
            for side in (half, ~half):
                assert 38 <= np.count_nonzero(mine & side) <= 42
        thetas = {}
        for stage in STAGES:
            for side, rows in (("first", half), ("second", ~half)):
                features, labels = [], []
                for index, name in enumerate(STATEMENT_SETS):
                    x, y, _ = rows_of(synthetic, stage, name, layer)
                    kept = rows[statements.owner == index]
                    features.append(x[kept] - x[kept].mean(axis=0))
                    labels.append(y[kept])
                x, y = np.concatenate(features), np.concatenate(labels)
                thetas[stage, side] = x[y].mean(axis=0) - x[~y].mean(axis=0)
        first, second = ("base", "first"), ("base", "second")
        third, fourth = ("instruct", "first"), ("instruct", "second")
        row = frame.row(layer, named=True)
        assert row["split_half_earlier"] == pytest.approx(cosine(thetas[first], thetas[second]))
        assert row["split_half_later"] == pytest.approx(cosine(thetas[third], thetas[fourth]))
        crosswise = (
            cosine(thetas[first], thetas[fourth]) + cosine(thetas[second], thetas[third])
        ) / 2
        assert row["split_half_between"] == pytest.approx(crosswise)

    def test_is_reproducible_and_symmetric(self, synthetic):
        there = truth.similarity(synthetic, "base", "instruct", n_splits=3, seed=5).frame
        again = truth.similarity(synthetic, "base", "instruct", n_splits=3, seed=5).frame
        back = truth.similarity(synthetic, "instruct", "base", n_splits=3, seed=5).frame
        other = truth.similarity(synthetic, "base", "instruct", n_splits=3, seed=6).frame
        assert there.equals(again)
        assert not there.equals(other)
        np.testing.assert_allclose(there["split_half_earlier"], back["split_half_later"])
        np.testing.assert_allclose(there["split_half_between"], back["split_half_between"])

    def test_without_variance_has_cosine_zero(self, synthetic):
        frame = truth.similarity(synthetic, *STAGES, site="resid_pre", n_splits=2).frame
        assert frame.row(0) == (0, 0.0, 0.0, 0.0, 0.0)


def transfer_by_hand(artifact, datasets, held_out, layer, centering):
    """Accuracy and AUROC of the three readings, one dataset held out, step by step."""
    test_groups = set(rows_of(artifact, "base", held_out, layer)[2])
    trained = {}
    for stage in STAGES:
        features, labels, means = [], [], []
        for name in datasets:
            x, y, groups = rows_of(artifact, stage, name, layer)
            kept = [row for row, group in enumerate(groups) if group not in test_groups]
            if not kept:
                continue
            means.append(x[kept].mean(axis=0))
            features.append(x[kept] - means[-1])
            labels.append(y[kept])
        x, y = np.concatenate(features), np.concatenate(labels)
        theta = x[y].mean(axis=0) - x[~y].mean(axis=0)
        line = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000)
        line.fit((x @ theta)[:, None], y)
        test, truths, _ = rows_of(artifact, stage, held_out, layer)
        test = test - (test.mean(axis=0) if centering == "each" else np.mean(means, axis=0))
        trained[stage] = (theta, line, test, truths)
    readings = {
        "own_earlier": ("base", "base"),
        "own_later": ("instruct", "instruct"),
        "transferred": ("base", "instruct"),
    }
    found = {}
    for reading, (probe, features) in readings.items():
        theta, line, _, _ = trained[probe]
        _, _, test, truths = trained[features]
        found[reading] = (
            np.mean(line.predict((test @ theta)[:, None]) == truths),
            roc_auc_score(truths, test @ theta),
        )
    return found


class TestTransfer:
    @pytest.mark.parametrize("centering", ["each", "train"])
    def test_equals_the_steps_written_out(self, synthetic, centering):
        result = truth.transfer(
            synthetic,
            *STAGES,
            layer=2,
            centering=centering,
            datasets=STATEMENT_SETS,
            n_bootstrap=10,
        )
        means = {reading: [] for reading in ("own_earlier", "own_later", "transferred")}
        for name in STATEMENT_SETS:
            by_hand = transfer_by_hand(synthetic, STATEMENT_SETS, name, 2, centering)
            mine = result.frame.filter(pl.col("dataset") == name)
            for row in mine.filter(pl.col("probe") != "difference").iter_rows(named=True):
                measured = (row["accuracy"], row["auroc"])
                assert measured == pytest.approx(by_hand[row["probe"]], abs=1e-12)
                means[row["probe"]].append(measured)
        for reading, values in means.items():
            row = result.frame.row(
                by_predicate=(pl.col("dataset") == "mean") & (pl.col("probe") == reading),
                named=True,
            )
            assert (row["accuracy"], row["auroc"]) == pytest.approx(np.mean(values, axis=0))

    def test_frame_is_complete_and_consistent(self, synthetic):
        result = truth.transfer(synthetic, *STAGES)
        frame = result.frame
        assert result.layer == 3
        assert frame["dataset"].unique(maintain_order=True).to_list() == [*AFFIRMATIVE_SETS, "mean"]
        assert frame.columns == [
            "dataset", "probe", "accuracy", "accuracy_low", "accuracy_high",
            "auroc", "auroc_low", "auroc_high", "n_test", "n_train",
        ]  # fmt: skip
        assert set(frame["n_test"].unique()) == {80, 400}
        for measure in ("accuracy", "auroc"):
            assert (frame[f"{measure}_low"] <= frame[measure] + 1e-12).all()
            assert (frame[f"{measure}_high"] >= frame[measure] - 1e-12).all()
            wide = frame.pivot("probe", index="dataset", values=measure)
            np.testing.assert_allclose(
                wide["difference"], wide["transferred"] - wide["own_later"], atol=1e-12
            )

    def test_reads_planted_truth_at_the_last_layer_and_nothing_at_the_first(self, synthetic):
        for layer, low, high in ((3, 0.9, 0.99), (0, 0.35, 0.65)):
            frame = truth.transfer(synthetic, *STAGES, layer=layer).frame
            mean = frame.filter(pl.col("dataset") == "mean", pl.col("probe") != "difference")
            assert mean["accuracy"].is_between(low, high).all()

    def test_is_at_chance_where_nothing_varies(self, synthetic):
        frame = truth.transfer(synthetic, *STAGES, layer=0, site="resid_pre").frame
        readings = frame.filter(pl.col("probe") != "difference")
        assert (readings["accuracy"] == 0.5).all()
        assert (readings["auroc"] == 0.5).all()

    def test_a_negation_never_tells_about_its_statement(self, synthetic):
        with_negations = truth.transfer(
            synthetic, *STAGES, datasets=["cities", "neg_cities", "facts"], n_bootstrap=50
        ).frame.filter(pl.col("dataset") == "cities")
        without = truth.transfer(
            synthetic, *STAGES, datasets=["cities", "facts"], n_bootstrap=50
        ).frame.filter(pl.col("dataset") == "cities")
        assert with_negations.equals(without)
        assert with_negations["n_train"].unique().to_list() == [80]

    def test_trains_on_no_row_of_a_held_out_group(self, synthetic):
        names = ("cities", "neg_cities", "facts", "inventors")
        seen: list[int] = []

        class Counting(ClassifierMixin, BaseEstimator):
            def fit(self, X: Any, y: Any) -> Any:
                self.classes_ = np.unique(y)
                seen.append(len(X))
                return self

            def decision_function(self, X: Any) -> Any:
                return X[:, 0]

            def predict(self, X: Any) -> Any:
                return X[:, 0] > 0

        result = truth.transfer(synthetic, *STAGES, datasets=names, probe=Counting(), n_bootstrap=2)
        expected = []
        table = synthetic.statements().filter(pl.col("dataset").is_in(names))
        for name in names:
            test_groups = table.filter(pl.col("dataset") == name)["group"].unique()
            expected.append(table.filter(~pl.col("group").is_in(test_groups.implode())).height)
        assert expected == [160, 160, 240, 240]
        assert seen == [*expected, *expected]  # of one stage, then of the other
        folds = result.frame.filter(pl.col("probe") == "transferred", pl.col("dataset") != "mean")
        assert folds["n_train"].to_list() == expected

    def test_gives_polarity_to_probes_that_take_it(self, synthetic):
        seen: list[Any] = []

        class Polar(RidgeClassifier):
            def fit(self, X: Any, y: Any, polarity: Any = None) -> Any:
                seen.append(polarity)
                return super().fit(X, y)

        truth.transfer(
            synthetic, *STAGES, datasets=["neg_cities", "facts"], probe=Polar(), n_bootstrap=2
        )
        assert [set(polarity) for polarity in seen] == [{1}, {-1}, {1}, {-1}]

    def test_ttpd_reads_negations_that_a_mass_mean_of_statements_cannot(self, synthetic):
        def accuracy(probe: str, datasets: Sequence[str]) -> float:
            frame = truth.transfer(
                synthetic, *STAGES, datasets=datasets, probe=probe, n_bootstrap=2
            ).frame
            return frame.row(
                by_predicate=(pl.col("dataset") == datasets[0]) & (pl.col("probe") == "own_later"),
                named=True,
            )["auroc"]

        # Trained without cities on affirmative sets only, the axis of truth is mixed with polarity.
        assert accuracy("mass_mean", ["neg_cities", *AFFIRMATIVE_SETS[1:]]) < 0.8
        assert accuracy("ttpd", ["facts", "cities", "neg_cities"]) > 0.8

    def test_takes_estimators_with_probabilities_only(self, synthetic):
        frame = truth.transfer(
            synthetic, *STAGES, probe=KNeighborsClassifier(), n_bootstrap=5
        ).frame
        own = frame.filter(pl.col("probe") == "own_later", pl.col("dataset") == "mean")
        assert own["auroc"].item() > 0.85

    def test_leaves_a_given_estimator_unfitted(self, synthetic):
        estimator = RidgeClassifier()
        truth.transfer(synthetic, *STAGES, probe=estimator, n_bootstrap=2)
        assert not hasattr(estimator, "coef_")

    def test_auroc_of_a_linear_probe_is_the_same_in_both_centerings(self, synthetic):
        each, train = (
            truth.transfer(synthetic, *STAGES, centering=centering, n_bootstrap=200).frame
            for centering in ("each", "train")
        )
        for column in ("auroc", "auroc_low", "auroc_high"):
            np.testing.assert_allclose(each[column], train[column], atol=1e-12)
        assert each["accuracy"].mean() > train["accuracy"].mean()

    def test_intervals_are_those_of_resampled_groups(self, synthetic):
        frame = truth.transfer(synthetic, *STAGES, layer=1, n_bootstrap=4000).frame
        name = "inventors"
        reading = frame.row(
            by_predicate=(pl.col("dataset") == name) & (pl.col("probe") == "own_later"), named=True
        )
        # The same probe by hand, then groups drawn in a plain loop.
        x, y = centred_stack(
            synthetic, "instruct", [each for each in AFFIRMATIVE_SETS if each != name], 1
        )
        theta = x[y].mean(axis=0) - x[~y].mean(axis=0)
        line = LogisticRegression(C=np.inf, tol=1e-10).fit((x @ theta)[:, None], y)
        test, truths = centred_stack(synthetic, "instruct", [name], 1)
        correct = line.predict((test @ theta)[:, None]) == truths
        groups = np.asarray(synthetic.statements(name)["group"].to_list())
        members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
        rng = np.random.default_rng(99)
        accuracies, aurocs = [], []
        for _ in range(800):
            drawn = np.concatenate([members[i] for i in rng.integers(len(members), size=40)])
            accuracies.append(correct[drawn].mean())
            aurocs.append(roc_auc_score(truths[drawn], (test @ theta)[drawn]))
        for measure, values in (("accuracy", accuracies), ("auroc", aurocs)):
            low, high = np.quantile(values, [0.025, 0.975])
            assert reading[f"{measure}_low"] == pytest.approx(low, abs=0.02)
            assert reading[f"{measure}_high"] == pytest.approx(high, abs=0.02)

    def test_differences_are_paired(self, synthetic):
        frame = truth.transfer(synthetic, *STAGES, layer=1).frame.filter(
            pl.col("dataset") == "mean"
        )
        width = dict(
            zip(frame["probe"], frame["accuracy_high"] - frame["accuracy_low"], strict=True)
        )
        assert width["difference"] < 0.8 * np.hypot(width["own_later"], width["transferred"])

    def test_does_not_depend_on_global_random_state(self, synthetic):
        first = truth.transfer(synthetic, *STAGES, n_bootstrap=50, seed=3).frame
        assert first.equals(truth.transfer(synthetic, *STAGES, n_bootstrap=50, seed=3).frame)
        assert not first.equals(truth.transfer(synthetic, *STAGES, n_bootstrap=50, seed=4).frame)


class TestDefaults:
    @pytest.fixture(scope="class")
    @staticmethod
    def bare(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
        """An artifact whose card chose nothing, with one unusable and one empty set."""
        root: Path = tmp_path_factory.mktemp("bare")
        return load(
            write_synthetic_artifact(
                root,
                n_facts=8,
                dtype="bfloat16",
                defaults={"truth_layer": None, "truth_datasets": ()},
                only_true=["inventors"],
                empty=["animal_class"],
            )
        )

    def test_without_a_chosen_layer_the_middle_one_is_read(self, bare):
        result = truth.transfer(bare, *STAGES, datasets=["cities", "facts"], n_bootstrap=2)
        assert result.layer == 2

    def test_without_chosen_datasets_the_affirmative_ones_are_taken(self, synthetic, bare):
        with pytest.raises(DataError, match="'inventors' holds true statements only"):
            truth.transfer(bare, *STAGES)
        assert truth.directions(synthetic, "base").arguments["datasets"] == AFFIRMATIVE_SETS

    def test_an_empty_dataset_is_named(self, bare):
        with pytest.raises(DataError, match="dataset 'animal_class' is empty"):
            truth.directions(bare, "base", datasets=["cities", "animal_class"])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda a: truth.transfer(a, *STAGES, datasets=["cities"]), DataError, "at least two"),
        (lambda a: truth.transfer(a, *STAGES, datasets="cities"), DataError, "not cities alone"),
        (lambda a: truth.transfer(a, *STAGES, centering="none"), DataError, "'train' or 'each'"),
        (lambda a: truth.transfer(a, *STAGES, n_bootstrap=0), DataError, "n_bootstrap"),
        (lambda a: truth.similarity(a, *STAGES, n_splits=0), DataError, "n_splits"),
        (
            lambda a: truth.transfer(a, *STAGES, datasets=["cities", "neg_cities"]),
            DataError,
            "nothing is left to train on when 'cities'",
        ),
        (lambda a: truth.directions(a, "base", ["facts", "facts"]), DataError, "named twice"),
        (lambda a: truth.directions(a, "base", []), DataError, "no datasets"),
        (lambda a: truth.directions(a, "base", ["harmful"]), DataError, "no labels"),
        (lambda a: truth.directions(a, "base", ["citys"]), UnknownNameError, "'cities'"),
        (lambda a: truth.directions(a, "bas"), UnknownNameError, "'base'"),
        (lambda a: truth.directions(a, "base", site="resid_past"), UnknownNameError, "resid_post"),
        (lambda a: truth.directions(a, "base", site="attn_out"), NotStoredError, "not stored"),
        (lambda a: truth.directions(a, "base", position=-2), UnknownNameError, "position"),
        (lambda a: truth.directions(a, "base").at(9), UnknownNameError, "layer 9"),
        (lambda a: truth.transfer(a, *STAGES, layer=9), UnknownNameError, "layer"),
        (lambda a: truth.transfer(a, "base", "base"), DataError, "two different stages"),
        (lambda a: truth.transfer(a, "base", "sft"), UnknownNameError, "'sft'"),
        (lambda a: truth.directions(a, "base", probe="massmean"), UnknownNameError, "mass_mean"),
        (lambda a: truth.directions(a, "base", probe="ccs"), DataError, "negation"),
        (lambda a: truth.directions(a, "base", probe=3), DataError, "not 3"),
        (lambda a: truth.directions(a, "base", probe=RidgeClassifier), DataError, "unfitted"),
        (
            lambda a: truth.directions(a, "base", probe=KNeighborsClassifier()),
            DataError,
            "not a linear probe",
        ),
    ],
)
def test_errors_are_one_clear_line(synthetic, call, error, message):
    with pytest.raises(error, match=message) as caught:
        call(synthetic)
    assert "\n" not in str(caught.value)
