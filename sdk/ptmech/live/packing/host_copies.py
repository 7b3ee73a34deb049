"""Bringing what a forward left from the device to main memory while the next forward runs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ptmech.live.packing.forwards import Forward
from ptmech.live.packing.prefix_trees import Numbers

SiteLayer = tuple[str, int]
Take = Callable[[Numbers, Mapping[SiteLayer, Tensor]], None]
"""Gets row numbers [rows] and, for each (site, layer), their values [rows, positions, d_model] on
the CPU."""


@dataclass(frozen=True, eq=False)
class _Started:
    rows: Numbers
    values: Mapping[SiteLayer, Tensor]
    finite: Mapping[tuple[SiteLayer, ...], Tensor]
    """For the places of one device: whether all values of each are finite [places]."""
    ready: tuple[torch.Event, ...]


class HostCopies:
    """Hands the values of each forward on, on CUDA one forward late.

    There they are sorted by row, brought into the element type that is wanted, checked and copied
    to pinned memory on a stream of their own, so that none of it keeps the device waiting, and only
    what is wanted travels. In memory are at most two forwards' values.

    Parameters
    ----------
    take
        Who gets them.
    dtype
        In which element type; None for that of the model.
    """

    def __init__(self, take: Take, dtype: torch.dtype | None = None) -> None:
        self._take = take
        self._dtype = dtype
        self._pending: _Started | None = None
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._not_finite: set[SiteLayer] = set()

    @property
    def not_finite(self) -> frozenset[SiteLayer]:
        """Where values that were handed on are not finite."""
        return frozenset(self._not_finite)

    def put(self, forward: Forward, values: Mapping[SiteLayer, Tensor]) -> None:
        """Start copying the values [k, d_model] that a forward left, and hand on those before."""
        started = self._start(forward, values)
        self.finish()
        self._pending = started
        if not started.ready:
            self.finish()

    def finish(self) -> None:
        """Hand on what is still on its way."""
        started, self._pending = self._pending, None
        if started is None:
            return
        for event in started.ready:
            event.synchronize()
        for places, finite in started.finite.items():
            told = zip(places, finite.tolist(), strict=True)
            self._not_finite.update(place for place, is_finite in told if not is_finite)
        self._take(started.rows, started.values)

    def _start(self, forward: Forward, values: Mapping[SiteLayer, Tensor]) -> _Started:
        copied: dict[SiteLayer, Tensor] = {}
        finite: dict[tuple[SiteLayer, ...], Tensor] = {}
        ready: list[torch.Event] = []
        for device in dict.fromkeys(found.device for found in values.values()):
            here = tuple(place for place, found in values.items() if found.device == device)
            with self._beside(device, ready):
                told: list[Tensor] = []
                for place in here:
                    found = values[place]
                    of_rows = forward.of_rows(found).to(self._dtype or found.dtype)
                    told.append(_is_finite(of_rows))
                    copied[place] = _on_host(of_rows)
                    if device.type == "cuda":
                        # Else its memory could be given to the next forward while it is read.
                        found.record_stream(torch.cuda.current_stream(device))
                finite[here] = _on_host(torch.stack(told))
        return _Started(forward.rows, copied, finite, tuple(ready))

    @contextmanager
    def _beside(self, device: torch.device, ready: list[torch.Event]) -> Generator[None]:
        """Let a CUDA device do what is in this block beside its forwards, and say when it has."""
        if device.type != "cuda":
            yield
            return
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        stream = self._streams[device]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            yield
        ready.append(stream.record_event())


def _is_finite(values: Tensor) -> Tensor:
    """Say whether all values are finite, on their device and in one pass."""
    # What is not a number is smallest and largest of whatever it is among.
    return torch.stack(torch.aminmax(values)).isfinite().all()


def _on_host(values: Tensor) -> Tensor:
    if values.device.type != "cuda":
        return values.cpu()
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return host.copy_(values, non_blocking=True)
