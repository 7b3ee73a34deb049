"""What an artifact answers, for its page: the four findings, each with a figure.

Nothing here is written by hand: answers come from :mod:`ptmech.summary`, figures from the results'
own charts. What an artifact cannot answer is said to be not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import polars as pl

from ptmech import confidence, knowledge, refusal, truth
from ptmech.artifact import Artifact
from ptmech.errors import DataError, NotStoredError, UnknownNameError
from ptmech.refusal.tables import of_stages
from ptmech.results import Result
from ptmech.summary import NOT_TESTABLE, summarize

PIXELS_PER_INCH = 144


@dataclass(frozen=True)
class Figure:
    """A picture of the page.

    Attributes
    ----------
    path
        In the repository.
    alt
        What it shows, for those who do not see it.
    png
        Its bytes.
    """

    path: str
    alt: str
    png: bytes


@dataclass(frozen=True)
class Finding:
    """One question to one pair of stages, answered as far as the artifact can.

    Attributes
    ----------
    perspective, question
        As :func:`ptmech.summary.summarize` has them.
    answer
        None where it was not measured; `evidence` then says why.
    evidence, control
        The numbers, and what they are to be compared with.
    figure
        None where there is nothing to draw.
    """

    perspective: str
    question: str
    answer: str | None
    evidence: str
    control: str
    figure: Figure | None


@dataclass(frozen=True)
class Comparison:
    """The four findings on one pair of stages."""

    earlier: str
    later: str
    findings: tuple[Finding, ...]


def compare_all(artifact: Artifact) -> tuple[Comparison, ...]:
    """Compare the first stage with every later one."""
    first, *others = artifact.stages
    return tuple(
        Comparison(first, later, tuple(_findings(artifact, first, later))) for later in others
    )


def _findings(artifact: Artifact, earlier: str, later: str) -> Iterator[Finding]:
    for row in summarize(artifact, earlier, later).frame.iter_rows(named=True):
        perspective = row["perspective"]
        yield Finding(
            perspective=perspective,
            question=row["question"],
            answer=None if row["answer"] == NOT_TESTABLE else row["answer"],
            evidence=row["evidence"],
            control=row["control"],
            figure=_figure(artifact, earlier, later, perspective),
        )


def _figure(artifact: Artifact, earlier: str, later: str, perspective: str) -> Figure | None:
    shows, measure = _FIGURES[perspective]
    try:
        result = measure(artifact, earlier, later)
    except (NotStoredError, DataError, UnknownNameError):  # the finding says what is missing
        return None
    return Figure(
        path=f"figures/{perspective}_{earlier}_{later}.png",
        alt=f"{shows}, {earlier} and {later}",
        png=_draw(result),
    )


def _traces(artifact: Artifact, earlier: str, later: str) -> Result:
    datasets = artifact.manifest.defaults.trace_datasets
    if not datasets:
        raise NotStoredError("the card asks for no causal traces")
    return knowledge.compare_stages(artifact, earlier, later, datasets[0])


def _refusals(artifact: Artifact, earlier: str, later: str) -> Result:
    """Take the measured refusals where there are some, else the directions' agreement."""
    try:
        found = refusal.scores(artifact)
    except NotStoredError:
        return refusal.similarity(artifact, earlier, later)
    pair = [earlier, later]
    return replace(found, frame=of_stages(found.frame.filter(pl.col("stage").is_in(pair)), pair))


_FIGURES: Mapping[str, tuple[str, Callable[[Artifact, str, str], Result]]] = {
    "knowledge": ("Causal traces by layer and token", _traces),
    "truthfulness": ("Accuracy of own and transferred truth probes by dataset", truth.transfer),
    "refusal": ("Refusal under interventions", _refusals),
    "confidence": ("Entropy-neuron candidates by norm and logit variance", confidence.compare),
}


def _draw(result: Result) -> bytes:
    """Render a result's chart, the same bytes for the same result."""
    import vl_convert

    return vl_convert.vegalite_to_png(result.plot().to_json(), ppi=PIXELS_PER_INCH)
