"""What models replied: to which prompts, without and with interventions."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from ptmech.artifact import Artifact
from ptmech.errors import FormatError
from ptmech.refusal.tables import completions as stored_completions
from ptmech.results import Result

_TEXTS = ("prompt", "completion", "refused")
"""Columns that come last, to be read together."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class RefusalCompletions(Result):
    """The replies that refusal rates were counted from.

    Attributes
    ----------
    frame
        One row a reply: ``stage`` (the model that was run), ``prompts`` (``harmful`` or
        ``harmless``), ``intervention`` (``none``, ``ablate``, ``add``), ``direction``,
        ``direction_stage`` and ``scale`` as in :class:`RefusalScores`; ``row_uid``, ``prompt``;
        ``completion``, as far as it was generated; ``refused``, whether it begins like a refusal.
    """


def completions(artifact: Artifact) -> RefusalCompletions:
    """Read what the models replied when the artifact was built.

    No model is run. To have replies of one's own, use :func:`ptmech.refusal.intervene`.

    Parameters
    ----------
    artifact
        Built by a card that asks for refusal scores.

    Returns
    -------
    RefusalCompletions
        Those of all stages, earliest stage first.

    Raises
    ------
    NotStoredError
        If the artifact holds none.
    FormatError
        If a table does not fit its columns, or a reply is to no prompt of the artifact.

    Examples
    --------
    >>> replies = completions(artifact).frame  # doctest: +SKIP
    >>> replies.filter(stage="instruct", prompts="harmful", intervention="ablate")
    ... # doctest: +SKIP
    """
    replies = stored_completions(artifact)
    prompts = artifact.statements().select("row_uid", prompt="text")
    frame = replies.join(prompts, on="row_uid", how="left", maintain_order="left")
    if strangers := frame["prompt"].null_count():
        raise FormatError(
            f"{strangers} completions of {artifact.id} are replies to no prompt it holds; "
            "build it again"
        )
    return RefusalCompletions(
        frame=frame.select(pl.exclude(_TEXTS), *_TEXTS),
        artifact=artifact.id,
        arguments={},
    )
