"""Estimates: against figures written out by hand, published counts and torch's own counting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny_models import tiny_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from ptmech.errors import DataError, UnknownNameError, UnsupportedModelError
from ptmech.live.models import ModelShape, load_shape
from ptmech.live.models.gguf import quiet_transformers
from ptmech.model_sources import FolderModel
from ptmech_builder.activation_units import ActivationUnit
from ptmech_builder.estimates import (
    DEVICES,
    SHAPES,
    Machines,
    Workload,
    device_named,
    estimate,
    shape_named,
    workload_of,
)
from ptmech_builder.estimates.estimate import forward_flops
from ptmech_builder.prompts import Prompts

PUBLISHED = {
    "smollm2-135m": 134_515_008,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-72b": 72_706_203_648,
    "mistral-7b": 7_241_732_096,
    "llama-2-13b": 13_015_864_320,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
}
"""As the Hub counts the elements of their weight files."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_shapes_have_the_parameters_their_weights_have(name: str) -> None:
    assert shape_named(name).parameters == PUBLISHED[name]
    assert set(SHAPES) == set(PUBLISHED)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        (
            "llama-3.1-70b",
            {"model_type": "llama", "hidden_size": 8192, "intermediate_size": 28_672,
             "num_attention_heads": 64, "num_key_value_heads": 8, "num_hidden_layers": 80,
             "vocab_size": 128_256},
        ),
        (
            "qwen2.5-0.5b",
            {"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864,
             "num_attention_heads": 14, "num_key_value_heads": 2, "num_hidden_layers": 24,
             "vocab_size": 151_936, "tie_word_embeddings": True},
        ),
        (
            "gemma-2-27b",
            {"model_type": "gemma2", "hidden_size": 4608, "intermediate_size": 36_864,
             "num_attention_heads": 32, "num_key_value_heads": 16, "head_dim": 128,
             "num_hidden_layers": 46, "vocab_size": 256_000, "tie_word_embeddings": True},
        ),
    ],
)  # fmt: skip
def test_shapes_are_those_of_transformers(
    name: str, config: dict[str, Any], tmp_path: Path
) -> None:
    """A model's own configuration gives the same shape as the table, without any weights."""
    made = AutoConfig.for_model(**config)
    made.save_pretrained(tmp_path)
    with torch.device("meta"), quiet_transformers():
        model = AutoModelForCausalLM.from_config(made)
    assert shape_named(name).parameters == sum(p.numel() for p in model.parameters())
    found = load_shape(FolderModel(path=tmp_path))
    assert found == shape_named(name)


def workload(rows: int, tokens: int) -> Workload:
    return Workload(
        rows=rows,
        positions=rows,
        prompt_tokens=rows * tokens,
        run_tokens=rows * tokens,
        attended=rows * tokens**2,
    )


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma2", "gpt2"])
@pytest.mark.parametrize(("rows", "tokens"), [(1, 7), (3, 11)])
def test_operations_are_those_torch_counts(
    model_type: str, rows: int, tokens: int, tmp_path: Path
) -> None:
    model = tiny_model(model_type)
    with quiet_transformers():
        model.config.save_pretrained(tmp_path)
    model.set_attn_implementation("eager")
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        model.base_model(input_ids=torch.ones(rows, tokens, dtype=torch.long))
    found = forward_flops(load_shape(FolderModel(path=tmp_path)), workload(rows, tokens))
    assert found == counter.get_total_flops()


SMALL = ModelShape(
    n_layers=3, d_model=16, parameters=10_000_000_000, block_weights=5000, attention_width=8
)
LAYERS = {"resid_pre": (0,), "resid_post": (0, 1, 2)}


def test_every_figure_follows_from_its_formula() -> None:
    work = Workload(rows=100, positions=500, prompt_tokens=2000, run_tokens=900, attended=40_000)
    machines = Machines(device=DEVICES["rtx-4090"], workers=4, utilisation=0.5)
    found = estimate(
        SMALL, work, machines, layers=LAYERS, compute_dtype="bfloat16", dtype="float32"
    )
    assert found.flops == 2 * 5000 * 900 + 4 * 3 * 8 * 40_000
    assert found.stored_bytes == 4 * (500 * 16 * 4 + 100 * 8)
    assert found.weight_bytes == 20e9
    assert found.devices == 1  # 20 of 0.9 * 24 GB
    seconds = found.flops / (165e12 * 0.5 * 4)
    assert found.hours == pytest.approx(seconds / 3600)
    assert found.device_hours == pytest.approx(4 * seconds / 3600)
    assert found.bytes_per_second == pytest.approx(found.stored_bytes / seconds)


