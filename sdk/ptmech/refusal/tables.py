"""Refusal rates and completions that were measured live when the artifact was built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import polars as pl

from ptmech.artifact import Artifact
from ptmech.errors import FormatError, NotStoredError
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
COMPLETIONS: Final[Mapping[str, Any]] = {
    **_CONDITION,
    "row_uid": pl.UInt64,
    "completion": pl.String,
    "refused": pl.Boolean,
}


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class RefusalScores(Result):
    """How many completions refuse, without and with interventions.

    Attributes
    ----------
    frame
        ``stage`` (the model that was run), ``prompts`` (``harmful`` or ``harmless``),
        ``intervention`` (``none``, ``ablate``, ``add``), ``direction`` (``none``, ``own``,
        ``transferred``, ``transferred_own_length``, ``random``), ``direction_stage`` (where a
        transferred direction comes from), ``layer``, ``scale`` (factor of an added direction),
        ``length`` (of the added vector), ``n``, ``refusals``,
        ``refusal_rate``, ``low`` and ``high`` (95 % Wilson interval), ``plain_text_loss`` (nats a
        token on plain text under the same intervention). Read every rate beside the random
        direction's and beside the loss: a broken model does not refuse either.
    """


def scores(artifact: Artifact) -> RefusalScores:
    """Read the refusal rates that were measured when the artifact was built.

    Returns
    -------
    RefusalScores
        The tables of all stages, earliest stage first.

    Raises
    ------
    NotStoredError
        If the artifact holds none.
    FormatError
        If a table lacks a column.
    """
    return RefusalScores(
        frame=_stacked(artifact, "refusal", SCORES), artifact=artifact.id, arguments={}
    )


def completions(artifact: Artifact) -> pl.DataFrame:
    """Read the completions that the refusal rates were counted from.

    Returns
    -------
    polars.DataFrame
        ``stage``, ``prompts``, ``intervention``, ``direction``, ``direction_stage``, ``row_uid``
        (join it with :meth:`Artifact.statements` for the prompt), ``completion``, ``refused``.

    Raises
    ------
    NotStoredError
        If the artifact holds none.
    FormatError
        If a table lacks a column.
    """
    return _stacked(artifact, "completions", COMPLETIONS)


def _stacked(artifact: Artifact, table: str, columns: Mapping[str, Any]) -> pl.DataFrame:
    """Stack one score table of all stages that have it."""
    frames: list[pl.DataFrame] = []
    for stage in artifact.stages:
        path = f"scores/{stage}/{table}.parquet"
        if artifact.extra(path) is None:
            continue
        frame = artifact.table(path)
        missing = [name for name in columns if name not in frame.columns]
        if missing:
            raise FormatError(f"{path} lacks the column {missing[0]!r}; build it again")
        try:
            typed = frame.with_columns(pl.col(name).cast(kind) for name, kind in columns.items())
        except pl.exceptions.PolarsError as error:
            reason = str(error).partition("\n")[0]
            raise FormatError(f"{path} does not fit its columns: {reason}") from error
        frames.append(typed)
    if not frames:
        raise NotStoredError(
            f"{artifact.id} holds no refusal {'scores' if table == 'refusal' else table}: "
            "its card does not ask for them"
        )
    return pl.concat(frames, how="diagonal_relaxed")
