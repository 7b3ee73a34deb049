"""The SDK is importable where torch, transformers and the builder are not."""

import subprocess
import sys
from pathlib import Path

from tests.no_torch import WITHOUT_TORCH

SDK = Path(__file__).parents[2] / "sdk"


def sdk_modules() -> list[str]:
    paths = (path.relative_to(SDK) for path in SDK.rglob("*.py"))
    names = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths]
    return sorted(name for name in names if not name.startswith("ptmech.live"))


def test_no_module_of_the_sdk_needs_torch():
    modules = sdk_modules()
    assert "ptmech.truth" in modules
    code = f"import importlib\nfor name in {modules!r}: importlib.import_module(name)\n"
    blocked = [sys.executable, "-c", WITHOUT_TORCH + code]
    done = subprocess.run(blocked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_ptmech_imports_no_heavy_package():
    code = (
        "import sys, ptmech\n"
        "heavy = ('torch', 'numpy', 'polars', 'sklearn', 'pandas')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