def test_float32_has_larger_weights_and_a_lower_peak() -> None:
    machines = Machines(device=DEVICES["rtx-4090"], utilisation=1)
    found = estimate(
        SMALL, workload(2, 5), machines, layers=LAYERS, compute_dtype="float32", dtype="bfloat16"
    )
    assert found.weight_bytes == 40e9
    assert found.devices == 2
    assert found.flops is not None
    assert found.hours == pytest.approx(found.flops / 82.6e12 / 3600)
    assert found.device_hours == pytest.approx(2 * found.flops / 82.6e12 / 3600)
    assert found.stored_bytes == 4 * 2 * (16 * 2 + 8)


def test_a_measured_rate_takes_the_place_of_a_peak() -> None:
    machines = Machines(device=DEVICES["h100"], workers=2, tokens_per_second=10)
    options: dict[str, Any] = {"layers": LAYERS, "compute_dtype": "float32", "dtype": "float32"}
    found = estimate(SMALL, workload(36, 100), machines, **options)
    assert found.hours == pytest.approx(3600 / 10 / 2 / 3600)
    mixture = ModelShape(n_layers=3, d_model=16, has_neurons=False, parameters=10)
    assert estimate(mixture, workload(36, 100), machines, **options).flops is None
    with pytest.raises(UnsupportedModelError, match="mixture of experts"):
        estimate(mixture, workload(1, 1), Machines(device=DEVICES["h100"]), **options)
    nothing = estimate(SMALL, workload(1, 1), Machines(), **options)
    assert (nothing.hours, nothing.devices, nothing.device_hours) == (None, None, None)


def test_a_workload_scales_in_all_it_counts() -> None:
    found = workload(4, 10).scaled(1e9)
    assert found.rows == found.positions == pytest.approx(1e8)
    assert found.run_tokens == found.prompt_tokens == 1e9
    assert found.attended == pytest.approx(1e10)


def unit(packing: Any, token_ids: list[list[int]], budget: int | None) -> ActivationUnit:
    uids = np.arange(len(token_ids), dtype=np.uint64)
    return ActivationUnit(
        stage="base", identity="", tokenizer="",
        prompts=Prompts("few", uids, token_ids, (-2, -1), [""] * len(token_ids)),
        block=0, n_blocks=1, first_row=0, layers=LAYERS, d_model=16, compute_dtype="float32",
        dtype="float32", packing=packing, tokens_per_batch=budget, parity_rows=1, tolerance=1.0,
    )  # fmt: skip


def test_a_workload_counts_what_is_shared_and_what_is_padded() -> None:
    rows = [[1, 2, 3], [1, 2, 4, 5], [9, 8]]
    tree = workload_of([unit("tree", rows, None)])
    assert (tree.rows, tree.positions, tree.prompt_tokens) == (3, 6, 9)
    assert (tree.run_tokens, tree.attended) == (7, 49)  # 1 2 3 4 5 and 9 8, in one sequence
    padded = workload_of([unit("batches", rows, None), unit("batches", rows, 8)])
    assert padded.run_tokens == 3 * 4 + (2 * 3 + 4)
    assert padded.attended == 3 * 16 + (2 * 9 + 16)


def test_names_are_found_as_people_write_them() -> None:
    assert device_named("RTX 4090") is DEVICES["rtx-4090"]
    assert shape_named("Llama-3.1-70B") is SHAPES["llama-3.1-70b"]
    with pytest.raises(UnknownNameError, match=r"did you mean 'h100'"):
        device_named("h1000")
    with pytest.raises(UnknownNameError, match=r"did you mean 'gemma-2-27b'"):
        shape_named("gemma2-27b")


@pytest.mark.parametrize(
    "wrong",
    [{"workers": 0}, {"utilisation": 0.0}, {"utilisation": 1.1}, {"tokens_per_second": -1.0},
     {"tokens_per_second": float("inf")}],
)  # fmt: skip
def test_machines_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        Machines(**wrong)
