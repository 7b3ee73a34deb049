"""Tables of ``scores/``: what the builder measured on running models, one file a stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import polars as pl

from ptmech._schemas import AT_LEAST_NONE, GIVEN, PAST, Values, fitted
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
        What may stand in the columns; see :func:`score_values`.

    Raises
    ------
    NotStoredError
        The artifact has no such table.
    FormatError
        It does not fit its columns.
    """
    path = _path(stage, table)
    return fitted(artifact.table(path), path, columns, score_values(artifact, stage, values))


def score_values(
    artifact: Artifact, stage: Stage, values: Mapping[str, Values]
) -> Mapping[str, Values]:
    """Say what may stand in the columns of one stage's score table.

    Parameters
    ----------
    artifact, stage
        As for :func:`read_table`.
    values
        What the table itself says. Stages, datasets, layers, positions and neurons have to be of
        this artifact; of these it only says which may be missing.
    """
    places = {
        name: replace(place, missing=values.get(name, GIVEN).missing)
        for name, place in _places(artifact, stage).items()
    }
    return {**values, **places}


def _path(stage: Stage, table: str) -> str:
    return f"scores/{stage.name}/{table}.parquet"


def _places(artifact: Artifact, stage: Stage) -> Mapping[str, Values]:
    """Say which stages, datasets, layers, positions and neurons a table may name."""
    manifest = artifact.manifest
    layers = Values(0, max(each.n_layers for each in manifest.stages) - 1)
    harmful = manifest.dataset(manifest.defaults.harmful)
    return {
        "stage": Values(among=(stage.name,)),
        "dataset": Values(among=artifact.datasets),
        "direction_stage": Values(among=artifact.stages),
        "layer": layers,
        "layers": layers,
        "position": PAST if harmful is None else Values(among=harmful.positions),
        "neuron": AT_LEAST_NONE if stage.d_mlp is None else Values(0, stage.d_mlp - 1),
    }
