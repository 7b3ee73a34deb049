"""Matched prompts for causal tracing, as values: pairs, and what their tokens stand for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import polars as pl

from ptmech.errors import DataError

Form = Literal["completion", "true_false"]
Measure = Literal["logit_difference", "log_probability_difference"]
Role = Literal["prefix", "subject", "subject_last", "relation", "object", "other", "last"]
Tokens = tuple[int, ...]
TokenSpan = tuple[int, int]
"""First token, and the one after the last."""


@dataclass(frozen=True)
class PromptPair:
    """Two prompts of one token count: in one the first answer is right, in the other the second.

    Attributes
    ----------
    true_uid, false_uid
        ``row_uid`` of the statement whose run is copied, and of the one whose run is patched.
    true_tokens, false_tokens
        Token ids of the two prompts, equally many.
    true_answer, false_answer
        Token ids of the two answers whose likelihood is compared after either prompt.
    subject, object
        Where they stand, the same in both prompts; None where they are not known.
    traced_from
        First token after the worked examples: the first column of the grids.
    """

    true_uid: int
    false_uid: int
    true_tokens: Tokens
    false_tokens: Tokens
    true_answer: Tokens
    false_answer: Tokens
    subject: TokenSpan | None = None
    object: TokenSpan | None = None
    traced_from: int = 0

    @property
    def differing(self) -> tuple[int, ...]:
        """The tokens in which the two prompts differ."""
        tokens = zip(self.true_tokens, self.false_tokens, strict=True)
        return tuple(at for at, (true, false) in enumerate(tokens) if true != false)


class TraceColumn(NamedTuple):
    """What a column of the grids stands for: the first pair's token, and its role in all pairs."""

    token: str
    role: Role


@dataclass(frozen=True, repr=False)
class Pairs(Sequence[PromptPair]):
    """Pairs that share one token pattern, so that a column of the grid means the same in all.

    Build them with :func:`ptmech.knowledge.pairs`.

    Attributes
    ----------
    form
        ``completion``: the prompt ends where the object begins. ``true_false``: it ends by asking
        whether the statement is true.
    items
        The pairs.
    columns
        The traced tokens: those of the first pair's true prompt after the worked examples, with
        the role they have in every pair.
    examples
        What stands before the statement, in the order given; in the ``true_false`` form each pair
        has an order of its own.
    pattern
        The tokens that all traced statements share, ``_`` for those they do not.
    """

    form: Form
    items: tuple[PromptPair, ...]
    columns: tuple[TraceColumn, ...]
    examples: tuple[str, ...]
    pattern: str

    @property
    def measure(self) -> Measure:
        """How the answers are compared.

        ``logit_difference`` of their tokens; ``log_probability_difference`` of the whole answers if
        one is of several tokens.
        """
        single = all(len(p.true_answer) == len(p.false_answer) == 1 for p in self.items)
        return "logit_difference" if single else "log_probability_difference"

    @property
    def traced_from(self) -> int:
        """First token of every prompt after the worked examples."""
        return self.items[0].traced_from

    @property
    def frame(self) -> pl.DataFrame:
        """One row a pair: ``true_uid``, ``false_uid``, and ``differing``, the columns that do."""
        rows = [
            (p.true_uid, p.false_uid, [at - p.traced_from for at in p.differing])
            for p in self.items
        ]
        return pl.DataFrame(rows, schema=PAIR_SCHEMA, orient="row")

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        return self.items[index]

    def __iter__(self) -> Iterator[PromptPair]:
        return iter(self.items)

    def __repr__(self) -> str:
        roles = " ".join(f"{column.token!r}:{column.role}" for column in self.columns)
        return (
            f"{len(self)} pairs in the {self.form} form, {len(self.columns)} traced tokens after "
            f"{len(self.examples)} examples, {self.measure}\npattern: {self.pattern}\n{roles}"
        )


PAIR_SCHEMA = {"true_uid": pl.UInt64, "false_uid": pl.UInt64, "differing": pl.List(pl.Int64)}


def make_pairs(
    form: Form, items: Sequence[PromptPair], tokenizer: Any, *, examples: Sequence[str] = ()
) -> Pairs:
    """Put pairs together, and label the tokens that are traced.

    Roles: ``prefix`` before the subject, ``subject`` and ``subject_last`` (its last token),
    ``relation`` between subject and object, ``object``, ``other`` after it or where subject and
    object are not known, ``last`` (the last token of the prompt).

    Raises
    ------
    DataError
        No pairs, prompts of several token counts or spans, or answers of several lengths.
    """
    shapes = {
        (
            len(p.true_tokens),
            len(p.false_tokens),
            p.traced_from,
            p.subject,
            p.object,
            len(p.true_answer),
            len(p.false_answer),
        )
        for p in items
    }
    if len(shapes) != 1 or len(items[0].true_tokens) != len(items[0].false_tokens):
        raise DataError(
            "tracing needs pairs whose prompts share one token count, one subject and object span "
            "and answers of one token count"
        )
    first = items[0]
    traced = range(first.traced_from, len(first.true_tokens))
    columns = [
        TraceColumn(tokenizer.decode([first.true_tokens[at]]), _role(first, at)) for at in traced
    ]
    return Pairs(form, tuple(items), tuple(columns), tuple(examples), _pattern(items, columns))


def _role(pair: PromptPair, at: int) -> Role:
    if at == len(pair.true_tokens) - 1:
        return "last"
    if pair.subject is None:
        return "other"
    start, stop = pair.subject
    if at < start:
        return "prefix"
    if at < stop:
        return "subject_last" if at == stop - 1 else "subject"
    if pair.object is None or at < pair.object[0]:
        return "relation"
    return "object" if at < pair.object[1] else "other"


def _pattern(items: Sequence[PromptPair], columns: Sequence[TraceColumn]) -> str:
    begin = items[0].traced_from
    prompts = [tokens for pair in items for tokens in (pair.true_tokens, pair.false_tokens)]
    return " ".join(
        column.token.strip() if len({tokens[begin + at] for tokens in prompts}) == 1 else "_"
        for at, column in enumerate(columns)
    )
