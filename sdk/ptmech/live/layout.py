"""Where the tokens of a running forward stand in their prompts.

A hook sees a padded tensor [rows, tokens, d_model]; whoever intervenes thinks of "the last token of
the prompt". Between the two stand padding on either side, a key-value cache that has swallowed the
prompt already, and batches that hold only some of the rows, in another order. This module keeps
track of all three, so that an intervention means the same in all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ptmech.errors import DataError
from ptmech.live.sites import is_suspended

Positions = Literal["all"] | int | Sequence[int] | Sequence[Sequence[int]] | Tensor
"""Tokens to act on: ``"all"``, generated ones included; or tokens of the prompt, negative numbers
from its end (-1 the last), others from its first token. One list for every row, or one a row."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Which of a caller's rows a forward holds, and how many rows the caller has.

    Attributes
    ----------
    rows, total
        As :func:`running_rows` was told.
    mask
        The attention mask of their prompts on the CPU [rows, tokens], where it is known there.
    """

    rows: tuple[int, ...]
    total: int
    mask: Tensor | None = None

    def remaining(self, rows: int) -> tuple[Batch, list[int]] | None:
        """Say which of these rows a forward of so many rows goes on with.

        Returns
        -------
        tuple or None
            The batch that is left, and the places in this one of the rows that it has; None for
            rows that are not known to be of this one.
        """
        if rows == len(self.rows):
            return self, list(range(rows))
        later = _BATCH.get()
        if later is None or len(later.rows) != rows or not set(later.rows) <= set(self.rows):
            return None
        return later, [self.rows.index(row) for row in later.rows]


_IN_PIECES: ContextVar[bool] = ContextVar("ptmech_in_pieces", default=False)


@contextmanager
def in_pieces() -> Generator[None]:
    """Announce forwards that hold a part of each prompt only, the rest being in a cache.

    What such forwards share is computed once. An intervention at positions of whole prompts, or a
    frozen norm, does not fit them, and says so.
    """
    token = _IN_PIECES.set(True)
    try:
        yield
    finally:
        _IN_PIECES.reset(token)


def require_whole_forwards(what: str) -> None:
    """Raise if forwards hold parts of prompts, for something that needs them whole.

    Raises
    ------
    DataError
        Naming `what`.
    """
    if _IN_PIECES.get():
        raise DataError(
            f"{what} needs whole forwards, but here prompts are run in parts, each computed once; "
            "only interventions at positions='all' fit"
        )


_BATCH: ContextVar[Batch | None] = ContextVar("ptmech_batch", default=None)


@contextmanager
def running_rows(rows: Sequence[int], total: int, *, mask: Tensor | None = None) -> Generator[None]:
    """Announce which of `total` rows the forwards in this block hold, in their order.

    Parameters
    ----------
    rows, total
        Which of how many.
    mask
        The attention mask of whole prompts [rows, tokens] on the CPU: what is known here need not
        be read back from the device. Forwards of other lengths are not affected.
    """
    token = _BATCH.set(Batch(tuple(rows), total, mask))
    try:
        yield
    finally:
        _BATCH.reset(token)


def running_batch(rows: int) -> Batch:
    """Return what :func:`running_rows` announced; else a forward's rows are all there are."""
    return _BATCH.get() or Batch(tuple(range(rows)), rows)


def parse_positions(positions: Positions) -> Tensor | None:
    """Bring positions into one form: None for all, else whole numbers [positions] or [rows, ...].

    Raises
    ------
    DataError
        Positions that are not whole numbers in one of the shapes above.
    """
    if isinstance(positions, str):
        if positions != "all":
            raise DataError(f"positions are 'all' or whole numbers, not {positions!r}")
        return None
    try:
        parsed = torch.as_tensor(positions)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"positions must be whole numbers, as many in every row: {error}") from None
    if parsed.ndim > 2 or parsed.numel() == 0:
        raise DataError(
            "positions must have the shape [positions] or [rows, positions], not "
            f"{tuple(parsed.shape)}"
        )
    if parsed.is_floating_point() or parsed.dtype == torch.bool:
        raise DataError("positions must be whole numbers")
    # On the CPU: where tokens are is worked out there, so that no device is ever waited for.
    parsed = parsed.long().cpu()
    return parsed.reshape(1) if parsed.ndim == 0 else parsed


