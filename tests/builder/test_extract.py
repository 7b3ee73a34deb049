"""Activations equal plain forwards of one row, whatever runs beside them; sabotage is noticed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny_models import (
    D_MODEL,
    FAMILIES,
    N_LAYERS,
    VOCABULARY,
    blocks,
    blocks_by_hand,
    mlp_by_hand,
    tiny_model,
)
from torch import Tensor

from ptmech.errors import DataError, ParityError
from ptmech.live.packing.cost import tokens_at_once
from ptmech.live.packing.prefix_trees import Tree
from ptmech.live.packing.running import Ran
from ptmech.live.recording import PARITY_TOLERANCE
from ptmech.live.sites import ModelSites
from ptmech_builder.extract import (
    Activations,
    check_parity,
    extract,
    to_numpy,
    wanted_layers,
)
from ptmech_builder.prompts import Prompts

SITES = ("resid_pre", "resid_post", "mlp_out")
WANTED = [
    (site, layer) for site, layers in wanted_layers(SITES, N_LAYERS).items() for layer in layers
]
POSITIONS = (-3, -1)
LENGTHS = (5, 3, 9, 3, 12, 7, 4, 11)


def as_prompts(token_ids: list[list[int]]) -> Prompts:
    return Prompts(
        dataset="things",
        uids=np.arange(10, 10 + len(token_ids), dtype=np.uint64),
        token_ids=token_ids,
        positions=POSITIONS,
        rendered_sha256=[""] * len(token_ids),
    )


def some_prompts(lengths: tuple[int, ...] = LENGTHS, *, seed: int = 0) -> Prompts:
    """Rows of which the third, fifth and eighth begin alike."""
    rng = np.random.default_rng(seed)
    rows = [rng.integers(0, VOCABULARY, length).tolist() for length in lengths]
    for row in (4, 7):
        rows[row][:6] = rows[2][:6]
    return as_prompts(rows)


def by_hand(model: Any, prompts: Prompts) -> dict[tuple[str, int], np.ndarray]:
    """Every site of every row, from one forward a row with the blocks written out in the tests."""
    found: dict[tuple[str, int], list[np.ndarray]] = {key: [] for key in WANTED}
    parallel = getattr(model.config, "use_parallel_residual", False)
    read_by_mlp = "resid_pre" if parallel else "resid_mid"

    def keep(site: str, layer: int, stream: Tensor, at: list[int]) -> Tensor:
        if (site, layer) in found:
            found[site, layer].append(stream[0, at].numpy().copy())
        if site == read_by_mlp:
            added = mlp_by_hand(blocks(model)[layer], stream)
            found["mlp_out", layer].append(added[0, at].numpy().copy())
        return stream

    for ids in prompts.token_ids:
        at = [len(ids) + position for position in POSITIONS]
        with (
            torch.no_grad(),
            blocks_by_hand(model, lambda s, layer, x, at=at: keep(s, layer, x, at)),
        ):
            model(torch.tensor([ids]), use_cache=False)
    return {key: np.stack(values) for key, values in found.items()}


def extracted(model: Any, prompts: Prompts, **options: Any) -> Activations:
    settings = {"dtype": "float32", "tokens_per_batch": 32, **options}
    return extract(ModelSites.of(model), prompts, WANTED, **settings)


def assert_close(found: Activations, expected: dict[tuple[str, int], np.ndarray]) -> None:
    assert set(found) == set(expected)
    for key, values in expected.items():
        scale = np.abs(values).max()
        np.testing.assert_allclose(found[key], values, rtol=0, atol=3e-6 * scale, err_msg=str(key))


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny_model()


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    return some_prompts()


@pytest.mark.parametrize("packing", ["tree", "batches"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_site_layer_and_position_equals_a_forward_by_hand(
    family: str, packing: str, prompts: Prompts
) -> None:
    model = tiny_model(family)
    found = extracted(model, prompts, packing=packing)
    assert found["resid_post", 0].shape == (len(LENGTHS), len(POSITIONS), D_MODEL)
    assert found["resid_post", 0].dtype == np.float32
    assert_close(found, by_hand(model, prompts))
    parity = check_parity(ModelSites.of(model), prompts, found, n_rows=4, tolerance=1e-4)
    assert 0 <= parity.worst <= 1e-5
    # Four rows spread over all; the one that shares most is among them.
    assert parity.rows == 4


def test_the_stream_equals_transformers_own_hidden_states(llama: Any, prompts: Prompts) -> None:
    found = extracted(llama, prompts)
    for row, ids in enumerate(prompts.token_ids):
        with torch.no_grad():
            states = llama(torch.tensor([ids]), output_hidden_states=True).hidden_states
            # Only the last entry has the final norm applied.
            last = llama.model.norm(torch.from_numpy(found["resid_post", N_LAYERS - 1][row]))
        at = [len(ids) + position for position in POSITIONS]
        np.testing.assert_array_equal(found["resid_pre", 0][row], states[0][0, at])
        for layer in range(N_LAYERS - 1):
            np.testing.assert_allclose(
                found["resid_post", layer][row], states[layer + 1][0, at], atol=1e-4, rtol=0
            )
        np.testing.assert_allclose(last, states[-1][0, at], atol=1e-4, rtol=0)


@settings(max_examples=25, deadline=None)
@given(
    budget=st.none() | st.integers(1, 150),
    order=st.permutations(range(len(LENGTHS))),
    packing=st.sampled_from(["tree", "batches"]),
)
def test_neither_padding_nor_neighbours_nor_budget_change_a_row(
    llama: Any, prompts: Prompts, budget: int | None, order: list[int], packing: str
) -> None:
    alone = extracted(llama, prompts, tokens_per_batch=1)
    rows = np.array(order)
    found = extracted(llama, prompts.take(rows), tokens_per_batch=budget, packing=packing)
    assert_close(found, {key: values[rows] for key, values in alone.items()})


@pytest.mark.parametrize("packing", ["tree", "batches"])
def test_the_bar_advances_by_every_token_once(llama: Any, prompts: Prompts, packing: str) -> None:
    steps: list[int] = []
    extracted(llama, prompts, advance=steps.append, packing=packing)
    assert len(steps) > 1
    assert sum(steps) == sum(LENGTHS)


def test_how_it_ran_is_noted_once(llama: Any, prompts: Prompts) -> None:
    noted: list[Ran] = []
    extracted(llama, prompts, note=noted.append, packing="tree", tokens_per_batch=None)
    assert noted == [Ran(packing="tree", tokens_per_batch=tokens_at_once("tree", "cpu"))]


def test_wanted_layers_store_the_embeddings_once() -> None:
    assert wanted_layers(SITES, 3) == {
        "resid_pre": (0,),
        "resid_post": (0, 1, 2),
        "mlp_out": (0, 1, 2),
    }


# Element types ---------------------------------------------------------------------------------


def nearest_even_bf16(values: np.ndarray) -> np.ndarray:
    """The 16 upper bits of float32 after rounding to nearest, ties to even, in integers."""
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def test_storing_bf16_rounds_to_nearest_even(llama: Any, prompts: Prompts) -> None:
    precise, stored = (extracted(llama, prompts, dtype=d) for d in ("float32", "bfloat16"))
    for key, values in precise.items():
        assert stored[key].dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(stored[key].view(np.uint16), nearest_even_bf16(values))


def test_ties_go_to_even() -> None:
    ties = (np.arange(0x3F80, 0x4080, dtype=np.uint32) << 16 | 0x8000).view(np.float32)
    found = to_numpy(torch.from_numpy(ties), "bfloat16").view(np.uint16)
    np.testing.assert_array_equal(found, nearest_even_bf16(ties))
    assert not (found & 1).any()


def test_storing_float16_rounds_as_numpy_does(llama: Any, prompts: Prompts) -> None:
    precise, stored = (extracted(llama, prompts, dtype=d) for d in ("float32", "float16"))
    for key, values in precise.items():
        np.testing.assert_array_equal(stored[key], values.astype(np.float16))


def test_every_bf16_pattern_survives() -> None:
    patterns = np.arange(2**16, dtype=np.uint16)
    tensor = torch.from_numpy(patterns.view(np.int16)).view(torch.bfloat16)
    found = to_numpy(tensor, "bfloat16")
    assert found.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(found.view(np.uint16), patterns)


def test_computing_in_bf16_stores_the_model_s_own_bits(prompts: Prompts) -> None:
    model = tiny_model().to(torch.bfloat16)
    # Rows of one length in batches of one: the very forward that the oracle does.
    found = extracted(model, prompts, dtype="bfloat16", tokens_per_batch=1)
    for row, ids in enumerate(prompts.token_ids):
        with torch.no_grad():
            states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        at = [len(ids) + position for position in POSITIONS]
        for key, state in [
            (("resid_pre", 0), states[0]),
            *((("resid_post", layer), states[layer + 1]) for layer in range(N_LAYERS - 1)),
        ]:
            bits = state[0, at].view(torch.int16).numpy().view(np.uint16)
            np.testing.assert_array_equal(found[key][row].view(np.uint16), bits)
    parity = check_parity(
        ModelSites.of(model), prompts, found, n_rows=8, tolerance=PARITY_TOLERANCE["bfloat16"]
    )
    assert parity.worst <= PARITY_TOLERANCE["bfloat16"]


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), 1e5])
def test_what_does_not_fit_the_element_type_is_refused(prompts: Prompts, broken: float) -> None:
    model = tiny_model()
    model.model.layers[1].mlp.down_proj.weight.data[0, 0] = broken
    with pytest.raises(DataError, match="'things' is not finite in float16"):
        extracted(model, prompts, dtype="float16")


# Parity ----------------------------------------------------------------------------------------


def check(model: Any, prompts: Prompts, stored: Activations, **options: Any) -> float:
    settings = {"n_rows": len(LENGTHS), "tolerance": 1e-4, **options}
    return check_parity(ModelSites.of(model), prompts, stored, **settings).worst


@pytest.fixture
def stored(llama: Any, prompts: Prompts) -> Activations:
    return extracted(llama, prompts)


@pytest.mark.parametrize("key", WANTED, ids=lambda key: f"{key[0]}-{key[1]}")
@pytest.mark.parametrize(
    "sabotage",
    [
        lambda values: values * np.float32(1.01),
        lambda values: values + np.float32(0.05) * np.abs(values).max(),
        lambda values: values[:, ::-1],
        lambda values: np.roll(values, 1, axis=0),
        lambda values: np.roll(values, 1, axis=2),
    ],
    ids=["scaled", "shifted", "positions swapped", "rows rolled", "coordinates rolled"],
)
def test_stored_values_that_are_not_the_model_s_are_refused(
    llama: Any,
    prompts: Prompts,
    stored: Activations,
    key: tuple[str, int],
    sabotage: Callable[[np.ndarray], np.ndarray],
) -> None:
    check(llama, prompts, stored)
    stored[key] = np.ascontiguousarray(sabotage(stored[key]))
    with pytest.raises(ParityError, match=rf"^things: {key[0]} layer {key[1]}, row \d+ deviates"):
        check(llama, prompts, stored)


def test_a_value_that_is_not_a_number_is_refused(
    llama: Any, prompts: Prompts, stored: Activations
) -> None:
    stored["resid_post", 0][0, 0, 0] = np.nan
    with pytest.raises(ParityError):
        check(llama, prompts, stored)


def test_the_tolerance_decides(llama: Any, prompts: Prompts, stored: Activations) -> None:
    stored["mlp_out", 1][2] *= np.float32(1.001)
    worst = check(llama, prompts, stored, tolerance=1e-2)
    assert worst == pytest.approx(1e-3, rel=0.05)
    with pytest.raises(ParityError, match="mlp_out layer 1, row 2"):
        check(llama, prompts, stored, tolerance=0.9 * worst)


@contextmanager
def padding_attended(model: Any) -> Iterator[None]:
    """Break the model: drop the attention mask and pad on the left, so that padding is seen."""

    def shift(_module: Any, _args: Any, kwargs: dict[str, Any]) -> Any:
        mask = kwargs.pop("attention_mask", None)
        if mask is not None:
            flipped = torch.where(mask.bool(), kwargs["input_ids"], 1)
            kwargs["input_ids"] = torch.roll(flipped, 1, dims=1)
        return (), kwargs

    handle = model.model.register_forward_pre_hook(shift, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def test_a_batched_forward_that_differs_from_a_plain_one_is_noticed(
    llama: Any, prompts: Prompts
) -> None:
    with padding_attended(llama):
        broken = extracted(llama, prompts, tokens_per_batch=200)
    with pytest.raises(ParityError, match="nothing was written"):
        check(llama, prompts, broken)


def test_the_sample_has_a_row_that_shares(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [[9, 9, 1], [3, 4, 5, 6], [7, 7, 7], [3, 4, 5, 8], [2, 2, 2, 2, 2]]
    prompts = as_prompts(rows)
    whole = extracted(llama, prompts, packing="tree")
    assert check(llama, prompts, whole, n_rows=2) <= 1e-5
    # A mask by which branches see each other breaks only the rows that share.
    monkeypatch.setattr(Tree, "ends", property(lambda tree: np.full(tree.n_tokens, tree.n_tokens)))
    broken = extracted(llama, prompts, packing="tree", tokens_per_batch=5)
    for place in WANTED:  # the rows that two of a sample would be
        np.testing.assert_allclose(broken[place][[0, 4]], whole[place][[0, 4]], atol=1e-4)
    with pytest.raises(ParityError, match=r"row [13] deviates"):
        check(llama, prompts, broken, n_rows=2)


def test_where_nothing_is_shared_the_sample_is_spread_over_all(llama: Any) -> None:
    prompts = as_prompts([[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12]])
    found = extracted(llama, prompts)
    sites = ModelSites.of(llama)
    assert check_parity(sites, prompts, found, n_rows=2, tolerance=1e-4).rows == 2
    assert check_parity(sites, prompts, found, n_rows=9, tolerance=1e-4).rows == 4
