"""Cards: one TOML a model family, the recipe of an artifact.

A card is checked in full before anything runs. Keys it does not know are refused, and every message
names the key and its line.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from ptmech.errors import CardError
from ptmech.knowledge.prompts import Form
from ptmech.manifest import Name, Schema, Sha256, StoredDtype
from ptmech.model_sources import FolderModel, ModelSource

CARDS = Path("cards")
DATA = Path(__file__).parent / "data"
BUILTIN = "builtin:"


class StageCard(Schema):
    """One model of the family."""

    name: Name
    title: str
    model: ModelSource
    adapter: str | None = None
    """Folder of a LoRA adapter, relative to the card."""
    template: str = "chat"
    """How instructions become prompts: ``chat`` (the tokenizer's own chat template, with the
    generation prompt), or text containing ``{instruction}``."""
    note: str = ""

    @model_validator(mode="after")
    def _template_has_a_slot(self) -> Self:
        if self.template != "chat" and "{instruction}" not in self.template:
            raise ValueError("template must be 'chat' or contain {instruction}")
        return self


class DatasetCard(Schema):
    """One set of rows."""

    name: Name
    title: str
    kind: Literal["statements", "instructions"]
    file: str
    """CSV file, relative to the card, or ``builtin:`` and a path in the builder's own data."""
    sha256: Sha256
    positions: Annotated[tuple[Annotated[int, Field(lt=0)], ...], Field(min_length=1)] = (-1,)
    """Stored token positions, counted back from the end of the prompt."""
    note: str = ""


class Extraction(Schema):
    """What is stored, and how exactly it is computed."""

    sites: tuple[Literal["resid_pre", "resid_post", "mlp_out"], ...] = (
        "resid_pre",
        "resid_post",
        "mlp_out",
    )
    """``resid_pre`` is stored for layer 0 only: above, it is the ``resid_post`` below."""
    compute_dtype: StoredDtype = "float32"
    dtype: StoredDtype = "float32"
    rows_per_block: Annotated[int, Field(ge=1)] = 2048
    tokens_per_batch: Annotated[int, Field(ge=1)] = 2048
    parity_rows: Annotated[int, Field(ge=1)] = 3
    parity_tolerance: float | None = None
    """Largest accepted relative deviation; by default it follows from the element types."""


class WeightsCard(Schema):
    """Statistics of the unembedding and of the last MLP's neurons."""

    null_space_k: Annotated[int, Field(ge=1)] = 16


class ConfidenceCard(Schema):
    """Entropy-neuron candidates ablated: what they do to the entropy, and how."""

    candidates: Annotated[int, Field(ge=1)] = 10
    """How many candidates of each stage; as many random neurons are ablated as well."""
    norm_quantile: Annotated[float, Field(ge=0, lt=1)] = 0.75
    """Candidates and random neurons have output weights longer than this quantile."""
    plain_text: str
    """CSV file with a column ``text``: what entropy and loss are measured on."""
    texts: Annotated[int, Field(ge=2)] = 10
    """How many of its texts, the first ones."""
    seed: int = 0


class TraceCard(Schema):
    """Causal tracing on one dataset."""

    dataset: Name
    form: Form = "completion"
    """``completion``: the statement cut off before its object, the answer its object, for models of
    any size. ``true_false``: the statement and a question, the paper's form, for large models."""
    examples: tuple[str, ...] = ()
    """What stands before every prompt: true statements that show what kind of answer is wanted; for
    ``true_false`` four statements with question and answer, by the seed if none are given."""
    pairs: Annotated[int, Field(ge=1)] = 8
    seed: int = 0

    @property
    def options(self) -> dict[str, Any]:
        """The same as :func:`ptmech.knowledge.pairs` takes it."""
        return {
            "form": self.form,
            "examples": self.examples or None,
            "n_pairs": self.pairs,
            "seed": self.seed,
        }


class CandidatesCard(Schema):
    """Candidate refusal directions: at every stored position, and at some layers."""

    prompts: Annotated[int, Field(ge=1)] = 32
    """Validation prompts of either kind that every candidate is scored on."""
    layers: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = None
    """``resid_pre`` convention; by default every layer below 80 % of the depth."""


class RefusalCard(Schema):
    """Refusal directions and their interventions."""

    harmful: Name = "harmful"
    harmless: Name = "harmless"
    layer: Annotated[int, Field(ge=0)]
    """Layer of the direction, ``resid_pre`` convention."""
    position: Annotated[int, Field(lt=0)] = -1
    scored_prompts: Annotated[int, Field(ge=1)] = 48
    """Test prompts of either kind that are completed under every intervention."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 16
    scales: Annotated[tuple[float, ...], Field(min_length=1)] = (1.0,)
    """Factors of the added directions."""
    plain_text: str
    """CSV file with a column ``text``, for the coherence figure."""
    scored_texts: Annotated[int, Field(ge=1)] = 24
    """How many of its rows are used, the first ones."""
    seed: int = 0
    candidates: CandidatesCard | None = None


class TruthInterventionCard(Schema):
    """Truth directions added to statements that a model is asked about."""

    dataset: Name
    """Statements that are asked about; directions are found in the other datasets."""
    first_layer: Annotated[int, Field(ge=0)]
    """First layer at which directions are added; the last one is the probes' layer."""
    statements: Annotated[int, Field(ge=2)] = 64
    seed: int = 0


