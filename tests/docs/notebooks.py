"""The notebooks of the documentation, executed.

``python -m tests.docs.notebooks`` stores what they give now in place of what they gave.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from tests.docs.pages import DOCS, ROOT

NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONWARNINGS": "ignore:IProgress not found",
}
"""tqdm asks for widgets, which charts and tables do without."""
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


def executed(path: Path, folder: Path) -> Any:
    """Return a notebook run from its first cell to its last, in a folder; errors are raised."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=300,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env={**os.environ, **ENVIRONMENT})
    return notebook


def texts(notebook: Any) -> list[str]:
    """Return what each code cell printed or is worth, as text."""
    return [
        "".join(_text(output) for output in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def _text(output: Any) -> str:
    if output.output_type == "stream":
        return output.text
    drawn = any(kind.startswith("image/") for kind in output.get("data", {}))
    return "" if drawn else output.get("data", {}).get("text/plain", "")


def main() -> None:
    """Run every notebook beside the demo artifact and store what it gave."""
    for path in NOTEBOOKS:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "artifacts").symlink_to(ROOT / "artifacts")
            notebook = executed(path, Path(folder))
        notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
        for cell in notebook.cells:
            cell.metadata = {}
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
