"""What a card may say: stages, datasets, extraction, and the analyses of a family."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ptmech.live.templates import Template
from ptmech.manifest import Name, Schema, Sha256, StoredDtype
from ptmech.model_sources import ModelSource
from ptmech_builder.cards.analyses import (
    ConfidenceCard,
    RefusalCard,
    TraceCard,
    TruthCard,
    WeightsCard,
)
from ptmech_builder.cards.references import DataReference

RowColumn = Literal[
    "source_id", "text", "label", "polarity", "pair", "group", "split", "subject", "object", "topic"
]
"""What is known of a row; ``text`` always, the rest where a file has it."""


class StageCard(Schema):
    """One model of the family."""

    name: Name
    """Of the stage: ``base``, ``instruct``."""
    title: str
    """In one line, for people."""
    model: ModelSource
    """Where its weights come from."""
    adapter: str | None = None
    """Folder of a LoRA adapter, relative to the card; or ``trained:`` and the name of one that
    ``make pair`` has trained on this machine."""
    ship_adapter: bool = True
    """Whether the adapter becomes part of the artifact; False where the licence of the model it
    belongs to does not allow that."""
    template: str = "chat"
    """How instructions become prompts: ``chat`` (the tokenizer's own chat template, with the
    generation prompt), or text containing ``{instruction}``."""
    template_options: Mapping[str, str] = {}
    """What the chat template is told besides the conversation, such as a fixed ``date_string``."""
    add_beginning: bool = False
    """Put the beginning-of-text token first where the tokenizer does not do it by itself."""
    quantisation: Literal["8bit", "4bit"] | None = None
    """Load the weights quantised. The artifact says so; by default it is refused."""
    note: str = ""
    """A sentence for the reader of the artifact."""

    @property
    def rendering(self) -> Template:
        """How instructions become this stage's prompts."""
        return Template(self.template, self.template_options, self.add_beginning)

    @model_validator(mode="after")
    def _template_has_a_slot(self) -> Self:
        if self.template != "chat" and "{instruction}" not in self.template:
            raise ValueError("template must be 'chat' or contain {instruction}")
        if self.template_options and self.template != "chat":
            raise ValueError("template_options are for the chat template; this stage has another")
        return self


class SampleCard(Schema):
    """Rows drawn from a public set that has no splits of its own.

    Rows without text are left out. The rest, repeats included, is divided once by ``test_share``
    and ``seed``: rows of the split ``test`` come from the smaller side, the others from the larger.
    A text is then drawn once, however often it occurs.
    """

    train: Annotated[int, Field(ge=1)]
    """Rows of the split ``train``."""
    validation: Annotated[int, Field(ge=0)] = 0
    """Rows of the split ``validation``."""
    test: Annotated[int, Field(ge=1)]
    """Rows of the split ``test``."""
    test_share: Annotated[float, Field(gt=0, le=0.5)] = 0.2
    """The part of all rows that test rows are drawn from."""
    seed: int = 42
    """Of the division and the draws."""
    blank: tuple[str, ...] = ()
    """Columns of the file that must be empty in a row for it to be drawn."""


class DatasetCard(Schema):
    """One set of rows."""

    name: Name
    """Of the dataset; it is part of every row's identity."""
    title: str
    """In one line, for people."""
    kind: Literal["statements", "instructions"]
    """``statements`` go in as they are, ``instructions`` through the stage's template."""
    file: DataReference
    """CSV, JSON or Parquet file: relative to the card; ``builtin:`` and a path in the builder's own
    data; ``hub:owner/name@revision/path`` in a dataset on the Hub; or
    ``github:owner/name@commit/path``."""
    sha256: Sha256 | None = None
    """What the file must hash to; may be absent until ``ptmech pin`` has seen the file."""
    columns: Mapping[RowColumn, str] = {}
    """Our column names, each with the file's own name for it. A file without ``source_id`` has its
    rows numbered from 1. Statements without ``group`` are grouped by their ``subject``; those
    without ``pair`` are paired where a subject has one true and one false statement."""
    pattern: str | None = None
    """How all statements are worded: a regular expression of the whole text, whose groups
    ``subject`` and ``object`` tell the columns of these names. Both stay empty in a row that is
    worded otherwise."""
    polarity: Literal[1, -1] | None = None
    """Polarity of all rows, for a file that has no such column: -1 for negated statements."""
    sample: SampleCard | None = None
    """Draw rows instead of taking all of them."""
    positions: Annotated[tuple[Annotated[int, Field(lt=0)], ...], Field(min_length=1)] = (-1,)
    """Stored token positions, counted back from the end of the prompt."""
    note: str = ""
    """A sentence for the reader of the artifact."""

    @model_validator(mode="after")
    def _pattern_tells_a_subject(self) -> Self:
        if self.pattern is None:
            return self
        try:
            told = set(re.compile(self.pattern).groupindex)
        except re.error as error:
            raise ValueError(f"pattern is no regular expression: {error}") from error
        if "subject" not in told or not told <= {"subject", "object"}:
            raise ValueError(
                "pattern needs a group (?P<subject>...), may have one (?P<object>...), and no "
                f"other named group; it has {sorted(told) or 'none'}"
            )
        if self.kind != "statements":
            raise ValueError("pattern is for statements; this dataset holds instructions")
        twice = sorted(told & set(self.columns))
        if twice:
            raise ValueError(f"pattern and columns both tell the {twice[0]}; take one of them away")
        return self


