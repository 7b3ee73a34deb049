"""A small complete artifact with planted structure, written in well under a second.

Every part an artifact can have is there: statements with pairs, groups and splits, instructions,
tokens, activations of three sites, neuron and unembedding statistics, causal traces, refusal scores
and completions. What an analysis should find is planted: :func:`plant` gives it to the tests.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import polars as pl
import zarr
from zarr.abc.buffer import Buffer
from zarr.codecs import Crc32cCodec
from zarr.storage import MemoryStore

from ptmech.alignment import row_uid
from ptmech.manifest import (
    MANIFEST,
    ActivationFile,
    ActivationUnit,
    Dataset,
    Defaults,
    Extra,
    FileEntry,
    Manifest,
    Parity,
    Part,
    PartEntry,
    Stage,
    canonical_json,
)
from ptmech_builder.writer import Writer, digest, tensor_bytes

STATEMENT_SETS = ("cities", "neg_cities", "facts", "element_symb", "animal_class", "inventors")
"""Sets of true and false statements; ``neg_cities`` denies what ``cities`` states, by group."""
AFFIRMATIVE_SETS = tuple(name for name in STATEMENT_SETS if not name.startswith("neg_"))
INSTRUCTION_SETS = ("harmful", "harmless")
INSTRUCTION_POSITIONS = (-5, -4, -3, -2, -1)

TRUTH_COSINE = 0.98
"""Cosine of the planted truth directions of two neighbouring stages."""
REFUSAL_COSINE = 0.5
"""Cosine of the planted refusal directions of two neighbouring stages."""
D_MLP = 64
VOCABULARY = 96
ENTROPY_NEURONS = (7, 21, 40)
"""Neurons of large norm that write where the unembedding hardly reads."""

TRACE_TOKENS = ("The", "city", "of", "Li", "ma", "is", "in")
TRACE_ROLES = ("prefix", "prefix", "prefix", "subject", "subject_last", "relation", "last")
TRACE_PAIRS = 6
UNPATCHED_LOGIT_DIFFERENCE = -4.0
SOURCE_LOGIT_DIFFERENCE = 5.0

_TABLE_SCHEMA: dict[str, Any] = {
    "row_uid": pl.UInt64,
    "dataset": pl.String,
    "row": pl.Int32,
    "source_id": pl.String,
    "text": pl.String,
    "label": pl.Int8,
    "polarity": pl.Int8,
    "pair": pl.String,
    "group": pl.String,
    "split": pl.String,
    "subject": pl.String,
    "object": pl.String,
    "topic": pl.String,
}


@dataclass(frozen=True)
class Planted:
    """What an analysis should find in one stage."""

    truth: np.ndarray
    """Unit vector [d_model]: true statements are shifted along it, false ones against it."""
    polarity: np.ndarray
    """Unit vector [d_model]: along it negated sets have the opposite sign of ``truth``."""
    refusal: np.ndarray
    """Unit vector [d_model]: harmful instructions are shifted along it."""
    unembedding: np.ndarray
    """[VOCABULARY, d_model], the final norm already folded in."""
    output_weights: np.ndarray
    """[d_model, D_MLP]: a column for each neuron of the last MLP."""


def plant(
    stages: Sequence[str] = ("base", "instruct"), *, d_model: int = 16, seed: int = 0
) -> dict[str, Planted]:
    """Return the planted structure of each stage, the same as :func:`write_synthetic_artifact`."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(d_model, d_model)))[0].T
    unembedding = rng.normal(size=(VOCABULARY, d_model)) @ np.diag(np.linspace(2, 0.02, d_model))
    unembedding = unembedding @ axes
    output_weights = rng.normal(size=(d_model, D_MLP))
    output_weights[:, list(ENTROPY_NEURONS)] = 3 * np.outer(
        axes[-1] * np.sqrt(d_model), np.ones(len(ENTROPY_NEURONS))
    ) + 0.1 * rng.normal(size=(d_model, len(ENTROPY_NEURONS)))
    planted: dict[str, Planted] = {}
    for index, stage in enumerate(stages):
        truth_angle = index * np.arccos(TRUTH_COSINE)
        refusal_angle = index * np.arccos(REFUSAL_COSINE)
        planted[stage] = Planted(
            truth=np.cos(truth_angle) * axes[0] + np.sin(truth_angle) * axes[1],
            polarity=axes[2],
            refusal=np.cos(refusal_angle) * axes[3] + np.sin(refusal_angle) * axes[4],
            unembedding=unembedding + 0.002 * index * rng.normal(size=unembedding.shape),
            output_weights=output_weights + 0.02 * index * rng.normal(size=output_weights.shape),
        )
    return planted


