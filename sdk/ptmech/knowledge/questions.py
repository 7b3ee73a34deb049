"""The TRUE/FALSE form: worked examples, a statement, and the question whether it is true.

Pairs are a true and a false statement of one dataset that agree in token count and token pattern
and end in the same word, asked behind the same worked examples (Du et al. 2025, section 3).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from ptmech._worked_examples import ANSWERS, QUESTION
from ptmech.errors import DataError
from ptmech.knowledge._spans import Offsets, first_token, occurrences, token_span
from ptmech.knowledge.prompts import Pairs, PromptPair, TokenSpan, make_pairs

_FRAME_SHARE = 0.5
"""Tokens that occur in more of the statements than this are the wording they share."""
_EXAMPLES_A_KIND = 2


class Question(NamedTuple):
    """A statement with its question, as tokens behind the worked examples.

    Attributes
    ----------
    uid, text, label
        Of the statement.
    tokens
        The traced tokens: statement and question.
    masked
        The same, None for those that most statements do not have.
    subject, object
        Where they stand among `tokens`; None where they are not known.
    """

    uid: int
    text: str
    label: bool
    tokens: tuple[int, ...]
    masked: tuple[int | None, ...]
    subject: TokenSpan | None
    object: TokenSpan | None

    @property
    def last_word(self) -> str:
        """The word the statement ends in."""
        return self.text.split()[-1]

    def tokens_shared(self, other: Question) -> int:
        """Return how many tokens another question of the same length has in the same place."""
        return sum(one == two for one, two in zip(self.tokens, other.tokens, strict=True))


def question_pairs(
    statements: pl.DataFrame,
    tokenizer: Any,
    *,
    examples: Sequence[str] | None = None,
    known: Collection[int] | None = None,
    n_pairs: int | None = None,
    seed: int = 0,
    answers: tuple[str, str] = ANSWERS,
) -> Pairs:
    """Pair true and false statements of the commonest token pattern.

    The pattern of a statement is its tokens, those left open that less than half of the statements
    have; and where subject and object stand, if they are stated. Within the pattern of which most
    pairs can be made, a true statement is paired with the false one that ends in the same word and
    has most tokens in common with it; each is used at most once.

    Parameters
    ----------
    statements
        Columns ``text`` and ``label`` (1 or True for true); where there are ``row_uid``,
        ``subject`` and ``object``, they are used. Without a subject and an object they are taken
        to be the two open stretches of the pattern, if it has two.
    tokenizer
        The (fast) tokenizer of the model.
    examples
        Worked examples to stand before every statement, each with its question and answer, such as
        "The tuna is a mammal. This statement is: FALSE". None takes two true and two false
        statements. Statements that occur in them are left out.
    known
        ``row_uid`` of the statements to choose from; None for all.
    n_pairs
        How many pairs; None for as many as there are.
    seed
        Of the choice of examples and pairs, and of the examples' order before each pair.
    answers
        What follows the question when the statement is true, and when it is false.

    Raises
    ------
    DataError
        Too few such pairs, too few statements for the examples, or answers that a tokenizer does
        not separate from the prompt.
    """
    random = np.random.default_rng(seed)
    if "row_uid" not in statements.columns:
        statements = statements.with_row_index("row_uid")
    # Neither the choice nor the order may hang on the order of the rows.
    statements = statements.with_columns(pl.col("label").cast(pl.Boolean)).sort("text", "row_uid")
    if examples is None:
        examples = _choose_examples(statements, random, answers)
    shown = [any(occurrences(text, shown) for shown in examples) for text in statements["text"]]
    usable = statements.filter(~pl.Series(shown, dtype=pl.Boolean))
    if known is not None:
        usable = usable.filter(pl.col("row_uid").is_in(list(known)))
    if usable.is_empty():
        raise DataError("no statement is left to trace that no worked example gives away")
    questions = _encode(usable, tokenizer, _lead_in(examples))
    matched = _match(questions, random)
    if len(matched) < (n_pairs or 1):
        raise DataError(
            f"only {len(matched)} pairs of a true and a false statement share a token pattern and "
            f"their last word, {n_pairs or 1} were asked for (of {len(questions)} statements); ask "
            "for fewer pairs or bring more statements"
        )
    chosen = [matched[at] for at in random.permutation(len(matched))[:n_pairs]]
    items: list[PromptPair] = []
    for true, false in chosen:
        order: list[int] = random.permutation(len(examples)).tolist()
        lead_in = _lead_in([examples[at] for at in order])
        items.append(_ask(true, false, lead_in, tokenizer, answers))
    return make_pairs("true_false", items, tokenizer, examples=examples)


def _choose_examples(
    statements: pl.DataFrame, random: np.random.Generator, answers: tuple[str, str]
) -> list[str]:
    """Take two true and two false statements, each with its question and answer."""
    examples: list[str] = []
    for label, answer in ((True, answers[0]), (False, answers[1])):
        texts = statements.filter(pl.col("label") == label)["text"].to_list()
        if len(texts) <= _EXAMPLES_A_KIND:
            raise DataError(
                f"{len(texts)} {'true' if label else 'false'} statements are too few for worked "
                "examples and pairs"
            )
        places = random.choice(len(texts), _EXAMPLES_A_KIND, replace=False)
        examples += [f"{texts[at]}{QUESTION}{answer}" for at in places]
    return examples


def _lead_in(examples: Sequence[str]) -> str:
    return "".join(f"{example}\n" for example in examples)


def _encode(statements: pl.DataFrame, tokenizer: Any, lead_in: str) -> list[Question]:
    """Tokenise statements behind the examples and find their subjects and objects."""
    texts = statements["text"].to_list()
    encoded = tokenizer(
        [f"{lead_in}{text}{QUESTION}" for text in texts], return_offsets_mapping=True
    )
    begins = [first_token(offsets, len(lead_in)) for offsets in encoded["offset_mapping"]]
    traced = [
        tuple(tokens[begin:]) for tokens, begin in zip(encoded["input_ids"], begins, strict=True)
    ]
    # Characters counted from where the statement begins.
    places = [
        [(start - len(lead_in), stop - len(lead_in)) for start, stop in offsets[begin:]]
        for offsets, begin in zip(encoded["offset_mapping"], begins, strict=True)
    ]
    frequency = Counter(token for tokens in traced for token in set(tokens))
    frame = {t for t, count in frequency.items() if count > _FRAME_SHARE * len(texts)}
    named = {"subject", "object"} <= set(statements.columns)
    words = statements["subject", "object"].rows() if named else [("", "")] * len(texts)
    found: list[Question] = []
    for uid, text, label, tokens, offsets, (subject, about) in zip(
        statements["row_uid"], texts, statements["label"], traced, places, words, strict=True
    ):
        masked = tuple(token if token in frame else None for token in tokens)
        spans = _stated(text, subject, about, offsets) or _open_stretches(masked, text, offsets)
        found.append(Question(uid, text, label, tokens, masked, *spans))
    return found


def _stated(
    text: str, subject: str | None, about: str | None, offsets: Offsets
) -> tuple[TokenSpan, TokenSpan] | None:
    """Find a stated subject, and the object after it; capital letters do not matter."""
    if not subject or not about:
        return None
    lower = text.lower()
    first = occurrences(subject.lower(), lower)
    last = occurrences(about.lower(), lower)
    if not first or not last or last[-1] < first[0] + len(subject):
        return None
    return (
        token_span(offsets, first[0], first[0] + len(subject)),
        token_span(offsets, last[-1], last[-1] + len(about)),
    )


def _open_stretches(
    masked: Sequence[int | None], text: str, offsets: Offsets
) -> tuple[TokenSpan, TokenSpan] | tuple[None, None]:
    """Return the two stretches of open tokens, if there are two; a word is never split."""
    word = [len(text[:stop].split()) for _start, stop in offsets]
    stretches: list[TokenSpan] = []
    for at, token in enumerate(masked):
        if token is not None:
            continue
        if stretches and (stretches[-1][1] == at or word[stretches[-1][1] - 1] == word[at]):
            stretches[-1] = (stretches[-1][0], at + 1)
        else:
            stretches.append((at, at + 1))
    return (stretches[0], stretches[1]) if len(stretches) == 2 else (None, None)


def _match(
    questions: Sequence[Question], random: np.random.Generator
) -> list[tuple[Question, Question]]:
    """Pair true with false questions, in the pattern that gives most pairs."""
    patterns: defaultdict[Any, list[Question]] = defaultdict(list)
    for question in questions:
        patterns[question.masked, question.subject, question.object].append(question)
    best: list[tuple[Question, Question]] = []
    for alike in patterns.values():
        pairs = _pair_up([alike[at] for at in random.permutation(len(alike))])
        if len(pairs) > len(best):
            best = pairs
    return best


def _pair_up(questions: Sequence[Question]) -> list[tuple[Question, Question]]:
    """Pair each true question with the likest false one of the same last word."""
    false: defaultdict[str, list[Question]] = defaultdict(list)
    for question in questions:
        if not question.label:
            false[question.last_word].append(question)
    pairs: list[tuple[Question, Question]] = []
    for true in questions:
        partners = [q for q in false[true.last_word] if true.label and q.tokens != true.tokens]
        if partners:
            partner = max(partners, key=true.tokens_shared)
            false[true.last_word].remove(partner)
            pairs.append((true, partner))
    return pairs


def _ask(
    true: Question, false: Question, lead_in: str, tokenizer: Any, answers: tuple[str, str]
) -> PromptPair:
    """Put two questions behind the examples."""
    prompts = [f"{lead_in}{question.text}{QUESTION}" for question in (true, false)]
    whole = [prompt + answer for prompt in prompts for answer in answers]
    ids = [tuple(tokens) for tokens in tokenizer(prompts + whole)["input_ids"]]
    begin = len(ids[0]) - len(true.tokens)
    asked = [tokens[begin:] for tokens in ids[:2]]
    spelled = [
        full[len(prompt) :]
        for prompt, full in zip((ids[0], ids[0], ids[1], ids[1]), ids[2:], strict=True)
        if full[: len(prompt)] == prompt
    ]
    if asked != [true.tokens, false.tokens] or len(spelled) < 4 or spelled[:2] != spelled[2:]:
        raise DataError(
            f"this tokenizer does not keep examples, statement, question and answers "
            f"{answers[0]!r} and {answers[1]!r} apart"
        )
    if not all(spelled) or spelled[0] == spelled[1]:
        raise DataError(f"answers {answers[0]!r} and {answers[1]!r} cannot be told apart")

    def moved(span: TokenSpan | None) -> TokenSpan | None:
        return None if span is None else (span[0] + begin, span[1] + begin)

    return PromptPair(
        true_uid=true.uid,
        false_uid=false.uid,
        true_tokens=ids[0],
        false_tokens=ids[1],
        true_answer=spelled[0],
        false_answer=spelled[1],
        subject=moved(true.subject),
        object=moved(true.object),
        traced_from=begin,
    )
