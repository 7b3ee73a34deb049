"""Questions behind worked examples: keys and values of the examples kept, against whole prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.extraction import padded_right
from benchmarks.interleaved import Numbers, Way, measure
from benchmarks.report import Table, cost_table
from benchmarks.setting import Benchmark, Setting
from ptmech._worked_examples import ANSWERS, QUESTION
from ptmech.live.effects.truth import answer_probabilities
from ptmech.live.model import LiveModel
from ptmech.truth.steering import Questions

ABOUT = """
The probabilities of " TRUE" and " FALSE" after statements, each behind four worked examples in an
order of its own, as `truth.intervene` asks them. In this vocabulary " TRUE" is several tokens, so
that the probability of the word is a product.

- **ptmech**: examples once for each order, statement once, question and answer behind them.
- **whole prompts**: every prompt with each of the two answers, rows of similar length in batches of
  32; the body, and the unembedding at the answers' tokens only.
- **whole prompts, all logits**: the same through the whole model, logits at every token.

Four examples have 24 orders at most, so the more statements, the less the examples weigh. The two
last are timed on a part of the statements.
"""
ROUNDS = 3
N_QUESTIONS = (48, 200)
"""As the demo's card asks them, and as the cards of the paper's models do."""
SAMPLED, BATCH = 8, 32
OURS = "ptmech"
TOLERANCE = 1e-3


def run(setting: Setting) -> list[Table]:
    """Ask about few and about many statements of the artifact."""
    tables: list[Table] = []
    for number in N_QUESTIONS:
        questions = Questions.of(setting.artifact.statements("cities"), n=number, seed=0)
        costs = measure(
            ways(setting.model, questions),
            reference=OURS,
            rounds=setting.rounds or ROUNDS,
            tolerance=TOLERANCE,
        )
        orders = len(set(questions.lead_ins))
        title = f"{len(questions.truths)} statements, {orders} orders of the examples"
        tables.append(cost_table(title, costs, unit="ptmech"))
    return tables


def ways(model: LiveModel, questions: Questions) -> list[Way]:
    """Return all ways."""
    share = min(1.0, SAMPLED / len(questions.truths))
    return [
        Way(name=OURS, run=lambda: ours(model, questions)),
        Way(
            name="whole prompts",
            run=lambda: whole_prompts(model, questions, every=False),
            share=share,
        ),
        Way(
            name="whole prompts, all logits",
            run=lambda: whole_prompts(model, questions, every=True),
            share=share,
        ),
    ]


def ours(model: LiveModel, questions: Questions) -> Numbers:
    """Ask once, nothing added."""
    nothing = [np.zeros(model.d_model)]
    return {"answers": answer_probabilities(model, questions, nothing, layers=[0])[0]}


@torch.inference_mode()
def whole_prompts(model: LiveModel, questions: Questions, *, every: bool) -> Numbers:
    """Run every prompt with each answer from its first token."""
    every_text = [
        f"{lead_in}{statement}{QUESTION}"
        for lead_in, statement in zip(questions.lead_ins, questions.statements, strict=True)
    ]
    texts = every_text[:SAMPLED]
    prompts = model.tokens(texts)
    rows = [row for text in texts for row in model.tokens([text + answer for answer in ANSWERS])]
    asked = [len(prompt) for prompt in prompts for _ in ANSWERS]
    found = np.empty(len(rows))
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        found[batch] = _likelihoods(
            model, [rows[row] for row in batch], [asked[row] for row in batch], every=every
        )
    answers = np.ma.masked_all((len(every_text), len(ANSWERS)))
    answers[: len(texts)] = found.reshape(-1, len(ANSWERS))
    return {"answers": answers}


def _likelihoods(
    model: LiveModel, rows: Sequence[Sequence[int]], asked: Sequence[int], *, every: bool
) -> list[float]:
    ids, mask, _ = padded_right(rows)
    if every:
        streams = model.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    else:
        body = model.sites.body(input_ids=ids, attention_mask=mask, use_cache=False)
        streams = body.last_hidden_state
    found: list[float] = []
    for stream, row, begin in zip(streams, rows, asked, strict=True):
        before_answer: Tensor = stream[begin - 1 : len(row) - 1]
        logits = before_answer if every else model.sites.project(before_answer)
        expected = torch.tensor(row[begin:])[:, None]
        found.append(float(logits.log_softmax(-1).gather(1, expected).sum().exp()))
    return found


BENCHMARK = Benchmark(
    name="worked_examples", title="Questions behind worked examples", about=ABOUT, run=run
)
