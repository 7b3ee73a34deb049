"""The project's own true/false statement sets, made from tables of facts.

A probe should find truth, not a word that happens to go with it. So every fact gives one true and
one false statement, and in the sets made from a template the false objects are the true ones dealt
out anew within each split: an object ends as many false statements as true ones, in training as in
test. Statements made from one fact share a ``group``, and the split hangs on the group alone, so
that a fact never crosses from training to test, not even through its negation.

Numbers cannot be balanced that far, because a large number is larger than most. Their pairs are
small steps on ladders, where a number between the ends is the larger one about as often as the
smaller, and each pair is stated in both orders; the size of one number alone gives little away.

The tables lie in ``data/facts``, the sets in ``data/statements``; ``python -m
ptmech_builder.statement_sets`` writes the sets anew, byte for byte.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, TypeAlias

import numpy as np
import typer
from numpy.random import Generator
from scipy.optimize import linear_sum_assignment

from ptmech.errors import DataError

Split: TypeAlias = Literal["train", "validation", "test"]
Polarity: TypeAlias = Literal[1, -1]
Row: TypeAlias = Mapping[str, str]

DATA = Path(__file__).parent / "data"

_SEED = 20250
_FACTS_PER_SPLIT: Mapping[Split, int] = {"train": 60, "validation": 20, "test": 20}
_NUMBER_PAIRS = 100
_SMALLEST, _LARGEST = 21, 99
_UNITS = ("", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


@dataclass(frozen=True)
class Statement:
    """One row of a statement set; the fields are the columns of its file, in this order.

    Attributes
    ----------
    source_id
        Unique within the set: the fact and the truth of this very statement, "paris-true".
    text
        The statement.
    label
        1 if the statement is true, 0 if it is false.
    polarity
        1 for an affirmative statement, -1 for a negated one.
    group
        The fact, "cities/paris": the same in a set and its negation, and in both number sets.
    pair
        The fact within this set, "neg_cities/paris": one true and one false statement.
    split
        "train", "validation" or "test", decided by the group.
    subject, object
        The words of subject and object as they stand in the text; empty for free wording.
    """

    source_id: str
    text: str
    label: Literal[0, 1]
    polarity: Polarity
    group: str
    pair: str
    split: Split
    subject: str
    object: str


class Claim(NamedTuple):
    """A text, and the words in it that an analysis wants to find again."""

    text: str
    subject: str = ""
    object: str = ""


class Fact(NamedTuple):
    """One fact in a true and a false wording, plain and negated; negation turns the truth over."""

    fact_id: str
    true: Claim
    false: Claim
    negated_true: Claim
    negated_false: Claim


class Template(NamedTuple):
    """How to word the rows of a table of subjects and objects.

    The table may have a third column ``avoid``: objects, separated by semicolons, that are never
    drawn as the false one, because there is a Boston in the United Kingdom, too.
    """

    name: str
    subject_column: str
    object_column: str
    affirmative: str
    negated: str


TEMPLATES = (
    Template(
        "cities",
        "city",
        "country",
        "The city of {subject} is in {object}.",
        "The city of {subject} is not in {object}.",
    ),
    Template(
        "element_symb",
        "element",
        "symbol",
        "{subject} has the symbol {object}.",
        "{subject} does not have the symbol {object}.",
    ),
    Template(
        "sp_en_trans",
        "spanish",
        "english",
        "The Spanish word '{subject}' means '{object}'.",
        "The Spanish word '{subject}' does not mean '{object}'.",
    ),
    Template(
        "animal_class",
        "animal",
        "class",
        "The {subject} is {article} {object}.",
        "The {subject} is not {article} {object}.",
    ),
    Template(
        "inventors",
        "inventor",
        "birth_country",
        "{subject} was born in {object}.",
        "{subject} was not born in {object}.",
    ),
)


def split_of(group: str) -> Split:
    """Return the split of a group, about 60/20/20, by a hash of its name alone.

    Examples
    --------
    >>> split_of("cities/paris") == split_of("cities/paris")
    True
    """
    digest = hashlib.sha256(group.encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    if share < 0.6:
        return "train"
    return "validation" if share < 0.8 else "test"


def slug(words: str) -> str:
    """Return words as a plain ASCII id.

    Examples
    --------
    >>> slug("René Laennec")
    'rene-laennec'
    """
    plain = unicodedata.normalize("NFKD", words.lower().replace("ø", "o"))
    return re.sub(r"[^a-z0-9]+", "-", plain.encode("ascii", "ignore").decode()).strip("-")


def number_words(number: int) -> str:
    """Return a number from 20 to 99 in words.

    Examples
    --------
    >>> number_words(51)
    'fifty-one'
    """
    if not 20 <= number <= 99:
        raise DataError(f"{number} is not among the numbers put into words here, 20 to 99")
    tens, unit = _TENS[number // 10 - 2], _UNITS[number % 10]
    return f"{tens}-{unit}" if unit else tens


def deal_false_objects(
    objects: Sequence[str], avoid: Sequence[frozenset[str]], *, rng: Generator
) -> list[str]:
    """Deal the true objects out anew so that none is correct where it lands.

    A random assignment uses each object as a false one exactly as often as it is true.

    Parameters
    ----------
    objects
        The true object of each of n subjects.
    avoid
        For each subject, further objects that it must not be given.
    rng
        The source of chance.

    Returns
    -------
    list of str, length n
        A permutation of ``objects``.

    Raises
    ------
    DataError
        If there is no such permutation: one object is true of more than half of the subjects.
    """
    cost = rng.random((len(objects), len(objects)))
    for costs, true_object, barred in zip(cost, objects, avoid, strict=True):
        costs[[other == true_object or other in barred for other in objects]] = np.inf
    try:
        _, chosen = linear_sum_assignment(cost)
    except ValueError as error:
        raise DataError(
            "the true objects cannot be dealt out as false ones; add facts with other objects"
        ) from error
    return [objects[int(column)] for column in chosen]


def build_statement_sets(tables: Path = DATA / "facts") -> dict[str, list[Statement]]:
    """Turn the tables of facts into all statement sets.

    Parameters
    ----------
    tables
        Folder with the tables: one for each template, and ``facts.csv`` in free wording.

    Returns
    -------
    dict of str to list of Statement
        The sets by name. The same tables always give the same sets.

    Raises
    ------
    DataError
        If two rows of a table share an id, or a table admits no balanced false objects.
    """
    sets: dict[str, list[Statement]] = {}
    for template in TEMPLATES:
        facts = _facts_of_template(template, _read_table(tables / f"{template.name}.csv"))
        sets |= _set_and_negation(template.name, facts)
    facts = _facts_in_free_wording(_read_table(tables / "facts.csv"))
    return sets | _set_and_negation("facts", facts) | _number_sets()


def to_csv(statements: Sequence[Statement]) -> bytes:
    """Return a set as the bytes of its file: UTF-8 (NFC), LF line ends, quotes where needed."""
    buffer = io.StringIO()
    columns = [field.name for field in fields(Statement)]
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(statement) for statement in statements)
    return unicodedata.normalize("NFC", buffer.getvalue()).encode()


def _read_table(path: Path) -> list[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _rng(name: str) -> Generator:
    """Give each set its own stream, so that a longer table changes no other set."""
    return np.random.default_rng([_SEED, *name.encode()])


def _facts_of_template(template: Template, table: Sequence[Row]) -> Iterator[Fact]:
    rng = _rng(template.name)
    by_id = _index(template.name, table, template.subject_column)
    for ids in _choose(template.name, list(by_id), rng=rng):
        rows = [by_id[fact_id] for fact_id in ids]
        objects = [row[template.object_column] for row in rows]
        avoid = [frozenset(row.get("avoid", "").split(";")) for row in rows]
        false_objects = deal_false_objects(objects, avoid, rng=rng)
        for fact_id, row, true, false in zip(ids, rows, objects, false_objects, strict=True):
            subject = row[template.subject_column]
            yield Fact(
                fact_id,
                true=_word(template.affirmative, subject, true),
                false=_word(template.affirmative, subject, false),
                negated_true=_word(template.negated, subject, true),
                negated_false=_word(template.negated, subject, false),
            )


def _facts_in_free_wording(table: Sequence[Row]) -> Iterator[Fact]:
    by_id = _index("facts", table, "fact")
    for ids in _choose("facts", list(by_id), rng=_rng("facts")):
        for fact_id in ids:
            row = by_id[fact_id]
            yield Fact(fact_id, *(Claim(row[wording]) for wording in Fact._fields[1:]))


def _index(name: str, table: Sequence[Row], column: str) -> dict[str, Row]:
    by_id: dict[str, Row] = {}
    for row in table:
        if by_id.setdefault(slug(row[column]), row) is not row:
            raise DataError(f"two rows of the table {name} share the id {slug(row[column])!r}")
    return by_id


def _choose(name: str, ids: Sequence[str], *, rng: Generator) -> Iterator[list[str]]:
    """Yield the facts of one split after the other: a random choice, in the table's order."""
    luck = dict(zip(ids, rng.random(len(ids)), strict=True))
    for split, wanted in _FACTS_PER_SPLIT.items():
        own = [fact_id for fact_id in ids if split_of(f"{name}/{fact_id}") == split]
        chosen = set(sorted(own, key=luck.__getitem__)[:wanted])
        yield [fact_id for fact_id in own if fact_id in chosen]


