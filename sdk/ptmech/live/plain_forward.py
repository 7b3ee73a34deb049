"""One row through a model as transformers alone runs it: what everything faster is held against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ptmech.live.recording import record
from ptmech.live.sites import ModelSites

SiteLayer = tuple[str, int]


def plain_forward(
    sites: ModelSites,
    token_ids: Sequence[int],
    indices: Sequence[int],
    wanted: Sequence[SiteLayer],
) -> dict[SiteLayer, Tensor]:
    """Run one row, alone and without padding, and read the wanted sites.

    The residual stream before and after a block is read from transformers' own ``hidden_states``;
    their last entry has the final norm applied, so the last ``resid_post`` is what goes into that
    norm. Other sites have no counterpart there and are recorded in the same forward; that they are
    what their names say, the site self-check shows.

    Parameters
    ----------
    sites
        The model.
    token_ids
        The row, special tokens included.
    indices
        The tokens to read, counted from the first one.
    wanted
        (site, layer) pairs.

    Returns
    -------
    dict
        (site, layer) to a tensor [positions, d_model], float32 on the CPU.
    """
    ids = torch.tensor([list(token_ids)], device=sites.device)
    places = torch.tensor([list(indices)])
    recorded_sites = [key for key in wanted if key[0] not in ("resid_pre", "resid_post")]
    into_norm: list[Tensor] = []
    handle = sites.final_norm.register_forward_pre_hook(
        lambda _norm, args: into_norm.append(args[0])
    )
    try:
        with torch.inference_mode(), record(sites.model, recorded_sites, places) as recorded:
            output: Any = sites.body(input_ids=ids, use_cache=False, output_hidden_states=True)
    finally:
        handle.remove()
    stream = [*output.hidden_states[:-1], *into_norm]
    found = {key: values[0].float().cpu() for key, values in recorded.items()}
    for site, layer in wanted:
        if (site, layer) not in found:
            state = stream[layer + (site == "resid_post")]
            found[site, layer] = state[0, places[0].to(state.device)].float().cpu()
    return found
