"""Which facts a model knows: what it completes correctly by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ptmech.knowledge.completions import encode_completions

if TYPE_CHECKING:
    from ptmech.live.model import LiveModel


def known_facts(
    model: LiveModel, prompts: pl.DataFrame, *, batch_size: int = 32
) -> NDArray[np.bool_]:
    """Tell which facts the model knows: the likeliest next token is the answer's first.

    Parameters
    ----------
    model
        A live model.
    prompts
        As :func:`ptmech.knowledge.completion_prompts` returns them.
    batch_size
        Prompts that run together.

    Returns
    -------
    bool array [prompts]
        A fact whose prompt and answer the tokenizer does not separate counts as not known.

    Examples
    --------
    Pairs of facts that a model knows::

        prompts = knowledge.completion_prompts(statements)
        known = prompts["row_uid"].filter(live.known_facts(model, prompts))
        knowledge.pairs(statements, model.tokenizer, known=known)
    """
    facts = encode_completions(prompts, model.tokenizer)
    logits = model.logits([fact.tokens for fact in facts], batch_size=batch_size)
    best: list[int] = logits.argmax(dim=1).tolist()
    return np.array([fact.answer == token for fact, token in zip(facts, best, strict=True)])
