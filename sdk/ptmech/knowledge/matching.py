"""One door to the matched pairs that causal tracing needs, whatever their form."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, get_args

import polars as pl

from ptmech._arguments import several, whole_number
from ptmech._worked_examples import ANSWERS
from ptmech.errors import DataError, unknown
from ptmech.knowledge.completions import completion_pairs
from ptmech.knowledge.prompts import Form, Pairs
from ptmech.knowledge.questions import question_pairs


def pairs(
    statements: pl.DataFrame,
    tokenizer: Any,
    *,
    form: Form = "completion",
    examples: Sequence[str] | None = None,
    known: Collection[int] | None = None,
    n_pairs: int | None = None,
    seed: int = 0,
    answers: tuple[str, str] = ANSWERS,
) -> Pairs:
    """Find matched pairs of prompts in a dataset, for one tokenizer.

    The commonest token pattern of the dataset is found, and pairs are made within it, so that a
    column of the grid means the same in all of them.

    Parameters
    ----------
    statements
        Rows of a statement set, such as ``artifact.statements("cities")``: ``text``, ``label`` (1
        or True for true), and where there are ``row_uid``, ``subject`` and ``object``; the
        completion form also needs ``polarity``.
    tokenizer
        The (fast) tokenizer of the model; ``model.tokenizer`` of a live one.
    form
        ``completion``: "The city of Paris is in", for models of any size, on facts they know.
        ``true_false``: "The city of Paris is in France. This statement is:", the paper's form,
        which small models cannot answer.
    examples
        Worked examples before every prompt. The completion form takes true statements, none if
        None; the other form statements with question and answer, of which it chooses four itself
        if None. What occurs in an example is not traced.
    known
        ``row_uid`` of the statements to choose from, such as those a model is known to answer;
        None for all.
    n_pairs
        How many pairs; None for as many as there are.
    seed
        Of all choices.
    answers
        The ``true_false`` form's answers to true and to false statements.

    Returns
    -------
    Pairs
        Print it to see pattern and columns.

    Raises
    ------
    UnknownNameError
        A form that does not exist.
    DataError
        Columns that are missing, or fewer pairs than asked for.

    Examples
    --------
    >>> from ptmech import knowledge
    >>> knowledge.pairs(artifact.statements("cities"), tokenizer, n_pairs=8)  # doctest: +SKIP
    """
    if form not in get_args(Form):
        raise unknown("form", form, get_args(Form))
    if examples is not None:
        examples = several("examples", examples)
    if n_pairs is not None:
        whole_number("n_pairs", n_pairs)
    whole_number("seed", seed, least=0)
    needed = {"text", "label"} if form == "true_false" else {*_COMPLETION_COLUMNS}
    missing = sorted(needed - set(statements.columns))
    if missing:
        raise DataError(f"the {form} form needs statements with a column {missing[0]!r}")
    options: dict[str, Any] = {"known": known, "n_pairs": n_pairs, "seed": seed}
    if form == "completion":
        return completion_pairs(statements, tokenizer, examples=examples or (), **options)
    return question_pairs(statements, tokenizer, examples=examples, answers=answers, **options)


_COMPLETION_COLUMNS = ("row_uid", "text", "label", "polarity", "subject", "object")
