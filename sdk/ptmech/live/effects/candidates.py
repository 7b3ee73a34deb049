"""What candidate refusal directions do to the first token of a reply.

Arditi et al. (2024), section 2.3 and appendix C, score every candidate three times: *bypass*, how
likely harmful prompts are refused once it is ablated; *induce*, how likely harmless ones are once
it is added; *KL*, how far ablating it moves what the model says to harmless ones. All three look at
one distribution, that of the reply's first token, so nothing has to be generated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ptmech.errors import DataError
from ptmech.live.effects.variants import (
    VariantAblation,
    VariantAddition,
    logits_of_variants,
    read_variants,
)
from ptmech.live.generation import TokenIds
from ptmech.live.model import LiveModel
from ptmech.live.sites import ModelSites
from ptmech.refusal.candidates import CANDIDATES
from ptmech.refusal.phrases import REFUSAL_PHRASES


class Baseline(NamedTuple):
    """Mean refusal scores of the model left alone."""

    harmful: float
    harmless: float


class DirectionEffects(NamedTuple):
    """Scores of each direction [directions] float64, NaN for one of length zero.

    Attributes
    ----------
    bypass, induce
        Mean refusal score in nats: of harmful prompts without the direction, of harmless ones with
        it added.
    kl
        Mean divergence of the unedited next-token distribution from the ablated one, harmless
        prompts, in nats.
    baseline
        The same scores without any intervention.
    """

    bypass: NDArray[np.float64]
    induce: NDArray[np.float64]
    kl: NDArray[np.float64]
    baseline: Baseline


def direction_effects(
    model: LiveModel,
    directions: ArrayLike,
    layers: Sequence[int],
    *,
    harmful: Sequence[TokenIds],
    harmless: Sequence[TokenIds],
    refusal_tokens: Sequence[int],
    batch_size: int = 64,
) -> DirectionEffects:
    """Score candidate directions by the first token of the replies.

    Parameters
    ----------
    model
        The stage they come from.
    directions
        [directions, d_model], mean(harmful) - mean(harmless), not normalised.
    layers
        The layer of each, as ``resid_pre``. There it is added, as long as it is, to every token;
        it is ablated at every residual site, layer and token.
    harmful, harmless
        Token ids of the rendered prompts.
    refusal_tokens
        With which tokens a refusal begins, see :func:`opening_tokens`.
    batch_size
        Prompts times directions that run together; one direction at least.

    Returns
    -------
    DirectionEffects
        One number a direction and score, and the baseline.

    Raises
    ------
    UnknownNameError
        A layer the model does not have.
    DataError
        No prompts, directions that are not finite or of another width than the model's, or refusal
        tokens that are none, all, or not in the vocabulary.
    """
    vectors = _checked(directions, layers, model)
    tokens = _checked_tokens(refusal_tokens, model.sites.vocabulary)
    for name, prompts in (("harmful", harmful), ("harmless", harmless)):
        if not prompts:
            raise DataError(f"there are no {name} prompts to score directions on")
    everyone = [*harmful, *harmless]
    sites, split = model.sites, len(harmful)
    unedited = logits_of_variants(sites, everyone, 1, batch_size=batch_size)[0]
    baseline = refusal_log_odds(unedited, tokens)
    bypass, induce, kl = np.full((3, len(vectors)), np.nan)
    alive = vectors.norm(dim=1) > 0

    def bypassed(logits: Tensor, rows: list[int]) -> Tensor:
        divergence = _divergence(unedited[rows].to(logits.device), logits)
        return torch.stack([refusal_log_odds(logits, tokens), divergence], dim=-1)

    def induced(logits: Tensor, _rows: list[int]) -> Tensor:
        return refusal_log_odds(logits, tokens)

    for chosen in _chunks(alive.nonzero()[:, 0].tolist(), batch_size):
        units = torch.nn.functional.normalize(vectors[chosen], dim=1)
        with model.intervene(*_ablations(model.sites, units)):
            found = read_variants(sites, everyone, len(chosen), bypassed, batch_size=batch_size)
        bypass[chosen] = found[:, :split, 0].mean(dim=1)
        kl[chosen] = found[:, split:, 1].mean(dim=1)

    for layer in sorted(set(layers)):
        here = [at for at, own in enumerate(layers) if own == layer and alive[at]]
        for chosen in _chunks(here, batch_size):
            n = len(chosen)
            added = VariantAddition(vectors=vectors[chosen], layers=layer, sites=("resid_pre",))
            with model.intervene(added):
                found = read_variants(
                    sites, harmless, n, induced, first_layer=layer, batch_size=batch_size
                )
            induce[chosen] = found.mean(dim=1)
    return DirectionEffects(
        bypass, induce, kl, Baseline(float(baseline[:split].mean()), float(baseline[split:].mean()))
    )


def candidate_table(
    model: LiveModel,
    places: Sequence[tuple[int, int]],
    directions: ArrayLike,
    *,
    harmful: Sequence[TokenIds],
    harmless: Sequence[TokenIds],
    refusal_tokens: Sequence[int] | None = None,
    batch_size: int = 64,
) -> pl.DataFrame:
    """Score the candidates of some positions and layers, as one table.

    Parameters
    ----------
    model, harmful, harmless, batch_size
        As for :func:`direction_effects`.
    places
        Position and layer of each direction.
    directions
        [places, d_model].
    refusal_tokens
        As for :func:`direction_effects`; those of the model's tokenizer if None.

    Returns
    -------
    polars.DataFrame
        With the columns of :data:`ptmech.refusal.candidates.CANDIDATES`.
    """
    positions, layers = zip(*places, strict=True) if places else ((), ())
    if refusal_tokens is None and harmless:
        refusal_tokens = opening_tokens(model.tokenizer, harmless[0])
    found = direction_effects(
        model,
        directions,
        layers,
        harmful=harmful,
        harmless=harmless,
        refusal_tokens=refusal_tokens or (),
        batch_size=batch_size,
    )
    columns = {
        "position": positions,
        "layer": layers,
        "norm": np.linalg.norm(np.asarray(directions, dtype=np.float64), axis=1),
        "refusal_score": found.bypass,
        "steering_score": found.induce,
        "kl_div_score": found.kl,
        "harmful_baseline": [found.baseline.harmful] * len(places),
        "harmless_baseline": [found.baseline.harmless] * len(places),
        "n_harmful": [len(harmful)] * len(places),
        "n_harmless": [len(harmless)] * len(places),
    }
    return pl.DataFrame(columns, schema=CANDIDATES, nan_to_null=True)


def refusal_log_odds(logits: Tensor, refusal_tokens: Tensor) -> Tensor:
    """Log-odds of the refusal tokens' total probability: ``log p - log(1 - p)``, float64.

    Parameters
    ----------
    logits
        [..., vocabulary].
    refusal_tokens
        [tokens] whole numbers, each once.
    """
    others = torch.ones(logits.shape[-1], dtype=torch.bool)
    others[refusal_tokens] = False
    exact = logits.double()
    refusing = exact[..., refusal_tokens].logsumexp(dim=-1)
    return refusing - exact[..., others].logsumexp(dim=-1)


def opening_tokens(
    tokenizer: Any, prompt: TokenIds, phrases: Sequence[str] = REFUSAL_PHRASES
) -> list[int]:
    """Find the tokens with which refusals begin, as they would stand after a prompt.

    Parameters
    ----------
    tokenizer
        The model's tokenizer.
    prompt
        Any rendered prompt: whether a reply begins with a space hangs on how prompts end.
    phrases
        What refusals begin with; the first letter is made a capital.

    Returns
    -------
    list of int
        The distinct first tokens, in order.

    Raises
    ------
    DataError
        No phrases, or an empty one.
    """
    context = tokenizer.decode(prompt)
    spaced = context[-1:].isspace() or prompt[-1] in tokenizer.all_special_ids
    before = tokenizer(context, add_special_tokens=False)["input_ids"]
    found: set[int] = set()
    for phrase in phrases:
        reply = phrase[:1].upper() + phrase[1:]
        whole = context + ("" if spaced else " ") + reply
        after = tokenizer(whole, add_special_tokens=False)["input_ids"]
        # Where the end of the prompt and the reply share a token, that token is the reply's.
        pairs = enumerate(zip(before, after, strict=False))
        at = next((i for i, (a, b) in pairs if a != b), len(before))
        if at >= len(after):
            raise DataError(f"the refusal phrase {phrase!r} has no tokens")
        found.add(int(after[at]))
    if not found:
        raise DataError("there are no refusal phrases")
    return sorted(found)


def _ablations(sites: ModelSites, units: Tensor) -> Iterator[VariantAblation]:
    """Ablate at every residual site; ``resid_pre`` above the first layer is the output below it."""
    yield VariantAblation(vectors=units, layers=0, sites=("resid_pre",))
    above = tuple(site for site in sites.residual_sites if site != "resid_pre")
    yield VariantAblation(vectors=units, layers="all", sites=above)


def _divergence(unedited: Tensor, edited: Tensor) -> Tensor:
    """KL(unedited || edited) of logits [..., vocabulary], float64 nats."""
    before, after = unedited.double().log_softmax(-1), edited.double().log_softmax(-1)
    return (before.exp() * (before - after)).sum(dim=-1)


def _chunks(numbers: Sequence[int], size: int) -> Iterator[list[int]]:
    size = max(1, size)
    for start in range(0, len(numbers), size):
        yield list(numbers[start : start + size])


def _checked(directions: ArrayLike, layers: Sequence[int], model: LiveModel) -> Tensor:
    array = np.asarray(directions, dtype=np.float64)
    if array.shape != (len(layers), model.d_model) or not np.isfinite(array).all():
        raise DataError(
            f"candidates must be finite and of shape ({len(layers)} layers, {model.d_model}), "
            f"not {array.shape}"
        )
    for layer in layers:
        model.sites.check("resid_pre", layer)
    return torch.from_numpy(array)


def _checked_tokens(refusal_tokens: Sequence[int], vocabulary: int) -> Tensor:
    distinct = sorted(set(refusal_tokens))
    if not 0 < len(distinct) < vocabulary or distinct[0] < 0 or distinct[-1] >= vocabulary:
        raise DataError(
            f"refusal tokens must be some, but not all, of the vocabulary's {vocabulary}, not "
            f"{distinct[:8]}"
        )
    return torch.tensor(distinct)
