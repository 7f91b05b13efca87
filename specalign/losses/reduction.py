"""From per-token losses to one number."""

import torch
from torch import Tensor


def reduce_tokens(per_token: Tensor, mask: Tensor, *, n_tokens: float | Tensor | None = None) -> Tensor:
    """sum(per_token where mask) / n_tokens; ``n_tokens`` defaults to the number of unmasked tokens.

    Under gradient accumulation or several processes pass the token count of the *whole* batch: the sum of
    the parts then equals the big batch. With an empty mask the result is 0 and still has a gradient path.
    per_token and mask (bool) have the same shape.
    """
    total = torch.where(mask, per_token, per_token.new_zeros(())).sum()
    if isinstance(n_tokens, float | int):
        return total / max(n_tokens, 1)  # a number that went to the device would be waited for
    return total / (mask.sum() if n_tokens is None else n_tokens).clamp(min=1)
