"""Causal tracing against one whole forward a cell, on one core, interleaved; ratios of CPU time.

Needs the demo artifact and its model: ``make bench``. Both ways are first shown to give the same
numbers. The slow way is timed on a sample of its cells, which all cost the same.
"""

from __future__ import annotations

import random
import statistics
import sys
from collections.abc import Callable
from time import process_time

import torch

import ptmech as sdk
from ptmech import live
from ptmech.knowledge import Pairs, PromptPair

ANSWERS = (" true", " false")
"""The paper's question with answers that are one token each in this vocabulary."""
REPEATS = 9
CELLS_A_TURN = 4


def one_forward_a_cell(
    model: live.LiveModel, pair: PromptPair, layer: int, token: int, donor: torch.Tensor
) -> float:
    """Patch one cell with a hook and run the whole prompt, as the paper's code does."""

    def replace(_block: torch.nn.Module, _args: object, output: torch.Tensor) -> torch.Tensor:
        changed = output.clone()
        changed[0, token] = donor[layer, token]
        return changed

    handle = model.sites.layers[layer].register_forward_hook(replace)
    try:
        with torch.inference_mode():
            logits = model.model(torch.tensor([pair.false_tokens]), use_cache=False).logits[0, -1]
    finally:
        handle.remove()
    return float(logits[pair.true_answer[0]] - logits[pair.false_answer[0]])


def seconds(work: Callable[[], object]) -> float:
    """CPU time of one call."""
    started = process_time()
    work()
    return process_time() - started


def ratios(model: live.LiveModel, pairs: Pairs) -> list[float]:
    """How many times faster a whole trace is than one forward for each of its cells."""
    pair = pairs[0]
    donor = model.activations([pair.true_tokens], positions="all")[0]
    trace = live.causal_trace(model, pairs)
    places = [
        (layer, pair.traced_from + column)
        for layer in range(model.n_layers)
        for column in range(len(trace.tokens))
    ]
    sample = random.Random(0).sample(places, REPEATS * CELLS_A_TURN)
    found: list[float] = []
    for turn in range(REPEATS):
        cells = sample[turn * CELLS_A_TURN : (turn + 1) * CELLS_A_TURN]

        def slowly(cells: list[tuple[int, int]] = cells) -> None:
            for layer, token in cells:
                expected = one_forward_a_cell(model, pair, layer, token, donor)
                got = trace.grid[0, layer, token - pair.traced_from]
                if abs(expected - got) > 1e-3:
                    raise SystemExit(f"layer {layer}, token {token}: {got}, not {expected}")

        before = seconds(slowly)
        fast = seconds(lambda: live.causal_trace(model, pairs))
        a_cell = (before + seconds(slowly)) / (2 * len(cells))
        found.append(a_cell * len(places) * len(pairs) / fast)
    return found


def main(artifact: str) -> None:
    """Print the medians."""
    torch.set_num_threads(1)
    data = sdk.load(artifact)
    model = live.open(data, data.stages[0], device="cpu")
    cities = data.statements("cities")
    for number in (1, 8):
        pairs = sdk.knowledge.pairs(
            cities, model.tokenizer, form="true_false", answers=ANSWERS, n_pairs=number
        )
        found = ratios(model, pairs)
        begin, end = pairs[0].traced_from, len(pairs[0].true_tokens)
        sys.stdout.write(
            f"{number} pair{'s' * (number > 1)}, {end - begin} tokens behind {begin}, "
            f"{model.n_layers} layers: {statistics.median(found):.1f} times one forward a cell "
            f"(runs {min(found):.1f} to {max(found):.1f})\n"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
