"""Knowledge: where in the model a fact is, by causal tracing, and whether it stays there.

The builder ran false prompts and replaced, one cell at a time, the residual stream after layer l at
token t by that of the matching true prompt (Du et al. 2025, section 3; Meng et al. 2022). A cell
that carries the fact moves the logit difference of the true and the false answer from the false
prompt's value to the true prompt's. The true prompts may come from another stage than the run that
is patched: then the grid tells whether that stage can read what the other one wrote.
"""

from ptmech.knowledge.comparison import (
    KNOWLEDGE_ROLES,
    KnowledgeComparison,
    TraceComparison,
    compare,
    compare_stages,
    normalize,
)
from ptmech.knowledge.traces import Trace, stored, trace

__all__ = [
    "KNOWLEDGE_ROLES",
    "KnowledgeComparison",
    "Trace",
    "TraceComparison",
    "compare",
    "compare_stages",
    "normalize",
    "stored",
    "trace",
]
