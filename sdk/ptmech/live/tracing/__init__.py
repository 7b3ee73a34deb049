"""Causal tracing of a live model: one clean run, and one wave of all patched runs.

:func:`causal_trace` is the door. Below it, data flow one way: prompts -> :mod:`clean_run
<ptmech.live.tracing.clean_run>` -> :mod:`sweep <ptmech.live.tracing.sweep>` (which cells, in what
order) -> :mod:`wave <ptmech.live.tracing.wave>` (up through the blocks, packed) -> :mod:`readouts
<ptmech.live.tracing.readouts>` -> a :class:`ptmech.knowledge.Trace`.
"""

from ptmech.live.tracing.known import known_facts
from ptmech.live.tracing.traces import causal_trace

__all__ = ["causal_trace", "known_facts"]
