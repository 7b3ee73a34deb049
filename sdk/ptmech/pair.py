"""Two stages of an artifact side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ptmech.errors import AlignmentError, DataError, unknown

if TYPE_CHECKING:
    from ptmech.artifact import Artifact


class Pair:
    """Two stages of an artifact side by side; rows are joined by identity, never by place.

    Raises
    ------
    UnknownNameError
        If a stage does not exist.
    DataError
        If both stages are the same.
    """

    def __init__(self, artifact: Artifact, earlier: str, later: str) -> None:
        for stage in (earlier, later):
            if stage not in artifact.stages:
                raise unknown("stage", stage, artifact.stages)
        if earlier == later:
            raise DataError(f"a pair needs two different stages, not {earlier!r} twice")
        self.artifact = artifact
        self.earlier = earlier
        self.later = later

    @property
    def datasets(self) -> tuple[str, ...]:
        """Datasets that both stages hold."""
        held = {(part.stage, part.dataset) for part in self.artifact.manifest.parts}
        return tuple(
            name
            for name in self.artifact.datasets
            if (self.earlier, name) in held and (self.later, name) in held
        )

    def activations(
        self,
        dataset: str,
        *,
        site: str = "resid_post",
        layer: int,
        position: int = -1,
        dtype: Any = "float32",
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the activations of the earlier and of the later stage, row for row.

        Returns
        -------
        tuple of numpy.ndarray
            Two arrays [rows, d_model]. See :meth:`Artifact.activations`.

        Raises
        ------
        AlignmentError
            If the stages do not hold the same rows.
        """
        earlier, later = (
            self.artifact.activations(
                dataset, stage, site=site, layer=layer, position=position, dtype=dtype
            )
            for stage in (self.earlier, self.later)
        )
        if earlier.shape[0] != later.shape[0]:
            raise AlignmentError(
                f"{dataset}: {self.earlier} has {earlier.shape[0]} rows, {self.later} has "
                f"{later.shape[0]}; rebuild both stages"
            )
        return earlier, later

    def __repr__(self) -> str:
        return f"Pair({self.earlier} -> {self.later}) of {self.artifact.id}"
