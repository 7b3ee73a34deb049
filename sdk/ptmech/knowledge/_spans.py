"""Finding words in a text, and characters of a text among its tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence

Offsets = Sequence[tuple[int, int]]
"""For each token, its first character and the one after its last."""


def occurrences(words: str, text: str) -> list[int]:
    """Return where words begin in a text, as whole words."""
    return [found.start() for found in re.finditer(rf"(?<!\w){re.escape(words)}(?!\w)", text)]


def token_span(offsets: Offsets, begin: int, end: int) -> tuple[int, int]:
    """Return the first token of characters `begin` to `end`, and the one after their last."""
    inside = [at for at, (start, stop) in enumerate(offsets) if start < end and stop > begin]
    return inside[0], inside[-1] + 1


def first_token(offsets: Offsets, begin: int) -> int:
    """Return the first token from a character on; at 0 also a token that spans no characters."""
    return next(at for at, (_start, stop) in enumerate(offsets) if begin == 0 or stop > begin)
