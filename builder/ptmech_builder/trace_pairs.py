"""Which prompts causal tracing runs: completion prompts, known facts, matched pairs.

A statement cut off before its object is a prompt, and its object the answer. Tracing needs facts
that the model completes correctly, in pairs whose prompts share one token pattern, so that a column
of the grid means the same in all of them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from torch import nn

from ptmech.errors import DataError
from ptmech.live.generation import next_token_logits

_ARTICLES = ("the ", "a ", "an ")

Role = Literal["prefix", "subject", "subject_last", "relation", "last"]


@dataclass(frozen=True)
class CompletionPair:
    """Two facts whose prompts differ only in the tokens of their subjects.

    Attributes
    ----------
    true_uid, false_uid
        ``row_uid`` of the fact whose answer is traced, and of the one whose prompt is run.
    true_tokens, false_tokens
        Token ids of the two prompts, equally many.
    true_answer, false_answer
        First token of each answer; they differ.
    subject
        First token of the subject, and the one after its last; the same in both prompts.
    traced_from
        First token after the worked examples: the first column of the grids.
    """

    true_uid: int
    false_uid: int
    true_tokens: tuple[int, ...]
    false_tokens: tuple[int, ...]
    true_answer: int
    false_answer: int
    subject: tuple[int, int]
    traced_from: int = 0

    @property
    def first_difference(self) -> int:
        """The first token in which the two prompts differ."""
        tokens = zip(self.true_tokens, self.false_tokens, strict=True)
        return next(at for at, (true, false) in enumerate(tokens) if true != false)


class TraceColumn(NamedTuple):
    """What a column of the grids stands for: the first pair's token, and its role in all pairs."""

    token: str
    role: Role


class _Encoded(NamedTuple):
    uid: int
    subject_text: str
    tokens: tuple[int, ...]
    subject: tuple[int, int]
    traced_from: int
    answer: int | None
    """First token of the answer; None where prompt and answer share a token."""


def completion_prompts(statements: pl.DataFrame, *, examples: Sequence[str] = ()) -> pl.DataFrame:
    """Turn the true affirmative statements into prompts that end where the object begins.

    An article before the object belongs to the prompt: " the" is a likely next token after any
    "is in", whether or not the model knows that Chicago is in the United States.

    Parameters
    ----------
    statements
        Columns ``row_uid``, ``text``, ``label`` (1 or True for true), ``polarity`` (1 for
        affirmative), ``subject`` and ``object`` (empty where the wording is free: such rows are
        left out).
    examples
        True statements to stand before every prompt, separated by spaces. Small models need one to
        see that a name is to follow. Statements whose object occurs in an example are left out,
        for they could be completed by copying.

    Returns
    -------
    polars.DataFrame
        ``row_uid``, ``subject``, ``prompt`` (examples included, no trailing space), ``answer``
        (without article), ``completion`` (the answer with whatever separates it from the prompt)
        and ``begin``, the character of the prompt at which the statement itself begins.

    Raises
    ------
    DataError
        No row is left, or a text in which the subject does not stand before the object.

    Examples
    --------
    >>> row = {"row_uid": [7], "text": ["The city of Lyon is in France."], "label": [1]}
    >>> row |= {"polarity": [1], "subject": ["Lyon"], "object": ["France"]}
    >>> completion_prompts(pl.DataFrame(row)).row(0)
    (7, 'Lyon', 'The city of Lyon is in', 'France', ' France', 0)
    """
    usable = statements.filter(
        (pl.col("label").cast(pl.Int8) == 1)
        & (pl.col("polarity") == 1)
        & (pl.col("subject").fill_null("") != "")
        & (pl.col("object").fill_null("") != "")
    )
    shown = [
        words
        for words in usable["object"].unique()
        if any(_occurrences(words, example) for example in examples)
    ]
    usable = usable.filter(~pl.col("object").is_in(shown))
    if usable.is_empty():
        raise DataError(
            "tracing needs true affirmative statements with a subject and an object that no "
            "example gives away"
        )
    lead_in = "".join(f"{example} " for example in examples)
    columns = ["prompt", "answer", "completion"]
    split = [_split_statement(*row) for row in usable["text", "subject", "object"].iter_rows()]
    return (
        usable.select("row_uid", "subject")
        .hstack(pl.DataFrame(split, schema=columns, orient="row"))
        .with_columns(prompt=lead_in + pl.col("prompt"), begin=pl.lit(len(lead_in)))
    )