def _word(wording: str, subject: str, object_: str) -> Claim:
    article = "an" if object_[0] in "aeiou" else "a"
    text = wording.format(subject=subject, object=object_, article=article)
    return Claim(text, subject, object_)


def _set_and_negation(name: str, facts: Iterator[Fact]) -> dict[str, list[Statement]]:
    plain: list[Statement] = []
    negated: list[Statement] = []
    for fact in facts:
        group = f"{name}/{fact.fact_id}"
        plain += _two_statements(name, group, true=fact.true, false=fact.false, polarity=1)
        negated += _two_statements(
            f"neg_{name}", group, true=fact.negated_false, false=fact.negated_true, polarity=-1
        )
    return {name: plain, f"neg_{name}": negated}


def _number_sets() -> dict[str, list[Statement]]:
    sets: dict[str, list[Statement]] = {"larger_than": [], "smaller_than": []}
    for low, high in sorted(islice(_ladder_steps(_rng("numbers")), _NUMBER_PAIRS)):
        group = f"numbers/{low}-{high}"
        upward = _compare(low, "smaller", high), _compare(low, "larger", high)
        downward = _compare(high, "smaller", low), _compare(high, "larger", low)
        for name, true, false in (
            ("larger_than", downward[1], upward[1]),
            ("smaller_than", upward[0], downward[0]),
        ):
            sets[name] += _two_statements(name, group, true=true, false=false, polarity=1)
    return sets


