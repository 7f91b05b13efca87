"""Cross-entropy on the data's own tokens: supervised fine-tuning, or sequence-level distillation."""

import torch
from torch import Tensor

from specalign.losses.logits import log_probabilities


def cross_entropy(
    student_logits: Tensor, teacher_logits: Tensor | None, *, labels: Tensor | None = None
) -> Tensor:
    """-log q(y), in nats.

    On references this is SFT; on responses of the teacher, sequence-level distillation (Kim & Rush 2016,
    arXiv:1606.07947). The teacher's logits are not used and may be None.

    student_logits [..., C]; labels [...] index the last dimension; a negative label (a token that a trimmed
    vocabulary lacks, or padding) gives 0 without gradient: leave it out of the token count. Returns [...],
    >= 0, in float32 or better. Raises ValueError without labels.
    """
    if labels is None:
        raise ValueError("cross_entropy needs labels")
    picked = log_probabilities(student_logits).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return torch.where(labels >= 0, -picked, 0)