def known_facts(
    model: nn.Module, tokenizer: Any, prompts: pl.DataFrame, *, batch_size: int = 32
) -> NDArray[np.bool_]:
    """Tell which facts the model knows: the likeliest next token is the answer's first.

    Parameters
    ----------
    model, tokenizer
        A transformers causal language model and its (fast) tokenizer.
    prompts
        As :func:`completion_prompts` returns them.
    batch_size
        Prompts that run together.

    Returns
    -------
    bool array [prompts]
        A fact whose prompt and answer the tokenizer does not separate counts as not known.
    """
    facts = _encode(prompts, tokenizer)
    logits = next_token_logits(model, [fact.tokens for fact in facts], batch_size=batch_size)
    best: list[int] = logits.argmax(dim=1).tolist()
    return np.array([fact.answer == token for fact, token in zip(facts, best, strict=True)])


def choose_pairs(
    prompts: pl.DataFrame,
    tokenizer: Any,
    *,
    known: NDArray[np.bool_],
    n_pairs: int,
    seed: int,
    min_subject_tokens: int = 2,
) -> list[CompletionPair]:
    """Pair known facts of the commonest token pattern.

    A pattern is the tokens before the subject, the number of subject tokens, and the tokens after
    it. The facts of a pair have different subjects and different first answer tokens; each fact is
    used at most once. The choice depends on `seed` and on the facts, not on the order of the rows.

    Parameters
    ----------
    prompts
        As :func:`completion_prompts` returns them.
    tokenizer
        The (fast) tokenizer of the model.
    known
        bool [prompts]: the facts to choose from, those that every model of a comparison knows.
    n_pairs
        How many pairs.
    seed
        Of the shuffle.
    min_subject_tokens
        Shorter subjects are left out. With a single token the grid says less: that token carries
        the whole difference from the embedding on, by construction.

    Raises
    ------
    DataError
        There are fewer such pairs.
    """
    patterns: defaultdict[tuple[Any, ...], list[_Encoded]] = defaultdict(list)
    for fact, is_known in zip(_encode(prompts, tokenizer), known, strict=True):
        start, stop = fact.subject
        if is_known and fact.answer is not None and stop - start >= min_subject_tokens:
            pattern = (fact.tokens[:start], stop - start, fact.tokens[stop:])
            patterns[pattern].append(fact)
    # Ties go to the shorter subject, then to the smaller token ids: any fixed rule will do.
    commonest = min(patterns, key=lambda p: (-len(patterns[p]), p[1], p[0], p[2]), default=None)
    facts = sorted(patterns[commonest]) if commonest is not None else []
    order = np.random.default_rng(seed).permutation(len(facts))
    pairs = _pair_up([facts[at] for at in order])
    if len(pairs) < n_pairs:
        raise DataError(
            f"only {len(pairs)} pairs of known facts share a token pattern, {n_pairs} were asked "
            f"for ({int(np.sum(known))} of {len(prompts)} facts known, {len(facts)} of them in the "
            "commonest pattern); ask for fewer pairs or bring more statements"
        )
    return pairs[:n_pairs]


def trace_columns(pairs: Sequence[CompletionPair], tokenizer: Any) -> list[TraceColumn]:
    """Label the token columns of the grids.

    Roles: ``prefix`` before the subject, ``subject``, ``subject_last`` (its last token),
    ``relation`` after it, ``last`` (the last token of the prompt).
    """
    begin, end = common_shape(pairs)
    start, stop = pairs[0].subject
    tokens = pairs[0].true_tokens

    def role(at: int) -> Role:
        if at == end - 1:
            return "last"
        if at < start:
            return "prefix"
        if at >= stop:
            return "relation"
        return "subject_last" if at == stop - 1 else "subject"

    return [TraceColumn(tokenizer.decode([tokens[at]]), role(at)) for at in range(begin, end)]


