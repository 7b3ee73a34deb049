"""Probes: scikit-learn estimators that read truth (or any two labels) from activations.

All are linear. ``fit`` takes activations [n, d] and two labels, ``direction_`` [d] points towards
the greater label (True, 1), and ``decision_function`` gives its log-odds.

Examples
--------
>>> import numpy as np
>>> rng = np.random.default_rng(0)
>>> labels = rng.integers(0, 2, 200).astype(bool)
>>> activations = rng.normal(size=(200, 16)) + 3.0 * labels[:, None]
>>> for name in ("mass_mean", "whitened_mass_mean", "logistic"):
...     probe = make_probe(name).fit(activations[:100], labels[:100])
...     print(name, float(probe.score(activations[100:], labels[100:])))
mass_mean 1.0
whitened_mass_mean 1.0
logistic 1.0
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from ptmech.errors import unknown
from ptmech.probes.base import LinearProbe
from ptmech.probes.ccs import CCSProbe
from ptmech.probes.logistic import LogisticProbe
from ptmech.probes.mass_mean import MassMeanProbe
from ptmech.probes.threshold import LogisticLine, fit_logistic_line
from ptmech.probes.ttpd import TTPDProbe

__all__ = [
    "PROBES",
    "CCSProbe",
    "LinearProbe",
    "LogisticLine",
    "LogisticProbe",
    "MassMeanProbe",
    "TTPDProbe",
    "fit_logistic_line",
    "make_probe",
]

PROBES: Mapping[str, Callable[..., LinearProbe]] = MappingProxyType(
    {
        "mass_mean": MassMeanProbe,
        "whitened_mass_mean": partial(MassMeanProbe, whiten=True),
        "logistic": LogisticProbe,
        "ttpd": TTPDProbe,
        "ccs": CCSProbe,
    }
)
"""The probes by name, in the order of their cost."""


def make_probe(name: str, **parameters: Any) -> LinearProbe:
    """Return a new, unfitted probe.

    Parameters
    ----------
    name
        One of :data:`PROBES`: ``"mass_mean"``, ``"whitened_mass_mean"``, ``"logistic"``,
        ``"ttpd"`` or ``"ccs"``.
    **parameters
        Parameters of the estimator other than its defaults.

    Returns
    -------
    LinearProbe
        A scikit-learn estimator.

    Raises
    ------
    UnknownNameError
        There is no probe of that name.

    Examples
    --------
    >>> make_probe("logistic", C=0.1)
    LogisticProbe(C=0.1)
    """
    if name not in PROBES:
        raise unknown("probe", name, PROBES)
    return PROBES[name](**parameters)
