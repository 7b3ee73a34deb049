"""The command ``ptmech plan``."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from ptmech.errors import DataError
from ptmech_builder.card_arguments import (
    CardArgument,
    DataDirOption,
    DatasetsOption,
    DtypeOption,
    LimitOption,
    OutOption,
    StagesOption,
    StatementsOption,
    default_root,
    plan_of,
    require_builder,
    selection_of,
)


def plan(
    card: CardArgument,
    out: OutOption = None,
    stages: StagesOption = None,
    datasets: DatasetsOption = None,
    limit: LimitOption = None,
    dtype: DtypeOption = None,
    data_dir: DataDirOption = None,
    statements: StatementsOption = None,
    device: Annotated[
        str | None, typer.Option("--on", help="Estimate hours on this: h100, a100, rtx-4090, ...")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes to estimate for, each with its own model.")
    ] = None,
    utilisation: Annotated[
        float | None, typer.Option(help="Part of the device's peak that is reached; 0.4.")
    ] = None,
    tokens_per_second: Annotated[
        float | None, typer.Option(help="Measured rate of one worker, to estimate by.")
    ] = None,
    tokens: Annotated[
        float | None, typer.Option(help="Estimate for prompts of so many tokens a stage: 1e9.")
    ] = None,
    shape: Annotated[
        str | None, typer.Option(help="Estimate for this model: llama-3.1-70b, gemma-2-27b, ...")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Say what a build would do, and what it would take: units, tokens, bytes, hours."""
    require_builder()
    from ptmech_builder.build import reasons_to_repeat, standings
    from ptmech_builder.estimates import report_of
    from ptmech_builder.plan_summary import COUNTED, packing_lines, packing_rows, unit_rows
    from ptmech_builder.writer import Writer

    timed = device is not None or tokens_per_second is not None
    if not timed and (workers is not None or utilisation is not None):
        raise DataError("--workers and --utilisation need --on DEVICE or --tokens-per-second RATE")
    selection = selection_of(stages, datasets, limit, "cpu", dtype)
    made = plan_of(card, selection, data_dir, statements or [])
    found = standings(made.units, Writer(out or default_root(made.card.name)))
    report = None
    if timed or tokens is not None or shape is not None:
        report = report_of(
            made,
            shape=shape,
            device=device,
            workers=1 if workers is None else workers,
            utilisation=utilisation,
            tokens_per_second=tokens_per_second,
            tokens=tokens,
        )
    rows = unit_rows(made, found)
    total = {key: sum(row[key] for row in rows) for key in COUNTED}
    if as_json:
        told = {"card": made.card.name, "left_out": made.left_out, "plan": rows, "total": total}
        told |= {"packing": packing_rows(made)}
        told |= {} if report is None else {"estimate": report.to_json()}
        typer.echo(json.dumps(told))
        return
    typer.echo(f"{'what':<34}{'units':>7}{'done':>6}{'tokens':>10}{'files':>7}{'bytes':>15}")
    for row in [*rows, {"what": "total", **total}]:
        typer.echo(
            f"{row['what']:<34}{row['units']:>7}{row['finished']:>6}{row['tokens']:>10,}"
            f"{row['files']:>7}{row['bytes']:>15,}"
        )
    for line in reasons_to_repeat(found):
        typer.echo(line)
    if made.left_out:
        typer.echo(f"left out: {made.left_out}")
    for line in ["", *packing_lines(made), *(["", *report.lines()] if report else [])]:
        typer.echo(line)
