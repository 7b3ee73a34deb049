"""The named places of a live model, defined by maths, and how to read or change them.

With ``x`` the residual stream of decoder block L (counted from 0):

=============  ===================================================================================
``resid_pre``  the block's input; at L = 0 the token embeddings, after any embedding scale
``attn_out``   what attention adds: ``resid_mid - resid_pre``
``resid_mid``  between attention and MLP
``mlp_out``    what the MLP adds: ``resid_post - resid_mid``
``resid_post`` the block's output, before the final norm also at the last block
=============  ===================================================================================

In a *parallel* block attention and MLP both read ``resid_pre``, and ``resid_mid = resid_pre +
attn_out`` is a sum that nothing reads: it can be recorded there, but not changed.

transformers' own ``hidden_states`` are not used: their last entry has the final norm applied.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ptmech.errors import UnsupportedModelError, unknown
from ptmech.live.architectures import Architecture, NormKind
from ptmech.live.norms import NormParts
from ptmech.live.placement import execution_device, weight_of
from ptmech.live.structure import find_architecture

Visitor = Callable[[Tensor], Tensor | None]
"""Sees a site's tensor [rows, tokens, d_model]; returns its replacement, or None to leave it."""


_SUSPENDED: ContextVar[bool] = ContextVar("ptmech_suspended", default=False)


@contextmanager
def suspended() -> Generator[None]:
    """Run the model as it is: whatever :meth:`ModelSites.attach` attached does nothing here."""
    token = _SUSPENDED.set(True)
    try:
        yield
    finally:
        _SUSPENDED.reset(token)


def is_suspended() -> bool:
    """Tell whether the forward that runs is one of the model as it is."""
    return _SUSPENDED.get()


@dataclass(frozen=True)
class Site:
    """Which tensor of a decoder block a site is."""

    module: Callable[[Architecture], str]
    side: Literal["input", "output"]
    edit_in_place: bool = False
    """Whether the block also keeps the tensor itself (for a residual sum), so that replacing the
    module's argument would miss half of what flows on."""


SITES: Mapping[str, Site] = MappingProxyType(
    {
        "resid_pre": Site(lambda architecture: architecture.block, "input"),
        "attn_out": Site(lambda architecture: architecture.attn_out, "output"),
        "resid_mid": Site(
            lambda architecture: architecture.before_mlp, "input", edit_in_place=True
        ),
        "mlp_out": Site(lambda architecture: architecture.mlp_out, "output"),
        "resid_post": Site(lambda architecture: architecture.block, "output"),
    }
)
"""The sites by name, in the order in which a block computes them."""

RESIDUAL_SITES = ("resid_pre", "resid_mid", "resid_post")
"""The three places of a block's residual stream."""


@dataclass(frozen=True, eq=False)
class Hooks:
    """Hooks of torch that belong together."""

    handles: tuple[RemovableHandle, ...]

    def remove(self) -> None:
        """Take them off the model."""
        for handle in self.handles:
            handle.remove()


