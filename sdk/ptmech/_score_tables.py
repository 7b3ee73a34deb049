"""Tables of ``scores/``: what the builder measured on running models, one file a stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from ptmech._schemas import OPTIONAL, Values, fitted
from ptmech.artifact import Artifact
from ptmech.errors import NotStoredError
from ptmech.manifest import Stage


def stacked(
    artifact: Artifact,
    table: str,
    columns: Mapping[str, Any],
    values: Mapping[str, Values],
    *,
    what: str,
) -> pl.DataFrame:
    """Stack one score table of all stages that have it, earliest stage first.

    Parameters
    ----------
    artifact
        Where the tables are.
    table
        Name of the file, without its ending.
    columns, values
        Name and type of each column, and what may stand in it; see :func:`read_table`.
    what
        What the tables hold, for the message where there are none.

    Raises
    ------
    NotStoredError
        No stage has the table.
    FormatError
        A table does not fit its columns.
    """
    frames = [
        read_table(artifact, stage, table, columns, values)
        for stage in artifact.manifest.stages
        if artifact.extra(_path(stage, table))
    ]
    if not frames:
        raise NotStoredError(
            f"{artifact.id} holds no {what}: its card does not ask for them, or the build was "
            "narrowed (--stages, --datasets)"
        )
    return pl.concat(frames)


def read_table(
    artifact: Artifact,
    stage: Stage,
    table: str,
    columns: Mapping[str, Any],
    values: Mapping[str, Values],
) -> pl.DataFrame:
    """Read one stage's score table and bring its columns to their types.

    Parameters
    ----------
    artifact, stage, table, columns
        As for :func:`stacked`.
    values
        What may stand in the columns. What any table says of stages, layers and neurons has to be
        of this artifact, and need not be named.

    Raises
    ------
    NotStoredError
        The artifact has no such table.
    FormatError
        It does not fit its columns.
    """
    path = _path(stage, table)
    return fitted(artifact.table(path), path, columns, {**_places(artifact, stage), **values})


def _path(stage: Stage, table: str) -> str:
    return f"scores/{stage.name}/{table}.parquet"


def _places(artifact: Artifact, stage: Stage) -> Mapping[str, Values]:
    """Say which stages, layers and neurons there are for a table of one stage."""
    last = max(each.n_layers for each in artifact.manifest.stages) - 1
    neurons = OPTIONAL if stage.d_mlp is None else Values(0, stage.d_mlp - 1, missing=True)
    return {
        "stage": Values(among=(stage.name,)),
        "dataset": Values(among=artifact.datasets),
        "direction_stage": Values(among=artifact.stages, missing=True),
        "layer": Values(0, last, missing=True),
        "layers": Values(0, last),
        "neuron": neurons,
    }
