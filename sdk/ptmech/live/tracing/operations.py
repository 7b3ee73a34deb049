"""What a sweep costs beside one forward a cell, counted from a model's shape alone.

Nothing runs here, so the ratio can be had for models that do not fit the machine. Counted are the
multiplications of all linear maps and of attention, whose scores are counted in full, masked ones
too; norms, rotations and single logits vanish beside them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from ptmech.errors import DataError
from ptmech.live.sites import ModelSites


@dataclass(frozen=True, kw_only=True)
class TracedShape:
    """What the operations of a model depend on.

    Attributes
    ----------
    n_layers, d_model, vocabulary
        Of the model.
    attention_width
        Query heads times their width.
    key_value_width
        Key heads times their width.
    mlp_parameters
        Weights of one MLP.
    """

    n_layers: int
    d_model: int
    vocabulary: int
    attention_width: int
    key_value_width: int
    mlp_parameters: int

    @classmethod
    def of(cls, sites: ModelSites) -> Self:
        """Read the shape off a model whose blocks are dense and all alike."""
        config: Any = sites.model.config
        heads: int = config.num_attention_heads
        width = getattr(config, "head_dim", None) or sites.d_model // heads
        mlp = sites.layers[0].get_submodule(sites.architecture.mlp)
        return cls(
            n_layers=sites.n_layers,
            d_model=sites.d_model,
            vocabulary=sites.vocabulary,
            attention_width=heads * width,
            key_value_width=(getattr(config, "num_key_value_heads", None) or heads) * width,
            mlp_parameters=sum(part.numel() for part in mlp.parameters() if part.ndim == 2),
        )

    @property
    def projections(self) -> int:
        """Multiplications that give a token's query, key and value."""
        return self.d_model * (self.attention_width + 2 * self.key_value_width)

    def block(self, tokens: int, attended: int) -> int:
        """Multiplications of a block for some tokens, each of which attends to so many."""
        linear = self.projections + self.attention_width * self.d_model + self.mlp_parameters
        return tokens * (linear + 2 * attended * self.attention_width)


LLAMA_8B = TracedShape(
    n_layers=32,
    d_model=4096,
    vocabulary=128256,
    attention_width=4096,
    key_value_width=1024,
    mlp_parameters=3 * 4096 * 14336,
)
"""The shape of Llama-3.1-8B."""


def sweep_operations(shape: TracedShape, *, prefix: int, traced: int, first: int = 0) -> int:
    """Count the multiplications of tracing one pair, all layers and tokens, in one sweep.

    Parameters
    ----------
    shape
        Of the model.
    prefix
        Tokens before the traced ones, which both prompts share.
    traced
        Traced tokens.
    first
        The first traced token in which the prompts differ.

    Raises
    ------
    DataError
        Numbers of tokens that cannot be.
    """
    _require_tokens(prefix, traced, first)
    whole, n = prefix + traced, traced - first
    clean = shape.block(prefix, prefix) + shape.block(2 * traced, whole)
    # The control cell starts at the lowest layer of the middle column.
    control = n - n // 2
    total = shape.n_layers * clean
    for layer in range(1, shape.n_layers):
        cells, tokens = layer * n + 1, layer * n * (n + 1) // 2 + control
        if layer < shape.n_layers - 1:
            total += shape.block(tokens, whole)
        else:  # of all tokens the keys, of the last ones the output
            total += tokens * shape.projections + shape.block(cells, whole)
    return total


def cell_operations(shape: TracedShape, *, prefix: int, traced: int) -> int:
    """Count the multiplications of the same trace by one whole forward a cell.

    Parameters
    ----------
    shape, prefix, traced
        As for :func:`sweep_operations`.
    """
    _require_tokens(prefix, traced, 0)
    whole = prefix + traced
    forward = shape.n_layers * shape.block(whole, whole) + whole * shape.d_model * shape.vocabulary
    return shape.n_layers * traced * forward


def predicted_speedup(shape: TracedShape, *, prefix: int, traced: int, first: int = 0) -> float:
    """Say how many times fewer multiplications a sweep takes than one forward a cell.

    Parameters
    ----------
    shape, prefix, traced, first
        As for :func:`sweep_operations`.

    Raises
    ------
    DataError
        Numbers of tokens that cannot be.

    Examples
    --------
    >>> round(predicted_speedup(LLAMA_8B, prefix=80, traced=14))
    27
    """
    return cell_operations(shape, prefix=prefix, traced=traced) / sweep_operations(
        shape, prefix=prefix, traced=traced, first=first
    )


def _require_tokens(prefix: int, traced: int, first: int) -> None:
    if prefix < 0 or not 0 <= first < traced:
        raise DataError(
            f"no trace has {prefix} tokens before {traced} traced ones that differ from number "
            f"{first} on"
        )
