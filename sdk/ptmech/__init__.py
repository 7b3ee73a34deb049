"""What post-training does inside language models, answered from precomputed activations.

The whole public face::

    import ptmech as sdk

    artifact = sdk.load("artifacts/demo")
    sdk.truth.similarity(artifact, *artifact.stages)

Everything is imported on first use, so that ``import ptmech`` costs next to nothing. Only
:mod:`ptmech.live` needs torch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptmech import (
        confidence,
        directions,
        errors,
        knowledge,
        live,
        probes,
        refusal,
        report,
        results,
        summary,
        truth,
        unembedding,
        verify,
    )
    from ptmech.artifact import Artifact
    from ptmech.loading import load
    from ptmech.pair import Pair

__version__ = version("ptmech")

__all__ = [
    "Artifact",
    "Pair",
    "__version__",
    "confidence",
    "directions",
    "errors",
    "knowledge",
    "live",
    "load",
    "probes",
    "refusal",
    "report",
    "results",
    "summary",
    "truth",
    "unembedding",
    "verify",
]

_CLASSES = {"Artifact": "artifact", "Pair": "pair", "load": "loading"}


def __getattr__(name: str) -> Any:
    if name in _CLASSES:
        return getattr(import_module(f"ptmech.{_CLASSES[name]}"), name)
    if name in __all__:
        return import_module(f"ptmech.{name}")
    raise AttributeError(f"module 'ptmech' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
