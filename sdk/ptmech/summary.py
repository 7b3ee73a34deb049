"""What post-training changed, in one table: one answer for each perspective.

Every answer stands beside what it has to be compared with: a split half, chance, a random
direction. The wording follows fixed rules that are stated in :func:`summarize`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Final

import polars as pl

from ptmech import confidence, knowledge, refusal, truth
from ptmech.artifact import Artifact
from ptmech.confidence.averages import EFFECTS
from ptmech.errors import DataError, NotStoredError
from ptmech.refusal.geometry import card_places
from ptmech.refusal.tables import at_own_length, of_stages
from ptmech.results import Result

NOT_TESTABLE = "not testable here"
TOLERATED = 0.05
"""Accuracy that a transferred probe may lose and still count as one that transfers."""
CHANCE = 0.5
"""Accuracy of a probe that knows nothing: statement sets are balanced."""
BREAKING_LOSS = 1.0
"""Nats a token of plain text that an intervention may cost; beyond, it breaks the model."""
_COMPARED: Final = {
    "none": "without intervention",
    "own": "under its own direction",
    "transferred": "under the direction of {earlier}",
    "random": "under a random direction",
}
"""The conditions that an answer about refusal needs, each for both kinds of prompts."""


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
        stage's probe in the later stage, minus the later stage's own, lies above -0.05, and that of
        its own above chance; it does not if the former lies below -0.05; in between nothing is
        shown.
        The earlier *refusal* direction, at the length of the later stage's own, steers the later
        stage if it exceeds a random direction of that length and the 95 % intervals of the refusals
        that it and the own one cause overlap; in part if it exceeds the random one only. It is not
        shown if it can be told from neither, if the own direction does not
        exceed a random one, or if adding any of the three costs more than one nat a token of plain
        text: there is nothing to transfer, or no model left that could refuse. Refusals that
        disappear under ablation are no evidence at that cost either, nor where a random direction
        takes as many, and the table says so. *Confidence* is regulated by the same neurons if
        the candidates overlap by more than half and, in both stages, ablating one of them moves the
        entropy more than ablating a random neuron, with a larger share of it through the final norm
        (95 % intervals apart, the share above 0). If they overlap and this is not so, or was not
        tested, it is not shown: a ranking of neurons is no effect of theirs. A share below 0 says
        that the norm works against the neurons.

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
    known = [
        trace.known[stage]
        for trace, stage in ((own_earlier, earlier), (own_later, later))
        if stage in trace.known
    ]
    reached = float(own_later.scaled.max())
    strength = float(forward.scaled.max()) / reached if reached else float("nan")
    return _Finding(
        "yes" if same else "no",
        f"tracing grids correlate by {compared.pearson:.3f}; activations of {earlier} patched into "
        f"{later} work {strength:.2f} times as well as its own",
        f"{len(own_later.pairs)} pairs of {dataset}"
        + (f"; {known[0]:.0%} and {known[1]:.0%} of its facts known" if len(known) == 2 else ""),
    )


def _truthfulness(artifact: Artifact, earlier: str, later: str) -> _Finding:
    result = truth.transfer(artifact, earlier, later)
    mean = {
        row["probe"]: row
        for row in result.frame.filter(pl.col("dataset") == truth.MEAN).iter_rows(named=True)
    }
    difference = mean["difference"]
    if difference["accuracy_high"] < -TOLERATED:
        answer = "no"
    elif difference["accuracy_low"] > -TOLERATED and mean["own_later"]["accuracy_low"] > CHANCE:
        answer = "yes"
    else:
        answer = "not shown"
    similarity = truth.similarity(artifact, earlier, later).frame.row(
        by_predicate=pl.col("layer") == result.layer, named=True
    )
    return _Finding(
        answer,
        f"accuracy {mean['transferred']['accuracy']:.3f} transferred, "
        f"{mean['own_later']['accuracy']:.3f} own, difference {difference['accuracy']:+.3f} "
        f"[{difference['accuracy_low']:+.3f}, {difference['accuracy_high']:+.3f}]; directions at "
        f"layer {result.layer} have cosine {similarity['cosine']:.3f}",
        f"chance 0.500; directions from disjoint halves of the facts: "
        f"{similarity['split_half_between']:.3f} between the stages, "
        f"{similarity['split_half_earlier']:.3f} and {similarity['split_half_later']:.3f} within",
    )


def _refusal(artifact: Artifact, earlier: str, later: str) -> _Finding:
    layer, position = card_places(artifact)
    found = refusal.similarity(artifact, earlier, later, layer, position).frame.row(0, named=True)
    scores = refusal.scores(artifact).frame.filter(pl.col("stage") == later)
    scores = at_own_length(of_stages(scores, [earlier, later]))
    added, ablated = (
        {row["direction"]: row for row in scores.filter(prompts=kind).iter_rows(named=True)}
        for kind in ("harmless", "harmful")
    )
    for direction, words in _COMPARED.items():
        if any(direction not in rows for rows in (added, ablated)):
            under = words.format(earlier=earlier)
            raise NotStoredError(f"no refusals of {later} {under} are stored")
    # Directions of length one are equally long already.
    equally_long = "transferred_own_length" if "transferred_own_length" in added else "transferred"
    own, transferred, random = (added[name] for name in ("own", equally_long, "random"))
    if _broken(added, equally_long) or own["low"] <= random["high"]:
        answer = "not shown"
    else:
        works, as_well = transferred["low"] > random["high"], transferred["high"] >= own["low"]
        # Neither told apart from its own nor from a random one: it may be as good, or no good.
        answer = {
            (True, True): "yes",
            (True, False): "in part",
            (False, True): "not shown",
            (False, False): "no",
        }[works, as_well]
    more, fewer = (
        {name: f"{row['refusal_rate']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
         for name, row in rows.items()}
        for rows in (added, ablated)
    )  # fmt: skip
    losses = [
        " / ".join(f"{rows[name]['plain_text_loss']:.2f}" for name in ("own", compared, "random"))
        for rows, compared in ((added, equally_long), (ablated, "transferred"))
    ]
    return _Finding(
        answer,
        f"added to harmless prompts in {later}: refusals {more['none']} -> own direction "
        f"{more['own']}, {earlier}'s {more['transferred']} ({more[equally_long]} at "
        f"equal length){_addition_caution(added, equally_long)}; ablated on harmful ones: "
        f"{fewer['none']} -> own {fewer['own']}, {earlier}'s {fewer['transferred']}"
        f"{_ablation_caution(ablated)}; their cosine at layer {found['layer']} is "
        f"{found['cosine']:.3f}",
        f"a random direction gives {more['random']} added, {fewer['random']} ablated; nats a token "
        f"of plain text {added['none']['plain_text_loss']:.2f}, with own / {earlier}'s / random "
        f"added {losses[0]}, ablated {losses[1]}; directions from disjoint halves of the "
        f"prompts: {found['split_half_between']:.3f} between the stages, "
        f"{found['split_half_earlier']:.3f} and {found['split_half_later']:.3f} within",
    )


def _broken(rows: Mapping[str, Mapping[str, float]], transferred: str) -> set[str]:
    """Return which of the three directions cost the later stage its coherence."""
    whole = rows["none"]["plain_text_loss"]
    return {
        name
        for name in ("own", transferred, "random")
        # Not "above": a loss that is no number is no coherence either.
        if not rows[name]["plain_text_loss"] - whole <= BREAKING_LOSS
    }


def _addition_caution(rows: Mapping[str, Mapping[str, float]], transferred: str) -> str:
    """Say why refusals that appear under addition are no evidence; empty if they are."""
    broken = _broken(rows, transferred)
    if broken == {"random"}:
        return ", without a control: a random direction of that length breaks the model"
    return ", no evidence: addition breaks the model" if broken else ""


def _ablation_caution(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Say why refusals that disappear under ablation are no evidence; empty if they are."""
    if _broken(rows, "transferred"):
        return ", no evidence: ablation breaks the model"
    if rows["random"]["low"] <= rows["own"]["high"]:
        return ", no evidence: a random direction takes as many"
    return ""


