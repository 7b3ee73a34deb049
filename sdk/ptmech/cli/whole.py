"""Commands about an artifact as a whole: what it holds, whether it is right, what it answers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ptmech.cli.options import Earlier, Json, Later, Ref, by_stage, opened, pair_of
from ptmech.cli.telling import DAMAGED, UNMET, say

if TYPE_CHECKING:
    from ptmech.artifact import Artifact


def info(ref: Ref, as_json: Json = False) -> None:
    """Say what an artifact holds: stages, datasets, what is stored of them."""
    from ptmech.console import print_json

    artifact = opened(ref)
    if as_json:
        manifest = artifact.manifest
        about = manifest.model_dump(mode="json", exclude={"parts", "extras"})
        print_json({"artifact": artifact.id, "bytes": manifest.total_bytes, **about})
    else:
        _print_contents(artifact)


def verify(
    ref: Ref,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also run the models again and compare a sample.")
    ] = False,
    rows: Annotated[
        int, typer.Option(min=1, help="With --deep: rows of each block that are run again.")
    ] = 2,
    device: Annotated[str, typer.Option(help="With --deep: where models run.")] = "auto",
    folder: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STAGE=FOLDER",
            help="With --deep: where the weights are of a stage that was built from a folder.",
        ),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STAGE=FOLDER",
            help="With --deep: where the adapter is of a stage that may not ship it.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check every byte of an artifact; exits with 3 if something is wrong.

    With --deep a sample of activations and of weight statistics is computed again from the models.
    Scores and causal traces are not: that takes the build itself.
    """
    from ptmech import live
    from ptmech.console import print_json, print_line
    from ptmech.verify import listed_files, verify_deep
    from ptmech.verify import verify as find_faults

    places = {"folders": by_stage(folder or ()), "adapters": by_stage(adapter or ())}
    if deep:
        live.require_torch()  # told now rather than after every byte has been read
    artifact = opened(ref)
    faults = find_faults(artifact)
    payload: dict[str, Any] = {}
    found = None
    if deep:
        found = verify_deep(artifact, rows=rows, device=device, faults=faults, **places)
        faults = [*faults, *found.faults]
        payload = {
            "recomputed": {
                "rows": found.rows,
                "files": found.files,
                "numbers": found.numbers,
                "worst": found.worst,
                "where": found.where,
            },
            "skipped": found.skipped,
            "unchecked": found.unchecked,
        }
    if as_json:
        listed = [{"path": fault.path, "problem": fault.problem} for fault in faults]
        print_json({"artifact": artifact.id, "ok": not faults, "faults": listed, **payload})
    else:
        for fault in faults:
            print_line(str(fault))
        if not faults:
            files = listed_files(artifact)
            print_line(f"ok: {len(files)} files, {sum(entry.bytes for entry in files):,} bytes")
        if found is not None:
            print_line(str(found))
            for line in found.unchecked:
                print_line(line)
    skipped = () if found is None else found.skipped
    for line in skipped:
        say(line)
    if faults or skipped:
        raise typer.Exit(DAMAGED if faults else UNMET)


def report(
    ref: Ref,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="Where to write the page.")
    ] = Path("report.html"),
    earlier: Earlier = None,
    later: Later = None,
) -> None:
    """Write one HTML page with the findings, every chart and its numbers; needs no network."""
    from ptmech import report as page
    from ptmech.console import print_line

    written = page.write(opened(ref), out, earlier, later)
    print_line(f"{written}: {written.stat().st_size:,} bytes")


def _print_contents(artifact: Artifact) -> None:
    import polars as pl

    from ptmech._arguments import layer_span
    from ptmech.console import print_line, print_table

    manifest = artifact.manifest
    print_line(f"{artifact.id}: {manifest.title}")
    stages = [
        {
            "stage": stage.name,
            "title": stage.title,
            "architecture": stage.architecture,
            "layers": stage.n_layers,
            "width": stage.d_model,
            "weights from": stage.model,
        }
        for stage in manifest.stages
    ]
    print_table(pl.DataFrame(stages), "Stages, earliest first")
    datasets = [
        {
            "dataset": dataset.name,
            "kind": dataset.kind,
            "rows": dataset.rows,
            "positions": ", ".join(map(str, dataset.positions)),
            "title": dataset.title,
        }
        for dataset in manifest.datasets
    ]
    print_table(pl.DataFrame(datasets), "Datasets, the same prompts for every stage")
    stored = [
        {"stored": f"acts: {site}", "what": layer_span(layers)}
        for site, layers in manifest.sites.items()
    ]
    folders = Counter(entry.path.partition("/")[0] for entry in manifest.extras)
    stored += [
        {"stored": name, "what": f"{count} file{'s' * (count > 1)}"}
        for name, count in sorted(folders.items())
    ]
    print_table(pl.DataFrame(stored), f"{manifest.total_bytes:,} bytes, in {manifest.dtype}")
    if manifest.narrowed:
        print_line(f"narrowed: {manifest.narrowed}")


def summary(ref: Ref, earlier: Earlier = None, later: Later = None, as_json: Json = False) -> None:
    """Answer the four questions about a pair of stages in one table."""
    from ptmech.console import print_json, print_table, result_payload
    from ptmech.summary import summarize

    artifact = opened(ref)
    first, last = pair_of(artifact, earlier, later)
    answers = summarize(artifact, first, last)
    if as_json:
        payload = result_payload(answers)
        print_json({"artifact": artifact.id, "earlier": first, "later": last, **payload})
        return
    print_table(
        answers.frame,
        f"What post-training changed from {first} to {last}, in {artifact.id}",
        lines=True,
    )
