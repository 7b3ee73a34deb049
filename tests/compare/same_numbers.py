"""What ptmech.live and any other library must agree on, said once for all libraries.

A test module of this folder says how its library reads and changes a model (a :class:`Peer`) and
inherits the comparisons. Both sides get the same token ids; the other side pads on the left and
takes edits as plain functions of the stream, so that neither positions nor the arithmetic of an
intervention are shared with ptmech.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import pytest
import torch
from torch import Tensor

from ptmech.live import LiveModel, ablate, add, patch
from ptmech.live.tracing.clean_run import clean_run
from ptmech.live.tracing.sweep import patch_sweep

Rows = Sequence[Sequence[int]]
Place = tuple[str, int]
Edit = Callable[[Tensor], Tensor]

PROMPTS = (
    "The city of Paris is in",
    "Fifty-one is larger than twenty-one.",
    "<|im_start|>user\nName three trees.<|im_end|>\n<|im_start|>assistant\n",
    "Water",
)
SITES = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
LAYERS = (0, 9, 15, 29)
TOLERANCE = 5e-5
"""Relative, of whole vectors: ten times what float32 leaves of it when sums run in other orders,
and far below the effect of any edit made here."""


class Peer(Protocol):
    """Another library around the same model, fed with rows that it pads on the left."""

    name: str

    def activations(self, rows: Rows, layers: Sequence[int]) -> Mapping[Place, Tensor]:
        """Read all :data:`SITES` of some layers: [rows, tokens, d_model] each."""
        ...

    def logits(self, rows: Rows, edits: Mapping[Place, Edit]) -> Tensor:
        """Logits [rows, vocabulary] after each prompt, with the stream changed at some places."""
        ...


def deviation(found: Tensor, expected: Tensor) -> float:
    """Length of the difference over the length expected, of the worst vector [..., width]."""
    assert found.shape == expected.shape
    return float(((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


@dataclass(frozen=True)
class Agreement:
    """Holds two results against each other and remembers the worst deviation."""

    peer: str
    worst: dict[tuple[str, str], float]

    def of(self, what: str, found: Tensor, expected: Tensor) -> None:
        value = deviation(found, expected)
        key = (self.peer, what)
        self.worst[key] = max(value, self.worst.get(key, 0.0))
        assert value < TOLERANCE, f"{what}: {self.peer} and ptmech.live deviate by {value:.1e}"


def at_token(token: int, values: Tensor) -> Edit:
    """Put values [rows, d_model] in place of one token of every row."""

    def replaced(stream: Tensor) -> Tensor:
        changed = stream.clone()
        changed[:, token] = values
        return changed

    return replaced


@pytest.mark.compare
class SameNumbers:
    """The comparisons; a subclass in a module with a fixture `peer` runs them."""

    @pytest.mark.parametrize("row", range(len(PROMPTS)), ids=lambda row: f"prompt{row}")
    def test_activations_of_one_prompt(
        self, peer: Peer, ours: LiveModel, rows: Rows, row: int, agreement: Agreement
    ) -> None:
        expected = peer.activations([rows[row]], LAYERS)
        for site in SITES:
            found = ours.activations(
                [PROMPTS[row]], site=site, layers=LAYERS, positions=range(len(rows[row]))
            )
            for index, layer in enumerate(LAYERS):
                agreement.of(f"{site}, one prompt", found[:, index], expected[site, layer])

    def test_activations_of_a_padded_batch(
        self, peer: Peer, ours: LiveModel, rows: Rows, agreement: Agreement
    ) -> None:
        expected = peer.activations(rows, LAYERS)
        width = max(len(row) for row in rows)
        # Rows of one length, as positions have to be: short prompts name their first token again.
        positions = [[max(at - width, -len(row)) for at in range(width)] for row in rows]
        for site in SITES:
            found = ours.activations(
                rows, site=site, layers=LAYERS, positions=positions, batch_size=3
            )
            for index, layer in enumerate(LAYERS):
                for row, tokens in enumerate(rows):
                    agreement.of(
                        f"{site}, padded batch",
                        found[row, index, -len(tokens) :],
                        expected[site, layer][row, -len(tokens) :],
                    )

    @pytest.mark.parametrize("site", SITES)
    def test_steering(
        self,
        peer: Peer,
        ours: LiveModel,
        rows: Rows,
        direction: Tensor,
        site: str,
        agreement: Agreement,
    ) -> None:
        edits = {(site, 12): lambda stream: stream + 0.7 * direction}
        with ours.intervene(add(direction, 12, scale=0.7, sites=(site,))):
            found = ours.logits(rows, batch_size=3)
        agreement.of(f"logits, added at {site}", found, peer.logits(rows, edits))
        assert deviation(found, ours.logits(rows)) > 0.01

    def test_ablation_at_every_residual_site_of_every_layer(
        self, peer: Peer, ours: LiveModel, rows: Rows, direction: Tensor, agreement: Agreement
    ) -> None:
        unit = direction / direction.norm()
        edits = {
            (site, layer): lambda stream: stream - (stream @ unit)[..., None] * unit
            for layer in range(ours.n_layers)
            for site in ("resid_pre", "resid_mid", "resid_post")
        }
        with ours.intervene(ablate(direction)):
            found = ours.logits(rows, batch_size=3)
        agreement.of("logits, direction ablated", found, peer.logits(rows, edits))
        assert deviation(found, ours.logits(rows)) > 0.01

    @pytest.mark.parametrize("token", [-1, -2])
    @pytest.mark.parametrize("layer", LAYERS)
    def test_patching_one_token(
        self,
        peer: Peer,
        ours: LiveModel,
        rows: Rows,
        layer: int,
        token: int,
        agreement: Agreement,
    ) -> None:
        source, target = rows[1], rows[0]
        foreign = peer.activations([source], [layer])["resid_post", layer][:, token]
        expected = peer.logits([target], {("resid_post", layer): at_token(token, foreign)})
        values = ours.activations([source], layers=[layer], positions=[token])[:, 0]
        with ours.intervene(patch(values, layer, [token])):
            found = ours.logits([target])
        agreement.of("logits, resid_post patched", found, expected)
        if token == -1 or layer < ours.n_layers - 1:
            assert deviation(found, ours.logits([target])) > 1e-3

    def test_patching_a_padded_batch(
        self, peer: Peer, ours: LiveModel, rows: Rows, agreement: Agreement
    ) -> None:
        sources, targets = (rows[1], rows[2], rows[0]), rows[:3]
        foreign = peer.activations(sources, [9])["resid_mid", 9][:, -3]
        expected = peer.logits(targets, {("resid_mid", 9): at_token(-3, foreign)})
        values = ours.activations(sources, site="resid_mid", layers=[9], positions=[-3])[:, 0]
        with ours.intervene(patch(values, 9, [-3], site="resid_mid")):
            found = ours.logits(targets, batch_size=2)
        agreement.of("logits, resid_mid patched in a batch", found, expected)
        assert deviation(found, ours.logits(targets)) > 1e-3

    def test_causal_tracing_cell_by_cell(
        self, peer: Peer, ours: LiveModel, agreement: Agreement
    ) -> None:
        example = "The city of Berlin is in Germany. "
        clean, other = ours.tokens(
            [f"{example}The city of {city} is in" for city in ("Rome", "Oslo")]
        )
        answers = [ours.tokens([f" {country}"])[0][0] for country in ("Italy", "Norway")]
        begin, width = len(ours.tokens([example.rstrip()])[0]), len(clean)

        def gap(logits: Tensor) -> Tensor:
            return logits[:, answers[0]] - logits[:, answers[1]]

        donors = clean_run(ours.sites, torch.tensor([clean]), begin=begin).outputs
        run = clean_run(ours.sites, torch.tensor([other]), begin=begin)
        sweep = patch_sweep(
            ours.sites, run, donors, lambda stream, _rows: gap(ours.sites.unembed(stream[:, -1]))
        )

        foreign = peer.activations([clean], LAYERS)
        cells = [
            peer.logits([other], {place: at_token(token, foreign[place][:, token])})
            for place in [("resid_post", layer) for layer in LAYERS]
            for token in range(begin, width)
        ]
        expected = gap(torch.cat(cells)).reshape(1, len(LAYERS), width - begin)
        agreement.of("causal tracing, grid", sweep.grid[:, LAYERS].flatten(1), expected.flatten(1))
        assert float(sweep.grid.max() - sweep.grid.min()) > 3
