"""The live model on the demo pair, against transformers and hooks written out here."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from tests.tiny_models import blocks_by_hand
from torch import Tensor

from ptmech import live, refusal
from ptmech.artifact import Artifact

pytestmark = pytest.mark.demo

PROMPTS = [
    "The city of Reykjavik is in",
    "Name three trees that keep their leaves in winter, and say where they grow.",
    "x",
]
LAYER = 20
Edit = Callable[[str, int, Tensor], Tensor]


@pytest.fixture(scope="module")
def opened(demo: Artifact) -> dict[str, live.LiveModel]:
    return {stage: live.open(demo, stage, device="cpu") for stage in demo.stages}


@pytest.fixture(scope="module")
def direction(demo: Artifact) -> Tensor:
    harmful, harmless = (
        demo.activations(name, "safety", "resid_pre", LAYER) for name in ("harmful", "harmless")
    )
    return torch.from_numpy(harmful.mean(axis=0) - harmless.mean(axis=0))


@torch.no_grad()
def alone(model: Any, tokenizer: Any, edit: Edit | None = None) -> list[Tensor]:
    """Logits of each prompt in a forward of its own, edited by hand."""
    found = []
    for prompt in PROMPTS:
        with blocks_by_hand(model, edit or (lambda _site, _layer, stream: stream)):
            found.append(model(**tokenizer(prompt, return_tensors="pt")).logits[0])
    return found


def same(found: list[Tensor], expected: list[Tensor]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert float((ours - theirs).norm() / theirs.norm()) < 5e-5


@pytest.mark.parametrize("stage", ["instruct", "safety"])
def test_an_opened_stage_is_the_plain_model(opened, models, tokenizer, stage) -> None:
    same(opened[stage].forward(PROMPTS), alone(models[stage], tokenizer))


def test_live_activations_equal_the_stored_ones(demo: Artifact, opened) -> None:
    for stage, model in opened.items():
        rows = demo.tokens(stage).filter(dataset="harmless").head(9)
        found = model.activations(rows["token_ids"].to_list(), layers=[0, 29], positions=[-5, -1])
        for (i, layer), (j, position) in product(enumerate((0, 29)), enumerate((-5, -1))):
            stored = demo.activations("harmless", stage, layer=layer, position=position)[:9]
            scale = np.abs(stored).max()
            np.testing.assert_allclose(found[:, i, j] / scale, stored / scale, atol=2e-5)


def test_every_edit_of_the_stream_equals_hooks_by_hand(
    opened, models, tokenizer, direction
) -> None:
    unit = direction / direction.norm()
    values = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 576))).float()

    def at(place: tuple[str, int], change: Callable[[Tensor], Tensor]) -> Edit:
        return lambda site, layer, stream: change(stream) if (site, layer) == place else stream

    def last_two(stream: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        changed = stream.clone()
        tokens = sorted({max(stream.shape[1] - 2, 0), stream.shape[1] - 1})
        changed[0, tokens] = change(stream[0, tokens])
        return changed

    cases: list[tuple[Any, Edit]] = [
        (
            live.ablate(direction),
            lambda _site, _layer, stream: stream - (stream @ unit)[..., None] * unit,
        ),
        (live.add(direction, LAYER), at(("resid_pre", LAYER), lambda stream: stream + direction)),
        (
            live.add(direction, LAYER, scale=-2.0, positions=-1, sites=["resid_mid"]),
            at(
                ("resid_mid", LAYER),
                lambda stream: torch.cat([stream[:, :-1], stream[:, -1:] - 2 * direction], dim=1),
            ),
        ),
        (
            live.scale(0.3, 7, sites=["resid_post"], direction=direction),
            at(("resid_post", 7), lambda stream: stream - 0.7 * (stream @ unit)[..., None] * unit),
        ),
        (
            live.patch(values[:1], 12, [-1]),
            at(
                ("resid_post", 12),
                lambda stream: torch.cat([stream[:, :-1], values[None, :1]], dim=1),
            ),
        ),
    ]
    plain = alone(models["safety"], tokenizer)
    for intervention, edit in cases:
        expected = alone(models["safety"], tokenizer, edit)
        with opened["safety"].intervene(intervention):
            same(opened["safety"].forward(PROMPTS), expected)
        moved = [float((e - p).norm() / p.norm()) for e, p in zip(expected, plain, strict=True)]
        assert max(moved) > 1e-3
    same(opened["safety"].forward(PROMPTS), plain)


def test_held_neurons_and_a_frozen_norm_equal_hooks_by_hand(opened, models, tokenizer) -> None:
    neurons, means = [5, 700, 1535], np.linspace(-1, 1, 1536)
    model = models["instruct"]
    norm, down = model.model.norm, model.model.layers[-1].mlp.down_proj
    clean: list[Tensor] = []

    def hold(_module: Any, args: tuple[Tensor]) -> tuple[Tensor]:
        changed = args[0].clone()
        changed[..., neurons] = torch.from_numpy(means[neurons]).float()
        return (changed,)

    def freeze(_module: Any, args: tuple[Tensor], _output: Tensor) -> Tensor:
        scale = (clean[0].pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()
        return norm.weight * args[0] * scale

    def expected(*, frozen: bool) -> list[Tensor]:
        found = []
        for prompt in PROMPTS:
            ids = tokenizer(prompt, return_tensors="pt")
            clean.clear()
            hooks = [norm.register_forward_pre_hook(lambda _m, args: clean.append(args[0]))]
            with torch.no_grad():
                model(**ids)
            hooks.pop().remove()
            hooks.append(down.register_forward_pre_hook(hold))
            if frozen:
                hooks.append(norm.register_forward_hook(freeze))
            try:
                with torch.no_grad():
                    found.append(model(**ids).logits[0])
            finally:
                for hook in hooks:
                    hook.remove()
        return found

    ablation = live.mean_ablate(neurons, means)
    total, direct = expected(frozen=False), expected(frozen=True)
    with opened["instruct"].intervene(ablation):
        same(opened["instruct"].forward(PROMPTS), total)
        with opened["instruct"].intervene(live.freeze_final_norm()):
            same(opened["instruct"].forward(PROMPTS), direct)
    assert float((total[0] - direct[0]).norm() / total[0].norm()) > 3e-4


def test_batches_padding_and_neighbours_change_no_row(opened, direction) -> None:
    model = opened["safety"]
    edits = [live.add(direction, LAYER, positions=-1), live.ablate(torch.ones(576), layers=[3])]
    with model.intervene(*edits):
        together = model.forward(PROMPTS, batch_size=3)
        single = [model.forward([prompt])[0] for prompt in PROMPTS]
        drawn = [
            model.generate(PROMPTS, max_new_tokens=6, temperature=1.0, batch_size=size)
            for size in (1, 3)
        ]
    same(together, single)
    assert drawn[0] == drawn[1]


@torch.no_grad()
def test_stored_completions_under_ablation_are_those_of_hooks_by_hand(
    demo: Artifact, models, tokenizer
) -> None:
    layer = demo.manifest.defaults.refusal_layer
    assert layer is not None
    vector = torch.tensor(refusal.directions(demo, "instruct").direction(layer)).float()
    unit = vector / vector.norm()
    stored = refusal.completions(demo).frame.filter(
        stage="safety", intervention="ablate", direction_stage="instruct"
    )
    texts = dict(demo.statements().select("row_uid", "text").iter_rows())
    model = models["safety"]
    for row in stored.head(3).iter_rows(named=True):
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": texts[row["row_uid"]]}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        with blocks_by_hand(
            model, lambda _site, _layer, stream: stream - (stream @ unit)[..., None] * unit
        ):
            out = model.generate(**ids, max_new_tokens=16, do_sample=False)
        plain = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        assert row["completion"].strip() == plain.strip()


def test_interventions_move_refusals_and_chance_moves_them_less(demo: Artifact) -> None:
    lines = refusal.scores(demo).frame.filter(
        pl.col("stage") == "safety", pl.col("scale").fill_null(1.0) == 1.0
    )
    rate = {
        (row["prompts"], row["intervention"], row["direction"]): row for row in lines.to_dicts()
    }
    bare = rate["harmful", "none", "none"]
    ablated = rate["harmful", "ablate", "own"]
    added = rate["harmless", "add", "own"]
    chance = rate["harmless", "add", "random"]
    assert ablated["high"] < bare["low"]
    assert added["low"] > max(chance["high"], rate["harmless", "none", "none"]["high"])
