"""What to add to statements so that a model takes false ones for true, and how well it worked.

Everything about the intervention that needs no model: which statements are asked about, the vector
that is added, and the effect computed from the answers (Marks & Tegmark 2023; Du et al. 2025,
section 4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from ptmech import _bootstrap
from ptmech._schemas import AT_LEAST_NONE, OPTIONAL, SHARE, Values
from ptmech._statements import Statements
from ptmech._truth_probes import TruthProbe
from ptmech._worked_examples import WorkedExamples, with_facts
from ptmech.directions import unit_vector
from ptmech.errors import DataError

_INTERVALS: Final = ("effect_true_to_false", "effect_false_to_true", "effect")
EFFECTS: Final[Mapping[str, Any]] = {
    "stage": pl.String,
    "direction": pl.String,
    "direction_stage": pl.String,
    "dataset": pl.String,
    "layer": pl.Int32,
    "layers": pl.List(pl.Int32),
    "length": pl.Float64,
    "n": pl.Int64,
    "p_true_before": pl.Float64,
    "p_false_before": pl.Float64,
    "auroc_before": pl.Float64,
    "answered_before": pl.Float64,
    "p_true_after": pl.Float64,
    "p_false_after": pl.Float64,
    "answered_after": pl.Float64,
    **{f"{name}{end}": pl.Float64 for name in _INTERVALS for end in ("", "_low", "_high")},
}
"""Columns of :class:`ptmech.truth.TruthEffects`, and of ``scores/<stage>/truth.parquet``."""

EFFECT_VALUES: Final[Mapping[str, Values]] = {
    **{name: Values(highest=1, undefined=True) for name in EFFECTS if name.startswith("effect")},
    **{name: Values(-1, 1) for name in EFFECTS if name.startswith("p_")},
    "direction": Values(among=("own", "transferred", "random")),
    "direction_stage": OPTIONAL,
    **dict.fromkeys(("length", "n"), AT_LEAST_NONE),
    **dict.fromkeys(("auroc_before", "answered_before", "answered_after"), SHARE),
}
"""What may stand in them."""


@dataclass(frozen=True, eq=False)
class Questions:
    """Statements a model is asked about, each behind worked examples in an order of its own.

    Attributes
    ----------
    dataset
        Where they are from.
    lead_ins, statements
        The examples as they stand before each statement, and the statement.
    truths : array of shape [n], bool
        Whether the statement is true.
    facts : array of shape [n], str
        What it is about.
    """

    dataset: str
    lead_ins: tuple[str, ...]
    statements: tuple[str, ...]
    truths: NDArray[np.bool_]
    facts: NDArray[np.str_]

    @classmethod
    def of(
        cls, rows: pl.DataFrame, *, n: int | None, seed: int, examples: Sequence[str] | None = None
    ) -> Self:
        """Choose examples and statements among the rows of a dataset.

        Facts of the examples are left out. Of what is left, as many true as false statements are
        taken, from the same facts as far as these have both.

        Parameters
        ----------
        rows
            All rows of one dataset, as :meth:`ptmech.artifact.Artifact.statements` has them.
        n
            How many statements at most; an odd number counts as the even one below. None: all.
        seed
            Of the choice and of the order of the examples.
        examples
            Worked examples with question and answer, instead of chosen ones.

        Raises
        ------
        DataError
            Too few statements for the examples, or none left to ask about.
        """
        dataset: str = rows["dataset"][0]
        if examples:
            shown = WorkedExamples.stated(examples, rows, seed=seed)
        else:
            shown = WorkedExamples.of(rows, seed=seed)
        left = with_facts(shown.unseen(rows))
        facts = left["fact"].unique().sort()
        rng = np.random.default_rng([seed, 1])
        place = pl.DataFrame({"fact": facts, "place": rng.permutation(len(facts))})
        left = left.join(place, on="fact", maintain_order="left").with_row_index("at")
        by_truth = [left.filter(pl.col("label") == truth).sort("place", "at") for truth in (1, 0)]
        each = min(part.height for part in by_truth)
        each = each if n is None else min(each, n // 2)
        if each < 1:
            raise DataError(
                f"{dataset!r} leaves no true and false statements to ask about: n must be at least "
                "2, and four facts are taken by the worked examples"
            )
        chosen = pl.concat([part.head(each) for part in by_truth]).sort("at")
        return cls(
            dataset=dataset,
            lead_ins=tuple(shown.lead_in(uid) for uid in chosen["row_uid"]),
            statements=tuple(chosen["text"]),
            truths=chosen["label"].to_numpy() == 1,
            facts=chosen["fact"].to_numpy().astype(np.str_),
        )


def truth_shift(
    statements: Statements,
    activations: NDArray[np.float64],
    *,
    asked: pl.DataFrame,
    probe: str | BaseEstimator = "mass_mean",
) -> NDArray[np.float64]:
    """Return the vector that carries a false statement's activation to a true one's.

    ``((mean(true) - mean(false)) . u) u`` with the probe's direction as the unit vector ``u``, both
    from training statements, each dataset centred by its own mean. With the mass-mean probe this is
    the difference of the means itself.

    Parameters
    ----------
    statements, activations
        Training statements and their activations [n, d_model] at the probe's layer.
    asked
        Rows of the dataset that is asked about. Training rows about its facts are left out.
    probe
        Name of a linear probe, or an unfitted one.

    Returns
    -------
    array of shape [d_model], float64

    Raises
    ------
    DataError
        Nothing is left to train on, or the direction has length zero.
    """
    training = ~np.isin(statements.groups, with_facts(asked)["fact"].to_numpy().astype(np.str_))
    if len(np.unique(statements.labels[training])) < 2:
        raise DataError(
            f"no true and false statements are left to find the truth direction for "
            f"{asked['dataset'][0]!r}: name datasets about other facts"
        )
    means, along = (
        TruthProbe(each).directions(statements, activations, training[None])[0]
        for each in ("mass_mean", probe)
    )
    unit = unit_vector(along)
    return (means @ unit) * unit


def random_shift(like: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Return a vector in a random direction, as long as another one [d_model]."""
    drawn = np.random.default_rng(seed).standard_normal(len(like))
    return unit_vector(drawn) * float(np.linalg.norm(like))


