"""Before anything is timed: what was stored is what the blocks put out, bit for bit."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks.gpu.forwards import Forwards, context_of
from ptmech.errors import ParityError
from ptmech_builder.extract import Activations
from ptmech_builder.prompts import Prompts

Places = Sequence[tuple[int, int]]
"""Sequence and token of what is to be read from one forward."""

TOLERANCE = 5e-2
"""Accepted between two ways to batch the same rows in bf16, relative to a row's largest value."""


def require_same_bits(
    model: PreTrainedModel, prompts: Prompts, stored: Activations, forwards: Forwards
) -> None:
    """Run the forwards again and compare every row with what the blocks themselves put out.

    A row is found in them by what its last token sees: nothing but the row, in its order. So a
    wrong mask, a wrong position id or a wrong index is found as well as a wrong value.

    Parameters
    ----------
    stored
        ``resid_post`` and ``mlp_out`` [rows, 1, d_model] in bf16.

    Raises
    ------
    ParityError
        A row that no forward holds, or one whose values are others.
    """
    rows_of: dict[bytes, list[int]] = {}
    for row, ids in enumerate(prompts.token_ids):
        rows_of.setdefault(context_of(ids), []).append(row)
    run = np.zeros(prompts.uids.size, dtype=bool)
    same = np.zeros_like(run)
    for call, contexts in zip(forwards.calls, forwards.contexts, strict=True):
        found = [
            (row, place)
            for context, places in contexts.items()
            for row in rows_of.get(context, ())
            for place in places
        ]
        if not found:
            continue
        rows = np.array([row for row, _ in found])
        with torch.inference_mode(), block_outputs(model, [place for _, place in found]) as plain:
            model.get_submodule("model")(**call.arguments)
        equal = np.ones(rows.size, dtype=bool)
        for key, values in stored.items():
            bits = plain[key].view(torch.int16).cpu().numpy()
            equal &= (values[rows, 0].view(np.int16) == bits).all(axis=-1)
        run[rows] = True
        same[rows[equal]] = True  # once is enough: a row may have run twice, beside other rows
    if not run.all():
        raise ParityError(f"{prompts.dataset}: no forward holds row {int(run.argmin())} by itself")
    if not same.all():
        raise ParityError(
            f"{prompts.dataset}: {int((~same).sum())} of {same.size} rows are not what a forward "
            f"of the same batches gives, row {int(same.argmin())} the first"
        )


@contextmanager
def block_outputs(
    model: PreTrainedModel, places: Places
) -> Generator[dict[tuple[str, int], Tensor]]:
    """Read each Llama block's output and its MLP's from the next forward, with torch's own hooks.

    Yields
    ------
    dict
        (``"resid_post"`` or ``"mlp_out"``, layer) to [places, d_model].
    """
    found: dict[tuple[str, int], Tensor] = {}
    sequences, tokens = (list(numbers) for numbers in zip(*places, strict=True))

    def keep(module: nn.Module, key: tuple[str, int]) -> torch.utils.hooks.RemovableHandle:
        def hook(_module: nn.Module, _args: object, output: Tensor) -> None:
            found[key] = output[sequences, tokens]

        return module.register_forward_hook(hook)

    handles: list[torch.utils.hooks.RemovableHandle] = []
    for layer in range(model.config.num_hidden_layers):
        block = model.get_submodule(f"model.layers.{layer}")
        handles += [
            keep(block, ("resid_post", layer)),
            keep(block.get_submodule("mlp"), ("mlp_out", layer)),
        ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def deviation(found: Activations, expected: Activations, *, within: float = TOLERANCE) -> float:
    """Return the worst deviation of two extractions of the same rows.

    That of a row is its largest absolute difference over its largest absolute value.

    Raises
    ------
    ParityError
        It is larger than accepted, or not a number.
    """
    worst = 0.0
    for key, values in expected.items():
        wide, other = values.astype(np.float32), found[key].astype(np.float32)
        apart = np.abs(other - wide).max(axis=-1) / np.abs(wide).max(axis=-1)
        worst = max(worst, float(np.nan_to_num(apart, nan=np.inf).max()))
    if not worst <= within:
        raise ParityError(f"a tree's values are {worst:.2g} away from batches', more than {within}")
    return worst