class TruthCard(Schema):
    """Defaults of the truthfulness analyses."""

    layer: Annotated[int, Field(ge=0)]
    datasets: tuple[Name, ...] = ()
    intervention: TruthInterventionCard | None = None

    @model_validator(mode="after")
    def _directions_can_be_found(self) -> Self:
        if self.intervention is None:
            return self
        if self.intervention.first_layer > self.layer:
            raise ValueError(
                f"intervention.first_layer = {self.intervention.first_layer} is above the layer "
                f"of the directions, {self.layer}"
            )
        if not set(self.datasets) - {self.intervention.dataset}:
            raise ValueError(
                "an intervention needs truth.datasets other than the one that is asked about"
            )
        return self


class Card(Schema):
    """The recipe of an artifact; read one with :func:`read_card`."""

    format: Literal[1]
    name: Name
    title: str
    description: str
    licence: str
    stages: Annotated[tuple[StageCard, ...], Field(min_length=1)]
    datasets: Annotated[tuple[DatasetCard, ...], Field(min_length=1)]
    extraction: Extraction = Extraction()
    weights: WeightsCard | None = None
    confidence: ConfidenceCard | None = None
    traces: tuple[TraceCard, ...] = ()
    refusal: RefusalCard | None = None
    truth: TruthCard | None = None

    @model_validator(mode="after")
    def _names_hold_together(self) -> Self:
        datasets = [dataset.name for dataset in self.datasets]
        for kind, names in (("stage", [s.name for s in self.stages]), ("dataset", datasets)):
            doubled = {name for name in names if names.count(name) > 1}
            if doubled:
                raise ValueError(f"{kind} {min(doubled)!r} is defined twice")
        for user, name, kind in self._named_datasets():
            if name not in datasets:
                close = get_close_matches(name, datasets, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise ValueError(f"{user} names dataset {name!r}, which the card lacks{hint}")
            if self.dataset(name).kind != kind:
                raise ValueError(f"{user} names dataset {name!r}, which does not hold {kind}")
        if self.refusal is not None:
            self._refusal_can_be_scored(self.refusal)
        if self.confidence is not None and self.weights is None:
            raise ValueError("confidence needs the section [weights]: candidates come from there")
        if self.truth is not None and self.truth.intervention is not None:
            self._truth_can_be_steered(self.truth)
        return self

    def _refusal_can_be_scored(self, refusal: RefusalCard) -> None:
        for name in (refusal.harmful, refusal.harmless):
            if refusal.position not in self.dataset(name).positions:
                raise ValueError(
                    f"refusal reads position {refusal.position}, which dataset {name!r} does not "
                    f"store; it stores {list(self.dataset(name).positions)}"
                )
        layers = (refusal.layer, *self._candidate_layers(refusal))
        for needed in {"resid_post" if layer else "resid_pre" for layer in layers}:
            if needed not in self.extraction.sites:
                raise ValueError(f"refusal needs the site {needed!r} among the extraction's sites")
        if len(set(refusal.scales)) < len(refusal.scales):
            raise ValueError(f"refusal.scales repeats a factor: {list(refusal.scales)}")

    @staticmethod
    def _candidate_layers(refusal: RefusalCard) -> tuple[int, ...]:
        if refusal.candidates is None:
            return ()
        return (0, 1) if refusal.candidates.layers is None else refusal.candidates.layers

    def _truth_can_be_steered(self, truth: TruthCard) -> None:
        lacking = [name for name in truth.datasets if -1 not in self.dataset(name).positions]
        if lacking:
            raise ValueError(
                f"truth.intervention reads position -1, which dataset {lacking[0]!r} does not store"
            )
        if "resid_post" not in self.extraction.sites:
            raise ValueError(
                "truth.intervention needs the site 'resid_post' among the extraction's sites"
            )

    def dataset(self, name: str) -> DatasetCard:
        """Return the dataset of that name, which must be the card's."""
        return next(dataset for dataset in self.datasets if dataset.name == name)

    def _named_datasets(self) -> Iterator[tuple[str, str, str]]:
        for trace in self.traces:
            yield "traces", trace.dataset, "statements"
        if self.refusal is not None:
            yield "refusal", self.refusal.harmful, "instructions"
            yield "refusal", self.refusal.harmless, "instructions"
        if self.truth is not None:
            for name in self.truth.datasets:
                yield "truth", name, "statements"
            if self.truth.intervention is not None:
                yield "truth.intervention", self.truth.intervention.dataset, "statements"


class CardFile:
    """A card together with where it stands, so that its relative paths can be followed.

    Attributes
    ----------
    card : Card
    sha256 : str
        Digest of the card's own bytes.
    """

    def __init__(self, card: Card, folder: Path, sha256: str) -> None:
        self.card = card
        self.sha256 = sha256
        self._folder = folder

    def path(self, file: str) -> Path:
        """Return the local path of a file that the card names.

        Raises
        ------
        CardError
            If there is no such file or folder.
        """
        if file.startswith(BUILTIN):
            path = DATA / file.removeprefix(BUILTIN)
        else:
            path = self._folder / file
        if not path.exists():
            raise CardError(f"card {self.card.name!r} names {file!r}, which does not exist")
        return path

    def model(self, stage: StageCard) -> ModelSource:
        """Return where a stage's weights come from; a folder is taken relative to the card."""
        if isinstance(stage.model, FolderModel):
            return FolderModel(path=self._folder / stage.model.path)
        return stage.model

    def adapter(self, stage: StageCard) -> Path | None:
        """Return the folder of a stage's adapter, if it has one."""
        return None if stage.adapter is None else self.path(stage.adapter)


def find_card(reference: str | Path) -> Path:
    """Find a card by its path, or by its name in ``cards/``.

    Raises
    ------
    CardError
        If there is none; the message lists the cards there are.
    """
    path = Path(reference)
    named = CARDS / f"{reference}.toml"
    for candidate in (path, named):
        if candidate.is_file():
            return candidate
    there = sorted(card.stem for card in CARDS.glob("*.toml"))
    close = get_close_matches(path.stem, there, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    raise CardError(f"no card {str(reference)!r}{hint} Cards here: {', '.join(there) or 'none'}")


def read_card(reference: str | Path) -> CardFile:
    """Read and check a card.

    Parameters
    ----------
    reference
        Path of a TOML file, or the name of a card in ``cards/``.

    Raises
    ------
    CardError
        If the file is missing, not TOML, or breaks the schema; the message names key and line.
    """
    path = find_card(reference)
    raw = path.read_bytes()
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise CardError(f"{path}: not UTF-8 text ({error.reason})") from error
    try:
        card = Card.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise CardError(f"{path}: not TOML: {error}") from error
    except ValidationError as error:
        raise CardError(f"{path}{_explain(error, text)}") from error
    return CardFile(card, path.parent, hashlib.sha256(raw).hexdigest())


def _explain(error: ValidationError, text: str) -> str:
    """Turn the first thing wrong with a card into one line that names key and line."""
    # A key that is not known explains more than one that is missing: often it is the same slip.
    first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    # After "model" stands the kind of source, which is not a key of the card.
    steps = [
        step
        for index, step in enumerate(first["loc"])
        if index == 0 or first["loc"][index - 1] != "model" or len(first["loc"]) == index + 1
    ]
    line = _line_of(steps, text)
    key = ".".join(str(step) for step in steps)
    where = f" line {line}" if line else ""
    if first["type"] == "extra_forbidden":
        close = get_close_matches(str(steps[-1]), _known_keys(), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"{where}: unknown key {key!r}{hint}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {key}: {message}" if key else f"{where}: {message}"


def _known_keys() -> list[str]:
    schemas = (Card, StageCard, DatasetCard, Extraction, WeightsCard, TraceCard, RefusalCard)
    schemas = (*schemas, ConfidenceCard, CandidatesCard, TruthCard, TruthInterventionCard)
    return sorted({name for schema in schemas for name in schema.model_fields})


_HEADER = re.compile(r"^\s*(\[\[?)\s*([\w.-]+)\s*\]\]?")
_KEY = re.compile(r"^\s*([\w.-]+)\s*=")
_QUOTES = re.compile(r'"""|\'\'\'')


def _line_of(steps: Sequence[Any], text: str) -> int | None:
    """Find the line of a key; the line of the nearest enclosing table if the key is absent.

    The standard TOML reader keeps no positions, so headers and keys are looked for again here.
    """
    table: list[Any] = []
    counts: dict[str, int] = {}
    best, best_depth = None, 0
    quoted = False
    for number, line in enumerate(text.splitlines(), start=1):
        inside, quoted = quoted, quoted != (len(_QUOTES.findall(line)) % 2 == 1)
        if inside:
            continue
        if header := _HEADER.match(line):
            brackets, name = header.groups()
            if brackets == "[[":
                counts[name] = counts.get(name, -1) + 1
            table = []
            for part in name.split("."):
                table.append(part)
                if part in counts:
                    table.append(counts[part])
            place = table
        elif key := _KEY.match(line):
            place = [*table, *key.group(1).split(".")]
        else:
            continue
        if len(place) > best_depth and list(steps[: len(place)]) == place:
            best, best_depth = number, len(place)
    return best
