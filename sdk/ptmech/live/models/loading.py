"""Load a stage: weights from wherever its source says, adapter merged in, tokenizer, identity.

Whatever the source, it has become a folder of safetensors on this machine before anything is
loaded, so there is one way to load and no special case for a model family.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import weakref
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from pydantic import ValidationError

from ptmech.errors import (
    ArtifactNotFoundError,
    DataError,
    FormatError,
    PrerequisiteError,
    StorageError,
    UnsupportedModelError,
    first_line,
    unknown,
)
from ptmech.live.models.files import ModelIdentity, local_folder, model_identity, pinned
from ptmech.live.models.gguf import quiet_transformers
from ptmech.live.models.quantised import quantised_options, require_quantisation
from ptmech.live.templates import put_beginning_first, tokenizer_backend
from ptmech.manifest import Quantisation, StoredDtype
from ptmech.model_sources import FolderModel, Frozen, HubModel, ModelSource, PackagedModel

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


Spread = Literal["auto", "balanced", "balanced_low_0", "sequential"]
DeviceMap = Spread | Mapping[str, int | str]
"""How to spread a model over devices, main memory and disk: one of accelerate's ways, or the name
of each module with the number of a GPU, ``"cpu"`` or ``"disk"``."""


_NO_CODE = ("contains custom code", "does not recognize this architecture")
"""What transformers says of models that it cannot load with what it ships."""


class ModelShape(Frozen):
    """What is known of a model before its weights are there."""

    n_layers: int
    """Decoder blocks."""
    d_model: int
    """Width of the residual stream."""
    has_neurons: bool = True
    """Whether its last MLP is one, and not a mixture of experts."""
    without_tree: str = ""
    """Why it cannot run texts that begin alike as prefix trees; empty if it can."""
    parameters: int = 0
    """All of them, tied ones once; 0 if not counted."""
    block_weights: int = 0
    """Elements of the weight matrices of all blocks together; 0 if not counted."""
    attention_width: int = 0
    """Query heads times their width; 0 if not known."""


@dataclass(frozen=True)
class LoadedModel:
    """A stage in memory, ready for forward passes: eval mode, no gradients.

    Attributes
    ----------
    model
        The causal language model, with the adapter already merged.
    tokenizer
        Its tokenizer, which pads on the right.
    identity
        What was loaded.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    identity: ModelIdentity


def source_of(id_or_path: str | Path, revision: str | None) -> ModelSource:
    """Say where the weights of an id or a folder come from.

    Raises
    ------
    DataError
        A revision of a folder.
    ArtifactNotFoundError
        Neither a folder nor what an id on the Hub looks like.
    """
    folder = Path(id_or_path).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise DataError(f"{str(id_or_path)!r} is a local folder: it takes no revision")
        return FolderModel(path=folder)
    with suppress(ValidationError):  # neither of the two, then
        if isinstance(id_or_path, str):
            return HubModel(hub=id_or_path, revision=revision or "main")
    raise ArtifactNotFoundError(
        f"{str(id_or_path)!r} is neither a folder nor the id of a model on the Hub (owner/name)"
    )


