"""Extraction: the residual stream and the MLP output of every layer, at each row's last token."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.interleaved import Absent, Numbers, Way, measure
from benchmarks.report import Table, cost_table
from benchmarks.setting import Benchmark, Setting, installed
from ptmech.live.packing.cost import Packing
from ptmech.live.sites import ModelSites
from ptmech_builder.extract import extract
from ptmech_builder.prompts import Prompts

ABOUT = """
What a build stores: `resid_post` and `mlp_out` of all layers at the last token of every row, in
float32. The unit is a *bare forward*: the body alone, rows sorted by length, batches of 32, nothing
read and nothing stored. All others keep every layer.

- **ptmech, tree**: rows that begin alike share a sequence. What a build does by itself where it is
  the cheaper way; `ptmech plan` says which one it takes. The last table's rows begin with nothing
  in common, and are as long as statements: there it takes batches.
- **ptmech, batches**: rows of similar length, filled by a budget of tokens.
- **forward hooks**: written by hand on the bare forward, the last token gathered in the hook.
- **output_hidden_states**: transformers' own, all tokens of all layers kept until the end; MLP
  outputs by hooks. Its last entry has the final norm applied, so that one is read before the norm.
- **TransformerLens** (bridge, `names_filter`, `stop_at_layer`) and **nnsight** (`tracer.stop` after
  the last block), on the same sorted batches.
- **as in the paper**: batches of 25 in the order of the rows, padded on the left, the whole model
  with its unembedding, hooks.
"""
ROUNDS = 3
SITES = ("resid_post", "mlp_out")
BARE, TREE, BATCHES = "bare forward, nothing stored", "ptmech, tree", "ptmech, batches"
TOLERANCE = 1e-4
BATCH, PAPERS_BATCH = 32, 25


@dataclass(frozen=True)
class Task:
    """Rows to run, and the model to run them on."""

    sites: ModelSites
    prompts: Prompts

    @property
    def wanted(self) -> list[tuple[str, int]]:
        """Every layer of both sites."""
        return [(site, layer) for site in SITES for layer in range(self.sites.n_layers)]

    def sorted_batches(self) -> Iterator[NDArray[np.intp]]:
        """Row numbers, by length, so many at a time."""
        order = np.argsort(self.prompts.lengths, kind="stable")
        for start in range(0, len(order), BATCH):
            yield order[start : start + BATCH]

    def tokens(self, rows: NDArray[np.intp]) -> list[list[int]]:
        """Return the token ids of some rows."""
        return [list(self.prompts.token_ids[row]) for row in rows]


Store = dict[tuple[str, int], NDArray[np.float32]]


def run(setting: Setting) -> list[Table]:
    """Compare on sets that share much, more, little but a template, and nothing."""
    rounds = setting.rounds or ROUNDS
    tables: list[Table] = []
    for task, peers in (
        (task_of(setting, "cities", 128), True),
        (task_of(setting, "larger_than", None), False),
        (task_of(setting, "harmful", 32), False),
        (nothing_shared(task_of(setting, "cities", 128)), False),
    ):
        costs = measure(
            ways(task, setting if peers else None),
            reference=BARE,
            numbers=BATCHES,
            rounds=rounds,
            tolerance=TOLERANCE,
        )
        prompts = task.prompts
        title = f"{prompts.dataset}: {len(prompts.token_ids)} rows, {prompts.tokens} tokens"
        tables.append(cost_table(title, costs, unit="bare forward"))
    return tables


def task_of(setting: Setting, dataset: str, most: int | None) -> Task:
    """Take rows of a dataset as the artifact tokenised them."""
    rows = setting.artifact.tokens(setting.stage).filter(dataset=dataset).head(most or 10**9)
    prompts = Prompts(
        dataset,
        rows["row_uid"].to_numpy(),
        rows["token_ids"].to_list(),
        (-1,),
        rows["rendered_sha256"].to_list(),
    )
    return Task(setting.model.sites, prompts)


def nothing_shared(task: Task) -> Task:
    """Return rows of the same lengths, of tokens drawn by chance: no two begin alike."""
    drawn = np.random.default_rng(0)
    vocabulary, given = task.sites.vocabulary, task.prompts
    firsts = drawn.permutation(vocabulary)[: len(given.token_ids)].tolist()
    rows = [
        [first, *drawn.integers(0, vocabulary, len(ids) - 1).tolist()]
        for first, ids in zip(firsts, given.token_ids, strict=True)
    ]
    return Task(task.sites, replace(given, dataset="nothing shared", token_ids=rows))


def ways(task: Task, peers: Setting | None) -> list[Way | Absent]:
    """Return all ways, other libraries' only where they are asked for."""
    found: list[Way | Absent] = [
        Way(name=BARE, run=lambda: bare_forward(task), silent=True),
        Way(name=TREE, run=lambda: ours(task, "tree")),
        Way(name=BATCHES, run=lambda: ours(task, "batches")),
        Way(name="as in the paper", run=lambda: as_in_the_paper(task)),
    ]
    if peers is not None:
        found += [
            Way(name="forward hooks", run=lambda: forward_hooks(task)),
            Way(name="output_hidden_states, MLP hooks", run=lambda: hidden_states(task)),
            peer("TransformerLens", "transformer_lens", lambda: transformer_lens(task, peers)),
            peer("nnsight", "nnsight", lambda: nnsight_trace(task, peers)),
        ]
    return found


