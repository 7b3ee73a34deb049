"""Reading causal traces: the grid of patched runs, and the two runs that give it its scale."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

import numpy as np
import polars as pl
from pydantic import Field

from ptmech._json import fitting
from ptmech.artifact import Artifact
from ptmech.errors import FormatError, NotStoredError, unknown
from ptmech.knowledge.prompts import PAIR_SCHEMA, Form, Measure, Role
from ptmech.manifest import Name, Schema
from ptmech.results import Result
from ptmech.storage.grids import read_group

_PLACE: Final = re.compile(r"traces/(\w+)-(\w+)/(\w+)\.zarr/.+")
_LARGEST: Final = float(np.finfo(np.float32).max)
"""Grids are of float32; what is larger would overflow when it is added up."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Trace(Result):
    """Causal tracing of one dataset, from the runs of one model into those of another.

    The same whether it was stored with the artifact or made by
    :func:`ptmech.live.causal_trace`. ``numpy.asarray(trace)`` is ``trace.matrix``. Differences are
    true minus false answer, after the last token, in the unit of ``measure``.

    Attributes
    ----------
    frame
        One row a cell: ``layer``, ``column``, ``token``, ``role``, ``logit_difference`` (mean over
        the pairs, in the unit of ``measure``), ``scaled``.
    source, target, dataset
        The stage whose true prompts were copied, the stage whose false prompts were patched, and
        the statements both come from; the names of the models, and no dataset, for a live trace.
    form
        ``completion`` (the prompt ends where the object begins) or ``true_false`` (it asks whether
        the statement is true).
    measure
        ``logit_difference`` of the answers' tokens, or ``log_probability_difference`` of whole
        answers of several tokens.
    layers
        The patched layers, in the order of ``grid``.
    grid
        [pairs, layers, tokens] float64, the difference in each patched run.
    matrix
        [layers, tokens] float64, the mean of ``grid`` over the pairs.
    unpatched
        [pairs] float64, of the run that is patched, left alone: the false prompt in the target
        stage, or the true one with noise on its subject.
    source_difference
        [pairs] float64, of the true prompt in the target stage.
    scaled
        [layers, tokens] float64: 0 where a patch does nothing, 1 where it does as much as the
        whole true prompt; a ratio of means over the pairs. NaN if the two ends are equal.
    tokens
        Text of each column, of the first pair.
    roles
        Role of each column: ``prefix``, ``subject``, ``subject_last``, ``relation``, ``object``,
        ``other``, ``last``.
    pairs
        ``true_uid`` and ``false_uid`` of each pair, in the order of ``grid``, and ``differing``,
        the columns in which its prompts differ (null in artifacts that do not say).
    known
        Share of the dataset's facts that each stage completes correctly; empty if not asked.
    """

    source: str
    target: str
    dataset: str
    form: str
    measure: str
    layers: tuple[int, ...]
    grid: np.ndarray
    matrix: np.ndarray
    unpatched: np.ndarray
    source_difference: np.ndarray
    scaled: np.ndarray
    tokens: tuple[str, ...]
    roles: tuple[str, ...]
    pairs: pl.DataFrame
    known: Mapping[str, float]

    @property
    def by_role(self) -> pl.DataFrame:
        """Mean of ``scaled`` over the columns of each role: ``layer``, then one column a role."""
        columns = {
            role: self.scaled[:, [other == role for other in self.roles]].mean(axis=1)
            for role in dict.fromkeys(self.roles)
        }
        return pl.DataFrame({"layer": self.layers, **columns})

    def __array__(self, dtype: Any = None, *, copy: bool | None = None) -> np.ndarray:
        return np.array(self.matrix, dtype=dtype, copy=copy)


def stored(artifact: Artifact) -> pl.DataFrame:
    """List the causal traces of an artifact.

    Parameters
    ----------
    artifact
        Any artifact.

    Returns
    -------
    polars.DataFrame
        ``source``, ``target``, ``dataset``; one row a trace, empty if there are none.
    """
    places = (_PLACE.fullmatch(entry.path) for entry in artifact.extras("traces/"))
    found = {place.groups() for place in places if place is not None}
    schema = {"source": pl.String, "target": pl.String, "dataset": pl.String}
    return pl.DataFrame(sorted(found), schema=schema, orient="row")


