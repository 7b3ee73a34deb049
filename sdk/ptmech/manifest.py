"""The schema of everything in an artifact that is not a number.

``manifest.json`` is the only entry point of an artifact: it names the stages, the datasets, the
sites and every file, directly or through the part manifests ``manifests/<stage>/<dataset>.json``.
Readers never list a folder. All JSON is canonical (sorted keys, UTF-8, one trailing newline), so
that the same content has the same sha256.

A manifest may come from a stranger. So every number, text and list has a bound, wide enough for
models of several hundred billion parameters; paths stay below the artifact; and what one document
says is checked against the rest of it, so that readers need not wonder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    field_validator,
    model_validator,
)

from ptmech._json import MAX_JSON_BYTES, fitting, parse_json
from ptmech._paths import is_device, plain_path, require_apart
from ptmech._text import is_plain, shortened
from ptmech.errors import FormatError
from ptmech.model_sources import PublicModel

FORMAT = 1
"""The artifact format this version writes, and the newest it reads."""

MANIFEST = "manifest.json"

MAX_FILES = 100_000
"""Of one list: more than the Hub takes of a whole repository."""
MAX_LAYERS = 1024

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")

StoredDtype = Literal["float32", "float16", "bfloat16"]
Quantisation = Literal["8bit", "4bit"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
"""Every site the vocabulary knows, stored or not, in the order in which a block computes them."""


class Schema(BaseModel):
    """Base of all schemas: immutable, and strict about keys it does not know.

    Texts hold nothing that a terminal would obey instead of showing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="after")
    def _texts_are_plain(self) -> Self:
        for name, value in self:
            if not all(text.isprintable() or is_plain(text) for text in _texts(value)):
                raise ValueError(f"{name} holds a control character")
        return self


def _texts(value: object) -> Iterator[str]:
    """Go through the texts of a field; other schemas have seen to their own."""
    match value:
        case str():
            yield value
        case Mapping():
            for key, item in value.items():
                yield from _texts(key)
                yield from _texts(item)
        case tuple() | list():
            for item in value:
                yield from _texts(item)
        case _:
            return


def _one_line(text: str) -> str:
    if len(text.splitlines()) > 1:
        raise ValueError("must be one line")
    return text


def _in_the_vocabulary(site: str) -> str:
    if site not in SITES:
        raise ValueError(f"no known site; there are {', '.join(SITES)}")
    return site


def _a_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{shortened(name, 70)!r} is no name: lower-case letters, digits and _, "
            "64 at most and the first a letter"
        )
    return name


def _no_device(name: str) -> str:
    if is_device(name):
        raise ValueError(f"{name!r} is a device on Windows, where no folder can have this name")
    return name


def _all_differ(values: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(values)) < len(values):
        raise ValueError("holds a number twice")
    return values


def _whole(least: int, most: int) -> Any:
    """Return the constraint of a whole number within bounds, both inclusive."""
    return Field(strict=True, ge=least, le=most)


def _at_most(most: int, *, least: int = 0) -> Any:
    """Return the constraint of a list that is given up at its first mistake."""
    return Field(min_length=least, max_length=most, fail_fast=True)


Name = Annotated[str, AfterValidator(_a_name), AfterValidator(_no_device)]
Line = Annotated[str, Field(max_length=2000), AfterValidator(_one_line)]
Text = Annotated[str, Field(max_length=100_000)]
Site = Annotated[str, AfterValidator(_in_the_vocabulary)]

Bytes = Annotated[int, _whole(0, 2**44)]
Rows = Annotated[int, _whole(0, 2**31 - 1)]
Block = Annotated[int, _whole(0, MAX_FILES)]
Layer = Annotated[int, _whole(0, MAX_LAYERS - 1)]
Width = Annotated[int, _whole(1, 2**24)]
"""Of a residual stream, an MLP or a vocabulary."""
Position = Annotated[int, _whole(-(2**20), -1)]
Positions = Annotated[tuple[Position, ...], _at_most(1024), AfterValidator(_all_differ)]
Layers = Annotated[tuple[Layer, ...], _at_most(MAX_LAYERS), AfterValidator(_all_differ)]
Deviation = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]


class FileEntry(Schema):
    """One file of the artifact: where it is, and which bytes it must have."""

    path: Annotated[str, AfterValidator(plain_path)]
    bytes: Bytes
    sha256: Sha256


