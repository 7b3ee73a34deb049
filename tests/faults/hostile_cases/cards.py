"""Cards: the recipes that the builder reads."""

from __future__ import annotations

from tests.faults import hostile as h
from tests.faults.hostile_cases.case import (
    CARD,
    Case,
)

CARDS = [
    Case("nested 5,000 deep", h.card(b"a = " + h.deep(5_000)), "card", CARD, "deep"),
    Case(
        "tables nested 50,000 deep",
        h.card(b"a = " + b"{a=" * 50_000 + b"1" + b"}" * 50_000),
        "card",
        CARD,
        "deep",
    ),
    Case("a key of 50,000 parts", h.card(b".".join([b"a"] * 50_000) + b" = 1"), "card", CARD, ""),
    Case("2 MiB", h.card(b"#" * 2**21), "card", CARD, "bytes"),
    Case("UTF-16", h.card('name = "x"'.encode("utf-16")), "card", CARD, "UTF-8"),
    Case("a NUL", h.card(b'name = "x\0"'), "card", CARD, "TOML"),
    Case("a key of escapes", h.card(b'"\\u001b[31m" = 1'), "card", CARD, "unknown key"),
    Case("a key of 100,000 letters", h.card(b"k" * 100_000 + b" = 1"), "card", CARD, "unknown key"),
    Case("a key twice", h.card(b'name = "x"\nname = "y"'), "card", CARD, "TOML"),
    Case("a title of two lines", h.card(b'name = "x"\ntitle = "a\\nb"'), "card", CARD, ""),
    Case("a title of escapes", h.card(b'name = "x"\ntitle = "a\\u001b[31mb"'), "card", CARD, ""),
    Case("a name like a path", h.card(b'format = 1\nname = "../x"'), "card", CARD, "name"),
]
