"""Interventions as values: removing a direction, adding one, replacing activations.

An intervention says what to do where; :func:`intervene` does it, in every forward of its ``with``
block. Several compose, in one call or in nested blocks: at a common site the one named first, or
the outer one, acts first, and a later layer or site sees what the earlier ones left.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from ptmech.errors import DataError
from ptmech.live.sites import ModelSites

Layers = Literal["all"] | int | Sequence[int]
"""Layers to act in: every one, one, or several."""

RESIDUAL_SITES = ("resid_pre", "resid_mid", "resid_post")


class Intervention(Protocol):
    """What :func:`intervene` needs to know; any value of this shape can join in."""

    @property
    def layers(self) -> Layers:
        """Where to act: layers."""
        ...

    @property
    def sites(self) -> Sequence[str]:
        """Where to act: sites of each of those layers."""
        ...

    @property
    def width(self) -> int:
        """The d_model this intervention is made for."""
        ...

    def __call__(self, stream: Tensor, /) -> Tensor:
        """Return what is to stand in place of `stream` [rows, tokens, d_model]."""
        ...


@dataclass(frozen=True, eq=False)
class Ablation:
    """Remove the component along a unit direction; build it with :func:`ablate`."""

    unit: Tensor
    layers: Layers
    sites: Sequence[str]

    @property
    def width(self) -> int:
        """Length of the direction."""
        return self.unit.shape[0]

    def __call__(self, stream: Tensor) -> Tensor:
        """Project the direction out of every token."""
        # In half precision the projection would leave a visible remainder.
        precise = torch.promote_types(stream.dtype, torch.float32)
        unit = self.unit.to(stream.device, precise)
        values = stream.to(precise)
        return (values - (values @ unit).unsqueeze(-1) * unit).to(stream.dtype)


@dataclass(frozen=True, eq=False)
class Addition:
    """Add a vector at every token; build it with :func:`add`."""

    vector: Tensor
    layers: Layers
    sites: Sequence[str]

    @property
    def width(self) -> int:
        """Length of the vector."""
        return self.vector.shape[0]

    def __call__(self, stream: Tensor) -> Tensor:
        """Add the vector."""
        return stream + self.vector.to(stream.device, stream.dtype)


@dataclass(frozen=True, eq=False)
class Patch:
    """Replace chosen tokens' activations; build it with :func:`patch`."""

    values: Tensor
    positions: Tensor
    layers: Layers
    sites: Sequence[str]

    @property
    def width(self) -> int:
        """Width of the stored values."""
        return self.values.shape[-1]

    def __call__(self, stream: Tensor) -> Tensor:
        """Write the values over the chosen tokens."""
        rows, tokens, _width = stream.shape
        if rows != self.values.shape[0] or tokens <= int(self.positions.max()):
            raise DataError(
                f"a patch for {self.values.shape[0]} rows up to token {int(self.positions.max())} "
                f"does not fit a forward of {rows} rows of {tokens} tokens"
            )
        row = torch.arange(rows, device=stream.device).unsqueeze(1)
        changed = stream.clone()
        changed[row, self.positions.to(stream.device)] = self.values.to(changed)
        return changed


def ablate(
    direction: Any, *, layers: Layers = "all", sites: Sequence[str] = RESIDUAL_SITES
) -> Ablation:
    """Remove the component along a direction, at every token: ``x - (x . u) u``.

    With the defaults the model can write nothing along the direction anywhere (Arditi et al.,
    section 2.4).

    Parameters
    ----------
    direction
        Vector [d_model], tensor or array, of any length but zero; only its direction matters.
    layers, sites
        Where: every residual site of every layer unless said otherwise.

    Raises
    ------
    DataError
        A direction that is not a finite vector, or is zero.
    """
    vector = _vector(direction)
    length = vector.norm()
    if length == 0:
        raise DataError("a direction of length zero cannot be ablated")
    return Ablation(vector / length, layers, tuple(sites))


