"""Refusal: the direction that separates harmful from harmless prompts, and what it does.

The refusal direction of a stage is the mean residual stream of harmful prompts minus that of
harmless ones, at one layer and one token of the template's end (Arditi et al. 2024; Du et al. 2025,
section 5). Directions and their similarity between stages come from stored activations. How many
completions refuse when a direction is ablated or added, and what every candidate direction would
do, takes a live model: :func:`intervene` and :func:`candidates` run one, :func:`scores`,
:func:`completions` and :func:`candidate_scores` read what was measured when the artifact was built.
The rules themselves, for completions and candidates of one's own, are :func:`is_refusal`,
:func:`score` and :func:`select_direction`.

Layers count ``resid_pre`` here, as in the literature: the input of block l, which is the output of
block l - 1.
"""

from ptmech.refusal.candidates import DirectionScores, candidate_scores, candidates
from ptmech.refusal.completions import RefusalCompletions, completions
from ptmech.refusal.geometry import RefusalDirections, RefusalSimilarity, directions, similarity
from ptmech.refusal.interventions import intervene
from ptmech.refusal.phrases import LOOKALIKES, REFUSAL_PHRASES, is_refusal, score
from ptmech.refusal.selection import SelectedDirection, select_direction
from ptmech.refusal.tables import RefusalScores, scores

__all__ = [
    "LOOKALIKES",
    "REFUSAL_PHRASES",
    "DirectionScores",
    "RefusalCompletions",
    "RefusalDirections",
    "RefusalScores",
    "RefusalSimilarity",
    "SelectedDirection",
    "candidate_scores",
    "candidates",
    "completions",
    "directions",
    "intervene",
    "is_refusal",
    "score",
    "scores",
    "select_direction",
    "similarity",
]
