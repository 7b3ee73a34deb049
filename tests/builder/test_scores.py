from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from tests.tiny_models import (
    D_MODEL,
    N_LAYERS,
    VOCABULARY,
    blocks,
    blocks_by_hand,
    complete_by_hand,
    hook_count,
    tiny_model,
    word_tokenizer,
)

from ptmech.errors import DataError, UnknownNameError
from ptmech.refusal.tables import COMPLETIONS, SCORES
from ptmech_builder.scores import refusal_scores

LAYER, SCALE, STEPS = 1, 0.8, 5
TOKENIZER = word_tokenizer([f"word{number}" for number in range(VOCABULARY - 2)])
_random = np.random.default_rng(2)
HUGE = 2**63 + 11  # row_uid fills 64 bits
HARMFUL = {HUGE + at: _random.integers(2, 40, size=3 + at).tolist() for at in range(6)}
HARMLESS = {7 + at: _random.integers(2, 40, size=8 - at).tolist() for at in range(5)}
PLAIN = [_random.integers(2, 40, size=size).tolist() for size in (9, 4, 12)]
DIRECTIONS = {
    "sft": _random.normal(size=D_MODEL) * 4,
    "safe": _random.normal(size=D_MODEL) * 9,
    "base": _random.normal(size=D_MODEL),
}


def is_refusal(text: str) -> bool:
    """Any fixed predicate that splits the completions."""
    return sum(map(ord, text)) % 3 == 0


def score(**changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "stage": "sft",
        "layer": LAYER,
        "directions": DIRECTIONS,
        "harmful": HARMFUL,
        "harmless": HARMLESS,
        "plain_texts": PLAIN,
        "is_refusal": is_refusal,
        "max_new_tokens": STEPS,
        "scale": SCALE,
        "seed": 3,
        "batch_size": 4,
    }
    return refusal_scores(tiny_model(), TOKENIZER, **{**arguments, **changes})


@pytest.fixture(scope="module")
def found() -> Any:
    return score()


def completions_by_hand(model: Any, prompts: dict[int, list[int]]) -> dict[int, str]:
    new = {
        uid: complete_by_hand(model, tokens, steps=STEPS, ends={1})
        for uid, tokens in prompts.items()
    }
    return {uid: TOKENIZER.decode(ids, skip_special_tokens=True) for uid, ids in new.items()}


def loss_by_hand(model: Any) -> float:
    total = sum(
        float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
        for ids in (torch.tensor([text]) for text in PLAIN)
    )
    return total / sum(len(text) - 1 for text in PLAIN)


def of_condition(found: Any, **condition: Any) -> tuple[dict[str, Any], dict[int, str]]:
    same = pl.all_horizontal(
        [pl.col(name).eq_missing(pl.lit(value)) for name, value in condition.items()]
    )
    (line,) = found.scores.filter(same).rows(named=True)
    texts = dict(found.completions.filter(same)["row_uid", "completion"].iter_rows())
    return line, texts


def agrees(line: dict[str, Any], texts: dict[int, str], expected: dict[int, str]) -> bool:
    refusals = sum(is_refusal(text) for text in expected.values())
    return (
        texts == expected
        and line["refusals"] == refusals
        and line["n"] == len(expected)
        and line["refusal_rate"] == pytest.approx(refusals / len(expected))
    )


@pytest.mark.parametrize(("prompts", "rows"), [("harmful", HARMFUL), ("harmless", HARMLESS)])
def test_the_baseline_is_the_model_left_alone(
    found: Any, prompts: str, rows: dict[int, list[int]]
) -> None:
    model = tiny_model()
    line, texts = of_condition(found, prompts=prompts, intervention="none")
    assert agrees(line, texts, completions_by_hand(model, rows))
    assert line["plain_text_loss"] == pytest.approx(loss_by_hand(model), rel=1e-5)
    assert (line["direction"], line["direction_stage"]) == ("none", None)
    assert (line["layer"], line["scale"], line["length"]) == (None, None, None)


@pytest.mark.parametrize("source", list(DIRECTIONS))
def test_ablation_acts_on_harmful_prompts_at_every_site(found: Any, source: str) -> None:
    model = tiny_model()
    unit = torch.from_numpy(DIRECTIONS[source] / np.linalg.norm(DIRECTIONS[source])).float()
    with blocks_by_hand(model, lambda _s, _l, x: x - (x * unit).sum(-1, keepdim=True) * unit):
        expected, loss = completions_by_hand(model, HARMFUL), loss_by_hand(model)
    line, texts = of_condition(found, intervention="ablate", direction_stage=source)
    assert agrees(line, texts, expected)
    assert line["plain_text_loss"] == pytest.approx(loss, rel=1e-4)
    assert line["direction"] == ("own" if source == "sft" else "transferred")
    assert (line["prompts"], line["layer"]) == ("harmful", LAYER)
    assert (line["scale"], line["length"]) == (None, None)


