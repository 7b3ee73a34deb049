"""Confidence: the neurons that regulate entropy, and whether post-training changes them.

An entropy neuron writes long vectors into directions that the unembedding nearly ignores, and so
sets the scale of the final norm rather than any logit (Stolfo et al. 2024). Candidates are known
from the weights alone: a large norm with a small logit variance. :func:`neurons` gives what an
artifact stores about the neurons of a stage's last MLP, :func:`candidates` ranks them, and
:func:`compare` sets the candidates of two stages side by side (Du et al. 2025, section 6). The
formulas are those of :mod:`ptmech.unembedding`, which works on plain weight matrices; its functions
are available here too.

Candidates are a ranking, not a finding. Whether such neurons act on the entropy, and through the
final norm, is the causal test: :func:`ablate_neurons` makes it on a running model, :func:`effects`
reads what was found when the artifact was built.

Examples
--------
>>> import ptmech as sdk
>>> artifact = sdk.load("artifacts/demo")  # doctest: +SKIP
>>> result = sdk.confidence.compare(artifact, "base", "instruct")  # doctest: +SKIP
>>> result.overlap, result.chance_overlap  # doctest: +SKIP
>>> sdk.confidence.effects(artifact).plot()  # doctest: +SKIP
"""

from ptmech.confidence.ablation import NeuronEffects, ablate_neurons, effects
from ptmech.confidence.candidates import (
    ConfidenceComparison,
    candidates,
    chance_overlap,
    compare,
    neurons,
)
from ptmech.unembedding import (
    Convention,
    entropy_neurons,
    logit_variance,
    null_space_fraction,
)

__all__ = [
    "ConfidenceComparison",
    "Convention",
    "NeuronEffects",
    "ablate_neurons",
    "candidates",
    "chance_overlap",
    "compare",
    "effects",
    "entropy_neurons",
    "logit_variance",
    "neurons",
    "null_space_fraction",
]