def _confidence(artifact: Artifact, earlier: str, later: str) -> _Finding:
    compared = confidence.compare(artifact, earlier, later)
    evidence = (
        f"candidates overlap by {compared.overlap:.2f}; their norm / log variance changes by "
        f"{compared.mean_ratio_change:.4f} on average"
    )
    chance = f"chance {compared.chance_overlap:.3f}"
    shared = compared.overlap > 0.5
    try:
        effects = (
            confidence.effects(artifact)
            .frame.filter(pl.col("stage").is_in([earlier, later]), measure="entropy")
            .with_columns(pl.selectors.starts_with("share").fill_null(float("nan")))
        )
    except NotStoredError:
        effects = pl.DataFrame(schema=EFFECTS)
    tested = {
        (row["stage"], row["neurons"], row["effect"]): row
        for row in effects.filter(ablated="each").iter_rows(named=True)
    }
    most = effects.filter(neurons="chosen", ablated="one", effect="total").sort("absolute")
    compared_by = product((earlier, later), ("chosen", "random"), ("total", "norm"))
    if most.is_empty() or not tested.keys() >= set(compared_by):
        return _Finding(
            "not shown" if shared else "no",
            evidence,
            f"{chance}; candidates by weights alone, no causal test",
        )
    through = all(
        tested[stage, "chosen", "total"]["absolute_low"]
        > tested[stage, "random", "total"]["absolute_high"]
        and tested[stage, "chosen", "norm"]["share_low"]
        > max(0.0, tested[stage, "random", "norm"]["share_high"])
        for stage in (earlier, later)
    )
    return _Finding(
        ("yes" if through else "not shown") if shared else "no",
        f"{evidence}; ablating one moves the entropy by "
        f"{_moved(tested, 'chosen', earlier, later)} (neuron {most['neuron'][-1]} does most, "
        f"{most['absolute'][-1]:.4f})",
        f"{chance}; random neurons move it by {_moved(tested, 'random', earlier, later)}",
    )


def _moved(
    tested: Mapping[tuple[str, str, str], Mapping[str, float]],
    neurons: str,
    earlier: str,
    later: str,
) -> str:
    """Say by how much neurons move the entropy in both stages, and how much through the norm."""
    sizes = " and ".join(f"{tested[s, neurons, 'total']['absolute']:.4f}" for s in (earlier, later))
    shares = " and ".join(f"{tested[s, neurons, 'norm']['share']:+.2f}" for s in (earlier, later))
    return f"{sizes} nats, share through the norm {shares}"
