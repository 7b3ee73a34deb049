"""The live model: its sites, interventions in them, generation, and what the paper does with them.

Needs torch (``pip install 'ptmech[live]'``). Everything is imported on first use::

    model = sdk.live.open(artifact, "safety")
    with model.intervene(sdk.live.ablate(direction)):
        model.generate(model.chat(["Name three trees."]))
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ptmech.errors import PrerequisiteError

if TYPE_CHECKING:
    from ptmech.live.architectures import ARCHITECTURES, Architecture
    from ptmech.live.effects.neurons import neuron_means
    from ptmech.live.interventions import (
        ablate,
        add,
        freeze_final_norm,
        intervene,
        mean_ablate,
        patch,
        scale,
    )
    from ptmech.live.model import LiveModel
    from ptmech.live.opening import open
    from ptmech.live.recording import record, site_self_check
    from ptmech.live.sites import SITES, ModelSites
    from ptmech.live.tracing import causal_trace, known_facts

__all__ = [
    "ARCHITECTURES",
    "SITES",
    "Architecture",
    "LiveModel",
    "ModelSites",
    "ablate",
    "add",
    "causal_trace",
    "freeze_final_norm",
    "intervene",
    "known_facts",
    "mean_ablate",
    "neuron_means",
    "open",
    "patch",
    "record",
    "scale",
    "site_self_check",
]

_HOMES = {
    "architectures": ("ARCHITECTURES", "Architecture"),
    "interventions": (
        "ablate",
        "add",
        "freeze_final_norm",
        "intervene",
        "mean_ablate",
        "patch",
        "scale",
    ),
    "model": ("LiveModel",),
    "effects.neurons": ("neuron_means",),
    "opening": ("open",),
    "recording": ("record", "site_self_check"),
    "sites": ("SITES", "ModelSites"),
    "tracing": ("causal_trace", "known_facts"),
}


def require_torch() -> None:
    """Raise where the packages that run models are missing.

    Raises
    ------
    PrerequisiteError
        With the command that installs them.
    """
    missing = [package for package in ("torch", "transformers") if not _is_installed(package)]
    if missing:
        raise PrerequisiteError(
            f"ptmech.live runs models and needs {' and '.join(missing)}: pip install 'ptmech[live]'"
        )


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            require_torch()
            return getattr(import_module(f"ptmech.live.{module}"), name)
    raise AttributeError(f"module 'ptmech.live' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
