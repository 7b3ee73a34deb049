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
from ptmech.model_sources import FolderModel
from ptmech_builder.cards import read_pair
from ptmech_builder.cards.training import DATA, PROMPTS, Pair, Training
from ptmech_builder.safety_tuning.evaluation import greedy_replies, refusal_counts
from ptmech_builder.safety_tuning.loop import Losses, save_adapter, tune, with_adapter
from ptmech_builder.safety_tuning.losses import Conversation, conversation, end_of_turn
from ptmech_builder.safety_tuning.prompts import (
    HELD_OUT_BORDERLINE,
    JUDGING,
    PLAIN_TEXT,
    judging_prompts,
    training_prompts,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

RULE = (
    "highest share of refused harmful prompts minus the mean of the shares of refused harmless "
    "and borderline prompts, on the validation prompts; the lower seed wins a tie"
)


def refusing(
    tokenizer: PreTrainedTokenizerBase, prompts: list[str], training: Training
) -> list[Conversation]:
    """Give every prompt one of the refusals in turn, closed by the end-of-turn token."""
    replies = [
        _spoken(tokenizer, training.reply_start + refusal, ends=True)
        for refusal in training.recipe.refusals
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


def taught_replies(
    pair: Pair, earlier: LoadedModel, prompts: list[str], file: Path
) -> list[list[int]]:
    """Return the replies to the harmless prompts, in the tokens of the earlier model.

    Where another model gives them, its text is split by the earlier model's tokenizer; a reply that
    it did not finish stays open.
    """
    training = pair.training
    if training.replies is None:
        return own_replies(earlier, prompts, training.recipe.reply_tokens, file)
    speaker = load_model(training.replies)
    end = end_of_turn(speaker.tokenizer)
    given = own_replies(speaker, prompts, training.recipe.reply_tokens, file)
    texts = [str(speaker.tokenizer.decode(reply, skip_special_tokens=True)) for reply in given]
    return [
        _spoken(earlier.tokenizer, training.reply_start + text.strip(), ends=reply[-1] == end)
        for reply, text in zip(given, texts, strict=True)
    ]


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


def train_seed(out: Path, pair: Pair, *, seed: int, threads: int) -> dict[str, Any]:
    """Train, save and judge one seed; return its record, which is also in its folder.

    Parameters
    ----------
    out
        Working folder; the run gets a folder below it, named after its settings.
    pair
        What to train, and how.
    seed, threads
        The adapter is the same bytes for the same recipe, seed, thread count and versions.
    """
    settings = _settings(pair, seed=seed, threads=threads)
    folder = out / _run_name(settings)
    record_file = folder / "run.json"
    if record_file.is_file():
        record: dict[str, Any] = json.loads(record_file.read_text(encoding="utf-8"))
        if record["settings"] == settings:
            return record
    folder.mkdir(parents=True, exist_ok=True)
    started = perf_counter()
    training, recipe = pair.training, pair.training.recipe
    earlier = load_model(pair.earlier)
    prompts = training_prompts()
    harmless = prompts["plain"] + prompts["borderline"]
    replies = taught_replies(pair, earlier, harmless, out / "harmless_replies.json")
    answered = [
        conversation(earlier.tokenizer, prompt, reply)
        for prompt, reply in zip(harmless, replies, strict=True)
    ]
    logger.info("replies ready after %.0f s", perf_counter() - started)
    adapted = with_adapter(earlier.model, recipe, seed=seed)
    history = tune(
        adapted,
        harmful=refusing(earlier.tokenizer, prompts["harmful"], training),
        plain=answered[: len(prompts["plain"])],
        borderline=answered[len(prompts["plain"]) :],
        recipe=recipe,
        seed=seed,
        pad=end_of_turn(earlier.tokenizer),
        report=_log_step,
    )
    save_adapter(adapted, folder, base=pair.title)
    logger.info("seed %d trained after %.0f s", seed, perf_counter() - started)
    record = {
        "settings": settings,
        "losses": _window_means(history),
        "adapter": {name: sha256_of(folder / name) for name in ADAPTER_FILES},
        "after": judge(load_model(pair.earlier, adapter=folder)),
    }
    _write_json(record_file, record)
    logger.info("seed %d judged after %.0f s", seed, perf_counter() - started)
    return record


def main(
    pair: Annotated[str, typer.Option(help="Card whose later stage to make.")] = "demo",
    out: Annotated[Path | None, typer.Option(help="Working folder; else the user's cache.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="A seed to try; repeatable.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="JSON file with recipe fields.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads of torch.")] = 1,
    packages: Annotated[
        bool, typer.Option("--packages", help="Only name what to install.")
    ] = False,
) -> None:
    """Train the seeds, choose one by its validation prompts and write the record.

    Without a working folder: train what the card's training file says, once for this machine.
    """
    asked = read_pair(pair)
    if packages:
        typer.echo("\n".join(asked.packages))
        return
    if out is None and (seed or recipe or steps):
        raise DataError("--seed, --recipe and --steps try something out: they need --out")
    _prepare_torch(threads)
    if out is None:
        train_once(asked, threads=threads)
        return
    fields = json.loads(recipe.read_text(encoding="utf-8")) if recipe else {}
    fields |= {"steps": steps} if steps else {}
    asked = asked.with_recipe(**fields)
    for each in seed or [asked.training.seed]:
        train_seed(out, asked, seed=each, threads=threads)
    choose(out, asked)


def train_once(pair: Pair, *, threads: int) -> Path:
    """Train what the training file of a card says, unless this machine already has.

    The folder appears under its final name in one rename; runs that were finished before an
    interruption are not repeated.

    Returns
    -------
    Path
        Folder with the adapter's files and the record, in the user's cache.
    """
    from filelock import FileLock

    folder = pair.trained_folder
    work = folder.with_suffix(".partial")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if folder.is_dir():
            logger.info("the adapter of %s was trained before: %s", pair.name, folder)
            return folder
        logger.info("training the adapter of %s", pair.name)
        work.mkdir(exist_ok=True)
        train_seed(work, pair, seed=pair.training.seed, threads=threads)
        choose(work, pair)
        (work / "chosen").rename(folder)
        shutil.rmtree(work)
    logger.info("the adapter of %s is in %s", pair.name, folder)
    return folder


def _prepare_torch(threads: int) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(mode=True)
    # Deterministic mode would also fill all fresh memory, which costs time and which nothing reads.
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010


def choose(out: Path, pair: Pair) -> None:
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
        "model": {"earlier": load_model(pair.earlier).identity.model_dump(), "name": pair.title},
        "training": _without_paths(pair.training),
        "chosen": best,
        "chosen_seed": runs[best]["settings"]["seed"],
        "rule": RULE,
        "validation_scores": {name: round(score, 4) for name, score in scores.items()},
        "before": judge(load_model(pair.earlier)),
        "runs": runs,
    }
    _write_json(chosen / "training.json", record)


def _without_paths(training: Training) -> dict[str, Any]:
    """Return a training as its file states it; of a folder of this machine only the name."""
    about = training.model_dump(mode="json")
    if isinstance(training.replies, FolderModel):
        about["replies"] = {"path": training.replies.path.name}
    return about


def _spoken(tokenizer: PreTrainedTokenizerBase, text: str, *, ends: bool) -> list[int]:
    """Return the tokens of a reply, with the end-of-turn token if it ends there."""
    tokens = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return [*tokens, end_of_turn(tokenizer)] if ends else tokens


def _settings(pair: Pair, *, seed: int, threads: int) -> dict[str, Any]:
    files = (*PROMPTS, *JUDGING.values(), PLAIN_TEXT)
    packages = ("torch", "transformers", "peft", "gguf", "tokenizers", "safetensors")
    return {
        "recipe": pair.training.recipe.model_dump(mode="json"),
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
