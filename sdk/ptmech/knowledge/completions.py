"""The completion form: a statement cut off before its object is a prompt, the object its answer.

Tracing needs facts that the model completes correctly, in pairs whose prompts share one token
pattern, so that a column of the grid means the same in all of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from ptmech.errors import DataError
from ptmech.knowledge._spans import first_token, occurrences, token_span
from ptmech.knowledge.prompts import Pairs, PromptPair, make_pairs

_ARTICLES = ("the ", "a ", "an ")


class Completion(NamedTuple):
    """A prompt as tokens.

    Attributes
    ----------
    uid
        ``row_uid`` of the statement.
    subject_text
        The subject's words.
    tokens
        The prompt, worked examples included.
    subject
        Its first token, and the one after its last.
    traced_from
        First token after the worked examples.
    answer
        First token of the answer; None where prompt and answer share a token.
    """

    uid: int
    subject_text: str
    tokens: tuple[int, ...]
    subject: tuple[int, int]
    traced_from: int
    answer: int | None


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
        if any(occurrences(words, example) for example in examples)
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


def completion_pairs(
    statements: pl.DataFrame,
    tokenizer: Any,
    *,
    examples: Sequence[str] = (),
    known: Collection[int] | None = None,
    n_pairs: int | None = None,
    seed: int = 0,
    min_subject_tokens: int = 2,
) -> Pairs:
    """Pair facts of the commonest token pattern.

    A pattern is the tokens before the subject, the number of subject tokens, and the tokens after
    it. The facts of a pair have different subjects and different first answer tokens; each fact is
    used at most once. The choice depends on `seed` and on the facts, not on the order of the rows.

    Parameters
    ----------
    statements, examples
        As for :func:`completion_prompts`.
    tokenizer
        The (fast) tokenizer of the model.
    known
        ``row_uid`` of the facts to choose from: those that every model of a comparison knows, see
        :func:`ptmech.live.known_facts`. None for all.
    n_pairs
        How many pairs; None for as many as there are.
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
    prompts = completion_prompts(statements, examples=examples)
    chosen_from = set(prompts["row_uid"] if known is None else known)
    patterns: defaultdict[tuple[Any, ...], list[Completion]] = defaultdict(list)
    for fact in encode_completions(prompts, tokenizer):
        start, stop = fact.subject
        if (
            fact.uid in chosen_from
            and fact.answer is not None
            and stop - start >= min_subject_tokens
        ):
            pattern = (fact.tokens[:start], stop - start, fact.tokens[stop:])
            patterns[pattern].append(fact)
    # Ties go to the shorter subject, then to the smaller token ids: any fixed rule will do.
    commonest = min(patterns, key=lambda p: (-len(patterns[p]), p[1], p[0], p[2]), default=None)
    facts = sorted(patterns[commonest]) if commonest is not None else []
    order = np.random.default_rng(seed).permutation(len(facts))
    found = _pair_up([facts[at] for at in order])
    if len(found) < (n_pairs or 1):
        raise DataError(
            f"only {len(found)} pairs of known facts share a token pattern, {n_pairs or 1} were "
            f"asked for ({len(chosen_from & set(prompts['row_uid']))} of {len(prompts)} facts "
            f"known, {len(facts)} of them in the commonest pattern); ask for fewer pairs or bring "
            "more statements"
        )
    return make_pairs("completion", found[:n_pairs], tokenizer, examples=examples)


def encode_completions(prompts: pl.DataFrame, tokenizer: Any) -> list[Completion]:
    """Tokenise prompts, find the subject's tokens and the first token of the answer.

    Parameters
    ----------
    prompts
        As :func:`completion_prompts` returns them.
    tokenizer
        A fast tokenizer.
    """
    rows = list(prompts["row_uid", "subject", "prompt", "completion", "begin"].iter_rows())
    alone = tokenizer([prompt for _, _, prompt, _, _ in rows], return_offsets_mapping=True)
    # The answer is tokenised where it stands: alone it may start with other tokens.
    whole = tokenizer([prompt + completion for _, _, prompt, completion, _ in rows])
    facts: list[Completion] = []
    for index, (uid, subject, prompt, _completion, begin) in enumerate(rows):
        tokens = tuple(alone["input_ids"][index])
        offsets = alone["offset_mapping"][index]
        subject_at = begin + occurrences(subject, prompt[begin:])[0]
        span = token_span(offsets, subject_at, subject_at + len(subject))
        traced_from = first_token(offsets, begin)
        full = tuple(whole["input_ids"][index])
        separate = full[: len(tokens)] == tokens and len(full) > len(tokens)
        answer = full[len(tokens)] if separate else None
        facts.append(Completion(uid, subject, tokens, span, traced_from, answer))
    return facts


def _split_statement(text: str, subject: str, words: str) -> tuple[str, str, str]:
    """Return prompt, answer without article, and completion."""
    article = next((a for a in _ARTICLES if words.lower().startswith(a)), "")
    # The last occurrence: a subject may contain the object, as in "Mexico City is in Mexico".
    found = occurrences(words, text)
    begin = found[-1] + len(article) if found else 0
    prompt, answer = text[:begin].rstrip(), words[len(article) :]
    if not occurrences(subject, prompt):
        raise DataError(f"no subject {subject!r} before an object {words!r} in: {text}")
    return prompt, answer, text[len(prompt) : begin + len(answer)]


def _pair_up(facts: Sequence[Completion]) -> list[PromptPair]:
    """Pair each fact with the first later one of another subject and answer."""
    waiting: list[Completion] = []
    pairs: list[PromptPair] = []
    for fact in facts:
        partner = next((other for other in waiting if _may_pair(other, fact)), None)
        if partner is None:
            waiting.append(fact)
            continue
        waiting.remove(partner)
        pairs.append(_pair(partner, fact))
    return pairs


def _may_pair(one: Completion, other: Completion) -> bool:
    return (
        one.answer != other.answer
        and one.subject_text != other.subject_text
        and one.tokens != other.tokens
    )


def _pair(true: Completion, false: Completion) -> PromptPair:
    if true.answer is None or false.answer is None:
        raise DataError("a fact without a first answer token cannot be traced")
    return PromptPair(
        true_uid=true.uid,
        false_uid=false.uid,
        true_tokens=true.tokens,
        false_tokens=false.tokens,
        true_answer=(true.answer,),
        false_answer=(false.answer,),
        subject=true.subject,
        traced_from=true.traced_from,
    )