def add(
    direction: Any, layers: Layers, *, scale: float = 1.0, sites: Sequence[str] = ("resid_pre",)
) -> Addition:
    """Add ``scale * direction`` at every token.

    Parameters
    ----------
    direction
        Vector [d_model], tensor or array, used at its own length.
    layers
        Where; usually the one layer the direction was read from.
    scale
        Factor of the direction.
    sites
        Which tensors of these layers.

    Raises
    ------
    DataError
        A direction or scale that is not finite, or a direction that is not a vector.
    """
    return Addition(_vector(_vector(direction) * scale), layers, tuple(sites))


def patch(values: Tensor, layer: int, positions: Tensor, *, site: str = "resid_post") -> Patch:
    """Replace a site's values at chosen tokens, for one whole forward (not for generation).

    Parameters
    ----------
    values
        [rows, positions, d_model]: what to put there.
    layer
        The layer.
    positions
        Whole numbers [rows, positions], tokens counted from the first of the padded row; or
        [positions], the same for every row.
    site
        The site.

    Raises
    ------
    DataError
        Shapes that do not belong together; in the forward also a patch that does not fit it.
    """
    if values.ndim != 3:
        raise DataError("patch values must have the shape [rows, positions, d_model]")
    if positions.is_floating_point() or positions.dtype == torch.bool:
        raise DataError("patch positions must be whole numbers")
    if positions.ndim == 1:
        positions = positions.expand(values.shape[0], -1)
    if positions.shape != values.shape[:2] or positions.numel() == 0:
        raise DataError(
            f"patch positions of shape {tuple(positions.shape)} do not belong to values of shape "
            f"{tuple(values.shape)}"
        )
    if int(positions.min()) < 0:
        raise DataError("patch positions count from the first token; a negative one was given")
    return Patch(values, positions, layer, (site,))


@contextmanager
def intervene(model: nn.Module, *interventions: Intervention) -> Generator[None]:
    """Apply interventions in every forward of the ``with`` block.

    Parameters
    ----------
    model
        A transformers causal language model. It is itself again when the block ends, also by an
        exception.
    interventions
        What to do; at a common site in this order.

    Raises
    ------
    UnknownNameError
        A site or layer the model does not have; raised before anything runs.
    DataError
        A direction of another width than the model's.

    Examples
    --------
    Greedy completions without the refusal direction::

        with intervene(model, ablate(direction)):
            greedy_completions(model, tokenizer, prompts, max_new_tokens=32)
    """
    model_sites = ModelSites.of(model)
    for intervention in interventions:
        if intervention.width != model_sites.d_model:
            raise DataError(
                f"an intervention of width {intervention.width} does not fit a residual stream "
                f"of width {model_sites.d_model}"
            )
    places = [
        (site, layer, intervention)
        for intervention in interventions
        for layer in _layers(intervention.layers, model_sites.n_layers)
        for site in intervention.sites
    ]
    for site, layer, _intervention in places:
        model_sites.check(site, layer)
    with ExitStack() as hooks:
        for site, layer, intervention in places:
            hooks.callback(model_sites.attach(site, layer, intervention).remove)
        yield


def _layers(layers: Layers, n_layers: int) -> Sequence[int]:
    if isinstance(layers, int):
        return (layers,)
    return range(n_layers) if layers == "all" else tuple(layers)  # type: ignore[arg-type]


def _vector(direction: Any) -> Tensor:
    vector = torch.as_tensor(direction).detach()
    if not vector.is_floating_point():
        vector = vector.double()
    vector = vector.to(torch.promote_types(vector.dtype, torch.float32))
    if vector.ndim != 1 or not bool(torch.isfinite(vector).all()):
        raise DataError(
            f"a direction must be a finite vector [d_model], not of shape {tuple(vector.shape)} "
            "or with values that are not finite"
        )
    return vector
