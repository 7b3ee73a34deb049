"""Causal tracing: a grid of layers by tokens, against ways that run each patched prompt."""

from __future__ import annotations

import random
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from benchmarks.interleaved import Absent, Numbers, Way, measure
from benchmarks.report import Table, cost_table, figure
from benchmarks.setting import Benchmark, Setting, installed
from ptmech import knowledge, live
from ptmech.knowledge import Pairs, PromptPair
from ptmech.live.tracing.operations import LLAMA_8B, TracedShape, predicted_speedup

ABOUT = """
One grid: `resid_post` of every layer at every token of a false statement, replaced one cell at a
time by its value in the true statement's run. Prompts are the paper's TRUE/FALSE questions behind
worked examples, with answers that are one token each in this vocabulary. The unit is ptmech's
sweep, its clean runs included: only what a patch can change is computed, and cells go up together.

- **one forward a cell**: a hook that replaces one token, the whole prompt, as the paper's code does
  it; with plain hooks, and with nnsight.
- **cells in batches**: all tokens of a layer in one batch, on the whole prompt; or behind the
  worked examples' keys and values, which are kept (and not timed).

All but the sweep are timed on a sample of their cells, which cost the same, and extrapolated. The
more worked examples, layers and tokens, the larger the factors; and the later the two statements
begin to differ, because no patch before that changes anything. The last table counts
multiplications instead of taking time, also for a model that does not fit here.
"""
ANSWERS = (" true", " false")
ROUNDS = 5
SAMPLED_CELLS, SAMPLED_LAYERS = 4, 1
SWEEP = "ptmech, sweep"
TOLERANCE = 1e-3
Cell = tuple[int, int]


@dataclass(frozen=True)
class Task:
    """Pairs to trace; the slow ways trace the first one only."""

    model: live.LiveModel
    pairs: Pairs
    donor: Tensor
    """[layers, tokens, d_model]: the first true prompt's run."""

    @classmethod
    def of(cls, model: live.LiveModel, pairs: Pairs) -> Task:
        """Run the first pair's true prompt."""
        donor = model.activations([pairs[0].true_tokens], positions="all")[0]
        return cls(model, pairs, donor)

    @property
    def pair(self) -> PromptPair:
        """The first pair."""
        return self.pairs[0]

    @property
    def columns(self) -> range:
        """The tokens that are traced."""
        return range(self.pair.traced_from, len(self.pair.true_tokens))

    @property
    def first(self) -> list[int]:
        """For each pair the first traced token in which its prompts differ, counted from 0."""
        return [min(pair.differing) - pair.traced_from for pair in self.pairs]

    @property
    def differing(self) -> str:
        """Say from which traced token on the prompts differ."""
        low, high = min(self.first) + 1, max(self.first) + 1
        numbers = f"{low}" if low == high else f"{low} to {high}"
        return f"prompts that differ from token {numbers} on"

    @property
    def cells(self) -> list[Cell]:
        """(layer, token) of the whole grid."""
        return [(layer, token) for layer in range(self.model.n_layers) for token in self.columns]

    def grid(self, found: dict[Cell, float]) -> Numbers:
        """Return a grid in which only some cells are known."""
        shape = (self.model.n_layers, len(self.columns))
        grid: Any = np.ma.masked_all(shape)
        for (layer, token), value in found.items():
            grid[layer, token - self.pair.traced_from] = value
        return {"grid": grid}

    def difference(self, logits: Tensor) -> Tensor:
        """Return the logit of the true answer less that of the false one [rows]."""
        return logits[:, self.pair.true_answer[0]] - logits[:, self.pair.false_answer[0]]