def trace(artifact: Artifact, source: str, target: str, dataset: str) -> Trace:
    """Read the causal tracing of a dataset.

    Parameters
    ----------
    artifact
        Built by a card that asks for traces of this dataset.
    source
        Stage whose true prompts' activations were copied.
    target
        Stage whose false prompts were patched; the same as ``source`` within one stage.
    dataset
        Name of the statement set.

    Returns
    -------
    Trace
        The grid, its mean and the two ends of its scale.

    Raises
    ------
    UnknownNameError
        If a stage or the dataset does not exist.
    NotStoredError
        If this trace was not built.
    IntegrityError
        If a file is missing or damaged.
    FormatError
        If the grid has a hole, or does not fit its own description.

    Examples
    --------
    >>> import ptmech as sdk
    >>> from ptmech import knowledge
    >>> artifact = sdk.load("artifacts/demo")  # doctest: +SKIP
    >>> knowledge.trace(artifact, "sft", "instruct", "cities").by_role  # doctest: +SKIP
    """
    for stage in (source, target):
        if stage not in artifact.stages:
            raise unknown("stage", stage, artifact.stages)
    if dataset not in artifact.datasets:
        raise unknown("dataset", dataset, artifact.datasets)
    folder = f"traces/{source}-{target}/{dataset}.zarr/"
    entries = artifact.extras(folder)
    if not entries:
        raise NotStoredError(
            f"{artifact.id} holds no causal trace of {dataset!r} from {source!r} into {target!r}; "
            f"stored: {_listed(artifact)}"
        )
    names = (entry.path.removeprefix(folder) for entry in entries)
    files = dict(zip(names, artifact.read_all(entries), strict=True))
    attributes, arrays = read_group(files, folder.rstrip("/"))
    about = fitting(_Description, attributes, f"{folder}: attribute")
    if (about.source, about.target, about.dataset) != (source, target, dataset):
        raise FormatError(
            f"{folder} describes itself as {about.dataset!r} from {about.source!r} into "
            f"{about.target!r}; build it again"
        )
    grid, unpatched, reached = _fitting(arrays, about, folder)
    return make_trace(
        grid,
        unpatched,
        reached,
        artifact=artifact.id,
        arguments={"source": source, "target": target, "dataset": dataset},
        layers=tuple(range(grid.shape[1])),
        source=source,
        target=target,
        dataset=dataset,
        form=about.form,
        measure=about.measure,
        tokens=about.tokens,
        roles=about.roles,
        pairs=pl.DataFrame([pair.model_dump() for pair in about.pairs], schema=PAIR_SCHEMA),
        known=about.known,
    )


def make_trace(
    grid: np.ndarray,
    unpatched: np.ndarray,
    reached: np.ndarray,
    *,
    layers: tuple[int, ...],
    tokens: tuple[str, ...],
    roles: tuple[str, ...],
    **facts: Any,
) -> Trace:
    """Compute what follows from a grid, and return it as a trace.

    Parameters
    ----------
    grid
        [pairs, layers, tokens].
    unpatched, reached
        [pairs]: the differences that become 0 and 1.
    layers, tokens, roles
        What layers and columns are.
    facts
        The remaining fields of :class:`Trace`.
    """
    grid, unpatched, reached = (values.astype(np.float64) for values in (grid, unpatched, reached))
    matrix = grid.mean(axis=0)
    bottom, top = unpatched.mean(), reached.mean()
    scaled = np.full_like(matrix, np.nan) if top == bottom else (matrix - bottom) / (top - bottom)
    n_layers, columns = matrix.shape
    return Trace(
        frame=pl.DataFrame(
            {
                "layer": np.repeat(np.array(layers), columns),
                "column": np.tile(np.arange(columns), n_layers),
                "token": list(tokens) * n_layers,
                "role": list(roles) * n_layers,
                "logit_difference": matrix.ravel(),
                "scaled": scaled.ravel(),
            }
        ),
        layers=layers,
        grid=grid,
        matrix=matrix,
        unpatched=unpatched,
        source_difference=reached,
        scaled=scaled,
        tokens=tokens,
        roles=roles,
        **facts,
    )


Column = Annotated[int, Field(ge=0)]
RowUid = Annotated[int, Field(ge=0, lt=2**64)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Pair(Schema):
    true_uid: RowUid
    false_uid: RowUid
    differing: tuple[Column, ...] | None = None


class _Description(Schema):
    """The attributes of a trace's zarr group."""

    form: Form
    measure: Measure = "logit_difference"
    source: Name
    target: Name
    dataset: Name
    examples: tuple[str, ...] = ()
    tokens: tuple[str, ...]
    roles: tuple[Role, ...]
    pairs: tuple[_Pair, ...]
    known: Mapping[str, Share]


def _fitting(
    arrays: Mapping[str, np.ndarray], about: _Description, where: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return grid, unpatched and source, if they fit the description."""
    pairs, columns = len(about.pairs), len(about.tokens)
    missing = {"grid", "unpatched", "source"} - arrays.keys()
    if missing:
        raise FormatError(f"{where} lacks the array {min(missing)!r}; build it again")
    grid, unpatched, reached = (arrays[name] for name in ("grid", "unpatched", "source"))
    if (
        grid.ndim != 3
        or (len(grid), grid.shape[2], len(about.roles)) != (pairs, columns, columns)
        or not unpatched.shape == reached.shape == (pairs,)
        or any(max(pair.differing or (0,)) >= columns for pair in about.pairs)
    ):
        raise FormatError(
            f"{where}: a grid of shape {grid.shape} for {pairs} pairs and {columns} tokens"
        )
    if max(np.abs(values).max() for values in (grid, unpatched, reached)) > _LARGEST:
        raise FormatError(f"{where}: a value is beyond {_LARGEST:.1e}, no difference of logits")
    return grid, unpatched, reached


def _listed(artifact: Artifact) -> str:
    traces = stored(artifact).iter_rows()
    return ", ".join(f"{dataset} {source}-{target}" for source, target, dataset in traces) or "none"
