"""Truth directions put to work: added to false statements, taken out of true ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl
from sklearn.base import BaseEstimator

from ptmech import live
from ptmech._arguments import distinct, layer_numbers, several, whole_number
from ptmech._score_tables import stacked
from ptmech._statements import Statements, require_both_labels
from ptmech._truth_probes import TruthProbe
from ptmech.artifact import Artifact
from ptmech.errors import unknown
from ptmech.results import Result
from ptmech.truth.probing import chosen_layer
from ptmech.truth.steering import EFFECT_VALUES, EFFECTS, Questions, truth_shift

if TYPE_CHECKING:
    from ptmech.live import LiveModel

SITE = "resid_post"
SPAN = 5
"""Layers that are acted in where nobody says which: the paper's 8 to 12 for Llama 3.1."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TruthEffects(Result):
    """What truth directions do to a model's answers about statements.

    Attributes
    ----------
    frame
        One row a direction in a stage. ``stage``, the model that was run; ``direction``: ``own``,
        ``transferred`` (that of ``direction_stage``) or ``random`` (as long as the own one; one
        draw); ``dataset``; ``layer``, where the direction was read; ``layers``, where it was added;
        ``length`` of what was added; ``n``, statements, half of them true.

        P is the probability of " TRUE" minus that of " FALSE" as the answer. ``p_true_before`` and
        ``p_false_before``, its mean over true and over false statements without intervention;
        ``auroc_before``, how well P tells them apart (0.5 is chance); ``answered_before``, the mean
        probability that it is one of the two words at all; ``p_true_after``, ``p_false_after`` and
        ``answered_after``, the same with the direction subtracted from true statements and added to
        false ones.

        ``effect_true_to_false``, the share of the way to -1 that P went for true statements;
        ``effect_false_to_true``, the share of the way to 1 for false ones; ``effect``, their mean:
        0 is no effect, 1 a complete one. Each with ``_low`` and ``_high``, its 95 % bootstrap
        interval over the facts. NaN where there was no way left to go.

        Where ``auroc_before`` is near 0.5 the model does not know which statements are true, or
        does not understand the question; an effect is then one on a word, not on truth.
    """


def effects(artifact: Artifact) -> TruthEffects:
    """Read the effects that were measured when the artifact was built.

    Parameters
    ----------
    artifact
        An artifact whose card asks for ``[truth.intervention]``.

    Returns
    -------
    TruthEffects
        The tables of all stages, earliest stage first.

    Raises
    ------
    NotStoredError
        If the artifact holds none.
    FormatError
        If a table does not fit its columns.

    Examples
    --------
    >>> effects(artifact).frame.select("stage", "direction", "effect")  # doctest: +SKIP
    """
    return TruthEffects(
        frame=stacked(
            artifact, "truth", EFFECTS, EFFECT_VALUES, what="effects of truth directions"
        ),
        artifact=artifact.id,
        arguments={},
    )


