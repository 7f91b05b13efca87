"""A trimmed draft vocabulary (FR-Spec, arXiv:2502.14856): the drafter's head has its likeliest ids only."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from specalign.files import atomic_path

FILE = "draft_vocabulary/ids.safetensors"
"""In a folder of its own: vLLM and SGLang load every safetensors file beside config.json as weights."""
OLD_FILE = "draft_vocabulary.safetensors"
"""Where folders of earlier versions have it; those do not load in vLLM."""


def n_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """Ids that a head needs rows for: the largest of the tokenizer's, and one. Some leave gaps between their ids."""
    return 1 + max(tokenizer.get_vocab().values())


def choose_draft_vocabulary(
    sequences: Iterable[Iterable[int]], size: int, n_tokens: int, always: Iterable[int]
) -> Tensor:
    """The ``size`` most frequent ids of ``sequences`` among ``n_tokens``, ascending; ``always`` ids are in.

    Ties go to the smaller id, so that a byte-pair vocabulary fills up with its earliest merges.
    """
    counts = torch.zeros(n_tokens, dtype=torch.long)
    for sequence in sequences:
        counts += torch.bincount(torch.as_tensor(list(sequence), dtype=torch.long), minlength=n_tokens)[
            :n_tokens
        ]
    counts[torch.as_tensor(sorted(set(always)), dtype=torch.long)] = counts.max() + 1
    return counts.sort(descending=True, stable=True).indices[:size].sort().values


def save_draft_vocabulary(folder: Path, ids: Tensor) -> None:
    """Write ``ids`` beside a checkpoint."""
    with atomic_path(folder / FILE) as path:
        save_file({"ids": ids.contiguous()}, path)


def load_draft_vocabulary(folder: Path) -> Tensor | None:
    """The ids [V'] beside a checkpoint; None where its head is a full one."""
    for path in (Path(folder) / FILE, Path(folder) / OLD_FILE):
        if path.is_file():
            return load_file(path)["ids"]
    return None
