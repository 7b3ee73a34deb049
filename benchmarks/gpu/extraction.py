"""Extraction with everything stored, against bare forwards of the very same batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from transformers import PreTrainedModel

from benchmarks.gpu.device import peak_bytes, seconds
from benchmarks.gpu.forwards import Forwards, caught
from benchmarks.gpu.random_llama import block_parameters
from benchmarks.gpu.same_numbers import deviation, require_same_bits
from ptmech.live.packing.cost import Packing
from ptmech.live.sites import ModelSites
from ptmech_builder.extract import Activations, extract, wanted_layers
from ptmech_builder.prompts import Prompts

PACKINGS: tuple[Packing, ...] = ("batches", "tree")
SITES = ("resid_post", "mlp_out")


@dataclass(frozen=True, kw_only=True)
class Way:
    """What one way to pack a set of prompts does, and what that took.

    Attributes
    ----------
    forwards
        How many there are.
    tokens
        Tokens that ran, padding included.
    useful_tokens
        Those that are no padding.
    operations
        Floating-point operations that these need in the decoder blocks.
    bare_peak, peak
        The most bytes that tensors held on a GPU, without and with everything stored; None on CPU.
    bare_seconds, seconds
        Of each round.
    """

    forwards: int
    tokens: int
    useful_tokens: int
    operations: int
    bare_peak: int | None
    peak: int | None
    bare_seconds: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Extraction, a bare forward of the same batches being 1."""
        return paired(self.seconds, self.bare_seconds)

    def utilisation(self, tflops: float) -> tuple[float, float]:
        """Part of a device's peak that bare forwards and the extraction made use of."""
        best = self.operations / (tflops * 1e12)
        return best / median(self.bare_seconds), best / median(self.seconds)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Both ways for one set of prompts, run in turns.

    Attributes
    ----------
    tokens
        Tokens of all rows, as a caller counts them.
    deviation
        The worst of trees from batches, relative to a row's largest value.
    """

    prompts: str
    rows: int
    tokens: int
    deviation: float
    ways: Mapping[Packing, Way]

    def against_batches(self, packing: Packing) -> float:
        """Return extraction one way, a bare forward of sorted batches being 1."""
        return paired(self.ways[packing].seconds, self.ways["batches"].bare_seconds)

    def tokens_per_second(self, packing: Packing) -> tuple[float, float]:
        """Tokens of the rows, and tokens that ran, for each second of extraction."""
        way = self.ways[packing]
        return self.tokens / median(way.seconds), way.tokens / median(way.seconds)

    def figures(self, tflops: float | None) -> dict[str, Any]:
        """Return everything that was measured, and what follows from it, for a JSON file."""
        found = asdict(self)
        for packing, way in self.ways.items():
            given, ran = self.tokens_per_second(packing)
            found["ways"][packing] |= {
                "ratio": way.ratio,
                "against_bare_batches": self.against_batches(packing),
                "prompt_tokens_per_second": given,
                "tokens_per_second": ran,
            }
            if tflops is not None:
                bare, stored = way.utilisation(tflops)
                found["ways"][packing] |= {"bare_utilisation": bare, "utilisation": stored}
        return found


def paired(above: Sequence[float], below: Sequence[float]) -> float:
    """Return the median of the ratios of rounds."""
    return median(a / b for a, b in zip(above, below, strict=True))


def everything(model: PreTrainedModel, prompts: Prompts, packing: Packing) -> Activations:
    """Extract the stream behind every block and what every MLP adds, in bf16."""
    sites = ModelSites.of(model)
    wanted = [
        (site, layer)
        for site, layers in wanted_layers(SITES, sites.n_layers).items()
        for layer in layers
    ]
    return extract(sites, prompts, wanted, dtype="bfloat16", packing=packing)


def operations(model: PreTrainedModel, forwards: Forwards) -> int:
    """Count what the decoder blocks need: no padding, and no pairs of tokens that are masked.

    Two for each entry of a matrix and token, and four for each pair of tokens, layer and number of
    a query: two for its product with a key, two for a value.
    """
    config: Any = model.config
    width = config.num_attention_heads * config.head_dim
    linear = 2 * block_parameters(model) * forwards.useful_tokens
    return linear + 4 * config.num_hidden_layers * width * forwards.seen


def measure(model: PreTrainedModel, prompts: Prompts, *, rounds: int) -> Measured:
    """Show that all ways give the same numbers, then time them in turns.

    Parameters
    ----------
    model
        A Llama in bf16.
    prompts
        What it reads.
    rounds
        How often each way is timed.

    Raises
    ------
    ParityError
        The numbers are not the same.
    """
    device, body = model.device, model.get_submodule("model")
    runs: dict[Packing, Forwards] = {}
    stored: dict[Packing, Activations] = {}
    for packing in PACKINGS:
        with caught(body) as calls:
            stored[packing] = everything(model, prompts, packing)
        runs[packing] = Forwards.of(calls, prompts.token_ids)
        require_same_bits(model, prompts, stored[packing], runs[packing])
    apart = deviation(stored["tree"], stored["batches"])
    stored.clear()
    ways: dict[Packing, Way] = {
        packing: Way(
            forwards=len(run.calls),
            tokens=run.tokens,
            useful_tokens=run.useful_tokens,
            operations=operations(model, run),
            bare_peak=peak_bytes(lambda run=run: run.run(body), device),
            peak=peak_bytes(lambda packing=packing: everything(model, prompts, packing), device),
        )
        for packing, run in runs.items()
    }
    for turn in range(rounds):
        for packing in PACKINGS if turn % 2 else reversed(PACKINGS):
            way, run = ways[packing], runs[packing]
            way.bare_seconds.append(seconds(lambda run=run: run.run(body), device))
            way.seconds.append(
                seconds(lambda packing=packing: everything(model, prompts, packing), device)
            )
    return Measured(
        prompts=prompts.dataset,
        rows=prompts.uids.size,
        tokens=prompts.tokens,
        deviation=apart,
        ways=ways,
    )