def write_synthetic_artifact(
    root: Path,
    *,
    stages: Sequence[str] = ("base", "instruct"),
    n_layers: int = 4,
    d_model: int = 16,
    n_facts: int = 40,
    n_instructions: int = 100,
    truth_strength: float = 1.0,
    refusal_strength: float = 2.0,
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    block_rows: int | None = None,
    defaults: Mapping[str, Any] | None = None,
    only_true: Sequence[str] = (),
    empty: Sequence[str] = (),
    seed: int = 0,
) -> Path:
    """Write a complete artifact and return its folder.

    Parameters
    ----------
    root
        Folder to write into; made if it is missing.
    stages
        Names of the stages, earliest first. Neighbours differ by the planted rotations.
    n_layers, d_model
        Shape of the model. The planted shifts grow linearly from nothing at layer 0 to
        their full strength at the last layer.
    n_facts
        Facts of each statement set; each gives one true and one false statement.
    n_instructions
        Rows of ``harmful`` and of ``harmless``.
    truth_strength, refusal_strength
        Shift of each class from the middle, in standard deviations of the noise.
    dtype
        Element type of the stored activations.
    block_rows
        Rows of a block; one block if None.
    defaults
        Fields that replace those of the manifest's ``defaults``.
    only_true, empty
        Datasets that keep no false statements, and datasets that keep no rows at all.
    seed
        Of everything random.
    """
    writer = Writer(root)
    planted = plant(stages, d_model=d_model, seed=seed)
    table = _statements(n_facts, n_instructions).filter(
        ~pl.col("dataset").is_in(empty),
        ~(pl.col("dataset").is_in(only_true) & (pl.col("label") == 0)),
    )
    table = table.with_columns(row=pl.int_range(pl.len(), dtype=pl.Int32).over("dataset"))
    by_dataset = {
        name: table.filter(pl.col("dataset") == name)
        for name in (*STATEMENT_SETS, *INSTRUCTION_SETS)
    }
    parts: list[PartEntry] = []
    extras = [_parquet(writer, "tables/statements.parquet", table, "table")]
    for stage in stages:
        for number, (dataset, rows) in enumerate(by_dataset.items()):
            if rows.is_empty():
                continue
            residuals = _residuals(
                rows,
                planted[stage],
                number=number,
                stage=stages.index(stage),
                n_layers=n_layers,
                truth_strength=truth_strength,
                refusal_strength=refusal_strength,
                seed=seed,
            )
            parts.append(_part(writer, stage, dataset, rows, residuals, dtype, block_rows))
        extras.append(_parquet(writer, f"tables/tokens/{stage}.parquet", _tokens(table), "table"))
        extras.extend(_weights(writer, stage, planted[stage]))
        extras.extend(_scores(writer, stage, stages, table, n_layers))
    for source in stages:
        for target in stages:
            extras.extend(_traces(writer, source, target, by_dataset["cities"], n_layers, seed))
    layers = tuple(range(n_layers))
    chosen: dict[str, Any] = {
        "truth_layer": n_layers - 1,
        "truth_datasets": AFFIRMATIVE_SETS,
        "refusal_layer": n_layers - 1,
        "refusal_position": -1,
        "trace_datasets": ("cities",),
    }
    manifest = Manifest(
        name="synthetic",
        title="Synthetic",
        description="Planted structure for tests.",
        licence="cc0-1.0",
        card_sha256=digest(b"card"),
        stages=tuple(_stage(stage, n_layers, d_model) for stage in stages),
        datasets=tuple(
            Dataset(
                name=dataset,
                title=dataset.replace("_", " "),
                kind="statements" if dataset in STATEMENT_SETS else "instructions",
                rows=rows.height,
                positions=_positions(dataset),
                sha256=digest(dataset.encode()),
            )
            for dataset, rows in by_dataset.items()
        ),
        sites={"resid_pre": (0,), "resid_post": layers, "mlp_out": layers},
        dtype=dtype,
        compute_dtype="float32",
        parity=Parity(worst=1e-6, tolerance=1e-4, rows=8, stage=stages[0], dataset="cities"),
        defaults=Defaults(**{**chosen, **(defaults or {})}),
        versions={"ptmech": "0"},
        parts=tuple(parts),
        extras=tuple(extras),
    )
    writer.put(MANIFEST, canonical_json(manifest))
    return root


