"""The live model: its sites, interventions in them, and generation. Needs torch (``[live]``)."""

from __future__ import annotations

from importlib.util import find_spec

from ptmech.errors import PrerequisiteError

if find_spec("torch") is None or find_spec("transformers") is None:
    raise PrerequisiteError(
        "ptmech.live runs models and needs torch and transformers: pip install 'ptmech[live]'"
    )

from ptmech.live.architectures import ARCHITECTURES, Architecture
from ptmech.live.generation import (
    greedy_completions,
    greedy_tokens,
    next_token_logits,
    next_token_loss,
)
from ptmech.live.interventions import ablate, add, intervene, patch
from ptmech.live.sites import SITES, ModelSites, record, site_self_check

__all__ = [
    "ARCHITECTURES",
    "SITES",
    "Architecture",
    "ModelSites",
    "ablate",
    "add",
    "greedy_completions",
    "greedy_tokens",
    "intervene",
    "next_token_logits",
    "next_token_loss",
    "patch",
    "record",
    "site_self_check",
]
