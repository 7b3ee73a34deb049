"""Rows packed as trees or in batches give what each row gives alone, on every architecture."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny_models import (
    CONFIGS,
    FAMILIES,
    N_LAYERS,
    VOCABULARY,
    blocks,
    blocks_by_hand,
    body,
    hook_count,
    mlp_by_hand,
    tiny_model,
)
from torch import Tensor

from ptmech.errors import DataError, UnknownNameError
from ptmech.live.packing import forwards, running
from ptmech.live.packing.running import Ran, run_packed
from ptmech.live.sites import SITES, ModelSites

Values = dict[tuple[str, int], list[np.ndarray]]
WANTED = [(site, layer) for site in SITES for layer in range(N_LAYERS)]


def some_rows() -> list[list[int]]:
    """Rows that share all, much, little and nothing, most longer than the tiny models' windows."""
    rng = np.random.default_rng(3)
    trunk, other = (rng.integers(0, VOCABULARY, 9).tolist() for _ in range(2))

    def ends(*lengths: int) -> list[list[int]]:
        return [rng.integers(0, VOCABULARY, length).tolist() for length in lengths]

    rows = [trunk + end for end in ends(4, 1, 7, 2)]
    rows += [trunk[:3] + end for end in ends(5, 8)] + [other + end for end in ends(3, 6)]
    rows += [trunk, [*rows[2]], *ends(1, 12)]
    return [rows[at] for at in rng.permutation(len(rows))]


ROWS = some_rows()
LAST = np.array([[len(row) - 1] for row in ROWS])


def by_hand(model: Any, rows: Sequence[Sequence[int]]) -> Values:
    """Every site of every row at all tokens, from one forward a row of blocks written by hand."""
    found: Values = {place: [] for place in WANTED}
    parallel = getattr(model.config, "use_parallel_residual", False)
    streams: dict[tuple[str, int], Tensor] = {}

    def keep(site: str, layer: int, stream: Tensor) -> Tensor:
        streams[site, layer] = stream.clone()
        return stream

    for row in rows:
        with torch.no_grad(), blocks_by_hand(model, keep):
            model(torch.tensor([list(row)]), use_cache=False)
            for layer, block in enumerate(blocks(model)):
                pre, post = streams["resid_pre", layer], streams["resid_post", layer]
                mlp = mlp_by_hand(block, pre if parallel else streams["resid_mid", layer])
                middle = post - mlp
                written = {
                    "resid_pre": pre,
                    "attn_out": middle - pre,
                    "resid_mid": middle,
                    "mlp_out": mlp,
                    "resid_post": post,
                }
                for site, values in written.items():
                    found[site, layer].append(values[0].numpy().copy())
    return found


def ran(
    model: Any, rows: Sequence[Sequence[int]], indices: np.ndarray, **options: Any
) -> tuple[Values, Ran]:
    """What every row got, and how; each row must come exactly once."""
    wanted = options.pop("wanted", WANTED)
    found: Values = {place: [np.empty(0)] * len(rows) for place in wanted}
    came: list[int] = []

    def take(numbers: np.ndarray, values: Mapping[tuple[str, int], Tensor]) -> None:
        came.extend(numbers.tolist())
        assert set(values) == set(wanted)
        for place, tensor in values.items():
            assert tensor.shape[:2] == (len(numbers), indices.shape[1])
            for row, one in zip(numbers.tolist(), tensor, strict=True):
                found[place][row] = one.float().numpy().copy()

    options = {"packing": "tree", **options}
    how = run_packed(ModelSites.of(model), rows, indices, wanted, take=take, **options)
    assert sorted(came) == list(range(len(rows)))
    return found, how


def assert_alike(
    found: Values, expected: Values, indices: np.ndarray, tolerance: float = 1e-5
) -> None:
    for place, values in found.items():
        scale = max(np.abs(row).max() for row in expected[place])
        for row, (one, whole, at) in enumerate(zip(values, expected[place], indices, strict=True)):
            np.testing.assert_allclose(
                one, whole[at], rtol=0, atol=tolerance * scale, err_msg=f"{place}, row {row}"
            )


def every_token() -> np.ndarray:
    """All tokens of every row; short rows repeat their last one."""
    longest = max(map(len, ROWS))
    return np.array([np.minimum(np.arange(longest), len(row) - 1) for row in ROWS])


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny_model()


