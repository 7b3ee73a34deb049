"""Trees with flex attention: blocks of a tree that nobody sees are not computed at all."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import PreTrainedModel

from ptmech.errors import DataError


def tree_block_mask(mask: Tensor) -> BlockMask:
    """Turn a tree's mask [sequences, 1, tokens, tokens] into one that flex attention runs by.

    In a tree every branch is a run of tokens. So who sees a token is told by one number, where the
    last branch out of it ends, and the kernel reads [sequences, tokens] numbers instead of a mask.

    Parameters
    ----------
    mask
        bool, first the token that looks.

    Raises
    ------
    DataError
        A mask that is none of trees laid out branch after branch.
    """
    sequences, _one, tokens, _tokens = mask.shape
    ends = tokens - mask[:, 0].flip(1).int().argmax(dim=1)  # [sequences, tokens]
    at = torch.arange(tokens, device=mask.device)
    looking, seen = at[:, None], at[None, :]
    if not torch.equal((seen <= looking) & (looking < ends[:, None, :]), mask[:, 0]):
        raise DataError("this mask is not one of trees laid out branch after branch")

    def sees(sequence: Tensor, _head: Tensor, looking: Tensor, seen: Tensor) -> Tensor:
        return (seen <= looking) & (looking < ends[sequence, seen])

    return create_block_mask(sees, sequences, None, tokens, tokens, device=str(mask.device))


@contextmanager
def flex_trees(model: PreTrainedModel) -> Generator[None]:
    """Run forwards that come with a tree's mask by flex attention, all others as before."""
    body = model.get_submodule("model")
    config: Any = model.config
    before: str = config._attn_implementation

    def switch(_body: nn.Module, args: tuple[Any, ...], arguments: dict[str, Any]) -> Any:
        mask = arguments.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 4:
            arguments = {**arguments, "attention_mask": tree_block_mask(mask)}
        if isinstance(arguments.get("attention_mask"), BlockMask):
            model.set_attn_implementation("flex_attention")
        return args, arguments

    def switch_back(_body: nn.Module, _args: object, _output: object) -> None:
        model.set_attn_implementation(before)

    handles = (
        body.register_forward_pre_hook(switch, with_kwargs=True),
        body.register_forward_hook(switch_back, always_call=True),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