def _stage(name: str, n_layers: int, d_model: int) -> Stage:
    return Stage(
        name=name,
        title=name.capitalize(),
        model=f"synthetic/{name}",
        sha256={"model.safetensors": digest(name.encode())},
        architecture="SyntheticForCausalLM",
        n_layers=n_layers,
        d_model=d_model,
        d_mlp=D_MLP,
        vocabulary=VOCABULARY,
        tokenizer_sha256=digest(b"tokenizer"),
    )


def _positions(dataset: str) -> tuple[int, ...]:
    return INSTRUCTION_POSITIONS if dataset in INSTRUCTION_SETS else (-1,)


def _split(index: int) -> str:
    return ("train", "train", "train", "validation", "test")[index % 5]


def _statements(n_facts: int, n_instructions: int) -> pl.DataFrame:
    rows = [
        row
        for dataset in STATEMENT_SETS
        for index in range(n_facts)
        for row in _fact(dataset, index, n_facts)
    ]
    rows += [
        _row(dataset, index, f"Please do {dataset} thing number {index}.", split=_split(index))
        for dataset in INSTRUCTION_SETS
        for index in range(n_instructions)
    ]
    return pl.DataFrame(rows, schema=_TABLE_SCHEMA)


def _fact(dataset: str, index: int, n_facts: int) -> Iterator[dict[str, Any]]:
    """A true and a false statement of one fact; a negated set shares the facts of its original."""
    original = dataset.removeprefix("neg_")
    verb = "is in" if dataset == original else "is not in"
    for label in (1, 0):
        right = (dataset == original) == bool(label)
        place = index if right else (index + 1) % n_facts
        yield _row(
            dataset,
            2 * index + 1 - label,
            f"{original} S{index} {verb} P{place}.",
            label=label,
            polarity=1 if dataset == original else -1,
            pair=f"{dataset}-{index}",
            group=f"{original}-{index}",
            split=_split(index),
            subject=f"S{index}",
            object=f"P{place}",
            topic=original,
        )


def _row(dataset: str, row: int, text: str, **fields: Any) -> dict[str, Any]:
    source_id = f"{dataset}-{row}"
    return {
        "row_uid": row_uid(dataset, source_id, text),
        "dataset": dataset,
        "row": row,
        "source_id": source_id,
        "text": text,
        "group": source_id,
        **fields,
    }


def _tokens(table: pl.DataFrame) -> pl.DataFrame:
    tokens = [text.split() for text in table["text"]]
    return pl.DataFrame(
        {
            "row_uid": table["row_uid"],
            "dataset": table["dataset"],
            "token_ids": [[len(token) for token in row] for row in tokens],
            "tokens": tokens,
            "positions": [
                [max(len(row) + position, 0) for position in _positions(dataset)]
                for row, dataset in zip(tokens, table["dataset"], strict=True)
            ],
            "rendered_sha256": [digest(text.encode()) for text in table["text"]],
        },
        schema_overrides={"token_ids": pl.List(pl.Int32), "positions": pl.List(pl.Int32)},
    )