@pytest.fixture(scope="module")
def expected(llama: Any) -> Values:
    return by_hand(llama, ROWS)


@pytest.fixture
def short_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trees so short that several of them make a batch."""
    monkeypatch.setattr(forwards, "LONGEST_TREE", 30)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("short_trees")
def test_every_site_layer_and_token_equals_each_row_alone(family: str) -> None:
    model = tiny_model(family)
    alone = by_hand(model, ROWS)
    for indices in (LAST, every_token()):
        for tokens in (30, 100):
            found, how = ran(model, ROWS, indices, tokens_per_batch=tokens)
            assert how == Ran(packing="tree", tokens_per_batch=tokens)
            assert_alike(found, alone, indices)
        found, how = ran(model, ROWS, indices, packing="batches")
        assert how.packing == "batches"
        assert_alike(found, alone, indices)


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "gpt_neox", "opt", "qwen3"])
@pytest.mark.usefixtures("short_trees")
def test_eager_attention_sees_the_same_trees(family: str) -> None:
    model = tiny_model(family)
    alone = by_hand(model, ROWS)
    model.set_attn_implementation("eager")
    found, how = ran(model, ROWS, LAST, tokens_per_batch=100)
    assert how.packing == "tree"
    assert_alike(found, alone, LAST)


_MIXED = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}


@pytest.mark.parametrize(
    ("family", "entries"),
    [
        ("gemma3_text", {**_MIXED, "sliding_window": 3}),
        ("gemma2", {**_MIXED, "sliding_window": 3}),
        ("qwen2", {**_MIXED, "use_sliding_window": True, "sliding_window": 3}),
        ("qwen3", {**_MIXED, "use_sliding_window": True, "sliding_window": 3}),
        ("qwen2_moe", {**_MIXED, "use_sliding_window": True, "sliding_window": 3}),
        ("smollm3", {**_MIXED, "use_sliding_window": True, "sliding_window": 3}),
        ("phi3", {"sliding_window": 3}),
        ("mixtral", {"sliding_window": 3}),
        ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 3}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.usefixtures("short_trees")
def test_windows_slide_along_each_row_and_not_along_the_sequence(
    family: str, entries: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = by_hand(tiny_model(family), ROWS)
    monkeypatch.setitem(CONFIGS, family, {**CONFIGS[family], **entries})
    model = tiny_model(family)
    alone = by_hand(model, ROWS)
    top = ("resid_post", N_LAYERS - 1)
    # The window matters here: with another one the same weights give something else.
    assert max(np.abs(a - b).max() for a, b in zip(whole[top], alone[top], strict=True)) > 1e-3
    found, how = ran(model, ROWS, every_token(), tokens_per_batch=100)
    assert how.packing == "tree"
    assert_alike(found, alone, every_token())


@settings(max_examples=20, deadline=None)
@given(
    tokens=st.none() | st.integers(1, 200),
    order=st.permutations(range(len(ROWS))),
    packing=st.sampled_from(["tree", "batches"]),
)
def test_neither_neighbours_nor_size_change_a_row(
    llama: Any, expected: Values, tokens: int | None, order: list[int], packing: str
) -> None:
    rows = [ROWS[row] for row in order]
    found, _how = ran(llama, rows, LAST[order], tokens_per_batch=tokens, packing=packing)
    shuffled = {place: [values[row] for row in order] for place, values in expected.items()}
    assert_alike(found, shuffled, LAST[order])


def test_half_precision_masks_as_well(expected: Values) -> None:
    for attention in ("sdpa", "eager"):
        model = tiny_model().to(torch.bfloat16)
        model.set_attn_implementation(attention)
        found, _how = ran(model, ROWS, LAST)
        assert_alike(found, expected, LAST, tolerance=0.1)


def test_the_model_computes_each_shared_token_once(llama: Any) -> None:
    seen: list[int] = []
    handle = llama.model.layers[0].register_forward_pre_hook(
        lambda _block, args: seen.append(args[0].shape[:2].numel())
    )
    try:
        ran(llama, ROWS, LAST)
    finally:
        handle.remove()
    beginnings = {tuple(row[: at + 1]) for row in ROWS for at in range(len(row))}
    assert seen == [len(beginnings)]
    assert len(beginnings) < sum(map(len, ROWS))


def test_a_model_that_cannot_run_trees_runs_batches_and_says_why(
    expected: Values,
) -> None:
    model = tiny_model()
    model.config.alibi = True
    found, how = ran(model, ROWS, LAST)
    assert how.packing == "batches"
    assert "ALiBi" in how.without_tree
    assert_alike(found, expected, LAST)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("packing", ["tree", "batches"])
def test_values_come_in_the_element_type_asked_for(
    llama: Any, expected: Values, dtype: torch.dtype, packing: str
) -> None:
    asked = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}
    types: set[torch.dtype] = set()
    found: Values = {place: [np.empty(0)] * len(ROWS) for place in WANTED}

    def take(numbers: np.ndarray, values: Mapping[tuple[str, int], Tensor]) -> None:
        for place, tensor in values.items():
            types.add(tensor.dtype)
            for row, one in zip(numbers.tolist(), tensor, strict=True):
                found[place][row] = one.float().numpy()

    sites = ModelSites.of(llama)
    how = run_packed(sites, ROWS, LAST, WANTED, packing=packing, dtype=dtype, take=take)
    assert types == {dtype}
    assert not how.not_finite
    assert_alike(found, expected, LAST, tolerance=asked[dtype])


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("packing", ["tree", "batches"])
def test_it_is_told_where_values_are_not_finite(
    packing: str, dtype: torch.dtype, broken: float
) -> None:
    model = tiny_model()

    def spoil(_mlp: object, _args: object, output: Tensor) -> Tensor:
        return output.index_fill(-1, torch.tensor([3]), broken)

    blocks(model)[N_LAYERS - 1].mlp.register_forward_hook(spoil)
    _found, how = ran(model, ROWS, LAST, packing=packing, dtype=dtype, tokens_per_batch=30)
    spoilt = {("mlp_out", N_LAYERS - 1), ("resid_post", N_LAYERS - 1)}
    fits = np.isfinite(broken) and broken <= torch.finfo(dtype).max
    assert set(how.not_finite) == (set() if fits else spoilt)


@pytest.mark.parametrize("token", [-1, len(ROWS[1])])
def test_a_token_that_a_row_does_not_have_is_refused(llama: Any, token: int) -> None:
    indices = LAST.copy()
    indices[1] = token
    with pytest.raises(DataError, match=f"token {token} is wanted of row 1, which has"):
        ran(llama, ROWS, indices)


# Stopping ----------------------------------------------------------------------------------------


def calls_of_blocks(model: Any, work: Callable[[], object]) -> list[int]:
    """How often each block was called."""
    counts = [0] * N_LAYERS

    def count(layer: int) -> Callable[..., None]:
        def hook(*_: object) -> None:
            counts[layer] += 1

        return hook

    handles = [
        block.register_forward_pre_hook(count(layer)) for layer, block in enumerate(blocks(model))
    ]
    try:
        work()
    finally:
        for handle in handles:
            handle.remove()
    return counts


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt"])
@pytest.mark.parametrize("packing", ["tree", "batches"])
def test_no_block_above_the_last_one_wanted_runs(family: str, packing: str) -> None:
    model = tiny_model(family)
    ids = torch.tensor([ROWS[0]])
    with torch.no_grad():
        before = model(ids, use_cache=False).logits
    hooks = hook_count(model)
    alone = by_hand(model, ROWS)
    for top in range(N_LAYERS):
        wanted = [("resid_post", top), ("mlp_out", top), ("resid_pre", 0)]
        counts = calls_of_blocks(
            model,
            lambda wanted=wanted: assert_alike(
                ran(model, ROWS, LAST, wanted=wanted, packing=packing, tokens_per_batch=1000)[0],
                alone,
                LAST,
            ),
        )
        assert counts == [1] * (top + 1) + [0] * (N_LAYERS - top - 1)
    assert hook_count(model) == hooks
    with torch.no_grad():
        output = model(ids, use_cache=False, output_hidden_states=True)
    assert torch.equal(output.logits, before)
    assert len(output.hidden_states) == N_LAYERS + 1


def test_stopping_leaves_offloaded_weights_where_they_wait(expected: Values) -> None:
    model = cpu_offload(tiny_model(), execution_device=torch.device("cpu"))
    ids = torch.tensor([ROWS[0]])
    with torch.no_grad():
        before = model(ids, use_cache=False).logits
    found, _how = ran(model, ROWS, LAST, wanted=[("resid_post", 0)])
    assert_alike(found, expected, LAST)
    assert all(weight.is_meta for weight in model.parameters())
    with torch.no_grad():
        assert torch.equal(model(ids, use_cache=False).logits, before)


# Memory ------------------------------------------------------------------------------------------


def memory_for(model: Any, tokens: int, message: str = "CUDA out of memory. Tried") -> Any:
    """Let forwards of more tokens fail in the middle of the model."""

    def fail(_block: object, args: tuple[Tensor, ...]) -> None:
        if args[0].shape[:2].numel() > tokens:
            raise torch.OutOfMemoryError(message)

    return blocks(model)[1].register_forward_pre_hook(fail)


@pytest.fixture
def no_sweeping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the collection of garbage out, which takes its time and has a test of its own."""
    monkeypatch.setattr(running, "clear_device_cache", lambda **_: None)