def prompt_indices(positions: Positions, lengths: Sequence[int]) -> Tensor:
    """Turn positions into indices counted from the first token of each prompt.

    Parameters
    ----------
    positions
        ``"all"`` for prompts of equally many tokens.
    lengths
        Tokens of each prompt.

    Returns
    -------
    Tensor
        Whole numbers [rows, positions].

    Raises
    ------
    DataError
        A position outside of a prompt, or ``"all"`` with prompts of several lengths.
    """
    end = torch.tensor(lengths)
    parsed = parse_positions(positions)
    if parsed is None:
        if len(set(lengths)) > 1:
            raise DataError(
                "positions='all' needs prompts of equally many tokens; these have "
                f"{min(lengths)} to {max(lengths)}"
            )
        parsed = torch.arange(lengths[0])
    elif parsed.ndim == 2 and len(parsed) != len(lengths):
        raise DataError(f"positions for {len(parsed)} rows do not fit {len(lengths)} prompts")
    return _counted(
        parsed,
        torch.zeros_like(end),
        end,
        "position {position} lies outside of prompt {row}, which has {tokens} tokens",
    )


def _counted(positions: Tensor, first: Tensor, end: Tensor, complaint: str) -> Tensor:
    """Return positions of prompts from `first` to `end` [rows], counted as these are.

    Raises
    ------
    DataError
        The complaint, about the first position that lies outside of its prompt.
    """
    positions = positions.expand(len(first), -1)
    start, stop = first.unsqueeze(1), end.unsqueeze(1)
    counted = torch.where(positions < 0, stop + positions, start + positions)
    outside = (counted < start) | (counted >= stop)
    if bool(outside.any()):
        row = int(outside.any(dim=1).nonzero()[0])
        wrong = int(positions[row][outside[row]][0])
        tokens = int(end[row] - first[row])
        raise DataError(complaint.format(position=wrong, row=row, tokens=tokens))
    return counted


@dataclass(frozen=True, eq=False)
class Extents:
    """Where the prompts of a batch begin and end, read from their mask when it is asked for.

    Attributes
    ----------
    mask
        The attention mask [rows, tokens], on any device.
    """

    mask: Tensor

    @cached_property
    def first_and_end(self) -> tuple[Tensor, Tensor]:
        """The first token of each prompt and the one after its last [rows], on the CPU."""
        real = self.mask.cpu().bool().long()
        return real.argmax(dim=1), real.shape[1] - real.flip(dims=(1,)).argmax(dim=1)


class Chosen(NamedTuple):
    """Tokens of a running forward, on the device where it is."""

    rows: Tensor
    """Their rows [tokens]."""
    tokens: Tensor
    """Where in their rows they are [tokens]."""
    columns: Tensor
    """Which of the positions they are [tokens]."""


