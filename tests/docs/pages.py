"""What a page of the documentation runs, and what it says comes out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))

_NOT_RUN = re.compile(r"<!--\s*not run: (.+?)\s*-->", re.DOTALL)
_CHEAP = {"info", "summary", "knowledge", "truth", "refusal", "confidence", "report"}
"""Commands that read the demo artifact within seconds."""


@dataclass(frozen=True)
class Block:
    """A piece of code on a page.

    Attributes
    ----------
    language
        ``python`` or ``sh``.
    code
        As it stands there.
    line
        Where it begins.
    shown
        What the page says it prints; None if it says nothing.
    not_run
        Why it is not run, in the words of the comment before it; None if it is.
    """

    language: str
    code: str
    line: int
    shown: str | None = None
    not_run: str | None = None


def blocks(page: str) -> list[Block]:
    """Return the Python and shell blocks of a page, in order."""
    return list(_blocks((DOCS / page).read_text(encoding="utf-8")))


def _blocks(text: str) -> Iterator[Block]:
    tokens = [t for t in MarkdownIt().parse(text) if not t.type.endswith("_close")]
    for number, token in enumerate(tokens):
        language = token.info.split(" ")[0] if token.type == "fence" else ""
        if language not in {"python", "sh"}:
            continue
        before = tokens[number - 1] if number else None
        after = tokens[number + 1] if number + 1 < len(tokens) else None
        comment = before is not None and before.type == "html_block"
        reason = _NOT_RUN.search(before.content) if comment else None
        follows = after is not None and after.type == "fence" and after.info == "text"
        yield Block(
            language=language,
            code=token.content,
            line=token.map[0] + 1,
            shown=after.content if follows else None,
            not_run=reason[1] if reason else None,
        )


def cheap_commands(block: Block) -> list[str]:
    """Return the lines of a shell block that ask the demo artifact something."""
    lines = (line.split("#")[0].strip() for line in block.code.splitlines())
    return [line for line in lines if _asks_the_demo(line.split())]


def _asks_the_demo(words: list[str]) -> bool:
    return (
        words[:1] == ["ptmech"]
        and words[1:2] != []
        and (words[1] in _CHEAP and "artifacts/demo" in words)
    )


_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w])")
_ID = re.compile(r"demo@[0-9a-f]{12}")


def difference(shown: str, printed: str) -> str | None:
    """Say how what was printed differs from what a page shows; None if it does not.

    Words have to be the same but for space and the lines of tables; numbers may differ by one in
    the last digit that is shown, as they do between machines. A line ``...`` stands for any lines.
    """
    pieces = [_plain(piece) for piece in re.split(r"^\.\.\.$", shown, flags=re.MULTILINE)]
    text = _plain(printed)
    if len(pieces) == 1:
        return _compared(pieces[0], text)
    if len(text) < sum(map(len, pieces)):
        return f"shown {pieces}, printed {text}"
    head, tail = pieces[0], pieces[-1]
    return _compared(head, text[: len(head)]) or (
        _compared(tail, text[len(text) - len(tail) :]) if tail else None
    )


def _plain(text: str) -> list[str]:
    return re.sub(r"[─═┄]+", "─", _ID.sub("demo@...", text)).split()


def _compared(shown: list[str], printed: list[str]) -> str | None:
    if len(shown) != len(printed):
        return f"shown {' '.join(shown)}\nprinted {' '.join(printed)}"
    for here, there in zip(shown, printed, strict=True):
        if _NUMBER.sub("0", here) != _NUMBER.sub("0", there):
            return f"shown {here!r}, printed {there!r}"
        for left, right in zip(_NUMBER.findall(here), _NUMBER.findall(there), strict=True):
            if abs(float(left) - float(right)) > 1.01 * _last_digit(left, right):
                return f"shown {here!r}, printed {there!r}"
    return None


def _last_digit(*numbers: str) -> float:
    """Return what one in the last digit is worth; nothing where all are whole."""
    digits = [number for number in numbers if "." in number or "e" in number]
    return max((_worth(number) for number in digits), default=0.0)


def _worth(number: str) -> float:
    digits, _, exponent = number.partition("e")
    return 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))
