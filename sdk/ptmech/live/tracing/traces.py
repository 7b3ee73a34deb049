"""Causal tracing of a live model: which activations carry what tells true from false.

Each cell (layer, token) of a trace is the run of the false prompt with ``resid_post`` of that one
layer and token replaced by its value in the true prompt's run, of this model or of another one (Du
et al. 2025, section 3). With noise instead, the run that is patched is the true prompt's own, its
subject blurred, and each cell puts one clean value back (Meng et al. 2022, section 2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ptmech._arguments import layer_numbers, whole_number
from ptmech.errors import DataError
from ptmech.knowledge.prompts import Pairs, PromptPair
from ptmech.knowledge.traces import Trace, make_trace
from ptmech.live.sites import ModelSites, Visitor
from ptmech.live.tracing.clean_run import CleanRun, clean_run
from ptmech.live.tracing.readouts import Reading, readings
from ptmech.live.tracing.sweep import TOKENS_AT_ONCE, Sweep, patch_sweep, require_drivable

if TYPE_CHECKING:
    from ptmech.live.model import LiveModel

NUMBERS_KEPT = 2**28
"""Numbers of clean runs in memory at once, at most."""


class Differences(NamedTuple):
    """True answer less false answer, float32 on the CPU.

    Attributes
    ----------
    grid
        [pairs, layers, tokens]: the patched runs; layers that are not patched are as `unpatched`.
    unpatched
        [pairs]: the run that is patched, left alone.
    reached
        [pairs]: the true prompt, left alone, in the same model.
    """

    grid: Tensor
    unpatched: Tensor
    reached: Tensor


_NOTHING = Differences(torch.zeros(()), torch.zeros(()), torch.zeros(()))


@torch.inference_mode()
def causal_trace(
    model: LiveModel,
    pairs: Pairs,
    source: LiveModel | None = None,
    *,
    layers: Sequence[int] | None = None,
    noise: float | None = None,
    samples: int = 10,
    seed: int = 0,
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> Trace:
    """Trace pairs of prompts through a model, exactly.

    Parameters
    ----------
    model
        The model whose runs are patched.
    pairs
        From :func:`ptmech.knowledge.pairs`, for this model's tokenizer.
    source
        The model whose true prompts' activations are patched in; None for `model` itself. An
        earlier stage into a later one is the paper's forward transfer, the other way round its
        backward transfer.
    layers
        The layers to patch; None for all.
    noise
        If given, the run that is patched is the true prompt's with Gaussian noise on its subject,
        this many standard deviations of the subjects' embeddings strong; 3 is usual. Each cell puts
        the value of the clean run back.
    samples, seed
        How often the noise is drawn, over which all is averaged, and how it is seeded.
    tokens_at_once
        See :func:`ptmech.live.tracing.sweep.patch_sweep`.

    Returns
    -------
    Trace
        As :func:`ptmech.knowledge.trace` reads it from an artifact. ``measure`` says how the
        answers were compared.

    Raises
    ------
    DataError
        Models of different shape or vocabulary, pairs without a known subject to blur, noise from
        another model or not above 0, no layers or one named twice; before anything runs. Also
        where interventions at positions or a frozen norm are active: a sweep is made of parts of
        forwards, and only interventions at all tokens fit it.
    UnknownNameError
        A layer the model does not have.
    UnsupportedModelError
        The model's blocks cannot be run one by one.

    Examples
    --------
    >>> pairs = knowledge.pairs(statements, model.tokenizer, n_pairs=8)  # doctest: +SKIP
    >>> live.causal_trace(model, pairs).by_role  # doctest: +SKIP
    """
    _require_arguments(model, pairs, source)
    every = range(model.n_layers)
    chosen = tuple(every if layers is None else sorted(layer_numbers(layers)))
    for layer in chosen:
        model.sites.check("resid_post", layer)
    require_drivable(model.sites)
    _require_vocabulary(model, pairs)
    donor = None if source is None or source.model is model.model else source
    if donor is not None:
        _require_alike(model, donor, pairs)
    sweep = partial(patch_sweep, model.sites, layers=chosen, tokens_at_once=tokens_at_once)
    whole_number("samples", samples)
    whole_number("seed", seed, least=0)
    if noise is None:
        trace = partial(_patch_false, model.sites, sweep, donor.sites if donor else None)
    elif not 0 < noise < np.inf:
        raise DataError(f"noise is a number of standard deviations above 0, not {noise}")
    elif donor is None:
        strength = noise * _embedding_spread(model.sites, pairs)
        trace = partial(_restore_true, model.sites, sweep, strength, samples, seed)
    else:
        raise DataError("noise is undone with the model's own values: it takes no other source")
    grid, unpatched, reached = (
        torch.cat(parts).numpy()
        for parts in zip(*(trace(some) for some in _chunks(model.sites, pairs)), strict=True)
    )
    names = {"source": (donor or model).name, "target": model.name}
    drawn = {} if noise is None else {"noise": noise, "samples": samples, "seed": seed}
    return make_trace(
        grid[:, list(chosen)],
        unpatched,
        reached,
        artifact=model.name,
        arguments={**names, "pairs": len(pairs), "layers": chosen, **drawn},
        layers=chosen,
        tokens=tuple(column.token for column in pairs.columns),
        roles=tuple(column.role for column in pairs.columns),
        form=pairs.form,
        measure=pairs.measure,
        pairs=pairs.frame,
        dataset="",
        known={},
        **names,
    )


def _require_arguments(model: Any, pairs: Any, source: Any) -> None:
    """Refuse what is no live model or no pairs."""
    for what in (model, *(() if source is None else (source,))):
        if not hasattr(what, "sites"):
            raise DataError(f"expected a live model, not {type(what).__name__}: live.open(...)")
    if not isinstance(pairs, Pairs):
        raise DataError(f"expected pairs, not {type(pairs).__name__}: knowledge.pairs(...)")


def _patch_false(
    sites: ModelSites,
    sweep: Callable[..., Sweep],
    donor: ModelSites | None,
    pairs: Sequence[PromptPair],
) -> Differences:
    """Patch the true prompts' values into the false prompts' runs."""
    begin, columns = _traced(pairs)
    # Up to the first difference one model computes the same in both runs; two models never do.
    first = [0 if donor else min(p.differing, default=begin + columns) - begin for p in pairs]
    n = len(pairs)
    total = _NOTHING
    for reading in _readings(pairs):
        true = _with([p.true_tokens for p in pairs], reading)
        false = _with([p.false_tokens for p in pairs], reading)
        both = clean_run(sites, torch.cat([true, false]), begin=begin)
        given = both.outputs[:n] if donor is None else clean_run(donor, true, begin=begin).outputs
        found = sweep(
            both.rows(slice(n, None)),
            given[:, :, :columns],
            partial(reading, sites),
            reads=reading.reads,
            first=first,
        )
        reached = _read_clean(sites, both.rows(slice(n)), reading)
        total = _added(total, Differences(found.grid, found.unpatched, reached), reading.sign)
    return total


def _restore_true(
    sites: ModelSites,
    sweep: Callable[..., Sweep],
    strength: float,
    samples: int,
    seed: int,
    pairs: Sequence[PromptPair],
) -> Differences:
    """Blur the true prompts' subjects and put their clean values back; mean over the samples."""
    begin, columns = _traced(pairs)
    start, stop = _subject(pairs[0])
    # [pairs, samples, tokens, d_model]; the noise of a pair hangs on nothing but it and the seed.
    shape = (samples, stop - start, sites.d_model)
    noise = strength * torch.stack(
        [
            torch.from_numpy(
                np.random.default_rng([seed, p.true_uid, p.false_uid]).standard_normal(
                    shape, dtype=np.float32
                )
            )
            for p in pairs
        ]
    )
    total = _NOTHING
    for reading in _readings(pairs):
        tokens = _with([p.true_tokens for p in pairs], reading)
        clean = clean_run(sites, tokens, begin=begin)
        reached = _read_clean(sites, clean, reading)
        for sample in noise.unbind(dim=1):
            blurred = clean_run(
                sites, tokens, begin=begin, edit_embeddings=_blur(sample, start - begin)
            )
            found = sweep(
                blurred,
                clean.outputs[:, :, :columns],
                partial(reading, sites),
                reads=reading.reads,
                first=[start - begin] * len(pairs),
            )
            part = Differences(found.grid, found.unpatched, reached)
            total = _added(total, part, reading.sign / samples)
    return total


