"""Truthfulness: where a model represents truth, and whether post-training moves it.

Three questions to the activations of true and false statements (Du et al. 2025, section 4):
:func:`directions`, which way is truth at each layer; :func:`similarity`, how well two stages agree
about it; :func:`transfer`, whether a probe trained on the earlier stage reads the later one, and
:func:`sweep`, at which layers it does. And one to the running models: does a stage call a false
statement true once a truth direction is added to it? :func:`intervene` asks it, :func:`effects`
reads what was found when the artifact was built.

Examples
--------
>>> import ptmech as sdk
>>> artifact = sdk.load("artifacts/demo")  # doctest: +SKIP
>>> sdk.truth.similarity(artifact, "base", "instruct").plot()  # doctest: +SKIP
>>> sdk.truth.transfer(artifact, "base", "instruct", probe="logistic").frame  # doctest: +SKIP
>>> sdk.truth.effects(artifact).frame  # doctest: +SKIP
"""

from ptmech._held_out import Centering
from ptmech.truth.geometry import TruthDirections, TruthSimilarity, directions, similarity
from ptmech.truth.intervention import TruthEffects, effects, intervene
from ptmech.truth.probing import MEAN, TruthTransfer, transfer
from ptmech.truth.projections import TruthProjections, projections
from ptmech.truth.sweeping import TruthSweep, sweep

__all__ = [
    "MEAN",
    "Centering",
    "TruthDirections",
    "TruthEffects",
    "TruthProjections",
    "TruthSimilarity",
    "TruthSweep",
    "TruthTransfer",
    "directions",
    "effects",
    "intervene",
    "projections",
    "similarity",
    "sweep",
    "transfer",
]
