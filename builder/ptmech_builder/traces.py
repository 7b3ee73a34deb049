"""Causal tracing in the completion form: which activations carry a known fact.

"The city of Paris is in" is completed by " France"; the same prompt with another subject the model
knows is not. Each cell (layer, token) of a grid is the run of the other subject's prompt, the
*false* one, with ``resid_post`` of that one layer and token replaced by its value in the *true*
subject's run; the number in it is logit(true answer) - logit(false answer) after the prompt.
Where the grid reaches what the true prompt itself gives, that activation carries the fact (Meng et
al., "Locating and Editing Factual Associations in GPT"; Du et al., section 4, asks the same of
TRUE/FALSE questions, which small models cannot answer).

This is the plain exact form: every cell is a whole forward, many cells in a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ptmech.errors import DataError
from ptmech.live.interventions import intervene, patch
from ptmech.live.sites import ModelSites, record
from ptmech_builder.trace_pairs import CompletionPair, common_shape


class TraceGrids(NamedTuple):
    """Logit differences, true answer less false answer, float32.

    Attributes
    ----------
    grid
        [pairs, layers, tokens]: the false prompt, patched at one layer and token.
    unpatched
        [pairs]: the false prompt left alone; 0 on the usual scale.
    source
        [pairs]: the true prompt left alone, in the same model; 1 on the usual scale.
    """

    grid: NDArray[np.float32]
    unpatched: NDArray[np.float32]
    source: NDArray[np.float32]


@torch.inference_mode()
def source_run(
    model: nn.Module, pairs: Sequence[CompletionPair], *, batch_size: int = 32
) -> Tensor:
    """Run the true prompts and keep every block's output.

    Returns
    -------
    Tensor
        ``resid_post`` [pairs, layers, tokens, d_model] of the tokens after the examples, float32
        on the CPU.
    """
    begin, end = common_shape(pairs)
    sites = ModelSites.of(model)
    wanted = [("resid_post", layer) for layer in range(sites.n_layers)]
    batches: list[Tensor] = []
    for rows in _token_matrix([pair.true_tokens for pair in pairs]).split(batch_size):
        traced = torch.arange(begin, end).expand(len(rows), end - begin)
        with record(model, wanted, traced) as found:
            sites.body(input_ids=rows.to(sites.device), use_cache=False)
        batches.append(torch.stack([found[key].float().cpu() for key in wanted], dim=1))
    return torch.cat(batches)


@torch.inference_mode()
def trace_grid(
    model: nn.Module,
    pairs: Sequence[CompletionPair],
    *,
    source_values: Tensor,
    same_model: bool,
    batch_size: int = 64,
) -> TraceGrids:
    """Patch the true runs into the false prompts, one layer and token at a time.

    Parameters
    ----------
    model
        The model the false prompts run in.
    pairs
        The pairs of facts, all of one token pattern.
    source_values
        ``resid_post`` [pairs, layers, tokens, d_model] of the true prompts, from
        :func:`source_run` of this model or of another one of the same shape.
    same_model
        Whether `source_values` come from this very model. Then the tokens before the first
        difference of a pair hold the same values in both runs, and their cells are left at the
        unpatched value without running them.
    batch_size
        Cells that run together.

    Returns
    -------
    TraceGrids
        Grid, unpatched and source differences.

    Raises
    ------
    DataError
        Pairs of several token patterns, or source values of another shape than this model's.
    """
    begin, end = common_shape(pairs)
    sites = ModelSites.of(model)
    expected = (len(pairs), sites.n_layers, end - begin, sites.d_model)
    if tuple(source_values.shape) != expected:
        raise DataError(
            f"source values of shape {tuple(source_values.shape)} do not fit {expected}: pairs, "
            "layers, tokens, d_model of the model that is traced"
        )
    prompts = _token_matrix([pair.false_tokens for pair in pairs])
    answers = torch.tensor([(pair.true_answer, pair.false_answer) for pair in pairs])

    def differences(input_ids: Tensor, of_pairs: Tensor) -> Tensor:
        chunks = zip(input_ids.split(batch_size), of_pairs.split(batch_size), strict=True)
        return torch.cat([_answer_gap(sites, ids, answers[rows]) for ids, rows in chunks])

    everyone = torch.arange(len(pairs))
    unpatched = differences(prompts, everyone)
    source = differences(_token_matrix([pair.true_tokens for pair in pairs]), everyone)
    grid = unpatched[:, None, None].repeat(1, sites.n_layers, end - begin)
    for layer in range(sites.n_layers):
        is_last = layer == sites.n_layers - 1
        cells = _cells(pairs, is_last_layer=is_last, same_model=same_model)
        for batch in torch.tensor(cells).split(batch_size):
            pair, token = batch.unbind(dim=1)
            values = source_values[pair, layer, token - begin].unsqueeze(1)
            with intervene(model, patch(values, layer, token.unsqueeze(1))):
                grid[pair, layer, token - begin] = differences(prompts[pair], pair)
    return TraceGrids(grid.numpy(), unpatched.numpy(), source.numpy())


def _cells(
    pairs: Sequence[CompletionPair], *, is_last_layer: bool, same_model: bool
) -> list[tuple[int, int]]:
    """(pair, token) of the cells of a layer whose value can differ from the unpatched one."""
    # Nothing reads the last block's output but the unembedding of the last token.
    if is_last_layer:
        return [(index, len(pair.true_tokens) - 1) for index, pair in enumerate(pairs)]
    return [
        (index, token)
        for index, pair in enumerate(pairs)
        for token in range(
            pair.first_difference if same_model else pair.traced_from, len(pair.true_tokens)
        )
    ]


def _answer_gap(sites: ModelSites, input_ids: Tensor, answers: Tensor) -> Tensor:
    """Logit of the first answer less that of the second [rows], after each prompt."""
    normed = sites.body(input_ids=input_ids.to(sites.device), use_cache=False).last_hidden_state
    logits = sites.project(normed[:, -1]).float().cpu()
    first, second = logits.gather(1, answers).unbind(dim=1)
    return first - second


def _token_matrix(prompts: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor([list(tokens) for tokens in prompts])
