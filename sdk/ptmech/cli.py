"""The command line: ``ptmech info``, ``verify`` and one command for each perspective.

Every command takes an artifact, prints tables, or with ``--json`` one JSON document. What goes
wrong is said in one line on standard error, with the way out. Exit codes: 0 fine, 1 a bug, 2 a
request that cannot be met, 3 a damaged artifact, 130 interrupted.

Nothing that is written tells a secret, the home folder or who runs it on which machine. This holds
for ``--json`` too: texts that look like one (a statement with a token in it) differ there from what
is stored; read the artifact from Python where every letter counts.

Other distributions add commands through the entry-point group ``ptmech.commands``: each names a
function that takes the :class:`typer.Typer` application.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import entry_points, version
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer
from typer.core import TyperGroup
from typing_extensions import override

from ptmech._output import discreet_output, told
from ptmech._text import visible
from ptmech.errors import FormatError, IntegrityError, PtmechError, first_line

if TYPE_CHECKING:
    from ptmech.artifact import Artifact

Found = TypeVar("Found")

PLUGINS: Final = "ptmech.commands"
BUG, UNMET, DAMAGED, INTERRUPTED = 1, 2, 3, 130
UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""What typer raises for a command line that it does not understand."""

_WAYS_OUT: Final = {
    errno.EACCES: "; give yourself the right to it",
    errno.EPERM: "; give yourself the right to it",
    errno.ENOENT: "; check how it is spelled",
    errno.ENOSPC: "; make room and try again",
    errno.EMFILE: "; raise the limit on open files (ulimit -n)",
}

Ref = Annotated[
    str,
    typer.Argument(
        metavar="REF",
        help="Folder of an artifact, owner/name[@revision] on the Hub, or https:// address.",
        show_default=False,
    ),
]
Earlier = Annotated[str | None, typer.Option(help="Earlier stage; the first one if not given.")]
Later = Annotated[str | None, typer.Option(help="Later stage; the last one if not given.")]
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print one JSON document: tokens, passwords and places of this machine within its "
        "texts are hidden, all else is as stored.",
    ),
]


def _print_version(asked: bool) -> None:  # noqa: FBT001  typer calls it so
    if asked:
        typer.echo(f"ptmech {version('ptmech')}")
        raise typer.Exit