def effect_row(
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    questions: Questions,
    *,
    n_bootstrap: int,
    seed: int,
) -> dict[str, float]:
    """Return the measured columns of :data:`EFFECTS` for one direction in one model.

    Parameters
    ----------
    before, after : arrays of shape [n, 2]
        Probability of " TRUE" and of " FALSE" after each question, without and with intervention.
    questions
        What was asked.
    n_bootstrap, seed
        Replicates, and seed, of the bootstrap over facts.
    """
    truths = questions.truths
    drawn = _bootstrap.group_weights(questions.facts, n_bootstrap, seed)
    weights = np.concatenate([np.ones((1, len(truths))), drawn])
    p_before, p_after = (answers[:, 0] - answers[:, 1] for answers in (before, after))
    means = {
        f"p_{name}_{when}": _weighted_mean(values, weights * rows)
        for when, values in (("before", p_before), ("after", p_after))
        for name, rows in (("true", truths), ("false", ~truths))
    }
    effects = _effects(**means)
    row = {name: float(values[0]) for name, values in means.items()}
    row["auroc_before"] = float(_bootstrap.auroc(p_before, truths, weights[:1])[0])
    row["answered_before"] = float(before.sum(axis=1).mean())
    row["answered_after"] = float(after.sum(axis=1).mean())
    for name, values in effects.items():
        low, high = _bootstrap.interval(values[1:])
        row |= {name: float(values[0]), f"{name}_low": low, f"{name}_high": high}
    return row


def _effects(
    *,
    p_true_before: NDArray[np.float64],
    p_false_before: NDArray[np.float64],
    p_true_after: NDArray[np.float64],
    p_false_after: NDArray[np.float64],
) -> dict[str, NDArray[np.float64]]:
    """Return how far the answers went, each of them [replicates]: 0 nowhere, 1 all the way."""
    to_false = _share(p_true_after - p_true_before, -1 - p_true_before)
    to_true = _share(p_false_after - p_false_before, 1 - p_false_before)
    return dict(zip(_INTERVALS, (to_false, to_true, (to_false + to_true) / 2), strict=True))


def _share(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divide; where there is no way left to go, no share of it can be gone: NaN."""
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole != 0)


def _weighted_mean(
    values: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the mean of values [n] under each row of weights [replicates, n]; NaN without any."""
    return _share(weights @ values, weights.sum(axis=1))
