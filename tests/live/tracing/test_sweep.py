from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny_models import CONFIGS, D_MODEL, FAMILIES, N_LAYERS, blocks, hook_count, tiny_model

from ptmech.errors import DataError, UnknownNameError, UnsupportedModelError
from ptmech.live.sites import ModelSites
from ptmech.live.tracing.clean_run import clean_run
from ptmech.live.tracing.sweep import patch_sweep

BEGIN = 6
TOKENS = 12
"""More than any sliding window of the tiny models, which reach 4 or 5 tokens back."""


def prompts(rows: int = 3, *, seed: int = 0) -> torch.Tensor:
    """Prompts with a prefix in common, and one with another prefix."""
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 40, (rows, TOKENS), generator=random)
    tokens[:-1, :BEGIN] = tokens[0, :BEGIN]
    return tokens


def last_output(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """The last block's output [rows, tokens, d_model], caught by a plain hook."""
    caught: list[torch.Tensor] = []
    handle = blocks(model)[-1].register_forward_hook(
        lambda _module, _args, output: caught.append(output.clone())
    )
    try:
        with torch.inference_mode():
            model(tokens, use_cache=False)
    finally:
        handle.remove()
    return caught[0]


def by_hand(
    model: Any, tokens: torch.Tensor, donors: torch.Tensor, layer: int, column: int
) -> torch.Tensor:
    """One plain forward with one block's output replaced at one token."""

    def put(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
        changed = output.clone()
        changed[:, BEGIN + column] = donors[:, layer, column]
        return changed

    handle = blocks(model)[layer].register_forward_hook(put)
    try:
        return last_output(model, tokens)
    finally:
        handle.remove()


def weights_of(reads: int) -> torch.Tensor:
    return torch.randn(reads, D_MODEL, generator=torch.Generator().manual_seed(9))


def sweep(model: Any, tokens: torch.Tensor, donors: torch.Tensor, **options: Any) -> Any:
    sites = ModelSites.of(model)
    run = clean_run(sites, tokens, begin=BEGIN)
    weights = weights_of(options.get("reads", 1))
    scale = torch.arange(1.0, len(tokens) + 1)  # tells the rows apart
    return patch_sweep(
        sites, run, donors, lambda x, rows: (x * weights).sum((1, 2)) * scale[rows], **options
    )


def grid_by_hand(
    model: Any, tokens: torch.Tensor, donors: torch.Tensor, *, reads: int = 1
) -> np.ndarray:
    scale = torch.arange(1.0, len(tokens) + 1)
    grid = torch.empty(len(tokens), N_LAYERS, donors.shape[2])
    for layer in range(N_LAYERS):
        for column in range(donors.shape[2]):
            top = by_hand(model, tokens, donors, layer, column)[:, -reads:]
            grid[:, layer, column] = (top * weights_of(reads)).sum((1, 2)) * scale
    return grid.numpy()


def random_donors(columns: int = TOKENS - BEGIN, rows: int = 3) -> torch.Tensor:
    random = torch.Generator().manual_seed(5)
    return 3 * torch.randn(rows, N_LAYERS, columns, D_MODEL, generator=random)


def prepared(family: str, attention: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    if family == "gemma3_text":  # else three layers would all slide
        kinds = ["sliding_attention", "full_attention", "sliding_attention"]
        monkeypatch.setitem(CONFIGS, family, {**CONFIGS[family], "layer_types": kinds})
    model = tiny_model(family)
    model.set_attn_implementation(attention)
    for block in blocks(model):
        if hasattr(getattr(block, "self_attn", None), "attn_logit_softcapping"):
            # transformers' sdpa has no soft limit; in eager it should be felt
            block.self_attn.attn_logit_softcapping = 0.7 if attention == "eager" else None
    return model


@pytest.mark.parametrize(
    ("family", "attention"),
    # transformers has no sdpa for Gemma 2
    [(f, kind) for f in FAMILIES for kind in ("eager", "sdpa") if (f, kind) != ("gemma2", "sdpa")],
)
def test_every_cell_equals_a_plain_forward(
    family: str, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = prepared(family, attention, monkeypatch)
    tokens, donors = prompts(), random_donors()
    found = sweep(model, tokens, donors)
    expected = grid_by_hand(model, tokens, donors)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found.grid.numpy() / scale, expected / scale, atol=3e-6)
    assert found.control < 1e-4
    plain = (last_output(model, tokens)[:, -1:] * weights_of(1)).sum((1, 2)) * torch.arange(1.0, 4)
    torch.testing.assert_close(found.unpatched, plain, rtol=1e-4, atol=1e-4)
    assert np.ptp(expected, axis=(1, 2)).min() > 0.1
    assert hook_count(model) == 0
    assert model.config._attn_implementation == attention


@pytest.mark.parametrize("tokens_at_once", [1, 7, 40])
def test_memory_bound_layers_and_reads_do_not_change_a_cell(tokens_at_once: int) -> None:
    model = tiny_model("gemma2")
    tokens, donors = prompts(), random_donors(columns=TOKENS - BEGIN - 1)
    options = {"reads": 2, "tokens_at_once": tokens_at_once, "first": [0, 2, 4]}
    found = sweep(model, tokens, donors, layers=[2, 0], **options)
    expected = grid_by_hand(model, tokens, donors, reads=2)
    for row, first in enumerate((0, 2, 4)):
        for layer in (0, 2):
            np.testing.assert_allclose(
                found.grid[row, layer, first:], expected[row, layer, first:], rtol=1e-4, atol=1e-4
            )
    assert (found.grid[:, 1] == found.unpatched[:, None]).all()
    assert (found.grid[2, 0, :4] == found.unpatched[2]).all()


def test_one_prompt_without_prefix_and_one_traced_token() -> None:
    model = tiny_model("qwen3")
    sites = ModelSites.of(model)
    for begin in (0, TOKENS - 1):
        tokens = prompts(1)
        run = clean_run(sites, tokens, begin=begin)
        donors = torch.randn(1, N_LAYERS, TOKENS - begin, D_MODEL)
        found = patch_sweep(sites, run, donors, lambda x, _rows: x[:, 0].norm(dim=1))
        (top,) = last_output(model, tokens)
        assert float(found.unpatched) == pytest.approx(float(top[-1].norm()), rel=1e-5)
        assert float(found.grid[0, -1, -1]) == pytest.approx(float(donors[0, -1, -1].norm()))
        for layer in range(N_LAYERS):

            def put(
                _module: Any, _args: Any, output: Any, value: Any = donors[:, layer, -1]
            ) -> torch.Tensor:
                changed = output.clone()
                changed[:, -1] = value
                return changed

            handle = blocks(model)[layer].register_forward_hook(put)
            expected = float(last_output(model, tokens)[0, -1].norm())
            handle.remove()
            assert float(found.grid[0, layer, -1]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_clean_run_is_the_plain_forward(family: str) -> None:
    model = tiny_model(family)
    tokens = prompts()
    run = clean_run(ModelSites.of(model), tokens, begin=BEGIN)
    states = model(tokens, output_hidden_states=True, use_cache=True)
    for layer in range(N_LAYERS - 1):
        expected = states.hidden_states[layer + 1][:, BEGIN:]
        torch.testing.assert_close(run.outputs[:, layer], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        run.outputs[:, -1], last_output(model, tokens)[:, BEGIN:], rtol=1e-4, atol=1e-4
    )
    assert run.n_columns == TOKENS - BEGIN
    assert [keys.shape[2] for keys in run.keys] == [TOKENS] * N_LAYERS


def test_the_prefix_is_computed_once_for_all_rows_that_share_it() -> None:
    model = tiny_model()
    seen: list[Sequence[int]] = []
    handle = blocks(model)[0].register_forward_hook(
        lambda _module, _args, output: seen.append(tuple(output.shape[:2]))
    )
    clean_run(ModelSites.of(model), prompts(5), begin=BEGIN)
    handle.remove()
    assert seen == [(2, BEGIN), (5, TOKENS - BEGIN)]


def test_embeddings_can_be_edited_at_the_recorded_tokens() -> None:
    model = tiny_model("gemma2")
    tokens = prompts()
    noise = torch.randn(3, TOKENS - BEGIN, D_MODEL)
    run = clean_run(
        ModelSites.of(model), tokens, begin=BEGIN, edit_embeddings=lambda stream: stream + noise
    )
    embedded = model.get_input_embeddings()(tokens)
    embedded[:, BEGIN:] += noise
    caught: list[torch.Tensor] = []
    handle = blocks(model)[-1].register_forward_hook(
        lambda _module, _args, output: caught.append(output)
    )
    model(inputs_embeds=embedded, use_cache=False)
    handle.remove()
    torch.testing.assert_close(run.outputs[:, -1], caught[0][:, BEGIN:], rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_is_refused() -> None:
    model = tiny_model()
    sites = ModelSites.of(model)
    run = clean_run(sites, prompts(), begin=BEGIN)

    def norm(stream: torch.Tensor, _rows: torch.Tensor) -> torch.Tensor:
        return stream[:, 0].norm(dim=1)

    with pytest.raises(DataError, match="donors of shape"):
        patch_sweep(sites, run, random_donors(rows=2), norm)
    with pytest.raises(DataError, match="donors of shape"):
        patch_sweep(sites, run, random_donors(columns=TOKENS), norm)
    with pytest.raises(UnknownNameError, match="layer 3"):
        patch_sweep(sites, run, random_donors(), norm, layers=[3])
    with pytest.raises(DataError, match="nothing to run"):
        clean_run(sites, prompts(), begin=TOKENS)


def test_a_model_whose_attention_cannot_be_exchanged_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model()
    run = clean_run(ModelSites.of(model), prompts(), begin=BEGIN)
    monkeypatch.setattr(type(model), "_supports_attention_backend", False)
    with pytest.raises(UnsupportedModelError, match="'llama' cannot be traced"):
        patch_sweep(
            ModelSites.of(model), run, random_donors(), lambda stream, _rows: stream[:, 0, 0]
        )


def test_blocks_that_do_not_repeat_themselves_are_noticed() -> None:
    """A block that looks at more than its own tokens gives other values when it is called alone."""
    model = tiny_model()
    sites = ModelSites.of(model)

    def add_mean(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
        return output + output.mean(dim=1, keepdim=True)

    handle = blocks(model)[1].register_forward_hook(add_mean)
    try:
        run = clean_run(sites, prompts(), begin=BEGIN)
        with pytest.raises(UnsupportedModelError, match="deviate from a whole forward"):
            patch_sweep(sites, run, random_donors(), lambda stream, _rows: stream[:, 0].sum(1))
    finally:
        handle.remove()
    assert model.config._attn_implementation != "ptmech_ragged"
