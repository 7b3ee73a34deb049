"""From what ablations did at every token to a table of averages with intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ptmech._bootstrap import group_weights, interval
from ptmech._schemas import AT_LEAST_NONE, OPTIONAL, UNDEFINED, Values

EFFECTS: Final[Mapping[str, Any]] = {
    "stage": pl.String,
    "layer": pl.Int32,
    "neurons": pl.String,
    "ablated": pl.String,
    "neuron": pl.Int32,
    "measure": pl.String,
    "effect": pl.String,
    "texts": pl.Int32,
    "tokens": pl.Int64,
    "unedited": pl.Float64,
    "change": pl.Float64,
    "change_low": pl.Float64,
    "change_high": pl.Float64,
    "absolute": pl.Float64,
    "absolute_low": pl.Float64,
    "absolute_high": pl.Float64,
    "share": pl.Float64,
    "share_low": pl.Float64,
    "share_high": pl.Float64,
}
"""Columns of the effects of neurons; :class:`ptmech.confidence.NeuronEffects` explains them."""

EFFECT_VALUES: Final[Mapping[str, Values]] = {
    "neurons": Values(among=("chosen", "random")),
    "ablated": Values(among=("one", "each", "together")),
    "measure": Values(among=("entropy", "loss")),
    "effect": Values(among=("total", "direct", "norm")),
    "neuron": OPTIONAL,
    **dict.fromkeys(("texts", "tokens", "unedited", "absolute"), AT_LEAST_NONE),
    **dict.fromkeys(("change_low", "change_high"), UNDEFINED),
    **dict.fromkeys(("absolute_low", "absolute_high"), Values(0, undefined=True)),
    **dict.fromkeys(
        ("share", "share_low", "share_high"), Values(highest=1, missing=True, undefined=True)
    ),
}
"""What may stand in them."""

MEASURES = ("entropy", "loss")

Which = Literal["chosen", "random"]


@dataclass(frozen=True, eq=False)
class Averages:
    """Means over tokens, and the same over texts drawn with replacement.

    Attributes
    ----------
    n_texts, n_tokens
        How much they are means of.
    starts : array of shape [texts]
        First token of each text.
    weights : array of shape [1 + replicates, texts]
        How often each text counts: once, then as often as it was drawn.
    """

    n_texts: int
    n_tokens: int
    starts: NDArray[np.int64]
    weights: NDArray[np.float64]

    @classmethod
    def over(cls, text: NDArray[np.int64], *, n_bootstrap: int, seed: int) -> Averages:
        """Draw texts, given the text [tokens], ascending, that each token is from."""
        names, starts = np.unique(text, return_index=True)
        # One text says nothing about others: no replicates, and so no interval.
        drawn = group_weights(names.astype(str), n_bootstrap if names.size > 1 else 0, seed)
        return cls(
            n_texts=names.size,
            n_tokens=text.size,
            starts=starts,
            weights=np.concatenate([np.ones((1, names.size)), drawn]),
        )

    def of(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the means [..., 1 + replicates] of values [..., tokens]."""
        tokens = np.diff(self.starts, append=self.n_tokens)
        return (
            np.add.reduceat(values, self.starts, axis=-1) @ self.weights.T / (self.weights @ tokens)
        )


def effects_table(
    averages: Averages,
    unedited: NDArray[np.float64],
    total: NDArray[np.float64],
    direct: NDArray[np.float64],
    *,
    groups: Mapping[Which, Sequence[int]],
    stage: str,
    layer: int,
) -> pl.DataFrame:
    """Average what ablations did.

    Parameters
    ----------
    averages
        Over which tokens.
    unedited : array of shape [measures, tokens]
        Entropy and loss of the model left alone.
    total, direct : arrays of shape [ablations, measures, tokens]
        How ablations change them: for each group its neurons one at a time, then all together.
    groups
        The neurons of each group.
    stage, layer
        What stands in these columns.

    Returns
    -------
    polars.DataFrame
        Columns and types of :data:`EFFECTS`.
    """
    changes = np.stack([total, direct, total - direct])
    mean, absolute = averages.of(changes), averages.of(np.abs(changes))
    baseline = averages.of(unedited)[:, 0]
    rows: list[dict[str, Any]] = []
    first = 0
    for name, group in groups.items():
        for ablated, neuron, where in _ablations(group, first):
            for measure in range(len(MEASURES)):
                rows += [
                    {
                        "stage": stage,
                        "layer": layer,
                        "neurons": name,
                        "ablated": ablated,
                        "neuron": neuron,
                        "measure": MEASURES[measure],
                        "texts": averages.n_texts,
                        "tokens": averages.n_tokens,
                        "unedited": baseline[measure],
                        **line,
                    }
                    for line in _lines(
                        mean[:, where, measure].mean(axis=1),
                        absolute[:, where, measure].mean(axis=1),
                    )
                ]
        first += len(group) + 1
    return pl.DataFrame(rows, schema=dict(EFFECTS))


def _ablations(group: Sequence[int], first: int) -> Iterator[tuple[str, int | None, slice]]:
    """Yield what is averaged for a group whose ablations begin at `first`."""
    together = first + len(group)
    for at, neuron in enumerate(group, start=first):
        yield "one", neuron, slice(at, at + 1)
    yield "each", None, slice(first, together)
    yield "together", None, slice(together, together + 1)


def _lines(
    mean: NDArray[np.float64], absolute: NDArray[np.float64]
) -> Iterator[dict[str, float | str | None]]:
    """Yield a line an effect, given means [effects, 1 + replicates]."""
    share = 1 - np.divide(
        absolute[1], absolute[0], out=np.full_like(absolute[0], np.nan), where=absolute[0] > 0
    )
    for index, effect in enumerate(("total", "direct", "norm")):
        yield {
            "effect": effect,
            **_spread("change", mean[index]),
            **_spread("absolute", absolute[index]),
            **(_spread("share", share) if effect == "norm" else {}),
        }


def _spread(name: str, replicates: NDArray[np.float64]) -> dict[str, float]:
    """Return a mean and the percentile interval of its replicates."""
    low, high = interval(replicates[1:])
    return {name: float(replicates[0]), f"{name}_low": low, f"{name}_high": high}