class OneLineErrors(TyperGroup):
    """Commands whose errors are one line and an exit code, never a traceback."""

    @override
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the options before the command."""
        if not args:  # the help comes instead
            return super().parse_args(ctx, args)
        try:
            return super().parse_args(ctx, args)
        except UsageError as error:
            raise _misused(error) from error

    @override
    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except UsageError as error:
            raise _misused(error) from error
        except PtmechError as error:
            damaged = isinstance(error, (IntegrityError, FormatError))
            raise _exit(error, DAMAGED if damaged else UNMET) from error
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader of a pipe has gone; typer knows how to stop
                raise
            raise _exit(_refused(error), UNMET) from error
        except KeyboardInterrupt as error:
            raise _exit("interrupted", INTERRUPTED) from error


def main() -> None:
    """Run the command line and exit."""
    # What the Hub's client warns of is tried again, or said in one line.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    try:
        with discreet_output():
            create_app()(prog_name="ptmech")
    except SystemExit:
        raise
    except KeyboardInterrupt:  # before there was a command
        _say("interrupted")
        sys.exit(INTERRUPTED)
    # Libraries in Rust panic with errors that are no Exception. Told past our own streams: they may
    # be what is broken.
    except BaseException as bug:
        typer.echo(told(bug), err=True, nl=False)
        _say(
            f"this is a bug in ptmech {version('ptmech')}: please report it with the lines "
            "above, from which tokens, home folder and names have been taken"
        )
        sys.exit(BUG)


def create_app() -> typer.Typer:
    """Build the command line, with the commands of every installed plugin."""
    app = typer.Typer(
        cls=OneLineErrors,
        callback=_ptmech,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    for command in (info, verify, summary, knowledge, truth, refusal, confidence):
        app.command()(command)
    for plugin in sorted(entry_points(group=PLUGINS)):
        try:
            register = plugin.load()
        except (ImportError, AttributeError) as error:
            _say(f"no commands of plugin {plugin.name!r}: {error}")
        else:
            register(app)
    return app


def info(ref: Ref, as_json: Json = False) -> None:
    """Say what an artifact holds."""
    from ptmech.console import print_json, print_line

    artifact = _load(ref)
    if as_json:
        manifest = artifact.manifest
        about = manifest.model_dump(mode="json", exclude={"parts", "extras"})
        print_json({"artifact": artifact.id, "bytes": manifest.total_bytes, **about})
    else:
        print_line(repr(artifact))


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

    places = {"folders": _by_stage(folder or ()), "adapters": _by_stage(adapter or ())}
    if deep:
        live.require_torch()  # told now rather than after every byte has been read
    artifact = _load(ref)
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
        _say(line)
    if faults or skipped:
        raise typer.Exit(DAMAGED if faults else UNMET)


def summary(ref: Ref, earlier: Earlier = None, later: Later = None, as_json: Json = False) -> None:
    """Answer the four questions about a pair of stages in one table."""
    from ptmech.console import print_json, print_table, result_payload
    from ptmech.summary import summarize

    artifact = _load(ref)
    first, last = _stages(artifact, earlier, later)
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


def truth(
    ref: Ref,
    earlier: Earlier = None,
    later: Later = None,
    layer: Annotated[int | None, typer.Option(help="Layer of the probes; else the card's.")] = None,
    probe: Annotated[str, typer.Option(help="Probe of the transfer.")] = "mass_mean",
    every_layer: Annotated[
        bool, typer.Option("--sweep", help="Also test the probes at every layer.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare how two stages represent truth: directions by layer, transfer of probes."""
    from ptmech import truth as perspective
    from ptmech.console import interval, print_json, print_table, result_payload

    artifact = _load(ref)
    first, last = _stages(artifact, earlier, later)
    similarity = perspective.similarity(artifact, first, last)
    transfer = perspective.transfer(artifact, first, last, layer, probe=probe)
    sweep = perspective.sweep(artifact, first, last, probe=probe) if every_layer else None
    effects = _if_stored(perspective.effects, artifact)
    if as_json:
        payloads = {
            "similarity": result_payload(similarity),
            "transfer": result_payload(transfer),
            "effects": None if effects is None else result_payload(effects),
        }
        if sweep is not None:
            payloads["sweep"] = result_payload(sweep)
        print_json({"artifact": artifact.id, "earlier": first, "later": last, **payloads})
        return
    print_table(similarity.frame, f"Truth directions, {first} and {last}: cosines by layer")
    frame = transfer.frame.with_columns(
        interval(transfer.frame, "accuracy", "accuracy_low", "accuracy_high")
    )
    print_table(
        frame.pivot("probe", index="dataset", values="accuracy"),
        f"Accuracy of {probe} probes on the dataset left out, layer {transfer.layer}",
    )
    if sweep is not None:
        means = sweep.frame.filter(dataset=perspective.MEAN)
        means = means.with_columns(interval(means, "accuracy", "accuracy_low", "accuracy_high"))
        print_table(
            means.pivot("probe", index="layer", values="accuracy"),
            f"Accuracy of {probe} probes by layer, mean over the datasets left out",
        )
    if effects is not None:
        found = effects.frame
        print_table(
            found.select(
                "stage",
                "direction",
                "direction_stage",
                "auroc_before",
                "p_true_before",
                "p_false_before",
                interval(found, "effect", "effect_low", "effect_high"),
            ),
            "What truth directions do to TRUE/FALSE answers (0.5 = the model answers by chance)",
        )


