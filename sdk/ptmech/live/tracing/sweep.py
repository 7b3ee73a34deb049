"""The patch sweep: every (layer, token) of a run patched in turn, exactly, in one wave.

A cell patches ``resid_post`` of one layer at one token. Before that token and up to that layer it
is the clean run, which one forward has computed already; only the tokens from there on, in the
layers above, have to be computed again. The wave goes up through the model once: at each layer the
cells patched right below it join those patched further down.

With L layers, T traced tokens behind a prefix of P tokens, and cells from the F-th traced token on,
(T - F) (T - F + 1) / 2 * L (L - 1) / 2 tokens go through a block; one forward a cell takes
T L * L (P + T).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ptmech.errors import DataError, UnsupportedModelError
from ptmech.live.sites import ModelSites
from ptmech.live.tracing.clean_run import CleanRun
from ptmech.live.tracing.wave import Group, run_wave

Readout = Callable[[Tensor, Tensor], Tensor]
"""Turns the last ``resid_post`` [runs, reads, d_model], and the row of the clean run that each run
branched off from [runs], into one number a run [runs]."""

TOKENS_AT_ONCE = 2048
"""Packed tokens that go through a block together: what bounds the memory."""


class Sweep(NamedTuple):
    """What a sweep found.

    Attributes
    ----------
    grid
        [rows, layers, columns] float32: the readout of each patched run; of the clean run where no
        patch was asked for or none can change anything.
    unpatched
        [rows] float32: the readout of the clean run.
    control
        How far a cell that was patched with what was there already deviates from `unpatched`.
    """

    grid: Tensor
    unpatched: Tensor
    control: float


@torch.inference_mode()
def patch_sweep(
    sites: ModelSites,
    run: CleanRun,
    donors: Tensor,
    readout: Readout,
    *,
    reads: int = 1,
    first: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> Sweep:
    """Patch every layer and token in turn, and read out each run.

    Parameters
    ----------
    sites
        The model. Under interventions that act on every token alike the sweep is of the model as
        they change it; those that act on chosen tokens do not fit it.
    run
        Its clean run.
    donors
        [rows, layers, columns, d_model]: what is put in place of ``resid_post``. Columns the run
        has beyond these are not patched.
    readout
        What to read off the last block's output.
    reads
        Of how many tokens, up to the last one, the readout needs that output.
    first
        For each row, the first column in which the donors differ from the run at all; patching
        what stands before it is known to change nothing.
    layers
        The layers to patch; None for all.
    tokens_at_once
        How many packed tokens go through a block together; bounds the memory. On a CPU more than
        a thousand or so do not make it faster.

    Raises
    ------
    UnknownNameError
        A layer the model does not have.
    DataError
        Donors of another shape than the run's.
    UnsupportedModelError
        The model's blocks cannot be run by themselves, or do not give what they give in a forward.
    """
    rows, n_layers, n_columns, d_model = run.outputs.shape
    columns = donors.shape[2] if donors.ndim == 4 else 0
    if tuple(donors.shape) != (rows, n_layers, columns, d_model) or not 0 < columns <= n_columns:
        raise DataError(
            f"donors of shape {tuple(donors.shape)} do not fit a run of shape "
            f"{tuple(run.outputs.shape)}: rows, layers, columns, d_model"
        )
    wanted = sorted(set(range(n_layers) if layers is None else layers))
    for layer in wanted:
        sites.check("resid_post", layer)
    require_drivable(sites)

    donors = donors.to(run.outputs.device, run.outputs.dtype)
    everyone = torch.arange(rows)
    unpatched = readout(run.outputs[:, -1, -reads:], everyone).float().cpu()
    grid = unpatched[:, None, None].repeat(1, n_layers, columns)
    deviation = 0.0
    below_last = [layer for layer in wanted if layer < n_layers - 1]
    groups = list(_groups(donors, first or [0] * rows, below_last, n_columns, tokens_at_once))
    # A cell in the middle, patched with what is there already, rides along and must change nothing.
    control = [_untouched(run, group) for group in groups[len(groups) // 2 :][:1]]
    for wave in _waves([*control, *groups], n_columns, tokens_at_once):
        streams = run_wave(sites, run, wave, reads=reads)
        for group, stream in zip(wave, streams, strict=True):
            values = _read(readout, group, stream)
            if group in control:
                deviation = float((values - unpatched[group.prompts]).abs().max())
                _check(sites, deviation, unpatched)
            else:
                layer = torch.tensor(group.layers)[:, None]
                grid[group.prompts, layer, group.column] = values
    if n_layers - 1 in wanted:
        # Nothing reads the last block's output but the unembedding.
        for column in range(n_columns - reads, columns):
            stream = run.outputs[:, -1, -reads:].clone()
            stream[:, column - n_columns] = donors[:, -1, column]
            grid[:, -1, column] = readout(stream, everyone).float().cpu()
    return Sweep(grid, unpatched, deviation)


def require_drivable(sites: ModelSites) -> None:
    """Refuse a model whose attention transformers does not let others replace.

    Raises
    ------
    UnsupportedModelError
        With the model's type.
    """
    if not getattr(sites.model, "_supports_attention_backend", False):
        raise UnsupportedModelError(
            f"models of type {sites.architecture.model_type!r} cannot be traced: their attention "
            "is not exchangeable in this version of transformers"
        )


def _groups(
    donors: Tensor, first: Sequence[int], layers: Sequence[int], n_columns: int, limit: int
) -> Iterator[Group]:
    """List the cells that can change something, below the last layer, `limit` tokens a group."""
    begins = torch.tensor(first)
    for column in range(donors.shape[2]):
        tokens = n_columns - column
        prompts = (begins <= column).nonzero()[:, 0]
        for some in prompts.split(max(1, limit // tokens)):
            at_once = max(1, limit // (tokens * max(1, len(some))))
            for at in range(0, len(layers), at_once) if len(some) else ():
                chosen = layers[at : at + at_once]
                values = donors[some, torch.tensor(chosen)[:, None], column]
                yield Group(chosen, some, column, values)


def _waves(groups: Sequence[Group], n_columns: int, limit: int) -> Iterator[list[Group]]:
    """Put groups together, `limit` tokens at once but one group at least."""
    wave: list[Group] = []
    taken = 0
    for group in groups:
        tokens = len(group.layers) * len(group.prompts) * (n_columns - group.column)
        if wave and taken + tokens > limit:
            yield wave
            wave, taken = [], 0
        wave.append(group)
        taken += tokens
    if wave:
        yield wave


def _untouched(run: CleanRun, group: Group) -> Group:
    """Return one cell of a group, patched with what is there already."""
    layer, prompt = group.layers[0], group.prompts[:1]
    return Group([layer], prompt, group.column, run.outputs[None, prompt, layer, group.column])


def _read(readout: Readout, group: Group, stream: Tensor) -> Tensor:
    """Return the readout of a group [layers, prompts]."""
    values = readout(stream.flatten(0, 1), group.prompts.repeat(len(group.layers)))
    return values.float().cpu().unflatten(0, (len(group.layers), -1))


def _check(sites: ModelSites, deviation: float, unpatched: Tensor) -> None:
    """Compare the control cells' deviation with what rounding can do."""
    precision = torch.finfo(next(sites.layers.parameters()).dtype).eps
    tolerance = precision**0.5 * max(1.0, float(unpatched.abs().max()))
    if not deviation <= tolerance:
        raise UnsupportedModelError(
            f"models of type {sites.architecture.model_type!r} cannot be traced: run one by one, "
            f"their blocks deviate from a whole forward by {deviation:.2g} in the readout, more "
            f"than rounding's {tolerance:.2g}"
        )