@dataclass(frozen=True, eq=False)
class ModelSites:
    """A causal language model together with where its parts are; build it with :meth:`of`.

    Attributes
    ----------
    model
        The transformers model.
    architecture
        How it is built.
    """

    model: nn.Module
    architecture: Architecture

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """Find the parts of a transformers causal language model.

        Parameters
        ----------
        model
            A transformers causal language model.

        Returns
        -------
        ModelSites
            By its architecture, known or found by its structure.

        Raises
        ------
        UnsupportedModelError
            The architecture has no row in :mod:`ptmech.live.architectures` and is built like none
            that has, or the model has no unembedding (a bare body).
        """
        sites = cls(model, find_architecture(model))
        try:
            _ = (sites.body, sites.layers, sites.final_norm, sites.unembedding)
        except AttributeError as missing:
            raise UnsupportedModelError(
                f"{type(model).__name__} is not a causal language model as transformers builds "
                f"it: {missing}"
            ) from missing
        return sites

    @property
    def body(self) -> nn.Module:
        """The model without its unembedding; its output has the final norm applied."""
        return self.model.get_submodule(self.architecture.body)

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder blocks."""
        return cast(nn.ModuleList, self.body.get_submodule(self.architecture.layers))

    @property
    def final_norm(self) -> nn.Module:
        """The norm between the last block and the unembedding."""
        return self.body.get_submodule(self.architecture.final_norm)

    @property
    def unembedding(self) -> nn.Module:
        """The linear map from the normed stream to logits."""
        return self.model.get_submodule(self.architecture.unembedding)

    @property
    def device(self) -> torch.device:
        """Where token ids have to be."""
        return execution_device(self.body.get_submodule(self.architecture.embedding))

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return len(self.layers)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return cast(Tensor, self.final_norm.weight).shape[0]

    @property
    def parallel(self) -> bool:
        """Whether attention and MLP of a block read the same stream, side by side."""
        said = self.architecture.parallel
        return bool(getattr(self.model.config, said)) if isinstance(said, str) else said

    @property
    def residual_sites(self) -> tuple[str, ...]:
        """The places of a block's stream that can be changed: those that something reads."""
        return tuple(s for s in RESIDUAL_SITES if s != "resid_mid" or not self.parallel)

    @property
    def has_neurons(self) -> bool:
        """Whether the last MLP has neurons to name; a mixture of experts has not."""
        return self._has_neurons(self.n_layers - 1)

    @property
    def d_mlp(self) -> int:
        """Number of neurons of the last MLP."""
        return self.width_of_mlp(self.n_layers - 1)

    def width_of_mlp(self, layer: int) -> int:
        """Return the number of neurons of a layer's MLP.

        Parameters
        ----------
        layer
            Decoder block, counted from 0.

        Returns
        -------
        int
            d_mlp.

        Raises
        ------
        UnknownNameError
            A layer the model does not have.
        UnsupportedModelError
            The layer is a mixture of experts.
        """
        projection: Any = self._down_projection(layer)
        if self.architecture.projections_transposed:
            return projection.weight.shape[0]
        return projection.in_features

    @property
    def final_norm_parts(self) -> NormParts:
        """The final norm taken apart."""
        return self._parts(self.final_norm)

    def mlp_norm_parts(self, layer: int) -> NormParts | None:
        """Take apart the norm between a layer's MLP and the stream; None where there is none.

        Parameters
        ----------
        layer
            Decoder block, counted from 0.

        Returns
        -------
        NormParts or None
            None where the MLP writes into the stream directly.
        """
        self._check_layer(layer)
        architecture = self.architecture
        if architecture.mlp_out == architecture.mlp:
            return None
        return self._parts(self.layers[layer].get_submodule(architecture.mlp_out))

    @property
    def vocabulary(self) -> int:
        """Number of rows of the unembedding."""
        return cast(Tensor, self.unembedding.weight).shape[0]

    @property
    def norm_kind(self) -> NormKind:
        """``"rms"``, or ``"layer"`` for norms that also remove the mean over d_model."""
        return self.architecture.norm_kind

    @property
    def w_u(self) -> Tensor:
        """Unembedding [vocabulary, d_model], without the final norm's gain."""
        weight = weight_of(self.unembedding)
        if not weight.is_floating_point() or weight.element_size() < 2:
            raise UnsupportedModelError("the unembedding of this model is quantised")
        return weight

    @property
    def gamma(self) -> Tensor:
        """Gain of the final norm [d_model] as it acts (Gemma stores it less 1), never in 16 bit."""
        return self.final_norm_parts.gain

    @property
    def w_out(self) -> Tensor:
        """Down-projection of the last MLP [d_model, d_mlp]: one column a neuron, not centred."""
        return self.output_weights(self.n_layers - 1)

    def output_weights(self, layer: int) -> Tensor:
        """Return the down-projection of a layer's MLP [d_model, d_mlp], as :attr:`w_out`.

        Parameters
        ----------
        layer
            Decoder block, counted from 0.

        Returns
        -------
        Tensor
            One column a neuron, not centred.

        Raises
        ------
        UnknownNameError
            A layer the model does not have.
        UnsupportedModelError
            The layer is a mixture of experts, or the weights are quantised.
        """
        projection = self._down_projection(layer)
        if getattr(self.model, "is_quantized", False):
            raise UnsupportedModelError(
                "the output weights of a quantised model's neurons cannot be read; load it "
                "unquantised"
            )
        weight = weight_of(projection)
        return weight.T if self.architecture.projections_transposed else weight

    def project(self, normed: Tensor) -> Tensor:
        """Map the normed stream [..., d_model] to logits [..., vocabulary], softcap included.

        Parameters
        ----------
        normed
            [..., d_model], what the final norm gives.

        Returns
        -------
        Tensor
            Logits [..., vocabulary].
        """
        # Two dimensions and contiguous rows: the 3-D path of a large unembedding is many times
        # slower on CPU.
        rows = normed.reshape(-1, normed.shape[-1]).contiguous()
        return self.cap(self.unembedding(rows)).reshape(*normed.shape[:-1], -1)

    def cap(self, logits: Tensor) -> Tensor:
        """Return logits as the model's softcap leaves them, where there is one.

        Parameters
        ----------
        logits
            Of any shape.

        Returns
        -------
        Tensor
            Of the same shape.
        """
        name = self.architecture.logit_softcap
        cap: float | None = None if name is None else getattr(self.model.config, name)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def unembed(self, resid: Tensor) -> Tensor:
        """Logits [..., vocabulary] of a residual stream [..., d_model]: norm, unembedding, softcap.

        Applied to the last block's ``resid_post`` these are the model's logits.

        Parameters
        ----------
        resid
            [..., d_model].

        Returns
        -------
        Tensor
            Logits [..., vocabulary].
        """
        return self.project(self.final_norm(resid))

    def check(self, site: str, layer: int) -> None:
        """Raise for a site or layer this model does not have.

        Parameters
        ----------
        site
            Name of a site.
        layer
            Decoder block, counted from 0.

        Raises
        ------
        UnknownNameError
            With the sites or layers there are.
        """
        if site not in SITES:
            raise unknown("site", site, SITES)
        self._check_layer(layer)

    def check_edit(self, site: str, layer: int) -> None:
        """Raise for a site or layer that cannot be changed.

        Parameters
        ----------
        site
            Name of a site.
        layer
            Decoder block, counted from 0.

        Raises
        ------
        UnknownNameError
            As for :meth:`check`.
        UnsupportedModelError
            ``resid_mid`` of a parallel block, which nothing reads.
        """
        self.check(site, layer)
        if site == "resid_mid" and self.parallel:
            raise UnsupportedModelError(
                "resid_mid cannot be changed in this model of type "
                f"{self.architecture.model_type!r}: attention and MLP run side by side, and "
                "nothing reads the stream between them; choose from "
                f"{', '.join(self.residual_sites)}, attn_out, mlp_out"
            )

    def attach(self, site: str, layer: int, visitor: Visitor) -> Hooks:
        """Call `visitor` with the site's tensor in every forward, until the hooks are removed.

        Visitors of one site run in the order they were attached, each seeing what the ones before
        it left.

        Parameters
        ----------
        site
            Name of a site.
        layer
            Decoder block, counted from 0.
        visitor
            Gets the tensor; what it returns takes its place, None leaves it.

        Returns
        -------
        Hooks
            What to remove.
        """
        self.check(site, layer)
        if site == "resid_mid" and self.parallel:
            return self._attach_sum(layer, visitor)
        spec = SITES[site]
        module = self._part(layer, spec.module(self.architecture))
        first, visitor = self._in_rows(layer, visitor)
        if spec.side == "input":
            hook = _input_hook(visitor, in_place=spec.edit_in_place)
            return Hooks((*first, module.register_forward_pre_hook(hook, with_kwargs=True)))
        return Hooks((*first, module.register_forward_hook(_output_hook(visitor))))

    def attach_neurons(self, layer: int, visitor: Visitor) -> Hooks:
        """Call `visitor` with a layer's neuron activations [rows, tokens, d_mlp].

        These are the inputs of the MLP's down-projection. Otherwise as :meth:`attach`.

        Parameters
        ----------
        layer
            Decoder block, counted from 0.
        visitor
            Gets the tensor; what it returns takes its place, None leaves it.

        Returns
        -------
        Hooks
            What to remove.

        Raises
        ------
        UnknownNameError
            A layer the model does not have.
        UnsupportedModelError
            The layer is a mixture of experts.
        """
        projection = self._down_projection(layer)
        first, visitor = self._in_rows(layer, visitor)
        hook = _input_hook(visitor, in_place=False)
        return Hooks((*first, projection.register_forward_pre_hook(hook, with_kwargs=True)))

    def attach_written(self, layer: int, visitor: Visitor) -> Hooks:
        """Call `visitor` with what a layer's MLP writes, before any norm; as :meth:`attach`.

        Parameters
        ----------
        layer
            Decoder block, counted from 0.
        visitor
            Gets the tensor; what it returns takes its place, None leaves it.

        Returns
        -------
        Hooks
            What to remove.
        """
        self._check_layer(layer)
        first, visitor = self._in_rows(layer, visitor)
        module = self._part(layer, self.architecture.mlp)
        return Hooks((*first, module.register_forward_hook(_output_hook(visitor))))

    def _attach_sum(self, layer: int, visitor: Visitor) -> Hooks:
        """Show a visitor ``resid_mid`` of a parallel block, where no module has it.

        The MLP is called after attention, on ``resid_pre``: by then everyone has changed both.
        """
        attended: list[Tensor] = []

        def keep(written: Tensor) -> None:
            attended[:] = [written]

        def show(stream: Tensor) -> None:
            if visitor(stream + attended.pop().to(stream.device)) is not None:
                self.check_edit("resid_mid", layer)

        attention = self._part(layer, self.architecture.attention)
        before_mlp = self._part(layer, self.architecture.before_mlp)
        return Hooks(
            (
                attention.register_forward_hook(_output_hook(keep)),
                before_mlp.register_forward_pre_hook(
                    _input_hook(show, in_place=False), with_kwargs=True
                ),
            )
        )

    def _in_rows(self, layer: int, visitor: Visitor) -> tuple[tuple[RemovableHandle, ...], Visitor]:
        """Show a visitor tokens in their rows where the block has put all of them into one."""
        if not self.architecture.rows_flattened:
            return (), visitor
        shape: list[int] = []

        def note(stream: Tensor) -> None:
            shape[:] = stream.shape[:2]

        def visit(values: Tensor) -> Tensor | None:
            if values.ndim == 3:
                return visitor(values)
            changed = visitor(values.unflatten(0, shape))
            return None if changed is None else changed.flatten(0, 1)

        hook = _input_hook(note, in_place=False)
        return (self.layers[layer].register_forward_pre_hook(hook, with_kwargs=True),), visit

    def _part(self, layer: int, path: str) -> nn.Module:
        return self.layers[layer].get_submodule(path)

    def _parts(self, norm: nn.Module) -> NormParts:
        return NormParts.of(norm, self.norm_kind, self.architecture.gain_offset)

    def _down_projection(self, layer: int) -> nn.Module:
        self._check_layer(layer)
        if not self._has_neurons(layer):
            raise UnsupportedModelError(
                f"layer {layer} of this model of type {self.architecture.model_type!r} has no "
                "neurons to name: it is a mixture of experts"
            )
        return self._part(layer, self.architecture.down_projection)

    def _has_neurons(self, layer: int) -> bool:
        try:
            self._part(layer, self.architecture.down_projection)
        except AttributeError:
            return False
        return True

    def _check_layer(self, layer: int) -> None:
        if layer not in range(self.n_layers):
            raise unknown("layer", layer, range(self.n_layers))


def _input_hook(visitor: Visitor, *, in_place: bool) -> Callable[..., Any]:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if is_suspended():
            return None
        stream: Tensor = args[0] if args else kwargs["hidden_states"]
        changed = visitor(stream)
        if changed is None:
            return None
        if in_place:
            stream.copy_(changed)
            return None
        if args:
            return (changed, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": changed}

    return hook


def _output_hook(visitor: Visitor) -> Callable[..., Any]:
    # Attention returns a tuple, blocks return a tensor in transformers 5 and a tuple before.
    def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        if is_suspended():
            return None
        several = isinstance(output, tuple)
        changed = visitor(output[0] if several else output)
        if changed is None:
            return None
        return (changed, *output[1:]) if several else changed

    return hook
