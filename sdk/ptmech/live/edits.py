"""Interventions that change tensors in place of a model's own.

They are values; :mod:`ptmech.live.interventions` has the functions that make them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import override

from ptmech._arguments import layer_numbers
from ptmech.errors import DataError, unknown
from ptmech.live.layout import LayoutTracker, edit_tokens
from ptmech.live.precision import precise
from ptmech.live.sites import Hooks, ModelSites

Layers = Literal["all"] | int | Sequence[int]
"""Layers to act in: every one, one, or several."""

Sites = Literal["residual"] | Sequence[str]
"""Sites to act at: those named, or every place of the model's stream that something reads."""


class Placed:
    """A tensor, brought once to each device and element type in which a model computes with it.

    Parameters
    ----------
    tensor
        Anywhere; not to be changed any more.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._copies: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def like(self, values: Tensor) -> Tensor:
        """Return it where `values` are, in their element type."""
        return self.on(values.device, values.dtype)

    def on(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Return it on a device, in an element type."""
        if (device, dtype) not in self._copies:
            # A copy made in inference mode could not be used where gradients are wanted.
            with torch.inference_mode(False):
                self._copies[device, dtype] = self._tensor.to(device, dtype)
        return self._copies[device, dtype]


@dataclass(frozen=True, eq=False, kw_only=True)
class SiteEdit(ABC):
    """A change of the vectors at some sites.

    Attributes
    ----------
    layers, sites
        Where it acts.
    positions
        At which tokens: None for all, else whole numbers as
        :func:`ptmech.live.layout.parse_positions` returns them.
    """

    layers: Layers
    sites: Literal["residual"] | tuple[str, ...]
    positions: Tensor | None = None

    @property
    def width(self) -> int | None:
        """The d_model this edit is made for; None if it fits any."""
        return None

    @abstractmethod
    def __call__(self, values: Tensor) -> Tensor:
        """Return what is to stand in place of `values` [..., d_model]."""

    def check(self, sites: ModelSites) -> None:
        """Raise for layers, sites or a width the model does not have."""
        if self.width not in (None, sites.d_model):
            raise DataError(
                f"an intervention of width {self.width} does not fit a residual stream of width "
                f"{sites.d_model}"
            )
        for layer in self._chosen_layers(sites):
            for site in self._chosen_sites(sites):
                sites.check_edit(site, layer)

    def attach(self, sites: ModelSites, layout: LayoutTracker) -> Iterator[Hooks]:
        """Put the edit at each of its places."""
        for layer in self._chosen_layers(sites):
            for site in self._chosen_sites(sites):
                yield sites.attach(site, layer, lambda stream: self.edited(stream, layout))

    def edited(self, stream: Tensor, layout: LayoutTracker) -> Tensor | None:
        """Return the stream [rows, tokens, d_model] with the chosen tokens changed."""
        return edit_tokens(stream, self.positions, layout, self)

    def _chosen_layers(self, sites: ModelSites) -> Sequence[int]:
        return layer_numbers(self.layers, every=range(sites.n_layers))

    def _chosen_sites(self, sites: ModelSites) -> Sequence[str]:
        return sites.residual_sites if self.sites == "residual" else self.sites


@dataclass(frozen=True, eq=False, kw_only=True)
class Ablation(SiteEdit):
    """Remove the component along a unit vector [d_model]."""

    unit: Tensor

    @property
    @override
    def width(self) -> int:
        return self.unit.shape[0]

    @override
    def __call__(self, values: Tensor) -> Tensor:
        exact = precise(values)
        return (exact - _along(exact, self._placed.like(exact))).to(values.dtype)

    @cached_property
    def _placed(self) -> Placed:
        return Placed(self.unit)


@dataclass(frozen=True, eq=False, kw_only=True)
class Addition(SiteEdit):
    """Add a vector [d_model]."""

    vector: Tensor

    @property
    @override
    def width(self) -> int:
        return self.vector.shape[0]

    @override
    def __call__(self, values: Tensor) -> Tensor:
        return values + self._placed.like(values)

    @cached_property
    def _placed(self) -> Placed:
        return Placed(self.vector)


