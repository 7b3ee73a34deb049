"""Refusal rates of one stage, with and without interventions along refusal directions.

Removing a direction from harmful prompts, adding it to harmless ones (Arditi et al., section 3; Du
et al., section 6), with the stage's own direction, those of the other stages, and a random one.
A rate alone does not tell a model that no longer refuses from one that is broken, so every line
carries the loss on plain text under the same intervention.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest
from torch import nn

from ptmech.errors import DataError, unknown
from ptmech.live.generation import TokenIds, greedy_completions, next_token_loss
from ptmech.live.interventions import Intervention, ablate, add, intervene
from ptmech.live.sites import ModelSites
from ptmech.refusal.tables import COMPLETIONS, SCORES

PromptSet = Literal["harmful", "harmless"]


class RefusalScores(NamedTuple):
    """Both tables: one line a condition, and one line a completion."""

    scores: pl.DataFrame
    completions: pl.DataFrame


@dataclass(frozen=True)
class _Condition:
    """One way to run one set of prompts."""

    prompts: PromptSet
    intervention: Literal["none", "ablate", "add"] = "none"
    direction: str = "none"
    direction_stage: str | None = None
    layer: int | None = None
    scale: float | None = None
    length: float | None = None
    edit: Intervention | None = None

    def applied_to(self, model: nn.Module) -> AbstractContextManager[None]:
        return intervene(model, *(() if self.edit is None else (self.edit,)))


def refusal_scores(
    model: nn.Module,
    tokenizer: Any,
    *,
    stage: str,
    layer: int,
    directions: Mapping[str, ArrayLike],
    harmful: Mapping[int, TokenIds],
    harmless: Mapping[int, TokenIds],
    plain_texts: Sequence[TokenIds],
    is_refusal: Callable[[str], bool],
    max_new_tokens: int = 32,
    scale: float = 1.0,
    seed: int = 0,
    batch_size: int = 32,
) -> RefusalScores:
    """Complete harmful and harmless prompts under each intervention and count the refusals.

    The conditions: both prompt sets left alone; on the harmful ones a direction ablated at every
    residual site, layer and token; on the harmless ones ``scale`` times a direction added to
    ``resid_pre`` of `layer` at every token. Ablated are the stage's own direction, each other
    stage's, and a random one; added are the same, the other stages' also brought to the own
    direction's length, the random one at that length only.

    Parameters
    ----------
    model, tokenizer
        The stage that is scored, and its tokenizer.
    stage
        Its name.
    layer
        The layer the directions were read from, as ``resid_pre``.
    directions
        Stage name to mean(harmful) - mean(harmless) [d_model], not normalised; the stage itself
        must be among them.
    harmful, harmless
        ``row_uid`` to the token ids of the rendered prompt.
    plain_texts
        Token ids of ordinary texts, for the coherence figure.
    is_refusal
        Tells a refusal by its text.
    max_new_tokens
        Length at which completions are cut off.
    scale
        Factor of the added directions.
    seed
        Of the random direction.
    batch_size
        Prompts that run together.

    Returns
    -------
    RefusalScores
        ``scores``: a line a condition. ``stage``, ``prompts``, ``intervention`` (none, ablate,
        add), ``direction`` (none, own, transferred, transferred_own_length, random),
        ``direction_stage`` (null where there is none), ``layer``, ``scale`` and ``length`` of the
        added vector (null where they mean nothing), ``n``, ``refusals``, ``refusal_rate`` with its
        95 % Wilson interval ``low`` to ``high``, ``plain_text_loss`` in nats a token.
        ``completions``: the same first five columns, ``row_uid``, ``completion``, ``refused``.

    Raises
    ------
    UnknownNameError
        The stage has no direction, or the model no such layer.
    DataError
        No prompts or plain texts, or a direction of the wrong width, not finite, or zero.
    """
    prompt_sets: Mapping[PromptSet, Mapping[int, TokenIds]] = {
        "harmful": harmful,
        "harmless": harmless,
    }
    for name, prompts in prompt_sets.items():
        if not prompts:
            raise DataError(f"there are no {name} prompts to score")
    if not plain_texts:
        raise DataError("there are no plain texts to measure coherence on")
    sites = ModelSites.of(model)
    sites.check("resid_pre", layer)
    vectors = _checked_directions(directions, stage=stage, d_model=sites.d_model)
    conditions = _conditions(vectors, stage=stage, layer=layer, scale=scale, seed=seed)

    unedited_loss = next_token_loss(model, plain_texts)
    score_rows: list[dict[str, Any]] = []
    completion_rows: list[dict[str, Any]] = []
    for condition in conditions:
        prompts = prompt_sets[condition.prompts]
        with condition.applied_to(model):
            texts = greedy_completions(
                model,
                tokenizer,
                list(prompts.values()),
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
            )
            edited = condition.edit is not None
            loss = next_token_loss(model, plain_texts) if edited else unedited_loss
        refused = [is_refusal(text) for text in texts]
        what = {
            "stage": stage,
            "prompts": condition.prompts,
            "intervention": condition.intervention,
            "direction": condition.direction,
            "direction_stage": condition.direction_stage,
        }
        score_rows.append(
            {
                **what,
                "layer": condition.layer,
                "scale": condition.scale,
                "length": condition.length,
                **_rate(refused),
                "plain_text_loss": loss,
            }
        )
        completion_rows.extend(
            {**what, "row_uid": uid, "completion": text, "refused": is_refused}
            for uid, text, is_refused in zip(prompts, texts, refused, strict=True)
        )
    return RefusalScores(
        pl.DataFrame(score_rows, schema=SCORES),
        pl.DataFrame(completion_rows, schema=COMPLETIONS),
    )


def _checked_directions(
    directions: Mapping[str, ArrayLike], *, stage: str, d_model: int
) -> dict[str, NDArray[np.float64]]:
    if stage not in directions:
        raise unknown("stage", stage, directions)
    vectors = {name: np.asarray(vector, dtype=np.float64) for name, vector in directions.items()}
    for name, vector in vectors.items():
        if vector.shape != (d_model,) or not np.isfinite(vector).all() or not vector.any():
            raise DataError(
                f"the refusal direction of {name} must be a finite, non-zero vector of {d_model} "
                f"numbers; its shape is {vector.shape}"
            )
    return vectors


def _conditions(
    vectors: Mapping[str, NDArray[np.float64]], *, stage: str, layer: int, scale: float, seed: int
) -> list[_Condition]:
    own_length = float(np.linalg.norm(vectors[stage]))

    def at_own_length(vector: NDArray[np.float64]) -> NDArray[np.float64]:
        return vector * (own_length / np.linalg.norm(vector))

    def ablation(direction: str, source: str | None, vector: NDArray[np.float64]) -> _Condition:
        return _Condition("harmful", "ablate", direction, source, layer, edit=ablate(vector))

    def addition(direction: str, source: str | None, vector: NDArray[np.float64]) -> _Condition:
        return _Condition(
            "harmless",
            "add",
            direction,
            source,
            layer,
            scale,
            abs(scale) * float(np.linalg.norm(vector)),
            add(vector, layer, scale=scale),
        )

    chance = np.random.default_rng(seed).standard_normal(len(vectors[stage]))
    others = {name: vector for name, vector in vectors.items() if name != stage}
    return [
        _Condition("harmful"),
        _Condition("harmless"),
        ablation("own", stage, vectors[stage]),
        *(ablation("transferred", name, vector) for name, vector in others.items()),
        ablation("random", None, chance),
        addition("own", stage, vectors[stage]),
        *(addition("transferred", name, vector) for name, vector in others.items()),
        *(
            addition("transferred_own_length", name, at_own_length(vector))
            for name, vector in others.items()
        ),
        addition("random", None, at_own_length(chance)),
    ]


def _rate(refused: Sequence[bool]) -> dict[str, float]:
    n, refusals = len(refused), sum(refused)
    interval = binomtest(refusals, n).proportion_ci(0.95, method="wilson")
    return {
        "n": n,
        "refusals": refusals,
        "refusal_rate": refusals / n,
        "low": float(interval.low),
        "high": float(interval.high),
    }
