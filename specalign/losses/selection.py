"""Selective tokens: train only where the drafter can still gain (AdaSPEC)."""

import math

import torch
from torch import Tensor


def select_tokens(per_token: Tensor, reference_loss: Tensor | None, keep: float) -> Tensor:
    """The losses of the ``keep`` share of tokens with the largest reducible loss, 0 elsewhere.

    AdaSPEC (arXiv:2510.19779): reducible loss = loss - ``reference_loss``, the loss of a reference drafter that
    was trained before; None selects by the loss itself. Of n tokens ceil(keep * n) stay, multiplied by
    n / that number, so that a mean over all tokens is the mean over the selected ones. No gradient flows
    through the choice. per_token and reference_loss [...] -> [...]. Raises ValueError outside 0 < keep <= 1.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep must lie in 0 < keep <= 1, not {keep}")
    n = per_token.numel()
    n_kept = math.ceil(keep * n)
    if n_kept == n:
        return per_token
    gain = per_token.detach() if reference_loss is None else per_token.detach() - reference_loss
    chosen = torch.zeros(n, dtype=torch.bool, device=per_token.device)
    chosen[gain.flatten().topk(n_kept).indices] = True
    return torch.where(chosen.view_as(per_token), per_token * (n / n_kept), 0)
