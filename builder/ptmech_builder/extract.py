"""Forward passes: from token ids to the activations of every wanted site and layer.

Rows run packed (:mod:`ptmech.live.packing`); stored positions are gathered by explicit index inside
the hooks, so that nothing else is kept. A sample is then held against plain forwards of one row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from ptmech.errors import DataError, ParityError
from ptmech.live.packing.cost import Packing
from ptmech.live.packing.prefix_trees import Numbers, most_shared
from ptmech.live.packing.running import Ran, run_packed
from ptmech.live.plain_forward import plain_forward
from ptmech.live.sites import ModelSites
from ptmech.manifest import StoredDtype
from ptmech_builder.prompts import Prompts

NUMPY_DTYPES: dict[StoredDtype, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}

SiteLayer = tuple[str, int]
Activations = dict[SiteLayer, np.ndarray]


def wanted_layers(sites: Sequence[str], n_layers: int) -> dict[str, tuple[int, ...]]:
    """Return the layers stored of each site; ``resid_pre`` above 0 is ``resid_post`` below."""
    every = tuple(range(n_layers))
    return {site: (0,) if site == "resid_pre" else every for site in sites}


def extract(
    sites: ModelSites,
    prompts: Prompts,
    wanted: Sequence[SiteLayer],
    *,
    dtype: StoredDtype,
    packing: Packing = "batches",
    tokens_per_batch: int | None = None,
    advance: Callable[[int], object] = lambda _tokens: None,
    note: Callable[[Ran], object] = lambda _ran: None,
) -> Activations:
    """Run the prompts and gather the wanted sites at the stored positions.

    Parameters
    ----------
    sites
        The model.
    prompts
        Rows of one dataset.
    wanted
        (site, layer) pairs.
    dtype
        Element type of the result.
    packing
        Whether rows that begin alike share a sequence, or rows of similar length a batch.
    tokens_per_batch
        Tokens of one forward pass, padding included; None for the rule of
        :func:`ptmech.live.packing.cost.tokens_at_once`.
    advance
        Called with the number of tokens of the rows that are finished, a forward at a time.
    note
        Called once with how the rows were run in the end.

    Returns
    -------
    dict
        (site, layer) to [rows, positions, d_model], rows in the order of the prompts.

    Raises
    ------
    DataError
        If an activation is not finite, or a row does not fit into memory.
    """
    rows, positions = prompts.indices.shape
    shape = (rows, positions, sites.d_model)
    found: Activations = {key: np.empty(shape, NUMPY_DTYPES[dtype]) for key in wanted}

    def keep(batch: Numbers, recorded: Mapping[SiteLayer, Tensor]) -> None:
        for key, values in recorded.items():
            found[key][batch] = to_numpy(values, dtype)
        advance(int(prompts.lengths[batch].sum()))

    ran = run_packed(
        sites,
        prompts.token_ids,
        prompts.indices,
        wanted,
        packing=packing,
        tokens_per_batch=tokens_per_batch,
        dtype=getattr(torch, dtype),
        take=keep,
    )
    note(ran)
    for site, layer in ran.not_finite[:1]:
        raise DataError(
            f"{site} of layer {layer} on {prompts.dataset!r} is not finite in {dtype}; "
            "compute and store in float32 or bfloat16"
        )
    return found


def to_numpy(values: Tensor, dtype: StoredDtype) -> np.ndarray:
    """Bring a tensor to numpy in the stored element type; bf16 to bf16 keeps every bit."""
    converted = values.detach().to("cpu", getattr(torch, dtype))
    if dtype == "bfloat16":
        return converted.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return converted.numpy()


@dataclass(frozen=True)
class ParityCheck:
    """Worst relative deviation from a plain forward, over the sampled rows."""

    worst: float
    rows: int
    where: str


def check_parity(
    sites: ModelSites,
    prompts: Prompts,
    stored: Activations,
    *,
    n_rows: int,
    tolerance: float,
) -> ParityCheck:
    """Compare sampled rows with :func:`plain_forward`, one row at a time.

    Besides `n_rows` rows spread over all, the sample has one that shares as many tokens with
    another row as any does: where packing shares computation, it is proven there. The deviation of
    a row is its largest absolute difference over the largest absolute value of the plain row.

    Raises
    ------
    ParityError
        If a row deviates by more than `tolerance`.
    """
    spread = np.linspace(0, prompts.uids.size - 1, n_rows).astype(int)
    sharing = most_shared(prompts.token_ids)
    rows = np.unique(spread if sharing is None else [*spread, sharing])
    worst = ParityCheck(0.0, rows.size, "")
    for row in rows.tolist():
        plain = plain_forward(
            sites, prompts.token_ids[row], prompts.indices[row].tolist(), list(stored)
        )
        for (site, layer), values in stored.items():
            found = torch.from_numpy(values[row].astype(np.float32))
            expected = plain[site, layer]
            deviation = (found - expected).abs().amax(-1) / expected.abs().amax(-1).clamp_min(1e-30)
            # A value that is not a number is the worst deviation of all.
            value = float(deviation.nan_to_num(nan=math.inf).max())
            if value > worst.worst:
                worst = ParityCheck(value, rows.size, f"{site} layer {layer}, row {row}")
    if not worst.worst <= tolerance:
        raise ParityError(
            f"{prompts.dataset}: {worst.where} deviates by {worst.worst:.2g} from a plain forward, "
            f"more than {tolerance:.2g}; nothing was written"
        )
    return worst
