"""The common first step of every objective."""

import torch
from torch import Tensor

FLOOR = -1e6
"""Where logits are cut off: low enough that exp() is 0 in any float, high enough that products stay finite."""


def log_probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature) over the last dimension, in float32 (float64 for float64 logits).

    Finite with finite gradients, -inf entries included: a logit below -1e6 counts as -1e6, its probability is
    exactly 0 (so an excluded id adds nothing to a divergence unless the other side has mass there: then the
    divergence is large but finite), and no gradient reaches it. Raises ValueError unless temperature > 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    precise = logits if logits.dtype == torch.float64 else logits.float()
    scaled = precise if temperature == 1 else precise / temperature
    return torch.log_softmax(scaled.clamp(min=FLOOR), dim=-1)