def _residuals(
    rows: pl.DataFrame,
    planted: Planted,
    *,
    number: int,
    stage: int,
    n_layers: int,
    truth_strength: float,
    refusal_strength: float,
    seed: int,
) -> np.ndarray:
    """The residual stream [1 + n_layers, rows, positions, d_model]: embeddings, then each block.

    Three quarters of the noise's variance are the same in every stage, as prompts are, and every
    dataset has a large mean of its own. The embeddings of a statement's last token never vary.
    """
    dataset = str(rows["dataset"][0])
    positions = np.asarray(_positions(dataset))
    shape = (n_layers, rows.height, positions.size, planted.truth.size)
    shared = np.random.default_rng([seed, number])
    own = np.random.default_rng([seed, number, stage])
    mean = 5 * shared.normal(size=planted.truth.size)
    noise = np.sqrt(0.75) * shared.normal(size=shape) + np.sqrt(0.25) * own.normal(size=shape)
    growth = np.linspace(0, 1, n_layers)[:, None]
    if dataset in INSTRUCTION_SETS:
        harmful = 1.0 if dataset == "harmful" else -1.0
        nearness = 1 / (1.0 + positions.max() - positions)
        shift = refusal_strength * harmful * growth * nearness
        signal = np.broadcast_to(shift[:, None, :, None] * planted.refusal, shape)
        mean = np.zeros_like(mean)
    else:
        sign = 2 * rows["label"].to_numpy() - 1.0
        denied = sign * rows["polarity"].to_numpy()
        axis = np.outer(sign, planted.truth) + np.outer(denied, planted.polarity)
        signal = truth_strength * growth[:, None, None] * axis[:, None, :]
    blocks = mean + noise + signal
    embeddings = np.broadcast_to(np.linspace(-1, 1, planted.truth.size), (1, *shape[1:]))
    return np.concatenate([embeddings, blocks])


def _part(
    writer: Writer,
    stage: str,
    dataset: str,
    rows: pl.DataFrame,
    residuals: np.ndarray,
    dtype: Literal["float32", "float16", "bfloat16"],
    block_rows: int | None,
) -> PartEntry:
    n_layers = len(residuals) - 1
    sites = {("resid_pre", 0): residuals[0]}
    for layer in range(n_layers):
        sites["resid_post", layer] = residuals[layer + 1]
        sites["mlp_out", layer] = 0.5 * (residuals[layer + 1] - residuals[layer])
    stored = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    uids = rows["row_uid"].to_numpy()
    size = block_rows or rows.height
    units: list[ActivationUnit] = []
    files: list[ActivationFile] = []
    for block, first in enumerate(range(0, rows.height, size)):
        span = slice(first, first + size)
        units.append(
            ActivationUnit(
                key=digest(f"{stage}/{dataset}/{block}".encode()),
                block=block,
                first_row=first,
                rows=len(uids[span]),
                parity=1e-6,
            )
        )
        suffix = f".{block}" if size < rows.height else ""
        for (site, layer), values in sites.items():
            tensors = {"activations": values[span].astype(stored), "row_uid": uids[span]}
            about = {"stage": stage, "dataset": dataset, "site": site, "layer": layer}
            entry = writer.put(
                f"acts/{stage}/{dataset}/{site}/L{layer:02d}{suffix}.safetensors",
                tensor_bytes(tensors, about),
            )
            files.append(
                ActivationFile(
                    **entry.model_dump(),
                    site=site,
                    layer=layer,
                    block=block,
                    rows=len(uids[span]),
                )
            )
    part = Part(
        stage=stage,
        dataset=dataset,
        rows=rows.height,
        d_model=residuals.shape[-1],
        positions=_positions(dataset),
        dtype=dtype,
        units=tuple(units),
        files=tuple(files),
    )
    entry = writer.put(f"manifests/{stage}/{dataset}.json", canonical_json(part))
    return PartEntry(
        **entry.model_dump(),
        stage=stage,
        dataset=dataset,
        rows=rows.height,
        data_bytes=sum(file.bytes for file in files),
    )


