"""``python -m benchmarks ARTIFACT [--only NAMES] [--rounds N] [--write DOCUMENT]``."""

from __future__ import annotations

import argparse
import sys
import warnings
from importlib import import_module
from pathlib import Path
from time import perf_counter

import datasets
import torch
from huggingface_hub.utils import disable_progress_bars

import ptmech as sdk
from benchmarks.report import Section, environment, write
from benchmarks.setting import Benchmark, Setting

NAMES = (
    "remote",
    "reading",
    "extraction",
    "worked_examples",
    "causal_tracing",
    "probes",
    "entropy_neurons",
)
"""The benchmarks, in the order of the document; each is a module.

`remote` comes first: nnsight changes the interpreter that imports it, and the Hub of this process
then answers no more.
"""


def benchmark(name: str) -> Benchmark:
    """Return a benchmark by its name; what it needs is imported only now."""
    return import_module(f"benchmarks.{name}").BENCHMARK


def main(arguments: list[str] | None = None) -> None:
    """Run benchmarks, print their tables as they come, and write them where that is asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Speed, side by side with what people use today; ratios, not seconds.",
    )
    parser.add_argument("artifact", help="a built artifact, such as artifacts/demo")
    parser.add_argument("--only", metavar="NAMES", help=f"some of {','.join(NAMES)}")
    parser.add_argument("--rounds", type=int, help="how often each way is timed")
    parser.add_argument("--write", type=Path, metavar="DOCUMENT", help="put the tables in here")
    given = parser.parse_args(arguments)
    chosen = given.only.split(",") if given.only else list(NAMES)
    if wrong := sorted(set(chosen) - set(NAMES)):
        parser.error(f"unknown: {', '.join(wrong)}; there are {', '.join(NAMES)}")
    if given.rounds is not None and given.rounds < 1:
        parser.error("--rounds must be at least 1")
    if given.write and len(chosen) < len(NAMES):
        parser.error("--write needs all benchmarks: a document of some would lose the others")

    torch.set_num_threads(1)
    disable_progress_bars()
    datasets.disable_progress_bars()
    setting = Setting(artifact=sdk.load(given.artifact), rounds=given.rounds)
    _say(environment())
    sections = [_section(benchmark(name), setting) for name in NAMES if name in chosen]
    if given.write:
        write(given.write, sections)


def _section(asked: Benchmark, setting: Setting) -> Section:
    started = perf_counter()
    section = Section(title=asked.title, about=asked.about, tables=asked.run(setting))
    tables = "\n".join(table.markdown for table in section.tables)
    _say(f"\n## {section.title}\n\n{tables}\n({asked.name}: {perf_counter() - started:.0f} s)")
    return section


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    with warnings.catch_warnings():
        # Other libraries' own affairs, and lines in the middle of tables.
        warnings.simplefilter("ignore")
        main()
