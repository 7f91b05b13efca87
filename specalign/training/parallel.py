"""Training of parallel drafts: copies of mask tokens beside each row, which the text does not see.

PARD (An et al. 2025, arXiv:2504.18583, section 3). A row is [text | copy | copy | ...]. The copy of position i stands
for a draft made there: its mask tokens take the positions i + 1, i + 2, ..., see the text up to i and the masks before
them in the same copy, and the k-th of them predicts token i + 1 + k. That is what the engine computes
(``decoding.parallel``), for all positions in one pass.

The teacher's distribution of that token, given the whole text before it, is the one that the text's own position
i + k has: no further pass of the teacher is needed. What a parallel draft can learn is its mean over what may stand in
between, given the text up to i.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from specalign.decoding.transfer import to_device
from specalign.models.mask_token import Masks
from specalign.training.rows import Layout


@dataclass(frozen=True)
class Drop:
    """PARD's conditional drop: which masks of the copies are trained.

    The k-th masks of a share max(keep^k, floor) of the positions, nested: a position that has its k-th mask has all
    before it, which that one sees.
    """

    keep: float = 0.7
    floor: float = 0.2

    def depths(self, n: int, most: int, generator: torch.Generator) -> list[int]:
        """Number of masks, 0..most - 1, of each of ``n`` positions, drawn anew."""
        counts = [int(n * max(self.keep**k, self.floor)) for k in range(1, most)]
        return [
            sum(place < count for count in counts) for place in torch.randperm(n, generator=generator).tolist()
        ]


@dataclass(frozen=True)
class Scored:
    """What one pass scores: the text's own positions and, after each, those of its masks.

    N positions of the text become N' >= N. Those of one copy follow each other and are a sequence of their own, so
    that an objective over windows sees what a draft made there would be accepted of.
    """

    text: Layout
    """The rows without masks, at whose N positions the teacher is asked."""
    layout: Layout
    """The rows with them, N' positions."""
    source: Tensor | None = None
    """[N'] the text's position whose token each predicts; None: the same, there are no masks."""

    def spread(self, values: Tensor | None) -> Tensor | None:
        """Of values [N, ...] at the text's positions, those [N', ...] of the scored ones; None of None."""
        return values if values is None or self.source is None else values[self.source]

    def by_copy(self, values: Tensor) -> list[list[float]]:
        """Values [N'] of each of the text's N positions: its own, and those of its masks."""
        if self.source is None:
            return [[value] for value in values.tolist()]
        sizes = self.layout.sequence_ids.bincount(minlength=self.text.n_tokens).tolist()
        return [part.tolist() for part in values.split(sizes)]


def with_masks(text: Layout, masks: Masks, depths: Sequence[int]) -> Scored:
    """Rows that were laid out separately (not packed), with ``depths`` [N] masks after their scored positions.

    A position has no more masks than tokens of its response are left to predict.
    """
    if text.visible is not None or text.encoder is not None:
        raise ValueError("mask tokens are laid out beside causal rows of a decoder")
    device = text.input_ids.device
    depths = [min(pair) for pair in zip(depths, _reach(text), strict=True)]
    n_rows, width = text.input_ids.shape
    lines = _lines(text, depths)
    longest = max(map(len, lines))
    anchors, numbers, copies = (_padded(lines, longest, part, device) for part in range(3))
    places, source, sequences = _scored_places(text, depths, width + longest)
    order = torch.arange(width, device=device).expand(n_rows, -1)
    layout = replace(
        text,
        input_ids=torch.cat([text.input_ids, torch.full_like(anchors, masks.token)], 1),
        position_ids=torch.cat([order, anchors + numbers], 1),
        visible=_visible(width, anchors, copies),
        predictors=to_device(places, device),
        labels=text.labels[to_device(source, device)],
        sequence_ids=to_device(sequences, device),
    )
    return Scored(text, layout, to_device(source, device))


def _reach(text: Layout) -> list[int]:
    """[N] how many scored positions follow each one immediately in its response."""
    places, sequences = text.predictors.tolist(), text.sequence_ids.tolist()
    reach = [0] * len(places)
    for n in range(len(places) - 2, -1, -1):
        if places[n + 1] == places[n] + 1 and sequences[n + 1] == sequences[n]:
            reach[n] = reach[n + 1] + 1
    return reach


def _lines(text: Layout, depths: Sequence[int]) -> list[list[tuple[int, int, int]]]:
    """Of each row its masks: (column of the copy's position, number of the mask from 1 on, name of the copy)."""
    n_rows, width = text.input_ids.shape
    lines: list[list[tuple[int, int, int]]] = [[] for _ in range(n_rows)]
    for n, (place, depth) in enumerate(zip(text.predictors.tolist(), depths, strict=True)):
        row, column = divmod(place, width)
        lines[row] += [(column, k, n + 1) for k in range(1, depth + 1)]
    return lines


def _scored_places(text: Layout, depths: Sequence[int], width: int) -> tuple[list[int], list[int], list[int]]:
    """Of each scored position: its place in the flattened rows, the text's position with its token, and its copy."""
    text_width = text.input_ids.shape[1]
    n_masks = [0] * len(text.input_ids)
    places: list[int] = []
    source: list[int] = []
    copies: list[int] = []
    for n, (place, depth) in enumerate(zip(text.predictors.tolist(), depths, strict=True)):
        row, column = divmod(place, text_width)
        begin = row * width + text_width + n_masks[row]
        places += [row * width + column, *range(begin, begin + depth)]
        source += range(n, n + depth + 1)
        copies += [n] * (depth + 1)
        n_masks[row] += depth
    return places, source, copies


def _visible(width: int, anchors: Tensor, copies: Tensor) -> Tensor:
    """[B, L, L] True where a query sees a key: the text causally; a mask the text up to its position, and its copy.

    ``anchors`` [B, E] are the positions' columns and ``copies`` [B, E] the copies' names; 0 is padding's.
    """
    n_rows, extra = anchors.shape
    order = torch.arange(width, device=anchors.device)
    causal = (order <= order[:, None]).expand(n_rows, -1, -1)
    nothing = causal.new_zeros(n_rows, width, extra)
    of_text = order <= anchors[:, :, None]
    same = copies[:, :, None] == copies[:, None, :]
    own = same & causal.new_ones(extra, extra).tril()
    return torch.cat([torch.cat([causal, nothing], 2), torch.cat([of_text, own], 2)], 1)


def _padded(
    lines: Sequence[Sequence[tuple[int, int, int]]], width: int, part: int, device: torch.device
) -> Tensor:
    rows = [[entry[part] for entry in line] + [0] * (width - len(line)) for line in lines]
    return to_device(rows, device).view(len(lines), width)
