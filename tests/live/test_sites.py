from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
import torch
from tests.tiny_models import (
    D_MLP,
    D_MODEL,
    FAMILIES,
    N_LAYERS,
    VOCABULARY,
    blocks,
    hook_count,
    mlp_by_hand,
    tiny_model,
)
from transformers import AutoConfig, AutoModelForCausalLM

import ptmech.live
from ptmech.errors import DataError, PrerequisiteError, UnknownNameError, UnsupportedModelError
from ptmech.live import structure
from ptmech.live.recording import record, site_self_check
from ptmech.live.sites import SITES, ModelSites

TOKENS = torch.tensor([[3, 7, 11, 2, 30, 8, 5], [9, 1, 40, 17, 6, 6, 12]])
EVERYWHERE = torch.arange(7).expand(2, 7)


@pytest.fixture(params=FAMILIES, scope="module")
def model(request: pytest.FixtureRequest) -> Any:
    return tiny_model(request.param)


def record_all(model: Any) -> dict[tuple[str, int], torch.Tensor]:
    wanted = [(site, layer) for site in SITES for layer in range(N_LAYERS)]
    with record(model, wanted, EVERYWHERE) as found, torch.inference_mode():
        model(TOKENS)
    return found


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_streams_are_those_of_transformers_except_its_normed_last_entry(model: Any) -> None:
    found = record_all(model)
    with torch.inference_mode():
        states = model(TOKENS, output_hidden_states=True).hidden_states
    for layer in range(N_LAYERS):
        assert close(found["resid_pre", layer], states[layer])
    for layer in range(N_LAYERS - 1):
        assert close(found["resid_post", layer], states[layer + 1])
    last = found["resid_post", N_LAYERS - 1]
    assert not close(last, states[-1])
    assert close(ModelSites.of(model).final_norm(last), states[-1])


def test_the_block_is_the_sum_of_its_parts(model: Any) -> None:
    found = record_all(model)
    for layer, block in enumerate(blocks(model)):
        middle = found["resid_mid", layer]
        assert close(middle - found["resid_pre", layer], found["attn_out", layer])
        assert close(found["resid_post", layer] - middle, found["mlp_out", layer])
        assert close(mlp_by_hand(block, middle), found["mlp_out", layer])


def test_unembed_of_the_last_stream_gives_the_logits(model: Any) -> None:
    last = record_all(model)["resid_post", N_LAYERS - 1]
    logits = model(TOKENS).logits
    assert close(ModelSites.of(model).unembed(last), logits)
    assert close(ModelSites.of(model).unembed(last[1, 3]), logits[1, 3])