@pytest.mark.parametrize(
    ("direction", "source"),
    [
        ("own", "sft"),
        ("transferred", "safe"),
        ("transferred", "base"),
        ("transferred_own_length", "safe"),
        ("transferred_own_length", "base"),
    ],
)
def test_addition_acts_on_harmless_prompts_at_one_layer(
    found: Any, direction: str, source: str
) -> None:
    model = tiny_model()
    lengths = {name: float(np.linalg.norm(vector)) for name, vector in DIRECTIONS.items()}
    length = SCALE * lengths["sft" if direction == "transferred_own_length" else source]
    vector = torch.from_numpy(DIRECTIONS[source] / lengths[source] * length).float()
    handle = blocks(model)[LAYER].register_forward_pre_hook(
        lambda _module, args: (args[0] + vector, *args[1:])
    )
    expected, loss = completions_by_hand(model, HARMLESS), loss_by_hand(model)
    handle.remove()
    line, texts = of_condition(
        found, intervention="add", direction=direction, direction_stage=source
    )
    assert agrees(line, texts, expected)
    assert line["plain_text_loss"] == pytest.approx(loss, rel=1e-4)
    assert (line["prompts"], line["layer"], line["scale"]) == ("harmless", LAYER, SCALE)
    assert line["length"] == pytest.approx(length)


def test_the_random_direction_has_the_own_length_and_hangs_on_the_seed(found: Any) -> None:
    own_length = SCALE * np.linalg.norm(DIRECTIONS["sft"])
    line, _texts = of_condition(found, intervention="add", direction="random")
    assert line["length"] == pytest.approx(own_length)
    again, other = score(), score(seed=4)
    assert again.scores.equals(found.scores)
    assert again.completions.equals(found.completions)
    random = pl.col("direction") == "random"
    assert not other.scores.filter(random).equals(found.scores.filter(random))
    assert other.scores.filter(~random).equals(found.scores.filter(~random))


def test_the_tables_have_one_line_a_condition_and_one_a_completion(found: Any) -> None:
    assert found.scores.schema == SCORES
    assert found.completions.schema == COMPLETIONS
    conditions = ["prompts", "intervention", "direction", "direction_stage"]
    assert found.scores.height == 2 + 4 + 6 == found.scores.select(conditions).n_unique()
    assert found.completions.height == 5 * len(HARMFUL) + 7 * len(HARMLESS)
    counted = found.completions.group_by(conditions).agg(pl.col("refused").sum())
    joined = found.scores.join(counted, on=conditions, nulls_equal=True)
    assert joined.height == found.scores.height
    assert (joined["refused"] == joined["refusals"]).all()
    assert found.scores["refusals"].n_unique() > 2
    assert set(found.scores["stage"]) == {"sft"}


def test_intervals_are_wilsons(found: Any) -> None:
    z = 1.959963984540054
    for line in found.scores.rows(named=True):
        n, rate = line["n"], line["refusal_rate"]
        centre = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z / (1 + z**2 / n) * np.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
        assert (line["low"], line["high"]) == pytest.approx((centre - half, centre + half))


def test_a_single_stage_has_no_transferred_directions() -> None:
    alone = score(directions={"sft": DIRECTIONS["sft"]})
    assert set(alone.scores["direction"]) == {"none", "own", "random"}


def test_the_model_is_itself_again_also_after_an_error() -> None:
    model = tiny_model()

    def fail(_text: str) -> bool:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        refusal_scores(
            model,
            TOKENIZER,
            stage="sft",
            layer=LAYER,
            directions=DIRECTIONS,
            harmful=HARMFUL,
            harmless=HARMLESS,
            plain_texts=PLAIN,
            is_refusal=fail,
            max_new_tokens=1,
        )
    assert hook_count(model) == 0


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"stage": "saef"}, UnknownNameError, "unknown stage 'saef'; did you mean 'safe'"),
        ({"layer": N_LAYERS}, UnknownNameError, "unknown layer 3"),
        ({"harmful": {}}, DataError, "no harmful prompts"),
        ({"harmless": {}}, DataError, "no harmless prompts"),
        ({"plain_texts": []}, DataError, "no plain texts"),
        ({"directions": {"sft": np.zeros(D_MODEL)}}, DataError, "direction of sft"),
        ({"directions": {"sft": np.ones(3)}}, DataError, r"shape is \(3,\)"),
        ({"directions": {**DIRECTIONS, "base": np.full(D_MODEL, np.inf)}}, DataError, "of base"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_line(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        score(**changes)
