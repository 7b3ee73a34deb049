"""Bringing what a forward left from the device to main memory while the next forward runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ptmech.live.packing.forwards import Forward
from ptmech.live.packing.prefix_trees import Numbers

SiteLayer = tuple[str, int]
Take = Callable[[Numbers, Mapping[SiteLayer, Tensor]], None]
"""Gets row numbers [rows] and, for each (site, layer), their values [rows, positions, d_model] in
the model's dtype, on the CPU."""


@dataclass(frozen=True, eq=False)
class _Started:
    forward: Forward
    values: Mapping[SiteLayer, Tensor]
    ready: tuple[torch.Event, ...]


class HostCopies:
    """Hands the values of each forward on, on CUDA one forward late.

    There they are copied to pinned memory on a stream of their own, so that neither the copy nor
    what is done with it keeps the device waiting. In memory are at most two forwards' values.

    Parameters
    ----------
    take
        Who gets them.
    """

    def __init__(self, take: Take) -> None:
        self._take = take
        self._pending: _Started | None = None
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def put(self, forward: Forward, values: Mapping[SiteLayer, Tensor]) -> None:
        """Start copying a forward's values [sequences, k, d_model], and hand on those before."""
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
        places = started.forward.places
        self._take(
            started.forward.rows,
            {place: found.flatten(0, 1)[places] for place, found in started.values.items()},
        )

    def _start(self, forward: Forward, values: Mapping[SiteLayer, Tensor]) -> _Started:
        copied: dict[SiteLayer, Tensor] = {}
        used: dict[torch.device, torch.cuda.Stream] = {}
        for place, found in values.items():
            if found.device.type != "cuda":
                copied[place] = found.cpu()
                continue
            if found.device not in used:
                used[found.device] = self._stream(found.device)
                used[found.device].wait_stream(torch.cuda.current_stream(found.device))
            with torch.cuda.stream(used[found.device]):
                host = torch.empty(found.shape, dtype=found.dtype, pin_memory=True)
                copied[place] = host.copy_(found, non_blocking=True)
            # Else its memory could be given to the next forward while it is still being read.
            found.record_stream(used[found.device])
        events = [stream.record_event() for stream in used.values()]
        return _Started(forward, copied, tuple(events))

    def _stream(self, device: torch.device) -> torch.cuda.Stream:
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        return self._streams[device]