class ActivationFile(FileEntry):
    """Activations of one site and layer for one block of rows."""

    site: Site
    layer: Layer
    block: Block
    rows: Annotated[Rows, Field(ge=1)]


class ActivationUnit(Schema):
    """One unit of work: a block of rows that went through the model together."""

    key: Sha256
    block: Block
    first_row: Rows
    rows: Rows
    parity: Deviation
    """Worst relative deviation of sampled rows from a plain forward, batch of one."""


class Part(Schema):
    """``manifests/<stage>/<dataset>.json``: one dataset as one stage saw it."""

    format: Literal[1] = FORMAT
    stage: Name
    dataset: Name
    rows: Rows
    d_model: Width
    positions: Positions
    dtype: StoredDtype
    units: Annotated[tuple[ActivationUnit, ...], _at_most(MAX_FILES)]
    files: Annotated[tuple[ActivationFile, ...], _at_most(MAX_FILES)]

    @model_validator(mode="after")
    def _files_are_its_own(self) -> Self:
        folder = f"acts/{self.stage}/{self.dataset}/"
        if astray := next((f.path for f in self.files if not f.path.startswith(folder)), None):
            raise ValueError(f"files: {astray!r} is not below {folder}")
        _require_one_promise(self.files)
        return self


class Stage(Schema):
    """A model of the family, at one point of its post-training."""

    name: Name
    title: Line
    model: Line
    """Where the weights come from, at which revision; never a path of the building machine."""
    source: PublicModel | None = None
    """The same for :func:`ptmech.live.open`; None where they came from a folder."""
    sha256: Annotated[Mapping[Line, Sha256], Field(max_length=4096)]
    """Digest of each file that makes the weights, by name."""
    architecture: Line
    n_layers: Annotated[int, _whole(1, MAX_LAYERS)]
    d_model: Width
    d_mlp: Width | None
    """Neurons of the last MLP; None where that is a mixture of experts."""
    vocabulary: Width
    tokenizer_sha256: Sha256
    template: Text = "chat"
    """How instructions became prompts: ``chat``, or text that contains ``{instruction}``."""
    template_options: Annotated[Mapping[Line, Text], Field(max_length=64)] = {}
    """What the chat template was told besides the conversation."""
    add_beginning: StrictBool = False
    """Whether the beginning-of-text token was put first where the tokenizer does not do it."""
    quantisation: Quantisation | None = None
    """To what the weights were quantised when they were loaded, if at all."""
    note: Text = ""


class Dataset(Schema):
    """A set of rows, the same prompts for every stage."""

    name: Name
    title: Line
    kind: Literal["statements", "instructions"]
    rows: Rows
    positions: Positions
    sha256: Sha256
    """Digest of the source file."""
    source: Line = ""
    """Where it came from: a public file with its commit, a file of the builder's own, or the name
    of a file that only its owner has."""
    note: Text = ""


class PartEntry(FileEntry):
    """A part manifest, and what it holds, so that a summary needs no further file."""

    bytes: Annotated[Bytes, Field(le=MAX_JSON_BYTES)]
    stage: Name
    dataset: Name
    rows: Rows
    data_bytes: Bytes
    """Bytes of all activation files of the part."""

    @model_validator(mode="after")
    def _is_at_its_place(self) -> Self:
        place = f"manifests/{self.stage}/{self.dataset}.json"
        if self.path != place:
            raise ValueError(f"path: {self.path!r} should be {place!r}")
        return self


_TAKEN = frozenset(["acts", "manifests", MANIFEST, "readme.md"])
"""What lies at the top of an artifact and is never an extra."""


class Extra(FileEntry):
    """A file that is not activations: a table, weight statistics, a grid's chunk, scores."""

    kind: Literal["table", "weights", "adapter", "trace", "scores"]
    unit: Sha256

    @field_validator("path")
    @classmethod
    def _leaves_the_others_their_places(cls, path: str) -> str:
        if path.lower().partition("/")[0] in _TAKEN:
            raise ValueError(f"{path!r} is no place for a file of this kind")
        return path


class Parity(Schema):
    """How exact the build was, over all parts."""

    worst: Deviation
    """Largest relative deviation over all sampled rows, sites, layers and positions."""
    tolerance: Deviation
    rows: Rows
    stage: Line
    dataset: Line