def test_what_a_forward_left_is_given_back_before_the_next(
    expected: Values, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    sizes: list[int] = []
    held: list[bool] = []
    blocks(model)[0].register_forward_hook(
        lambda _block, _args, output: sizes.append(output.shape[:2].numel())
    )
    real = running.clear_device_cache

    def sweep(**options: bool) -> None:
        real(**options)
        # No exception, and with it no frame that holds its tensors, is being handled any more.
        held.append(sys.exception() is not None)

    monkeypatch.setattr(running, "clear_device_cache", sweep)
    handle = memory_for(model, 40)
    found, _how = ran(model, ROWS, LAST, tokens_per_batch=200)
    handle.remove()
    assert held == [False] * sum(size > 40 for size in sizes) != []
    assert_alike(found, expected, LAST)


@pytest.mark.parametrize("packing", ["tree", "batches"])
@pytest.mark.parametrize("tokens", [16, 40])
@pytest.mark.usefixtures("no_sweeping")
def test_where_memory_runs_out_smaller_forwards_do_the_rest(
    expected: Values, packing: str, tokens: int
) -> None:
    model = tiny_model()
    hooks = hook_count(model)
    handle = memory_for(model, tokens)
    found, how = ran(model, ROWS, LAST, packing=packing, tokens_per_batch=200)
    handle.remove()
    assert_alike(found, expected, LAST)
    assert how.packing == packing
    assert how.tokens_per_batch < 200
    assert hook_count(model) == hooks


@pytest.mark.usefixtures("no_sweeping")
def test_what_is_done_is_not_done_again() -> None:
    model = tiny_model()
    rows = [[1, 2], [3, 4], [5, 6], [7, 8, 9, 1, 2], [9, 8, 7, 6, 5]]
    handle = memory_for(model, 6)
    counts = calls_of_blocks(
        model,
        lambda: ran(
            model,
            rows,
            np.array([[len(row) - 1] for row in rows]),
            packing="batches",
            tokens_per_batch=10,
            wanted=[("resid_post", 0)],
        ),
    )
    # All three short rows in one forward of six tokens; two long ones, which never reach block 1.
    assert counts == [2, 0, 0]
    handle.remove()


@pytest.mark.parametrize("packing", ["tree", "batches"])
@pytest.mark.usefixtures("no_sweeping")
def test_a_row_that_does_not_fit_alone_is_named_by_its_length(packing: str) -> None:
    model = tiny_model()
    handle = memory_for(model, 15)
    with pytest.raises(DataError, match=r"a row of 16 tokens does not fit into memory"):
        ran(model, ROWS, LAST, packing=packing)
    handle.remove()


@pytest.mark.usefixtures("no_sweeping")
def test_equal_rows_that_do_not_fit_end_as_well() -> None:
    model = tiny_model()
    handle = memory_for(model, 3)
    rows = [[1, 2, 3, 4], [1, 2, 3, 4], [1, 2]]
    with pytest.raises(DataError, match="a row of 4 tokens"):
        ran(model, rows, np.array([[3], [3], [1]]))
    handle.remove()


def test_other_failures_are_not_taken_for_a_lack_of_memory() -> None:
    model = tiny_model()

    def fail(*_: object) -> None:
        raise RuntimeError("the disk is gone")

    body(model).register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="the disk is gone"):
        ran(model, ROWS, LAST)


def test_a_site_that_is_not_there_is_refused(llama: Any) -> None:
    with pytest.raises(UnknownNameError):
        ran(llama, ROWS, LAST, wanted=[("resid_post", N_LAYERS)])
