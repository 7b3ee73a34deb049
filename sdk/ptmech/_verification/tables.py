"""The tables of ``tables/``: the prompts, what tokenizers made of them, and plain texts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Final

import numpy as np
import polars as pl

from ptmech._schemas import STATEMENTS
from ptmech._verification.columns import STATEMENT_RULES, TOKEN_RULES, Rules, fits
from ptmech._verification.inspection import Inspection
from ptmech._verification.rows import Claim, Rows
from ptmech.alignment import row_uids
from ptmech.manifest import Dataset, Stage

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_PLAIN_TEXT: Final = "tables/plain_text.parquet"


def check_statements(inspection: Inspection) -> Rows:
    """Check the table of prompts, and return the rows that every other file has to have.

    Row ids are what their rows make them, each once; ``row`` counts from 0 within each dataset;
    there are as many rows as promised; statements are true or false.
    """
    table = inspection.table(STATEMENTS)
    if table is None or not fits(inspection, STATEMENTS, table, STATEMENT_RULES):
        return Rows({}, set())
    listed: dict[str, np.ndarray] = {}
    doubtful: set[str] = set()
    for (name,), rows in table.group_by("dataset", maintain_order=True):
        listed[str(name)] = rows["row_uid"].fill_null(0).to_numpy()
        dataset = inspection.manifest.dataset(str(name))
        if dataset is None:
            inspection.add(STATEMENTS, f"{rows.height} rows of {name!r}, which is no dataset")
        elif problems := list(_rows_of(dataset, rows)):
            doubtful.add(dataset.name)
            for problem in problems:
                inspection.add(STATEMENTS, problem)
    for dataset in inspection.manifest.datasets:
        if dataset.name not in listed:
            inspection.add(STATEMENTS, f"0 rows of {dataset.name} where the manifest has more")
    return Rows(listed, doubtful)


def check_tokens(inspection: Inspection, rows: Rows) -> None:
    """Check each stage's tokens: the same rows, ids of its vocabulary, positions from the end."""
    for stage in inspection.manifest.stages:
        path = f"tables/tokens/{stage.name}.parquet"
        table = inspection.table(path)
        if table is None or not fits(inspection, path, table, TOKEN_RULES):
            continue
        uids = table["row_uid"].fill_null(0)
        for dataset in inspection.manifest.datasets:
            mine = table["dataset"] == dataset.name
            of_dataset = uids.filter(mine).to_numpy()
            rows.claim(dataset.name, Claim(path, path, 0, of_dataset))
            for problem in _tokens_of(stage, dataset, table.filter(mine)):
                inspection.add(path, problem)
        strangers = set(table["dataset"].drop_nulls()) - set(inspection.artifact.datasets)
        for name in sorted(strangers):
            inspection.add(path, f"tokens of {name!r}, which is no dataset")
    _check_rendered(inspection, rows)


def check_plain_text(inspection: Inspection) -> None:
    """Check the ordinary texts that coherence is measured on."""
    table = inspection.table(_PLAIN_TEXT)
    if table is not None:
        fits(inspection, _PLAIN_TEXT, table, Rules({"text": pl.String}))


def _rows_of(dataset: Dataset, rows: pl.DataFrame) -> Iterator[str]:
    if rows.height != dataset.rows:
        yield f"{rows.height} rows of {dataset.name} where the manifest has {dataset.rows}"
    if rows["row"].to_list() != list(range(rows.height)):
        yield f"rows of {dataset.name} are not numbered from 0 in their order"
    filled = rows.select(
        pl.col("row_uid").fill_null(0), pl.col("dataset", "source_id", "text").fill_null("")
    )
    own = row_uids(filled["dataset"], filled["source_id"], filled["text"])
    wrong = np.flatnonzero((filled["row_uid"].to_numpy() != own) | (own == 0))
    if wrong.size:
        first = filled["source_id"][int(wrong[0])]
        yield f"{wrong.size} rows of {dataset.name} do not match their row_uid, first {first!r}"
    if doubled := rows.height - rows["row_uid"].n_unique():
        yield f"{doubled} rows of {dataset.name} share their row_uid with another"
    if dataset.kind == "statements" and (unlabelled := rows["label"].null_count()):
        yield f"{unlabelled} statements of {dataset.name} are neither true nor false"


def _tokens_of(stage: Stage, dataset: Dataset, tokens: pl.DataFrame) -> Iterator[str]:
    """Find what a tokenizer cannot have made of a dataset."""
    lengths = tokens["token_ids"].list.len().cast(pl.Int64)
    if not (lengths == tokens["tokens"].list.len()).all():
        yield f"{dataset.name}: a row has more token ids than tokens, or fewer"
    ids = tokens["token_ids"].explode(empty_as_null=False).drop_nulls()
    if len(ids) and not ids.is_between(0, stage.vocabulary - 1).all():
        yield f"{dataset.name}: token ids outside of the vocabulary of {stage.vocabulary}"
    if not tokens["rendered_sha256"].str.contains(f"^{_SHA256.pattern}$").all():
        yield f"{dataset.name}: a sha256 of a rendered text is none"
    for number, (length, stored) in enumerate(zip(lengths, tokens["positions"], strict=True)):
        expected = [(length or 0) + position for position in dataset.positions]
        if stored is None or stored.to_list() != expected or min(expected, default=0) < 0:
            said = None if stored is None else stored.to_list()
            yield (
                f"{dataset.name}: row {number} has positions {said} where its {length} tokens "
                f"make them {expected}"
            )
            return


def _check_rendered(inspection: Inspection, rows: Rows) -> None:
    """Check that statements went to the tokenizer as they are."""
    statements = inspection.table(STATEMENTS)
    if statements is None or not {"row_uid", "text", "dataset"} <= set(statements.columns):
        return
    plain = {
        dataset.name
        for dataset in inspection.manifest.datasets
        if dataset.kind == "statements" and dataset.name not in rows.doubtful
    }
    texts = {
        uid: text
        for uid, text, dataset in statements.select("row_uid", "text", "dataset").iter_rows()
        if dataset in plain
    }
    for stage in inspection.manifest.stages:
        path = f"tables/tokens/{stage.name}.parquet"
        table = inspection.table(path)
        if table is None or not {"row_uid", "rendered_sha256"} <= set(table.columns):
            continue
        other = [
            uid
            for uid, digest in table.select("row_uid", "rendered_sha256").iter_rows()
            if uid in texts and digest != hashlib.sha256(str(texts[uid]).encode()).hexdigest()
        ]
        if other:
            inspection.add(
                path,
                f"{len(other)} statements were rendered as another text, first "
                f"{inspection.artifact.row_name(other[0])}",
            )
