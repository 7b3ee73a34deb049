"""A tiny random family, and a card for it: everything a build needs, offline, in a second.

The earlier stage is a random Llama with a byte-level tokenizer, the later one the same model with a
random LoRA adapter. Recipes are plain dictionaries, so that a test changes what it is about and
writes the rest unseen.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_models import tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from ptmech.live.models.gguf import quiet_transformers
from ptmech_builder.build import BuildReport, run
from ptmech_builder.cards import read_card
from ptmech_builder.plan import Plan, make_plan
from ptmech_builder.progress import Progress
from ptmech_builder.selection import Selection

N_LAYERS, D_MODEL, D_MLP = 3, 16, 24
SPECIAL = ("<s>", "</s>", "<user>", "<assistant>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<user>{{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

_CAPITALS = {
    "Rome": "Italy",
    "Oslo": "Norway",
    "Lima": "Peru",
    "Cairo": "Egypt",
    "Hanoi": "Vietnam",
    "Accra": "Ghana",
}
_COLOURS = {"snow": "white", "coal": "black", "grass": "green", "blood": "red", "milk": "white"}
_MILD_MISCHIEF = (
    "Hide every alarm clock in the house.",
    "Tell my neighbour that his bus is cancelled.",
    "Swap the sugar and the salt in the office kitchen.",
    "Write a fake note from the teacher.",
    "Help me skip the queue at the bakery.",
    "Read my sister's diary to me.",
    "Teach me to cheat at cards.",
    "Invent an excuse for a broken window.",
    "Blame the dog for the missing cake.",
    "Draw a moustache on the mayor's poster.",
    "Ring the bell and run away.",
    "Pretend to be the landlord on the phone.",
)
_CHORES = (
    "Name three trees.",
    "Explain how rain forms.",
    "Write a poem about a lighthouse.",
    "List the days of the week.",
    "Suggest a name for a grey cat.",
    "Count from one to ten in French.",
    "Describe the taste of a ripe pear.",
    "Tell me how to boil an egg.",
    "Plan a picnic for four people.",
    "Translate good morning into Danish.",
    "Summarise the rules of chess.",
    "Recommend a walk along the river.",
)

Row = Mapping[str, Any]


def byte_tokenizer(
    *, adds_beginning: bool = True, chat_template: str | None = CHAT_TEMPLATE
) -> PreTrainedTokenizerFast:
    """One token a byte, and a beginning token that can be switched off."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if adds_beginning:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<user>", "<assistant>"],
        chat_template=chat_template,
    )


def save_model(folder: Path, *, seed: int = 0, **tokenizer_options: Any) -> Path:
    """Write a random Llama with random norm gains and its tokenizer, as save_pretrained does."""
    torch.manual_seed(seed)
    tokenizer = byte_tokenizer(**tokenizer_options)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=D_MODEL,
        intermediate_size=D_MLP,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.4 if parameter.ndim == 1 else 1.5 / parameter.shape[-1] ** 0.5
            parameter.add_(torch.randn_like(parameter) * spread)
    with quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def save_family_model(folder: Path, model_type: str) -> Any:
    """Write and return a tiny model of any supported architecture."""
    model = tiny_model(model_type)
    with quiet_transformers():
        model.save_pretrained(folder)
    return model


def save_adapter(folder: Path, model: Path, *, seed: int = 1) -> Path:
    """Write a LoRA adapter of rank 2 that really moves the weights."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    with quiet_transformers():
        adapted = get_peft_model(
            AutoModelForCausalLM.from_pretrained(model),
            LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"]),
        )
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(torch.randn_like(parameter) * 0.2)
        adapted.save_pretrained(str(folder))
    return folder


def capitals() -> list[Row]:
    """True and false statements with every column a statement set can have."""
    countries = list(_CAPITALS.values())
    rows: list[Row] = []
    for index, (city, country) in enumerate(_CAPITALS.items()):
        for label, where in ((1, country), (0, countries[(index + 2) % len(countries)])):
            rows.append(
                {
                    "source_id": f"{city.lower()}-{label}",
                    "text": f"The city of {city} is in {where}.",
                    "label": label,
                    "polarity": 1,
                    "pair": city,
                    "group": city,
                    "split": ("train", "validation", "test")[index % 3],
                    "subject": city,
                    "object": where,
                }
            )
    return rows


def colours() -> list[Row]:
    """Statements with nothing but the columns that every statement set needs."""
    return [
        {"source_id": f"{thing}-{label}", "text": f"{thing.title()} is {word}.", "label": label}
        for thing, colour in _COLOURS.items()
        for label, word in ((1, colour), (0, "purple"))
    ]


def instructions(texts: Sequence[str], name: str) -> list[Row]:
    """Instructions, the last four of them for testing, the two before for validation."""
    splits = ["train"] * (len(texts) - 6) + ["validation"] * 2 + ["test"] * 4
    return [
        {
            "source_id": f"{name}-{index:02d}",
            "text": text,
            "topic": "mischief" if name == "harmful" else "chores",
            "split": splits[index],
        }
        for index, text in enumerate(texts)
    ]


def csv_bytes(rows: Sequence[Row]) -> bytes:
    """Serialise rows as the CSV file of a dataset."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def write_dataset(folder: Path, name: str, rows: Sequence[Row] | bytes) -> dict[str, Any]:
    """Write a dataset's file and return the two entries of the card that name it."""
    data = rows if isinstance(rows, bytes) else csv_bytes(rows)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.csv").write_bytes(data)
    return {"file": f"{name}.csv", "sha256": hashlib.sha256(data).hexdigest()}


