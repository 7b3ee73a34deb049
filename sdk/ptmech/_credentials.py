"""What gives something away by its mere form, on whatever machine: tokens, keys, passwords, homes.

Texts come from others, so that every pattern takes time in proportion to the text, whatever it
holds: no two parts of a pattern can share the same stretch of text in many ways.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

HIDDEN: Final = "***"


@dataclass(frozen=True)
class Rule:
    """What gives something away by its mere form.

    Attributes
    ----------
    what
        Its name in a refusal.
    hint
        A pattern, for text in small letters, that is wherever this is, and quick to look for.
    pattern
        Where it is.
    shown
        What stands there instead.
    """

    what: str
    hint: str
    pattern: re.Pattern[str]
    shown: str = HIDDEN


CREDENTIALS: Final = (
    Rule(
        "an access token",
        r"hf_|gh[pousr]_|github_pat_|sk-|a[ks]ia",
        re.compile(
            r"\b(?:hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}"
            r"|sk-[A-Za-z0-9_-]{32,}|A[KS]IA[0-9A-Z]{16})"
        ),
    ),
    Rule(
        "a private key",
        r"-----begin ",
        # Up to the next five dashes: the search for an end never goes past another beginning.
        re.compile(
            r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----"
            r"(?:(?:[^-]|-(?!----))*+-----END [A-Z ]{0,40}PRIVATE KEY-----)?"
        ),
    ),
    Rule(
        "an access token",
        r"authorization|bearer",
        re.compile(
            r"(?i)(\bauthorization['\"]?\s{0,9}[:=]\s{0,9}b?['\"]?(?:(?:bearer|basic|token)\s{1,9})?"
            r"|\bbearer\s{1,9})(?=[\w.~+/=-]*[\d=])[\w.~+/=-]{8,}"
        ),
        rf"\1{HIDDEN}",
    ),
    Rule(
        "an access token",
        r"signature=|credential=|token=|sig=|key=",
        re.compile(
            r"(?i)([?&](?:(?:x-amz-)?(?:signature|credential|security-token)|sig|token"
            r"|(?:access|auth)_token|api_?key)=)[^&\s'\"<>*]+"
        ),
        rf"\1{HIDDEN}",
    ),
    Rule(
        "an access token",
        r"aws_se",
        re.compile(r"(?i)(\baws_(?:secret_access_key|session_token)\W{1,6})[\w/+=]{16,}"),
        rf"\1{HIDDEN}",
    ),
    Rule("a password", r"://", re.compile(r"(?<=://)[^/\s:@'\"*]*:[^/\s'\"]+(?=@)")),
    Rule("a password", r"https://", re.compile(r"(?<=https://)[^/\s:@'\"*]+(?=@)")),
)
HOMES: Final = (
    Rule(
        "a home path",
        r"/home/|/users/|:\\",
        re.compile(
            r"(?<![\w.-])(/home/|/Users/|[A-Z]:\\{1,2}Users\\{1,2})[^/\\\s\"'<>*$][^/\\\s\"'<>:,;)]*"
        ),
        rf"\1{HIDDEN}",
    ),
    # Whose home this is, is no secret, but it is a path that nobody else has.
    Rule("a home path", r"/root/", re.compile(r"(?<![\w.-])/root/(?=\S)"), "/root/"),
)
"""Of anybody."""


def without_credentials(text: str) -> str:
    """Return a text without what opens something by its mere form: tokens, keys, passwords.

    Examples
    --------
    >>> without_credentials("https://ada:enchantress@example.org/x?token=1842&page=2")
    'https://***@example.org/x?token=***&page=2'
    """
    for rule in CREDENTIALS:
        text = rule.pattern.sub(rule.shown, text)
    return text
