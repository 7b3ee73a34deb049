"""What of a text belongs to this machine or to who uses it, and how it is shown instead.

Secrets become ``***`` and the home folder ``~``. Names of the user and the machine may be ordinary
words, so that they are replaced only where they stand in a path or in an address. One definition
serves the command line, which shows all texts this way, and publishing, which refuses to send any
that would be changed.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

HIDDEN: Final = "***"
HOME: Final = "~"
USER: Final = "<user>"
HOST: Final = "<host>"


@dataclass(frozen=True)
class _Rule:
    """What gives something away wherever it is, and what stands there instead."""

    what: str
    pattern: re.Pattern[str]
    shown: str = HIDDEN


_CREDENTIALS: Final = (
    _Rule(
        "an access token",
        re.compile(
            r"\b(?:hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}"
            r"|sk-[A-Za-z0-9_-]{32,}|A[KS]IA[0-9A-Z]{16})"
        ),
    ),
    _Rule(
        "a private key",
        re.compile(
            r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:.*?-----END [A-Z ]*PRIVATE KEY-----)?", re.DOTALL
        ),
    ),
    _Rule(
        "an access token",
        re.compile(
            r"(?i)(\bauthorization['\"]?\s*[:=]\s*[b'\"]*(?:(?:bearer|basic|token)\s+)?|\bbearer\s+(?=\S*\d))"
            r"[\w.~+/=-]{8,}"
        ),
        rf"\1{HIDDEN}",
    ),
    _Rule(
        "an access token",
        re.compile(
            r"(?i)([?&](?:(?:x-amz-)?(?:signature|credential|security-token)|sig|token"
            r"|(?:access|auth)_token|api_?key)=)[^&\s'\"<>*]+"
        ),
        rf"\1{HIDDEN}",
    ),
    _Rule(
        "an access token",
        re.compile(r"(?i)(\baws_(?:secret_access_key|session_token)\W{1,6})[\w/+=]{16,}"),
        rf"\1{HIDDEN}",
    ),
    _Rule("a password", re.compile(r"(?<=://)[^/\s:@'\"*]*:[^/\s'\"]+(?=@)")),
    _Rule("a password", re.compile(r"(?<=https://)[^/\s:@'\"*]+(?=@)")),
)
_HOMES: Final = (
    _Rule(
        "a home path",
        re.compile(
            r"(?<![\w.-])(/home/|/Users/|[A-Z]:\\{1,2}Users\\{1,2})[^/\\\s\"'<>][^/\\\s\"'<>:,;)]*"
        ),
        rf"\1{USER}",
    ),
    _Rule("a home path", re.compile(r"(?<![\w.-])/root/(?=\S)"), "/root/"),
)
"""Of anybody. Whose home is ``/root`` is no secret, but a path that nobody else has."""

_COMMON_NAMES: Final = (
    *("admin", "debian", "docker", "jovyan", "localhost", "runner", "ubuntu", "vagrant"),
    *("github", "huggingface"),
)
"""Names of users and machines that say nothing about anybody."""
_SHORTEST_NAME: Final = 6
"""Shorter names of users and machines ("user", "root", "model") are folders everywhere."""
_SHORTEST_SECRET: Final = 6
_LONGEST_PATH: Final = 4096

_TOKEN_VARIABLES: Final = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_SECRET_VARIABLE: Final = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY)$")
_BETWEEN_WORDS: Final = re.compile(r"[\s\"'<>|,;()\[\]{}=`]")
_ABSOLUTE: Final = re.compile(r"[/~\\]|[A-Za-z]:[/\\]|file:|(?i:%2f)")


@dataclass(frozen=True)
class Private:
    """What no text that leaves this machine may tell.

    Attributes
    ----------
    secrets
        Tokens and passwords in use, hidden wherever they are.
    folders
        Paths of this machine, and what stands for each.
    names
        Of user and machine: the name, what it is, and what stands for it.
    """

    secrets: tuple[str, ...] = ()
    folders: tuple[tuple[str, str], ...] = ()
    names: tuple[tuple[str, str, str], ...] = ()

    @classmethod
    def of_this_machine(cls) -> Private:
        """Gather what is known now of this machine and its user."""
        return cls(
            secrets=(*secrets_of_the_environment(), *_stored_tokens()),
            folders=tuple((home, HOME) for home in _homes()),
            names=names_of_this_machine(),
        )

    def hidden(self, text: str) -> str:
        """Return a text as it may be shown to anybody.

        Examples
        --------
        >>> private = Private(folders=(("/data/ada", "~"),), names=(("lovelace", "", "<user>"),))
        >>> private.hidden("lovelace keeps hers in /data/ada/acts and in /scratch/lovelace")
        'lovelace keeps hers in ~/acts and in /scratch/<user>'
        """
        for secret in self.secrets:
            text = text.replace(secret, HIDDEN)
        text = without_credentials(text)
        for path, shown in self.folders:
            for spelling, instead in _spellings(path, shown):
                if spelling in text:
                    text = _whole_path(spelling).sub(lambda _, instead=instead: instead, text)
        for rule in _HOMES:
            text = rule.pattern.sub(rule.shown, text)
        for name, _, shown in self.names:
            text = _replaced(text, list(_places(text, name)), shown)
        return text

    def found_in(self, text: str) -> str | None:
        """Return what a text tells that it must not, in words that do not tell it, or None."""
        for rule in (*_CREDENTIALS, *_HOMES):
            if rule.pattern.search(text):
                return rule.what
        if any(secret in text for secret in self.secrets):
            return "an access token"
        for path, shown in self.folders:
            for spelling, _ in _spellings(path, shown):
                if spelling in text and _whole_path(spelling).search(text):
                    return "a path of this machine"
        return next(
            (what for name, what, _ in self.names if next(_places(text, name), None) is not None),
            None,
        )


def without_credentials(text: str) -> str:
    """Return a text without what opens something by its mere form: tokens, keys, passwords.

    Examples
    --------
    >>> without_credentials("https://ada:enchantress@example.org/x?token=1842&page=2")
    'https://***@example.org/x?token=***&page=2'
    """
    for rule in _CREDENTIALS:
        text = rule.pattern.sub(rule.shown, text)
    return text


def without_secrets(text: str) -> str:
    """Return a text without credentials, and without the secrets of the environment."""
    for secret in secrets_of_the_environment():
        text = text.replace(secret, HIDDEN)
    return without_credentials(text)


def secrets_of_the_environment(variables: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return the values of variables that are named as secrets are, longest first.

    Words and short values are none: hiding those would hide half a message.
    """
    found = {
        value.strip()
        for name, value in variables.items()
        if name in _TOKEN_VARIABLES or (_SECRET_VARIABLE.search(name) and not value.isalpha())
    }
    return tuple(sorted(filter(_is_long_enough, found), key=len, reverse=True))


