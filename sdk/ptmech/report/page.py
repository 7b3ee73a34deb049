"""The page: everything escaped, every script known by its digest, nothing fetched."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any, cast

import polars as pl

from ptmech._text import visible
from ptmech._web import content_policy, drawing_library, inert_json
from ptmech.artifact import Artifact
from ptmech.console import cell
from ptmech.errors import PrerequisiteError
from ptmech.report.figures import Section, Spec
from ptmech.report.findings import Finding

SHOWN_ROWS = 1000
"""Rows of a table that a page lists; all of them are a line of Python away."""


def page(
    artifact: Artifact,
    earlier: str,
    later: str,
    *,
    findings: Sequence[Finding],
    sections: Sequence[Section],
) -> str:
    """Return the HTML document.

    Raises
    ------
    PrerequisiteError
        If jinja2 or vl-convert is missing.
    """
    try:
        import jinja2
    except ImportError as error:
        raise PrerequisiteError("reports need jinja2: pip install 'ptmech[report]'") from error
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_own_file),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = cast("dict[str, Any]", environment.filters)
    filters |= {"visible": visible, "spec": _spec, "listed": _listed}
    manifest = artifact.manifest
    scripts = [drawing_library(None), _own_file("page.js")]
    return environment.get_template("page.html.jinja").render(
        artifact=artifact,
        manifest=manifest,
        stages=[(name, manifest.stage(name)) for name in (earlier, later)],
        findings=findings,
        sections=sections,
        policy=content_policy(scripts),
        scripts=scripts,
        style=_own_file("page.css"),
        shown=SHOWN_ROWS,
    )


def _own_file(name: str) -> str:
    return files("ptmech.report").joinpath(name).read_text(encoding="utf-8")


def _spec(chart: Spec) -> Any:
    from markupsafe import Markup

    return Markup(inert_json(chart))


def _listed(table: pl.DataFrame) -> list[list[str]]:
    """Return the cells of the rows that are shown, as the command line prints them."""
    return [[cell(value) for value in row] for row in table.head(SHOWN_ROWS).iter_rows()]
