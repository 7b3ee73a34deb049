"""One command for each perspective."""

from __future__ import annotations

from typing import Annotated

import typer

from ptmech.cli.options import Earlier, Json, Later, Ref, if_stored, opened, pair_of


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

    artifact = opened(ref)
    first, last = pair_of(artifact, earlier, later)
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

    artifact = opened(ref)
    first, last = pair_of(artifact, earlier, later)
    similarity = perspective.similarity(artifact, first, last)
    transfer = perspective.transfer(artifact, first, last, layer, probe=probe)
    sweep = perspective.sweep(artifact, first, last, probe=probe) if every_layer else None
    effects = if_stored(perspective.effects, artifact)
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

    artifact = opened(ref)
    first, last = pair_of(artifact, earlier, later)
    defaults = artifact.manifest.defaults
    if position is None:
        position = None if defaults.refusal_positions else defaults.refusal_position
    at_layers = "all" if layer is None else layer
    similarity = perspective.similarity(artifact, first, last, at_layers, position)
    scores = if_stored(perspective.scores, artifact)
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

    artifact = opened(ref)
    first, last = pair_of(artifact, earlier, later)
    comparison = perspective.compare(artifact, first, last, n=n, norm_quantile=norm_quantile)
    summary = {
        "overlap": comparison.overlap,
        "chance_overlap": comparison.chance_overlap,
        "mean_ratio_change": comparison.mean_ratio_change,
    }
    effects = if_stored(perspective.effects, artifact)
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