def _blur(noise: Tensor, at: int) -> Visitor:
    """Return what adds noise [rows, tokens, d_model] to a stream, from a column on."""

    def add(stream: Tensor) -> Tensor:
        changed = stream.clone()
        changed[:, at : at + noise.shape[1]] += noise.to(changed)
        return changed

    return add


def _embedding_spread(sites: ModelSites, pairs: Pairs) -> float:
    """Return the standard deviation of the subjects' token embeddings, all numbers together."""
    start, stop = _subject(pairs[0])
    tokens = [token for pair in pairs for token in pair.true_tokens[start:stop]]
    # The module, not its weight: some models scale what it holds.
    embedding = sites.body.get_submodule(sites.architecture.embedding)
    return float(embedding(torch.tensor(tokens, device=sites.device)).float().std())


def _subject(pair: PromptPair) -> tuple[int, int]:
    if pair.subject is None:
        raise DataError("noise needs to know the subject's tokens, and these pairs do not say them")
    return pair.subject


def _traced(pairs: Sequence[PromptPair]) -> tuple[int, int]:
    """Return the first traced token, and how many there are."""
    begin = pairs[0].traced_from
    return begin, len(pairs[0].true_tokens) - begin


def _readings(pairs: Sequence[PromptPair]) -> list[Reading]:
    return readings([p.true_answer for p in pairs], [p.false_answer for p in pairs])


