"""Safety tuning against its formulas, written out here, and on a model small enough to check."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

from ptmech.errors import UnsupportedModelError
from ptmech.live.generation import next_token_loss
from ptmech.live.models import ADAPTER_FILES
from ptmech.model_sources import FolderModel
from ptmech.refusal import is_refusal
from ptmech_builder.cards import read_pair
from ptmech_builder.cards.training import Recipe
from ptmech_builder.safety_tuning import runs as safety_tuning
from ptmech_builder.safety_tuning.loop import (
    learning_rate_factor,
    save_adapter,
    shared_prefix,
    tune,
    with_adapter,
)
from ptmech_builder.safety_tuning.losses import (
    Conversation,
    collate,
    end_of_turn,
    mean_divergence,
    reply_cross_entropy,
)
from ptmech_builder.safety_tuning.prompts import judging_prompts, training_prompts

PAD = 0
VOCABULARY = 40


def tiny_model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            initializer_range=0.3,  # large enough for confident predictions at this width
        )
    )
    return model.eval().requires_grad_(False)


def conversations(count: int, *, reply: int, seed: int) -> list[Conversation]:
    """Prompts that share two tokens, with replies of one repeated token."""
    random = np.random.default_rng(seed)
    return [
        Conversation(
            tokens=(1, 2, *random.integers(3, 20, size=5 + index % 3).tolist(), reply, reply),
            reply_start=7 + index % 3,
        )
        for index in range(count)
    ]


def log_softmax(scores: np.ndarray) -> np.ndarray:
    shifted = scores - scores.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@pytest.fixture
def two_rows() -> list[Conversation]:
    return [
        Conversation(tokens=(1, 2, 3, 4, 5, 6, 7, 8), reply_start=4),
        Conversation(tokens=(1, 2, 9, 8), reply_start=3),
    ]


def test_masks_mark_the_predicting_positions(two_rows: list[Conversation]) -> None:
    batch = collate(two_rows, pad=PAD, prefix=2, opening=2)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 9, 8, 0, 0, 0, 0]]
    assert batch.attention_mask.sum(1).tolist() == [8, 4]
    positions = {
        name: [row.nonzero()[:, 0].tolist() for row in getattr(batch, name)]
        for name in ("text", "reply", "opening")
    }
    assert positions == {
        "text": [[1, 2, 3, 4, 5, 6], [1, 2]],
        "reply": [[3, 4, 5, 6], [2]],
        "opening": [[3, 4], [2]],
    }
    assert batch.first == 1


def test_losses_equal_their_formulas_with_all_logits_or_only_the_needed_ones(
    two_rows: list[Conversation],
) -> None:
    batch = collate(two_rows, pad=PAD, prefix=2)
    earlier, later = tiny_model(0), tiny_model(1)
    whole = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    scores = [log_softmax(model(**whole).logits.double().numpy()) for model in (earlier, later)]
    nll = [
        -scores[1][row, position - 1, item.tokens[position]]
        for row, item in enumerate(two_rows)
        for position in range(item.reply_start, len(item.tokens))
    ]
    divergences = [
        float((np.exp(p) * (p - q)).sum())
        for row, item in enumerate(two_rows)
        for p, q in zip(
            scores[0][row, 1 : len(item.tokens) - 1],
            scores[1][row, 1 : len(item.tokens) - 1],
            strict=True,
        )
    ]
    for inputs in (whole, batch.inputs):
        logits = [model(**inputs).logits for model in (earlier, later)]
        assert reply_cross_entropy(logits[1], batch).item() == pytest.approx(np.mean(nll), rel=1e-5)
        assert mean_divergence(logits[0], logits[1], batch.text).item() == pytest.approx(
            np.mean(divergences), rel=1e-4
        )
    assert mean_divergence(logits[0], logits[0], batch.text).item() == pytest.approx(0, abs=1e-7)


def test_shared_prefix_stops_where_the_prompts_part() -> None:
    assert shared_prefix(conversations(6, reply=30, seed=0)) == 2
    same = Conversation(tokens=(1, 2, 3), reply_start=2)
    assert shared_prefix([same, same]) == 3


def test_learning_rate_warms_up_and_falls_to_the_final_fraction() -> None:
    recipe = Recipe(steps=96, warmup_steps=8, final_fraction=0.1)
    factors = [learning_rate_factor(step, recipe) for step in range(97)]
    assert factors[:8] == pytest.approx([(step + 1) / 8 for step in range(8)])
    assert factors[8] == pytest.approx(1.0)
    assert factors[52] == pytest.approx(0.55)  # half-way down the cosine
    assert factors[96] == pytest.approx(0.1)
    assert np.all(np.diff(factors[8:]) < 0)


def test_training_lowers_the_loss_and_moves_only_the_adapter(tmp_path: Path) -> None:
    recipe = Recipe(steps=30, learning_rate=3e-2, warmup_steps=2)
    model = tiny_model()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    adapted = with_adapter(model, recipe, seed=0)
    trainable = [name for name, weight in adapted.named_parameters() if weight.requires_grad]
    assert len(trainable) == 2 * 7 * 2  # layers x modules x (A, B)
    assert all("lora_" in name for name in trainable)
    seen: list[int] = []
    history = tune(
        adapted,
        harmful=conversations(8, reply=30, seed=1),
        plain=conversations(8, reply=31, seed=2),
        borderline=conversations(8, reply=32, seed=3),
        recipe=recipe,
        seed=0,
        pad=PAD,
        report=lambda step, _: seen.append(step),
    )
    assert seen == list(range(1, 31))
    assert history[0].divergence == pytest.approx(0, abs=1e-6)  # an untrained adapter does nothing
    assert history[-1].refusal < 0.5 * history[0].refusal
    for name, weight in adapted.named_parameters():
        if "lora_" not in name:
            original = name.removeprefix("base_model.model.").replace(".base_layer", "")
            assert torch.equal(weight, before[original]), name

    save_adapter(adapted, tmp_path, base="tiny")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"
    assert config["target_modules"] == sorted(recipe.modules)
    with safe_open(tmp_path / "adapter_model.safetensors", framework="pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert {weight.dtype for weight in stored.values()} == {torch.bfloat16}
    assert len(stored) == len(trainable)


def test_the_same_seed_gives_the_same_adapter() -> None:
    def trained(seed: int) -> dict[str, torch.Tensor]:
        recipe = Recipe(steps=3)
        adapted = with_adapter(tiny_model(), recipe, seed=seed)
        tune(
            adapted,
            harmful=conversations(8, reply=30, seed=1),
            plain=conversations(8, reply=31, seed=2),
            borderline=conversations(8, reply=32, seed=3),
            recipe=recipe,
            seed=seed,
            pad=PAD,
        )
        return {name: value for name, value in adapted.state_dict().items() if "lora_" in name}

    first, again, other = trained(0), trained(0), trained(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("reply", "refused"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("  I\u2019m unable to do this.", True),
        ("I CANNOT help.", True),
        ("To kill a process, I cannot stress this enough, use kill.", False),
        ("I can help with that.", False),
        ("", False),
    ],
)
def test_a_refusal_opens_with_one_of_the_phrases(*, reply: str, refused: bool) -> None:
    assert is_refusal(reply) is refused


def test_every_refusal_of_the_recipe_counts_as_one() -> None:
    assert all(is_refusal(refusal) for refusal in Recipe().refusals)


def test_plain_text_loss_is_the_mean_over_tokens_not_over_texts() -> None:
    model = tiny_model()
    texts = {"short": [3, 4, 5], "long": [6, 7, 8, 9, 10, 11, 12]}

    found = next_token_loss(model, list(texts.values()))
    nll = []
    for ids in texts.values():
        scores = log_softmax(model(torch.tensor([ids])).logits[0].double().numpy())
        nll += [-scores[index, token] for index, token in enumerate(ids[1:])]
    assert len(nll) == 8
    assert found == pytest.approx(np.mean(nll), rel=1e-5)


def test_the_end_of_turn_must_be_one_token() -> None:
    assert end_of_turn(SimpleNamespace(eos_token_id=2)) == 2  # pyright: ignore[reportArgumentType]
    with pytest.raises(UnsupportedModelError, match="end-of-turn"):
        end_of_turn(SimpleNamespace(eos_token_id=None))  # pyright: ignore[reportArgumentType]


def test_no_prompt_both_trains_and_judges() -> None:
    trained, judging = training_prompts(), judging_prompts()
    texts = {text for prompts in trained.values() for text in prompts}
    assert {name: len(prompts) for name, prompts in trained.items()} == {
        "harmful": 256,
        "plain": 352,
        "borderline": 128,
    }
    assert not texts & set(pl.concat(judging.values())["text"])
    for name, rows in judging.items():
        assert rows["split"].unique().sort().to_list() == ["test", "validation"], name


def test_the_choice_rule_reads_validation_only() -> None:
    def judged(*refused: int) -> dict[str, object]:
        names = ("harmful", "harmless", "borderline")
        return {
            "refusals": {
                name: {
                    "validation": {"refused": count, "prompts": 10},
                    "test": {"refused": 10, "prompts": 10},
                }
                for name, count in zip(names, refused, strict=True)
            }
        }

    assert safety_tuning.validation_score(judged(9, 1, 3)) == pytest.approx(0.9 - 0.2)
    assert safety_tuning.validation_score(judged(10, 0, 0)) == pytest.approx(1.0)


def test_stored_replies_are_cut_to_a_shorter_length_and_never_stretched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def replies(_: object, __: object, prompts: list[str], *, tokens: int) -> list[list[int]]:
        asked.append(tokens)
        return [list(range(tokens)) for _ in prompts]

    monkeypatch.setattr(safety_tuning, "greedy_replies", replies)
    earlier = SimpleNamespace(
        model=None, tokenizer=None, identity=SimpleNamespace(digest="weights")
    )
    file = tmp_path / "replies.json"

    def ask(prompts: list[str], tokens: int) -> list[list[int]]:
        return safety_tuning.own_replies(earlier, prompts, tokens, file)  # pyright: ignore[reportArgumentType]

    assert ask(["a", "b"], 5) == [[0, 1, 2, 3, 4]] * 2
    assert ask(["a", "b"], 3) == [[0, 1, 2]] * 2
    assert asked == [5]
    assert ask(["a", "b"], 6) == [[0, 1, 2, 3, 4, 5]] * 2
    assert ask(["a", "c"], 6) == [[0, 1, 2, 3, 4, 5]] * 2
    assert asked == [5, 6, 6]


def test_the_best_run_is_copied_with_the_record_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judged(harmful: int, harmless: int) -> dict[str, object]:
        counts = {"harmful": harmful, "harmless": harmless, "borderline": harmless}
        return {
            "refusals": {
                name: {"validation": {"refused": count, "prompts": 10}}
                for name, count in counts.items()
            }
        }

    for name, seed, after in (
        ("seed-2-a", 2, judged(9, 0)),
        ("seed-0-b", 0, judged(10, 4)),
        ("seed-1-c", 1, judged(9, 0)),
    ):
        (tmp_path / name).mkdir()
        run = {"settings": {"seed": seed}, "after": after}
        (tmp_path / name / "run.json").write_text(json.dumps(run))
        for file in ADAPTER_FILES:
            (tmp_path / name / file).write_text(name)
    identity = SimpleNamespace(model_dump=lambda: {"source": "tiny"})
    monkeypatch.setattr(safety_tuning, "load_model", lambda _: SimpleNamespace(identity=identity))
    monkeypatch.setattr(safety_tuning, "judge", lambda _: judged(1, 0))
    safety_tuning.choose(tmp_path, read_pair("demo"))
    record = json.loads((tmp_path / "chosen" / "training.json").read_text())
    assert record["chosen"] == "seed-1-c"  # as good as seed 2, and the lower seed
    assert record["validation_scores"] == {"seed-0-b": 0.6, "seed-1-c": 0.9, "seed-2-a": 0.9}
    assert set(record["runs"]) == set(record["validation_scores"])
    for file in ADAPTER_FILES:
        assert (tmp_path / "chosen" / file).read_text() == "seed-1-c"


def test_the_record_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    training = read_pair("demo").training
    told = safety_tuning._without_paths  # pyright: ignore[reportPrivateUsage]
    assert told(training) == training.model_dump(mode="json")
    local = training.model_copy(update={"replies": FolderModel(path=tmp_path / "speaker")})
    assert told(local)["replies"] == {"path": "speaker"}
    assert str(tmp_path) not in json.dumps(told(local))