def _ladder_steps(rng: Generator) -> Iterator[tuple[int, int]]:
    """Yield distinct pairs (low, high), each climbing on from the last one's high to the top."""
    seen: set[tuple[int, int]] = set()
    while True:
        low = int(rng.integers(_SMALLEST, _SMALLEST + 9))
        while (high := low + int(rng.integers(4, 13))) <= _LARGEST:
            if (low, high) not in seen:
                seen.add((low, high))
                yield low, high
            low = high


def _compare(subject: int, relation: str, object_: int) -> Claim:
    first, second = number_words(subject).capitalize(), number_words(object_)
    return Claim(f"{first} is {relation} than {second}.", first, second)


def _two_statements(
    name: str, group: str, *, true: Claim, false: Claim, polarity: Polarity
) -> Iterator[Statement]:
    fact_id = group.partition("/")[2]
    labelled: tuple[tuple[Literal[0, 1], Claim], ...] = ((1, true), (0, false))
    for label, claim in labelled:
        yield Statement(
            source_id=f"{fact_id}-{'true' if label else 'false'}",
            label=label,
            polarity=polarity,
            group=group,
            pair=f"{name}/{fact_id}",
            split=split_of(group),
            **claim._asdict(),
        )


def write_statement_sets(
    out: Annotated[Path, typer.Option(help="Folder for the sets.")] = DATA / "statements",
) -> None:
    """Write every statement set as a CSV file."""
    out.mkdir(parents=True, exist_ok=True)
    for name, statements in build_statement_sets().items():
        (out / f"{name}.csv").write_bytes(to_csv(statements))


if __name__ == "__main__":
    typer.run(write_statement_sets)
