"""Measure extraction at the size of Llama-3.1-8B: ``python -m benchmarks.gpu``."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.gpu.device import device_name, driver_version, peak_tflops
from benchmarks.gpu.extraction import PACKINGS, Measured, measure
from benchmarks.gpu.flex import flex_trees
from benchmarks.gpu.prompt_sets import SETS, prompt_set
from benchmarks.gpu.random_llama import random_llama
from ptmech.errors import DataError
from ptmech.live.models.loading import pick_device


class Shape(StrEnum):
    """Names of :data:`benchmarks.gpu.random_llama.SHAPES`."""

    LLAMA_8B = "llama-3.1-8b"
    TINY = "tiny"


class Attention(StrEnum):
    """How trees attend."""

    SDPA = "sdpa"
    FLEX = "flex"


def main(
    shape: Annotated[Shape, typer.Option(help="Sizes of the model.")] = Shape.LLAMA_8B,
    device: Annotated[str, typer.Option(help="A torch device: cuda or cpu.")] = "cuda",
    rows: Annotated[int, typer.Option(min=2, help="The most rows of a set.")] = 3000,
    rounds: Annotated[int, typer.Option(min=1, help="How often each way is timed.")] = 5,
    attention: Annotated[Attention, typer.Option(help="How trees attend.")] = Attention.SDPA,
    peak: Annotated[
        float | None,
        typer.Option("--peak-tflops", help="The device's best in bf16, if its name tells none."),
    ] = None,
    record: Annotated[
        Path | None, typer.Option("--json", help="Also write every figure to this file.")
    ] = None,
) -> None:
    """Measure extraction with everything stored against bare forwards of the same batches."""
    try:
        where = torch.device(pick_device(device))
    except DataError as error:
        raise typer.BadParameter(f"{error}; without a GPU: --device cpu --shape tiny") from error
    best = peak or peak_tflops(device_name(where))
    about = {
        "device": device_name(where),
        "driver": driver_version(where),
        "torch": torch.__version__,
        "shape": shape.value,
        "attention": attention.value,
        "rounds": rounds,
        "peak_tflops": best,
    }
    _say("; ".join(f"{name} {value}" for name, value in about.items()))
    model = random_llama(shape.value, where)
    found: list[Measured] = []
    with flex_trees(model) if attention is Attention.FLEX else nullcontext():
        for name in SETS:
            prompts = prompt_set(name, rows=rows, vocabulary=model.config.vocab_size)
            found.append(measure(model, prompts, rounds=rounds))
            _say(*described(found[-1], best))
    if record is not None:
        figures: dict[str, Any] = {**about, "sets": [measured.figures(best) for measured in found]}
        record.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def described(measured: Measured, best: float | None) -> list[str]:
    """Put what was measured into lines: one for the set, then one for each way."""
    lines = [
        f"\n{measured.prompts}: {measured.rows:,} rows of {measured.tokens:,} tokens; batches and "
        f"trees equal bare forwards bit for bit, each other to {measured.deviation:.1e}"
    ]
    for packing in PACKINGS:
        way = measured.ways[packing]
        given, ran = measured.tokens_per_second(packing)
        parts = [
            f"{packing:>8}: {way.ratio:.2f} of a bare forward of the same",
            f"{measured.against_batches(packing):.2f} of one of sorted batches",
            f"{given:,.0f} tokens/s of the rows",
            f"{ran:,.0f} that ran ({way.tokens:,} in {way.forwards} forwards)",
        ]
        if best is not None:
            bare, stored = way.utilisation(best)
            parts.append(f"{stored:.0%} of the peak (bare {bare:.0%})")
        if way.peak is not None and way.bare_peak is not None:
            parts.append(f"{way.peak / 2**30:.1f} GiB (bare {way.bare_peak / 2**30:.1f})")
        lines.append(", ".join(parts))
    return lines


def _say(*lines: str) -> None:
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    typer.run(main)
