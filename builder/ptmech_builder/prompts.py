"""Prompts: from the rows of a dataset to the token ids a stage's model is run on.

Every prompt is rendered once, here, and its token ids are stored in the artifact. Nothing later in
the builder turns text into tokens again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from ptmech._schemas import TOKEN_COLUMNS
from ptmech.errors import DataError
from ptmech.live.templates import encoded
from ptmech_builder.cards import DatasetCard, StageCard

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prompts:
    """The rows of one dataset as one stage's tokenizer sees them.

    Attributes
    ----------
    uids
        [rows] uint64.
    token_ids
        One list of ids a row, special tokens included, not padded.
    positions
        Stored positions, counted back from the end: -1 is the last token.
    rendered_sha256
        Digest of each rendered text.
    """

    dataset: str
    uids: np.ndarray
    token_ids: Sequence[Sequence[int]]
    positions: tuple[int, ...]
    rendered_sha256: Sequence[str]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each row [rows]."""
        return np.array([len(ids) for ids in self.token_ids])

    @cached_property
    def indices(self) -> np.ndarray:
        """Absolute index of each stored position [rows, positions]: never negative."""
        return self.lengths[:, None] + np.array(self.positions)[None, :]

    @property
    def tokens(self) -> int:
        """Number of tokens in all rows."""
        return int(self.lengths.sum())

    def take(self, rows: np.ndarray) -> Prompts:
        """Return some of the rows, in the given order."""
        return Prompts(
            self.dataset,
            self.uids[rows],
            [self.token_ids[int(row)] for row in rows],
            self.positions,
            [self.rendered_sha256[int(row)] for row in rows],
        )

    @cached_property
    def digest(self) -> str:
        """One sha256 over row ids, token ids and positions."""
        hashed = hashlib.sha256(repr(self.positions).encode())
        hashed.update(self.uids.astype("<u8").tobytes())
        for ids in self.token_ids:
            hashed.update(np.array([len(ids), *ids], dtype="<i8").tobytes())
        return hashed.hexdigest()


def make_prompts(
    rows: pl.DataFrame,
    dataset: DatasetCard,
    stage: StageCard,
    tokenizer: PreTrainedTokenizerBase,
) -> Prompts:
    """Render and tokenize the rows of a dataset for a stage.

    Statements go in as they are, with the tokenizer's default special tokens; instructions go
    through the stage's template. A beginning-of-text token is never doubled.

    Raises
    ------
    DataError
        If a prompt has fewer tokens than the positions asked for, or the tokenizer has no chat
        template where one is needed.
    """
    texts = rows["text"].to_list()
    if dataset.kind == "statements":
        rendered, token_ids = texts, encoded(tokenizer, texts)
    else:
        name = f"stage {stage.name!r}"
        rendered, token_ids = stage.rendering.render(tokenizer, texts, name)
    needed = -min(dataset.positions)
    short = next((row for row, ids in enumerate(token_ids) if len(ids) < needed), None)
    if short is not None:
        raise DataError(
            f"row {rows['source_id'][short]!r} of {dataset.name!r} has {len(token_ids[short])} "
            f"tokens, too few for position {-needed}"
        )
    return Prompts(
        dataset=dataset.name,
        uids=rows["row_uid"].to_numpy(),
        token_ids=token_ids,
        positions=tuple(dataset.positions),
        rendered_sha256=[hashlib.sha256(text.encode()).hexdigest() for text in rendered],
    )


def tokens_table(prompts: Sequence[Prompts], tokenizer: PreTrainedTokenizerBase) -> pl.DataFrame:
    """Return the table of what the tokenizer made of every row; see ``Artifact.tokens``."""
    columns: dict[str, list[Any]] = {name: [] for name in TOKEN_COLUMNS}
    for part in prompts:
        for row, ids in enumerate(part.token_ids):
            columns["row_uid"].append(int(part.uids[row]))
            columns["dataset"].append(part.dataset)
            columns["token_ids"].append(list(ids))
            columns["tokens"].append(tokenizer.convert_ids_to_tokens(list(ids)))
            columns["positions"].append(part.indices[row].tolist())
            columns["rendered_sha256"].append(part.rendered_sha256[row])
    return pl.DataFrame(columns, schema=TOKEN_COLUMNS)
