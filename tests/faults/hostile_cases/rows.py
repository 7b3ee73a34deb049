"""Rows of one stage that are not the rows of the other."""

from __future__ import annotations

import polars as pl
from tests.faults import hostile as h
from tests.faults.hostile_cases.case import (
    ALIGNMENT,
    DAMAGED,
    FAULTS,
    UNMET,
    Case,
)

ROWS = [
    Case("reordered", h.rows(lambda at: at[::-1]), "activations", ALIGNMENT, "first"),
    Case("reordered, in a pair", h.rows(lambda at: at[::-1]), "pair", ALIGNMENT, "first"),
    Case(
        "reordered, for an analysis", h.rows(lambda at: at[::-1]), "transfer", ALIGNMENT, "cities"
    ),
    Case("reordered, for the summary", h.rows(lambda at: at[::-1]), "summary", ALIGNMENT, "cities"),
    Case(
        "reordered, on the command line",
        h.rows(lambda at: at[::-1]),
        "command truth",
        UNMET,
        "cities",
    ),
    Case("reordered, verified", h.rows(lambda at: at[::-1]), "verify", FAULTS, "rows"),
    Case("one missing", h.rows(lambda at: at[1:]), "activations", ALIGNMENT, "1 missing"),
    Case("one missing, verified", h.rows(lambda at: at[1:]), "command verify", DAMAGED, "rows"),
    Case("one doubled", h.rows(lambda at: [0, *at]), "pair", ALIGNMENT, "1 doubled"),
    Case(
        "of an id nobody has",
        h.arrays(h.LAYER, row_uid=lambda ids: ids + 1),
        "activations",
        ALIGNMENT,
        "missing",
    ),
    Case(
        "an edited text", h.text_becomes(lambda text: f"{text} Not."), "verify", FAULTS, "row_uid"
    ),
    Case(
        "an edited text, for an analysis",
        h.text_becomes(lambda text: f"{text} Not."),
        "pair",
        ALIGNMENT,
        "",
    ),
    Case(
        "a look-alike letter",
        h.text_becomes(lambda text: text.replace("i", "\u0456")),
        "verify",
        FAULTS,
        "row_uid",
    ),
    Case(
        "a look-alike letter, for an analysis",
        h.text_becomes(lambda text: text.replace("i", "\u0456")),
        "pair",
        ALIGNMENT,
        "",
    ),
    Case(
        "a decomposed letter", h.first_row_is(text="Zu\u0308rich is in P0."), "verify", FAULTS, ""
    ),
    Case(
        "a no-break space",
        h.text_becomes(lambda text: text.replace(" ", "\u00a0", 1)),
        "pair",
        ALIGNMENT,
        "",
    ),
    Case(
        "ids that collide",
        h.column(h.STATEMENTS, "row_uid", pl.lit(7, pl.UInt64)),
        "verify",
        FAULTS,
        "",
    ),
    Case(
        "ids that collide, for an analysis",
        h.column(h.STATEMENTS, "row_uid", pl.lit(7, pl.UInt64)),
        "pair",
        ALIGNMENT,
        "",
    ),
    Case(
        "a table in another order",
        h.table(h.STATEMENTS, lambda t: t.reverse()),
        "pair",
        ALIGNMENT,
        "",
    ),
    Case(
        "a table of half the rows",
        h.table(h.STATEMENTS, lambda t: t.gather_every(2)),
        "pair",
        ALIGNMENT,
        "additional",
    ),
]
