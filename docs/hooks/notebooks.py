"""Notebooks as pages that fetch nothing."""

from __future__ import annotations

import re
from typing import Any

# nbconvert's template knows where in the network to find what draws diagrams; these have none.
_FETCHING = re.compile(r'<script type="module">(?:(?!</script>).)*?mermaid.*?</script>', re.DOTALL)
_UNTOLD = 'alt="No description has been provided for this image"'
_TOLD = 'alt="Chart drawn by the code above"'


def on_page_content(html: str, *, page: Any, **_: Any) -> str:
    """Take out the script that would fetch another one, and say what pictures are."""
    if not page.file.src_uri.endswith(".ipynb"):
        return html
    return _FETCHING.sub("", html).replace(_UNTOLD, _TOLD)