class Extraction(Schema):
    """What is stored, and how exactly it is computed."""

    sites: tuple[Literal["resid_pre", "resid_post", "mlp_out"], ...] = (
        "resid_pre",
        "resid_post",
        "mlp_out",
    )
    """``resid_pre`` is stored for layer 0 only: above, it is the ``resid_post`` below."""
    compute_dtype: StoredDtype = "float32"
    """What models compute in."""
    dtype: StoredDtype = "float32"
    """What is stored."""
    rows_per_block: Annotated[int, Field(ge=1)] = 2048
    """Rows of one file."""
    packing: Literal["auto", "tree", "batches"] = "auto"
    """How rows run together: ``tree`` (prompts that begin alike share those tokens), ``batches`` of
    similar length, or ``auto``, whichever is cheaper and possible."""
    tokens_per_batch: Annotated[int, Field(ge=1)] | None = None
    """Tokens of one forward pass, padding included; by default it follows from the device."""
    parity_rows: Annotated[int, Field(ge=1)] = 3
    """Rows of each file that are compared with a plain forward."""
    parity_tolerance: float | None = None
    """Largest accepted relative deviation; by default it follows from the element types."""


class WorkedExamplesCard(Schema):
    """Solved examples that stand before TRUE/FALSE questions, by dataset.

    A JSON list of objects with ``dataset_name`` and ``few_shot_examples``.
    """

    file: DataReference
    """As in :class:`DatasetCard`."""
    sha256: Sha256 | None = None
    """What the file must hash to."""


class HubCard(Schema):
    """What the artifact's page on the Hub says besides what was measured."""

    language: Annotated[tuple[str, ...], Field(min_length=1)] = ("en",)
    """Languages of the texts."""
    tags: tuple[str, ...] = ()
    """Further tags of the page."""
    licence_name: str | None = None
    """Where ``licence`` is ``other``: what it is called."""
    licence_link: str | None = None
    """Where ``licence`` is ``other``: where it stands."""
    licence_file: DataReference | None = None
    """Its text, where it asks that a copy be passed on; as in :class:`DatasetCard`."""
    licence_sha256: Sha256 | None = None
    """What ``licence_file`` must hash to."""
    notices: tuple[str, ...] = ()
    """Sentences that the licences of models and datasets ask for, such as "Built with Llama"."""
    limits: tuple[str, ...] = ()
    """What a reader must not conclude, one sentence each."""


class Card(Schema):
    """The recipe of an artifact; read one with :func:`read_card`."""

    format: Literal[1]
    """Of the card: 1."""
    name: Name
    """Of the artifact, and of the folder it is built into."""
    title: str
    """In one line, for people."""
    description: str
    """What the artifact is for, and what is our choice in it."""
    licence: str
    """Of the artifact, as the Hub spells licences: ``apache-2.0``, ``llama3.1``, ``other``."""
    stages: Annotated[tuple[StageCard, ...], Field(min_length=1)]
    """The models, in order of post-training, earliest first."""
    datasets: Annotated[tuple[DatasetCard, ...], Field(min_length=1)]
    """The sets of rows, the same for every stage."""
    extraction: Extraction = Extraction()
    """What is stored, and how exactly it is computed."""
    hub: HubCard = HubCard()
    """What the artifact's page on the Hub says besides what was measured."""
    worked_examples: WorkedExamplesCard | None = None
    """Solved examples that stand before TRUE/FALSE questions, by dataset."""
    weights: WeightsCard | None = None
    """Statistics of unembedding and neurons; none without the section."""
    confidence: ConfidenceCard | None = None
    """The causal test of entropy-neuron candidates; needs ``weights``."""
    traces: tuple[TraceCard, ...] = ()
    """Causal traces, one a table."""
    refusal: RefusalCard | None = None
    """Refusal directions, and what they do to completions."""
    truth: TruthCard | None = None
    """Defaults of the truthfulness analyses, and what truth directions do to answers."""

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
        names = [stage.name for stage in self.stages]
        for name in refusal.stages:
            if name not in names:
                close = get_close_matches(name, names, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise ValueError(f"refusal.stages names {name!r}, which is no stage{hint}")
        places = [refusal.place(name) for name in names]
        for name in (refusal.harmful, refusal.harmless):
            stored = self.dataset(name).positions
            for _, position in ((refusal.layer, refusal.position), *places):
                if position not in stored:
                    raise ValueError(
                        f"refusal reads position {position}, which dataset {name!r} does not "
                        f"store; it stores {list(stored)}"
                    )
        layers = (refusal.layer, *(at for at, _ in places), *self._candidate_layers(refusal))
        for needed in {"resid_post" if layer else "resid_pre" for layer in layers}:
            if needed not in self.extraction.sites:
                raise ValueError(f"refusal needs the site {needed!r} among the extraction's sites")
        if len(set(refusal.sites)) < len(refusal.sites):
            raise ValueError(f"refusal.sites repeats a site: {list(refusal.sites)}")
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
