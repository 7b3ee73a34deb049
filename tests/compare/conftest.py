"""The demo model on disk and in ptmech, and a table of how well others agree with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.compare.same_numbers import PROMPTS, Agreement, Rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from ptmech.live import LiveModel
from ptmech.live.models.files import local_folder
from ptmech.live.models.gguf import quiet_transformers
from ptmech_builder.cards import read_card

CARD = Path(__file__).parents[2] / "cards/demo.toml"
WORST = pytest.StashKey[dict[tuple[str, str], float]]()


@pytest.fixture(scope="session")
def folder() -> Path:
    """The demo's earlier stage as a folder of safetensors, which every library can read."""
    return local_folder(read_card(CARD).card.stages[0].model)


@pytest.fixture(scope="session")
def ours(folder: Path) -> LiveModel:
    return LiveModel.from_pretrained(folder, device="cpu")


@pytest.fixture(scope="session")
def rows(folder: Path) -> Rows:
    """The prompts as token ids, all of different length."""
    rows = AutoTokenizer.from_pretrained(folder)(list(PROMPTS))["input_ids"]
    assert len({len(row) for row in rows}) == len(PROMPTS)
    return rows


@pytest.fixture(scope="session")
def direction(folder: Path, rows: Rows) -> torch.Tensor:
    """A direction the model uses: between two prompts' last tokens, half way up the model."""
    with quiet_transformers(), torch.inference_mode():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        first, second = (
            model(torch.tensor([row]), output_hidden_states=True).hidden_states[15][0, -1]
            for row in rows[:2]
        )
    return first - second


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture
def agreement(request: pytest.FixtureRequest) -> Agreement:
    worst = request.config.stash.setdefault(WORST, {})
    return Agreement(request.getfixturevalue("peer").name, worst)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    worst = config.stash.get(WORST, {})
    if worst:
        terminalreporter.section("worst relative deviation from ptmech.live")
    for line in _table(worst):
        terminalreporter.line(line)


def _table(worst: dict[tuple[str, str], float]) -> Sequence[str]:
    return [f"{peer:<18}{what:<42}{value:9.1e}" for (peer, what), value in worst.items()]
