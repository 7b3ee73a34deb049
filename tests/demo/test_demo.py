"""The demo artifact against the real models, loaded here by transformers and peft alone."""

import numpy as np
import polars as pl
import pytest
import torch

from ptmech import knowledge, refusal
from ptmech.artifact import Artifact
from ptmech.verify import verify
from ptmech_builder.build import BuildReport

pytestmark = pytest.mark.demo

LAYERS = 30
EXAMPLE = "The city of Reykjavik is in Iceland. "


@torch.no_grad()
def plain_forward(model, ids: list[int]):
    """Block inputs and outputs [layers, tokens, d] and MLP outputs of one prompt, by raw hooks."""
    mlp: list[torch.Tensor] = []
    blocks: list[torch.Tensor] = []
    hooks = [
        layer.mlp.register_forward_hook(lambda _m, _a, out: mlp.append(out[0]))
        for layer in model.model.layers
    ] + [
        layer.register_forward_hook(
            lambda _m, _a, out: blocks.append(out[0] if isinstance(out, tuple) else out)
        )
        for layer in model.model.layers
    ]
    try:
        out = model(torch.tensor([ids]), output_hidden_states=True)
    finally:
        for hook in hooks:
            hook.remove()
    blocks = [block[0] if block.ndim == 3 else block for block in blocks]
    return out.hidden_states[0][0], torch.stack(blocks), torch.stack(mlp), out.logits[0]


@pytest.mark.parametrize("stage", ["instruct", "safety"])
@pytest.mark.parametrize(
    ("dataset", "position"), [("cities", -1), ("harmful", -1), ("harmless", -4)]
)
def test_activations_equal_a_plain_forward(
    demo: Artifact, models, tokenizer, stage, dataset, position
):
    rows = demo.statements(dataset)
    for row in (0, 77, 155):
        text = rows["text"][row]
        if dataset == "cities":
            ids = tokenizer(text)["input_ids"]
        else:
            chat = tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
            )
            ids = tokenizer(chat, add_special_tokens=False)["input_ids"]
        embedded, blocks, mlp, _ = plain_forward(models[stage], ids)
        for layer in (0, 7, LAYERS - 1):
            for site, expected in (("resid_post", blocks[layer]), ("mlp_out", mlp[layer])):
                found = demo.activations(dataset, stage, site, layer, position)[row]
                expected = expected[position].numpy()
                scale = np.abs(expected).max()
                np.testing.assert_allclose(found / scale, expected / scale, atol=2e-5)
        found = demo.activations(dataset, stage, "resid_pre", 0, position)[row]
        np.testing.assert_allclose(found, embedded[position].numpy(), atol=1e-6)


def test_logit_variance_equals_the_materialised_matrix(demo: Artifact, models):
    for stage, model in models.items():
        w_u = model.lm_head.weight.detach().double().numpy()
        gamma = model.model.norm.weight.detach().double().numpy()
        w_out = model.model.layers[-1].mlp.down_proj.weight.detach().double().numpy()[:, ::40]
        folded = w_u * gamma
        folded -= folded.mean(axis=0)
        cosines = (folded / np.linalg.norm(folded, axis=1, keepdims=True)) @ (
            w_out / np.linalg.norm(w_out, axis=0)
        )
        table = demo.table(f"weights/{stage}/neurons.parquet")
        found = table["logit_variance_folded_centered"].to_numpy()[::40]
        np.testing.assert_allclose(found, cosines.var(axis=0, ddof=1), rtol=1e-5)
        np.testing.assert_allclose(
            table["norm"].to_numpy()[::40], np.linalg.norm(w_out, axis=0), rtol=1e-6
        )


@torch.no_grad()
@pytest.mark.parametrize(
    ("source", "target"), [("instruct", "instruct"), ("instruct", "safety"), ("safety", "instruct")]
)
def test_grid_cells_equal_one_forward_each(demo: Artifact, models, tokenizer, source, target):
    trace = knowledge.trace(demo, source, target, "cities")
    text = dict(demo.statements("cities").select("row_uid", "text").iter_rows())
    objects = dict(demo.statements("cities").select("row_uid", "object").iter_rows())
    uids = trace.pairs.row(0, named=True)
    prompts, answers = [], []
    for uid in (uids["true_uid"], uids["false_uid"]):
        answer = objects[uid].removeprefix("the ")
        prompt = EXAMPLE + text[uid][: text[uid].rindex(answer)].rstrip()
        prompts.append(tokenizer(prompt)["input_ids"])
        answers.append(tokenizer(" " + answer)["input_ids"][0])
    _, donor, _, _ = plain_forward(models[source], prompts[0])
    last = len(prompts[1]) - 1
    shown = len(prompts[1]) - len(trace.tokens)  # the example's tokens are no columns
    for layer, token in ((2, shown + 3), (12, last - 2), (26, last)):

        def replace(_module, _args, output, layer=layer, token=token):
            stream = (output[0] if isinstance(output, tuple) else output).clone()
            stream[0, token] = donor[layer, token]
            return (stream, *output[1:]) if isinstance(output, tuple) else stream

        hook = models[target].model.layers[layer].register_forward_hook(replace)
        try:
            logits = models[target](torch.tensor([prompts[1]])).logits[0, -1]
        finally:
            hook.remove()
        expected = float(logits[answers[0]] - logits[answers[1]])
        assert trace.grid[0, layer, token - shown] == pytest.approx(expected, abs=2e-3)


@torch.no_grad()
def test_baseline_completions_equal_plain_generation(demo: Artifact, models, tokenizer):
    stored = refusal.completions(demo).frame.filter(pl.col("intervention") == "none")
    texts = dict(demo.statements().select("row_uid", "text").iter_rows())
    for stage, model in models.items():
        for row in stored.filter(pl.col("stage") == stage).head(3).iter_rows(named=True):
            ids = tokenizer.apply_chat_template(
                [{"role": "user", "content": texts[row["row_uid"]]}],
                add_generation_prompt=True,
                return_tensors="pt",
                return_dict=True,
            )
            out = model.generate(**ids, max_new_tokens=16, do_sample=False)
            plain = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
            assert row["completion"].strip() == plain.strip()


def test_a_second_build_does_nothing(second_build: BuildReport):
    assert second_build.done == 0
    assert second_build.reused > 0


def test_every_byte_is_as_promised(demo: Artifact):
    assert verify(demo) == []


def test_parity_is_recorded_and_small(demo: Artifact):
    parity = demo.manifest.parity
    assert parity is not None
    assert 0 < parity.worst <= parity.tolerance == 1e-4


def test_the_later_stage_refuses_what_the_earlier_answers(demo: Artifact):
    bare = refusal.scores(demo).frame.filter(pl.col("intervention") == "none")
    rate = {(row["stage"], row["prompts"]): row["refusal_rate"] for row in bare.to_dicts()}
    assert rate["safety", "harmful"] > rate["instruct", "harmful"] + 0.4
    assert rate["safety", "harmless"] < 0.3
