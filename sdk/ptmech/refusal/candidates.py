"""Candidate refusal directions of a stage: every position and layer, and what each one does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from ptmech import live
from ptmech._arguments import distinct, layer_numbers
from ptmech._schemas import AT_LEAST_NONE, OPTIONAL, PAST, Values
from ptmech._score_tables import read_table
from ptmech.artifact import Artifact
from ptmech.errors import unknown
from ptmech.refusal.geometry import directions
from ptmech.refusal.interventions import rendered
from ptmech.refusal.selection import (
    PRUNED_DEPTH,
    SelectedDirection,
    select_direction,
    unpruned,
)
from ptmech.results import Result

if TYPE_CHECKING:
    from ptmech.live import LiveModel

CANDIDATES: Final[Mapping[str, Any]] = {
    "position": pl.Int64,
    "layer": pl.Int64,
    "norm": pl.Float64,
    "refusal_score": pl.Float64,
    "steering_score": pl.Float64,
    "kl_div_score": pl.Float64,
    "harmful_baseline": pl.Float64,
    "harmless_baseline": pl.Float64,
    "n_harmful": pl.Int64,
    "n_harmless": pl.Int64,
}
"""Columns of the candidates' scores."""

CANDIDATE_VALUES: Final[Mapping[str, Values]] = {
    "position": PAST,
    **dict.fromkeys(("norm", "n_harmful", "n_harmless"), AT_LEAST_NONE),
    **dict.fromkeys(("refusal_score", "steering_score"), OPTIONAL),
    "kl_div_score": Values(0, missing=True),
}
"""What may stand in them."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class DirectionScores(Result):
    """What each candidate refusal direction does to the first token of a reply.

    A *refusal score* is the log-odds, in nats, of the total probability of the tokens with which
    refusals begin, at the reply's first token, averaged over validation prompts.

    Attributes
    ----------
    frame
        One row a candidate: ``position``, ``layer`` (``resid_pre``), ``norm`` (its length),
        ``refusal_score`` (bypass: harmful prompts, the direction ablated at every residual site,
        layer and token), ``steering_score`` (induce: harmless prompts, the direction added as it is
        at ``resid_pre`` of its layer, at every token), ``kl_div_score`` (nats between the
        next-token distributions on harmless prompts, unedited and ablated), ``harmful_baseline``
        and ``harmless_baseline`` (refusal scores without intervention), ``n_harmful``,
        ``n_harmless``. A direction of length zero has no scores.
    stage
        Name of the stage.
    n_layers
        Its decoder blocks.
    """

    stage: str
    n_layers: int

    def select(
        self,
        kl_threshold: float = 0.1,
        prune_layers: float = PRUNED_DEPTH,
        induce_threshold: float = 0.0,
    ) -> SelectedDirection:
        """Choose among the candidates; see :func:`ptmech.refusal.select_direction`.

        Parameters
        ----------
        kl_threshold, prune_layers, induce_threshold
            Thresholds, as :func:`ptmech.refusal.select_direction` takes them.

        Returns
        -------
        SelectedDirection
            Where the chosen direction is read, and its scores.

        Raises
        ------
        DataError
            If no candidate survives the thresholds.
        """
        return select_direction(
            self.frame, self.n_layers, kl_threshold, prune_layers, induce_threshold
        )


def candidates(
    artifact: Artifact,
    stage: str,
    *,
    positions: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
    prompts: int = 32,
    split: str = "validation",
    refusal_tokens: Sequence[int] | None = None,
    model: LiveModel | None = None,
    batch_size: int = 64,
) -> DirectionScores:
    """Score candidate refusal directions in the live model (Arditi et al. 2024, section 2.3).

    Parameters
    ----------
    artifact
        Holds activations of harmful and harmless prompts, from whose training rows the candidates
        come.
    stage
        Name of the stage.
    positions, layers
        Which candidates; every stored position, and every layer below 80 % of the depth, if None.
    prompts
        Prompts of either kind to score on, the first ones of the split.
    split
        Which prompts: others than the directions come from, and than effects are reported on.
    refusal_tokens
        Tokens with which a refusal begins. If None, the first tokens that the tokenizer makes of
        :data:`REFUSAL_PHRASES`; naming fewer may be better where some of them begin other replies.
    model
        The stage's live model; opened with :func:`ptmech.live.open` if None.
    batch_size
        Prompts times directions that run together.

    Returns
    -------
    DirectionScores
        With :meth:`DirectionScores.select` to choose one.

    Raises
    ------
    UnknownNameError
        If the stage, a position or a layer does not exist.
    DataError
        If the split has no prompts, or the refusal tokens are none or not in the vocabulary.
    PrerequisiteError
        If torch is missing.

    Examples
    --------
    >>> import ptmech as sdk
    >>> from ptmech import refusal
    >>> artifact = sdk.load("artifacts/demo")  # doctest: +SKIP
    >>> scored = refusal.candidates(artifact, "safety", layers=[16, 18, 20], prompts=8)
    ... # doctest: +SKIP
    >>> scored.select(kl_threshold=1.0).layer  # doctest: +SKIP
    20
    """
    stage_facts = artifact.manifest.stage(stage)
    if stage_facts is None:
        raise unknown("stage", stage, artifact.stages)
    live.require_torch()
    from ptmech.live.effects.candidates import candidate_table
    from ptmech.live.opening import model_of

    found = directions(artifact, stage, "all", "all")
    n_layers = stage_facts.n_layers
    at_layers = range(unpruned(n_layers)) if layers is None else layer_numbers(layers)
    at_positions = found.positions if positions is None else distinct("positions", positions)
    chosen = list(product(at_positions, at_layers))
    vectors = [found.direction(layer, position) for position, layer in chosen]
    defaults = artifact.manifest.defaults
    harmful, harmless = (
        list(rendered(artifact, stage, kind, split, prompts).values())
        for kind in (defaults.harmful, defaults.harmless)
    )
    frame = candidate_table(
        model_of(artifact, stage, model),
        chosen,
        vectors,
        harmful=harmful,
        harmless=harmless,
        refusal_tokens=refusal_tokens,
        batch_size=batch_size,
    )
    return DirectionScores(
        frame=frame,
        artifact=artifact.id,
        arguments={
            "stage": stage,
            "positions": list(at_positions),
            "layers": list(at_layers),
            "prompts": prompts,
            "split": split,
            "refusal_tokens": None if refusal_tokens is None else list(refusal_tokens),
        },
        stage=stage,
        n_layers=n_layers,
    )


def candidate_scores(artifact: Artifact, stage: str) -> DirectionScores:
    """Read the candidates' scores that were measured when the artifact was built.

    They come from the same code as :func:`candidates`.

    Parameters
    ----------
    artifact
        An artifact whose card asks for ``[refusal.candidates]``.
    stage
        Name of the stage.

    Returns
    -------
    DirectionScores
        One row a position and layer.

    Raises
    ------
    UnknownNameError
        If the stage does not exist.
    NotStoredError
        If the artifact holds none: its card has no ``[refusal.candidates]``.
    FormatError
        If the table does not fit its columns.
    """
    stage_facts = artifact.manifest.stage(stage)
    if stage_facts is None:
        raise unknown("stage", stage, artifact.stages)
    return DirectionScores(
        frame=read_table(artifact, stage_facts, "directions", CANDIDATES, CANDIDATE_VALUES),
        artifact=artifact.id,
        arguments={"stage": stage},
        stage=stage,
        n_layers=stage_facts.n_layers,
    )