@dataclass(frozen=True, eq=False, kw_only=True)
class Scaling(SiteEdit):
    """Multiply by a factor: everything, or the component along a unit vector [d_model]."""

    factor: float
    unit: Tensor | None = None

    @property
    @override
    def width(self) -> int | None:
        return None if self.unit is None else self.unit.shape[0]

    @override
    def __call__(self, values: Tensor) -> Tensor:
        placed = self._placed
        if placed is None:
            return values * self.factor
        exact = precise(values)
        return (exact + (self.factor - 1) * _along(exact, placed.like(exact))).to(values.dtype)

    @cached_property
    def _placed(self) -> Placed | None:
        return None if self.unit is None else Placed(self.unit)


@dataclass(frozen=True, eq=False, kw_only=True)
class Patch(SiteEdit):
    """Replace activations: `values` [positions, d_model] for every row, or [rows, ...]."""

    values: Tensor

    @property
    @override
    def width(self) -> int:
        return self.values.shape[-1]

    @override
    def __call__(self, values: Tensor) -> Tensor:
        return self._placed.like(values)

    @override
    def edited(self, stream: Tensor, layout: LayoutTracker) -> Tensor | None:
        if self.positions is None:
            raise DataError("a patch needs the positions it is to replace")
        chosen = layout.layout.chosen(self.positions, stream)
        if chosen is None:
            return None
        values = self._placed.like(stream)
        values = layout.layout.of_rows(values, "a patch") if values.ndim == 3 else values
        changed = stream.clone()
        new = values.expand(len(stream), -1, -1)
        changed[chosen.rows, chosen.tokens] = new[chosen.rows, chosen.columns]
        return changed

    @cached_property
    def _placed(self) -> Placed:
        return Placed(self.values)


@dataclass(frozen=True, eq=False)
class MeanAblation:
    """Hold neurons of one MLP at given activations.

    Attributes
    ----------
    neurons
        Whole numbers [neurons].
    means
        [d_mlp], or [neurons] for the chosen ones only.
    layer
        The layer, or -1 for the last.
    positions
        At which tokens; None for all.
    """

    neurons: Tensor
    means: Tensor
    layer: int
    positions: Tensor | None

    def check(self, sites: ModelSites) -> None:
        """Raise for a layer or neurons the model does not have."""
        width = sites.width_of_mlp(self._layer(sites))
        missing = self.neurons[(self.neurons < 0) | (self.neurons >= width)]
        if len(missing):
            raise unknown("neuron", int(missing[0]), range(width))
        if len(self.means) not in (width, len(self.neurons)):
            raise DataError(
                f"{len(self.means)} means belong neither to the {width} neurons of the layer nor "
                f"to the {len(self.neurons)} chosen ones"
            )

    def attach(self, sites: ModelSites, layout: LayoutTracker) -> Iterator[Hooks]:
        """Put it before the layer's down-projection."""
        layer = self._layer(sites)
        whole = len(self.means) == sites.width_of_mlp(layer)
        means = Placed(self.means[self.neurons] if whole else self.means)
        neurons = Placed(self.neurons)

        def held(activations: Tensor) -> Tensor:
            changed = activations.clone()
            where = neurons.on(changed.device, self.neurons.dtype)
            changed[..., where] = means.like(changed)
            return changed

        yield sites.attach_neurons(
            layer, lambda activations: edit_tokens(activations, self.positions, layout, held)
        )

    def _layer(self, sites: ModelSites) -> int:
        return sites.n_layers - 1 if self.layer == -1 else self.layer


def _along(values: Tensor, unit: Tensor) -> Tensor:
    """Return the component of values [..., d_model] along a unit vector [d_model]."""
    return (values @ unit).unsqueeze(-1) * unit
