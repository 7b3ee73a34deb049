"""What post-training changed, in one table: one answer for each perspective.

Every answer stands beside what it has to be compared with: a split half, chance, a random
direction. The wording follows fixed rules that are stated in :func:`summarize`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

from ptmech import confidence, knowledge, refusal, truth
from ptmech.artifact import Artifact
from ptmech.errors import DataError, NotStoredError
from ptmech.results import Result

NOT_TESTABLE = "not testable here"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Summary(Result):
    """Four questions about one pair of stages.

    Attributes
    ----------
    frame
        One row a perspective: ``perspective``, ``question``, ``answer``, ``evidence`` (the numbers
        behind it), ``control`` (what they are to be compared with).
    """


@dataclass(frozen=True)
class _Finding:
    answer: str
    evidence: str
    control: str


def summarize(artifact: Artifact, earlier: str, later: str) -> Summary:
    """Answer the four questions of the paper for one pair of stages.

    Parameters
    ----------
    artifact
        Any artifact; what it does not hold is answered by "not testable here".
    earlier, later
        Names of the stages.

    Returns
    -------
    Summary
        *Knowledge* is in the same places if the normalised tracing grids of both stages correlate
        above 0.9. *Truthfulness* transfers if the 95 % interval of the accuracy of the earlier
        stage's probe in the later stage, minus the later stage's own, reaches above -0.05.
        The earlier *refusal* direction, at the length of the later stage's own, steers the later
        stage if the 95 % intervals of the refusals they cause overlap; in part if it at least
        exceeds a random direction of that length. *Confidence* is regulated by the same neurons if
        the candidates overlap by more than half.

    Raises
    ------
    UnknownNameError
        If a stage does not exist.

    Examples
    --------
    >>> summarize(artifact, "instruct", "safety").frame["answer"]  # doctest: +SKIP
    """
    artifact.pair(earlier, later)
    questions: list[tuple[str, str, Callable[[Artifact, str, str], _Finding]]] = [
        ("knowledge", "Do facts stay in the same places?", _knowledge),
        ("truthfulness", "Does the earlier truth probe read the later stage?", _truthfulness),
        ("refusal", "Does the earlier refusal direction steer the later stage?", _refusal),
        ("confidence", "Do the same neurons regulate confidence?", _confidence),
    ]
    rows: list[dict[str, str]] = []
    for perspective, question, answer in questions:
        try:
            finding = answer(artifact, earlier, later)
        except (NotStoredError, DataError) as reason:
            finding = _Finding(NOT_TESTABLE, str(reason), "")
        rows.append(
            {
                "perspective": perspective,
                "question": question,
                "answer": finding.answer,
                "evidence": finding.evidence,
                "control": finding.control,
            }
        )
    return Summary(
        frame=pl.DataFrame(rows),
        artifact=artifact.id,
        arguments={"earlier": earlier, "later": later},
    )


def _knowledge(artifact: Artifact, earlier: str, later: str) -> _Finding:
    datasets = artifact.manifest.defaults.trace_datasets
    if not datasets:
        raise NotStoredError("the card asks for no causal traces")
    dataset = datasets[0]
    own_earlier, own_later, forward = (
        knowledge.trace(artifact, source, target, dataset)
        for source, target in ((earlier, earlier), (later, later), (earlier, later))
    )
    compared = knowledge.compare(own_earlier, own_later)
    same = compared.pearson > 0.9
    strength = float(forward.scaled.max() / own_later.scaled.max())
    return _Finding(
        "yes" if same else "no",
        f"tracing grids correlate by {compared.pearson:.3f}; activations of {earlier} patched into "
        f"{later} work {strength:.2f} times as well as its own",
        f"{len(own_later.pairs)} pairs of {dataset}; {own_earlier.known[earlier]:.0%} and "
        f"{own_later.known[later]:.0%} of its facts known",
    )


def _truthfulness(artifact: Artifact, earlier: str, later: str) -> _Finding:
    result = truth.transfer(artifact, earlier, later)
    mean = {
        row["probe"]: row
        for row in result.frame.filter(pl.col("dataset") == truth.MEAN).iter_rows(named=True)
    }
    difference = mean["difference"]
    similarity = truth.similarity(artifact, earlier, later).frame.row(
        by_predicate=pl.col("layer") == result.layer, named=True
    )
    return _Finding(
        "yes" if difference["accuracy_high"] > -0.05 else "no",
        f"accuracy {mean['transferred']['accuracy']:.3f} transferred, "
        f"{mean['own_later']['accuracy']:.3f} own, difference {difference['accuracy']:+.3f} "
        f"[{difference['accuracy_low']:+.3f}, {difference['accuracy_high']:+.3f}]; directions at "
        f"layer {result.layer} have cosine {similarity['cosine']:.3f}",
        f"chance 0.500; directions from disjoint halves of the facts: "
        f"{similarity['split_half_between']:.3f} between the stages, "
        f"{similarity['split_half_earlier']:.3f} and {similarity['split_half_later']:.3f} within",
    )


def _refusal(artifact: Artifact, earlier: str, later: str) -> _Finding:
    defaults = artifact.manifest.defaults
    if defaults.refusal_layer is None:
        raise NotStoredError("the card names no layer for the refusal direction")
    found = refusal.similarity(
        artifact, earlier, later, layer=defaults.refusal_layer, position=defaults.refusal_position
    ).frame.row(0, named=True)
    added = {
        row["direction"]: row
        for row in refusal.scores(artifact)
        .frame.filter(
            pl.col("stage") == later,
            pl.col("prompts") == "harmless",
            pl.col("direction_stage").is_null() | pl.col("direction_stage").is_in([earlier, later]),
        )
        .iter_rows(named=True)
    }
    transferred = added["transferred_own_length"]
    if transferred["high"] >= added["own"]["low"]:
        answer = "yes"
    elif transferred["low"] > added["random"]["high"]:
        answer = "in part"
    else:
        answer = "no"
    rates = {name: f"{row['refusal_rate']:.2f}" for name, row in added.items()}
    return _Finding(
        answer,
        f"added to harmless prompts in {later}: refusals {rates['none']} -> own direction "
        f"{rates['own']}, {earlier}'s {rates['transferred']} ({rates['transferred_own_length']} at "
        f"equal length); their cosine at layer {found['layer']} is {found['cosine']:.3f}",
        f"a random direction gives {rates['random']}; directions from disjoint halves of the "
        f"prompts: {found['split_half_between']:.3f} between the stages, "
        f"{found['split_half_earlier']:.3f} and {found['split_half_later']:.3f} within",
    )


def _confidence(artifact: Artifact, earlier: str, later: str) -> _Finding:
    compared = confidence.compare(artifact, earlier, later)
    return _Finding(
        "yes" if compared.overlap > 0.5 else "no",
        f"candidates overlap by {compared.overlap:.2f}; their norm / log variance changes by "
        f"{compared.mean_ratio_change:.4f} on average",
        f"chance {compared.chance_overlap:.3f}; candidates by weights alone, no causal test",
    )
