"""Which figures a report has: those of the paper, for one pair of stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import polars as pl

from ptmech import confidence, knowledge, refusal, truth
from ptmech.artifact import Artifact
from ptmech.report.examples import examples
from ptmech.report.figures import Figure, Section, figure

Figures = Iterator[Figure]

_TRACES = (
    "Each cell: one layer's activation at one token, copied from the run on a true statement into "
    "the run on a false one. 0: the answer stays; 1: it becomes the true statement's. Bright cells "
    "carry the fact. The last map of the first row is the difference between the stages' own."
)


def sections(artifact: Artifact, earlier: str, later: str) -> list[Section]:
    """Draw everything an artifact says about a pair of stages.

    Parameters
    ----------
    artifact
        Any artifact; a figure it holds nothing for says so.
    earlier, later
        Names of the stages.

    Returns
    -------
    list of Section
        Knowledge, truthfulness, refusal, confidence (Du et al. 2025, sections 3 to 6).

    Raises
    ------
    PrerequisiteError
        If altair is missing.
    """
    perspectives: list[tuple[str, str, Callable[[Artifact, str, str], Figures]]] = [
        ("knowledge", "Where does a model keep its facts, and does that move?", _knowledge),
        ("truthfulness", "Which way is truth, and can one stage read the other?", _truthfulness),
        ("refusal", "What makes a stage refuse, and does it work in the other?", _refusal),
        ("confidence", "Which neurons set how sure a model is?", _confidence),
    ]
    return [
        Section(name=name, question=question, figures=list(draw(artifact, earlier, later)))
        for name, question, draw in perspectives
    ]


def _knowledge(artifact: Artifact, earlier: str, later: str) -> Figures:
    missing = f"{artifact.id} holds no causal traces"
    for dataset in knowledge.stored(artifact)["dataset"].unique().sort().to_list():
        yield figure(
            f"Causal traces of {dataset}",
            _TRACES,
            f'sdk.knowledge.compare_stages(artifact, "{earlier}", "{later}", "{dataset}").plot()',
            lambda dataset=dataset: knowledge.compare_stages(artifact, earlier, later, dataset),
            table=_cells,
        )
        missing = ""
    if missing:
        yield Figure(title="Causal traces", caption=_TRACES, code="", missing=missing)


def _cells(result: knowledge.KnowledgeComparison) -> pl.DataFrame:
    """List the cells of all traces."""
    return pl.concat(
        trace.frame.select(pl.lit(source).alias("source"), pl.lit(target).alias("target"), pl.all())
        for (source, target), trace in result.traces.items()
    )


def _truthfulness(artifact: Artifact, earlier: str, later: str) -> Figures:
    stages = f'artifact, "{earlier}", "{later}"'
    yield figure(
        "Truth directions by layer",
        "Cosine of the two stages' truth directions, beside that of directions from disjoint "
        "halves of the facts: what two estimates of the same direction reach. Where the halves are "
        "negative there is no common direction: every word ends as many true as false statements, "
        "so what one half has too much of, the other lacks.",
        f"sdk.truth.similarity({stages}).plot()",
        lambda: truth.similarity(artifact, earlier, later),
    )
    yield figure(
        "Transfer of truth probes",
        "Each dataset is left out once; probes trained on the others are tested on it. The third "
        "column is the earlier stage's probe on the later stage, the last what that costs.",
        f"sdk.truth.transfer({stages}).plot()",
        lambda: truth.transfer(artifact, earlier, later),
    )
    yield figure(
        "Transfer by layer",
        "The same at every layer, mean over the datasets left out. 0.5 is chance.",
        f"sdk.truth.sweep({stages}).plot()",
        lambda: truth.sweep(artifact, earlier, later),
    )
    yield figure(
        "Projections onto the truth direction",
        "True and false statements of each dataset along the direction that the other datasets "
        "give. The further apart, the better a probe can tell them.",
        f"sdk.truth.projections({stages}).plot()",
        lambda: truth.projections(artifact, earlier, later),
    )
    yield figure(
        "What truth directions do",
        "A stage's own direction, the other stage's, or a random one as long, added to false "
        "statements and subtracted from true ones before TRUE/FALSE is asked. P is the probability "
        "of TRUE minus that of FALSE; 0: nothing changed, 1: every answer turned. With an AUROC "
        "near 0.5 the stage answers by chance, and there is little to turn.",
        "sdk.truth.effects(artifact).plot()",
        lambda: truth.effects(artifact),
    )


def _refusal(artifact: Artifact, earlier: str, later: str) -> Figures:
    stages = f'artifact, "{earlier}", "{later}"'
    yield figure(
        "Refusal directions by layer and position",
        "Cosine of the two stages' refusal directions, at tokens counted from the end of the "
        "prompt; dashed, of directions from disjoint halves of the prompts, across the stages; "
        "dotted, within a stage. Dashed below dotted: the direction has turned. Directions of "
        "length zero, as where all prompts still have the same token, count as 0.",
        f"sdk.refusal.similarity({stages}).plot()",
        lambda: refusal.similarity(artifact, earlier, later),
    )
    yield figure(
        "Completions that refuse",
        "Directions added to harmless prompts, or ablated on harmful ones: the stage's own, the "
        "other stage's (also at the own one's length), and a random one. Lines are 95 % intervals.",
        "sdk.refusal.scores(artifact).plot()",
        lambda: refusal.scores(artifact),
    )
    yield examples(artifact, earlier, later)
    for stage in (earlier, later):
        if artifact.extra(f"scores/{stage}/directions.parquet"):
            yield figure(
                f"Candidate refusal directions of {stage}",
                "The layers and positions that the card asks to score: what is left of refusal "
                "when it is ablated, what comes when it is added, and what it breaks.",
                f'sdk.refusal.candidate_scores(artifact, "{stage}").plot()',
                lambda stage=stage: refusal.candidate_scores(artifact, stage),
            )


def _confidence(artifact: Artifact, earlier: str, later: str) -> Figures:
    yield figure(
        "Entropy-neuron candidates",
        "Neurons of the last MLP: long output weights that hardly move the logits apart are "
        "candidates. Grey: the others.",
        f'sdk.confidence.compare(artifact, "{earlier}", "{later}").plot()',
        lambda: confidence.compare(artifact, earlier, later),
    )
    yield figure(
        "What the candidates do",
        "Neurons ablated one at a time, with the final norm free and with its scale frozen, beside "
        "random neurons.",
        "sdk.confidence.effects(artifact).plot()",
        lambda: confidence.effects(artifact),
    )
