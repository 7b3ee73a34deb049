"""The cheaper way is chosen, and what a model cannot do is said by name."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
from tests.tiny_models import FAMILIES, tiny_model
from transformers import BloomConfig, FalconConfig, Gemma3TextConfig, LlamaConfig, Phi3Config

from ptmech.live.packing.cost import Choice, choose_packing, predicted_cost, tokens_at_once
from ptmech.live.packing.support import without_tree

SHAPE = SimpleNamespace(d_model=64)


def chosen(rows: list[list[int]], **options: object) -> Choice:
    return choose_packing(rows, SHAPE, **options)  # pyright: ignore[reportArgumentType]


def alike(n_rows: int, shared: int) -> list[list[int]]:
    """Rows of one length with `shared` tokens in common, then two of their own."""
    return [[*range(shared), 100 + row, 200 + row] for row in range(n_rows)]


def test_rows_that_begin_alike_go_as_trees() -> None:
    choice = chosen(alike(30, 10))
    assert choice.packing == "tree"
    assert (choice.tree_tokens, choice.batch_tokens) == (10 + 60, 30 * 12)
    assert choice.tokens == choice.tree_tokens
    assert choice.why == "texts begin alike: 70 tokens instead of 360"


def test_the_costs_are_those_of_the_matrices_in_a_block() -> None:
    choice = chosen(alike(30, 10))
    # Query, key, value, output [d, d] and an MLP [d, 4 d] twice, for each token; scores and mixing.
    d, tree, batch, rows = 64, 70, 12, 30
    assert choice.tree_cost == tree * (4 + 8) * d**2 + 2 * tree**2 * d
    assert choice.batch_cost == rows * (batch * (4 + 8) * d**2 + 2 * batch**2 * d)
    assert choice.ratio == choice.tree_cost / choice.batch_cost
    assert predicted_cost([], d) == 0


@pytest.mark.parametrize("shared", [0, 1])
def test_rows_that_share_too_little_go_in_batches(shared: int) -> None:
    rng = np.random.default_rng(0)
    rows = [[*range(shared), *rng.integers(10, 10**6, 40).tolist()] for _ in range(60)]
    choice = chosen(rows)
    assert choice.packing == "batches"
    assert choice.tokens == choice.batch_tokens == 60 * (40 + shared)
    assert choice.why.startswith("texts share too little: 2,4")


def test_what_a_model_cannot_do_is_not_chosen() -> None:
    choice = chosen(alike(30, 10), refused="its attention (paper) takes no mask of one's own")
    assert choice.packing == "batches"
    assert choice.why == "its attention (paper) takes no mask of one's own"


def test_a_small_budget_leaves_less_to_share() -> None:
    assert chosen(alike(30, 10), tokens_per_batch=24).tree_tokens > 70
    assert chosen(alike(30, 10), tokens_per_batch=1).packing == "batches"


def test_the_rule_goes_by_the_kind_of_device() -> None:
    assert tokens_at_once("tree", "cpu") < tokens_at_once("batches", "cpu")
    assert tokens_at_once("tree", "cuda") > tokens_at_once("tree", "cpu")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_supported_architecture_runs_trees(family: str) -> None:
    assert without_tree(tiny_model(family).config) == ""


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (LlamaConfig(attn_implementation="flash_attention_2"), r"\(flash_attention_2\) takes no"),
        (LlamaConfig(attn_implementation="flex_attention"), r"\(flex_attention\) takes no"),
        (BloomConfig(), "type 'bloom' are not known"),
        (FalconConfig(alibi=True), "type 'falcon' are not known"),
        (LlamaConfig(alibi=True), "ALiBi"),
        (LlamaConfig(is_causal=False), "attend to later ones"),
        (Gemma3TextConfig(use_bidirectional_attention=True), "attend to later ones"),
        (
            LlamaConfig(layer_types=["chunked_attention"], num_hidden_layers=1),
            "kind 'chunked_attention'",
        ),
        (LlamaConfig(rope_parameters={"rope_type": "dynamic", "factor": 2.0}), r"\(dynamic\)"),
        (
            Phi3Config(
                rope_parameters={
                    "rope_type": "longrope",
                    "rope_theta": 10000.0,
                    "short_factor": [1.0] * 48,
                    "long_factor": [1.0] * 48,
                    "original_max_position_embeddings": 4096,
                },
                pad_token_id=None,
            ),
            r"\(longrope\)",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else value.model_type,
)
def test_a_model_that_cannot_is_told_by_name(config: object, reason: str) -> None:
    assert re.search(reason, without_tree(config))
