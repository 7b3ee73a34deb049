"""Results as files: the chart as a picture or as a page of its own, the numbers as a table."""

from __future__ import annotations

import html
import io
import json
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from ptmech._web import (
    content_policy,
    converter,
    drawing_library,
    inert_json,
    vegalite_version,
)
from ptmech.errors import DataError, StorageError, first_line
from ptmech.results import Result

METADATA_KEY: Final = "ptmech"
"""Under which a table's file tells where its numbers come from."""
_SCALE: Final = 2
"""Pixels of a picture for each of the chart's."""

_PAGE: Final = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
</head>
<body>
<div id="chart"></div>
<script type="application/json" id="spec">{spec}</script>
<script>{bundle}</script>
<script>{start}</script>
</body>
</html>
"""
_START: Final = """\
vegaEmbed("#chart", JSON.parse(document.getElementById("spec").textContent), {
  ast: true,
  actions: {export: true, source: false, compiled: false, editor: false}
});"""


def save(result: Result, path: str | Path) -> Path:
    """Write a result to a file, see :meth:`ptmech.results.Result.save`."""
    place = Path(path).expanduser()
    made = _MAKERS.get(place.suffix.lower())
    if made is None:
        *some, last = _MAKERS
        raise DataError(
            f"cannot save {str(path)!r}: the name has to end in {', '.join(some)} or {last}"
        )
    _require_folder(place)
    return written_whole(place, made(result))


def written_whole(path: str | Path, content: bytes) -> Path:
    """Write a file beside its place and move it there, so that no half of it is ever seen.

    Parameters
    ----------
    path
        Of the file; one that is there is replaced.
    content
        All of it.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    StorageError
        If there is no such folder, or the disk refuses.
    """
    place = Path(path).expanduser()
    _require_folder(place)
    temporary = place.with_name(f".{secrets.token_hex(8)}.part")
    try:
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(place)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise StorageError(f"cannot save {str(path)!r}: {reason}") from error
    return place


def provenance(result: Result) -> dict[str, Any]:
    """Return where a result's numbers come from, as plain values.

    Returns
    -------
    dict
        ``artifact``, ``result`` (name of its class), ``arguments``, ``versions``.
    """
    return {
        "artifact": result.artifact,
        "result": type(result).__name__,
        "arguments": dict(result.arguments),
        "versions": dict(result.versions),
    }


def _parquet(result: Result) -> bytes:
    told = json.dumps(provenance(result), ensure_ascii=False, default=_plain)
    buffer = io.BytesIO()
    result.frame.write_parquet(buffer, metadata={METADATA_KEY: told})
    return buffer.getvalue()


def _png(result: Result) -> bytes:
    spec, version = _drawn(result)
    return converter().vegalite_to_png(spec, vl_version=version, scale=_SCALE)


def _svg(result: Result) -> bytes:
    spec, version = _drawn(result)
    return converter().vegalite_to_svg(spec, vl_version=version).encode()


def _html(result: Result) -> bytes:
    spec, version = _drawn(result)
    bundle = drawing_library(version)
    named = f"{type(result).__name__} of {result.artifact}"
    return _PAGE.format(
        title=html.escape(named),
        policy=content_policy([bundle, _START]),
        spec=inert_json(spec),
        bundle=bundle,
        start=_START,
    ).encode()


_MAKERS: Final[Mapping[str, Callable[[Result], bytes]]] = {
    ".png": _png,
    ".svg": _svg,
    ".html": _html,
    ".parquet": _parquet,
}
"""What makes the content of a file, by how its name ends."""


def _drawn(result: Result) -> tuple[dict[str, Any], str | None]:
    """Return a result's chart, and the version of Vega-Lite it is written in."""
    chart = result.plot()
    converter()  # if it is missing, that is said now
    spec = chart.to_dict()
    return spec, vegalite_version(spec)


def _plain(value: Any) -> Any:
    """Return an argument that JSON has no word for: NumPy's numbers as numbers, others as text."""
    return value.item() if hasattr(value, "item") else str(value)


def _require_folder(path: Path) -> None:
    if not path.parent.is_dir():
        raise StorageError(f"cannot save {str(path)!r}: there is no folder {str(path.parent)!r}")
