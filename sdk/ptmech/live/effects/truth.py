"""Asking a running model whether statements are true, with truth directions added to them.

The four worked examples before a statement are the same for many questions, and nothing that is
added to the statement reaches them. So their keys and values are computed once for each order of
the examples, the first ones once for all orders that begin with them; those of the statement's
beginning once for each statement, and only its last two tokens, the question and the answer once
for each direction, and that only from the first layer on where a direction is added
(:mod:`ptmech.live.effects.branching`). Prompts run beside each other where they have equally many
tokens, so that nothing is padded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache
from typing_extensions import override

from ptmech._arguments import whole_number
from ptmech._worked_examples import ANSWERS, QUESTION
from ptmech.errors import DataError, unknown
from ptmech.live.edits import SiteEdit
from ptmech.live.effects.branching import branching, keys_and_values, with_rows
from ptmech.live.layout import LayoutTracker, in_pieces
from ptmech.live.model import LiveModel
from ptmech.live.packing.cost import tokens_at_once
from ptmech.live.packing.forwards import forwards
from ptmech.live.packing.support import without_tree
from ptmech.live.sites import ModelSites
from ptmech.truth.steering import EFFECTS, Questions, effect_row, random_shift

Tokens = tuple[int, ...]


def stage_effects(
    model: LiveModel,
    stage: str,
    shifts: Mapping[str, NDArray[np.float64]],
    questions: Questions,
    *,
    layer: int,
    layers: Sequence[int],
    n_bootstrap: int = 1000,
    seed: int = 0,
    batch_size: int = 32,
) -> pl.DataFrame:
    """Steer one stage's answers with every stage's truth direction and with a random one.

    Parameters
    ----------
    model
        The stage that is asked.
    stage
        Its name.
    shifts
        Stage to what is added to false statements and subtracted from true ones [d_model], as
        :func:`ptmech.truth.steering.truth_shift` makes it; the stage itself must be among them.
    questions
        What is asked.
    layer
        Where the directions were read, for the record.
    layers
        Where they are added.
    n_bootstrap, seed
        Of the bootstrap; the seed also draws the random direction.
    batch_size
        Prompts that run together.

    Returns
    -------
    polars.DataFrame
        The frame of :class:`ptmech.truth.TruthEffects`: the own direction, the other stages' in
        their order, the random one.

    Raises
    ------
    UnknownNameError
        The stage has no direction, or the model no such layer.
    DataError
        A direction of another width than the model's, or a prompt that does not come apart into
        tokens as it must.
    """
    if stage not in shifts:
        raise unknown("stage", stage, shifts)
    conditions: list[tuple[str, str | None, NDArray[np.float64]]] = [
        ("own", stage, shifts[stage]),
        *(("transferred", name, shift) for name, shift in shifts.items() if name != stage),
        ("random", None, random_shift(shifts[stage], seed)),
    ]
    answers = answer_probabilities(
        model,
        questions,
        [np.zeros_like(shifts[stage]), *(shift for _, _, shift in conditions)],
        layers=layers,
        batch_size=batch_size,
    )
    rows = [
        {
            "stage": stage,
            "direction": direction,
            "direction_stage": source,
            "dataset": questions.dataset,
            "layer": layer,
            "layers": list(layers),
            "length": float(np.linalg.norm(shift)),
            "n": len(questions.truths),
            **effect_row(answers[0], after, questions, n_bootstrap=n_bootstrap, seed=seed),
        }
        for (direction, source, shift), after in zip(conditions, answers[1:], strict=True)
    ]
    return pl.DataFrame(rows, schema=EFFECTS)


@torch.inference_mode()
@in_pieces()
def answer_probabilities(
    model: LiveModel,
    questions: Questions,
    shifts: Sequence[NDArray[np.float64]],
    *,
    layers: Sequence[int],
    batch_size: int = 32,
) -> NDArray[np.float64]:
    """Return how likely " TRUE" and " FALSE" are as answers, under each of several shifts.

    Parameters
    ----------
    model
        The model that is asked, under whatever interventions at all tokens are active.
    questions
        What is asked.
    shifts
        Vectors [d_model], added at ``resid_post`` to the last two tokens of false statements and
        subtracted from those of true ones.
    layers
        Where.
    batch_size
        Prompts that run together.

    Returns
    -------
    array of shape [shifts, n, 2], float64
        Probability of the whole word: the product over its tokens.

    Raises
    ------
    UnknownNameError
        The model has no such layer.
    DataError
        A shift of another width than the model's; a statement of one token, or a word of the answer
        that the tokenizer does not separate from the question.
    """
    whole_number("batch_size", batch_size)
    prompts = _encode(model.tokenizer, questions)
    vectors = torch.from_numpy(np.stack(shifts))
    signs = torch.from_numpy(np.where(questions.truths, -1.0, 1.0))
    lead_ins = _LeadIns(model.sites, prompts)
    lowest = min(layers, default=0)
    found = np.empty((len(shifts), len(prompts), len(ANSWERS)))
    for rows in _equally_long(prompts, max(1, batch_size // len(shifts))):
        group = [prompts[row] for row in rows]
        first = group[0]
        tokens = torch.tensor([prompt.tokens for prompt in group], device=model.device)
        cache = lead_ins.cache(group)
        if first.steered > first.lead_in:
            _run(model.sites, tokens[:, first.lead_in : first.steered], cache)
        # What each row is shifted by, once it has become one row a shift.
        by = (vectors[:, None] * signs[rows][None, :, None]).flatten(end_dim=1)
        shift = _RowShift(
            by=by,
            layers=layers,
            sites=("resid_post",),
            positions=torch.arange(first.steered, first.steered + 2),
        )
        for_all = with_rows(
            cache, lambda held, at: held if at < lowest else held.repeat(len(shifts), 1, 1, 1)
        )
        with model.intervene(shift), branching(model.sites, len(shifts), lowest):
            probabilities = _answer_probabilities(
                model.sites, tokens[:, first.steered :], for_all, first.answers
            )
        found[:, rows] = probabilities.reshape(len(shifts), len(rows), -1).cpu().numpy()
    return found


@dataclass(frozen=True, eq=False, kw_only=True)
class _RowShift(SiteEdit):
    """Add to each row of a call a vector of its own: `by` [rows, d_model]."""

    by: Tensor

    @property
    @override
    def width(self) -> int:
        return self.by.shape[-1]

    @override
    def __call__(self, values: Tensor) -> Tensor:
        return values + self.by.unsqueeze(1).to(values.device, values.dtype)

    @override
    def edited(self, stream: Tensor, layout: LayoutTracker) -> Tensor | None:
        index, present = layout.layout_of_part.locate(self._tokens, stream)
        if not bool(present.any()):
            return None  # the answer's own tokens: the statement is in the cache
        # The layout knows of one row a question, all of which have equally many tokens.
        index = index[:1]
        rows = torch.arange(len(stream), device=stream.device).unsqueeze(1)
        changed = stream.clone()
        changed[rows, index] = self(stream[rows, index])
        return changed

    @property
    def _tokens(self) -> Tensor:
        if self.positions is None:
            raise DataError("a shift of rows needs the positions it acts on")
        return self.positions


class _Prompt(NamedTuple):
    """A question as tokens.

    `lead_in` tokens are the examples; the statement's last two tokens are `steered` and the one
    after it. `answers` are the tokens of " TRUE" and " FALSE".
    """

    tokens: Tokens
    lead_in: int
    steered: int
    answers: tuple[Tokens, ...]


def _encode(tokenizer: Any, questions: Questions) -> list[_Prompt]:
    """Tokenise the questions, each as a whole: pieces of a text may have other tokens."""
    prompts: list[_Prompt] = []
    for lead_in, statement in zip(questions.lead_ins, questions.statements, strict=True):
        text = f"{lead_in}{statement}{QUESTION}"
        encoded = tokenizer(text, return_offsets_mapping=True)
        tokens, spans = tuple(encoded["input_ids"]), encoded["offset_mapping"]
        # A beginning token spans no characters; the first token of the statement may begin with
        # the line break before it.
        examples = next(at for at, (_, stop) in enumerate(spans) if stop > len(lead_in))
        end = len(lead_in) + len(statement)
        last = max(at for at, (start, stop) in enumerate(spans) if start < end and stop > start)
        if last - 1 < examples:
            raise DataError(f"a statement needs two tokens to be steered at, not one: {statement}")
        answers = tuple(_answer(tokenizer, text, tokens, answer) for answer in ANSWERS)
        prompts.append(_Prompt(tokens, examples, last - 1, answers))
    return prompts


def _answer(tokenizer: Any, text: str, tokens: Tokens, answer: str) -> Tokens:
    whole = tuple(tokenizer(text + answer)["input_ids"])
    if whole[: len(tokens)] != tokens or len(whole) == len(tokens):
        raise DataError(f"the tokenizer does not separate the answer {answer!r} from the question")
    return whole[len(tokens) :]


def _equally_long(prompts: Sequence[_Prompt], most: int) -> Iterator[list[int]]:
    """Yield the numbers of prompts that can run beside each other, at most so many."""
    alike: defaultdict[Any, list[int]] = defaultdict(list)
    for row, prompt in enumerate(prompts):
        shape = (len(prompt.tokens), prompt.lead_in, prompt.steered, prompt.answers)
        alike[shape].append(row)
    for rows in alike.values():
        for start in range(0, len(rows), most):
            yield rows[start : start + most]


class _LeadIns:
    """Keys and values of every order of the examples; what several begin with, computed once."""

    def __init__(self, sites: ModelSites, prompts: Sequence[_Prompt]) -> None:
        # Of each lead-in, for every layer, keys and values [heads, tokens, width].
        self._kept: dict[Tokens, list[tuple[Tensor, Tensor]]] = {}
        by_length: defaultdict[int, list[Tokens]] = defaultdict(list)
        for lead_in in dict.fromkeys(prompt.tokens[: prompt.lead_in] for prompt in prompts):
            by_length[len(lead_in)].append(lead_in)
        packing = "batches" if without_tree(sites.body.config) else "tree"
        for length, alike in by_length.items():
            for forward in forwards(
                sites,
                alike,
                np.broadcast_to(np.arange(length), (len(alike), length)),
                np.arange(len(alike)),
                packing=packing,
                tokens_per_batch=tokens_at_once(packing, sites.device.type),
            ):
                cache = DynamicCache()
                sites.body(**forward.arguments, past_key_values=cache, use_cache=True)
                # Where the tokens of each lead-in are, counted through all sequences.
                places = forward.of_rows(forward.wanted.unsqueeze(1)).squeeze(2)
                for row, at in zip(forward.rows.tolist(), places, strict=True):
                    self._kept[alike[row]] = [
                        (_picked(keys, at), _picked(values, at))
                        for keys, values in keys_and_values(cache)
                    ]

    def cache(self, prompts: Sequence[_Prompt]) -> DynamicCache:
        """Return a cache of its own for prompts whose lead-ins are equally long."""
        kept = [self._kept[prompt.tokens[: prompt.lead_in]] for prompt in prompts]
        # Made without the configuration, a cache keeps every token also where attention slides.
        picked = DynamicCache()
        for number, held in enumerate(zip(*kept, strict=True)):
            keys, values = (torch.stack(part) for part in zip(*held, strict=True))
            picked.update(keys, values, number)
        return picked


def _picked(values: Tensor, places: Tensor) -> Tensor:
    """Pick tokens of [sequences, heads, tokens, width]: [heads, picked, width]."""
    at, tokens = places.to(values.device), values.shape[2]
    return values[at // tokens, :, at % tokens].transpose(0, 1)


def _run(sites: ModelSites, tokens: Tensor, cache: DynamicCache) -> Tensor:
    """Run tokens [rows, tokens] behind what a cache holds; return the normed stream."""
    return sites.body(input_ids=tokens, past_key_values=cache, use_cache=True).last_hidden_state


def _answer_probabilities(
    sites: ModelSites, tokens: Tensor, cache: DynamicCache, answers: Sequence[Tokens]
) -> Tensor:
    """Return the probability [rows, answers] of whole answers, float64; fills the cache."""
    first = _log_probabilities(sites, _run(sites, tokens, cache)[:, -1:])
    found: list[Tensor] = []
    for answer in answers:
        expected = torch.tensor(answer, device=tokens.device)
        logs = _of_tokens(first, expected[:1])
        if len(answer) > 1:
            behind = _run(sites, expected[:-1].expand(len(tokens), -1), with_rows(cache, _same))
            logs = logs + _of_tokens(_log_probabilities(sites, behind), expected[1:])
        found.append(logs.exp())
    return torch.stack(found, dim=1)


def _same(held: Tensor, _layer: int) -> Tensor:
    return held


def _log_probabilities(sites: ModelSites, normed: Tensor) -> Tensor:
    return sites.project(normed).double().log_softmax(dim=-1)


def _of_tokens(logs: Tensor, tokens: Tensor) -> Tensor:
    """Add up the log probabilities [rows] of given tokens [tokens]."""
    at = torch.arange(len(tokens), device=logs.device)
    return logs[:, at, tokens.to(logs.device)].sum(dim=1)