def _extra(entry: FileEntry, kind: Literal["table", "weights", "trace", "scores"]) -> Extra:
    return Extra(**entry.model_dump(), kind=kind, unit=digest(entry.path.encode()))


def _parquet(
    writer: Writer, path: str, frame: pl.DataFrame, kind: Literal["table", "weights", "scores"]
) -> Extra:
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return _extra(writer.put(path, buffer.getvalue()), kind)


def _logit_variance(output_weights: np.ndarray, unembedding: np.ndarray) -> np.ndarray:
    cosines = (output_weights / np.linalg.norm(output_weights, axis=0)).T @ (
        unembedding / np.linalg.norm(unembedding, axis=1, keepdims=True)
    ).T
    return cosines.var(axis=1, ddof=1)


def _weights(writer: Writer, stage: str, planted: Planted) -> list[Extra]:
    output_weights, unembedding = planted.output_weights, planted.unembedding
    mean_row = unembedding.mean(axis=0)
    centred = unembedding - mean_row
    gamma = np.linspace(0.5, 1.5, unembedding.shape[1])
    _, singular_values, right = np.linalg.svd(centred, full_matrices=False)
    norms = np.linalg.norm(output_weights, axis=0)
    lowest = right[-2:] @ output_weights
    neurons = pl.DataFrame(
        {
            "neuron": np.arange(D_MLP, dtype=np.int32),
            "norm": norms,
            "logit_variance_raw": _logit_variance(output_weights, unembedding / gamma),
            "logit_variance_folded": _logit_variance(output_weights, unembedding),
            "logit_variance_folded_centered": _logit_variance(output_weights, centred),
            "null_space_fraction": np.linalg.norm(lowest, axis=0) / norms,
        }
    )
    statistics = tensor_bytes(
        {"singular_values": singular_values, "mean_row": mean_row}, {"stage": stage}
    )
    return [
        _parquet(writer, f"weights/{stage}/neurons.parquet", neurons, "weights"),
        _extra(writer.put(f"weights/{stage}/unembedding.safetensors", statistics), "weights"),
    ]