def test_weights_are_the_maps_they_are_called(model: Any) -> None:
    sites = ModelSites.of(model)
    assert (sites.n_layers, sites.d_model) == (N_LAYERS, D_MODEL)
    assert (sites.d_mlp, sites.vocabulary) == (D_MLP, VOCABULARY)

    stream = torch.randn(5, D_MODEL)
    centred = stream - stream.mean(dim=-1, keepdim=True)
    kept = {"rms": stream, "layer": centred}[sites.norm_kind]
    bias = getattr(sites.final_norm, "bias", None)
    by_hand = kept / (kept**2).mean(dim=-1, keepdim=True).add(1e-6).sqrt() * sites.gamma
    normed = sites.final_norm(stream) - (0 if bias is None else bias)
    assert torch.allclose(normed, by_hand, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(sites.gamma, torch.ones(D_MODEL), atol=0.1)

    neurons: list[torch.Tensor] = []
    down = [m for name, m in blocks(model)[-1].mlp.named_children() if name[-4:] == "proj"][-1]
    handle = down.register_forward_pre_hook(lambda _module, args: neurons.append(args[0]))
    output = blocks(model)[-1].mlp(stream)
    handle.remove()
    offset = getattr(down, "bias", None)
    assert close(neurons[0] @ sites.w_out.T, output - (0 if offset is None else offset))


def test_each_row_is_read_at_its_own_tokens_and_nothing_else_is_kept() -> None:
    model = tiny_model()
    everything = record_all(model)
    indices = torch.tensor([[6, 0], [2, 5]])
    wanted = [("resid_mid", 1), ("mlp_out", 2), ("resid_mid", 1)]
    with record(model, wanted, indices) as found:
        model.model(input_ids=TOKENS)  # the body alone is enough
    assert set(found) == set(wanted)
    for key, values in found.items():
        assert values.shape == (2, 2, D_MODEL)
        for row in range(2):
            assert close(values[row], everything[key][row, indices[row]])


def test_padding_and_neighbours_do_not_change_a_row(model: Any) -> None:
    wanted = [(site, N_LAYERS - 1) for site in SITES]
    with record(model, wanted, torch.tensor([[3]])) as alone:
        model(TOKENS[:1, :4])
    padded = torch.cat([TOKENS, torch.zeros(2, 3, dtype=torch.long)], dim=1)
    padded[0, 4:] = 0
    mask = torch.ones_like(padded)
    mask[0, 4:] = 0
    mask[1, 7:] = 0
    with record(model, wanted, torch.tensor([[3], [6]])) as together:
        model(padded, attention_mask=mask)
    for key in wanted:
        assert close(together[key][0], alone[key][0])


def test_self_check_passes_on_every_family_and_fails_on_a_wrong_row(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert site_self_check(model, TOKENS) < 1e-6
    own = structure.ARCHITECTURES[model.config.model_type]
    wrong_rows = [replace(own, mlp_out=own.attn_out), replace(own, attn_out=own.mlp_out)]
    if own.logit_softcap:
        wrong_rows += [replace(own, mlp_out="mlp"), replace(own, logit_softcap=None)]
    for wrong in wrong_rows:
        table = MappingProxyType({wrong.model_type: wrong})
        monkeypatch.setattr(structure, "ARCHITECTURES", table)
        assert site_self_check(model, TOKENS) > 1e-3


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ([("resid_post", 0), ("resid_pots", 0)], "did you mean 'resid_post'"),
        ([("resid_post", N_LAYERS)], f"unknown layer {N_LAYERS}"),
        ([("resid_post", -1)], "unknown layer -1"),
    ],
)
def test_unknown_sites_and_layers_are_refused_before_anything_runs(
    wanted: list[tuple[str, int]], message: str
) -> None:
    model = tiny_model()
    with pytest.raises(UnknownNameError, match=message), record(model, wanted, EVERYWHERE):
        pytest.fail("the body ran")
    assert hook_count(model) == 0


@pytest.mark.parametrize("indices", [torch.tensor([1, 2]), torch.tensor([[-1]]), torch.ones(2, 1)])
def test_indices_that_are_no_token_numbers_are_refused(indices: torch.Tensor) -> None:
    with (
        pytest.raises(DataError, match="indices"),
        record(tiny_model(), [("resid_post", 0)], indices),
    ):
        pytest.fail("the body ran")


@pytest.mark.parametrize("indices", [torch.tensor([[7], [0]]), torch.tensor([[0]])])
def test_indices_that_do_not_fit_the_forward_are_refused(indices: torch.Tensor) -> None:
    model = tiny_model()
    with (
        pytest.raises(DataError, match="2 rows of 7 tokens"),
        record(model, [("resid_post", 0)], indices),
    ):
        model(TOKENS)
    assert hook_count(model) == 0


def test_hooks_go_when_the_body_raises() -> None:
    model = tiny_model()
    wanted = [("resid_mid", 1), ("mlp_out", 0)]
    with pytest.raises(ZeroDivisionError), record(model, wanted, EVERYWHERE):
        1 / (hook_count(model) - len(wanted))
    assert hook_count(model) == 0


def test_unknown_architectures_and_bare_bodies_are_refused_in_one_line() -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9}
    config = AutoConfig.for_model("gpt_neox", intermediate_size=8, **sizes)
    with pytest.raises(UnsupportedModelError, match=r"'gpt_neox' are not known, .*gemma2"):
        ModelSites.of(AutoModelForCausalLM.from_config(config))
    with pytest.raises(UnsupportedModelError, match="not a causal language model"):
        ModelSites.of(tiny_model().model)


def test_a_missing_torch_names_the_command_that_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ptmech.live, "find_spec", lambda _name: None)
    with pytest.raises(PrerequisiteError, match=r"pip install 'ptmech\[live\]'"):
        _ = ptmech.live.LiveModel
