"""What a reader does with an artifact from a stranger: every door of the SDK, by name.

Each takes the folder and returns plain text, or raises. Importing this module imports all that they
need and computes nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import scipy.stats
import sklearn.linear_model
import zarr.codecs

import ptmech
import ptmech.probes
import ptmech.summary
import ptmech_builder.commands
from ptmech import cli, confidence, console, knowledge, plots, refusal, truth
from ptmech import verify as verification
from ptmech.errors import FormatError
from ptmech.storage import grids, tables, tensors
from ptmech_builder import cards

WARM = (np, scipy.stats, sklearn.linear_model, zarr.codecs, ptmech.probes, ptmech.summary,
        ptmech_builder.commands, console, plots, grids, tables, tensors)  # fmt: skip

STAGES = ("base", "instruct")


def load(root: str) -> str:
    return ptmech.load(Path(root)).id


def show(root: str) -> str:
    return repr(ptmech.load(Path(root)))


def verify(root: str) -> str:
    return "\n".join(map(str, verification.verify(ptmech.load(Path(root)))))


def statements(root: str) -> str:
    artifact = ptmech.load(Path(root))
    return str([artifact.statements().height, artifact.labels("cities").sum()])


def tokens(root: str) -> str:
    return str(ptmech.load(Path(root)).tokens("base").height)


def table(root: str, path: str) -> str:
    return str(ptmech.load(Path(root)).table(path).shape)


def extra(root: str, path: str) -> str:
    artifact = ptmech.load(Path(root))
    [entry] = artifact.extras(path)
    return str(len(artifact.read(entry)))


def tensor(root: str, path: str) -> str:
    arrays = ptmech.load(Path(root)).tensors(path)
    return str({name: float(np.abs(array).sum()) for name, array in arrays.items()})


def activations(root: str) -> str:
    artifact = ptmech.load(Path(root))
    return str(artifact.activations("cities", "base", layer=1).sum())


def activations_of(root: str, dataset: str, site: str, layer: int, position: int) -> str:
    artifact = ptmech.load(Path(root))
    return str(artifact.activations(dataset, "base", site, layer, position).sum())


def pair(root: str) -> str:
    first, last = ptmech.load(Path(root)).pair(*STAGES).activations("cities", layer=1)
    return str([first.sum(), last.sum()])


def prefetch(root: str) -> None:
    ptmech.load(Path(root)).prefetch()


def transfer(root: str) -> str:
    return repr(truth.transfer(ptmech.load(Path(root)), *STAGES, n_bootstrap=20))


def truth_effects(root: str) -> str:
    return repr(truth.effects(ptmech.load(Path(root))))


def refusal_similarity(root: str) -> str:
    return repr(refusal.similarity(ptmech.load(Path(root)), *STAGES, n_splits=2))


def refusal_scores(root: str) -> str:
    return repr(refusal.scores(ptmech.load(Path(root))))


def candidate_scores(root: str) -> str:
    return repr(refusal.candidate_scores(ptmech.load(Path(root)), "base"))


def compare_stages(root: str) -> str:
    return repr(knowledge.compare_stages(ptmech.load(Path(root)), *STAGES, "cities"))


def trace(root: str) -> str:
    return repr(knowledge.trace(ptmech.load(Path(root)), "base", "base", "cities").by_role)


def neurons(root: str) -> str:
    return repr(confidence.compare(ptmech.load(Path(root)), *STAGES))


def neuron_effects(root: str) -> str:
    return repr(confidence.effects(ptmech.load(Path(root))))


def summary(root: str) -> str:
    answers = ptmech.summary.summarize(ptmech.load(Path(root)), *STAGES)
    return f"{answers!r}\n{answers.frame.rows()}"


def command(root: str, name: str, *options: str) -> None:
    """Run ``ptmech NAME ROOT``, as a shell would: it prints and exits."""
    sys.argv = ["ptmech", name, root, *options]
    cli.create_app()([name, root, *options], prog_name="ptmech")


def card(root: str) -> str:
    """Read the card that lies beside the artifact's files."""
    return cards.read_card(Path(root) / "card.toml").card.name


def reference_with_nul(root: str) -> str:
    return ptmech.load(f"{root}\0").id


def reference_of_a_megabyte(root: str) -> str:
    return ptmech.load(root + "x" * 10**6).id


def reference_of_escapes(root: str) -> str:
    return ptmech.load(f"{root}\x1b]0;owned\x07").id


# For the harness itself


def take(mebibytes: int) -> int:
    return len(b"x" * (mebibytes * 2**20))


def loop() -> None:
    while True:
        pass


def trip() -> None:
    {}["a key"]


def write(text: str) -> None:
    sys.stderr.write(text)


def refuse(text: str) -> None:
    raise FormatError(text)


def pretend() -> None:
    raise type("FormatError", (ValueError,), {})("it is red, and none of ours")
