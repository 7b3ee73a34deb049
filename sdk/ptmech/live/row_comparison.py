"""Rows of an artifact beside what their model makes of them now: text, tokens and activations."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import ml_dtypes
import numpy as np
import polars as pl
from numpy.typing import NDArray

from ptmech._verification.faults import Fault
from ptmech.live.model import LiveModel
from ptmech.live.plain_forward import plain_forward
from ptmech.live.recording import PARITY_TOLERANCE
from ptmech.live.templates import encoded
from ptmech.manifest import (
    ActivationFile,
    ActivationUnit,
    Manifest,
    Part,
    StoredDtype,
)

_NUMPY_DTYPES: Final[Mapping[StoredDtype, Any]] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}
_SMALLEST: Final = 1e-30


class Prompt(NamedTuple):
    """A row as it is stored, and as it is when it is rendered and tokenised again."""

    number: int
    stored: Mapping[str, Any]
    rendered: str
    token_ids: list[int]


class Comparison(NamedTuple):
    """One row of one file beside the model: how far off it is, and whether that is too far."""

    deviation: float
    numbers: int
    faulty: bool


def sampled(uids: NDArray[np.uint64], unit: ActivationUnit, n: int) -> NDArray[np.intp]:
    """Choose rows of a block: those of the smallest digests, the same ones wherever they stand.

    Parameters
    ----------
    uids
        Row ids of the dataset [rows].
    unit
        The block.
    n
        How many.

    Returns
    -------
    numpy.ndarray
        Numbers of the rows within the dataset, in their order.
    """
    rows = np.arange(unit.first_row, min(unit.first_row + unit.rows, uids.size))
    drawn = sorted(rows, key=lambda row: hashlib.sha256(uids[row].tobytes()).digest())
    return np.sort(np.array(drawn[:n], dtype=np.intp))


def prompts_of(
    model: LiveModel,
    manifest: Manifest,
    part: Part,
    numbers: NDArray[np.intp],
    rows: pl.DataFrame,
    tokens: pl.DataFrame,
) -> list[Prompt]:
    """Render and tokenise rows again, beside what is stored of them."""
    texts: list[str] = rows["text"].to_list()
    dataset = manifest.dataset(part.dataset)
    if not texts:
        return []
    if dataset is None or dataset.kind == "statements":
        rendered, token_ids = texts, encoded(model.tokenizer, texts)
    else:
        rendered, token_ids = model.template.render(model.tokenizer, texts, model.name)
    uids = rows["row_uid"].to_list()
    stored = {
        row["row_uid"]: row
        for row in tokens.filter(pl.col("row_uid").is_in(uids)).iter_rows(named=True)
    }
    return [
        Prompt(int(number), stored.get(uid, {}), text, ids)
        for number, uid, text, ids in zip(numbers, uids, rendered, token_ids, strict=True)
    ]


def tokenised_otherwise(model: LiveModel, part: Part, prompts: Sequence[Prompt]) -> Iterator[Fault]:
    """Compare stored tokens with those of now: one fault a dataset, for the first row."""
    path = f"tables/tokens/{part.stage}.parquet"
    wrong = [(prompt, said) for prompt in prompts if (said := _difference(model, part, prompt))]
    if wrong:
        prompt, said = wrong[0]
        yield Fault(
            path,
            f"{part.dataset}: row {prompt.number} {said} ({len(wrong)} of {len(prompts)} sampled "
            "rows differ)",
        )


def _difference(model: LiveModel, part: Part, prompt: Prompt) -> str:
    """Say what differs first; the rest follows from it."""
    stored, ids = prompt.stored, prompt.token_ids
    if not stored:
        return "is not there"
    if stored["rendered_sha256"] != hashlib.sha256(prompt.rendered.encode()).hexdigest():
        return "was rendered as another text than the stage's template makes of it"
    if stored["token_ids"] != ids:
        return "has other token ids than the tokenizer makes of it"
    if stored["tokens"] != model.tokenizer.convert_ids_to_tokens(ids):
        return "has tokens whose texts are not those of its token ids"
    if stored["positions"] != [len(ids) + position for position in part.positions]:
        return "has positions that are not counted from its end"
    return ""


def compare_row(
    manifest: Manifest,
    model: LiveModel,
    part: Part,
    unit: ActivationUnit,
    arrays: Mapping[ActivationFile, np.ndarray],
    prompt: Prompt,
) -> dict[ActivationFile, Comparison]:
    """Compare one row in all files with the model.

    Where other token ids are stored than are made now, a fault by itself, activations that belong
    to the stored ones are not another.
    """
    wanted = [(file.site, file.layer) for file in arrays]
    best: dict[ActivationFile, Comparison] = {}
    for ids in _candidates(prompt, model.sites.vocabulary):
        indices = [len(ids) + position for position in part.positions]
        if min(indices) < 0:
            continue
        plain = plain_forward(model.sites, ids, indices, wanted)
        compared = {
            file: _compare(
                np.asarray(values[prompt.number - unit.first_row]),
                plain[file.site, file.layer].numpy(),
                manifest,
            )
            for file, values in arrays.items()
        }
        if not best or _faulty(compared) < _faulty(best):
            best = compared
        if not _faulty(best):
            break
    return best


def _candidates(prompt: Prompt, vocabulary: int) -> Iterator[list[int]]:
    """Go through the token ids that a row may have been run with: those of now, then the stored."""
    yield prompt.token_ids
    stored: list[int] = prompt.stored.get("token_ids") or []
    if stored and stored != prompt.token_ids and 0 <= min(stored) <= max(stored) < vocabulary:
        yield stored


def _compare(stored: np.ndarray, plain: NDArray[np.float32], manifest: Manifest) -> Comparison:
    """Compare the stored positions of a row [positions, d_model] with those of the model.

    They may deviate as much as the manifest says, and no stored number may be another than some
    number within what computing varies by, rounded to the stored type.
    """
    largest = np.maximum(np.abs(plain).max(axis=-1, keepdims=True), _SMALLEST)
    values = stored.astype(np.float32)
    relative = np.abs(values - plain) / largest
    deviation = float(np.nan_to_num(relative, nan=np.inf).max())
    slack = largest * _varies_by(manifest)
    with np.errstate(over="ignore"):  # beyond the largest number of the type lies infinity
        lowest, highest = (
            edge.astype(_NUMPY_DTYPES[manifest.dtype]).astype(np.float32)
            for edge in (plain - slack, plain + slack)
        )
    within = bool(((lowest <= values) & (values <= highest)).all())
    return Comparison(deviation, stored.size, not (deviation <= _tolerance(manifest) and within))


def _faulty(compared: Mapping[ActivationFile, Comparison]) -> int:
    return sum(comparison.faulty for comparison in compared.values())


def _usual(manifest: Manifest) -> float:
    return max(PARITY_TOLERANCE[manifest.dtype], PARITY_TOLERANCE[manifest.compute_dtype])


def _tolerance(manifest: Manifest) -> float:
    """By how much the build let stored rows deviate."""
    return _usual(manifest) if manifest.parity is None else manifest.parity.tolerance


def _varies_by(manifest: Manifest) -> float:
    """By how much computing itself varies; a card that allows more than usual knows why."""
    allowed = _tolerance(manifest)
    computing = PARITY_TOLERANCE[manifest.compute_dtype]
    return allowed if allowed > _usual(manifest) else min(allowed, computing)


def faults_of(
    manifest: Manifest,
    part: Part,
    unit: ActivationUnit,
    n_files: int,
    n_rows: int,
    wrong: Mapping[ActivationFile, Sequence[tuple[int, float]]],
) -> Iterator[Fault]:
    """Make one fault a file; one in all where every file of the block is wrong."""
    tolerance = _tolerance(manifest)
    worst = {file: max(rows, key=lambda row: row[1]) for file, rows in wrong.items()}
    if n_files > 1 and len(wrong) == n_files:
        row, deviation = max(worst.values(), key=lambda found: found[1])
        yield Fault(
            f"manifests/{part.stage}/{part.dataset}.json",
            f"none of the {n_files} files of block {unit.block} holds what the model computes: row "
            f"{row} deviates by {deviation:.2g}",
        )
        return
    for file, rows in wrong.items():
        row, deviation = worst[file]
        limit = (
            f"more than {tolerance:.2g}"
            if not deviation <= tolerance
            else f"more than rounding to {manifest.dtype} explains"
        )
        others = f" ({len(rows)} of {n_rows} sampled rows do)" if len(rows) > 1 else ""
        yield Fault(
            file.path, f"row {row} deviates by {deviation:.2g} from the model, {limit}{others}"
        )
