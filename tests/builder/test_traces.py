"""The unit that stores a trace: what is read back is what tracing the models gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from tests.tiny_models import VOCABULARY, tiny_model, word_tokenizer

from ptmech import knowledge
from ptmech.errors import DataError
from ptmech.knowledge.prompts import make_pairs
from ptmech.live.model import LiveModel
from ptmech.live.tracing import causal_trace
from ptmech.storage.grids import read_group
from ptmech_builder.cards import TraceCard
from ptmech_builder.progress import Progress
from ptmech_builder.trace_units import TraceUnit
from ptmech_builder.workbench import Workbench

CITIES = ["New Oslo", "New Lima", "New Agra", "New Kobe", "New Nice", "New Cork", "New Bern"]
WORDS = ["The", "city", "of", "New", "is", "in", ".", ":", "This", "statement", "TRUE", "FALSE"]
WORDS += [city.split()[1] for city in CITIES]
TOKENIZER = word_tokenizer([*WORDS, *(f"word{n}" for n in range(VOCABULARY - 2 - len(WORDS)))])


@pytest.fixture
def models() -> dict[str, LiveModel]:
    # The later stage is the earlier one after a small step, so that both know some facts.
    base, tuned = tiny_model("llama"), tiny_model("llama")
    with torch.no_grad():
        tuned.model.norm.weight.mul_(1.25)
        tuned.model.layers[1].mlp.down_proj.weight.mul_(1.02)
    return {
        name: LiveModel(model, TOKENIZER, name)
        for name, model in (("base", base), ("tuned", tuned))
    }


@pytest.fixture
def rows(models: dict[str, LiveModel]) -> pl.DataFrame:
    """Facts that are whatever the earlier stage says, one of them wrong."""
    objects: list[str] = []
    for city in CITIES:
        ids = TOKENIZER(f"The city of {city} is in")["input_ids"]
        best = int(models["base"].model(torch.tensor([ids])).logits[0, -1].argmax())
        objects.append(str(TOKENIZER.convert_ids_to_tokens(best)))
    objects[-1] = "word0"
    return pl.DataFrame(
        {
            "row_uid": pl.Series(range(50, 57), dtype=pl.UInt64),
            "text": [f"The city of {c} is in {o}." for c, o in zip(CITIES, objects, strict=True)],
            "label": [1] * 7,
            "polarity": [1] * 7,
            "subject": CITIES,
            "object": objects,
        }
    )


def unit(rows: pl.DataFrame, source: str, target: str, **settings: Any) -> TraceUnit:
    return TraceUnit(
        stage=target,
        source=source,
        settings=TraceCard(dataset="cities", pairs=2, **settings),
        identities={"base": "b", "tuned": "t"},
        compute_dtype="float32",
        tokenizers={"base": "x", "tuned": "x"},
        rows=rows,
    )


def bench(models: dict[str, LiveModel], root: Any) -> Workbench:
    loaders = {name: (lambda model=model: model) for name, model in models.items()}
    return Workbench(loaders, root, Progress(quiet=True))


def test_what_is_stored_is_what_tracing_gives(
    models: dict[str, LiveModel], rows: pl.DataFrame, tmp_path: Any
) -> None:
    work = unit(rows, "base", "tuned")
    made = {output.path: output.data for output in work.make(bench(models, tmp_path)).files}
    folder = "traces/base-tuned/cities.zarr/"
    assert len(made) == work.expected_files
    files = {path.removeprefix(folder): data for path, data in made.items()}
    about, arrays = read_group(files, folder)
    assert {name: array.dtype for name, array in arrays.items()} == dict.fromkeys(
        ["grid", "unpatched", "source"], np.dtype("float32")
    )
    assert (about["source"], about["target"], about["dataset"]) == ("base", "tuned", "cities")
    assert (about["form"], about["measure"]) == ("completion", "logit_difference")
    assert about["known"]["base"] == pytest.approx(6 / 7)
    assert about["roles"] == [*["prefix"] * 3, "subject", "subject_last", "relation", "last"]
    text = dict(rows.select("row_uid", "text").iter_rows())

    pairs = chosen(about["pairs"], text)
    trace = causal_trace(models["tuned"], pairs, models["base"])
    np.testing.assert_allclose(arrays["grid"], trace.grid, atol=1e-6)
    np.testing.assert_allclose(arrays["unpatched"], trace.unpatched, atol=1e-6)
    np.testing.assert_allclose(arrays["source"], trace.source_difference, atol=1e-6)
    assert [pair["differing"] for pair in about["pairs"]] == trace.pairs["differing"].to_list()


def chosen(stored: list[dict[str, Any]], text: dict[int, str]) -> Any:
    """The stored pairs, tokenised here once more."""
    from ptmech.knowledge import PromptPair

    pairs: list[PromptPair] = []
    for pair in stored:
        tokens = [tuple(TOKENIZER(text[pair[side]])["input_ids"]) for side in UIDS]
        pairs.append(
            PromptPair(
                *(pair[side] for side in UIDS),
                *(ids[:-2] for ids in tokens),
                *((ids[-2],) for ids in tokens),
                subject=(3, 5),
            )
        )
    return make_pairs("completion", pairs, TOKENIZER)


UIDS = ("true_uid", "false_uid")


def test_every_unit_of_a_build_traces_the_same_pairs(
    models: dict[str, LiveModel], rows: pl.DataFrame, tmp_path: Any
) -> None:
    shared = bench(models, tmp_path)
    stored: list[Any] = []
    for source in models:
        made = list(unit(rows, source, "base").make(shared).files)
        folder = f"traces/{source}-base/cities.zarr/"
        about, _arrays = read_group(
            {output.path.removeprefix(folder): output.data for output in made}, folder
        )
        stored.append(about["pairs"])
    assert stored[0] == stored[1]


def test_facts_that_one_stage_does_not_know_are_not_traced(
    models: dict[str, LiveModel], rows: pl.DataFrame, tmp_path: Any
) -> None:
    stranger = {**models, "tuned": LiveModel(tiny_model("llama", seed=3), TOKENIZER, "tuned")}
    with pytest.raises(DataError, match="pairs of known facts"):
        unit(rows, "base", "base").make(bench(stranger, tmp_path))


def test_true_false_questions_are_traced_and_stored(
    models: dict[str, LiveModel], tmp_path: Path
) -> None:
    objects = ["word0", "word1"]
    rows = pl.DataFrame(
        [
            {
                "row_uid": 10 * number + at,
                "text": f"The city of {city} is in {where}.",
                "label": int(number % 2 == at),
            }
            for number, city in enumerate(CITIES)
            for at, where in enumerate(objects)
        ]
    )
    made = unit(rows, "base", "tuned", form="true_false")
    files = {
        output.path.split(".zarr/")[1]: output.data
        for output in made.make(bench(models, tmp_path)).files
    }
    about, arrays = read_group(files, "here")
    pairs = knowledge.pairs(rows, TOKENIZER, form="true_false", n_pairs=2)
    expected = causal_trace(models["tuned"], pairs, models["base"])
    np.testing.assert_allclose(arrays["grid"], expected.grid, rtol=1e-5, atol=1e-6)
    assert about["form"] == "true_false"
    assert about["measure"] == expected.measure
    assert about["known"] == {}
    assert len(about["examples"]) == 4
    assert about["roles"] == list(expected.roles)