def _with(prompts: Sequence[Sequence[int]], reading: Reading) -> Tensor:
    """Return prompts with what is to follow them [pairs, tokens]."""
    return torch.tensor(
        [[*prompt, *more] for prompt, more in zip(prompts, reading.continuations, strict=True)]
    )


def _read_clean(sites: ModelSites, run: CleanRun, reading: Reading) -> Tensor:
    stream = run.outputs[:, -1, -reading.reads :]
    return reading(sites, stream, torch.arange(len(stream))).cpu()


def _added(total: Differences, part: Differences, factor: float) -> Differences:
    return Differences(*(old + factor * new for old, new in zip(total, part, strict=True)))


def _chunks(sites: ModelSites, pairs: Pairs) -> Iterator[Sequence[PromptPair]]:
    """Cut pairs into lots whose clean runs fit into memory."""
    tokens = len(pairs[0].true_tokens)
    # Two runs a pair; keys and values of all tokens are at most as wide as the stream.
    numbers = 2 * sites.n_layers * sites.d_model * (2 * tokens + len(pairs.columns))
    size = max(1, NUMBERS_KEPT // numbers)
    for at in range(0, len(pairs), size):
        yield pairs.items[at : at + size]


def _require_vocabulary(model: LiveModel, pairs: Pairs) -> None:
    highest = max(
        token
        for pair in pairs
        for part in (pair.true_tokens, pair.false_tokens, pair.true_answer, pair.false_answer)
        for token in part
    )
    if highest >= model.sites.vocabulary:
        raise DataError(
            f"token {highest} lies outside of the vocabulary of {model.name}: these pairs were "
            "made with another tokenizer"
        )


def _require_alike(model: LiveModel, source: LiveModel, pairs: Pairs) -> None:
    """Check that one model's activations can stand in the other's place."""
    shapes = [(each.n_layers, each.d_model) for each in (source, model)]
    if shapes[0] != shapes[1]:
        raise DataError(
            f"activations of {source.name} cannot be patched into {model.name}: {shapes[0][0]} "
            f"layers of {shapes[0][1]} against {shapes[1][0]} of {shapes[1][1]}"
        )
    used = sorted({t for pair in pairs for t in (*pair.true_tokens, *pair.false_tokens)})
    one, other = (each.tokenizer.convert_ids_to_tokens(used) for each in (source, model))
    differing = [
        token for token, mine, yours in zip(used, one, other, strict=True) if mine != yours
    ]
    if differing:
        raise DataError(
            f"{source.name} and {model.name} do not split these prompts alike: token "
            f"{differing[0]} is not the same in both"
        )
