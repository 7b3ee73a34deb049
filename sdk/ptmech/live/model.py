"""A model one can ask and change: any stage of an artifact, or any supported causal model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import torch
from torch import Tensor

from ptmech._arguments import layer_numbers, several, whole_number
from ptmech.errors import (
    DataError,
    ParityError,
)
from ptmech.live.generation import (
    Sampling,
    batches,
    generate_texts,
    next_token_logits,
    next_token_loss,
    run_body,
    token_logits,
)
from ptmech.live.interventions import Intervention, intervene
from ptmech.live.layout import Positions, prompt_indices
from ptmech.live.models import DeviceMap, load_model, pick_device, source_of, torch_dtype
from ptmech.live.recording import PARITY_TOLERANCE, record, site_self_check
from ptmech.live.sites import ModelSites
from ptmech.live.templates import Template
from ptmech.manifest import Quantisation, StoredDtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Prompts = Sequence[str | Sequence[int]]
"""Prompts as text, to be tokenised with the special tokens the tokenizer adds, or as token ids."""

_SELF_CHECK_TEXT = "The river runs past the old mill and down to the sea."


@dataclass(frozen=True, eq=False)
class LiveModel:
    """A causal language model with named sites, in evaluation mode and without gradients.

    Open a stage of an artifact with :func:`ptmech.live.open`, any other model with
    :meth:`from_pretrained`.

    Attributes
    ----------
    model
        The transformers model.
    tokenizer
        Its tokenizer.
    name
        Which model this is: ``artifact@sha/stage``, or the id and revision it was loaded from.
    template
        How :meth:`chat` puts instructions; of a stage of an artifact, as its card says.

    Examples
    --------
    What a model answers without its refusal direction::

        model = sdk.live.open(artifact, "safety")
        prompts = model.chat(["Write a fake note from the teacher."])
        with model.intervene(sdk.live.ablate(direction)):
            model.generate(prompts)
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    template: Template = field(default_factory=Template)

    @classmethod
    def from_pretrained(
        cls,
        id_or_path: str | Path,
        revision: str | None = None,
        *,
        device: str = "auto",
        device_map: DeviceMap | None = None,
        dtype: StoredDtype | None = None,
        quantisation: Quantisation | None = None,
    ) -> Self:
        """Load a model from the Hub, or from a folder as ``save_pretrained`` writes it.

        Parameters
        ----------
        id_or_path
            ``"owner/name"`` on the Hub, or a folder. Weights are read from safetensors only.
        revision
            Branch, tag or commit on the Hub.
        device
            A torch device; ``"auto"`` takes the GPU if there is one.
        device_map
            How to spread a model that is larger than one device: ``"auto"``, or a mapping from
            module names to devices as accelerate takes it.
        dtype
            Element type to compute in; float32 unless said otherwise.
        quantisation
            To what to quantise the weights. Those that are quantised already are refused unless
            this says so.

        Returns
        -------
        LiveModel
            Its sites have been proven.

        Raises
        ------
        ArtifactNotFoundError
            There is no such model.
        UnsupportedModelError
            Its architecture's sites are not known, or its weights are quantised otherwise than
            asked for.
        PrerequisiteError
            The package that computes with quantised weights is missing.
        ParityError
            Its sites are not what their definitions say.
        DataError
            A revision of a folder, an id that is neither, a device that cannot be used, or one
            together with a device map.
        """
        loaded = load_model(
            source_of(id_or_path, revision),
            device=pick_device(device, device_map),
            device_map=device_map,
            dtype=torch_dtype(dtype or "float32"),
            quantisation=quantisation,
        )
        live = cls(loaded.model, loaded.tokenizer, loaded.identity.source)
        live.prove_sites()
        return live

    @cached_property
    def sites(self) -> ModelSites:
        """Where the model's parts are."""
        return ModelSites.of(self.model)

    @property
    def device(self) -> torch.device:
        """Where token ids have to be."""
        return self.sites.device

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return self.sites.n_layers

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.sites.d_model

    def __repr__(self) -> str:
        return (
            f"<LiveModel {self.name}: {self.sites.architecture.model_type}, {self.n_layers} layers "
            f"of {self.d_model}, {str(self.model.dtype).removeprefix('torch.')} on {self.device}>"
        )

    def tokens(self, prompts: Prompts) -> list[list[int]]:
        """Tokenise prompts; those that are token ids already pass through.

        Parameters
        ----------
        prompts
            Text or token ids.

        Returns
        -------
        list of list of int
            The ids of each prompt, without padding.

        Raises
        ------
        DataError
            A prompt without tokens, or with ids outside of the vocabulary.
        """
        found: list[list[int]] = []
        for number, prompt in enumerate(several("prompts", prompts)):
            ids = self.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
            tokens = [
                whole_number("a token", token, least=None)
                for token in several(f"prompt {number}", ids)
            ]
            if not tokens:
                raise DataError(f"prompt {number} has no tokens")
            if min(tokens) < 0 or max(tokens) >= self.sites.vocabulary:
                raise DataError(
                    f"prompt {number} has a token outside of the vocabulary of "
                    f"{self.sites.vocabulary}"
                )
            found.append(tokens)
        return found

    def chat(self, instructions: Sequence[str]) -> list[list[int]]:
        """Put each instruction into the model's template, up to where the reply begins: token ids.

        Parameters
        ----------
        instructions
            What a user would say.

        Returns
        -------
        list of list of int
            Token ids, which every method takes in place of a text.

        Raises
        ------
        DataError
            The tokenizer has no chat template where one is needed.
        """
        asked = several("instructions", instructions)
        return self.template.render(self.tokenizer, asked, self.name).token_ids

    def intervene(self, *interventions: Intervention) -> AbstractContextManager[None]:
        """Apply interventions to everything this model does in a ``with`` block.

        Parameters
        ----------
        *interventions
            What to do; at a common site in this order.

        Returns
        -------
        context manager
            The model is itself again when it ends.

        Raises
        ------
        UnknownNameError, DataError
            What does not fit the model is refused before anything runs; see
            :func:`ptmech.live.interventions.intervene`.
        """
        return intervene(self.model, *interventions)

    def forward(self, prompts: Prompts, *, batch_size: int = 8) -> list[Tensor]:
        """Logits [tokens, vocabulary] after every token of each prompt, float32 on the CPU.

        Parameters
        ----------
        prompts
            Text or token ids.
        batch_size
            Prompts that run together.

        Returns
        -------
        list of Tensor
            [tokens, vocabulary] for each prompt.
        """
        return token_logits(self.model, self.tokens(prompts), batch_size=batch_size)

    def logits(self, prompts: Prompts, *, batch_size: int = 32) -> Tensor:
        """Logits [rows, vocabulary] of the token after each prompt, float32 on the CPU.

        Parameters
        ----------
        prompts
            Text or token ids.
        batch_size
            Prompts that run together.

        Returns
        -------
        Tensor
            [rows, vocabulary].
        """
        return next_token_logits(self.model, self.tokens(prompts), batch_size=batch_size)

    @torch.inference_mode()
    def activations(
        self,
        prompts: Prompts,
        site: str = "resid_post",
        *,
        layers: Literal["all"] | int | Sequence[int] = "all",
        positions: Positions = -1,
        batch_size: int = 32,
    ) -> Tensor:
        """Read a site, under whatever interventions are active.

        Parameters
        ----------
        prompts
            Text or token ids.
        site
            One of :data:`ptmech.live.sites.SITES`.
        layers
            Which layers.
        positions
            Which tokens: negative numbers from the end of each prompt, others from its first token;
            ``"all"`` for prompts of equally many tokens.
        batch_size
            Prompts that run together.

        Returns
        -------
        Tensor
            [rows, layers, positions, d_model] in the model's dtype, on the CPU.

        Raises
        ------
        UnknownNameError
            A site or layer the model does not have.
        DataError
            A position outside of a prompt, or ``"all"`` with prompts of several lengths.
        """
        token_lists = self.tokens(prompts)
        wanted = [(site, layer) for layer in layer_numbers(layers, every=range(self.n_layers))]
        indices = prompt_indices(positions, [len(tokens) for tokens in token_lists])
        found = torch.empty(
            len(token_lists), len(wanted), indices.shape[1], self.d_model, dtype=self.model.dtype
        )
        for batch in batches(token_lists, batch_size):
            with record(self.model, wanted, indices[batch]) as read:
                run_body(self.sites, token_lists, batch)
            found[batch] = torch.stack([read[place].cpu() for place in wanted], dim=1)
        return found

    def generate(
        self,
        prompts: Prompts,
        *,
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        batch_size: int = 32,
    ) -> list[str]:
        """Complete prompts, under whatever interventions are active.

        Parameters
        ----------
        prompts
            Text or token ids.
        max_new_tokens
            Length at which a completion is cut off.
        temperature
            0 takes the likeliest token every time; above, tokens are drawn.
        top_p, seed
            For drawing, see :class:`ptmech.live.generation.Sampling`. A row's tokens depend neither
            on its neighbours nor on the batch size.
        batch_size
            Prompts that run together.

        Returns
        -------
        list of str
            The new text of each prompt, without special tokens.

        Raises
        ------
        DataError
            A prompt without tokens, or a temperature or top_p out of range.
        """
        drawn = Sampling(temperature or 1.0, top_p, seed)
        sampling = None if temperature == 0 else drawn
        return generate_texts(
            self.model,
            self.tokenizer,
            self.tokens(prompts),
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            batch_size=batch_size,
        )

    def loss(self, texts: Prompts, *, batch_size: int = 8) -> float:
        """Mean cross-entropy of plain texts in nats a token: the coherence figure.

        Parameters
        ----------
        texts
            Text or token ids.
        batch_size
            Texts that run together.

        Returns
        -------
        float
            Mean over all tokens of all texts but each text's first.
        """
        return next_token_loss(self.model, self.tokens(texts), batch_size=batch_size)

    def prove_sites(self) -> None:
        """Check on one sentence that the sites are what their definitions say.

        Raises
        ------
        ParityError
            They are not.
        """
        ids = torch.tensor(self.tokens([_SELF_CHECK_TEXT]), device=self.device)
        deviation = site_self_check(self.model, ids)
        tolerance = PARITY_TOLERANCE[str(self.model.dtype).removeprefix("torch.")]
        if not deviation <= tolerance:
            raise ParityError(
                f"the sites of {self.name} deviate by {deviation:.2g} from their definitions, more "
                f"than {tolerance:.2g}: this model cannot be used"
            )
