"""Interventions as values: what to do to a running model, and where.

:func:`ablate`, :func:`add`, :func:`scale`, :func:`patch`, :func:`mean_ablate` and
:func:`freeze_final_norm` say what; :func:`intervene` does it, in every forward of its ``with``
block. Several compose, in one call or in nested blocks: at a common site the one named first, or
the outer one, acts first, and a later layer or site sees what the earlier ones left.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import isfinite
from typing import Any, Literal, Protocol, SupportsFloat, SupportsIndex, runtime_checkable

import torch
from torch import Tensor, nn

from ptmech._arguments import distinct, layer_numbers, several, whole_number
from ptmech.errors import DataError
from ptmech.live.edits import Ablation, Addition, Layers, MeanAblation, Patch, Scaling, Sites
from ptmech.live.frozen_norm import FrozenFinalNorm
from ptmech.live.layout import LayoutTracker, Positions, parse_positions
from ptmech.live.precision import precise
from ptmech.live.sites import ModelSites

__all__ = [
    "Intervention",
    "Layers",
    "Positions",
    "Removable",
    "Sites",
    "ablate",
    "add",
    "freeze_final_norm",
    "intervene",
    "mean_ablate",
    "patch",
    "scale",
]


class Removable(Protocol):
    """What can be taken off a model again."""

    def remove(self) -> None:
        """Take it off."""
        ...


@runtime_checkable
class Intervention(Protocol):
    """What :func:`intervene` needs to know; any value of this shape can join in."""

    def check(self, sites: ModelSites) -> None:
        """Raise if it does not fit the model: a layer, site, neuron or width it does not have."""
        ...

    def attach(self, sites: ModelSites, layout: LayoutTracker) -> Iterator[Removable]:
        """Put it into the model, one handle at a time."""
        ...


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

    Yields
    ------
    None
        While the block runs, every forward is changed.

    Raises
    ------
    UnknownNameError
        A site or layer the model does not have; raised before anything runs.
    UnsupportedModelError
        A site that this model reads nowhere, or neurons of a mixture of experts.
    DataError
        A direction of another width than the model's, or a neuron it does not have; in a forward,
        positions that lie outside of a prompt.

    Examples
    --------
    Greedy completions without the refusal direction::

        with intervene(model, ablate(direction)):
            generate_texts(model, tokenizer, prompts, max_new_tokens=32)
    """
    _require_module(model)
    sites = ModelSites.of(model)
    for intervention in interventions:
        _require_intervention(intervention)
        intervention.check(sites)
    layout = LayoutTracker()
    with ExitStack() as hooks:
        for handle in layout.attach(sites.body):
            hooks.callback(handle.remove)
        for intervention in interventions:
            for handle in intervention.attach(sites, layout):
                hooks.callback(handle.remove)
        yield


def ablate(
    direction: Any,
    *,
    layers: Layers = "all",
    sites: Sites = "residual",
    positions: Positions = "all",
) -> Ablation:
    """Remove the component along a direction: ``x - (x . u) u``.

    With the defaults the model can write nothing along the direction anywhere (Arditi et al. 2024,
    section 2.4).

    Parameters
    ----------
    direction
        Vector [d_model], tensor or array, of any length but zero; only its direction matters.
    layers, sites, positions
        Where: every residual site of every layer, at every token, unless said otherwise. In blocks
        that run attention and MLP side by side these are ``resid_pre`` and ``resid_post``.

    Returns
    -------
    Ablation
        A value; :func:`intervene` puts it to work.

    Raises
    ------
    DataError
        A direction that is not a finite vector, or is zero; positions that are not whole numbers.
    """
    return Ablation(
        unit=_unit(direction),
        layers=_layers(layers),
        sites=_sites(sites),
        positions=parse_positions(positions),
    )


def add(
    direction: Any,
    layers: Layers,
    *,
    scale: float = 1.0,
    positions: Positions = "all",
    sites: Sites = ("resid_pre",),
) -> Addition:
    """Add ``scale * direction``.

    Parameters
    ----------
    direction
        Vector [d_model], tensor or array, used at its own length.
    layers
        Where; usually the one layer the direction was read from.
    scale
        Factor of the direction.
    positions
        Which tokens; every one, generated ones included, unless said otherwise.
    sites
        Which tensors of these layers.

    Returns
    -------
    Addition
        A value; :func:`intervene` puts it to work.

    Raises
    ------
    DataError
        A direction or scale that is not finite, or a direction that is not a vector; positions that
        are not whole numbers.
    """
    vector = _vector(_vector(direction) * _number("scale", scale))
    return Addition(
        vector=vector,
        layers=_layers(layers),
        sites=_sites(sites),
        positions=parse_positions(positions),
    )


def scale(
    factor: float,
    layers: Layers,
    *,
    sites: Sites,
    direction: Any = None,
    positions: Positions = "all",
) -> Scaling:
    """Multiply what a site holds by a factor, or only its component along a direction.

    ``x + (factor - 1) (x . u) u`` with a direction, ``factor * x`` without. A factor of 0 at
    ``attn_out`` or ``mlp_out`` takes that part of a block away; -1 along a direction mirrors it.

    Parameters
    ----------
    factor
        What to multiply by.
    layers, sites, positions
        Where.
    direction
        Vector [d_model] of any length but zero, or None for the whole tensor.

    Returns
    -------
    Scaling
        A value; :func:`intervene` puts it to work.

    Raises
    ------
    DataError
        A factor that is not finite, a direction that is not a finite vector or is zero, positions
        that are not whole numbers.
    """
    if not isfinite(_number("factor", factor)):
        raise DataError(f"a factor must be a finite number, not {factor}")
    unit = None if direction is None else _unit(direction)
    return Scaling(
        factor=float(factor),
        unit=unit,
        layers=_layers(layers),
        sites=_sites(sites),
        positions=parse_positions(positions),
    )