def peer(name: str, package: str, run: Callable[[], Numbers]) -> Way | Absent:
    """Return a way that needs a package, if that is there."""
    return Way(name=name, run=run) if installed(package) else Absent(name)


def ours(task: Task, packing: Packing) -> Numbers:
    """Run the rows as a build does."""
    found = extract(task.sites, task.prompts, task.wanted, dtype="float32", packing=packing)
    return {key: values[:, 0] for key, values in found.items()}


@torch.inference_mode()
def bare_forward(task: Task) -> Numbers:
    """Run the body and nothing else."""
    for rows in task.sorted_batches():
        ids, mask, _ = padded_right(task.tokens(rows))
        task.sites.body(input_ids=ids, attention_mask=mask, use_cache=False)
    return {}


@torch.inference_mode()
def forward_hooks(task: Task) -> Numbers:
    """Run the body with a hook on every block and every MLP."""
    found = _store(task)
    for rows in task.sorted_batches():
        ids, mask, last = padded_right(task.tokens(rows))
        with hooked(task.sites, _keeper(found, rows, last)):
            task.sites.body(input_ids=ids, attention_mask=mask, use_cache=False)
    return found


@torch.inference_mode()
def as_in_the_paper(task: Task) -> Numbers:
    """Run rows as they come, padded on the left, through the whole model."""
    found = _store(task)
    for start in range(0, len(task.prompts.token_ids), PAPERS_BATCH):
        rows = np.arange(start, min(start + PAPERS_BATCH, len(task.prompts.token_ids)))
        ids, mask = padded_left(task.tokens(rows))
        with hooked(task.sites, _keeper(found, rows, torch.full((len(rows),), -1))):
            task.sites.model(input_ids=ids, attention_mask=mask, use_cache=False)
    return found


@torch.inference_mode()
def hidden_states(task: Task) -> Numbers:
    """Keep what transformers returns; the last block's output from before the final norm."""
    sites, found = task.sites, _store(task)
    last_layer = sites.n_layers - 1
    for rows in task.sorted_batches():
        ids, mask, last = padded_right(task.tokens(rows))
        keep = _keeper(found, rows, last)
        with hooked(sites, keep, blocks=[last_layer]):
            output: Any = sites.body(
                input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True
            )
        for layer in range(last_layer):
            keep("resid_post", layer, output.hidden_states[layer + 1])
    return found


@torch.inference_mode()
def transformer_lens(task: Task, setting: Setting) -> Numbers:
    """Run the bridge, which stops before the final norm."""
    found = _store(task)
    names = {key: f"blocks.{key[1]}.hook_{key[0]}" for key in task.wanted}
    for rows in task.sorted_batches():
        ids, mask = padded_left(task.tokens(rows))
        _, cache = setting.transformer_lens.run_with_cache(
            ids,
            attention_mask=mask,
            names_filter=list(names.values()),
            stop_at_layer=task.sites.n_layers,
        )
        for key, name in names.items():
            found[key][rows] = cache[name][:, -1].numpy()
    return found


@torch.inference_mode()
def nnsight_trace(task: Task, setting: Setting) -> Numbers:
    """Trace batch by batch; nnsight pads on the left by itself."""
    import nnsight

    model, found = setting.nnsight, _store(task)
    for rows in task.sorted_batches():
        with model.trace(task.tokens(rows)) as tracer:
            saved = nnsight.save({})
            for layer, block in enumerate(model.model.layers):
                saved["mlp_out", layer] = block.mlp.output[:, -1].clone()
                saved["resid_post", layer] = block.output[:, -1].clone()
            tracer.stop()
        for key in task.wanted:
            found[key][rows] = saved[key].numpy()
    return found


@contextmanager
def hooked(
    sites: ModelSites,
    keep: Callable[[str, int, Tensor], None],
    *,
    blocks: Sequence[int] | None = None,
) -> Generator[None]:
    """Put hooks on every MLP and on some blocks or all, as for any model of the Llama kind."""

    def hook(site: str, layer: int) -> Callable[[nn.Module, Any, Any], None]:
        def call(_module: nn.Module, _args: Any, output: Any) -> None:
            keep(site, layer, output if isinstance(output, Tensor) else output[0])

        return call

    blocks_of: Any = sites.layers
    handles = [
        module.register_forward_hook(hook(site, layer))
        for layer, block in enumerate(blocks_of)
        for site, module in (("resid_post", block), ("mlp_out", block.mlp))
        if site == "mlp_out" or blocks is None or layer in blocks
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def padded_right(token_ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Return token ids, attention mask [rows, tokens] and the place of each row's last token."""
    width = max(map(len, token_ids))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in token_ids])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in token_ids])
    return ids, mask, mask.sum(1) - 1


def padded_left(token_ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask [rows, tokens]."""
    width = max(map(len, token_ids))
    ids = torch.tensor([[*[0] * (width - len(row)), *row] for row in token_ids])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in token_ids])
    return ids, mask


def _store(task: Task) -> Store:
    shape = (len(task.prompts.token_ids), task.sites.d_model)
    return {key: np.empty(shape, np.float32) for key in task.wanted}


def _keeper(
    found: Store, rows: NDArray[np.intp], last: Tensor
) -> Callable[[str, int, Tensor], None]:
    at = torch.arange(len(rows))

    def keep(site: str, layer: int, stream: Tensor) -> None:
        found[site, layer][rows] = stream[at, last].numpy()

    return keep


BENCHMARK = Benchmark(
    name="extraction", title="Extraction against a bare forward", about=ABOUT, run=run
)
