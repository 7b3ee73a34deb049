"""The GPU benchmark runs on a CPU, counts rightly, and notices numbers that are not the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.gpu.__main__ import Attention, Shape, main
from benchmarks.gpu.device import peak_tflops
from benchmarks.gpu.extraction import PACKINGS, everything, operations
from benchmarks.gpu.flex import flex_trees, tree_block_mask
from benchmarks.gpu.forwards import Forward, Forwards, caught
from benchmarks.gpu.prompt_sets import prompt_set
from benchmarks.gpu.random_llama import llama_config, random_llama
from benchmarks.gpu.same_numbers import deviation, require_same_bits
from torch.nn.attention.flex_attention import create_mask
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from ptmech.errors import DataError, ParityError

VOCABULARY = 512


@pytest.fixture(scope="module")
def model() -> Any:
    return random_llama("tiny", torch.device("cpu"))


@pytest.fixture(scope="module")
def prompts() -> Any:
    return prompt_set("larger_than", rows=24, vocabulary=VOCABULARY)


def run(model: Any, prompts: Any, packing: Any) -> tuple[Any, list[Forward]]:
    with caught(model.model) as calls:
        stored = everything(model, prompts, packing)
    return stored, calls


def check(model: Any, prompts: Any, stored: Any, calls: list[Forward]) -> None:
    require_same_bits(model, prompts, stored, Forwards.of(calls, prompts.token_ids))


def test_the_command_measures_both_ways_on_a_cpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "gpu.json"
    main(Shape.TINY, "cpu", rows=16, rounds=2, attention=Attention.SDPA, peak=1.0, record=record)
    figures = json.loads(record.read_text())
    assert figures["device"] == "CPU"
    assert [found["prompts"] for found in figures["sets"]] == [
        "cities",
        "larger_than",
        "statements",
        "random",
    ]
    for found in figures["sets"]:
        # Prompts that share nothing are the same rows either way.
        assert found["prompts"] == "random" or found["deviation"] > 0
        assert found["deviation"] < 5e-2
        assert found["rows"] == 16
        for way in found["ways"].values():
            assert len(way["seconds"]) == len(way["bare_seconds"]) == 2
            assert way["useful_tokens"] <= way["tokens"]
            assert way["ratio"] > 0
            best = np.median(way["seconds"]) * 1e12
            assert way["utilisation"] == pytest.approx(way["operations"] / best)
    numbers = figures["sets"][1]
    trees = numbers["ways"]["tree"]["useful_tokens"]
    assert trees < numbers["ways"]["batches"]["useful_tokens"] == numbers["tokens"]
    assert "CPU" in capsys.readouterr().out


@pytest.mark.parametrize("packing", PACKINGS)
def test_values_that_are_not_the_blocks_are_noticed(model: Any, prompts: Any, packing: Any) -> None:
    stored, calls = run(model, prompts, packing)
    check(model, prompts, stored, calls)
    stored["mlp_out", 1][5, 0, 3] *= np.float32(1.01)
    with pytest.raises(ParityError, match=r"larger_than: 1 of 24 rows .* row 5"):
        check(model, prompts, stored, calls)


@pytest.mark.parametrize("packing", PACKINGS)
def test_values_of_another_row_are_noticed(model: Any, prompts: Any, packing: Any) -> None:
    stored, calls = run(model, prompts, packing)
    swapped = {key: np.roll(values, 1, axis=0) for key, values in stored.items()}
    with pytest.raises(ParityError, match="24 of 24 rows"):
        check(model, prompts, swapped, calls)


@pytest.mark.parametrize(
    "change",
    [
        lambda told: {
            "attention_mask": told["attention_mask"]
            .new_ones(())
            .expand_as(told["attention_mask"])
            .tril()
        },
        lambda told: {"position_ids": told["position_ids"] + 1},
        lambda told: {"input_ids": told["input_ids"].flip(1)},
    ],
    ids=["branches see each other", "positions moved", "tokens turned round"],
)
def test_forwards_that_do_not_run_the_rows_are_noticed(
    model: Any, prompts: Any, change: Any
) -> None:
    stored, calls = run(model, prompts, "tree")
    changed = [
        replace(call, arguments={**call.arguments, **change(call.arguments)}) for call in calls
    ]
    with pytest.raises(ParityError, match="no forward holds row"):
        check(model, prompts, stored, changed)


def test_trees_too_far_from_batches_are_noticed(model: Any, prompts: Any) -> None:
    expected = everything(model, prompts, "batches")
    found = everything(model, prompts, "tree")
    assert deviation(found, expected) < 5e-2
    found["resid_post", 2][7] *= np.float32(1.1)
    with pytest.raises(ParityError, match="away from batches"):
        deviation(found, expected)
    found["resid_post", 2][7] = np.float32("nan")
    with pytest.raises(ParityError):
        deviation(found, expected)


def test_operations_are_those_that_torch_counts() -> None:
    model = random_llama("tiny", torch.device("cpu"), attention="eager")
    ids = torch.randint(2, VOCABULARY, (1, 9))
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.model(input_ids=ids, attention_mask=torch.zeros(1, 1, 9, 9), use_cache=False)
    forwards = Forwards.of([Forward({"input_ids": ids})], [ids[0].tolist()])
    assert forwards.useful_tokens == forwards.tokens == 9
    assert forwards.seen == 45  # of 81 pairs, which eager attention multiplies all
    width, layers = 32, 3
    masked = 4 * layers * width * (81 - 45)
    assert operations(model, forwards) == counter.get_total_flops() - masked


def test_the_shape_is_the_published_one() -> None:
    with torch.device("meta"):
        shaped = AutoModelForCausalLM.from_config(llama_config("llama-3.1-8b"))
    assert sum(values.numel() for values in shaped.parameters()) == 8_030_261_248


def test_a_seed_decides_every_weight() -> None:
    one, same, other = (random_llama("tiny", torch.device("cpu"), seed=s) for s in (0, 0, 1))
    for (name, a), b, c in zip(
        one.named_parameters(), same.parameters(), other.parameters(), strict=True
    ):
        assert a.dtype == torch.bfloat16
        assert torch.equal(a, b)
        assert torch.equal(a, c) == name.endswith(("norm.weight", "layernorm.weight"))
    angles = one.model.rotary_emb.inv_freq
    expected = 500_000.0 ** -(np.arange(0, 8, 2) / 8)
    np.testing.assert_allclose(angles.numpy(), expected, rtol=1e-6)


def test_words_that_are_shared_are_tokens_that_are_shared() -> None:
    rows = prompt_set("cities", rows=50, vocabulary=VOCABULARY).token_ids
    assert {tuple(row[:4]) for row in rows} == {tuple(rows[0][:4])}  # the city of
    assert all(2 <= token < VOCABULARY for row in rows for token in row[1:])
    assert list(rows[0]) == list(prompt_set("cities", rows=1, vocabulary=VOCABULARY).token_ids[0])
    chance = prompt_set("random", rows=50, vocabulary=100_000).token_ids
    assert len({tuple(row[:3]) for row in chance}) == 50


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165),
        ("CPU", None),
    ],
)
def test_peaks_go_by_the_name_of_a_device(name: str, expected: float | None) -> None:
    assert peak_tflops(name) == expected


# Flex attention -----------------------------------------------------------------------------


def test_a_tree_s_block_mask_is_its_mask(model: Any, prompts: Any) -> None:
    _stored, calls = run(model, prompts, "tree")
    for call in calls:
        mask = call.arguments["attention_mask"]
        blocks = tree_block_mask(mask)
        width = mask.shape[-1]
        assert torch.equal(create_mask(blocks.mask_mod, len(mask), 1, width, width, "cpu"), mask)


def test_a_mask_that_is_no_tree_s_is_refused() -> None:
    mask = torch.eye(6, dtype=torch.bool)
    mask[5, 2] = True  # a branch goes on where another one has begun
    with pytest.raises(DataError, match="not one of trees"):
        tree_block_mask(mask[None, None])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_gives_the_same_trees(model: Any, prompts: Any) -> None:
    expected = everything(model, prompts, "tree")
    # Compiling takes half a minute; the kernel that is not compiled computes the same.
    with torch.compiler.set_stance("force_eager"), flex_trees(model):
        found, calls = run(model, prompts, "tree")
        assert all(type(call.arguments["attention_mask"]).__name__ == "BlockMask" for call in calls)
        check(model, prompts, found, calls)
    assert 0 < deviation(found, expected) < 5e-2
    assert model.config._attn_implementation == "sdpa"
