"""Knowledge: where in the model a fact is, by causal tracing, and whether it stays there.

:func:`pairs` finds matched prompts in a dataset, :func:`ptmech.live.causal_trace` traces them
through a live model, :func:`trace` reads what a build stored. False prompts are run and, one cell
at a time, the residual stream after layer l at token t replaced by that of the matching true prompt
(Du et al. 2025, section 3; Meng et al. 2022). A cell that carries the fact moves the logit
difference of the true and the false answer from the false prompt's value to the true prompt's. The
true prompts may come from another stage than the run that is patched: then the grid tells whether
that stage can read what the other one wrote.
"""

from ptmech.knowledge.comparison import (
    KNOWLEDGE_ROLES,
    KnowledgeComparison,
    TraceComparison,
    compare,
    compare_stages,
    grouped,
    normalize,
)
from ptmech.knowledge.completions import completion_prompts
from ptmech.knowledge.matching import pairs
from ptmech.knowledge.prompts import Pairs, PromptPair
from ptmech.knowledge.traces import Trace, stored, trace

__all__ = [
    "KNOWLEDGE_ROLES",
    "KnowledgeComparison",
    "Pairs",
    "PromptPair",
    "Trace",
    "TraceComparison",
    "compare",
    "compare_stages",
    "completion_prompts",
    "grouped",
    "normalize",
    "pairs",
    "stored",
    "trace",
]