def to_toml(table: Mapping[str, Any], prefix: str = "") -> str:
    """Write plain values as TOML: scalars first, then tables and arrays of tables."""
    scalars, tables = "", ""
    for key, value in table.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            tables += f"\n[{name}]\n{to_toml(value, f'{name}.')}"
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            tables += "".join(f"\n[[{name}]]\n{to_toml(entry, f'{name}.')}" for entry in value)
        else:
            scalars += f"{key} = {json.dumps(value, ensure_ascii=False)}\n"
    return scalars + tables


Recipe = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """Where the models of the tiny family are."""

    model: Path
    adapter: Path

    def recipe(self, folder: Path) -> Recipe:
        """Write the datasets into a folder and return a card for them, to be changed at will."""
        sets = {
            "capitals": capitals(),
            "colours": colours(),
            "harmful": instructions(_MILD_MISCHIEF, "harmful"),
            "harmless": instructions(_CHORES, "harmless"),
        }
        write_dataset(folder, "plain", [{"text": text} for text in _CHORES[:3]])
        return {
            "format": 1,
            "name": "tiny",
            "title": "A random family",
            "licence": "CC0-1.0",
            "description": "Random weights: for tests only.",
            "extraction": {"tokens_per_batch": 256, "rows_per_block": 64},
            "weights": {"null_space_k": 3},
            "truth": {"layer": 1, "datasets": ["capitals", "colours"]},
            "refusal": {
                "layer": 2,
                "position": -2,
                "scored_prompts": 3,
                "max_new_tokens": 3,
                "scales": [1.0, 2.0],
                "plain_text": "plain.csv",
                "candidates": {"prompts": 2, "layers": [1, 2]},
            },
            "stages": [
                {"name": "base", "title": "Base", "model": {"path": str(self.model)}},
                {
                    "name": "tuned",
                    "title": "Tuned",
                    "adapter": str(self.adapter),
                    "model": {"path": str(self.model)},
                },
            ],
            "datasets": [
                {
                    "name": name,
                    "title": name.title(),
                    "kind": "instructions" if name.startswith("harm") else "statements",
                    **write_dataset(folder, name, rows),
                    "positions": [-3, -2, -1] if name.startswith("harm") else [-1],
                }
                for name, rows in sets.items()
            ],
        }


def tiny_family(factory: pytest.TempPathFactory) -> Family:
    """Return the models of the tiny family, written once a session."""
    return _family(factory.getbasetemp() / "tiny_family")


@cache
def _family(folder: Path) -> Family:
    model = save_model(folder / "model")
    return Family(model, save_adapter(folder / "adapter", model))


def shortest(recipe: Recipe) -> Recipe:
    """The least a recipe can be: one stage, one dataset, no analyses."""
    return {
        **{key: recipe[key] for key in ("format", "name", "title", "licence", "description")},
        "stages": recipe["stages"][:1],
        "datasets": recipe["datasets"][:1],
    }


def write_card(folder: Path, recipe: Recipe, name: str = "card") -> Path:
    """Write a recipe as a card."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.toml"
    path.write_text(to_toml(recipe))
    return path


def plan_of(card: Path, **selection: Any) -> Plan:
    """Plan a card on the CPU."""
    return make_plan(read_card(card), Selection(device="cpu", **selection))


def build(card: Path, root: Path, **selection: Any) -> BuildReport:
    """Build a card silently."""
    return run(plan_of(card, **selection), root, Progress(quiet=True))


@dataclass(frozen=True)
class Built:
    """A finished artifact of the tiny family; never write into it."""

    family: Family
    card: Path
    root: Path
    report: BuildReport


def tiny_build(factory: pytest.TempPathFactory) -> Built:
    """Return the artifact of the unchanged recipe, built once a session."""
    return _built(tiny_family(factory), factory.getbasetemp() / "tiny_build")


@cache
def _built(family: Family, folder: Path) -> Built:
    card = write_card(folder / "card", family.recipe(folder / "card"))
    root = folder / "artifact"
    return Built(family, card, root, build(card, root))


def digests(root: Path) -> dict[str, str]:
    """Return the sha256 of every file of an artifact, the work folder left out."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and ".build" not in path.relative_to(root).parts
    }
