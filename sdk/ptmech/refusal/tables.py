"""Refusal rates and completions: what they look like, and those that an artifact holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import polars as pl

from ptmech._schemas import AT_LEAST_NONE, OPTIONAL, SHARE, Values
from ptmech._score_tables import stacked
from ptmech.artifact import Artifact
from ptmech.results import Result

_CONDITION: Final[Mapping[str, Any]] = {
    "stage": pl.String,
    "prompts": pl.String,
    "intervention": pl.String,
    "direction": pl.String,
    "direction_stage": pl.String,
}
SCORES: Final[Mapping[str, Any]] = {
    **_CONDITION,
    "layer": pl.Int32,
    "scale": pl.Float64,
    "length": pl.Float64,
    "n": pl.Int64,
    "refusals": pl.Int64,
    "refusal_rate": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "plain_text_loss": pl.Float64,
}
"""Columns of the refusal rates."""
COMPLETIONS: Final[Mapping[str, Any]] = {
    **_CONDITION,
    "scale": pl.Float64,
    "row_uid": pl.UInt64,
    "completion": pl.String,
    "refused": pl.Boolean,
}
"""Columns of the completions they are counted from."""

COMPLETION_VALUES: Final[Mapping[str, Values]] = {
    "prompts": Values(among=("harmful", "harmless")),
    "intervention": Values(among=("none", "ablate", "add")),
    "direction": Values(among=("none", "own", "transferred", "transferred_own_length", "random")),
    **dict.fromkeys(("direction_stage", "scale"), OPTIONAL),
}
"""What may stand in the completions' columns."""
SCORE_VALUES: Final[Mapping[str, Values]] = {
    **COMPLETION_VALUES,
    "layer": OPTIONAL,
    "length": Values(0, missing=True),
    **dict.fromkeys(("n", "refusals"), AT_LEAST_NONE),
    **dict.fromkeys(("refusal_rate", "low", "high"), SHARE),
    "plain_text_loss": Values(0, undefined=True),
}
"""What may stand in the rates' columns."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class RefusalScores(Result):
    """How many completions refuse, without and with interventions.

    Attributes
    ----------
    frame
        ``stage`` (the model that was run), ``prompts`` (``harmful`` or ``harmless``),
        ``intervention`` (``none``, ``ablate``, ``add``), ``direction`` (``none``, ``own``,
        ``transferred``, ``transferred_own_length``, ``random``), ``direction_stage`` (where the
        direction comes from), ``layer`` (where it was read, and where it is added), ``scale``
        (factor of an added direction), ``length`` (of the added vector), ``n``, ``refusals``,
        ``refusal_rate``, ``low`` and ``high`` (95 % Wilson interval), ``plain_text_loss`` (nats a
        token on plain text under the same intervention).
        Read every rate beside the random direction's and beside the loss: a broken model does not
        refuse either.
    completions
        What the rates were counted from: the same first five columns and ``scale``, ``row_uid``
        (join it with :meth:`ptmech.Artifact.statements` for the prompt), ``completion``,
        ``refused``.
    """

    completions: pl.DataFrame


def scores(artifact: Artifact) -> RefusalScores:
    """Read the refusal rates that were measured when the artifact was built.

    They come from the same code as :func:`ptmech.refusal.intervene`. Each stage's direction was
    read at the position and layer that the card gives this stage, and added at that layer, at the
    sites and with the factors of the card: columns ``layer``, ``scale`` and ``length`` have them.

    Parameters
    ----------
    artifact
        An artifact whose card asks for ``[refusal]``.

    Returns
    -------
    RefusalScores
        The tables of all stages, earliest stage first.

    Raises
    ------
    NotStoredError
        If the artifact holds none.
    FormatError
        If a table does not fit its columns.
    """
    return RefusalScores(
        frame=stacked(artifact, "refusal", SCORES, SCORE_VALUES, what="refusal scores"),
        completions=completions(artifact),
        artifact=artifact.id,
        arguments={},
    )


def completions(artifact: Artifact) -> pl.DataFrame:
    """Read the completions that the refusal rates were counted from.

    Returns
    -------
    polars.DataFrame
        As :attr:`RefusalScores.completions`.

    Raises
    ------
    NotStoredError
        If the artifact holds none.
    FormatError
        If a table does not fit its columns.
    """
    return stacked(
        artifact, "completions", COMPLETIONS, COMPLETION_VALUES, what="refusal completions"
    )


def of_stages(frame: pl.DataFrame, stages: Sequence[str]) -> pl.DataFrame:
    """Keep the rows without a direction, with a random one, or with one of these stages."""
    whose = pl.col("direction_stage")
    return frame.filter(whose.is_null() | whose.is_in(stages))


def at_own_length(frame: pl.DataFrame) -> pl.DataFrame:
    """Keep, of several lengths of added directions, the one that is closest to their own."""
    scale = min(frame["scale"].drop_nulls(), key=lambda factor: abs(factor - 1), default=1.0)
    return frame.filter(pl.col("scale").is_null() | (pl.col("scale") == scale))
