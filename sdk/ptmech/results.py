"""What every analysis returns: a frozen record of numbers and of where they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import polars as pl

from ptmech._text import visible

if TYPE_CHECKING:
    import altair as alt

PACKAGES = ("ptmech", "numpy", "scipy", "scikit-learn", "polars")
"""Packages whose versions can change a result."""


def installed_versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Return the installed version of each package; one that is absent is left out."""
    found: dict[str, str] = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True, kw_only=True)
class Result:
    """Base of all results.

    Attributes
    ----------
    frame
        The numbers as a table; each subclass documents its columns.
    artifact
        Identity of the artifact, :attr:`Artifact.id`: ``owner/name@commit`` from the Hub, which
        :func:`ptmech.load` takes again; else ``name@`` and the sha256 of its manifest, shortened.
    arguments
        The arguments that led here, as plain values.
    versions
        Versions of the packages that computed it.
    """

    frame: pl.DataFrame
    artifact: str
    arguments: Mapping[str, Any]
    versions: Mapping[str, str] = field(default_factory=installed_versions)

    def plot(self) -> alt.Chart | alt.LayerChart:
        """Draw the result as an altair chart.

        Raises
        ------
        PrerequisiteError
            If altair is missing.
        """
        from ptmech import plots  # imported late: plots are optional, results are not

        return plots.draw(self)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return visible(f"{type(self).__name__}({arguments}) from {self.artifact}\n{self.frame}")
