"""What a question to an artifact on the Hub asks for: requests and bytes, not times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import huggingface_hub
import numpy as np
from tests.hub import LocalHub
from tests.hub.client import clients_of
from tests.synthetic import write_synthetic_artifact

import ptmech as sdk
from benchmarks.interleaved import require_same
from benchmarks.report import Table, figure
from benchmarks.setting import Benchmark, Setting

ABOUT = """
Counted by a Hub on this machine that speaks the protocol of the real one, with its real client.
A file takes two requests: one for its address and one for its bytes, the latter from the content
network.
"""
ID = "lab/acts"
ONCE = "one layer of one dataset"


@dataclass(frozen=True)
class Size:
    """Of the artifact on the Hub: two stages, eight datasets, three sites."""

    layers: int = 32
    d_model: int = 256
    facts: int = 100


@dataclass(frozen=True)
class Traffic:
    """What was asked for, and how many bytes came back."""

    what: str
    requests: int
    bytes: int


def run(_setting: Setting) -> list[Table]:
    """Count, for an artifact of a middling size."""
    size = Size()
    counted = traffic(size)
    whole = counted[-1]
    return [
        Table(
            title=f"two stages, eight datasets, {size.layers} layers of {size.d_model}",
            columns=["what", "requests", "bytes", "part of the whole"],
            rows=[
                [
                    each.what,
                    f"{each.requests:,}",
                    f"{each.bytes:,}",
                    f"{figure(100 * each.bytes / whole.bytes)} %",
                ]
                for each in counted
            ],
        )
    ]


def traffic(size: Size) -> list[Traffic]:
    """Ask one thing after the other; the last one is the artifact whole, into an empty cache."""
    counted: list[Traffic] = []
    with TemporaryDirectory() as folder, LocalHub() as hub:
        root = write_synthetic_artifact(
            Path(folder) / "artifact",
            n_layers=size.layers,
            d_model=size.d_model,
            n_facts=size.facts,
        )
        files = {
            path.relative_to(root).as_posix(): path.read_bytes()
            for path in root.rglob("*")
            if path.is_file()
        }
        hub.add("dataset", ID, files)

        def count(what: str, call: Callable[[], object]) -> None:
            hub.clear()
            call()
            sent = sum(each.bytes_sent for each in hub.requests)
            counted.append(Traffic(what, len(hub.requests), sent))

        middle = size.layers // 2
        with clients_of(hub, Path(folder) / "home"):
            count("opening the artifact", lambda: sdk.load(ID))
            artifact = sdk.load(ID)

            def one_layer(layer: int = middle) -> np.ndarray:
                return artifact.activations("cities", "base", layer=layer)

            count(f"{ONCE}, the first", one_layer)
            count(f"{ONCE}, another", lambda: one_layer(middle + 1))
            count(f"{ONCE}, once more", one_layer)
            count(
                "truth.transfer at a layer, five datasets, two stages",
                lambda: sdk.truth.transfer(artifact, "base", "instruct", middle, n_bootstrap=10),
            )
            here = sdk.load(root).activations("cities", "base", layer=middle)
            require_same({"layer": one_layer()}, {"layer": here}, "the Hub", "the folder", 0.0)
        with clients_of(hub, Path(folder) / "another home"):
            count(
                "everything (snapshot_download)",
                lambda: huggingface_hub.snapshot_download(ID, repo_type="dataset"),
            )
    return counted


BENCHMARK = Benchmark(
    name="remote", title="One layer from the Hub against the whole artifact", about=ABOUT, run=run
)
