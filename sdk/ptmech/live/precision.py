"""In which precision to compute where a model's own is too coarse."""

from __future__ import annotations

import torch
from torch import Tensor


def precise(values: Tensor) -> Tensor:
    """Return values in float32, or in their own type if that is finer.

    In half precision a projection or a norm would leave a visible remainder.
    """
    return values.to(torch.promote_types(values.dtype, torch.float32))
