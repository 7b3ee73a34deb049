"""The very forwards that an extraction ran, to run them again with nothing stored."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_mask

Context = bytes
"""The token ids that one token sees, itself last, as bytes of int64."""


def context_of(token_ids: Sequence[int]) -> Context:
    """Return what the last token of a row has to see: the row."""
    return np.asarray(token_ids, dtype=np.int64).tobytes()


@dataclass(frozen=True, eq=False)
class Forward:
    """One call of a model's body: its arguments, all by name."""

    arguments: Mapping[str, Any]

    @property
    def input_ids(self) -> Tensor:
        """Token ids [sequences, tokens]."""
        return self.arguments["input_ids"]

    @cached_property
    def seen(self) -> np.ndarray:
        """Which token sees which [sequences, tokens, tokens], read from the attention mask."""
        sequences, tokens = self.input_ids.shape
        mask: Tensor | BlockMask | None = self.arguments.get("attention_mask")
        if isinstance(mask, BlockMask):
            device = self.input_ids.device
            mask = create_mask(mask.mask_mod, sequences, 1, tokens, tokens, device=str(device))
        causal = np.tri(tokens, dtype=bool)
        if mask is None:
            return np.broadcast_to(causal, (sequences, tokens, tokens))
        if mask.ndim == 2:
            real = mask.cpu().numpy().astype(bool)
            return causal & real[:, None, :] & real[:, :, None]
        allowed = mask if mask.dtype == torch.bool else mask == 0  # else what is added to scores
        return allowed[:, 0].cpu().expand(sequences, tokens, tokens).numpy()

    def contexts(self) -> Iterator[tuple[int, int, Context]]:
        """Yield sequence, token and what that token sees.

        Left out is what stands in no order that a row could have: the padding.
        """
        sequences, tokens = self.input_ids.shape
        ids = self.input_ids.cpu().numpy()
        positions: Tensor | None = self.arguments.get("position_ids")
        if positions is None:
            positions = torch.arange(tokens)
        depths = positions.cpu().expand(sequences, tokens).numpy()
        for sequence in range(sequences):
            for token in range(tokens):
                (seen,) = self.seen[sequence, token].nonzero()
                order = seen[np.argsort(depths[sequence, seen], kind="stable")]
                in_order = np.array_equal(depths[sequence, order], np.arange(order.size))
                if order.size and order[-1] == token and in_order:
                    yield sequence, token, context_of(ids[sequence, order])


@dataclass(frozen=True, eq=False)
class Forwards:
    """All forwards of one extraction, with their arguments left on the device."""

    calls: Sequence[Forward]
    contexts: Sequence[Mapping[Context, list[tuple[int, int]]]]
    """For each forward: where the tokens of the rows stand, by what they see."""

    @classmethod
    def of(cls, calls: Sequence[Forward], rows: Sequence[Sequence[int]]) -> Forwards:
        """Find the rows, and what they begin with, in the forwards."""
        beginnings = {context_of(row[:end]) for row in rows for end in range(1, len(row) + 1)}
        contexts: list[dict[Context, list[tuple[int, int]]]] = []
        for call in calls:
            found: dict[Context, list[tuple[int, int]]] = {}
            for sequence, token, context in call.contexts():
                if context in beginnings:
                    found.setdefault(context, []).append((sequence, token))
            contexts.append(found)
        return cls(calls, contexts)

    @property
    def tokens(self) -> int:
        """Tokens that ran, padding included."""
        return sum(call.input_ids.numel() for call in self.calls)

    @property
    def places(self) -> Iterator[tuple[int, int, int]]:
        """Forward, sequence and token of everything that is no padding."""
        for number, contexts in enumerate(self.contexts):
            for where in contexts.values():
                yield from ((number, *place) for place in where)

    @property
    def useful_tokens(self) -> int:
        """Tokens that ran and are no padding."""
        return sum(1 for _ in self.places)

    @property
    def seen(self) -> int:
        """Pairs of tokens of which the later sees the earlier, or itself."""
        return sum(
            int(self.calls[number].seen[sequence, token].sum())
            for number, sequence, token in self.places
        )

    @torch.inference_mode()
    def run(self, body: nn.Module) -> None:
        """Run them all and keep nothing."""
        for call in self.calls:
            body(**call.arguments)


@contextmanager
def caught(body: nn.Module) -> Generator[list[Forward]]:
    """Note the arguments of every forward of a body."""
    calls: list[Forward] = []

    def note(_body: nn.Module, args: tuple[Any, ...], arguments: dict[str, Any]) -> None:
        named = dict(zip(("input_ids", "attention_mask", "position_ids"), args, strict=False))
        kept = {
            name: value.clone() if isinstance(value, Tensor) else value
            for name, value in {**named, **arguments}.items()
        }
        calls.append(Forward(kept))

    handle = body.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()
