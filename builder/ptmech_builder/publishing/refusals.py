"""What must never be published, whatever the manifest says: secrets, machine paths, weights.

Every text is looked through, and so are the headers of tables and tensors, where libraries like to
note where a file came from. The first find ends the publishing, before a byte has been sent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path

import polars as pl

from ptmech._privacy import Private
from ptmech.manifest import Stage
from ptmech_builder.publishing.errors import RefusedError
from ptmech_builder.publishing.page import REFERENCES, TEMPLATE
from ptmech_builder.publishing.staging import StagedFile

_BINARY = (".safetensors", ".parquet", ".png")
_MAX_HEADER = 100 * 2**20


def private_to_this_machine(root: Path, repo_id: str, token: str | None) -> Private:
    """Gather what no published text may tell.

    Names of user and machine that are part of the repository's name, or words of every page, are no
    secret.

    Parameters
    ----------
    root
        Folder of the artifact.
    repo_id
        Where it goes.
    token
        What opens the Hub, if there is one.
    """
    here = Private.of_this_machine()
    own = {str(root.resolve()), str(root.resolve().parent), *here.folders}
    ordinary = _words_of_every_page()
    return Private(
        secrets=(*here.secrets, *([token] if token else [])),
        folders=tuple(path for path in sorted(own) if path.count("/") > 1),
        names=tuple(
            named
            for named in here.names
            if named[0].lower() not in ordinary and named[0].lower() not in repo_id.lower()
        ),
    )


def require_clean(files: Iterable[StagedFile], private: Private) -> None:
    """Refuse files whose text tells a secret or a name of the machine that made it.

    Raises
    ------
    RefusedError
        Naming the file and what is in it, not the secret.
    """
    for file in files:
        text = _text(file)
        what = None if text is None else private.found_in(text)
        if what is not None:
            raise RefusedError(
                f"{file.path} contains {what}: take it out of the card or the input it comes from, "
                "and build again"
            )


def require_no_vocabulary_matrices(files: Iterable[StagedFile], stages: Iterable[Stage]) -> None:
    """Refuse embedding and unembedding matrices: they are the model's weights, not findings.

    A tensor counts as one if an axis is as long as the residual stream is wide and another as the
    vocabulary, or longer (matrices are often padded).

    Raises
    ------
    RefusedError
        Naming file and tensor.
    """
    sizes = {(stage.d_model, stage.vocabulary) for stage in stages}
    for file in files:
        # Shapes of activation files are known: verify has compared them with their manifest.
        if file.path.startswith("acts/"):
            continue
        for name, shape in _shapes(file):
            for d_model, vocabulary in sizes:
                others = list(shape)
                if d_model in others:
                    others.remove(d_model)
                    if max(others, default=0) >= vocabulary:
                        raise RefusedError(
                            f"{file.path} holds {name!r} of shape {list(shape)}, an embedding or "
                            "unembedding matrix: weights of models are not published"
                        )


def _words_of_every_page() -> set[str]:
    """Return the words that the page's own template and references are made of."""
    folder = resources.files("ptmech_builder.publishing")
    texts = [(folder / name).read_text(encoding="utf-8") for name in (TEMPLATE, REFERENCES)]
    return set(re.findall(r"[\w-]+", " ".join(texts).lower()))


def _text(file: StagedFile) -> str | None:
    """Return what can be read in a file: all of a text, the header of a table or of tensors."""
    if file.path.endswith(".safetensors"):
        return _header(file).decode(errors="replace")
    if file.path.endswith(".parquet") and isinstance(file.content, Path):
        return json.dumps(pl.read_parquet_metadata(file.content))
    if file.path.endswith(_BINARY):
        return None
    try:
        return file.read().decode()
    except UnicodeDecodeError:  # a chunk of a grid
        return None


def _header(file: StagedFile) -> bytes:
    """Return the JSON that a safetensors file begins with."""
    if isinstance(file.content, bytes):
        length = int.from_bytes(file.content[:8], "little")
        return file.content[8 : 8 + length]
    with file.content.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        return stream.read(min(length, _MAX_HEADER))


def _shapes(file: StagedFile) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of every array in a file of tensors, or of a grid."""
    if file.path.endswith(".safetensors"):
        for name, about in json.loads(_header(file)).items():
            if name != "__metadata__":
                yield name, tuple(about["shape"])
    elif file.path.endswith("/zarr.json"):
        about = json.loads(file.read())
        if "shape" in about:
            yield file.path.split("/")[-2], tuple(about["shape"])
