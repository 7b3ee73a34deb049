"""Files of the repository that pages link to, though they stand outside of the documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

_LINKED = ("examples/slurm.sh",)


def on_files(files: Any, config: Any) -> Any:
    """Add the files to the site, under their own names."""
    root = Path(config.config_file_path).parent
    for name in _LINKED:
        files.append(File.generated(config, name, abs_src_path=str(root / name)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Lead links out of the documentation to these copies."""
    for name in _LINKED:
        markdown = markdown.replace(f"](../{name})", f"]({name})")
    return markdown
