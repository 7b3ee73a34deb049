"""What the benchmarks share: an artifact, the model of its first stage, and peers around it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import Table
from ptmech import Artifact, live
from ptmech.live.models.files import local_folder
from ptmech.live.models.gguf import quiet_transformers


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where the benchmarks run.

    Attributes
    ----------
    artifact
        Opened; its first stage is the model.
    rounds
        How often each way is timed; None leaves it to the benchmark.
    """

    artifact: Artifact
    rounds: int | None = None

    @property
    def stage(self) -> str:
        """Name of the first stage."""
        return self.artifact.stages[0]

    @cached_property
    def model(self) -> live.LiveModel:
        """The first stage, on the CPU."""
        return live.open(self.artifact, self.stage, device="cpu")

    @cached_property
    def folder(self) -> Path:
        """The same weights as a folder that every library reads."""
        source = self.artifact.manifest.stages[0].source
        if source is None:
            raise LookupError(f"{self.artifact.id} does not say where its model comes from")
        return local_folder(source)

    @cached_property
    def nnsight(self) -> Any:
        """The same weights in nnsight."""
        import nnsight

        with quiet_transformers():
            return nnsight.TransformersModel(
                str(self.folder), task="text-generation", dtype=torch.float32, dispatch=True
            )

    @cached_property
    def transformer_lens(self) -> Any:
        """The same weights in TransformerLens's bridge, none folded or centred."""
        from transformer_lens.model_bridge import TransformerBridge

        with quiet_transformers():
            return TransformerBridge.boot_transformers(
                str(self.folder), device="cpu", dtype=torch.float32
            )


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A question about speed.

    Attributes
    ----------
    name
        On the command line.
    title, about
        Of its section; prose in Markdown that says what each way is.
    run
        Answers it.
    """

    name: str
    title: str
    about: str
    run: Callable[[Setting], Sequence[Table]]


def installed(package: str) -> bool:
    """Tell whether a package that a way needs is there."""
    return find_spec(package) is not None
