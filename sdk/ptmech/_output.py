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
from typing import BinaryIO, TextIO

from typing_extensions import Buffer, override

from ptmech._privacy import Private
from ptmech._text import visible


@contextmanager
def discreet_output() -> Generator[None]:
    """While it lasts, standard output and error show nothing private, and warnings take a line."""
    private = Private.of_this_machine()
    before = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    ours = {name: _discreet(stream, private) for name, stream in before.items()}
    for name, stream in ours.items():
        setattr(sys, name, stream)
    with warnings.catch_warnings():
        warnings.formatwarning = _one_line
        try:
            yield
        finally:
            for name, stream in ours.items():
                _flushed(stream)
                # Where the reader of a pipe has gone, typer has put something else here.
                if getattr(sys, name) is stream:
                    setattr(sys, name, before[name])


def told(bug: BaseException) -> str:
    """Return the traceback of an error that nobody meant to raise, made safe to pass on."""
    # In one piece: of a text that comes in lines, a key of several lines is not recognised.
    written = "".join(traceback.format_exception(bug))
    return visible(Private.of_this_machine().hidden(written))


class _Discreet(io.RawIOBase):
    """Bytes on their way out, by lines, so that nothing private is cut in two unseen."""

    def __init__(self, stream: BinaryIO, private: Private, encoding: str) -> None:
        self._stream = stream
        self._private = private
        self._encoding = encoding
        self._rest = b""

    @override
    def write(self, data: Buffer, /) -> int:
        written = bytes(data)
        lines = self._rest + written
        end = max(lines.rfind(b"\n"), lines.rfind(b"\r")) + 1
        self._rest = lines[end:]
        self._send(lines[:end])
        return len(written)

    @override
    def flush(self) -> None:
        rest, self._rest = self._rest, b""
        self._send(rest)
        self._stream.flush()

    def _send(self, written: bytes) -> None:
        if written:
            text = written.decode(self._encoding, "surrogateescape")
            self._stream.write(self._private.hidden(text).encode(self._encoding, "surrogateescape"))

    @override
    def writable(self) -> bool:
        return True

    @override
    def isatty(self) -> bool:
        return self._stream.isatty()

    @override
    def fileno(self) -> int:
        return self._stream.fileno()


def _discreet(stream: TextIO, private: Private) -> TextIO:
    """Return a stream to write to instead; one that is not made of bytes stays as it is."""
    raw = getattr(stream, "buffer", None)
    if raw is None:
        return stream
    stream.flush()
    through = _Discreet(raw, private, stream.encoding)
    return io.TextIOWrapper(
        through,  # pyright: ignore[reportArgumentType]  a raw stream that takes all it is given
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=True,
    )


def _flushed(stream: TextIO) -> None:
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