def names_of_this_machine() -> tuple[tuple[str, str, str], ...]:
    """Return the names of machine and user that say something about them."""
    host = socket.gethostname()
    named = {
        host: ("the name of this machine", HOST),
        host.partition(".")[0]: ("the name of this machine", HOST),
        _user(): ("the name of the user", USER),
    }
    return tuple(
        (name, *about)
        for name, about in named.items()
        if len(name) >= _SHORTEST_NAME and name.lower() not in _COMMON_NAMES
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # no user database, as in some containers
        return ""


def _homes() -> Iterator[str]:
    """Yield the home folder as it is called and as it is, then the one of the user database."""
    found: dict[str, None] = {}
    with suppress(RuntimeError):  # no home at all
        home = Path.home()
        found |= {str(home): None, os.path.realpath(home): None}
    with suppress(ImportError, KeyError):
        import pwd

        found[pwd.getpwuid(os.getuid()).pw_dir] = None
    # A home inside another comes first; a root is nobody's home.
    yield from sorted((path for path in found if Path(path).name), key=len, reverse=True)


def _stored_tokens() -> Iterator[str]:
    """Yield what ``hf auth login`` keeps."""
    from huggingface_hub import constants

    files = (constants.HF_TOKEN_PATH, getattr(constants, "HF_STORED_TOKENS_PATH", None))
    for file in filter(None, files):
        # A file that cannot be read gives nothing away.
        with suppress(OSError, UnicodeDecodeError):
            for line in Path(file).read_text(encoding="utf-8").splitlines():
                token = line.rpartition("=")[2].strip()
                if _is_long_enough(token) and not line.startswith("["):
                    yield token


def _is_long_enough(secret: str) -> bool:
    return len(secret) >= _SHORTEST_SECRET


def _spellings(path: str, shown: str) -> Iterable[tuple[str, str]]:
    """Return how a path is written in texts, addresses, JSON and Python, and what is shown."""
    return {
        path: shown,
        quote(path): shown,
        quote(path, safe=""): shown,
        json.dumps(path)[1:-1]: shown,
        path.replace("/", "\\/"): shown,
        path.replace("\\", "\\\\"): shown,
        path.replace("/", "\\"): shown,
    }.items()


def _whole_path(path: str) -> re.Pattern[str]:
    """Return the pattern of a path that is not just a part of another name."""
    return re.compile(rf"(?:(?<![\w.-])|(?<=\\[nrt])){re.escape(path)}(?![\w-]|\.\w)")


def _places(text: str, name: str) -> Iterator[tuple[int, int]]:
    """Yield where a name stands in a path or an address, not as a word."""
    start = text.find(name)
    while start >= 0:
        end = start + len(name)
        if _tells(text[max(0, start - _LONGEST_PATH) : start], text[end : end + 1]):
            yield start, end
        start = text.find(name, end)


def _tells(before: str, after: str) -> bool:
    """Whether a name between two texts is part of a path on a disk, or of an address."""
    ahead = _BETWEEN_WORDS.split(before)[-1]
    if (before[-1:].isalnum() and not ahead.lower().endswith("%2f")) or after.isalnum():
        return False
    if after == "@" or ahead.endswith(("@", "//", "\\\\")) or before.endswith(("host='", 'host="')):
        return True
    if "://" in ahead and "file://" not in ahead:
        return False  # a name in the path of a public address belongs to that address
    within = ahead.endswith(("/", "\\")) and after in ("/", "\\")
    return within or _ABSOLUTE.match(ahead) is not None


def _replaced(text: str, places: list[tuple[int, int]], shown: str) -> str:
    for start, end in reversed(places):
        text = f"{text[:start]}{shown}{text[end:]}"
    return text
