"""The next-token distribution under every ablation in the last MLP, from one forward.

Holding a neuron of the last MLP at another activation adds ``d w`` to what the MLP writes, with d
the change of a token's activation and w the neuron's output weights. Between there and the logits
stand only norms and linear maps, and a norm is one number a token times a linear map
(:mod:`ptmech.live.norms`). So the logits of any such ablation are a combination of three things:
the logits of the model left alone; those of what the MLP wrote, where a norm follows the MLP; and
those of w, the same for all tokens. The factors follow from vectors of d_model. What is left for
each token and ablation is one pass over the vocabulary instead of an unembedding: on a CPU about
twenty times cheaper, and exact, which the tests prove for every architecture against whole forwards
with hooks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import linear

from ptmech.live.sites import ModelSites

_VOCABULARY_AT_ONCE = 8192
"""Rows of the unembedding that are brought to float32 together."""


def entropy_and_loss(logits: Tensor, targets: Tensor, scratch: Tensor | None = None) -> Tensor:
    """Return entropy and cross-entropy [2, tokens] in nats of next-token logits.

    Parameters
    ----------
    logits
        [tokens, vocabulary] float32. Overwritten.
    targets
        The tokens that follow, [tokens].
    scratch
        Memory of the same shape to work in.
    """
    logits -= logits.amax(dim=-1, keepdim=True)
    of_target = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    weights = torch.exp(logits, out=scratch)
    mass = weights.sum(dim=-1)
    mean = weights.mul_(logits).sum(dim=-1) / mass
    return torch.stack([mass.log() - mean, mass.log() - of_target])


@dataclass(frozen=True, eq=False)
class LastTokens:
    """What a forward of the model left alone leaves behind of some tokens.

    Attributes
    ----------
    resid
        [tokens, d_model], the stream before the final norm.
    written
        [tokens, d_model], what the last MLP wrote, before any norm of its own.
    activations
        [tokens, d_mlp], its neurons.
    targets
        [tokens], the tokens that follow.
    """

    resid: Tensor
    written: Tensor
    activations: Tensor
    targets: Tensor

    def split(self, size: int) -> Iterator[Self]:
        """Yield the tokens in blocks."""
        parts = (self.resid, self.written, self.activations, self.targets)
        for block in zip(*(part.split(size) for part in parts), strict=True):
            yield type(self)(*block)


@dataclass(frozen=True, eq=False)
class _Held:
    """A set of neurons held at their means.

    Attributes
    ----------
    neurons, means
        Both [neurons].
    outputs
        What each writes, [neurons, d_model].
    logits
        What that becomes at a scale of one, and at last the biases, [neurons + 1, vocabulary].
    """

    neurons: Tensor
    means: Tensor
    outputs: Tensor
    logits: Tensor


class LastMlp:
    """The way from some sets of neurons of the last MLP to the logits.

    Parameters
    ----------
    sites
        A model.
    sets
        Sets of neurons, each to be ablated by itself.
    means
        What to hold the neurons at, [d_mlp].
    """

    def __init__(self, sites: ModelSites, sets: Sequence[Tensor], means: Tensor) -> None:
        self._w_u, self._cap = sites.w_u, sites.cap
        self._final = sites.final_norm_parts
        self._after_mlp = sites.mlp_norm_parts(sites.n_layers - 1)
        self._biases = self._biases_of(sites)
        self._sets = [self._held(sites, neurons, means) for neurons in sets]

    @torch.inference_mode()
    def effects(self, tokens: LastTokens) -> tuple[Tensor, Tensor]:
        """Return entropy and loss of the model left alone, and under each ablation.

        Returns
        -------
        unedited
            [2, tokens]: entropy and loss in nats.
        edited
            [sets, 2, 2, tokens]: first with the final norm free, then with its scale frozen.
        """
        scale = self._final.scale(tokens.resid)
        base = self._unembedded(self._final.linear(tokens.resid) * scale)
        memory = torch.empty_like(base), torch.empty_like(base)
        unedited = self._measured(torch.add(base, self._biases, out=memory[0]), tokens, memory[1])
        own, carried = self._carried(tokens, scale)
        edited = unedited.new_empty(len(self._sets), 2, *unedited.shape)
        for held, of_set in zip(self._sets, edited, strict=True):
            moves = held.means - tokens.activations[:, held.neurons].float()
            change = moves @ held.outputs
            new = self._scale_after_mlp(tokens.written + change)
            moved = tokens.resid + self._linear_after_mlp(change) * new
            if carried is not None:
                moved = moved + self._linear_after_mlp(tokens.written) * (new - own)
            for at, result in zip((self._final.scale(moved), scale), of_set, strict=True):
                logits = torch.mul(base, at / scale, out=memory[0])
                if carried is not None:
                    logits.addcmul_(carried, at / scale * (new / own - 1))
                factors = torch.cat([moves * new * at, torch.ones_like(at)], dim=1)
                logits.addmm_(factors, held.logits)
                result.copy_(self._measured(logits, tokens, memory[1]))
        return unedited, edited

    def _measured(self, logits: Tensor, tokens: LastTokens, scratch: Tensor) -> Tensor:
        return entropy_and_loss(self._cap(logits), tokens.targets, scratch)

    def _carried(self, tokens: LastTokens, scale: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scale of the norm after the MLP, and the logits of what the MLP wrote, if there is one.

        Where there is none, the MLP's writing is not scaled by anything an ablation changes.
        """
        own = self._scale_after_mlp(tokens.written)
        if self._after_mlp is None:
            return own, None
        written = self._final.linear(self._after_mlp.linear(tokens.written))
        return own, self._unembedded(written * own * scale)

    def _scale_after_mlp(self, written: Tensor) -> Tensor:
        if self._after_mlp is None:
            return torch.ones_like(written[:, :1], dtype=torch.float32)
        return self._after_mlp.scale(written)

    def _linear_after_mlp(self, written: Tensor) -> Tensor:
        return written if self._after_mlp is None else self._after_mlp.linear(written)

    def _unembedded(self, stream: Tensor) -> Tensor:
        return linear(stream.to(self._w_u.dtype), self._w_u).float()

    def _biases_of(self, sites: ModelSites) -> Tensor:
        """Return the logits of a stream of zeros, [vocabulary]."""
        zeros = torch.zeros(1, sites.d_model, dtype=self._w_u.dtype, device=self._w_u.device)
        return sites.unembedding(self._final.normed(zeros, zeros[:, :1])).detach().float()[0]

    def _held(self, sites: ModelSites, neurons: Tensor, means: Tensor) -> _Held:
        columns = sites.w_out[:, neurons.to(sites.w_out.device)]
        outputs = columns.T.to(self._w_u.device, torch.float32)
        directions = self._final.linear(self._linear_after_mlp(outputs))
        parts = self._w_u.split(_VOCABULARY_AT_ONCE)
        logits = torch.cat([directions @ part.float().T for part in parts], dim=1)
        return _Held(
            neurons=neurons.to(self._w_u.device),
            means=means[neurons].to(self._w_u.device, torch.float32),
            outputs=outputs,
            logits=torch.cat([logits, self._biases.unsqueeze(0)]),
        )
