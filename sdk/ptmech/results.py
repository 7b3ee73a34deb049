"""What every analysis returns: a frozen record of numbers and of where they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from ptmech._text import visible

if TYPE_CHECKING:
    import altair as alt

PACKAGES = ("ptmech", "numpy", "scipy", "scikit-learn", "polars")
"""Packages whose versions can change a result."""


def installed_versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Return the installed version of each package; one that is absent is left out.

    Parameters
    ----------
    packages
        Names of distributions.

    Returns
    -------
    dict of str to str
        By name.
    """
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

    def plot(self) -> alt.Chart | alt.LayerChart | alt.FacetChart | alt.VConcatChart:
        """Draw the result as an altair chart.

        Returns
        -------
        altair chart
            To show in a notebook, or to change further.

        Raises
        ------
        PrerequisiteError
            If altair is missing.
        """
        from ptmech import plots  # imported late: plots are optional, results are not

        return plots.draw(self)

    def save(self, path: str | Path) -> Path:
        """Write the chart or the numbers to a file; what kind of file, its name says.

        Parameters
        ----------
        path
            ``.png`` and ``.svg`` hold the chart; ``.html`` a page with it, which loads nothing
            from anywhere; ``.parquet`` the frame, with the artifact, the kind of result, its
            arguments and the versions as JSON in the file's metadata under the key ``ptmech``.

        Returns
        -------
        Path
            Where it is. A file that was there before is replaced once the new one is whole.

        Raises
        ------
        DataError
            If the name ends in anything else, or there is no chart for this result.
        StorageError
            If there is no such folder, or the disk refuses.
        PrerequisiteError
            If a chart is asked for and altair or vl-convert is missing.

        Examples
        --------
        >>> truth.similarity(artifact, "base", "instruct").save("cosines.svg")  # doctest: +SKIP
        PosixPath('cosines.svg')
        """
        from ptmech.saving import save  # imported late, like the charts

        return save(self, path)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return visible(f"{type(self).__name__}({arguments}) from {self.artifact}\n{self.frame}")
