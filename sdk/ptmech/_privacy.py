"""What of a text belongs to this machine or to who uses it, and how it is shown instead.

Secrets become ``***``, the home folder ``~``, and the names of user and machine ``$USER`` and
``$HOSTNAME``, so that a command shown can still be run where it was shown. Honest text is never
touched: a value is a secret only if nothing else looks like it, and names, which may be ordinary
words, are replaced only where they stand in an absolute path or an address.

One definition serves the command line, which shows all texts this way, and publishing, which
refuses to send any that would be changed.
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
from functools import cached_property
from pathlib import Path
from typing import Final
from urllib.parse import quote

from ptmech._credentials import CREDENTIALS, HIDDEN, HOMES, without_credentials

HOME: Final = "~"
USER: Final = "$USER"
HOST: Final = "$HOSTNAME"


_COMMON_NAMES: Final = (
    *("admin", "debian", "docker", "jovyan", "localhost", "runner", "ubuntu", "vagrant"),
    *("github", "huggingface"),
)
"""Names of users and machines that say nothing about anybody."""
_SHORTEST_NAME: Final = 6
"""Shorter names of users and machines ("user", "root", "model") are folders everywhere."""
_SHORTEST_SECRET: Final = 10
_LONGEST_PATH: Final = 4096

_SECRET_VARIABLE: Final = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY)$")
_BETWEEN_WORDS: Final = re.compile(r"[\s\"'<>|,;()\[\]{}=`]")
_ABSOLUTE: Final = re.compile(r"[/~\\]|\.\.[/\\]|[A-Za-z]:[/\\]|file:|(?i:%2f)")
_NEVER: Final = re.compile(r"(?!)")


@dataclass(frozen=True)
class Private:
    """What no text that leaves this machine may tell.

    Attributes
    ----------
    secrets
        Tokens and passwords in use, hidden wherever they are.
    folders
        Paths of this machine, shown as ``~``.
    names
        Of user and machine: the name, what it is, and what stands for it.
    """

    secrets: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    names: tuple[tuple[str, str, str], ...] = ()

    @classmethod
    def of_this_machine(cls) -> Private:
        """Gather what is known now of this machine and its user."""
        return cls(
            secrets=(*secrets_of_the_environment(), *_stored_tokens()),
            folders=tuple(_homes()),
            names=names_of_this_machine(),
        )

    def hidden(self, text: str) -> str:
        """Return a text as it may be shown to anybody.

        Examples
        --------
        >>> private = Private(folders=("/data/keeper",), names=(("labuser", "", "$USER"),))
        >>> private.hidden("labuser keeps it in /data/keeper/acts and in /scratch/labuser")
        'labuser keeps it in ~/acts and in /scratch/$USER'
        """
        if not self._hints.search(text.casefold()):
            return text
        text = self.without_secrets(text)
        text = self._folders.sub(HOME, text)
        for rule in HOMES:
            text = rule.pattern.sub(rule.shown, text)
        for name, _, shown in self.names:
            text = _replaced(text, _places(text, name), shown)
        return text

    def without_secrets(self, text: str) -> str:
        """Return a text without secrets of any kind, but with its places and names."""
        return without_credentials(self._secrets.sub(HIDDEN, text))

    def found_in(self, text: str) -> str | None:
        """Return what a text tells that it must not, in words that do not tell it, or None."""
        for rule in (*CREDENTIALS, *HOMES):
            if rule.pattern.search(text):
                return rule.what
        if self._secrets.search(text):
            return "an access token"
        if self._folders.search(text):
            return "a path of this machine"
        return next((what for name, what, _ in self.names if any(_places(text, name))), None)

    @cached_property
    def _hints(self) -> re.Pattern[str]:
        """What is in every text that has anything to hide, and in few others; in small letters."""
        own = (*self.secrets, *self.folders, *(name for name, *_ in self.names))
        spelled = {re.escape(each.casefold()) for text in own for each in _spellings(text)}
        return re.compile("|".join((*(rule.hint for rule in (*CREDENTIALS, *HOMES)), *spelled)))

    @cached_property
    def _secrets(self) -> re.Pattern[str]:
        return _any_of(self.secrets, behind=r"(?![^\W_])", before=r"(?<![^\W_])")

    @cached_property
    def _folders(self) -> re.Pattern[str]:
        """The folders, where they are not just a part of another name."""
        return _any_of(self.folders, behind=r"(?![\w-]|\.\w)", before=r"(?<![\w.-])")


def without_secrets(text: str) -> str:
    """Return a text without credentials, and without the secrets of the environment."""
    return Private(secrets=secrets_of_the_environment()).without_secrets(text)


def is_secret(value: str) -> bool:
    """Whether a value that is called a secret can be hidden wherever it stands.

    Only what no word, number or name of ours is like: ten characters or more in one piece, letters
    and digits among them. Hiding other values would spoil honest text.

    Examples
    --------
    >>> is_secret("open-sesame-1"), is_secret("statements"), is_secret("1512099333")
    (True, False, False)
    """
    return (
        len(value) >= _SHORTEST_SECRET
        and not any(map(str.isspace, value))
        and any(map(str.isdigit, value))
        and any(map(str.isalpha, value))
    )


def secrets_of_the_environment(variables: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return the values of variables that are named as secrets are, longest first."""
    found = {value.strip() for name, value in variables.items() if _SECRET_VARIABLE.search(name)}
    return tuple(sorted(filter(is_secret, found), key=len, reverse=True))


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
                if is_secret(token) and not line.startswith("["):
                    yield token


