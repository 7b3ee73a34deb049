"""Densities of a sample, to be drawn as curves."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_TAILS: Final = 4.0
"""Bandwidths that a grid goes beyond its samples, where a Gaussian has ended."""


def densities(
    samples: list[NDArray[Any]], points: int = 64
) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:
    """Estimate the density of several samples on one grid, with a Gaussian kernel.

    The bandwidth is Scott's (1992), the sample's standard deviation times ``n ** -0.2``; a step of
    the grid where that is more.

    Parameters
    ----------
    samples
        Arrays [n] of finite numbers; one may be empty, and its density is 0.
    points
        Of the grid.

    Returns
    -------
    grid : array of shape [points]
        It reaches beyond all samples.
    found : list of arrays of shape [points]
        Each integrates to 1 over the grid.

    Examples
    --------
    >>> grid, (density,) = densities([np.array([-1.0, 0.0, 1.0])])
    >>> round(float(np.trapezoid(density, grid)), 3)
    1.0
    """
    everything = np.concatenate(samples)
    if not everything.size:
        return np.linspace(-1, 1, points), [np.zeros(points) for _ in samples]
    low, high = everything.min(), everything.max()
    widths = [sample.std() * len(sample) ** -0.2 for sample in samples if len(sample)]
    room = max(_TAILS * max(widths), (high - low) / 4) or 1.0
    grid = np.linspace(low - room, high + room, points)
    return grid, [_density(sample, grid) for sample in samples]


def _density(sample: NDArray[Any], grid: NDArray[np.float64]) -> NDArray[np.float64]:
    if not len(sample):
        return np.zeros(len(grid))
    # Narrower than the grid's own steps, a bell would fall between two of its points.
    width = max(sample.std() * len(sample) ** -0.2, grid[1] - grid[0])
    steps = (grid[:, None] - sample) / width
    return np.exp(-(steps**2) / 2).mean(axis=1) / (width * np.sqrt(2 * np.pi))
