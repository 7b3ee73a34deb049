"""Quantised weights: what a stage computes with them is not what its model computes.

So they are refused, unless a card, a manifest or a caller asks for them by name; then the artifact
says so, too. Packaged GGUF files are no case of this: they are brought back to whole numbers once,
and computed with like any other weights.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptmech.errors import FormatError, PrerequisiteError, UnsupportedModelError, first_line
from ptmech.manifest import Quantisation

if TYPE_CHECKING:
    import torch

_BY_NAME: dict[str, Quantisation] = {
    "fp8": "8bit",
    "fbgemm_fp8": "8bit",
    "mxfp8": "8bit",
    "mxfp4": "4bit",
    "nvfp4": "4bit",
}
"""Methods whose name says how many bits a weight has."""

_BITS: dict[Any, Quantisation] = {8: "8bit", 4: "4bit"}
_BITSANDBYTES = "bitsandbytes"


def require_quantisation(
    folder: Path, wanted: Quantisation | None, *, adapter: Path | None, name: str
) -> None:
    """Raise unless the weights in a folder are as exact as they are meant to be.

    Parameters
    ----------
    folder
        A folder with the model's configuration.
    wanted
        What was asked for by name; None for weights as they were trained.
    adapter
        Folder of an adapter that is to be merged in, or None.
    name
        What the message calls the model, such as ``"stage 'instruct'"``.

    Raises
    ------
    UnsupportedModelError
        The weights are quantised and nobody has asked for that, or otherwise than was asked for; or
        there is an adapter, which cannot be merged into quantised weights.
    """
    method, found = _stored(folder)
    if method is not None and (found is None or found != wanted):
        described = f"{method}, {found or 'an unknown number of bits'}"
        way_out = (
            f'say quantisation = "{found}" in the card\'s stage if they are meant'
            if found
            else "take its unquantised weights"
        )
        raise UnsupportedModelError(f"the weights of {name} are quantised ({described}): {way_out}")
    if wanted is not None and adapter is not None:
        raise UnsupportedModelError(
            f"an adapter cannot be merged into the {wanted} weights of {name}: leave out "
            "quantisation"
        )


def quantised_options(
    folder: Path, wanted: Quantisation | None, dtype: torch.dtype
) -> dict[str, Any]:
    """Return what makes ``from_pretrained`` load the weights in a folder quantised.

    Nothing where they are not to be, and nothing where the folder's own configuration says it all.

    Raises
    ------
    PrerequisiteError
        The package that computes with such weights is missing.
    """
    if wanted is None:
        return {}
    method, _found = _stored(folder)
    if method in (None, _BITSANDBYTES) and find_spec(_BITSANDBYTES) is None:
        raise PrerequisiteError(f"{wanted} weights need bitsandbytes: pip install bitsandbytes")
    if method is not None:
        return {}
    from transformers import BitsAndBytesConfig

    if wanted == "8bit":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    }


def _stored(folder: Path) -> tuple[str | None, Quantisation | None]:
    """Return by which method the weights in a folder are quantised, and to what; None for both."""
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FormatError(
            f"{file} is not JSON: {first_line(error)}; save the model again"
        ) from error
    about = next(
        (
            part[key]
            for part in (config, config.get("text_config") or {})
            for key in ("quantization_config", "compression_config")
            if part.get(key)
        ),
        None,
    )
    if about is None:
        return None, None
    method = str(about.get("quant_method", "by a method it does not name"))
    for key, bits in (("load_in_8bit", 8), ("load_in_4bit", 4)):
        if about.get(key):
            return method, _BITS[bits]
    return method, _BITS.get(about.get("bits")) or _BY_NAME.get(method)
