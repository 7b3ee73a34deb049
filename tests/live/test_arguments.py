"""What callers get wrong: one typed line, never a wrong number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny_models import D_MODEL, VOCABULARY, tiny_model, word_tokenizer
from transformers import DynamicCache

from ptmech import knowledge, live
from ptmech.errors import ArtifactNotFoundError, DataError
from ptmech.knowledge.prompts import PromptPair, make_pairs
from ptmech.live.effects.variants import complete_variants, logits_of_variants

TOKENIZER = word_tokenizer([f"word{number}" for number in range(VOCABULARY - 2)])
DIRECTION = torch.from_numpy(np.random.default_rng(2).normal(size=D_MODEL) * 3).float()
ROWS = [[3, 7, 11, 4], [9, 14], [21, 6, 6]]
PAIRS = make_pairs(
    "completion",
    [PromptPair(1, 2, (5, 6, 7, 8, 9), (5, 6, 12, 13, 9), (3,), (4,), (2, 4), traced_from=2)],
    TOKENIZER,
)


@pytest.fixture(scope="module")
def model() -> live.LiveModel:
    return live.LiveModel(tiny_model(), TOKENIZER, "tiny")


ASKED: list[tuple[str, Any, str]] = [
    ("logits", lambda m: m.logits(ROWS, batch_size=-1), "batch_size .* from 1, not -1"),
    ("zero", lambda m: m.activations(ROWS, batch_size=0), "batch_size .* not 0"),
    ("forward", lambda m: m.forward(ROWS, batch_size=1.5), "batch_size .* not 1.5"),
    ("generate", lambda m: m.generate(ROWS, batch_size=True), "batch_size .* not True"),
    ("length", lambda m: m.generate(ROWS, max_new_tokens=0), "max_new_tokens .* not 0"),
    ("no length", lambda m: m.generate(ROWS, max_new_tokens=None), "max_new_tokens"),
    ("seed", lambda m: m.generate(ROWS, temperature=1.0, seed=-1), "seed .* from 0"),
    ("top_p", lambda m: m.generate(ROWS, top_p=2.0), "top_p"),
    ("string", lambda m: m.logits("word1 word2"), "prompts must be a list"),
    ("flat", lambda m: m.logits([3, 7, 11]), "prompt 0 must be a list, not int"),
    ("float ids", lambda m: m.logits([[3, 1.5]]), "a token must be a whole number, not 1.5"),
    ("chat", lambda m: live.LiveModel.chat(m, "word1"), "chat template|must be a list"),
    ("layers", lambda m: m.activations(ROWS, layers="1"), "'all' or whole numbers"),
    ("none", lambda m: m.activations(ROWS, layers=[]), "layers: none is named"),
    ("twice", lambda m: m.activations(ROWS, layers=[1, 1]), "1 is named twice"),
    ("truth", lambda m: m.activations(ROWS, layers=True), "a layer .* not True"),
    ("add twice", lambda _m: live.add(DIRECTION, [1, 1]), "1 is named twice"),
    ("mask", lambda _m: live.ablate(DIRECTION, layers=np.array([True, False])), "a layer"),
    ("sites", lambda _m: live.ablate(DIRECTION, sites=[]), "sites: none"),
    ("one site", lambda _m: live.ablate(DIRECTION, sites="resid_pre"), "sites must be a list"),
    ("two sites", lambda _m: live.add(DIRECTION, 1, sites=["resid_pre"] * 2), "named twice"),
    ("words", lambda _m: live.add("direction", 1), "expected numbers, not str"),
    ("nothing", lambda _m: live.ablate(None), "expected numbers, not NoneType"),
    ("complex", lambda _m: live.add(np.ones(D_MODEL) * 1j, 1), "real numbers"),
    ("scale", lambda _m: live.add(DIRECTION, 1, scale="2"), "scale must be a number"),
    ("factor", lambda _m: live.scale(None, 1, sites=["mlp_out"]), "factor must be a number"),
    ("patch", lambda _m: live.patch(torch.ones(1, D_MODEL), "all", 0), "layer must be"),
    ("neuron", lambda _m: live.mean_ablate([True], [0.0]), "a neuron"),
    ("bare", lambda m: m.intervene(DIRECTION).__enter__(), "expected an intervention"),
    ("call", lambda m: m.intervene(live.freeze_final_norm).__enter__(), "expected an interv"),
    ("live", lambda m: live.intervene(m).__enter__(), "live model has intervene itself"),
    ("trace", lambda m: live.causal_trace(m, PAIRS, layers=[]), "layers: none"),
    ("source", lambda m: live.causal_trace(m, PAIRS, "instruct"), "a live model, not str"),
    ("pairs", lambda m: live.causal_trace(m, [PAIRS[0]]), "expected pairs, not list"),
    ("noise", lambda m: live.causal_trace(m, PAIRS, noise=-1.0), "noise .* not -1.0"),
    ("samples", lambda m: live.causal_trace(m, PAIRS, noise=1.0, samples=0), "samples"),
]


@pytest.mark.parametrize(("ask", "message"), [a[1:] for a in ASKED], ids=[a[0] for a in ASKED])
def test_what_cannot_be_meant_is_refused(model: live.LiveModel, ask: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        ask(model)
    assert "\n" not in str(caught.value)


def test_numpy_s_whole_numbers_are_whole_numbers(model: live.LiveModel) -> None:
    expected = model.activations(ROWS, layers=[2, 0])
    assert torch.equal(model.activations(ROWS, layers=np.array([2, 0])), expected)
    with model.intervene(live.add(DIRECTION, 1)):
        once = model.logits(ROWS)
    for layers in (np.int64(1), (layer for layer in [1]), np.array([1])):
        with model.intervene(live.add(DIRECTION, layers)):
            assert torch.equal(model.logits(ROWS), once)


def test_an_intervention_does_not_change_with_what_it_was_made_from(
    model: live.LiveModel,
) -> None:
    vector = DIRECTION.clone()
    edits = [live.patch(vector[None], 1, -1), live.mean_ablate(range(D_MODEL), vector)]
    for edit in edits:
        with model.intervene(edit):
            before = model.logits(ROWS)
            vector.zero_()
            assert torch.equal(model.logits(ROWS), before)
        vector.copy_(DIRECTION)


@pytest.mark.parametrize(
    "edit",
    [live.add(DIRECTION, 0, positions=-1), live.freeze_final_norm()],
    ids=["positions", "frozen"],
)
def test_prompts_run_in_parts_take_only_edits_of_all_tokens(
    model: live.LiveModel, edit: Any
) -> None:
    asks: list[Any] = [
        lambda: live.causal_trace(model, PAIRS),
        lambda: live.causal_trace(model, PAIRS, layers=[2]),
        lambda: logits_of_variants(model.sites, ROWS, 1, batch_size=4),
        lambda: complete_variants(model.model, TOKENIZER, ROWS, 1, max_new_tokens=2, batch_size=4),
    ]
    for ask in asks:
        with model.intervene(edit), pytest.raises(DataError, match="whole forwards"):
            ask()
    with model.intervene(live.add(DIRECTION, 0)):
        found = logits_of_variants(model.sites, ROWS, 1, batch_size=4)[0]
        assert torch.allclose(found, model.logits(ROWS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("edit", ["positions", "frozen"])
def test_forwards_with_caches_may_take_turns(model: live.LiveModel, edit: str) -> None:
    edits = [live.add(DIRECTION, 1, positions=-1)]
    if edit == "frozen":
        edits = [live.add(DIRECTION, 1), live.freeze_final_norm()]  # pyright: ignore
    first, second, more = torch.tensor([[3, 7, 11]]), torch.tensor([[9, 14, 2, 8]]), [[5], [6]]

    def run(*, in_turns: bool) -> list[torch.Tensor]:
        found: list[torch.Tensor] = []
        with model.intervene(*edits), torch.inference_mode():
            caches = [DynamicCache(), DynamicCache()]
            prompts = [first, second]
            order = (
                [(0, 0), (1, 0), (0, 1), (1, 1)] if in_turns else [(0, 0), (0, 1), (1, 0), (1, 1)]
            )
            for which, step in order:
                ids = torch.tensor([more[which]]) if step else prompts[which]
                logits = model.model(ids, past_key_values=caches[which]).logits[:, -1]
                if step:
                    found.append(logits)
        return found

    for one, other in zip(run(in_turns=True), run(in_turns=False), strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-5)


def test_a_cache_that_the_model_made_itself_is_known(model: live.LiveModel) -> None:
    prompt, next_token = torch.tensor([[3, 7, 11]]), torch.tensor([[5]])
    with model.intervene(live.add(DIRECTION, 1, positions=-1)), torch.inference_mode():
        made = model.model(prompt, use_cache=True).past_key_values
        model.logits(ROWS)
        found = model.model(next_token, past_key_values=made).logits[0, -1]
    with model.intervene(live.add(DIRECTION, 1, positions=2)):
        expected = model.logits([[3, 7, 11, 5]])[0]
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_pairs_and_places_that_are_not_there() -> None:
    rows = [{"text": "a", "label": 1}]
    import polars as pl

    with pytest.raises(DataError, match="examples must be a list"):
        knowledge.pairs(pl.DataFrame(rows), TOKENIZER, examples="The city of Rome is in Italy.")
    with pytest.raises(DataError, match="n_pairs"):
        knowledge.pairs(pl.DataFrame(rows), TOKENIZER, n_pairs=-1)
    with pytest.raises(ArtifactNotFoundError, match="neither a folder nor the id"):
        live.LiveModel.from_pretrained("/nope")
    with pytest.raises(ArtifactNotFoundError):
        live.open("no-such-artifact", "base")
