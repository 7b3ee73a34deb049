"""Refusal directions of a stage, and how alike those of two stages are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl

from ptmech.artifact import Artifact
from ptmech.directions import cosine_similarity
from ptmech.errors import NotStoredError, unknown
from ptmech.refusal.contrast import Contrast
from ptmech.results import Result

Place = int | Literal["all"] | None
"""A layer or a position, all of them, or each stage's own if the card gives it one."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class RefusalDirections(Result):
    """Refusal directions of one stage.

    Attributes
    ----------
    frame
        ``position``, ``layer``, ``norm`` (length of the direction), ``n_harmful``, ``n_harmless``.
    stage
        Name of the stage.
    positions, layers
        What the first two axes of ``matrix`` stand for.
    matrix
        [positions, layers, d_model] float64, mean(harmful) - mean(harmless), not normalised.
    card_position
        Where the card has this stage's direction read.
    """

    stage: str
    positions: tuple[int, ...]
    layers: tuple[int, ...]
    matrix: np.ndarray
    card_position: int = -1

    @property
    def unit(self) -> np.ndarray:
        """The directions at length 1, [positions, layers, d_model]; one of length 0 stays 0."""
        norms = np.linalg.norm(self.matrix, axis=-1, keepdims=True)
        return np.divide(self.matrix, norms, out=np.zeros_like(self.matrix), where=norms > 0)

    def direction(self, layer: int, position: int | None = None) -> np.ndarray:
        """Return one direction, not normalised, [d_model] float64.

        Parameters
        ----------
        layer
            Decoder block, counted from 0.
        position
            Token counted back from the end. None takes the only one there is; of several the
            card's, or the last token if the card's was not computed.

        Returns
        -------
        array of shape [d_model], float64
            Harmful mean less harmless mean.

        Raises
        ------
        UnknownNameError
            If the layer or the position is not among those computed.
        """
        if layer not in self.layers:
            raise unknown("layer", layer, self.layers)
        if position is None:
            position = self._usual_position
        if position not in self.positions:
            raise unknown("position", position, self.positions)
        return self.matrix[self.positions.index(position), self.layers.index(layer)]

    @property
    def _usual_position(self) -> int:
        if len(self.positions) == 1:
            return self.positions[0]
        return self.card_position if self.card_position in self.positions else -1


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class RefusalSimilarity(Result):
    """How alike the refusal directions of two stages are.

    Attributes
    ----------
    frame
        One row a position and layer: ``position``, ``layer``, where the earlier stage's direction
        was read; ``cosine`` between the stages, each direction from all rows;
        ``split_half_earlier`` and ``split_half_later``, within one stage
        between two disjoint halves of the rows, what estimation alone leaves of a perfect
        agreement; ``split_half_between``, the earlier stage's direction on one half with the later
        stage's on the other, to be compared with these two (``cosine`` is higher, because both
        its directions share the rows and so their errors); ``norm_earlier`` and ``norm_later``,
        lengths in activation units; ``position_later`` and ``layer_later``, where the later stage's
        direction was read: the same place, unless the card gives the stages places of their own.
        The split-half columns are means over the splits. A cosine with a direction of length zero
        is 0, as at the embeddings of a token that never varies.
    earlier, later
        Names of the stages.
    """

    earlier: str
    later: str


