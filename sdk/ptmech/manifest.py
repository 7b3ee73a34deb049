"""The schema of everything in an artifact that is not a number.

``manifest.json`` is the only entry point of an artifact: it names the stages, the datasets, the
sites and every file, directly or through the part manifests ``manifests/<stage>/<dataset>.json``.
Readers never list a folder. All JSON is canonical (sorted keys, UTF-8, one trailing newline), so
that the same content has the same sha256.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ptmech.errors import FormatError
from ptmech.model_sources import HubModel, PackagedModel

FORMAT = 1
"""The artifact format this version writes, and the newest it reads."""

MANIFEST = "manifest.json"
MAX_JSON_BYTES = 64 * 2**20

StoredDtype = Literal["float32", "float16", "bfloat16"]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

_PATH_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


class Schema(BaseModel):
    """Base of all schemas: immutable, and strict about keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(Schema):
    """One file of the artifact: where it is, and which bytes it must have."""

    path: str
    bytes: Annotated[int, Field(ge=0)]
    sha256: Sha256

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, path: str) -> str:
        if not all(_PATH_SEGMENT.fullmatch(segment) for segment in path.split("/")):
            raise ValueError(f"not a plain relative path: {path!r}")
        return path


class ActivationFile(FileEntry):
    """Activations of one site and layer for one block of rows."""

    site: str
    layer: Annotated[int, Field(ge=0)]
    block: Annotated[int, Field(ge=0)]
    rows: Annotated[int, Field(ge=1)]


class ActivationUnit(Schema):
    """One unit of work: a block of rows that went through the model together."""

    key: Sha256
    block: int
    first_row: int
    rows: int
    parity: float
    """Worst relative deviation of sampled rows from a plain forward, batch of one."""


class Part(Schema):
    """``manifests/<stage>/<dataset>.json``: one dataset as one stage saw it."""

    format: int = FORMAT
    stage: Name
    dataset: Name
    rows: int
    d_model: int
    positions: tuple[int, ...]
    dtype: StoredDtype
    units: tuple[ActivationUnit, ...]
    files: tuple[ActivationFile, ...]


class Stage(Schema):
    """A model of the family, at one point of its post-training."""

    name: Name
    title: str
    model: str
    """Where the weights come from, at which revision; never a path of the building machine."""
    source: PackagedModel | HubModel | None = None
    """The same for :func:`ptmech.live.open`; None where they came from a folder."""
    sha256: Mapping[str, Sha256]
    """Digest of each file that makes the weights, by name."""
    architecture: str
    n_layers: int
    d_model: int
    d_mlp: int
    vocabulary: int
    tokenizer_sha256: Sha256
    note: str = ""


class Dataset(Schema):
    """A set of rows, the same prompts for every stage."""

    name: Name
    title: str
    kind: Literal["statements", "instructions"]
    rows: int
    positions: tuple[int, ...]
    sha256: Sha256
    """Digest of the source file."""
    note: str = ""


class PartEntry(FileEntry):
    """A part manifest, and what it holds, so that a summary needs no further file."""

    stage: Name
    dataset: Name
    rows: int
    data_bytes: int
    """Bytes of all activation files of the part."""


class Extra(FileEntry):
    """A file that is not activations: a table, weight statistics, a grid's chunk, scores."""

    kind: Literal["table", "weights", "adapter", "trace", "scores"]
    unit: Sha256


class Parity(Schema):
    """How exact the build was, over all parts."""

    worst: float
    """Largest relative deviation over all sampled rows, sites, layers and positions."""
    tolerance: float
    rows: int
    stage: str
    dataset: str


class Defaults(Schema):
    """Layers and positions that the card's author chose for the analyses."""

    truth_layer: int | None = None
    truth_datasets: tuple[str, ...] = ()
    truth_asked: str | None = None
    """Dataset of which models are asked whether its statements are true."""
    truth_first_layer: int | None = None
    """First layer at which a truth direction is added; the last one is ``truth_layer``."""
    refusal_layer: int | None = None
    refusal_position: int = -1
    harmful: str = "harmful"
    harmless: str = "harmless"
    trace_datasets: tuple[str, ...] = ()


class Manifest(Schema):
    """``manifest.json``: what the artifact is, and the digest of everything in it."""

    format: Literal[1] = FORMAT
    name: Name
    title: str
    description: str
    licence: str
    card_sha256: Sha256
    stages: tuple[Stage, ...]
    """Earliest first."""
    datasets: tuple[Dataset, ...]
    sites: Mapping[str, tuple[int, ...]]
    """Stored layers of each stored site."""
    dtype: StoredDtype
    compute_dtype: StoredDtype
    parity: Parity | None
    defaults: Defaults
    versions: Mapping[str, str]
    parts: tuple[PartEntry, ...]
    extras: tuple[Extra, ...]

    def stage(self, name: str) -> Stage | None:
        """Return the stage of that name, or None."""
        return next((stage for stage in self.stages if stage.name == name), None)

    def dataset(self, name: str) -> Dataset | None:
        """Return the dataset of that name, or None."""
        return next((dataset for dataset in self.datasets if dataset.name == name), None)

    @property
    def total_bytes(self) -> int:
        """Bytes of all files but ``manifest.json`` and ``README.md``."""
        return sum(part.bytes + part.data_bytes for part in self.parts) + sum(
            extra.bytes for extra in self.extras
        )

    @classmethod
    def parse(cls, raw: bytes, where: str) -> Self:
        """Read a manifest.

        Raises
        ------
        FormatError
            If the bytes are not JSON, not a manifest, or of a format newer than this version's.
        """
        return parse_schema(cls, raw, where)


SchemaT = TypeVar("SchemaT", bound=Schema)


def canonical_json(value: Mapping[str, Any] | Schema) -> bytes:
    """Serialise to the one byte string that stands for this value."""
    plain = value.model_dump(mode="json") if isinstance(value, Schema) else value
    text = json.dumps(plain, sort_keys=True, ensure_ascii=False, indent=1, allow_nan=False)
    return (text + "\n").encode()


def parse_schema(schema: type[SchemaT], raw: bytes, where: str) -> SchemaT:
    """Read one JSON document of an artifact into its schema.

    Raises
    ------
    FormatError
        If the bytes are too many, not JSON, of a newer format or do not fit the schema.
    """
    if len(raw) > MAX_JSON_BYTES:
        raise FormatError(f"{where} has {len(raw)} bytes, more than any manifest of ours")
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where} is not JSON ({error}); build or download it again") from error
    found = data.get("format") if isinstance(data, dict) else None
    if isinstance(found, int) and found > FORMAT:
        raise FormatError(
            f"{where} is of format {found}, this version reads up to {FORMAT}: "
            "pip install --upgrade ptmech"
        )
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(step) for step in first["loc"]) or "the top level"
        raise FormatError(f"{where}: {place}: {first['msg']}") from error