def common_shape(pairs: Sequence[CompletionPair]) -> tuple[int, int]:
    """Return the first traced token of all prompts, and their number of tokens."""
    shapes = {(p.traced_from, p.subject, len(p.true_tokens), len(p.false_tokens)) for p in pairs}
    begin, _subject, end, other_end = next(iter(shapes), (0, (0, 0), 0, 0))
    if len(shapes) != 1 or end != other_end:
        raise DataError("tracing needs pairs whose prompts share one token count and subject span")
    return begin, end


def _split_statement(text: str, subject: str, words: str) -> tuple[str, str, str]:
    """Return prompt, answer without article, and completion."""
    article = next((a for a in _ARTICLES if words.lower().startswith(a)), "")
    # The last occurrence: a subject may contain the object, as in "Mexico City is in Mexico".
    found = _occurrences(words, text)
    begin = found[-1] + len(article) if found else 0
    prompt, answer = text[:begin].rstrip(), words[len(article) :]
    if not _occurrences(subject, prompt):
        raise DataError(f"no subject {subject!r} before an object {words!r} in: {text}")
    return prompt, answer, text[len(prompt) : begin + len(answer)]


def _occurrences(words: str, text: str) -> list[int]:
    """Where words begin in a text, as whole words."""
    return [found.start() for found in re.finditer(rf"(?<!\w){re.escape(words)}(?!\w)", text)]


def _encode(prompts: pl.DataFrame, tokenizer: Any) -> list[_Encoded]:
    """Tokenise prompts, find the subject's tokens and the first token of the answer."""
    rows = list(prompts["row_uid", "subject", "prompt", "completion", "begin"].iter_rows())
    alone = tokenizer([prompt for _, _, prompt, _, _ in rows], return_offsets_mapping=True)
    # The answer is tokenised where it stands: alone it may start with other tokens.
    whole = tokenizer([prompt + completion for _, _, prompt, completion, _ in rows])
    facts: list[_Encoded] = []
    for index, (uid, subject, prompt, _completion, begin) in enumerate(rows):
        tokens = tuple(alone["input_ids"][index])
        offsets = alone["offset_mapping"][index]
        subject_at = begin + _occurrences(subject, prompt[begin:])[0]
        subject_end = subject_at + len(subject)
        span = [
            at
            for at, (start, stop) in enumerate(offsets)
            if start < subject_end and stop > subject_at
        ]
        # Without examples a beginning token, which spans no characters, is traced, too.
        traced_from = next(
            at for at, (_start, stop) in enumerate(offsets) if begin == 0 or stop > begin
        )
        full = tuple(whole["input_ids"][index])
        separate = full[: len(tokens)] == tokens and len(full) > len(tokens)
        answer = full[len(tokens)] if separate else None
        facts.append(_Encoded(uid, subject, tokens, (span[0], span[-1] + 1), traced_from, answer))
    return facts


def _pair_up(facts: Sequence[_Encoded]) -> list[CompletionPair]:
    """Pair each fact with the first later one of another subject and answer."""
    waiting: list[_Encoded] = []
    pairs: list[CompletionPair] = []
    for fact in facts:
        partner = next((other for other in waiting if _may_pair(other, fact)), None)
        if partner is None:
            waiting.append(fact)
            continue
        waiting.remove(partner)
        pairs.append(_pair(partner, fact))
    return pairs


def _may_pair(one: _Encoded, other: _Encoded) -> bool:
    return (
        one.answer != other.answer
        and one.subject_text != other.subject_text
        and one.tokens != other.tokens
    )


def _pair(true: _Encoded, false: _Encoded) -> CompletionPair:
    if true.answer is None or false.answer is None:
        raise DataError("a fact without a first answer token cannot be traced")
    return CompletionPair(
        true_uid=true.uid,
        false_uid=false.uid,
        true_tokens=true.tokens,
        false_tokens=false.tokens,
        true_answer=true.answer,
        false_answer=false.answer,
        subject=true.subject,
        traced_from=true.traced_from,
    )