def directions(
    artifact: Artifact,
    stage: str,
    layer: Place = None,
    position: Place = None,
    *,
    site: str = "resid_pre",
    split: str | None = "train",
) -> RefusalDirections:
    """Compute the refusal directions of a stage.

    Parameters
    ----------
    artifact
        Holds activations of the harmful and harmless prompts that its card names.
    stage
        Name of the stage.
    layer, position
        One layer and one token position, or ``"all"`` that can be read. None: where the card gives
        stages places of their own, this stage's; all otherwise.
    site
        Where the activations were taken.
    split
        Rows to use: ``train``, ``validation`` or ``test``; all rows if None.

    Returns
    -------
    RefusalDirections
        ``matrix[position, layer] = mean(harmful) - mean(harmless)``.

    Raises
    ------
    UnknownNameError
        If stage, layer, position or split do not exist.
    NotStoredError
        If the prompts or the site were not built.
    DataError
        If activations are not finite.

    Examples
    --------
    >>> import ptmech as sdk
    >>> from ptmech import refusal
    >>> artifact = sdk.load("artifacts/demo")  # doctest: +SKIP
    >>> refusal.directions(artifact, "instruct").direction(20, -1).shape  # doctest: +SKIP
    (576,)
    """
    contrast = Contrast.of(artifact, site, split)
    [(positions, layers)] = _places(artifact, (stage,), site, layer, position)
    matrix = contrast.directions(stage, positions, layers, contrast.whole)[0]
    matrix.flags.writeable = False
    frame = _over_places(positions, layers, norm=np.linalg.norm(matrix, axis=-1)).with_columns(
        n_harmful=pl.lit(contrast.harmful.size, pl.Int64),
        n_harmless=pl.lit(contrast.harmless.size, pl.Int64),
    )
    return RefusalDirections(
        frame=frame,
        artifact=artifact.id,
        arguments={
            "stage": stage,
            "layer": layer,
            "position": position,
            "site": site,
            "split": split,
        },
        stage=stage,
        positions=positions,
        layers=layers,
        matrix=matrix,
        card_position=chosen_place(artifact, stage)[1],
    )


def similarity(
    artifact: Artifact,
    earlier: str,
    later: str,
    layer: Place = None,
    position: Place = None,
    *,
    site: str = "resid_pre",
    split: str | None = "train",
    n_splits: int = 10,
    seed: int = 0,
) -> RefusalSimilarity:
    """Compare the refusal directions of two stages (Du et al. 2025, section 5).

    Parameters
    ----------
    artifact
        Holds activations of the harmful and harmless prompts that its card names.
    earlier, later
        Names of the stages.
    layer, position, site, split
        As for :func:`directions`. With None each stage is read at its own place, where the card
        gives it one: for Llama 3.1 the base model's template has other last tokens than the chat
        template. A layer or position that is named, and ``"all"``, is the same for both.
    n_splits
        How often the rows are split into halves.
    seed
        Of the splits; both stages, all layers and positions are split alike.

    Returns
    -------
    RefusalSimilarity
        Cosines between the stages, beside the cosines of disjoint halves within each.

    Raises
    ------
    UnknownNameError
        If a stage, layer, position or split does not exist.
    DataError
        If the stages are the same, a class has too few rows to be halved, or activations are not
        finite.

    Examples
    --------
    >>> import ptmech as sdk
    >>> from ptmech import refusal
    >>> artifact = sdk.load("artifacts/demo")  # doctest: +SKIP
    >>> refusal.similarity(artifact, "sft", "instruct", position=-1).frame  # doctest: +SKIP
    """
    artifact.pair(earlier, later)  # raises for stages that are unknown or the same
    contrast = Contrast.of(artifact, site, split)
    places = _places(artifact, (earlier, later), site, layer, position)
    (positions, layers), (positions_later, layers_later) = places
    firsts, seconds = contrast.halves(n_splits, seed)
    whole_earlier, first_earlier, second_earlier = _by_half(
        contrast.directions(earlier, positions, layers, [*contrast.whole, *firsts, *seconds])
    )
    whole_later, first_later, second_later = _by_half(
        contrast.directions(
            later, positions_later, layers_later, [*contrast.whole, *firsts, *seconds]
        )
    )
    crosswise = (
        _mean_cosine(first_earlier, second_later),
        _mean_cosine(second_earlier, first_later),
    )
    return RefusalSimilarity(
        frame=_over_places(
            positions,
            layers,
            cosine=cosine_similarity(whole_earlier, whole_later),
            split_half_earlier=_mean_cosine(first_earlier, second_earlier),
            split_half_later=_mean_cosine(first_later, second_later),
            split_half_between=np.mean(crosswise, axis=0),
            norm_earlier=np.linalg.norm(whole_earlier, axis=-1),
            norm_later=np.linalg.norm(whole_later, axis=-1),
            position_later=np.repeat(positions_later, len(layers_later)),
            layer_later=np.tile(layers_later, len(positions_later)),
        ),
        artifact=artifact.id,
        arguments={
            "earlier": earlier,
            "later": later,
            "layer": layer,
            "position": position,
            "site": site,
            "split": split,
            "n_splits": n_splits,
            "seed": seed,
        },
        earlier=earlier,
        later=later,
    )


