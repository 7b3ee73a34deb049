"""Pages that hold texts of others: data that cannot become code, scripts known by their digests."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import Any, Final

from ptmech.errors import PrerequisiteError

_ENDS_A_SCRIPT: Final = {ord(each): f"\\u{ord(each):04x}" for each in "<>&\u2028\u2029"}
"""What the tokenizer of HTML must not see as it is; JSON can spell it out."""


def inert_json(value: Any) -> str:
    r"""Return a value as JSON that stays within its script element.

    Raises
    ------
    ValueError
        If a number is not finite.

    Examples
    --------
    >>> inert_json({"text": "</script>"})
    '{"text": "\\u003c/script\\u003e"}'
    """
    return json.dumps(value, allow_nan=False, ensure_ascii=False).translate(_ENDS_A_SCRIPT)


def content_policy(scripts: Sequence[str]) -> str:
    """Return a content security policy: these scripts run, no other, and nothing is fetched."""
    digests = (base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


@cache
def drawing_library(vegalite: str | None) -> str:
    """Return Vega, Vega-Lite of a version (the newest if None) and vega-embed as one script."""
    return converter().javascript_bundle(vl_version=vegalite)


def converter() -> ModuleType:
    """Return what draws without a browser, and knows what draws within one.

    Raises
    ------
    PrerequisiteError
        If it is missing.
    """
    try:
        import vl_convert
    except ImportError as error:
        raise PrerequisiteError(
            "saving a chart needs vl-convert: pip install 'ptmech[report]'"
        ) from error
    return vl_convert


def vegalite_version(chart: dict[str, Any]) -> str | None:
    """Return the version of Vega-Lite that a chart is written in; None if it is not at hand."""
    asked = chart["$schema"].rpartition("/v")[2].removesuffix(".json")
    version = ".".join(asked.split(".")[:2])
    return version if version in converter().get_vegalite_versions() else None