@dataclass(frozen=True, eq=False)
class Layout:
    """The rows of a running forward.

    Attributes
    ----------
    prompts
        Where their prompts are, counted over padding and cache.
    past
        Tokens that the cache held before this forward.
    batch
        Which of the caller's rows these are.
    kept
        Which of the rows of `prompts` are still there.
    """

    prompts: Extents
    past: int
    batch: Batch
    kept: tuple[int, ...]
    _chosen: dict[tuple[int, int, torch.device], tuple[Tensor, Chosen | None]] = field(
        default_factory=dict, init=False, repr=False
    )

    def later(self, past: int, rows: int) -> Layout | None:
        """Return the layout of a forward that goes on from this one; None if rows are unknown."""
        remaining = self.batch.remaining(rows)
        if remaining is None:
            return None
        batch, places = remaining
        kept = tuple(self.kept[place] for place in places)
        return replace(self, past=past, batch=batch, kept=kept)

    def of_rows(self, values: Tensor, what: str) -> Tensor:
        """Pick what belongs to the rows of this forward from values of all rows.

        Raises
        ------
        DataError
            Values of another number of rows than the caller has.
        """
        if values.shape[0] != self.batch.total:
            raise DataError(
                f"{what} for {values.shape[0]} rows do not fit a call with {self.batch.total} rows"
            )
        return values[torch.tensor(self.batch.rows, device=values.device)]

    def chosen(self, positions: Tensor, stream: Tensor) -> Chosen | None:
        """Say which tokens of the running forward are at positions; None if it holds none of them.

        Worked out once for all layers and sites, and without waiting for the device.

        Parameters
        ----------
        positions, stream
            As for :meth:`locate`.

        Raises
        ------
        DataError
            A position outside of a prompt.
        """
        key = (id(positions), stream.shape[1], stream.device)
        if key not in self._chosen:
            index, present = self._located(positions, stream.shape[1])
            rows, columns = present.nonzero(as_tuple=True)
            found = (rows, index[rows, columns], columns)
            # The positions are kept along, so that no others can get their number.
            self._chosen[key] = (
                positions,
                Chosen(*(part.to(stream.device) for part in found)) if len(rows) else None,
            )
        return self._chosen[key][1]

    def locate(self, positions: Tensor, stream: Tensor) -> tuple[Tensor, Tensor]:
        """Say where positions of the prompts are in the running forward.

        Parameters
        ----------
        positions
            [positions] or [rows of the caller, positions].
        stream
            What the forward is at, [rows, tokens, ...].

        Returns
        -------
        index, present
            Both [rows, positions], on the stream's device: the token of this forward, and whether
            it holds it at all.

        Raises
        ------
        DataError
            A position outside of a prompt.
        """
        index, present = self._located(positions, stream.shape[1])
        return index.to(stream.device), present.to(stream.device)

    def _located(self, positions: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
        """Return what :meth:`locate` does for a forward of so many tokens, on the CPU."""
        if positions.ndim == 2:
            positions = self.of_rows(positions, "positions")
        first, end = (of_all[list(self.kept)] for of_all in self.prompts.first_and_end)
        whole = _counted(
            positions,
            first,
            end,
            "position {position} lies outside of a prompt of {tokens} tokens",
        )
        index = whole - self.past
        return index, (index >= 0) & (index < tokens)


class LayoutTracker:
    """Follows the forwards of a model's body and knows the layout of the one that runs."""

    def __init__(self) -> None:
        self._layout: Layout | None = None
        self._running = False
        self._by_cache: WeakKeyDictionary[Any, Layout] = WeakKeyDictionary()

    @property
    def layout(self) -> Layout:
        """Layout of the forward that runs.

        Raises
        ------
        DataError
            No forward of the body runs, as in a sweep over blocks, or its mask does not tell tokens
            from padding.
        """
        require_whole_forwards("an intervention at positions")
        return self.layout_of_part

    @property
    def layout_of_part(self) -> Layout:
        """The same, also where forwards hold parts of prompts."""
        if self._layout is None or not self._running:
            raise DataError(
                "an intervention at positions needs a whole forward with an attention mask "
                "[rows, tokens] or without any; act on positions='all' instead"
            )
        return self._layout

    def attach(self, body: nn.Module) -> Iterator[RemovableHandle]:
        """Watch every forward of `body` until the handles are removed."""
        yield body.register_forward_pre_hook(self._watch, with_kwargs=True)
        yield body.register_forward_hook(self._leave, always_call=True)

    def _leave(self, _module: nn.Module, _args: Any, output: Any) -> None:
        if is_suspended():
            return
        self._running = False
        cache = getattr(output, "past_key_values", None)
        if cache is not None and self._layout is not None:
            self._by_cache[cache] = self._layout

    def _watch(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if is_suspended():  # a forward inside of the one that is to be known
            return
        self._running = True
        given = args[0] if args else kwargs.get("input_ids")
        if given is None:
            given = kwargs["inputs_embeds"]
        rows, tokens = given.shape[:2]
        cache = kwargs.get("past_key_values")
        past = int(cache.get_seq_length()) if cache is not None else 0
        batch = running_batch(rows)
        # A forward that goes on from a cache filled in this block brings generated tokens: the
        # prompts are those of the cache.
        before = self._by_cache.get(cache) if past else None
        later = None if before is None else before.later(past, rows)
        if later is not None:
            self._layout = later
            return
        mask = kwargs.get("attention_mask")
        if mask is None:
            mask = torch.ones(rows, past + tokens, dtype=torch.long)
        elif batch.mask is not None and batch.mask.shape == (rows, past + tokens):
            mask = batch.mask
        if not isinstance(mask, Tensor) or mask.ndim != 2 or len(batch.rows) != rows:
            self._layout = None
            return
        self._layout = Layout(Extents(mask), past, batch, tuple(range(rows)))


Edit = Callable[[Tensor], Tensor]
"""Changes activations [..., width], each token for itself."""


def edit_tokens(stream: Tensor, positions: Tensor | None, layout: LayoutTracker, edit: Edit) -> Any:
    """Return a stream [rows, tokens, width] with an edit applied to chosen tokens; None if to none.

    Parameters
    ----------
    positions
        As :func:`parse_positions` returns them; None stands for every token.
    """
    if positions is None:
        return edit(stream)
    chosen = layout.layout.chosen(positions, stream)
    if chosen is None:
        return None
    at = chosen.rows, chosen.tokens
    changed = stream.clone()
    changed[at] = edit(stream[at])
    return changed
