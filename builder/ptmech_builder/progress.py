"""What a person sees while a build runs: bars on what takes long, one line a finished unit.

Lines name what cards and files call things, so they are made fit to be seen, kept and passed on.
"""

from __future__ import annotations

import sys

from tqdm import tqdm

from ptmech._privacy import Private
from ptmech._text import visible


class Progress:
    """Writes to standard error, so that standard output stays free for results.

    Parameters
    ----------
    quiet
        Whether to show nothing at all.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._private = Private.of_this_machine()

    def line(self, text: str) -> None:
        """Write a line, above any bar."""
        if not self.quiet:
            tqdm.write(self._shown(text), file=sys.stderr)
            # Where standard error is a file, lines would wait there until a bar is drawn.
            sys.stderr.flush()

    def bar(self, total: int, what: str, unit: str = "token") -> tqdm:
        """Return a bar with rate and remaining time; it shows itself after two seconds.

        Parameters
        ----------
        total
            Steps to come.
        what
            Shown before the bar.
        unit
            What a step is.
        """
        return tqdm(
            total=total,
            desc=self._shown(what),
            unit=f" {unit}s",
            unit_scale=True,
            delay=2,
            leave=False,
            disable=self.quiet,
            file=sys.stderr,
        )

    def _shown(self, text: str) -> str:
        return visible(self._private.hidden(text))