def patch(values: Any, layer: int, positions: Positions, *, site: str = "resid_post") -> Patch:
    """Replace a site's values at chosen tokens of the prompts.

    Parameters
    ----------
    values
        What to put there: [rows, positions, d_model], a row for each prompt of the call; or
        [positions, d_model], the same in every row.
    layer
        The layer.
    positions
        Which tokens of the prompts, as many as there are values: negative numbers count from the
        end of the prompt, others from its first token; one list for every row, or one a row.
    site
        The site.

    Returns
    -------
    Patch
        A value; :func:`intervene` puts it to work.

    Raises
    ------
    DataError
        Shapes that do not belong together, or values that are not finite; in the forward also a
        patch that does not fit it.
    """
    where, what = parse_positions(positions), _tensor(values)
    if where is None:
        raise DataError("a patch needs the positions it is to replace, not 'all'")
    if what.ndim not in (2, 3) or not what.is_floating_point():
        raise DataError(
            "patch values must be numbers of the shape [rows, positions, d_model] or "
            f"[positions, d_model], not {tuple(what.shape)}"
        )
    fits = where.shape[-1] == what.shape[-2]
    if not fits or (where.ndim == 2 and what.ndim == 3 and len(where) != len(what)):
        raise DataError(
            f"patch positions of shape {tuple(where.shape)} do not belong to values of shape "
            f"{tuple(what.shape)}"
        )
    if not bool(torch.isfinite(what).all()):
        raise DataError("patch values must be finite")
    at = whole_number("layer", layer, least=None)
    return Patch(values=what, layers=at, sites=(site,), positions=where)


def mean_ablate(
    neurons: Sequence[int], means: Any, *, layer: int = -1, positions: Positions = "all"
) -> MeanAblation:
    """Hold neurons of an MLP at their mean: the activation that enters the down-projection.

    Parameters
    ----------
    neurons
        Which neurons, from 0.
    means
        What to hold them at: the mean of every neuron [d_mlp], as :func:`neuron_means
        <ptmech.live.effects.neurons.neuron_means>` measures it, or of the chosen ones only.
    layer
        The layer; -1, the default, is the last, where entropy neurons are.
    positions
        At which tokens.

    Returns
    -------
    MeanAblation
        A value; :func:`intervene` puts it to work.

    Raises
    ------
    DataError
        No neurons, one named twice or by no whole number, or means that are not finite.
    """
    named = several("neurons", neurons)
    numbers = (whole_number("a neuron", neuron, least=None) for neuron in named)
    chosen = torch.tensor(distinct("neurons", numbers))
    at = whole_number("layer", layer, least=None)
    return MeanAblation(chosen, _vector(means), at, parse_positions(positions))


def freeze_final_norm() -> FrozenFinalNorm:
    """Hold the final norm's scale at what it is without any intervention.

    Every token is divided by the root mean square (or standard deviation) that the same tokens have
    in the model left alone; the gain, the bias and a LayerNorm's centring stay. What other
    interventions then change in the logits they change directly, not through the norm: the direct
    effect of Stolfo et al. (2024), section 3. Costs a second forward without interventions.

    Returns
    -------
    FrozenFinalNorm
        A value; :func:`intervene` puts it to work.
    """
    return FrozenFinalNorm()


def _tensor(values: Any) -> Tensor:
    # A copy: an intervention is a value, and does not change with what it was made from.
    if isinstance(values, Tensor):
        found = values.detach().clone()
    else:
        try:
            found = torch.tensor(values)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"expected numbers, not {type(values).__name__}") from error
    if found.is_complex():
        raise DataError("expected real numbers, not complex ones")
    return found


def _layers(layers: Layers) -> Layers:
    """Return layers as a value: the numbers, or ``"all"`` of whatever model it is."""
    if isinstance(layers, str) and layers == "all":
        return layers
    return layer_numbers(layers)


def _sites(sites: Sites) -> Literal["residual"] | tuple[str, ...]:
    if isinstance(sites, str) and sites == "residual":
        return "residual"
    return distinct("sites", sites)


def _require_module(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise DataError(
            f"expected a transformers model, not {type(model).__name__}; a live model has "
            "intervene itself"
        )


def _require_intervention(intervention: Any) -> None:
    if isinstance(intervention, type) or not isinstance(intervention, Intervention):
        raise DataError(
            f"expected an intervention such as ablate(direction), not {intervention!r:.60}"
        )


def _number(name: str, value: Any) -> float:
    if isinstance(value, (bool, str)) or not isinstance(value, (SupportsFloat, SupportsIndex)):
        raise DataError(f"{name} must be a number, not {value!r}")
    return float(value)


def _vector(values: Any) -> Tensor:
    vector = _tensor(values)
    if not vector.is_floating_point():
        vector = vector.double()
    vector = precise(vector)
    if vector.ndim != 1 or not bool(torch.isfinite(vector).all()):
        raise DataError(
            f"expected a finite vector, not values of shape {tuple(vector.shape)} or values that "
            "are not finite"
        )
    return vector


def _unit(direction: Any) -> Tensor:
    vector = _vector(direction)
    length = vector.norm()
    if length == 0:
        raise DataError("a direction of length zero points nowhere")
    return vector / length