def refusal(
    ref: Ref,
    earlier: Earlier = None,
    later: Later = None,
    layer: Annotated[int | None, typer.Option(help="One layer; all if not given.")] = None,
    position: Annotated[
        int | None, typer.Option(help="Token counted from the end; else the card's.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare the refusal directions of two stages, and show what they do to completions."""
    from ptmech import refusal as perspective
    from ptmech.console import interval, print_json, print_table, result_payload

    artifact = _load(ref)
    first, last = _stages(artifact, earlier, later)
    defaults = artifact.manifest.defaults
    if position is None:
        position = None if defaults.refusal_positions else defaults.refusal_position
    at_layers = "all" if layer is None else layer
    similarity = perspective.similarity(artifact, first, last, at_layers, position)
    scores = _if_stored(perspective.scores, artifact)
    candidates = {
        stage: perspective.candidate_scores(artifact, stage)
        for stage in (first, last)
        if artifact.extra(f"scores/{stage}/directions.parquet")
    }
    if as_json:
        payloads = {
            "similarity": result_payload(similarity),
            "scores": None if scores is None else result_payload(scores),
            "candidates": {stage: result_payload(found) for stage, found in candidates.items()},
        }
        print_json({"artifact": artifact.id, "earlier": first, "later": last, **payloads})
        return
    read = similarity.frame.row(0, named=True)
    own = read["position"] != read["position_later"]
    where = f"{read['position']} and {read['position_later']}" if own else f"{read['position']}"
    print_table(
        similarity.frame.drop("position", "position_later", "layer_later"),
        f"Refusal directions, {first} and {last}: cosines by layer, position {where}",
    )
    if scores is not None:
        shown = scores.frame.with_columns(interval(scores.frame, "refusal_rate", "low", "high"))
        print_table(
            shown.drop("low", "high", "refusals"), "Share of completions that refuse [95 %]"
        )
    for stage, found in candidates.items():
        best = found.frame.sort("refusal_score", nulls_last=True).head(8)
        print_table(
            best.drop("harmful_baseline", "harmless_baseline", "n_harmful", "n_harmless"),
            f"Candidate directions of {stage} that refuse least when ablated",
        )


def knowledge(
    ref: Ref,
    earlier: Earlier = None,
    later: Later = None,
    dataset: Annotated[str | None, typer.Option(help="One dataset; else all traced.")] = None,
    as_json: Json = False,
) -> None:
    """Compare where two stages keep knowledge: causal traces by layer and role of the token."""
    import polars as pl

    from ptmech import knowledge as perspective
    from ptmech.console import print_json, print_table, result_payload
    from ptmech.errors import NotStoredError

    artifact = _load(ref)
    first, last = _stages(artifact, earlier, later)
    datasets = (
        perspective.stored(artifact)["dataset"].unique().sort() if dataset is None else [dataset]
    )
    if not len(datasets):
        raise NotStoredError(
            f"{artifact.id} holds no causal traces: its card does not ask for them, or the build "
            "was narrowed (--stages, --datasets)"
        )
    comparisons = {
        name: perspective.compare_stages(artifact, first, last, name) for name in datasets
    }
    if as_json:
        payloads = {
            name: {
                **result_payload(comparison),
                "traces": [
                    {"known": trace.known, **result_payload(trace)}
                    for trace in comparison.traces.values()
                ],
            }
            for name, comparison in comparisons.items()
        }
        print_json({"artifact": artifact.id, "earlier": first, "later": last, "datasets": payloads})
        return
    for name, comparison in comparisons.items():
        for (source, target), trace in comparison.traces.items():
            print_table(
                trace.by_role.with_columns(pl.selectors.float().round(3) + 0.0),
                f"{name}: {source} into {target}, {trace.pairs.height} pairs; "
                "0 = unpatched, 1 = true prompt",
            )
        print_table(comparison.frame, f"{name}: traces compared")


def confidence(
    ref: Ref,
    earlier: Earlier = None,
    later: Later = None,
    n: Annotated[int, typer.Option(min=1, help="Candidates of each stage.")] = 10,
    norm_quantile: Annotated[
        float, typer.Option(min=0, max=1, help="Only neurons longer than this quantile.")
    ] = 0.75,
    as_json: Json = False,
) -> None:
    """Compare the entropy-neuron candidates of two stages."""
    from ptmech import confidence as perspective
    from ptmech.console import cell, interval, print_json, print_line, print_table, result_payload

    artifact = _load(ref)
    first, last = _stages(artifact, earlier, later)
    comparison = perspective.compare(artifact, first, last, n=n, norm_quantile=norm_quantile)
    summary = {
        "overlap": comparison.overlap,
        "chance_overlap": comparison.chance_overlap,
        "mean_ratio_change": comparison.mean_ratio_change,
    }
    effects = _if_stored(perspective.effects, artifact)
    if as_json:
        measured = None if effects is None else result_payload(effects)
        payload = {**summary, **result_payload(comparison), "effects": measured}
        print_json({"artifact": artifact.id, "earlier": first, "later": last, **payload})
        return
    for stage in (first, last):
        rows = comparison.neurons.filter(stage=stage, candidate=True).sort("logit_variance")
        print_table(
            rows.drop("stage", "eligible", "candidate"), f"Entropy-neuron candidates of {stage}"
        )
    print_line(
        "  ".join(f"{name.replace('_', ' ')} {cell(value)}" for name, value in summary.items())
    )
    if effects is not None:
        found = effects.frame.filter(ablated="each", measure="entropy")
        print_table(
            found.select(
                "stage",
                "neurons",
                "effect",
                interval(found, "change", "change_low", "change_high"),
                interval(found, "absolute", "absolute_low", "absolute_high"),
            ),
            "Entropy, nats: one neuron ablated at a time, mean over the candidates and over random "
            "neurons",
        )


def _ptmech(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """Tell what post-training does inside language models, from stored activations."""


def _load(ref: str) -> Artifact:
    from ptmech.loading import load

    return load(ref)


def _if_stored(read: Callable[[Artifact], Found], artifact: Artifact) -> Found | None:
    """Read what was measured on running models; say so where the artifact holds none."""
    from ptmech.errors import NotStoredError

    try:
        return read(artifact)
    except NotStoredError as error:
        _say(error)
        return None


def _stages(artifact: Artifact, earlier: str | None, later: str | None) -> tuple[str, str]:
    """Return the stages asked for: the first and the last unless named."""
    return earlier or artifact.stages[0], later or artifact.stages[-1]


def _refused(error: OSError) -> str:
    """Return what the operating system refuses, of which file, and the way out."""
    what = error.strerror or first_line(error)
    where = "" if error.filename is None else f"{error.filename}: "
    return f"{where}{what}{_WAYS_OUT.get(error.errno or 0, '')}"


def _by_stage(options: Iterable[str]) -> dict[str, str]:
    """Read options of the form ``STAGE=FOLDER``."""
    from ptmech.errors import DataError

    named: dict[str, str] = {}
    for option in options:
        stage, equals, folder = option.partition("=")
        if not (stage and equals and folder) or stage in named:
            raise DataError(f"each stage once, as STAGE=FOLDER, not {option!r}")
        named[stage] = folder
    return named


def _misused(error: Any) -> typer.Exit:
    """Say what is wrong with a command line, and where it is explained."""
    command = error.ctx.command_path if error.ctx else "ptmech"
    return _exit(f"{error.format_message().rstrip('.')}; see {command} --help", UNMET)


def _exit(problem: object, code: int) -> typer.Exit:
    """Say in one line what is wrong, and return the exit to raise."""
    _say(problem)
    return typer.Exit(code)


def _say(problem: object) -> None:
    """Write one line to standard error, whatever it is made of."""
    typer.echo(f"ptmech: {visible(' '.join(str(problem).split()))}", err=True)