def _spellings(text: str) -> set[str]:
    """Return how a path or a secret is written in texts, addresses, JSON and Python."""
    return {
        text,
        quote(text),
        quote(text, safe=""),
        json.dumps(text)[1:-1],
        text.replace("/", "\\/"),
        text.replace("\\", "\\\\"),
        text.replace("/", "\\"),
    }


def _any_of(texts: Iterable[str], *, before: str, behind: str) -> re.Pattern[str]:
    """Return the pattern of any of some texts, however spelled, between what may be around it."""
    spelled = sorted({each for text in texts for each in _spellings(text)}, key=len, reverse=True)
    if not spelled:
        return _NEVER
    before = rf"(?:{before}|(?<=\\[nrt])|(?<=%[0-9A-Fa-f]{{2}}))"
    return re.compile(rf"{before}(?:{'|'.join(map(re.escape, spelled))}){behind}")


def _places(text: str, name: str) -> Iterator[tuple[int, int]]:
    """Yield where a name stands in a path or an address, not as a word."""
    word = end = 0
    while (start := text.find(name, end)) >= 0:
        between = _BETWEEN_WORDS.split(text[end:start])
        if len(between) > 1:
            word = start - len(between[-1])
        end = start + len(name)
        if _tells(text, word, start, end):
            yield start, end


def _tells(text: str, word: int, start: int, end: int) -> bool:
    """Whether a name, in a word that begins at `word`, is part of a path or of an address."""
    after = text[end : end + 1]
    glued = text[start - 1 : start].isalnum() and text[start - 3 : start].lower() != "%2f"
    if glued or after.isalnum():
        return False
    if after == "@" or text.endswith(("@", "//", "\\\\"), word, start):
        return True
    if text.endswith(("host='", 'host="'), 0, start):
        return True
    scheme = text.find("://", word, min(start, word + _LONGEST_PATH))
    if scheme >= 0 and not text.endswith("file", word, scheme):
        return False  # a name in the path of a public address belongs to that address
    return _ABSOLUTE.match(text, word, start) is not None


def _replaced(text: str, places: Iterable[tuple[int, int]], shown: str) -> str:
    pieces: list[str] = []
    behind = 0
    for start, end in places:
        pieces += (text[behind:start], shown)
        behind = end
    return "".join((*pieces, text[behind:]))