def intervene(
    artifact: Artifact,
    earlier: str,
    later: str,
    dataset: str | None = None,
    layer: int | None = None,
    layers: Sequence[int] | None = None,
    *,
    stages: Sequence[str] | None = None,
    datasets: Sequence[str] | None = None,
    probe: str | BaseEstimator = "mass_mean",
    examples: Sequence[str] | None = None,
    models: Mapping[str, LiveModel] | None = None,
    n: int | None = 64,
    n_bootstrap: int = 1000,
    seed: int = 0,
    batch_size: int = 32,
) -> TruthEffects:
    """Run both stages and steer their answers with the truth directions of both (needs torch).

    The prompt is four worked examples, two of them true, in an order of each statement's own, and
    "<statement> This statement is:". Along a stage's truth direction
    ``((mean(true) - mean(false)) . u) u`` is added to false statements and subtracted from true
    ones, at ``resid_post`` of some layers, on the statement's last two tokens: the full stop and
    the one before (Du et al. 2025, section 4, after Marks & Tegmark 2023).
    Probabilities of " TRUE" and " FALSE" are of the whole word, however many tokens it has.

    Parameters
    ----------
    artifact
        Where statements and activations are.
    earlier, later
        Names of two stages. Each is run bare, with its own direction, with the other stage's and
        with a random one.
    dataset
        The statements that are asked about; None takes the one the card chose, or else the first of
        the truth datasets.
    layer
        Where the directions are read, ``resid_post``; None takes the one the card chose, or else
        the middle one.
    layers
        Where they are added; None takes those the card chose for its layer, or else `layer` and the
        four layers below it.
    stages
        Which of the two to run; both if None.
    datasets
        Statement sets the directions are found in; None as for :func:`directions`. Statements about
        the facts of `dataset` are left out, so that no direction was found in what it is tried on.
    probe
        Name of a linear probe, or an unfitted one: it decides the direction, the means the length.
    examples
        Worked examples before every statement, each with its question and answer, such as "The tuna
        is a mammal. This statement is: FALSE". None takes those of the card for its dataset, or
        else two true and two false statements.
    models
        Stage name to live model; stages it lacks are opened with :func:`ptmech.live.open`, one at a
        time.
    n
        Statements that are asked about, at most; half of them true. None: all.
    n_bootstrap
        Replicates of the bootstrap.
    seed
        Of examples and their orders, choice of statements, random direction and bootstrap.
    batch_size
        Prompts times directions that run together.

    Returns
    -------
    TruthEffects
        One row a direction in a stage, as :func:`effects` reads them.

    Raises
    ------
    UnknownNameError
        If a stage, dataset, layer or probe does not exist.
    DataError
        If a dataset cannot be used, nothing is left to find a direction in or to ask about, or the
        prompt does not come apart into tokens as it must.
    PrerequisiteError
        If torch or what a stage's weights come from is missing; and whatever else
        :func:`ptmech.live.open` raises.

    Examples
    --------
    >>> result = intervene(artifact, "base", "instruct", "cities")  # doctest: +SKIP
    >>> result.frame.select("stage", "direction", "effect")  # doctest: +SKIP
    """
    pair = artifact.pair(earlier, later)
    live.require_torch()
    from ptmech.live.effects.truth import stage_effects
    from ptmech.live.opening import model_of

    names = (pair.earlier, pair.later)
    opened = dict(models or {})
    run = names if stages is None else distinct("stages", stages)
    for name in (*run, *opened):
        if name not in names:
            raise unknown("stage of this pair", name, names)
    whole_number("n_bootstrap", n_bootstrap)
    whole_number("seed", seed, least=0)
    layer = chosen_layer(artifact, SITE) if layer is None else layer
    if layer not in artifact.layers(SITE):
        raise unknown(f"layer of {SITE}", layer, artifact.layers(SITE))
    layers = _span(artifact, layer) if layers is None else layer_numbers(layers)
    training = Statements.of(artifact, datasets)
    dataset = _asked(artifact, training) if dataset is None else dataset
    asked = require_both_labels(dataset, artifact.statements(dataset))
    shifts = {
        stage: truth_shift(
            training,
            training.activations(artifact, stage, site=SITE, layer=layer, position=-1),
            asked=asked,
            probe=probe,
        )
        for stage in names
    }
    if examples is None:
        defaults = artifact.manifest.defaults
        examples = defaults.truth_examples if dataset == defaults.truth_asked else ()
    questions = Questions.of(asked, n=n, seed=seed, examples=several("examples", examples))
    frames: list[pl.DataFrame] = []
    for stage in run:
        model = model_of(artifact, stage, opened.pop(stage, None))
        frames.append(
            stage_effects(
                model,
                stage,
                shifts,
                questions,
                layer=layer,
                layers=layers,
                n_bootstrap=n_bootstrap,
                seed=seed,
                batch_size=batch_size,
            )
        )
        del model  # two large models need not fit into memory together
    return TruthEffects(
        frame=pl.concat(frames),
        artifact=artifact.id,
        arguments={
            "earlier": earlier,
            "later": later,
            "stages": run,
            "dataset": dataset,
            "layer": layer,
            "layers": layers,
            "datasets": training.datasets,
            "probe": TruthProbe(probe).name,
            "examples": list(examples),
            "n": n,
            "n_bootstrap": n_bootstrap,
            "seed": seed,
        },
    )


def _asked(artifact: Artifact, training: Statements) -> str:
    chosen = artifact.manifest.defaults.truth_asked
    return training.datasets[0] if chosen is None else chosen


def _span(artifact: Artifact, layer: int) -> tuple[int, ...]:
    defaults = artifact.manifest.defaults
    first = defaults.truth_first_layer if layer == defaults.truth_layer else None
    first = max(0, layer - SPAN + 1) if first is None else first
    return tuple(range(first, layer + 1))
