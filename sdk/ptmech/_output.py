"""Where all that the command writes passes: its lines, and those of libraries, bars and tracebacks.

Libraries warn, log and print as they like, with paths, addresses and headers in what they say. So
nothing is left to the places that write: the two standard streams themselves hide what is private.
"""

from __future__ import annotations

import io
import sys
import traceback
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final, TextIO

from typing_extensions import override

from ptmech._privacy import Private
from ptmech._text import visible

_BLOCK: Final = 2**16
"""Characters that are held back where nobody waits for every line."""


@contextmanager
def discreet_output() -> Generator[None]:
    """While it lasts, standard output and error show nothing private, and warnings take a line."""
    private = Private.of_this_machine()
    before = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    # A process may be started without a stream.
    ours = {name: Discreet(stream, private) for name, stream in before.items() if stream}
    for name, stream in ours.items():
        setattr(sys, name, stream)
    with warnings.catch_warnings():
        warnings.formatwarning = _one_line
        try:
            yield
        finally:
            for name, stream in ours.items():
                # Where the reader of a pipe has gone, typer has put something else here.
                if getattr(sys, name) is stream:
                    setattr(sys, name, before[name])
            for stream in ours.values():
                _flushed(stream)


def told(bug: BaseException) -> str:
    """Return the traceback of an error that nobody meant to raise, made safe to pass on."""
    # In one piece: of a text that comes in lines, a key of several lines is not recognised.
    written = "".join(traceback.format_exception(bug))
    return visible(Private.of_this_machine().hidden(written))


class Discreet(io.TextIOBase):
    """Text on its way to a stream, by lines, so that nothing private is cut in two unseen.

    Bytes do not pass: there is no ``buffer``.

    Parameters
    ----------
    stream
        Where the text goes.
    private
        What is hidden on the way.
    """

    def __init__(self, stream: TextIO, private: Private) -> None:
        self._stream = stream
        self._private = private
        self._held: list[str] = []
        self._size = 0
        self._has_line = False

    @override
    def write(self, text: str, /) -> int:
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"text is written here, not {type(text).__name__}")
        self._held.append(text)
        self._size += len(text)
        self._has_line = self._has_line or "\n" in text or "\r" in text
        if self._has_line and (self._size >= _BLOCK or self._stream.line_buffering):
            held = "".join(self._held)
            end = max(held.rfind("\n"), held.rfind("\r")) + 1
            self._send(held[:end], held[end:])
        return len(text)

    @override
    def flush(self) -> None:
        self._send("".join(self._held), "")
        self._stream.flush()

    def beneath(self) -> TextIO:
        """Return the stream to which a text may be written that has nothing to hide any more."""
        self._send("".join(self._held), "")
        return self._stream

    def _send(self, text: str, rest: str) -> None:
        self._held, self._size, self._has_line = [rest], len(rest), False
        if text:
            shown = self._private.hidden(text)
            try:
                self._stream.write(shown)
            except UnicodeEncodeError:
                self._stream.write(as_far_as_possible(shown, self._stream.encoding))

    @property
    @override
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._stream.encoding

    @property
    @override
    def errors(self) -> str | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._stream.errors

    @property
    def line_buffering(self) -> bool:
        """Whether every line is sent at once."""
        return bool(self._stream.line_buffering)

    @override
    def writable(self) -> bool:
        return True

    @override
    def isatty(self) -> bool:
        return self._stream.isatty()

    @override
    def fileno(self) -> int:
        return self._stream.fileno()


def as_far_as_possible(text: str, encoding: str) -> str:
    """Return a text with the letters spelled out that an encoding lacks."""
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _flushed(stream: Discreet) -> None:
    try:
        stream.flush()
    except (BrokenPipeError, ValueError):  # nobody reads any more, or it has been closed
        return


def _one_line(
    message: Warning | str,
    category: type[Warning],
    filename: str,  # noqa: ARG001  where a library warns is of no use to who runs a command
    lineno: int,  # noqa: ARG001
    line: str | None = None,  # noqa: ARG001
) -> str:
    return f"ptmech: {category.__name__}: {visible(' '.join(str(message).split()))}\n"