def trace_grid(n_layers: int) -> np.ndarray:
    """The planted logit differences [n_layers, tokens], without noise.

    The subject's last token carries the fact in the lower half of the layers, the last token in
    the upper half; no other token carries anything.
    """
    grid = np.full((n_layers, len(TRACE_TOKENS)), UNPATCHED_LOGIT_DIFFERENCE)
    grid[: n_layers // 2, TRACE_ROLES.index("subject_last")] = SOURCE_LOGIT_DIFFERENCE
    grid[n_layers // 2 :, TRACE_ROLES.index("last")] = SOURCE_LOGIT_DIFFERENCE
    return grid


def _traces(
    writer: Writer, source: str, target: str, cities: pl.DataFrame, n_layers: int, seed: int
) -> list[Extra]:
    rng = np.random.default_rng([seed, *source.encode(), *target.encode()])
    truths = cities.filter(pl.col("label") == 1)["row_uid"].to_list()
    pairs = [
        {"true_uid": truths[pair % len(truths)], "false_uid": truths[(pair + 1) % len(truths)]}
        for pair in range(TRACE_PAIRS)
    ]
    grid = trace_grid(n_layers) + 0.1 * rng.normal(size=(TRACE_PAIRS, n_layers, len(TRACE_TOKENS)))
    arrays = {
        "grid": grid,
        "unpatched": UNPATCHED_LOGIT_DIFFERENCE + 0.1 * rng.normal(size=TRACE_PAIRS),
        "source": SOURCE_LOGIT_DIFFERENCE + 0.1 * rng.normal(size=TRACE_PAIRS),
    }
    files: dict[str, Buffer] = {}
    group = zarr.create_group(MemoryStore(files), zarr_format=3)
    group.attrs.update(
        {
            "form": "completion",
            "source": source,
            "target": target,
            "dataset": "cities",
            "tokens": list(TRACE_TOKENS),
            "roles": list(TRACE_ROLES),
            "pairs": pairs,
            "known": {source: 0.77, target: 0.77},
        }
    )
    for name, values in arrays.items():
        group.create_array(name, data=values.astype(np.float32), compressors=[Crc32cCodec()])
    folder = f"traces/{source}-{target}/cities.zarr"
    return [
        _extra(writer.put(f"{folder}/{key}", value.to_bytes()), "trace")
        for key, value in sorted(files.items())
    ]


_RATES: Mapping[tuple[str, str, str], float] = {
    ("harmful", "none", "none"): 0.9,
    ("harmful", "ablate", "own"): 0.1,
    ("harmful", "ablate", "transferred"): 0.5,
    ("harmful", "ablate", "random"): 0.85,
    ("harmless", "none", "none"): 0.05,
    ("harmless", "add", "own"): 0.9,
    ("harmless", "add", "transferred"): 0.4,
    ("harmless", "add", "transferred_own_length"): 0.5,
    ("harmless", "add", "random"): 0.05,
}
"""Planted refusal rates by prompts, intervention and direction."""


def _wilson(successes: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    rate = successes / n
    centre = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    return float(centre - half), float(centre + half)


TRUTH_EFFECTS: Mapping[str, float] = {"own": 0.8, "transferred": 0.7, "random": 0.01}
"""Planted effects of truth directions."""


def _truth_effects(stage: str, other: str | None, n_layers: int) -> list[dict[str, Any]]:
    sources = {"own": stage, "transferred": other, "random": None}
    return [
        {
            "stage": stage,
            "direction": direction,
            "direction_stage": sources[direction],
            "dataset": "cities",
            "layer": n_layers - 1,
            "layers": [n_layers - 2, n_layers - 1],
            "length": 2.0,
            "n": 40,
            "p_true_before": 0.9,
            "p_false_before": -0.9,
            "auroc_before": 0.98,
            "answered_before": 0.99,
            "p_true_after": 0.9 - 1.9 * effect,
            "p_false_after": -0.9 + 1.9 * effect,
            "answered_after": 0.97,
            **{
                f"{name}{end}": effect + shift
                for name in ("effect_true_to_false", "effect_false_to_true", "effect")
                for end, shift in (("", 0.0), ("_low", -0.05), ("_high", 0.05))
            },
        }
        for direction, effect in TRUTH_EFFECTS.items()
        if direction != "transferred" or other is not None
    ]


NEURON_EFFECTS: Mapping[tuple[str, str], tuple[float, float]] = {
    ("chosen", "one"): (0.06, 0.02),
    ("chosen", "each"): (0.06, 0.02),
    ("chosen", "together"): (0.17, 0.05),
    ("random", "one"): (0.004, 0.0038),
    ("random", "each"): (0.004, 0.0038),
    ("random", "together"): (0.011, 0.0105),
}
"""Planted total and direct effects of neurons on the entropy, by group and ablation."""


def _neuron_effects(stage: str, n_layers: int) -> list[dict[str, Any]]:
    members = {"chosen": ENTROPY_NEURONS, "random": (3, 11, 50)}
    rows: list[dict[str, Any]] = []
    for (group, ablated), (total, direct) in NEURON_EFFECTS.items():
        sizes = {"total": total, "direct": direct, "norm": total - direct}
        share = {"share": 1 - direct / total}
        for neuron in members[group] if ablated == "one" else (None,):
            for measure in ("entropy", "loss"):
                rows += [
                    {
                        "stage": stage,
                        "layer": n_layers - 1,
                        "neurons": group,
                        "ablated": ablated,
                        "neuron": neuron,
                        "measure": measure,
                        "effect": effect,
                        "texts": 4,
                        "tokens": 300,
                        "unedited": 3.1,
                        **{
                            f"{name}{end}": value * factor
                            for name, value in {
                                "change": size / 2,
                                "absolute": size,
                                **(share if effect == "norm" else {}),
                            }.items()
                            for end, factor in (("", 1.0), ("_low", 0.9), ("_high", 1.1))
                        },
                    }
                    for effect, size in sizes.items()
                ]
    return rows


def _scores(
    writer: Writer, stage: str, stages: Sequence[str], table: pl.DataFrame, n_layers: int
) -> list[Extra]:
    other = next(name for name in reversed(stages) if name != stage) if len(stages) > 1 else None
    scores: list[dict[str, Any]] = []
    completions: list[dict[str, Any]] = []
    for (prompts, intervention, direction), rate in _RATES.items():
        transferred = direction.startswith("transferred")
        if transferred and other is None:
            continue
        rows = table.filter(pl.col("dataset") == prompts, pl.col("split") == "test")
        refusals = round(rate * rows.height)
        low, high = _wilson(refusals, rows.height)
        condition = {
            "stage": stage,
            "prompts": prompts,
            "intervention": intervention,
            "direction": direction,
            "direction_stage": other if transferred else stage if direction == "own" else None,
        }
        scale = 1.0 if intervention == "add" else None
        scores.append(
            {
                **condition,
                "layer": None if intervention == "none" else n_layers - 1,
                "scale": scale,
                "length": 1.0 if intervention == "add" else None,
                "n": rows.height,
                "refusals": refusals,
                "refusal_rate": refusals / rows.height,
                "low": low,
                "high": high,
                "plain_text_loss": 2.7 if intervention == "none" else 2.9,
            }
        )
        completions.extend(
            {
                **condition,
                "scale": scale,
                "row_uid": uid,
                "completion": "I'm sorry, but no." if index < refusals else "Here you are.",
                "refused": index < refusals,
            }
            for index, uid in enumerate(rows["row_uid"])
        )
    nullable = {"direction_stage": pl.String}
    candidates = [
        {
            "position": position,
            "layer": layer,
            "norm": 1.0 + layer,
            "refusal_score": -1.0 * layer + 0.1 * position if layer else None,
            "steering_score": layer - 1.5 if layer else None,
            "kl_div_score": 0.03 * layer if layer else None,
            "harmful_baseline": 2.0,
            "harmless_baseline": -6.0,
            "n_harmful": 8,
            "n_harmless": 8,
        }
        for position in INSTRUCTION_POSITIONS
        for layer in range(n_layers)
    ]
    return [
        _parquet(
            writer,
            f"scores/{stage}/truth.parquet",
            pl.DataFrame(_truth_effects(stage, other, n_layers), schema_overrides=nullable),
            "scores",
        ),
        _parquet(
            writer,
            f"scores/{stage}/neurons.parquet",
            pl.DataFrame(_neuron_effects(stage, n_layers), infer_schema_length=None),
            "scores",
        ),
        _parquet(
            writer,
            f"scores/{stage}/directions.parquet",
            pl.DataFrame(candidates, infer_schema_length=None),
            "scores",
        ),
        _parquet(
            writer,
            f"scores/{stage}/refusal.parquet",
            pl.DataFrame(scores, schema_overrides={**nullable, "scale": pl.Float64}),
            "scores",
        ),
        _parquet(
            writer,
            f"scores/{stage}/completions.parquet",
            pl.DataFrame(
                completions,
                schema_overrides={**nullable, "scale": pl.Float64, "row_uid": pl.UInt64},
            ),
            "scores",
        ),
    ]