def load_tokenizer(source: ModelSource, *, add_beginning: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a source without its weights.

    It pads on the right, so that position ids and explicit last-token indices stay plain.

    Parameters
    ----------
    source
        Where it comes from.
    add_beginning
        Have it put the beginning-of-text token first, if it does not do so by itself.

    Raises
    ------
    DataError
        It has no such token to put first.
    PrerequisiteError, IntegrityError, ArtifactNotFoundError
        As in :func:`model_identity`.
    """
    return _tokenizer(local_folder(source, with_weights=False), source, add_beginning=add_beginning)


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return one sha256 over all that decides how a tokenizer renders and splits a prompt."""
    described = f"{tokenizer_backend(tokenizer).to_str()}\0{tokenizer.chat_template}"
    return hashlib.sha256(described.encode()).hexdigest()


def load_shape(source: ModelSource) -> ModelShape:
    """Read a model's shape from its configuration, without loading weights.

    Raises
    ------
    UnsupportedModelError
        The sites of such an architecture are not known.
    PrerequisiteError, IntegrityError, ArtifactNotFoundError
        As in :func:`model_identity`.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from ptmech.live.packing.support import without_tree
    from ptmech.live.sites import ModelSites

    with quiet_transformers():
        folder = local_folder(source, with_weights=False)
        with _known_code(str(folder)):
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        config = config.get_text_config()
        with torch.device("meta"):
            sites = ModelSites.of(AutoModelForCausalLM.from_config(config))
    heads = config.num_attention_heads
    return ModelShape(
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        has_neurons=sites.has_neurons,
        without_tree=without_tree(config),
        parameters=sum(parameter.numel() for parameter in sites.model.parameters()),
        block_weights=sum(p.numel() for p in sites.layers.parameters() if p.ndim > 1),
        attention_width=heads * (getattr(config, "head_dim", None) or config.hidden_size // heads),
    )


def pick_spread(name: str | None) -> Spread | None:
    """Return a way to spread a model by its name.

    Raises
    ------
    UnknownNameError
        There is no such way.
    """
    match name:
        case None | "auto" | "balanced" | "balanced_low_0" | "sequential":
            return name
        case _:
            raise unknown("device map", name, get_args(Spread))


def pick_device(wanted: str, device_map: DeviceMap | None = None) -> str:
    """Say which torch device to use: ``"auto"`` is the GPU if there is one, else the CPU.

    Raises
    ------
    DataError
        A device that cannot be used here, or one for a model that is to be spread.
    UnknownNameError
        A way to spread a model that does not exist.
    """
    import torch

    if isinstance(device_map, str):
        pick_spread(device_map)
    elif device_map is not None:
        for device in {*device_map.values()} - {"disk"}:
            _require_usable(device)
    if device_map is not None and wanted != "auto":
        raise DataError(
            f"a model goes to one device ({wanted!r}) or is spread by a device map, not both"
        )
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    _require_usable(wanted)
    return wanted


def _require_usable(device: str | int) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"device {device!r} cannot be used: {reason}") from error


def torch_dtype(name: str) -> torch.dtype:
    """Return torch's element type of that name.

    Raises
    ------
    UnknownNameError
        It is not one of those that artifacts are computed and stored in.
    """
    import torch

    known = get_args(StoredDtype)
    if name not in known:
        raise unknown("dtype", name, known)
    return getattr(torch, name)


def load_model(
    source: ModelSource,
    *,
    adapter: Path | None = None,
    device: str = "cpu",
    device_map: DeviceMap | None = None,
    dtype: torch.dtype | None = None,
    attention: Literal["sdpa", "eager"] | None = None,
    add_beginning: bool = False,
    quantisation: Quantisation | None = None,
) -> LoadedModel:
    """Load a stage: weights, adapter merged in, tokenizer and identity.

    Parameters
    ----------
    source
        Where the weights come from.
    adapter
        Folder of a peft LoRA adapter, merged in float32 before the cast to `dtype`.
    device
        A torch device.
    device_map
        How to spread a model that is larger than one device; `device` does not matter then.
    dtype
        Floating-point type of the model; None means float32.
    attention
        The attention implementation of transformers; None takes ``"sdpa"`` where the model has it,
        which Gemma 2 has not.
    add_beginning
        As for :func:`load_tokenizer`.
    quantisation
        To what to quantise the weights; weights that are quantised already are refused unless this
        says so.

    Raises
    ------
    UnsupportedModelError
        The weights are quantised otherwise than asked for, or an adapter cannot be merged into
        them: because they are quantised, or spread to where they are mere shapes. Or only code
        that comes with the model could load it.
    FormatError
        A file of weights is not sound.
    PrerequisiteError, IntegrityError, ArtifactNotFoundError
        As in :func:`model_identity`; IntegrityError also when downloaded or cached bytes differ
        from what the identity says.

    Examples
    --------
    >>> loaded = load_model(FolderModel(path="models/tiny"))  # doctest: +SKIP
    >>> loaded.model.training  # doctest: +SKIP
    False
    """
    import torch
    from transformers import AutoModelForCausalLM

    wanted = dtype or torch.float32
    source = pinned(source)  # a branch must not move between hashing and loading
    identity = model_identity(source, adapter, quantisation)
    configuration = local_folder(source, with_weights=False)
    require_quantisation(configuration, quantisation, adapter=adapter, name=identity.source)
    options = quantised_options(configuration, quantisation, wanted)
    if device_map is None and quantisation is not None:
        device_map = {"": device}  # quantised weights cannot be moved afterwards
    folder = local_folder(source)
    with ExitStack() as undo:
        scratch = undo.enter_context(_scratch()) if device_map is not None else None
        with (
            quiet_transformers(),
            _missing_packages(identity.source),
            _known_code(identity.source),
            _sound_weights(identity.source),
        ):
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                trust_remote_code=False,
                dtype=torch.float32 if adapter else wanted,
                attn_implementation=attention,
                use_safetensors=True,
                device_map=device_map,
                offload_folder=scratch,
                **options,
            )
        weakref.finalize(model, undo.pop_all().close)
    if adapter is not None:
        _require_in_memory(model, identity.source)
        model = _merged(model, adapter)
        # Weights only: buffers such as the frequencies of position embeddings stay in float32.
        for weight in model.parameters():
            weight.data = weight.data.to(wanted)
    if device_map is None:
        torch.nn.Module.to(model, device=device)
    model.eval().requires_grad_(False)
    tokenizer = _tokenizer(folder, source, add_beginning=add_beginning)
    return LoadedModel(model=model, tokenizer=tokenizer, identity=identity)


@contextmanager
def _scratch() -> Generator[str]:
    """Make a folder for weights that are spread to the disk in another form than they came in.

    Those of a mixture's experts are: they are stored one by one and computed with together.
    """
    folder = tempfile.mkdtemp(prefix="ptmech-offloaded-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _missing_packages(name: str) -> Generator[None]:
    """Say in one line which package transformers asks for."""
    try:
        yield
    except ImportError as error:
        reason = str(error).strip().splitlines()[0]
        raise PrerequisiteError(f"{name} cannot be loaded: {reason}") from error


@contextmanager
def _sound_weights(name: str) -> Generator[None]:
    """Say in one line that a file of weights is none, or that the disk does not give it."""
    from safetensors import SafetensorError

    try:
        yield
    except RuntimeError as error:
        if "unable to open file" not in str(error):  # as torch maps it
            raise
        raise StorageError(f"{name}: weights cannot be read: {first_line(error)}") from error
    except SafetensorError as error:
        raise FormatError(
            f"{name}: a file of weights is not sound safetensors: {first_line(error)}"
        ) from error


@contextmanager
def _known_code(name: str) -> Generator[None]:
    """Refuse models of which transformers has no code of its own: theirs is never run."""
    try:
        yield
    except ValueError as error:
        if not any(said in str(error) for said in _NO_CODE):
            raise
        raise UnsupportedModelError(
            f"{name} is of a kind that transformers has no code for, and code that comes with a "
            "model is never run; a newer transformers may know it"
        ) from error


def _require_in_memory(model: PreTrainedModel, name: str) -> None:
    if any(weight.is_meta for weight in model.parameters()):
        raise UnsupportedModelError(
            f"an adapter cannot be merged into {name} while some of its weights are kept off the "
            "devices that compute: choose a device map of GPUs only, or of the CPU only"
        )


def _merged(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """W + (alpha / rank) B A in every adapted module, in the model's float32."""
    from peft import PeftModel

    with quiet_transformers():
        return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)


def _tokenizer(
    folder: Path, source: ModelSource, *, add_beginning: bool
) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    with quiet_transformers(), _known_code(str(folder)):
        tokenizer = AutoTokenizer.from_pretrained(
            folder, padding_side="right", trust_remote_code=False
        )
    if isinstance(source, PackagedModel) and source.chat_template is not None:
        tokenizer.chat_template = source.chat_template
    if add_beginning:
        put_beginning_first(tokenizer)
    return tokenizer
