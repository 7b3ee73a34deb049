"""Neurons ablated: what they do to entropy and loss, and how much of it through the final norm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ptmech._arguments import whole_number
from ptmech._score_tables import stacked
from ptmech.artifact import Artifact
from ptmech.confidence.averages import (
    EFFECT_VALUES,
    EFFECTS,
    Averages,
    Which,
    effects_table,
)
from ptmech.confidence.candidates import candidates
from ptmech.errors import DataError
from ptmech.results import PACKAGES, Result, installed_versions

if TYPE_CHECKING:
    from ptmech.live.model import LiveModel


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class NeuronEffects(Result):
    """What neurons do to the entropy and the loss of the next token.

    Attributes
    ----------
    frame
        One row for each ablation, measure and effect. ``stage``, the model that was run;
        ``layer``; ``neurons``: ``chosen``, the ones under test, or ``random``, what they are to be
        compared with; ``ablated``: ``one`` neuron (``neuron`` says which), ``each`` (the mean over
        the group's neurons, ablated one at a time), or all of them ``together``.

        ``measure``: ``entropy`` of the next-token distribution or ``loss``, both in nats;
        ``effect``: ``total`` (with the final norm free), ``direct`` (with its scale frozen at the
        unedited model's) or ``norm`` (their difference at each token: what goes through the norm);
        ``texts``, ``tokens``, what the averages are over; ``unedited``, the measure's mean without
        ablation.

        ``change``, the mean over tokens of measure under ablation minus measure without;
        ``absolute``, the mean of its absolute value, the size of an effect whatever its sign;
        ``share``, on rows of ``norm`` only, the share of the effect that goes through the norm:
        1 - absolute direct / absolute total. 1 means all of it; 0, none; below 0, that the norm
        works against the neuron: it would do more if the scale were held.
        Each with ``_low`` and ``_high``, its 95 % bootstrap interval over the texts, NaN for a
        single text. It is about other texts, not about other neurons.
    """


def effects(artifact: Artifact) -> NeuronEffects:
    """Read what ablating the entropy-neuron candidates did when the artifact was built.

    Parameters
    ----------
    artifact
        An artifact whose card asks for ``[confidence]``.

    Returns
    -------
    NeuronEffects
        The tables of all stages, earliest stage first; ``chosen`` are each stage's candidates.

    Raises
    ------
    NotStoredError
        If the artifact holds none.
    FormatError
        If a table does not fit its columns.

    Examples
    --------
    >>> effects(artifact).frame.filter(ablated="each", measure="entropy")  # doctest: +SKIP
    """
    return NeuronEffects(
        frame=stacked(artifact, "neurons", EFFECTS, EFFECT_VALUES, what="effects of neurons"),
        artifact=artifact.id,
        arguments={},
    )


def ablate_neurons(
    model: LiveModel | Artifact,
    neurons: Sequence[int] | None,
    texts: Sequence[str | Sequence[int]],
    *,
    stage: str | None = None,
    means: Any = None,
    layer: int = -1,
    controls: int | None = None,
    norm_quantile: float = 0.75,
    n_bootstrap: int = 1000,
    seed: int = 0,
    batch_size: int = 8,
    device: str = "auto",
) -> NeuronEffects:
    """Hold neurons at their mean activation, and see what becomes of entropy and loss.

    Each neuron by itself, and all together; with the final norm left free and with its scale frozen
    (Stolfo et al. 2024, section 3). An entropy neuron changes the entropy, and does so mostly
    through the norm. The same is done to random neurons. Needs torch.

    Parameters
    ----------
    model
        A live model without active interventions, or an artifact, one of whose stages is opened.
    neurons
        Which neurons; None, with an artifact, for the stage's ten candidates
        (:func:`candidates`).
    texts
        Ordinary texts, or token ids, of at least two tokens each. Measured is at every token but
        each text's last.
    stage
        With an artifact, the stage to open. With a live model, what the column ``stage`` says
        (its name, if None).
    means
        [d_mlp]: what to hold neurons at. None for their means over all tokens of `texts`.
    layer
        Whose neurons; -1 is the last layer, where entropy neurons are and where all ablations
        together cost little more than two forwards. In other layers each costs three.
    controls
        How many random neurons; None for as many as there are chosen ones, 0 for none.
    norm_quantile
        Random neurons are drawn from those of the layer whose output weights are longer than this
        quantile, as candidates are, the chosen ones left out. 0 draws from all.
    n_bootstrap
        Replicates of the bootstrap over texts.
    seed
        Of random neurons and bootstrap.
    batch_size
        Texts that run together.
    device
        Where a stage is opened.

    Returns
    -------
    NeuronEffects
        One row an ablation, measure and effect, see there.

    Raises
    ------
    UnknownNameError
        If a stage, layer or neuron does not exist.
    DataError
        If there are no neurons or texts, a neuron is named twice, a text is too short, too few
        neurons are left to draw from, or interventions are active.
    PrerequisiteError
        If torch is missing, or what a stage's weights come from; and whatever else
        :func:`ptmech.live.open` raises.

    Examples
    --------
    >>> model = sdk.live.open(artifact, "instruct")  # doctest: +SKIP
    >>> ablate_neurons(model, [1650, 1026], texts).plot()  # doctest: +SKIP
    >>> ablate_neurons(artifact, None, texts, stage="instruct")  # doctest: +SKIP
    """
    from ptmech import live

    live.require_torch()
    from ptmech.live.effects.neurons import random_neurons, token_effects

    if n_bootstrap < 1:
        raise DataError(f"n_bootstrap must be at least 1, not {n_bootstrap}")
    whole_number("seed", seed, least=0)
    if controls is not None:
        whole_number("controls", controls, least=0)
    if isinstance(model, Artifact):
        if stage is None:
            raise DataError(f"say which stage of {model.id} to open: stage=...")
        about = model.manifest.stage(stage)
        if neurons is None and about is not None and layer not in (-1, about.n_layers - 1):
            raise DataError(f"candidates are of the last layer: say which neurons of layer {layer}")
        chosen = list(candidates(model, stage) if neurons is None else neurons)
        source, opened = model.id, live.open(model, stage, device=device)
    else:
        if neurons is None:
            raise DataError("a live model has no list of candidates: say which neurons")
        chosen, source, opened = list(neurons), model.name, model
    drawn = random_neurons(
        opened,
        len(chosen) if controls is None else controls,
        layer=layer,
        norm_quantile=norm_quantile,
        without=chosen,
        seed=seed,
    )
    groups: dict[Which, list[int]] = {"chosen": chosen}
    if drawn:
        groups["random"] = drawn
    found = token_effects(
        opened,
        [[*each] for group in groups.values() for each in (*zip(group, strict=True), group)],
        texts,
        means=means,
        layer=layer,
        batch_size=batch_size,
    )
    frame = effects_table(
        Averages.over(found.text, n_bootstrap=n_bootstrap, seed=seed),
        found.unedited,
        found.total,
        found.direct,
        groups=groups,
        stage=opened.name if stage is None else stage,
        layer=opened.n_layers - 1 if layer == -1 else layer,
    )
    return NeuronEffects(
        frame=frame,
        artifact=source,
        arguments={
            "neurons": chosen,
            "stage": stage,
            "texts": len(texts),
            "means": "of the texts" if means is None else "given",
            "layer": layer,
            "controls": controls,
            "norm_quantile": norm_quantile,
            "n_bootstrap": n_bootstrap,
            "seed": seed,
        },
        versions=installed_versions((*PACKAGES, "torch", "transformers")),
    )
