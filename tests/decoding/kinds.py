"""Every kind of drafter: what is promised of one is tested of all."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from specalign.decoding import WITHOUT_MODEL, DraftCosts, Drafter, Hybrid, ModelDrafter, SuffixLookup


def trimmed(model: PreTrainedModel) -> ModelDrafter:
    """Every other id."""
    return ModelDrafter(model, torch.arange(0, model.config.get_text_config().vocab_size, 2))


def hybrid(model: PreTrainedModel) -> Hybrid:
    """Both parts are tried: copies are right by chance, a draft of the model is dear."""
    return Hybrid((SuffixLookup(DraftCosts(0.0, (1.0, 1.05))), ModelDrafter(model, adaptive=DraftCosts(0.3))))


def _always(drafter: Drafter) -> Callable[[PreTrainedModel], Drafter]:
    return lambda _model: drafter


KINDS: dict[str, Callable[[PreTrainedModel], Drafter]] = {
    "model": ModelDrafter,
    "trimmed": trimmed,
    "adaptive": lambda model: ModelDrafter(model, adaptive=DraftCosts(0.2, (1.0, 1.1))),
    "hybrid": hybrid,
    **{name: _always(drafter) for name, drafter in WITHOUT_MODEL.items()},
}
"""Name -> the drafter that a model makes."""
