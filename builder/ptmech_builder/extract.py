"""Forward passes: from token ids to the activations of every wanted site and layer.

Rows are sorted by length, filled into batches by a token budget and padded on the right; stored
positions are gathered by explicit index inside the hooks, so that nothing else is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from ptmech.errors import DataError, ParityError
from ptmech.live.plain_forward import plain_forward
from ptmech.live.recording import record
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


def batches(lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Split rows into batches of similar length.

    Parameters
    ----------
    lengths
        Tokens of each row [rows].
    budget
        Padded tokens a batch may have. A single row longer than that is a batch of its own.

    Yields
    ------
    numpy.ndarray
        Row numbers; together every row exactly once.
    """
    order = np.argsort(lengths, kind="stable")
    start = 0
    for stop in range(1, order.size + 1):
        full = stop < order.size and lengths[order[stop]] * (stop + 1 - start) > budget
        if full or stop == order.size:
            yield order[start:stop]
            start = stop


def pad_right(token_ids: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask [rows, tokens], padded on the right.

    What stands in the padding does not matter: no token attends to it.
    """
    longest = max(len(ids) for ids in token_ids)
    padded = torch.zeros(len(token_ids), longest, dtype=torch.long)
    mask = torch.zeros_like(padded)
    for row, ids in enumerate(token_ids):
        padded[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = 1
    return padded.to(device), mask.to(device)


def extract(
    sites: ModelSites,
    prompts: Prompts,
    wanted: Sequence[SiteLayer],
    *,
    dtype: StoredDtype,
    tokens_per_batch: int,
    advance: Callable[[int], object] = lambda _tokens: None,
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
    tokens_per_batch
        Padded tokens of one forward pass.
    advance
        Called with the number of tokens of each finished batch.

    Returns
    -------
    dict
        (site, layer) to [rows, positions, d_model], rows in the order of the prompts.

    Raises
    ------
    DataError
        If an activation is not finite.
    """
    rows, positions = prompts.indices.shape
    shape = (rows, positions, sites.d_model)
    found: Activations = {key: np.empty(shape, NUMPY_DTYPES[dtype]) for key in wanted}
    for batch in batches(prompts.lengths, tokens_per_batch):
        ids, mask = pad_right([prompts.token_ids[row] for row in batch], sites.device)
        indices = torch.from_numpy(prompts.indices[batch])
        with torch.inference_mode(), record(sites.model, wanted, indices) as recorded:
            sites.body(input_ids=ids, attention_mask=mask, use_cache=False)
        for key, values in recorded.items():
            found[key][batch] = to_numpy(values, dtype)
        advance(int(prompts.lengths[batch].sum()))
    for (site, layer), values in found.items():
        if not np.isfinite(values.astype(np.float32, copy=False)).all():
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

    The deviation of a row is its largest absolute difference over the largest absolute value of the
    plain row.

    Raises
    ------
    ParityError
        If a row deviates by more than `tolerance`.
    """
    rows = np.unique(np.linspace(0, prompts.uids.size - 1, n_rows).astype(int))
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
