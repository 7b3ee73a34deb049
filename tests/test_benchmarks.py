"""The benchmarks: their harness, and that the ways of each give the same numbers. Nothing is timed.

On random models; the numbers of other libraries are held against ours by `make compare`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from benchmarks import (
    causal_tracing,
    entropy_neurons,
    extraction,
    probes,
    reading,
    remote,
    worked_examples,
)
from benchmarks.__main__ import NAMES, benchmark, main
from benchmarks.interleaved import Absent, Cost, DifferentNumbersError, Way, measure
from benchmarks.report import BEGIN, END, Section, Table, cost_table, environment, figure, write
from tests.tiny import byte_tokenizer, save_model
from tests.tiny_models import tiny_model

import ptmech as sdk
from ptmech import knowledge
from ptmech.live import LiveModel
from ptmech.probes import LogisticProbe, MassMeanProbe
from ptmech.truth.steering import Questions
from ptmech_builder.prompts import Prompts

DOCUMENT = Path(__file__).resolve().parents[1] / "docs/performance.md"


def agree(ways: Any, *, reference: str, tolerance: float, numbers: str = "") -> list[Any]:
    """Compare without timing; every way is there and all but the silent ones agreed."""
    found = measure(ways, reference=reference, rounds=0, tolerance=tolerance, numbers=numbers)
    assert [each.name for each in found] == [way.name for way in ways]
    assert all(
        each.deviation is not None
        for way, each in zip(ways, found, strict=True)
        if isinstance(way, Way) and not way.silent
    )
    return found


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> LiveModel:
    return LiveModel.from_pretrained(save_model(tmp_path_factory.mktemp("model")), device="cpu")


# The harness


class Watch:
    """A clock that ways set forward themselves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def way(self, name: str, seconds: Callable[[], float], value: float = 1.0, **more: Any) -> Way:
        def run() -> dict[str, float]:
            self.now += seconds()
            self.calls.append(name)
            return {"x": value}

        return Way(name=name, run=run, **more)


def test_ratios_are_of_the_same_round() -> None:
    watch = Watch()
    drifting = iter([1.0, 1.0, 10.0, 100.0])
    reference = watch.way("reference", lambda: next(drifting))
    slow = iter([9.0, 2.0, 20.0, 300.0])
    ways = [reference, watch.way("slow", lambda: next(slow))]
    found = measure(ways, reference="reference", rounds=3, tolerance=0, clock=watch)
    assert [each.ratios for each in found if isinstance(each, Cost)] == [[1, 1, 1], [2, 2, 3]]
    assert isinstance(found[1], Cost)
    assert (found[1].median, found[1].spread) == (2, (2, 3))


def test_the_order_rotates_after_a_run_that_is_not_timed() -> None:
    watch = Watch()
    ways = [watch.way(name, lambda: 1.0) for name in "abc"]
    measure(ways, reference="a", rounds=3, tolerance=0, clock=watch)
    assert "".join(watch.calls) == "abc" + "abc" + "bca" + "cab"


def test_a_part_of_the_work_is_extrapolated_and_repeats_cancel() -> None:
    watch = Watch()
    ways = [watch.way("whole", lambda: 3.0), watch.way("part", lambda: 1.0, share=0.1)]
    found = measure(ways, reference="whole", rounds=1, tolerance=0, clock=watch, repeats=4)
    assert isinstance(found[1], Cost)
    assert found[1].median == pytest.approx(10 / 3)


def test_what_is_not_installed_stays_in_its_place() -> None:
    watch = Watch()
    ways = [Absent("gone"), watch.way("here", lambda: 1.0)]
    found = measure(ways, reference="here", rounds=1, tolerance=0, clock=watch)
    assert found[0] == Absent("gone")
    assert "| gone | not installed" in cost_table("t", found, unit="here").markdown


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"x": [1.0, 2.1]}, "x: other differs from reference by 0.05, more than 0.01"),
        ({"x": [1.0, np.nan]}, "differs"),
        ({"x": [1.0]}, r"other has the shape \(1,\)"),
        ({"y": [1.0, 2.0]}, "found nothing"),
        ({"x": np.ma.masked_all(2)}, "found nothing"),
    ],
)
def test_different_numbers_are_not_timed(other: Any, message: str) -> None:
    clock = iter(())
    ways = [
        Way(name="reference", run=lambda: {"x": [1.0, 2.0]}),
        Way(name="other", run=lambda: other),
    ]
    with pytest.raises(DifferentNumbersError, match=message):
        measure(ways, reference="reference", rounds=1, tolerance=0.01, clock=lambda: next(clock))


def test_a_part_of_the_numbers_is_compared_as_far_as_it_goes() -> None:
    part = np.ma.masked_array([1.5, 99.0], mask=[False, True])
    ways = [
        Way(name="all", run=lambda: {"x": [1.0, 2.0]}),
        Way(name="some", run=lambda: {"x": part}),
    ]
    found = measure(ways, reference="all", rounds=0, tolerance=0.25)
    assert isinstance(found[1], Cost)
    assert found[1].deviation == 0.25


# The report


def test_figures() -> None:
    ratios = (0.0123, 0.4712, 1.0, 37.08, 240.3)
    assert [figure(ratio) for ratio in ratios] == ["0.012", "0.47", "1.00", "37.1", "240"]


