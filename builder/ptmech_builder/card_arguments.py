"""What ``ptmech plan`` and ``ptmech build`` share: their arguments, and the plan these make."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ptmech.errors import DataError, PrerequisiteError

if TYPE_CHECKING:
    from ptmech_builder.plan import Plan
    from ptmech_builder.selection import Selection

PREREQUISITES = ("torch", "transformers", "safetensors", "peft", "gguf")

CardArgument = Annotated[str, typer.Argument(help="Path of a card, or its name in cards/.")]
OutOption = Annotated[Path | None, typer.Option(help="Folder of the artifact.")]
StagesOption = Annotated[str | None, typer.Option(help="Only these stages, comma-separated.")]
DatasetsOption = Annotated[str | None, typer.Option(help="Only these datasets, comma-separated.")]
LimitOption = Annotated[int | None, typer.Option(min=1, help="First rows of each dataset only.")]
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


def default_root(name: str) -> Path:
    """Return the folder an artifact goes to unless ``--out`` names another."""
    return Path("artifacts") / name


def require_builder() -> None:
    """Say what is missing before anything of the builder is imported."""
    missing = [name for name in PREREQUISITES if find_spec(name) is None]
    if missing:
        raise PrerequisiteError(
            f"planning and building need {', '.join(missing)}: pip install 'ptmech[build]'"
        )


def plan_of(
    card: str, selection: Selection, data_dir: Path | None, statements: Sequence[Path]
) -> Plan:
    """Plan a card together with the user's own statements.

    Raises
    ------
    DataError
        If the selection leaves out statements that are to be added.
    """
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


def selection_of(
    stages: str | None,
    datasets: str | None,
    limit: int | None,
    device: str,
    dtype: str | None,
    device_map: str | None = None,
) -> Selection:
    """Return what the options narrow a plan to.

    Raises
    ------
    DataError
        If there is no such element type.
    """
    from ptmech.live.models import pick_spread
    from ptmech_builder.selection import Selection

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
