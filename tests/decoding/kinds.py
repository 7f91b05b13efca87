"""Every kind of drafter: what is promised of one is tested of all."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from specalign.decoding import (
    WITHOUT_MODEL,
    DraftCosts,
    Drafter,
    EagleDrafter,
    Hybrid,
    Masks,
    ModelDrafter,
    ParallelDrafter,
    Step,
    SuffixLookup,
)
from specalign.decoding.draft_length import Origin
from specalign.models.eagle import EagleHead
from specalign.models.eagle_start import head_config, new_head


def trimmed(model: PreTrainedModel) -> ModelDrafter:
    """Every other id."""
    return ModelDrafter(model, torch.arange(0, model.config.get_text_config().vocab_size, 2))


def hybrid(model: PreTrainedModel) -> Hybrid:
    """Both parts are tried: copies are right by chance, a draft of the model is dear."""
    return Hybrid((SuffixLookup(DraftCosts(0.0, (1.0, 1.05))), ModelDrafter(model, adaptive=DraftCosts(0.3))))


def knowing(model: PreTrainedModel) -> Hybrid:
    """The same after a request in which the model was always right, and one in which it was not."""
    steps = [
        Step(2, 2, n, n + 1, (1.0, 1.0), 0.0, 0.0, 0.0, origin=Origin(1, (4, 4), 0.5 * (n == 0)))
        for n in (2, 2, 2, 0)
    ]
    return hybrid(model).learned([steps, steps[:1]])


def tiny_head(model: PreTrainedModel, reads: tuple[int, ...] = (1, 2, 3), *, whole: bool = False) -> EagleHead:
    """A random head for targets of the shape of ``model``, over the ids below 30, or over all; far from uniform."""
    n_ids = model.config.get_text_config().vocab_size
    kept = n_ids if whole else min(n_ids, 30)
    ids = None if kept == n_ids else torch.arange(kept)
    head = new_head(model, head_config(model.config, reads, kept), ids, seed=1)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if "norm" not in name and "embed" not in name and "lm_head" not in name:
                parameter.mul_(8.0)
    return head


def for_family(kind: str, family: str) -> bool:
    """Whether a kind drafts for a family: heads read the states of decoder-only targets."""
    return "head" not in kind or family != "t5"


def parallel(model: PreTrainedModel, costs: DraftCosts | None = None) -> ParallelDrafter:
    """Up to 3 tokens a call; the model has never seen its mask, and drafts badly."""
    return ParallelDrafter(model, Masks(token=4, most=3), adaptive=costs)


def _always(drafter: Drafter) -> Callable[[PreTrainedModel], Drafter]:
    return lambda _model: drafter


KINDS: dict[str, Callable[[PreTrainedModel], Drafter]] = {
    "model": ModelDrafter,
    "trimmed": trimmed,
    "adaptive": lambda model: ModelDrafter(model, adaptive=DraftCosts(0.2, (1.0, 1.1))),
    "hybrid": hybrid,
    "hybrid knowing": knowing,
    "head": lambda model: EagleDrafter(tiny_head(model)),
    "adaptive_head": lambda model: EagleDrafter(tiny_head(model), adaptive=DraftCosts(0.2, (1.0, 1.1))),
    "hybrid_head": lambda model: Hybrid(
        (SuffixLookup(DraftCosts(0.0, (1.0, 1.05))), EagleDrafter(tiny_head(model), adaptive=DraftCosts(0.02)))
    ),
    "parallel": parallel,
    "parallel adaptive": lambda model: parallel(model, DraftCosts(0.2, (1.0, 1.1), (0.0, 0.2, 0.22))),
    **{name: _always(drafter) for name, drafter in WITHOUT_MODEL.items()},
}
"""Name -> the drafter that a model makes."""
