"""The paper's four findings, and what one pair of stages says to each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from scipy.stats import hypergeom

from ptmech import confidence, knowledge, refusal, truth
from ptmech._bootstrap import interval
from ptmech.artifact import Artifact
from ptmech.errors import NotStoredError
from ptmech.refusal.tables import at_own_length, of_stages
from ptmech.summary import NOT_TESTABLE, summarize

Verdict = Literal["confirmed", "not confirmed", "not testable here"]

REPLICATES = 1000
"""Draws of the pairs of statements, with replacement."""

_CLAIMS = {
    "knowledge": "Post-training leaves facts where they were stored.",
    "truthfulness": "The truth direction stays: the earlier stage's probe reads the later stage.",
    "refusal": "The refusal direction changes: the earlier one steers the later stage less.",
    "confidence": "The same entropy neurons regulate confidence before and after.",
}
"""What the paper found of the base and post-trained models it studied (arXiv:2504.02904)."""

_VERDICTS: dict[str, dict[str, Verdict]] = {
    "knowledge": {"yes": "confirmed", "no": "not confirmed"},
    "truthfulness": {"yes": "confirmed", "no": "not confirmed"},
    "refusal": {"in part": "confirmed", "no": "confirmed", "yes": "not confirmed"},
    "confidence": {"yes": "confirmed", "no": "not confirmed", "not shown": "not confirmed"},
}
"""By perspective and answer of the summary. What is not listed could not be put to the test."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a pair of stages says to one finding of the paper.

    Attributes
    ----------
    perspective, claim
        Which finding.
    question, answer
        What the summary asks instead, and answers.
    verdict
        ``confirmed``, ``not confirmed`` or ``not testable here``.
    number
        The number behind it, in words; empty if there is none.
    uncertainty
        Its 95 % interval, or how probable it would be by chance; empty if there is no number.
    evidence, control
        All numbers, and what to compare them with, as :func:`ptmech.summary.summarize` has them.
    """

    perspective: str
    claim: str
    question: str
    answer: str
    verdict: Verdict
    number: str
    uncertainty: str
    evidence: str
    control: str


def findings(artifact: Artifact, earlier: str, later: str) -> list[Finding]:
    """Hold a pair of stages against the four findings of Du et al. 2025.

    Parameters
    ----------
    artifact
        Any artifact; what it does not hold is not testable.
    earlier, later
        Names of the stages.

    Returns
    -------
    list of Finding
        One a perspective. The verdict follows from the answer of
        :func:`ptmech.summary.summarize`, whose rules are written there; where that answer is that
        nothing was shown about refusal, there was nothing to transfer and the finding is not
        testable.

    Raises
    ------
    UnknownNameError
        If a stage does not exist.

    Examples
    --------
    >>> [finding.verdict for finding in findings(artifact, "base", "sft")]  # doctest: +SKIP
    """
    numbers: dict[str, Callable[[Artifact, str, str], tuple[str, str]]] = {
        "knowledge": _agreement,
        "truthfulness": _transferred,
        "refusal": _steered,
        "confidence": _shared,
    }
    found: list[Finding] = []
    for row in summarize(artifact, earlier, later).frame.iter_rows(named=True):
        perspective = row["perspective"]
        verdict = _VERDICTS[perspective].get(row["answer"], NOT_TESTABLE)
        tested = row["answer"] != NOT_TESTABLE
        number, uncertainty = numbers[perspective](artifact, earlier, later) if tested else ("", "")
        found.append(
            Finding(
                perspective=perspective,
                claim=_CLAIMS[perspective],
                question=row["question"],
                answer=row["answer"],
                verdict=verdict,
                number=number,
                uncertainty=uncertainty,
                evidence=row["evidence"],
                control=row["control"],
            )
        )
    return found


def _agreement(artifact: Artifact, earlier: str, later: str) -> tuple[str, str]:
    """Correlate the stages' own tracing grids; resample the pairs that both are means of."""
    dataset = artifact.manifest.defaults.trace_datasets[0]
    grids = [knowledge.trace(artifact, stage, stage, dataset).grid for stage in (earlier, later)]
    pairs = len(grids[0])
    draws = np.random.default_rng(0).multinomial(pairs, np.full(pairs, 1 / pairs), REPLICATES)

    def correlation(weights: np.ndarray) -> float:
        first, second = (np.tensordot(weights / weights.sum(), grid, axes=1) for grid in grids)
        return knowledge.compare(first, second).pearson

    low, high = interval(np.array([correlation(draw) for draw in draws]))
    return (
        f"correlation of the tracing grids {correlation(np.ones(pairs)):.3f}",
        f"95 % [{low:.3f}, {high:.3f}] over {pairs} pairs",
    )


def _transferred(artifact: Artifact, earlier: str, later: str) -> tuple[str, str]:
    """Accuracy of the transferred probe, minus that of the later stage's own."""
    result = truth.transfer(artifact, earlier, later)
    row = result.frame.row(
        by_predicate=(pl.col("dataset") == truth.MEAN) & (pl.col("probe") == "difference"),
        named=True,
    )
    return (
        f"accuracy {row['accuracy']:+.3f} against the later stage's own probe",
        f"95 % [{row['accuracy_low']:+.3f}, {row['accuracy_high']:+.3f}]",
    )


def _steered(artifact: Artifact, earlier: str, later: str) -> tuple[str, str]:
    """Refusals under the earlier and the own direction: added equally long, and ablated."""
    scores = refusal.scores(artifact).frame.filter(pl.col("stage") == later)
    scores = at_own_length(of_stages(scores, [earlier, later]))
    added, ablated = (
        {row["direction"]: row for row in scores.filter(prompts=kind).iter_rows(named=True)}
        for kind in ("harmless", "harmful")
    )
    theirs = added.get("transferred_own_length") or added["transferred"]
    own = added["own"]
    return (
        f"refusals of harmless prompts with the direction of {earlier} added "
        f"{theirs['refusal_rate']:.2f}, with {later}'s own {own['refusal_rate']:.2f}; of harmful "
        f"prompts with them ablated {ablated['transferred']['refusal_rate']:.2f} and "
        f"{ablated['own']['refusal_rate']:.2f}",
        f"95 % {', '.join(map(_between, (theirs, own, ablated['transferred'], ablated['own'])))}",
    )


def _between(row: Mapping[str, float]) -> str:
    return f"[{row['low']:.2f}, {row['high']:.2f}]"


def _shared(artifact: Artifact, earlier: str, later: str) -> tuple[str, str]:
    """Count the candidates both stages share, and how often chance would."""
    compared = confidence.compare(artifact, earlier, later)
    first, second = set(compared.candidates_earlier), set(compared.candidates_later)
    shared = len(first & second)
    eligible = compared.neurons.filter("eligible").group_by("stage").len()["len"].max() or 0
    chance = float(hypergeom.sf(shared - 1, eligible, len(first), len(second)))
    number = f"{shared} of {max(len(first), len(second))} candidates in both stages"
    doubt = f"by chance as many in {chance:.2g} of draws"
    try:
        effects = confidence.effects(artifact).frame
    except NotStoredError:
        return number, doubt
    through = effects.filter(
        stage=later, neurons="chosen", ablated="each", measure="entropy", effect="norm"
    )
    for row in through.iter_rows(named=True):
        number += f"; share of their effect through the final norm {row['share']:+.2f}"
        doubt += (
            f"; of the share, 95 % [{row['share_low']:+.2f}, {row['share_high']:+.2f}], an entropy "
            "neuron's being near 1"
        )
    return number, doubt
