"""What interventions do to a live model: the measurements behind the perspectives.

:mod:`truth <ptmech.live.effects.truth>` directions on TRUE/FALSE answers, :mod:`refusal
<ptmech.live.effects.refusal>` directions on completions, :mod:`candidates
<ptmech.live.effects.candidates>` for the refusal direction, and ablated :mod:`neurons
<ptmech.live.effects.neurons>` on entropy. The builder stores what they give; the perspectives'
``intervene``, ``candidates`` and ``ablate_neurons`` call them.
"""
