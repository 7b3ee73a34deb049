"""Every hostile or broken artifact, by family: what is done to it, and what must come of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests.faults.hostile_cases import (
    cards,
    documents,
    grids,
    measured,
    paths,
    rows,
    tables,
    tensors,
)
from tests.faults.hostile_cases.case import Case

FAMILIES: Mapping[str, Sequence[Case]] = {
    "json": documents.JSON,
    "numbers": documents.NUMBERS,
    "texts": documents.TEXTS,
    "paths": paths.PATHS,
    "links": paths.LINKS,
    "references": paths.REFERENCES,
    "safetensors": tensors.SAFETENSORS,
    "pickles": tensors.PICKLES,
    "parquet": tables.PARQUET,
    "columns": tables.COLUMNS,
    "zarr": grids.ZARR,
    "traces": grids.TRACES,
    "rows": rows.ROWS,
    "measured": measured.MEASURED,
    "summary": measured.SUMMARY,
    "cards": cards.CARDS,
}
CASES: Mapping[str, Case] = {
    f"{family}: {case.name}": case for family, cases in FAMILIES.items() for case in cases
}
