"""What units work with: loaded models, finished activations, progress."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import polars as pl

from ptmech.errors import ParityError
from ptmech.manifest import ActivationFile
from ptmech.storage import FolderSource, VerifiedFiles, read_table, read_tensors
from ptmech_builder.progress import Progress
from ptmech_builder.receipts import Receipt

if TYPE_CHECKING:
    from ptmech.live.model import LiveModel
    from ptmech.live.sites import ModelSites

Thing = TypeVar("Thing")


class Workbench:
    """Holds what several units share, for the time of one build.

    Parameters
    ----------
    loaders
        For each stage, a function that loads its model.
    root
        Folder of the artifact, from which finished activations are read.
    progress
        Where bars and lines go.
    models_held
        How many models may be in memory at once.
    """

    def __init__(
        self,
        loaders: Mapping[str, Callable[[], LiveModel]],
        root: Path,
        progress: Progress,
        *,
        models_held: int = 2,
    ) -> None:
        self.root = root
        self.progress = progress
        self.stages = tuple(loaders)
        self._loaders = loaders
        self._models: dict[str, LiveModel] = {}
        self._models_held = models_held
        self._shared: dict[Any, Any] = {}
        self._files = VerifiedFiles(FolderSource(root))
        self.receipts: dict[str, Receipt] = {}
        """Finished units by name; the build adds to it as it goes."""

    def model(self, stage: str) -> LiveModel:
        """Return a stage's model, loading it if it is not in memory."""
        if stage not in self._models:
            while len(self._models) >= self._models_held:
                del self._models[next(iter(self._models))]
            self._models[stage] = self._loaders[stage]()
        # The last ones used stay.
        self._models[stage] = model = self._models.pop(stage)
        return model

    def sites(self, stage: str) -> ModelSites:
        """Return a stage's model with its sites located."""
        return self.model(stage).sites

    def check_sites(self, stage: str, token_ids: Sequence[int], tolerance: float) -> None:
        """Prove once a stage that its sites are what their definitions say.

        Raises
        ------
        ParityError
            If they are not.
        """
        import torch

        from ptmech.live.recording import site_self_check

        sites = self.sites(stage)
        ids = torch.tensor([list(token_ids)], device=sites.device)
        deviation = self.shared(
            ("site self-check", stage), lambda: site_self_check(sites.model, ids)
        )
        if not deviation <= tolerance:
            raise ParityError(
                f"the sites of stage {stage!r} deviate by {deviation:.2g} from their definitions, "
                f"more than {tolerance:.2g}; nothing was written"
            )

    def stage_facts(self, stage: str) -> dict[str, Any]:
        """Return what the manifest says about a stage's model."""
        sites = self.sites(stage)
        return {
            "architecture": sites.architecture.model_type,
            "n_layers": sites.n_layers,
            "d_model": sites.d_model,
            "d_mlp": sites.d_mlp if sites.has_neurons else None,
            "vocabulary": sites.vocabulary,
        }

    def shared(self, key: Any, compute: Callable[[], Thing]) -> Thing:
        """Return a value that several units of this build need, computing it once."""
        if key not in self._shared:
            self._shared[key] = compute()
        return self._shared[key]

    def table(self, unit: str, file: str) -> pl.DataFrame:
        """Read a finished unit's table back, by the name of its file."""
        entry = next(f for f in self.receipts[unit].files if f.path.endswith(f"/{file}"))
        return read_table(self._files.path(entry), entry.path)

    def activations(self, stage: str, dataset: str, layer: int, index: int) -> np.ndarray:
        """Read finished activations back: ``resid_pre`` of a layer, one stored position.

        Parameters
        ----------
        index
            Index of the position among the stored ones.

        Returns
        -------
        numpy.ndarray
            [rows, d_model] float32.
        """
        site, stored = ("resid_pre", 0) if layer == 0 else ("resid_post", layer - 1)
        files = [
            file
            for receipt in self.receipts.values()
            for file in receipt.files
            if receipt.unit.startswith(f"acts.{stage}.{dataset}.")
            and isinstance(file, ActivationFile)
            and (file.site, file.layer) == (site, stored)
        ]
        files.sort(key=lambda file: file.block)
        values = [read_tensors(self._files.path(file))["activations"][:, index] for file in files]
        return np.concatenate(values).astype(np.float32)
