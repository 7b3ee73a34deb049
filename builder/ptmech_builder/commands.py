"""The builder's commands: ``ptmech plan`` and ``ptmech build``."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ptmech.errors import DataError, PrerequisiteError

if TYPE_CHECKING:
    from ptmech_builder.plan import Plan, Selection

PREREQUISITES = ("torch", "transformers", "safetensors", "peft", "gguf")

CardArgument = Annotated[str, typer.Argument(help="Path of a card, or its name in cards/.")]
OutOption = Annotated[Path | None, typer.Option(help="Folder of the artifact.")]
StagesOption = Annotated[str | None, typer.Option(help="Only these stages, comma-separated.")]
DatasetsOption = Annotated[str | None, typer.Option(help="Only these datasets, comma-separated.")]
LimitOption = Annotated[int | None, typer.Option(min=1, help="First rows of each dataset only.")]
DeviceOption = Annotated[str, typer.Option(help="Device of torch: auto, cpu, cuda, cuda:1, ...")]
DtypeOption = Annotated[
    str | None, typer.Option(help="Stored element type: float32, float16, bfloat16.")
]


def register(app: typer.Typer) -> None:
    """Add the builder's commands to the ``ptmech`` command line."""
    app.command("plan")(plan)
    app.command("build")(build)


def plan(
    card: CardArgument,
    out: OutOption = None,
    stages: StagesOption = None,
    datasets: DatasetsOption = None,
    limit: LimitOption = None,
    dtype: DtypeOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Say what a build would do: units, tokens, files and bytes."""
    _require_builder()
    made = _make_plan(card, _selection(stages, datasets, limit, "cpu", dtype))
    rows = _summarise(made, out)
    total = {
        key: sum(row[key] for row in rows)
        for key in ("units", "finished", "tokens", "files", "bytes")
    }
    if as_json:
        about = {"card": made.card.name, "left_out": made.left_out}
        typer.echo(json.dumps({**about, "plan": rows, "total": total}))
        return
    header = f"{'what':<34}{'units':>7}{'done':>6}{'tokens':>10}{'files':>7}{'bytes':>15}"
    typer.echo(header)
    for row in [*rows, {"what": "total", **total}]:
        typer.echo(
            f"{row['what']:<34}{row['units']:>7}{row['finished']:>6}{row['tokens']:>10,}"
            f"{row['files']:>7}{row['bytes']:>15,}"
        )
    if made.left_out:
        typer.echo(f"left out: {made.left_out}")


def build(
    card: CardArgument,
    out: OutOption = None,
    stages: StagesOption = None,
    datasets: DatasetsOption = None,
    limit: LimitOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show nothing but errors.")] = False,
) -> None:
    """Build the artifact of a card; units that are finished are not done again."""
    _require_builder()
    from ptmech_builder.build import run
    from ptmech_builder.progress import Progress

    progress = Progress(quiet=quiet)
    made = _make_plan(card, _selection(stages, datasets, limit, device, dtype))
    root = out or default_root(made.card.name)
    report = run(made, root, progress)
    if made.left_out:
        progress.line(f"left out: {made.left_out}")
    parity = report.manifest.parity
    deviation = (
        "" if parity is None else f"; worst deviation from a plain forward {parity.worst:.1e}"
    )
    progress.line(
        f"{root}: {report.done} units done, {report.reused} reused, "
        f"{report.manifest.total_bytes:,} bytes in {report.seconds:.0f} s{deviation}"
    )


def default_root(name: str) -> Path:
    """Return the folder an artifact goes to unless ``--out`` names another."""
    return Path("artifacts") / name


def _make_plan(card: str, selection: Selection) -> Plan:
    from ptmech_builder.cards import read_card
    from ptmech_builder.plan import make_plan

    return make_plan(read_card(card), selection)


def _require_builder() -> None:
    """Say what is missing before anything of the builder is imported."""
    missing = [name for name in PREREQUISITES if find_spec(name) is None]
    if missing:
        raise PrerequisiteError(
            f"planning and building need {', '.join(missing)}: pip install 'ptmech[build]'"
        )


def _selection(
    stages: str | None, datasets: str | None, limit: int | None, device: str, dtype: str | None
) -> Selection:
    from ptmech_builder.plan import Selection

    match dtype:
        case None | "float32" | "float16" | "bfloat16":
            return Selection(
                stages=_names(stages),
                datasets=_names(datasets),
                limit=limit,
                device=device,
                dtype=dtype,
            )
        case _:
            raise DataError(f"dtype {dtype!r} is none of float32, float16, bfloat16")


def _names(listed: str | None) -> tuple[str, ...] | None:
    if listed is None:
        return None
    return tuple(name.strip() for name in listed.split(",") if name.strip())


def _summarise(made: Plan, out: Path | None) -> list[dict]:
    """Return one row a kind of unit and stage: units, finished ones, tokens, files, bytes."""
    from ptmech_builder.writer import Writer

    writer = Writer(out or default_root(made.card.name))
    rows: dict[str, dict] = {}
    for unit in made.units:
        what = f"{unit.kind} {unit.stage}".strip()
        row = rows.setdefault(
            what, {"what": what, "units": 0, "finished": 0, "tokens": 0, "files": 0, "bytes": 0}
        )
        receipt = writer.receipt(unit.name, unit.key)
        done = receipt is not None and unit.accepts(receipt)
        row["units"] += 1
        row["finished"] += int(done)
        row["tokens"] += unit.tokens
        row["files"] += unit.expected_files
        row["bytes"] += unit.expected_bytes
    return list(rows.values())
