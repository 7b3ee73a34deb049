"""The demo artifact, built where `make demo` builds it: nothing to do if it is finished."""

from pathlib import Path

import pytest

import ptmech as sdk
from ptmech.artifact import Artifact
from ptmech_builder.build import BuildReport, run
from ptmech_builder.cards import CardFile, read_card
from ptmech_builder.plan import Plan, Selection, make_plan
from ptmech_builder.progress import Progress

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def demo_card() -> CardFile:
    return read_card(ROOT / "cards/demo.toml")


@pytest.fixture(scope="session")
def demo_plan(demo_card: CardFile) -> Plan:
    return make_plan(demo_card, Selection(device="cpu"))


@pytest.fixture(scope="session")
def demo_path(demo_plan: Plan) -> Path:
    path = ROOT / "artifacts/demo"
    run(demo_plan, path, Progress(quiet=True))
    return path


@pytest.fixture(scope="session")
def demo(demo_path: Path) -> Artifact:
    return sdk.load(demo_path)


@pytest.fixture(scope="session")
def second_build(demo_plan: Plan, demo_path: Path) -> BuildReport:
    return run(demo_plan, demo_path, Progress(quiet=True))