def run(setting: Setting) -> list[Table]:
    """Trace one pair every way, and several as a build does."""
    tables: list[Table] = []
    for number, rounds in ((1, ROUNDS), (8, ROUNDS // 2)):
        task = task_of(setting, number)
        costs = measure(
            ways(task, setting if number == 1 else None),
            reference=SWEEP,
            rounds=setting.rounds or rounds,
            tolerance=TOLERANCE,
        )
        title = (
            f"{number} pair{'s' * (number > 1)}: {len(task.columns)} tokens behind "
            f"{task.pair.traced_from}, {task.model.n_layers} layers, {task.differing}"
        )
        tables.append(cost_table(title, costs, unit="sweep"))
    return [*tables, counted(task_of(setting, 1))]


def counted(task: Task) -> Table:
    """Count what one forward a cell takes, for the first pair and for others of its length."""
    prefix, traced = task.pair.traced_from, len(task.columns)
    shapes = (TracedShape.of(task.model.sites), LLAMA_8B)
    return Table(
        title=f"multiplications of one forward a cell, those of a sweep = 1: {traced} tokens "
        f"behind {prefix}",
        columns=["first token that differs", "this model", "shape of Llama-3.1-8B"],
        rows=[
            [
                f"{first + 1}{' (timed above)' * (first == task.first[0])}",
                *(
                    figure(predicted_speedup(shape, prefix=prefix, traced=traced, first=first))
                    for shape in shapes
                ),
            ]
            for first in sorted({0, 1, 2, task.first[0]})
        ],
    )


def task_of(setting: Setting, number: int) -> Task:
    """Ask about statements of the artifact."""
    pairs = knowledge.pairs(
        setting.artifact.statements("cities"),
        setting.model.tokenizer,
        form="true_false",
        answers=ANSWERS,
        n_pairs=number,
    )
    return Task.of(setting.model, pairs)


def ways(task: Task, peers: Setting | None) -> list[Way | Absent]:
    """Return all ways, or the sweep and one forward a cell where there are no peers."""
    drawn = random.Random(0)
    some = drawn.sample(task.cells, SAMPLED_CELLS)
    layers = drawn.sample(range(task.model.n_layers), SAMPLED_LAYERS)
    of_cells = SAMPLED_CELLS / (len(task.cells) * len(task.pairs))
    of_layers = SAMPLED_LAYERS / (task.model.n_layers * len(task.pairs))
    found: list[Way | Absent] = [
        Way(name=SWEEP, run=lambda: sweep(task)),
        Way(name="one forward a cell, hooks", run=lambda: one_by_one(task, some), share=of_cells),
    ]
    if peers is None:
        return found
    prefix = prefix_cache(task)
    return [
        *found,
        Way(
            name="one forward a cell, nnsight",
            run=lambda: one_by_one_in_nnsight(task, some, peers),
            share=of_cells,
        )
        if installed("nnsight")
        else Absent("one forward a cell, nnsight"),
        Way(
            name="cells in batches, whole prompt",
            run=lambda: in_batches(task, layers),
            share=of_layers,
        ),
        Way(
            name="cells in batches, examples kept",
            run=lambda: in_batches(task, layers, prefix),
            share=of_layers,
        ),
    ]


def sweep(task: Task) -> Numbers:
    """Trace all pairs; the first one's grid is what the others are held against."""
    return {"grid": live.causal_trace(task.model, task.pairs).grid[0]}


@torch.inference_mode()
def one_by_one(task: Task, cells: Sequence[Cell]) -> Numbers:
    """Patch one cell with a hook and run the whole prompt."""
    ids = torch.tensor([task.pair.false_tokens])
    found: dict[Cell, float] = {}
    for layer, token in cells:
        with patched(task, layer, [token], 0):
            logits = task.model.model(ids, use_cache=False).logits[:, -1]
        found[layer, token] = float(task.difference(logits))
    return task.grid(found)


@torch.inference_mode()
def one_by_one_in_nnsight(task: Task, cells: Sequence[Cell], setting: Setting) -> Numbers:
    """Do the same in a trace of nnsight."""
    import nnsight

    model, ids = setting.nnsight, [list(task.pair.false_tokens)]
    found: dict[Cell, float] = {}
    for layer, token in cells:
        value = task.donor[layer, token]
        with model.trace(ids):
            model.model.layers[layer].output[:, token] = value
            logits = nnsight.save(model.output.logits[:, -1])
        found[layer, token] = float(task.difference(logits))
    return task.grid(found)


@torch.inference_mode()
def in_batches(task: Task, layers: Sequence[int], prefix: DynamicCache | None = None) -> Numbers:
    """Patch all tokens of a layer side by side, in whole prompts or behind a kept prefix."""
    sites, begin = task.model.sites, 0 if prefix is None else task.pair.traced_from
    ids = torch.tensor([task.pair.false_tokens[begin:]]).expand(len(task.columns), -1)
    found: dict[Cell, float] = {}
    for layer in layers:
        cache = None if prefix is None else repeated(prefix, len(task.columns))
        with patched(task, layer, task.columns, begin):
            stream = sites.body(
                input_ids=ids, past_key_values=cache, use_cache=cache is not None
            ).last_hidden_state
        values: list[float] = task.difference(sites.project(stream[:, -1])).tolist()
        found.update(((layer, token), v) for token, v in zip(task.columns, values, strict=True))
    return task.grid(found)


@contextmanager
def patched(task: Task, layer: int, tokens: Sequence[int], begin: int) -> Generator[None]:
    """Replace in each row of a batch one token's stream after a block."""

    def replace(_block: nn.Module, _args: Any, output: Tensor) -> Tensor:
        changed = output.clone()
        at = torch.tensor(list(tokens))
        changed[torch.arange(len(at)), at - begin] = task.donor[layer, at]
        return changed

    handle = task.model.sites.layers[layer].register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


@torch.inference_mode()
def prefix_cache(task: Task) -> DynamicCache:
    """Return keys and values of the tokens before those that are traced."""
    cache = DynamicCache()
    ids = torch.tensor([task.pair.false_tokens[: task.pair.traced_from]])
    task.model.sites.body(input_ids=ids, past_key_values=cache, use_cache=True)
    return cache


def repeated(cache: DynamicCache, rows: int) -> DynamicCache:
    """Return a cache of its own for several rows."""
    copied = DynamicCache()
    layers: Any = cache.layers
    for number, layer in enumerate(layers):
        copied.update(
            layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1), number
        )
    return copied


BENCHMARK = Benchmark(
    name="causal_tracing", title="Causal tracing against one forward a cell", about=ABOUT, run=run
)
