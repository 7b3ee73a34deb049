"""The test of a truth probe across two stages, made ready once for as many layers as are asked."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, get_args

from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from ptmech._held_out import Centering, HeldOut
from ptmech._statements import Statements
from ptmech._truth_probes import TruthProbe
from ptmech.artifact import Artifact
from ptmech.errors import DataError

StoredLayer = tuple[list[NDArray[Any]], list[NDArray[Any]]]
"""Activations [rows, d_model] of the earlier and of the later stage, each by dataset."""


@dataclass(frozen=True, eq=False)
class LayerTest:
    """All that a layer's numbers depend on besides its activations; it can go to other processes.

    Attributes
    ----------
    held_out
        The folds.
    probe
        What to train.
    centering
        See :func:`ptmech.truth.transfer`.
    """

    held_out: HeldOut
    probe: TruthProbe
    centering: Centering

    def rows(self, stored: StoredLayer) -> list[dict[str, Any]]:
        """Return the rows of :class:`ptmech.truth.TruthTransfer`'s frame."""
        return self.held_out.table(self.held_out.measure(stored, self.probe, self.centering))

    def rows_and_warnings(
        self, stored: StoredLayer
    ) -> tuple[list[dict[str, Any]], list[warnings.WarningMessage]]:
        """Return the rows, and the warnings: those of another process would reach nobody."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            rows = self.rows(stored)
        return rows, caught


@dataclass(frozen=True, eq=False)
class TransferTest:
    """A probe, two stages of an artifact and the statements that it is trained and tested on.

    Attributes
    ----------
    artifact
        Where the activations are.
    layer_test
        What is computed at each layer.
    arguments
        What was asked for, but for the layers.
    """

    artifact: Artifact
    layer_test: LayerTest
    arguments: dict[str, Any]

    @classmethod
    def of(
        cls,
        artifact: Artifact,
        earlier: str,
        later: str,
        probe: str | BaseEstimator,
        centering: Centering,
        *,
        datasets: Sequence[str] | None,
        site: str,
        position: int,
        n_bootstrap: int,
        seed: int,
    ) -> Self:
        """Check what was asked for; parameters and errors are those of :func:`truth.transfer`."""
        if centering not in get_args(Centering):
            raise DataError(f"centering must be 'train' or 'each', not {centering!r}")
        if n_bootstrap < 1:
            raise DataError(f"n_bootstrap must be at least 1, not {n_bootstrap}")
        truth_probe = TruthProbe(probe)
        artifact.pair(earlier, later)
        statements = Statements.to_leave_one_out(artifact, datasets)
        held_out = HeldOut.of(statements, n_bootstrap=n_bootstrap, seed=seed)
        return cls(
            artifact=artifact,
            layer_test=LayerTest(held_out, truth_probe, centering),
            arguments={
                "earlier": earlier,
                "later": later,
                "probe": truth_probe.name,
                "centering": centering,
                "datasets": statements.datasets,
                "site": site,
                "position": position,
                "n_bootstrap": n_bootstrap,
                "seed": seed,
            },
        )

    def asked(self, **layers: Any) -> dict[str, Any]:
        """Return the arguments of a result, its layers behind the stages."""
        stages = ("earlier", "later")
        return {each: self.arguments[each] for each in stages} | layers | self.arguments

    def stored(self, layer: int) -> StoredLayer:
        """Return one layer's activations, mapped as they are stored and checked."""
        statements = self.layer_test.held_out.statements
        site, position = self.arguments["site"], self.arguments["position"]
        earlier, later = (
            statements.stored(
                self.artifact, self.arguments[stage], site=site, layer=layer, position=position
            )
            for stage in ("earlier", "later")
        )
        return earlier, later
