"""Logits that the tests of the objectives share."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


@pytest.fixture
def draw() -> Callable[..., Tensor]:
    """Normal logits in float64, the same ones in every run of a test."""
    generator = torch.Generator().manual_seed(7)

    def normal(*shape: int, scale: float = 2.0) -> Tensor:
        return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

    return normal