def chosen_place(artifact: Artifact, stage: str) -> tuple[int | None, int]:
    """Return layer and position of a stage's refusal direction, as the card chose them.

    Returns
    -------
    layer, position
        ``resid_pre`` convention; no layer where the card names none.
    """
    defaults = artifact.manifest.defaults
    return (
        defaults.refusal_layers.get(stage, defaults.refusal_layer),
        defaults.refusal_positions.get(stage, defaults.refusal_position),
    )


def card_places(artifact: Artifact) -> tuple[Place, Place]:
    """Return the layer and position to ask for, to read each stage where the card says.

    Raises
    ------
    NotStoredError
        The card names no layer.
    """
    defaults = artifact.manifest.defaults
    if defaults.refusal_layer is None:
        raise NotStoredError("the card names no layer for the refusal direction")
    return (
        None if defaults.refusal_layers else defaults.refusal_layer,
        None if defaults.refusal_positions else defaults.refusal_position,
    )


def _places(
    artifact: Artifact, stages: tuple[str, ...], site: str, layer: Place, position: Place
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return positions and layers to go through in each stage, equally many in all.

    Those asked for; each stage's own where the card gives it one; or all that are shared.
    """
    defaults = artifact.manifest.defaults
    held = [
        set(artifact.part(dataset, stage).positions)
        for dataset in (defaults.harmful, defaults.harmless)
        for stage in stages
    ]
    positions = tuple(sorted(set.intersection(*held)))
    layers = artifact.layers(site)
    chosen = [chosen_place(artifact, stage) for stage in stages]
    at_positions = [at for _, at in chosen] if defaults.refusal_positions else None
    # The card's layers count resid_pre.
    of_sites = defaults.refusal_layers if site == "resid_pre" else None
    at_layers = [at for at, _ in chosen if at is not None] if of_sites else None
    by_position = _in_each(stages, position, at_positions, positions, "position")
    by_layer = _in_each(stages, layer, at_layers, layers, f"layer of {site}")
    return list(zip(by_position, by_layer, strict=True))


def _in_each(
    stages: tuple[str, ...],
    asked: Place,
    own: Sequence[int] | None,
    held: Sequence[int],
    kind: str,
) -> list[tuple[int, ...]]:
    """Return for each stage the positions, or the layers, to go through."""
    if asked is None and own is not None:
        places = own
    elif asked is None or asked == "all":
        return [tuple(held)] * len(stages)
    else:
        places = [asked] * len(stages)
    for place in places:
        if place not in held:
            raise unknown(kind, place, held)
    return [(place,) for place in places]


def _by_half(directions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Take directions [1 + 2 n_splits, ...] apart: all rows, first halves, second halves."""
    whole, halves = directions[0], directions[1:]
    return whole, halves[: len(halves) // 2], halves[len(halves) // 2 :]


def _mean_cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Average the cosines [splits, positions, layers] over the splits."""
    return np.mean(cosine_similarity(a, b), axis=0)


def _over_places(
    positions: tuple[int, ...], layers: tuple[int, ...], **columns: Any
) -> pl.DataFrame:
    """Lay arrays [positions, layers] out as one row a place."""
    return pl.DataFrame(
        {
            "position": np.repeat(positions, len(layers)),
            "layer": np.tile(layers, len(positions)),
            **{name: np.ravel(values) for name, values in columns.items()},
        }
    )
