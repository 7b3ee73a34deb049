"""Running the models of an artifact again, on a sample, and comparing the numbers themselves.

Digests say that bytes are those of the build. That these were the right bytes, only the models can
say: here sampled rows are rendered, tokenised and run as transformers alone runs them, and every
stored number of theirs is compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
from tqdm import tqdm

from ptmech._verification.activations import described
from ptmech._verification.faults import Fault
from ptmech.artifact import Artifact
from ptmech.errors import IntegrityError, PtmechError, unknown
from ptmech.live.model import LiveModel
from ptmech.live.opening import open as open_stage
from ptmech.live.recording import PARITY_TOLERANCE
from ptmech.live.row_comparison import (
    Prompt,
    compare_row,
    faults_of,
    prompts_of,
    sampled,
    tokenised_otherwise,
)
from ptmech.live.weight_statistics import (
    CONVENTIONS,
    STANDARD,
    neuron_statistics,
    unembedding_statistics,
    unembedding_tensors,
)
from ptmech.manifest import (
    MANIFEST,
    ActivationFile,
    ActivationUnit,
    Part,
    Stage,
)
from ptmech.storage import read_tensors

NEURONS_SAMPLED: Final = 256

_SMALLEST: Final = 1e-30


@dataclass
class Recomputation:
    """What recomputing a sample of an artifact has shown.

    Attributes
    ----------
    faults
        What differs from the models.
    skipped
        One line for each stage whose model could not be opened, with the reason.
    unchecked
        One line for each kind of numbers that no model was asked for.
    rows, files, numbers
        How many rows were run, and how many files and numbers were compared.
    worst
        Largest relative deviation of an activation: the largest absolute difference within a row
        and position, over the largest absolute value there.
    where
        Which file and row that was.
    """

    faults: list[Fault] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    rows: int = 0
    files: int = 0
    numbers: int = 0
    worst: float = 0.0
    where: str = ""

    def __str__(self) -> str:
        counted = f"{self.rows} rows, {self.files} files, {self.numbers:,} numbers"
        worst = f"; worst deviation {self.worst:.2g} ({self.where})" if self.where else ""
        return f"recomputed: {counted}{worst}"


def recompute(
    artifact: Artifact,
    *,
    rows: int,
    device: str = "auto",
    folders: Mapping[str, Path] | None = None,
    adapters: Mapping[str, Path] | None = None,
    leave_out: Collection[str] = (),
) -> Recomputation:
    """Recompute a sample of an artifact; see :func:`ptmech.verify.verify_deep`.

    Parameters
    ----------
    artifact
        What is checked.
    rows
        How many rows of each block. Their ids decide which: the same ones every time.
    device
        A torch device, or ``"auto"``.
    folders
        Where the weights are, by stage, of stages that were built from a folder.
    adapters
        Where the adapters are, by stage, that may not be part of the artifact.
    leave_out
        Paths of files that are known to be at fault.

    Raises
    ------
    UnknownNameError
        If a folder or an adapter is given for a stage that does not exist.
    """
    places = {
        stage.name: (
            None if folders is None else folders.get(stage.name),
            None if adapters is None else adapters.get(stage.name),
        )
        for stage in artifact.manifest.stages
    }
    for stage in {**(folders or {}), **(adapters or {})}:
        if stage not in artifact.stages:
            raise unknown("stage", stage, artifact.stages)
    found = Recomputation()
    for stage in artifact.manifest.stages:
        try:
            _recompute_stage(artifact, stage, device, places[stage.name], rows, leave_out, found)
        except PtmechError as error:
            found.skipped.append(f"stage {stage.name!r} was not recomputed: {error}")
    for folder, what in (("scores/", "scores"), ("traces/", "causal traces")):
        if files := artifact.extras(folder):
            found.unchecked.append(f"not recomputed: {what} ({len(files)} files of {folder})")
    return found


def _recompute_stage(
    artifact: Artifact,
    stage: Stage,
    device: str,
    places: tuple[Path | None, Path | None],
    rows: int,
    leave_out: Collection[str],
    found: Recomputation,
) -> None:
    """Open a stage and compare what is stored of it; its model is gone when this returns."""
    try:
        folder, adapter = places
        model = open_stage(artifact, stage.name, device=device, folder=folder, adapter=adapter)
    except IntegrityError as error:  # had, and not what the manifest says
        found.faults.append(Fault(MANIFEST, str(error)))
        return
    _recompute_rows(artifact, stage, model, rows, leave_out, found)
    _recompute_weights(artifact, stage, model, leave_out, found)


def _recompute_rows(
    artifact: Artifact,
    stage: Stage,
    model: LiveModel,
    n_rows: int,
    leave_out: Collection[str],
    found: Recomputation,
) -> None:
    statements, tokens = artifact.statements(), artifact.tokens(stage.name)
    parts = [
        artifact.part(entry.dataset, entry.stage)
        for entry in artifact.manifest.parts
        if entry.stage == stage.name and entry.path not in leave_out
    ]
    blocks = [(part, unit) for part in parts for unit in part.units]
    for part, unit in tqdm(blocks, desc=f"{stage.name}: recomputing", leave=False, disable=None):
        mine = statements.filter(pl.col("dataset") == part.dataset)
        chosen = sampled(mine["row_uid"].to_numpy(), unit, n_rows)
        prompts = prompts_of(model, artifact.manifest, part, chosen, mine[chosen], tokens)
        found.faults.extend(tokenised_otherwise(model, part, prompts))
        files = [
            file for file in part.files if file.block == unit.block and file.path not in leave_out
        ]
        _compare_block(artifact, model, part, unit, files, prompts, found)


def _compare_block(
    artifact: Artifact,
    model: LiveModel,
    part: Part,
    unit: ActivationUnit,
    files: Sequence[ActivationFile],
    prompts: Sequence[Prompt],
    found: Recomputation,
) -> None:
    """Run the sampled rows of a block and compare each of its files."""
    arrays: dict[ActivationFile, np.ndarray] = {}
    for file in files:
        try:
            values = read_tensors(artifact.path(file)).get("activations")
        except PtmechError as error:
            found.faults.append(Fault(file.path, str(error)))
            continue
        if values is not None and values.shape == (unit.rows, len(part.positions), part.d_model):
            arrays[file] = values
    if not arrays:
        return
    wrong: dict[ActivationFile, list[tuple[int, float]]] = {}
    for prompt in prompts:
        compared = compare_row(artifact.manifest, model, part, unit, arrays, prompt)
        found.rows += bool(compared)
        for file, (deviation, numbers, faulty) in compared.items():
            found.numbers += numbers
            if deviation > found.worst or not found.where:
                found.worst, found.where = deviation, f"{file.path}, row {prompt.number}"
            if faulty:
                wrong.setdefault(file, []).append((prompt.number, deviation))
    found.files += len(arrays)
    found.faults.extend(faults_of(artifact.manifest, part, unit, len(arrays), len(prompts), wrong))


def _recompute_weights(
    artifact: Artifact,
    stage: Stage,
    model: LiveModel,
    leave_out: Collection[str],
    found: Recomputation,
) -> None:
    """Compare the statistics of the unembedding, and those of sampled neurons."""
    folder = f"weights/{stage.name}"
    neurons, unembedding = f"{folder}/neurons.parquet", f"{folder}/unembedding.safetensors"
    entry = artifact.extra(unembedding)
    if entry is None:
        if artifact.extra(neurons) is not None:
            found.unchecked.append(f"not recomputed: {neurons}, without {unembedding} beside it")
        return
    if unembedding in leave_out:
        return
    changed = any(name.startswith("adapter/") for name in stage.sha256)
    tolerance = PARITY_TOLERANCE[artifact.manifest.compute_dtype if changed else "float32"]
    path = artifact.path(entry)
    with_neurons = artifact.extra(neurons) is not None and neurons not in leave_out
    conventions = CONVENTIONS if with_neurons else (STANDARD,)
    statistics = unembedding_statistics(model.sites, conventions)
    _compare_statistics(
        unembedding, read_tensors(path), unembedding_tensors(statistics), tolerance, found
    )
    if not with_neurons:
        return
    table = artifact.table(neurons)
    drawn = sorted(range(table.height), key=lambda row: hashlib.sha256(b"%d" % row).digest())
    chosen = np.sort(np.array(drawn[:NEURONS_SAMPLED], dtype=np.intp))
    k = described(path).get("null_space_k")
    k = k if isinstance(k, int) and 1 <= k < model.d_model else None
    recomputed = neuron_statistics(model.sites, statistics, k, chosen)
    stored = {each.name: each.to_numpy() for each in table[chosen]}
    expected = {each.name: each.to_numpy() for each in recomputed}
    _compare_statistics(neurons, stored, expected, tolerance, found)


def _compare_statistics(
    path: str,
    stored: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    tolerance: float,
    found: Recomputation,
) -> None:
    """Compare figures, each relative to the largest of its kind: one fault a file."""
    found.files += 1
    for name, values in expected.items():
        found.numbers += values.size
        there = stored.get(name)
        if there is None or there.shape != values.shape:
            found.faults.append(Fault(path, f"{name} is not of shape {values.shape}"))
            return
        difference = np.abs(there - values) / max(float(np.abs(values).max()), _SMALLEST)
        worst = float(np.nan_to_num(difference, nan=np.inf).max())
        if not worst <= tolerance:
            found.faults.append(
                Fault(
                    path,
                    f"{name} deviates by {worst:.2g} from the model's weights, more than "
                    f"{tolerance:.2g}",
                )
            )
            return
