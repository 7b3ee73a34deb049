"""How far a run prefers one answer to another, read off the last block's output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ptmech.live.sites import ModelSites

LOGITS_AT_ONCE = 2**24
"""Logits in memory at once."""


@dataclass(frozen=True, eq=False)
class Reading:
    """What to let a run go on with, and what to read off it then.

    Attributes
    ----------
    continuations
        For each pair the tokens to follow the prompt.
    answers
        For each pair the tokens to look up: of the ``true`` answer and of the ``false`` one after
        the prompt, or of one answer's own tokens, one at each token that is read.
    whole
        Whether `answers` is one answer, to be read as a whole.
    sign
        With which the reading counts.
    """

    continuations: Sequence[Sequence[int]]
    answers: Tensor
    whole: bool
    sign: int = 1

    @property
    def reads(self) -> int:
        """Of how many tokens, up to the last one, the output is read."""
        return self.answers.shape[1] if self.whole else 1

    def __call__(self, sites: ModelSites, stream: Tensor, rows: Tensor) -> Tensor:
        """Read off a stream.

        Parameters
        ----------
        sites
            The model.
        stream
            Last ``resid_post`` [runs, reads, d_model].
        rows
            [runs]: which pair each run is of.

        Returns
        -------
        Tensor
            [runs] float32.
        """
        normed = sites.final_norm(stream)
        answers = self.answers[rows].to(normed.device)
        if not self.whole:
            first, second = _logits_of(sites, normed[:, -1], answers).unbind(dim=1)
            return first - second
        size = max(1, LOGITS_AT_ONCE // (sites.vocabulary * self.reads))
        return torch.cat(
            [
                sites.project(part)
                .float()
                .log_softmax(dim=-1)
                .gather(2, of.unsqueeze(2))
                .sum((1, 2))
                for part, of in zip(normed.split(size), answers.split(size), strict=True)
            ]
        )


def readings(
    true_answers: Sequence[Sequence[int]], false_answers: Sequence[Sequence[int]]
) -> list[Reading]:
    """Say what to read so that the signed sum is true answer less false answer.

    The difference of two logits where every answer is one token. Else of the log-probabilities of
    the whole answers, each of which needs a run of its own that goes on with its first tokens.
    """
    if all(len(answer) == 1 for answer in (*true_answers, *false_answers)):
        both = [
            (true[0], false[0]) for true, false in zip(true_answers, false_answers, strict=True)
        ]
        return [Reading([()] * len(both), torch.tensor(both), whole=False)]
    return [
        Reading([answer[:-1] for answer in answers], torch.tensor(answers), whole=True, sign=sign)
        for answers, sign in ((true_answers, 1), (false_answers, -1))
    ]


def _logits_of(sites: ModelSites, normed: Tensor, tokens: Tensor) -> Tensor:
    """Return a few tokens' logits [runs, tokens], without unembedding the whole vocabulary."""
    unembedding: Any = sites.unembedding
    weight: Tensor = sites.w_u[tokens.to(sites.w_u.device)]
    logits = torch.einsum("rd,rtd->rt", normed.float(), weight.to(normed.device).float())
    if getattr(unembedding, "bias", None) is not None:
        logits = logits + unembedding.bias[tokens].to(logits)
    return sites.cap(logits)
