"""The builder's commands: ``ptmech plan``, ``ptmech build`` and ``ptmech pin``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ptmech.errors import DataError, PrerequisiteError
from ptmech_builder.publish_command import publish

if TYPE_CHECKING:
    from ptmech_builder.plan import Plan, Selection
    from ptmech_builder.receipts import Standing

PREREQUISITES = ("torch", "transformers", "safetensors", "peft", "gguf")

CardArgument = Annotated[str, typer.Argument(help="Path of a card, or its name in cards/.")]
OutOption = Annotated[Path | None, typer.Option(help="Folder of the artifact.")]
StagesOption = Annotated[str | None, typer.Option(help="Only these stages, comma-separated.")]
DatasetsOption = Annotated[str | None, typer.Option(help="Only these datasets, comma-separated.")]
LimitOption = Annotated[int | None, typer.Option(min=1, help="First rows of each dataset only.")]
DeviceOption = Annotated[str, typer.Option(help="Device of torch: auto, cpu, cuda, cuda:1, ...")]
DeviceMapOption = Annotated[
    str | None,
    typer.Option(
        help="Spread each model over all GPUs, main memory and disk: auto, balanced, "
        "balanced_low_0, sequential."
    ),
]
DtypeOption = Annotated[
    str | None, typer.Option(help="Stored element type: float32, float16, bfloat16.")
]
DataDirOption = Annotated[
    Path | None, typer.Option(help="Folder with copies of the public files the card names.")
]
StatementsOption = Annotated[
    list[Path] | None,
    typer.Option(help="File of your own statements (statement,label) to add; may be repeated."),
]


def register(app: typer.Typer) -> None:
    """Add the builder's commands to the ``ptmech`` command line."""
    app.command("plan")(plan)
    app.command("build")(build)
    app.command("pin")(pin)
    app.command("publish")(publish)


def plan(
    card: CardArgument,
    out: OutOption = None,
    stages: StagesOption = None,
    datasets: DatasetsOption = None,
    limit: LimitOption = None,
    dtype: DtypeOption = None,
    data_dir: DataDirOption = None,
    statements: StatementsOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Say what a build would do: units, tokens, files and bytes."""
    _require_builder()
    from ptmech_builder.build import reasons_to_repeat, standings
    from ptmech_builder.writer import Writer

    selection = _selection(stages, datasets, limit, "cpu", dtype)
    made = _make_plan(card, selection, data_dir, statements or [])
    found = standings(made.units, Writer(out or default_root(made.card.name)))
    rows = _summarise(made, found)
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
    for line in reasons_to_repeat(found):
        typer.echo(line)
    if made.left_out:
        typer.echo(f"left out: {made.left_out}")


def build(
    card: CardArgument,
    out: OutOption = None,
    stages: StagesOption = None,
    datasets: DatasetsOption = None,
    limit: LimitOption = None,
    device: DeviceOption = "auto",
    device_map: DeviceMapOption = None,
    dtype: DtypeOption = None,
    data_dir: DataDirOption = None,
    statements: StatementsOption = None,
    recheck: Annotated[
        bool, typer.Option("--recheck", help="Hash finished files again, touched or not.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show nothing but errors.")] = False,
) -> None:
    """Build the artifact of a card; units that are finished are not done again."""
    _require_builder()
    from ptmech_builder.build import run
    from ptmech_builder.progress import Progress

    progress = Progress(quiet=quiet)
    selection = _selection(stages, datasets, limit, device, dtype, device_map)
    made = _make_plan(card, selection, data_dir, statements or [])
    root = out or default_root(made.card.name)
    report = run(made, root, progress, recheck=recheck)
    if made.narrowed:
        progress.line(f"narrowed: {made.narrowed}")
    if made.left_out:
        progress.line(f"left out: {made.left_out}")
    parity = report.manifest.parity
    deviation = (
        "" if parity is None else f"; worst deviation from a plain forward {parity.worst:.1e}"
    )
    again = f" ({len(report.again)} of them again)" if report.again else ""
    elsewhere = f" ({report.elsewhere} made by another build)" if report.elsewhere else ""
    progress.line(
        f"{root}: {report.done} units done{again}, {report.reused} reused{elsewhere}, "
        f"{report.manifest.total_bytes:,} bytes in {report.seconds:.0f} s{deviation}"
    )


def pin(
    card: CardArgument,
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; fail if something is not pinned.")
    ] = False,
) -> None:
    """Write into a card the commits its models and data are at now, and missing digests."""
    from ptmech_builder.cards import find_card
    from ptmech_builder.pinning import pin_card, require_pinned

    path = find_card(card)
    if check:
        require_pinned(path)
    for change in () if check else pin_card(path):
        typer.echo(str(change))
    typer.echo(f"{path}: everything is pinned")


def default_root(name: str) -> Path:
    """Return the folder an artifact goes to unless ``--out`` names another."""
    return Path("artifacts") / name


def _make_plan(
    card: str, selection: Selection, data_dir: Path | None, statements: Sequence[Path]
) -> Plan:
    from ptmech_builder.cards import read_card
    from ptmech_builder.plan import make_plan
    from ptmech_builder.user_statements import with_statements

    card_file = read_card(card, data_dir=data_dir)
    extended = with_statements(card_file, statements)
    added = [dataset.name for dataset in extended.card.datasets[len(card_file.card.datasets) :]]
    left_out = next((name for name in added if name not in (selection.datasets or added)), None)
    if left_out is not None:
        raise DataError(f"--datasets leaves out {left_out!r}, which --statements adds; name it too")
    return make_plan(extended, selection)


def _require_builder() -> None:
    """Say what is missing before anything of the builder is imported."""
    missing = [name for name in PREREQUISITES if find_spec(name) is None]
    if missing:
        raise PrerequisiteError(
            f"planning and building need {', '.join(missing)}: pip install 'ptmech[build]'"
        )


def _selection(
    stages: str | None,
    datasets: str | None,
    limit: int | None,
    device: str,
    dtype: str | None,
    device_map: str | None = None,
) -> Selection:
    from ptmech.live.models import pick_spread
    from ptmech_builder.plan import Selection

    match dtype:
        case None | "float32" | "float16" | "bfloat16":
            return Selection(
                stages=_names(stages),
                datasets=_names(datasets),
                limit=limit,
                device=device,
                device_map=pick_spread(device_map),
                dtype=dtype,
            )
        case _:
            raise DataError(f"dtype {dtype!r} is none of float32, float16, bfloat16")


def _names(listed: str | None) -> tuple[str, ...] | None:
    if listed is None:
        return None
    return tuple(name.strip() for name in listed.split(",") if name.strip())


def _summarise(made: Plan, found: Mapping[str, Standing]) -> list[dict]:
    """Return one row a kind of unit and stage: units, finished ones, tokens, files, bytes."""
    rows: dict[str, dict] = {}
    for unit in made.units:
        what = f"{unit.kind} {unit.stage}".strip()
        row = rows.setdefault(
            what, {"what": what, "units": 0, "finished": 0, "tokens": 0, "files": 0, "bytes": 0}
        )
        row["units"] += 1
        row["finished"] += int(found[unit.name].receipt is not None)
        row["tokens"] += unit.tokens
        row["files"] += unit.expected_files
        row["bytes"] += unit.expected_bytes
    return list(rows.values())
