"""What the model reads: the project's own statements without a tokenizer, and rows of chance."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Sequence

import numpy as np

from ptmech_builder.prompts import Prompts
from ptmech_builder.statement_sets import DATA

BEGINNING = 1
"""The id that every row begins with; 0 is left to the padding."""

SETS = ("cities", "larger_than", "statements", "random")
"""One set with long shared prefixes, one with the longest, all fourteen, and one with none."""

_SHORTEST, _LONGEST = 48, 80


def prompt_set(name: str, *, rows: int, vocabulary: int) -> Prompts:
    """Return a set of :data:`SETS` as token ids; the last token of each row is what is stored.

    Parameters
    ----------
    name
        A name of :data:`SETS`.
    rows
        The most rows to take; the sets of statements have no more than they have.
    vocabulary
        Number of token ids.
    """
    if name == "random":
        return _prompts(name, random_rows(rows, vocabulary))
    files = sorted((DATA / "statements").glob("*.csv" if name == "statements" else f"{name}.csv"))
    texts: list[str] = []
    for path in files:
        with path.open(encoding="utf-8", newline="") as file:
            texts += [row["text"] for row in csv.DictReader(file)]
    return _prompts(name, [word_ids(text, vocabulary) for text in texts[:rows]])


def word_ids(text: str, vocabulary: int) -> list[int]:
    """Turn a text into token ids, one a word or mark: as its digest says, the same everywhere.

    Texts that begin with the same words begin with the same ids, as with a tokenizer.
    """
    words = re.findall(r"\w+|[^\w\s]", text)
    digests = (hashlib.sha256(word.encode()).digest() for word in words)
    return [BEGINNING, *(2 + int.from_bytes(d[:8], "big") % (vocabulary - 2) for d in digests)]


def random_rows(rows: int, vocabulary: int) -> list[list[int]]:
    """Draw rows of 48 to 79 tokens that share no more than their beginning and chance."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(_SHORTEST, _LONGEST, rows)
    return [[BEGINNING, *rng.integers(2, vocabulary, n - 1).tolist()] for n in lengths]


def _prompts(name: str, token_ids: Sequence[Sequence[int]]) -> Prompts:
    return Prompts(
        dataset=name,
        uids=np.arange(len(token_ids), dtype=np.uint64),
        token_ids=token_ids,
        positions=(-1,),
        rendered_sha256=[""] * len(token_ids),
    )
