"""What one forward pass scores: sequences laid out as rows of tokens, several branches to a row where possible.

A packed row is [trunk | branch 1 | branch 2 | ...]. A branch continues the trunk from some position on; its
tokens see the trunk up to there and themselves, at the positions that they would have in a row of their own.
So a prompt and its response are read once, whatever the number of branches, with exactly the same scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from specalign.decoding.transfer import to_device

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Branch:
    """Generated tokens that follow the first ``start`` tokens of a trunk."""

    start: int
    tokens: tuple[int, ...]

    @property
    def end(self) -> int:
        """Its length with what it follows."""
        return self.start + len(self.tokens)


@dataclass(frozen=True)
class Row:
    """One prompt's training sequences. Without branches, the trunk's own response is scored."""

    trunk: tuple[int, ...]
    """What the decoder reads: prompt and response; for an encoder-decoder model its start token and response."""
    n_prompt: int
    """Leading trunk tokens, of which none but those in ``spans`` enter the loss."""
    branches: tuple[Branch, ...] = ()
    encoder: tuple[int, ...] = ()
    """The prompt of an encoder-decoder model; else empty."""
    on_policy: bool = False
    """Whether the student wrote what is scored."""
    spans: tuple[tuple[int, int], ...] = ()
    """Begin and end of earlier responses among the prompt's tokens, which are scored with the trunk's own."""
    anchors: tuple[int, ...] = ()
    """Of a head: places of scored trunk tokens with which it begins drafts of its own, rising."""

    @property
    def text(self) -> Row:
        """Itself without drafts."""
        return replace(self, anchors=())

    @property
    def scored(self) -> tuple[Branch, ...]:
        """The branches, or the trunk's responses in their order."""
        if self.branches or self.on_policy:
            return self.branches
        places = (*self.spans, (self.n_prompt, len(self.trunk)))
        return tuple(Branch(begin, self.trunk[begin:end]) for begin, end in places)

    @property
    def n_tokens(self) -> int:
        """Tokens that enter the loss."""
        return sum(len(branch.tokens) for branch in self.scored)


@dataclass(frozen=True)
class Layout:
    """Model inputs of some rows, and where their scored tokens are. N is the number of scored tokens."""

    input_ids: Tensor
    """[B, L], padded on the right."""
    position_ids: Tensor | None
    """[B, L]; None where they simply count."""
    visible: Tensor | None
    """[B, L, L], True where query i sees key j; None: causal. Padding on the right needs no mask then."""
    encoder: tuple[Tensor, Tensor, Tensor] | None
    """Of an encoder-decoder model: input ids and attention mask [B', L'] of the different prompts, and [B] which of
    these each row has."""
    predictors: Tensor
    """[N] places in the flattened [B * L] whose hidden states predict the scored tokens."""
    labels: Tensor
    """[N] the scored tokens."""
    sequence_ids: Tensor
    """[N] which sequence a scored token belongs to."""
    read: Tensor | None = None
    """[B, L, k * d] the teacher's states at every token, of the k layers that a head reads; None for other students."""

    @property
    def n_tokens(self) -> int:
        """N."""
        return len(self.labels)


@dataclass
class _Line:
    """A row under construction, token by token."""

    tokens: list[int]
    positions: list[int]
    branch: list[int]
    """0 for the trunk, 1, 2, ... for branches."""
    start: list[int]
    """Number of trunk tokens that a token sees."""


def lay_out(rows: Sequence[Row], *, packed: bool, device: torch.device = CPU) -> Layout:
    """Lay rows out for one forward pass.

    ``packed`` shares each trunk among its branches under an explicit mask. Otherwise each branch is a row of
    its own: more tokens, the same scores, for any model and attention.
    """
    if not packed:
        rows = [row for whole in rows for row in _separate(whole)]
    lines: list[_Line] = []
    places: list[tuple[int, int]] = []
    labels: list[int] = []
    sequences: list[int] = []
    for row in rows:
        line = _trunk(row)
        for branch in row.scored:
            inside = branch.start < row.n_prompt  # an earlier response, which the trunk has already
            found = range(branch.start - 1, branch.end - 1) if inside else _add_branch(line, branch)
            places += [(len(lines), place) for place in found]
            sequences += [len(sequences)] * len(branch.tokens)
            labels += branch.tokens
        lines.append(line)
    width = max(len(line.tokens) for line in lines)
    needs_mask = any(any(line.branch) for line in lines)
    return Layout(
        input_ids=_padded([line.tokens for line in lines], width, device),
        position_ids=_padded([line.positions for line in lines], width, device) if needs_mask else None,
        visible=_visible(lines, width, device) if needs_mask else None,
        encoder=_encoder(rows, device),
        predictors=to_device([row * width + place for row, place in places], device),
        labels=to_device(labels, device),
        sequence_ids=to_device(sequences, device),
    )


def _separate(row: Row) -> list[Row]:
    if row.spans and not row.on_policy:
        return [row]
    return [
        Row(row.trunk[: branch.start] + branch.tokens, branch.start, (), row.encoder)
        for branch in row.scored
        if branch.tokens
    ]


def _trunk(row: Row) -> _Line:
    """The trunk up to the last token that some branch sees."""
    end = max((branch.start for branch in row.scored), default=row.n_prompt)
    return _Line(list(row.trunk[:end]), list(range(end)), [0] * end, list(range(1, end + 1)))


def _add_branch(line: _Line, branch: Branch) -> list[int]:
    """Append a branch; return where the predictors of its tokens stand. Its last token predicts nothing."""
    if not branch.tokens:
        return []
    inputs = branch.tokens[:-1]
    begin, end = len(line.tokens), len(line.tokens) + len(inputs)
    continues_trunk = begin == branch.start and not any(line.branch)
    name = 0 if continues_trunk else 1 + max(line.branch)
    line.tokens += inputs
    line.positions += range(branch.start, branch.start + len(inputs))
    line.branch += [name] * len(inputs)
    line.start += [branch.start] * len(inputs)
    return [branch.start - 1, *range(begin, end)]


def _visible(lines: Sequence[_Line], width: int, device: torch.device) -> Tensor:
    """[B, L, L]: causal, and either in the same branch or a trunk token before the branch's start."""
    branch = _padded([line.branch for line in lines], width, device, fill=-1)
    start = _padded([line.start for line in lines], width, device)
    place = torch.arange(width, device=device)
    same = branch[:, :, None] == branch[:, None, :]
    before = (branch[:, None, :] == 0) & (place < start[:, :, None])
    return (same | before) & (place <= place[:, None])


def _encoder(rows: Sequence[Row], device: torch.device) -> tuple[Tensor, Tensor, Tensor] | None:
    if not rows[0].encoder:
        return None
    prompts = list(dict.fromkeys(row.encoder for row in rows))
    width = max(map(len, prompts))
    mask = [[1] * len(prompt) for prompt in prompts]
    place = {prompt: index for index, prompt in enumerate(prompts)}
    owner = to_device([place[row.encoder] for row in rows], device)
    return _padded(prompts, width, device), _padded(mask, width, device), owner


def _padded(lines: Sequence[Sequence[int]], width: int, device: torch.device, fill: int = 0) -> Tensor:
    return to_device([[*line, *[fill] * (width - len(line))] for line in lines], device)