class Defaults(Schema):
    """Layers and positions that the card's author chose for the analyses."""

    truth_layer: Layer | None = None
    truth_datasets: Annotated[tuple[Line, ...], _at_most(1000)] = ()
    truth_asked: Line | None = None
    """Dataset of which models are asked whether its statements are true."""
    truth_first_layer: Layer | None = None
    """First layer at which a truth direction is added; the last one is ``truth_layer``."""
    truth_examples: Annotated[tuple[Text, ...], _at_most(1000)] = ()
    """Worked examples of the dataset that is asked about, where the card gave some."""
    refusal_layer: Layer | None = None
    refusal_position: Position = -1
    refusal_layers: Annotated[Mapping[Line, Layer], Field(max_length=64)] = {}
    """Layer of each stage's refusal direction, where stages have layers of their own."""
    refusal_positions: Annotated[Mapping[Line, Position], Field(max_length=64)] = {}
    """Position of each stage's refusal direction, where stages have positions of their own."""
    harmful: Line = "harmful"
    harmless: Line = "harmless"
    trace_datasets: Annotated[tuple[Line, ...], _at_most(1000)] = ()

    def layers(self) -> Iterator[tuple[str, int]]:
        """Go through all layers that were chosen, each with the name of its field."""
        for name in ("truth_layer", "truth_first_layer", "refusal_layer"):
            if (layer := getattr(self, name)) is not None:
                yield name, layer
        for stage, layer in self.refusal_layers.items():
            yield f"refusal_layers.{stage}", layer


class Manifest(Schema):
    """``manifest.json``: what the artifact is, and the digest of everything in it."""

    format: Literal[1] = FORMAT
    name: Name
    title: Line
    description: Text
    licence: Line
    card_sha256: Sha256
    narrowed: Line = ""
    """What of its card was left out on purpose; empty for a whole build."""
    stages: Annotated[tuple[Stage, ...], _at_most(64, least=1)]
    """Earliest first."""
    datasets: Annotated[tuple[Dataset, ...], _at_most(1000)]
    sites: Mapping[Site, Layers]
    """Stored layers of each stored site."""
    dtype: StoredDtype
    compute_dtype: StoredDtype
    parity: Parity | None
    defaults: Defaults
    versions: Annotated[Mapping[Line, Line], Field(max_length=1000)]
    parts: Annotated[tuple[PartEntry, ...], _at_most(MAX_FILES)]
    extras: Annotated[tuple[Extra, ...], _at_most(MAX_FILES)]

    @field_validator("stages", "datasets")
    @classmethod
    def _names_differ(cls, named: tuple[Stage | Dataset, ...]) -> tuple[Stage | Dataset, ...]:
        names = [each.name for each in named]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{twice[0]!r} is there twice")
        return named

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        n_layers = max(stage.n_layers for stage in self.stages)
        chosen = ((f"defaults.{name}", layer) for name, layer in self.defaults.layers())
        stored = ((f"sites.{site}", layer) for site in self.sites for layer in self.sites[site])
        for place, layer in (*stored, *chosen):
            if layer >= n_layers:
                raise ValueError(f"{place}: layer {layer}, but the models have {n_layers} layers")
        _require_known("stage", (part.stage for part in self.parts), self.stages)
        _require_known("dataset", (part.dataset for part in self.parts), self.datasets)
        _require_one_promise((*self.parts, *self.extras))
        return self

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


def _require_one_promise(entries: Iterable[FileEntry]) -> None:
    """Require that no two entries disagree about a file, on any disk.

    The very same entry twice misleads nobody; ``ptmech verify`` reports it.
    """
    promised: dict[str, FileEntry] = {}
    for entry in entries:
        if promised.setdefault(entry.path, entry) != entry:
            raise ValueError(f"{entry.path!r} is listed twice, as two different files")
    require_apart(promised)


def _require_known(kind: str, names: Iterable[str], known: Iterable[Stage | Dataset]) -> None:
    if missing := sorted(set(names) - {each.name for each in known}):
        raise ValueError(f"parts: there is no {kind} {missing[0]!r}")


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
    data = parse_json(raw, where)
    found = data.get("format") if isinstance(data, dict) else None
    if isinstance(found, bool):  # which Python takes for a number
        raise FormatError(f"{where}: format is no number")
    if isinstance(found, int) and found > FORMAT:
        raise FormatError(
            f"{where} is of format {found}, this version reads up to {FORMAT}: "
            "pip install --upgrade ptmech"
        )
    return fitting(schema, data, where)