def test_only_what_stands_between_the_marks_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "performance.md"
    path.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    table = Table(title="Sizes", columns=["way", "cost"], rows=[["a", "1.00"], ["another", "2"]])
    section = Section(title="Question", about="\nWhat.\n", tables=[table])
    for _ in range(2):
        write(path, [section])
        text = path.read_text()
        assert text.startswith(f"before\n{BEGIN}\n\n{environment()}\n\n## Question\n\nWhat.\n")
        assert "**Sizes**\n\n| way     | cost |\n| ------- | ---- |\n| a       | 1.00 |\n" in text
        assert text.endswith(f"{END}\nafter\n")
        assert "old" not in text


def test_a_document_without_marks_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "performance.md"
    path.write_text("mine\n")
    with pytest.raises(ValueError, match="has no lines"):
        write(path, [])
    assert path.read_text() == "mine\n"


def test_the_document_has_the_marks() -> None:
    text = DOCUMENT.read_text()
    assert text.index(BEGIN) < text.index(END)


def test_every_benchmark_is_found_by_its_name() -> None:
    assert [benchmark(name).name for name in NAMES] == list(NAMES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "probs"], "unknown: probs; there are remote"),
        (["--rounds", "0"], "--rounds must be at least 1"),
        (["--only", "probes", "--write", "a.md"], "--write needs all"),
    ],
)
def test_bad_arguments(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        main(["artifact", *arguments])
    assert message in capsys.readouterr().err


# The same numbers


def test_extraction() -> None:
    tiny = tiny_model("llama")
    drawn = np.random.default_rng(0)
    beginning = drawn.integers(0, 40, 6).tolist()
    rows = [
        [*beginning[: 2 + row % 4], *drawn.integers(0, 40, 1 + row % 3).tolist()]
        for row in range(40)
    ]
    prompts = Prompts("random", np.arange(40, dtype=np.uint64), rows, (-1,), [""] * 40)
    task = extraction.Task(extraction.ModelSites.of(tiny), prompts)
    found = agree(
        extraction.ways(task, None),
        reference=extraction.BARE,
        numbers=extraction.BATCHES,
        tolerance=extraction.TOLERANCE,
    )
    assert len(found) == 4
    unshared = extraction.nothing_shared(task).prompts.token_ids
    assert [len(row) for row in unshared] == [len(row) for row in rows]
    assert len({row[0] for row in unshared}) == len(rows)
    for more in (extraction.forward_hooks, extraction.hidden_states):
        ways = [
            Way(name="ours", run=lambda: extraction.ours(task, "tree")),
            Way(name="theirs", run=lambda more=more: more(task)),
        ]
        agree(ways, reference="ours", tolerance=extraction.TOLERANCE)


def test_causal_tracing(model: LiveModel, synthetic: sdk.Artifact) -> None:
    pairs = knowledge.pairs(
        synthetic.statements("cities"),
        byte_tokenizer(),
        form="true_false",
        answers=("t", "f"),
        n_pairs=1,
    )
    task = causal_tracing.Task.of(model, pairs)
    peers: Any = SimpleNamespace(nnsight=None)
    ways = [way for way in causal_tracing.ways(task, peers) if "nnsight" not in way.name]
    assert len(ways) == 4
    agree(ways, reference=causal_tracing.SWEEP, tolerance=causal_tracing.TOLERANCE)


def test_worked_examples(model: LiveModel, synthetic: sdk.Artifact) -> None:
    questions = Questions.of(synthetic.statements("cities"), n=4, seed=0)
    agree(
        worked_examples.ways(model, questions),
        reference=worked_examples.OURS,
        tolerance=worked_examples.TOLERANCE,
    )


@pytest.mark.parametrize(
    ("probe", "fit"),
    [
        (MassMeanProbe(), probes.mass_mean),
        (MassMeanProbe(whiten=True, shrinkage=0.0), probes.lda),
        (LogisticProbe(), probes.logistic),
    ],
    ids=["mass_mean", "lda", "logistic"],
)
def test_probes(synthetic: sdk.Artifact, probe: Any, fit: Any) -> None:
    ways = probes.ways(synthetic, probe, fit, layers=(1, 3), sampled=(3,))
    assert [way.share for way in ways] == [1, 0.5]
    agree(ways, reference=probes.OURS, tolerance=probes.TOLERANCE)


def test_entropy_neurons() -> None:
    drawn = np.random.default_rng(0)
    weights = entropy_neurons.Weights(
        drawn.normal(size=(300, 12)).astype(np.float32),
        drawn.uniform(0.5, 2, 12).astype(np.float32),
        drawn.normal(size=(4, 12, 20)).astype(np.float32),
    )
    ways = entropy_neurons.ways(weights, sampled=2)
    assert [way.share for way in ways] == [1, 0.5, 0.5]
    agree(ways, reference=entropy_neurons.OURS, tolerance=entropy_neurons.TOLERANCE)


@pytest.mark.parametrize("dtype", reading.DTYPES)
def test_reading(tmp_path: Path, dtype: reading.Dtype) -> None:
    size = reading.Size(layers=3, rows=60, d_model=8)
    agree(reading.ways(tmp_path, size, dtype), reference=reading.REFERENCE, tolerance=0.0)


def test_remote() -> None:
    counted = remote.traffic(remote.Size(layers=3, d_model=8, facts=8))
    opening, first, another, again, _analysis, everything = counted
    assert [each.requests for each in (opening, first, another, again)] == [2, 6, 2, 0]
    assert again.bytes == 0 < another.bytes < first.bytes < everything.bytes
