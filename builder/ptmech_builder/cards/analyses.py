"""The sections of a card that ask for analyses: weights, traces, refusal, truth, confidence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ptmech.knowledge.prompts import Form
from ptmech.manifest import Name, Schema
from ptmech_builder.cards.references import DataReference

ResidualSite = Literal["resid_pre", "resid_mid", "resid_post"]


class WeightsCard(Schema):
    """Statistics of the unembedding and of the last MLP's neurons."""

    null_space_k: Annotated[int, Field(ge=1)] = 16
    """Lowest singular directions of the unembedding that count as its null space."""


class ConfidenceCard(Schema):
    """Entropy-neuron candidates ablated: what they do to the entropy, and how."""

    candidates: Annotated[int, Field(ge=1)] = 10
    """How many candidates of each stage; as many random neurons are ablated as well."""
    norm_quantile: Annotated[float, Field(ge=0, lt=1)] = 0.75
    """Candidates and random neurons have output weights longer than this quantile."""
    plain_text: DataReference
    """File with a column ``text``: what entropy and loss are measured on."""
    texts: Annotated[int, Field(ge=2)] = 10
    """How many of its texts, the first ones."""
    seed: int = 0
    """Of the random neurons."""


class TraceCard(Schema):
    """Causal tracing on one dataset."""

    dataset: Name
    """Statements with subject and object."""
    form: Form = "completion"
    """``completion``: the statement cut off before its object, the answer its object, for models of
    any size. ``true_false``: the statement and a question, the paper's form, for large models."""
    examples: tuple[str, ...] = ()
    """What stands before every prompt: true statements that show what kind of answer is wanted; for
    ``true_false`` four statements with question and answer; those of the card's
    ``worked_examples`` if none are given, or else chosen by the seed."""
    pairs: Annotated[int, Field(ge=1, le=50_000)] = 8
    """Pairs of prompts that are traced."""
    seed: int = 0
    """Of the pairs that are drawn."""

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


class RefusalPlaceCard(Schema):
    """Where one stage's refusal direction is read, and how hard this stage is pushed."""

    layer: Annotated[int, Field(ge=0)] | None = None
    """Layer of its direction; else the card's."""
    position: Annotated[int, Field(lt=0)] | None = None
    """Token of its direction; else the card's."""
    scale: float | None = None
    """Factor of whatever direction is added in this stage, instead of the card's scales."""


class RefusalCard(Schema):
    """Refusal directions and their interventions."""

    harmful: Name = "harmful"
    """Instructions that should be refused."""
    harmless: Name = "harmless"
    """Instructions that should not."""
    layer: Annotated[int, Field(ge=0)]
    """Layer of the direction, ``resid_pre`` convention."""
    position: Annotated[int, Field(lt=0)] = -1
    """Token of the direction, counted back from the end of the prompt."""
    scored_prompts: Annotated[int, Field(ge=1)] = 48
    """Test prompts of either kind that are completed under every intervention."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 16
    """Length at which completions are cut off."""
    scales: Annotated[tuple[float, ...], Field(min_length=1)] = (1.0,)
    """Factors of the added directions."""
    plain_text: DataReference
    """File with a column ``text``, for the coherence figure."""
    scored_texts: Annotated[int, Field(ge=1)] = 24
    """How many of its rows are used, the first ones."""
    seed: int = 0
    """Of the random directions."""
    unit_length: bool = False
    """Add directions of length one, as the paper does, instead of the difference in means."""
    sites: Annotated[tuple[ResidualSite, ...], Field(min_length=1)] = ("resid_pre",)
    """Where of the layer directions are added; the paper does it at all three."""
    stages: Mapping[Name, RefusalPlaceCard] = {}
    """Stages whose direction is read elsewhere, or that are pushed by another factor.

    Position and layer belong to the direction: it is read there, and added at that layer in every
    stage. The factor belongs to the stage that is run, and holds for all directions added in it.
    """
    candidates: CandidatesCard | None = None
    """Also score candidate directions."""

    def place(self, stage: str) -> tuple[int, int]:
        """Return layer and position at which a stage's direction is read."""
        own = self.stages.get(stage, RefusalPlaceCard())
        return (
            self.layer if own.layer is None else own.layer,
            self.position if own.position is None else own.position,
        )

    def factors(self, stage: str) -> tuple[float, ...]:
        """Return the factors with which directions are added in a stage."""
        own = self.stages.get(stage, RefusalPlaceCard()).scale
        return self.scales if own is None else (own,)


class TruthInterventionCard(Schema):
    """Truth directions added to statements that a model is asked about."""

    dataset: Name
    """Statements that are asked about; directions are found in the other datasets."""
    first_layer: Annotated[int, Field(ge=0)]
    """First layer at which directions are added; the last one is the probes' layer."""
    statements: Annotated[int, Field(ge=2)] = 64
    """How many of them are asked about."""
    seed: int = 0
    """Of the statements, the examples and the random direction."""
    examples: tuple[str, ...] = ()
    """Worked examples before every statement, with question and answer; those of the card's
    ``worked_examples`` if none are given, or else chosen by the seed."""


class TruthCard(Schema):
    """Defaults of the truthfulness analyses."""

    layer: Annotated[int, Field(ge=0)]
    """Layer of the probes, ``resid_post``."""
    datasets: tuple[Name, ...] = ()
    """Statement sets of the probes; all that affirm something if empty."""
    intervention: TruthInterventionCard | None = None
    """Also add truth directions to statements that the models are asked about."""

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
