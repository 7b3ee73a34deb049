"""Refusal rates of one stage, with and without interventions along refusal directions.

Removing a direction from harmful prompts, adding it to harmless ones (Arditi et al. 2024, section
3; Du et al. 2025, section 5), with the stage's own direction, those of other stages, and a random
one. A rate alone does not tell a model that no longer refuses from one that is broken, so every
line carries the loss on plain text under the same intervention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest
from torch import Tensor

from ptmech.errors import DataError, unknown
from ptmech.live.effects.variants import (
    VariantAblation,
    VariantAddition,
    VariantEdit,
    complete_variants,
    losses_of_variants,
)
from ptmech.live.generation import TokenIds
from ptmech.live.model import LiveModel
from ptmech.live.sites import RESIDUAL_SITES
from ptmech.refusal.phrases import is_refusal as opens_with_refusal
from ptmech.refusal.tables import COMPLETIONS, SCORES

Vector = NDArray[np.float64]


class RefusalEffects(NamedTuple):
    """Both tables: one line a condition, and one line a completion."""

    scores: pl.DataFrame
    completions: pl.DataFrame


@dataclass(frozen=True)
class _Condition:
    """One way to run one set of prompts."""

    intervention: Literal["none", "ablate", "add"]
    direction: str = "none"
    direction_stage: str | None = None
    layer: int | None = None
    """Where it was read from, and where it is added."""
    scale: float | None = None
    vector: Vector | None = None
    """What is ablated, or added as it is."""

    @property
    def length(self) -> float | None:
        """Of what is added; an ablation has none."""
        if self.vector is None or self.intervention == "ablate":
            return None
        return float(np.linalg.norm(self.vector))


def refusal_effects(
    model: LiveModel,
    *,
    stage: str,
    layer: int | Mapping[str, int],
    directions: Mapping[str, ArrayLike],
    harmful: Mapping[int, TokenIds],
    harmless: Mapping[int, TokenIds],
    plain_texts: Sequence[TokenIds],
    scales: Sequence[float] = (1.0,),
    unit_length: bool = False,
    sites: Sequence[str] = ("resid_pre",),
    max_new_tokens: int = 16,
    seed: int = 0,
    batch_size: int = 256,
    is_refusal: Callable[[str], bool] = opens_with_refusal,
) -> RefusalEffects:
    """Complete harmful and harmless prompts under each intervention and count the refusals.

    The conditions: both prompt sets left alone; on the harmful ones a direction ablated at every
    residual site, layer and token; on the harmless ones each scale times a direction added at its
    layer at every token. Ablated are the stage's own direction, each other stage's, and a random
    one; added are the same, the other stages' also brought to the own direction's length, the
    random one at that length only. At unit length all are equally long to begin with.

    A direction belongs to the stage it comes from: it was read at that stage's position and layer,
    and is added at that layer whichever stage is run. Scales belong to the stage that is run: they
    say how hard this model is pushed, its own direction, the others' and the random one alike.

    Parameters
    ----------
    model
        The stage that is scored.
    stage
        Its name.
    layer
        The layer the directions were read from, as ``resid_pre``: one for all, or one for each
        stage.
    directions
        Stage name to mean(harmful) - mean(harmless) [d_model], not normalised; the stage itself
        must be among them.
    harmful, harmless
        ``row_uid`` to the token ids of the rendered prompt.
    plain_texts
        Token ids of ordinary texts, for the coherence figure.
    scales
        Factors of the added directions.
    unit_length
        Add directions of length one, as Du et al. do, instead of the differences as they are.
    sites
        Where a direction is added: the input of the layer, or all three residual sites.
    max_new_tokens
        Length at which completions are cut off.
    seed
        Of the random direction.
    batch_size
        Prompts times conditions that run together.
    is_refusal
        Tells a refusal by its text.

    Returns
    -------
    RefusalEffects
        With the columns of :data:`ptmech.refusal.tables.SCORES` and ``COMPLETIONS``, which
        :class:`ptmech.refusal.RefusalScores` describes.

    Raises
    ------
    UnknownNameError
        The stage has no direction, or the model no such layer or site.
    DataError
        No prompts, plain texts, scales or sites; a scale that is not finite or given twice; a
        direction of the wrong width, not finite, or zero.
    """
    prompts = {"harmful": harmful, "harmless": harmless}
    for name, rows in prompts.items():
        if not rows:
            raise DataError(f"there are no {name} prompts to score")
    if not plain_texts:
        raise DataError("there are no plain texts to measure coherence on")
    if not scales or not np.isfinite(scales).all() or len(set(scales)) < len(scales):
        raise DataError(f"scales must be finite numbers, each once, not {list(scales)}")
    if not sites:
        raise DataError(f"directions are added at some of {', '.join(RESIDUAL_SITES)}; none given")
    for site in sites:
        if site not in RESIDUAL_SITES:
            raise unknown("residual site", site, RESIDUAL_SITES)
    found = _checked_directions(directions, stage=stage, d_model=model.d_model)
    vectors = {name: _at_unit_length(v) for name, v in found.items()} if unit_length else found
    layers = _layers_of(layer, vectors, model)
    conditions = {
        "harmful": _ablations(vectors, layers, stage=stage, seed=seed),
        "harmless": _additions(
            vectors, layers, stage=stage, scales=scales, seed=seed, equally_long=unit_length
        ),
    }
    first_layer = {"harmful": 0, "harmless": min(layers.values())}

    def edits(of: Sequence[_Condition], kind: str) -> Iterator[VariantEdit]:
        if kind == "harmful":
            yield VariantAblation(
                vectors=_stacked(of, model.d_model, unit=True), layers="all", sites="residual"
            )
            return
        for place in dict.fromkeys(layers.values()):
            vectors = _stacked(of, model.d_model, unit=False, layer=place)
            yield VariantAddition(vectors=vectors, layers=place, sites=tuple(sites))

    def losses(of: Sequence[_Condition], kind: str) -> list[float]:
        with model.intervene(*edits(of, kind)):
            return losses_of_variants(
                model.sites, plain_texts, len(of), first_layer=first_layer[kind]
            )

    # Left alone is left alone, whichever prompts follow: once is enough.
    unedited, *added = losses(conditions["harmless"], "harmless")
    losses_of = {
        "harmful": [unedited, *losses(conditions["harmful"][1:], "harmful")],
        "harmless": [unedited, *added],
    }
    score_rows: list[dict[str, Any]] = []
    completion_rows: list[dict[str, Any]] = []
    for kind, rows in prompts.items():
        with model.intervene(*edits(conditions[kind], kind)):
            texts = complete_variants(
                model.model,
                model.tokenizer,
                list(rows.values()),
                len(conditions[kind]),
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                first_layer=first_layer[kind],
            )
        for condition, completions, loss in zip(
            conditions[kind], texts, losses_of[kind], strict=True
        ):
            refused = [is_refusal(text) for text in completions]
            what = {
                "stage": stage,
                "prompts": kind,
                "intervention": condition.intervention,
                "direction": condition.direction,
                "direction_stage": condition.direction_stage,
                "scale": condition.scale,
            }
            score_rows.append(
                {
                    **what,
                    "layer": condition.layer,
                    "length": condition.length,
                    **_rate(refused),
                    "plain_text_loss": loss,
                }
            )
            completion_rows.extend(
                {**what, "row_uid": uid, "completion": text, "refused": is_refused}
                for uid, text, is_refused in zip(rows, completions, refused, strict=True)
            )
    return RefusalEffects(
        pl.DataFrame(score_rows, schema=SCORES),
        pl.DataFrame(completion_rows, schema=COMPLETIONS),
    )


def _ablations(
    vectors: Mapping[str, Vector], layers: Mapping[str, int], *, stage: str, seed: int
) -> list[_Condition]:
    random = _random(vectors[stage], seed)
    directions: list[tuple[str, str | None, Vector]] = [
        ("own", stage, vectors[stage]),
        *(("transferred", name, vector) for name, vector in vectors.items() if name != stage),
        ("random", None, random),
    ]
    return [
        _Condition("none"),
        *(
            _Condition("ablate", direction, source, layers[source or stage], vector=vector)
            for direction, source, vector in directions
        ),
    ]


def _additions(
    vectors: Mapping[str, Vector],
    layers: Mapping[str, int],
    *,
    stage: str,
    scales: Sequence[float],
    seed: int,
    equally_long: bool,
) -> list[_Condition]:
    own = vectors[stage]
    others = {name: vector for name, vector in vectors.items() if name != stage}
    lengthened = {} if equally_long else others
    directions: list[tuple[str, str | None, Vector]] = [
        ("own", stage, own),
        *(("transferred", name, vector) for name, vector in others.items()),
        *(
            ("transferred_own_length", name, _as_long_as(own, vector))
            for name, vector in lengthened.items()
        ),
        ("random", None, _random(own, seed)),
    ]
    return [
        _Condition("none"),
        *(
            _Condition("add", direction, source, layers[source or stage], scale, scale * vector)
            for scale in scales
            for direction, source, vector in directions
        ),
    ]


def _layers_of(
    layer: int | Mapping[str, int], vectors: Mapping[str, Vector], model: LiveModel
) -> dict[str, int]:
    """Return the layer of each stage's direction, all of them the model's."""
    places = dict(layer) if isinstance(layer, Mapping) else dict.fromkeys(vectors, layer)
    for name in vectors:
        if name not in places:
            raise unknown("stage with a layer", name, places)
        model.sites.check("resid_pre", places[name])
    return {name: places[name] for name in vectors}


def _random(own: Vector, seed: int) -> Vector:
    return _as_long_as(own, np.random.default_rng(seed).standard_normal(own.size))


def _as_long_as(own: Vector, vector: Vector) -> Vector:
    return vector * (np.linalg.norm(own) / np.linalg.norm(vector))


def _at_unit_length(vector: Vector) -> Vector:
    return vector / np.linalg.norm(vector)


def _stacked(
    conditions: Sequence[_Condition], width: int, *, unit: bool, layer: int | None = None
) -> Tensor:
    """Return the vector of each condition [conditions, d_model], zero for none and at others."""
    rows = [
        np.zeros(width) if c.vector is None or layer not in (None, c.layer) else c.vector
        for c in conditions
    ]
    vectors = torch.from_numpy(np.stack(rows))
    return torch.nn.functional.normalize(vectors, dim=1) if unit else vectors


def _checked_directions(
    directions: Mapping[str, ArrayLike], *, stage: str, d_model: int
) -> dict[str, Vector]:
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
