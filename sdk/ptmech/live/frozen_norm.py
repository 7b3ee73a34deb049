"""The final norm with its scale held at what it would be without interventions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ptmech.errors import DataError
from ptmech.live.layout import Batch, LayoutTracker, require_whole_forwards, running_batch
from ptmech.live.sites import ModelSites, is_suspended, suspended

_TOKENWISE = ("input_ids", "inputs_embeds", "position_ids")
"""Arguments of a body with one entry a token: a later step of generation brings only its own."""


class FrozenFinalNorm:
    """An intervention: the direct effect of all others, without their effect through the norm."""

    def check(self, sites: ModelSites) -> None:
        """Fits every model whose final norm can be taken apart."""
        _ = sites.final_norm_parts

    def attach(self, sites: ModelSites, layout: LayoutTracker) -> Iterator[RemovableHandle]:  # noqa: ARG002 - the tracker is for edits of tokens
        """Attach a forward without interventions before each forward, and the held norm."""
        run = _CleanRun(sites)
        yield sites.body.register_forward_pre_hook(run.before, with_kwargs=True)
        yield sites.final_norm.register_forward_hook(run.rescale)
        yield sites.body.register_forward_hook(run.after, always_call=True)


class _CleanRun:
    """Runs each forward without interventions first, and keeps the scales of its final norm."""

    def __init__(self, sites: ModelSites) -> None:
        self._sites = sites
        self._norm = sites.final_norm_parts
        self._seen: dict[str, Tensor] = {}
        self._batch = running_batch(0)
        self._by_cache: WeakKeyDictionary[Any, tuple[Batch, dict[str, Tensor]]] = (
            WeakKeyDictionary()
        )
        self._scales: Tensor | None = None

    def before(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if is_suspended():
            return
        require_whole_forwards("a frozen final norm")
        given = {**({"input_ids": args[0]} if args else {}), **kwargs}
        cache = given.get("past_key_values")
        past = int(cache.get_seq_length()) if cache is not None else 0
        self._remember(given, past, self._by_cache.get(cache) if past else None)
        tokens = next(iter(self._seen.values())).shape[1]
        streams: list[Tensor] = []

        def keep(_norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            streams.append(inputs[0].detach())

        handle = self._sites.final_norm.register_forward_pre_hook(keep)
        try:
            with suspended(), torch.no_grad():
                self._sites.body(
                    **self._seen, attention_mask=given.get("attention_mask"), use_cache=False
                )
        finally:
            handle.remove()
        self._scales = self._norm.scale(streams[0][:, past:tokens])

    def _remember(
        self, given: dict[str, Any], past: int, earlier: tuple[Batch, dict[str, Tensor]] | None
    ) -> None:
        """Keep the arguments of all tokens so far: the clean run has no cache of its own."""
        new = {name: given[name] for name in _TOKENWISE if given.get(name) is not None}
        rows = len(next(iter(new.values())))
        if not past:
            self._seen, self._batch = new, running_batch(rows)
            return
        before = self._rows_left(earlier, rows)
        held = [tensor.shape[1] for tensor in before.values()]
        if not held or held[0] < past or new.keys() != before.keys():
            raise DataError(
                "the final norm cannot be frozen in a forward whose cache was filled outside of "
                "this context, or from embeddings where now there are token ids"
            )
        self._seen = {
            name: torch.cat([tensor[:, :past], new[name]], dim=1) for name, tensor in before.items()
        }

    def _rows_left(
        self, earlier: tuple[Batch, dict[str, Tensor]] | None, rows: int
    ) -> dict[str, Tensor]:
        """Pick what was kept of the rows that are still there; nothing if they are not known."""
        if earlier is None:
            return {}
        self._batch, seen = earlier
        if len(next(iter(seen.values()))) == rows:
            return seen
        remaining = self._batch.remaining(rows)
        if remaining is None:
            return {}
        self._batch, places = remaining
        return {name: tensor[places] for name, tensor in seen.items()}

    def rescale(self, _norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Any:
        # Computed anew rather than rescaled: freezing twice is then the same as freezing once.
        if is_suspended() or self._scales is None:
            return None
        return self._norm.normed(inputs[0], self._scales).to(output.device)

    def after(self, _module: nn.Module, _args: Any, output: Any) -> None:
        if is_suspended():
            return
        self._scales = None
        cache = getattr(output, "past_key_values", None)
        if cache is not None:
            self._by_cache[cache] = (self._batch, self._seen)
