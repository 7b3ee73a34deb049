"""The command line: ``ptmech info``, ``verify`` and one command for each perspective.

Every command takes an artifact, prints tables, or with ``--json`` one JSON document. What goes
wrong is said in one line on standard error, with the way out. Exit codes: 0 fine, 1 a bug, 2 a
request that cannot be met, 3 a damaged artifact, 130 interrupted.

Nothing that is written tells a secret, the home folder or who runs it on which machine. This holds
for ``--json`` too: texts that look like one (a statement with a token in it) differ there from what
is stored; read the artifact from Python where every letter counts.

Other distributions add commands through the entry-point group ``ptmech.commands``: each names a
function that takes the :class:`typer.Typer` application.
"""

from ptmech.cli.application import create_app, main
from ptmech.cli.telling import BUG, INTERRUPTED

__all__ = ["BUG", "INTERRUPTED", "create_app", "main"]
