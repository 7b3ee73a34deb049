"""Runs the Python blocks of one page in one namespace, and writes what each of them printed.

Called as a process of its own: ``python running.py BLOCKS.json OUTPUTS.json``.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import warnings
from pathlib import Path


def main(blocks: Path, outputs: Path) -> None:
    """Run every block; the first that fails ends it with its traceback."""
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", module=r"torch\.|transformers\.|peft\.")
    namespace: dict[str, object] = {"__name__": "__main__"}
    printed: list[str] = []
    for block in json.loads(blocks.read_text()):
        # Lines are counted as in the page, so that a traceback leads there.
        program = compile("\n" * block["line"] + block["code"], block["page"], "exec")
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(program, namespace)
        printed.append(out.getvalue())
    outputs.write_text(json.dumps(printed))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
