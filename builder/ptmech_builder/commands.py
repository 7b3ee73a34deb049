"""The builder's commands: ``ptmech plan``, ``ptmech build`` and ``ptmech pin``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

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
from ptmech_builder.plan_command import plan
from ptmech_builder.publish_command import publish

if TYPE_CHECKING:
    from ptmech_builder.build import BuildReport

DeviceOption = Annotated[str, typer.Option(help="Device of torch: auto, cpu, cuda, cuda:1, ...")]
DeviceMapOption = Annotated[
    str | None,
    typer.Option(
        help="Spread each model over all GPUs, main memory and disk: auto, balanced, "
        "balanced_low_0, sequential."
    ),
]
ShardOption = Annotated[
    str | None,
    typer.Option(metavar="i/n", help="Only the i-th of n shares of the units."),
]
EngineOption = Annotated[
    str, typer.Option(help="Where units run: local, processes (one a GPU), ray (on a cluster).")
]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="Number of workers of an engine; one a GPU by default.")
]


def register(app: typer.Typer) -> None:
    """Add the builder's commands to the ``ptmech`` command line."""
    for name, command in (("plan", plan), ("build", build), ("pin", pin), ("publish", publish)):
        app.command(name, rich_help_panel="Make one")(command)


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
    shard: ShardOption = None,
    engine: EngineOption = "local",
    workers: WorkersOption = None,
    recheck: Annotated[
        bool, typer.Option("--recheck", help="Hash finished files again, touched or not.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show nothing but errors.")] = False,
) -> None:
    """Build the artifact of a card; units that are finished are not done again."""
    require_builder()
    from ptmech_builder.engines import pick_engine, run_on
    from ptmech_builder.progress import Progress
    from ptmech_builder.shards import Shard

    share = None if shard is None else Shard.parse(shard)
    picked = pick_engine(engine)
    progress = Progress(quiet=quiet)
    selection = selection_of(stages, datasets, limit, device, dtype, device_map)
    made = plan_of(card, selection, data_dir, statements or [])
    root = out or default_root(made.card.name)
    report = run_on(
        picked,
        made,
        root,
        progress,
        device=device,
        workers=workers,
        shard=share,
        recheck=recheck,
    )
    if made.narrowed:
        progress.line(f"narrowed: {made.narrowed}")
    if made.left_out:
        progress.line(f"left out: {made.left_out}")
    progress.line(f"{root}: {_summed_up(report)}")


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


def _summed_up(report: BuildReport) -> str:
    again = f" ({len(report.again)} of them again)" if report.again else ""
    elsewhere = f" ({report.elsewhere} made by another build)" if report.elsewhere else ""
    done = f"{report.done} units done{again}, {report.reused} reused{elsewhere}"
    if report.manifest is None:
        return (
            f"{done} in {report.seconds:.0f} s; {report.missing} units of other shards are "
            "missing: the last shard to end writes the manifest"
        )
    parity = report.manifest.parity
    deviation = (
        "" if parity is None else f"; worst deviation from a plain forward {parity.worst:.1e}"
    )
    return f"{done}, {report.manifest.total_bytes:,} bytes in {report.seconds:.0f} s{deviation}"
