"""A head's start in closed form: two ridge regressions to the teacher's last layer, before any gradient step.

The teacher's last layer at token t + 1 reads x = what its attention left, adds its MLP's output, and the sum is what
its output head reads. Entry t of a head knows the states of token t and the embedding of token t + 1, so x is regressed
on both. ``fc`` takes the part of the states. The embedding enters a head through its attention alone: query and key are
made of what is constant in their inputs, at rotary frequencies by which an entry attends to itself, so that value and
output are a linear map of its own embedding, of the rank that keys and values have (a reduced-rank regression). The MLP
has the teacher's first two matrices; its third is regressed, on the head's own activations, to what is missing then.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from specalign.config import cache_dir
from specalign.models.alignment import float64_device
from specalign.models.eagle import EagleHead
from specalign.models.heads import hidden_states
from specalign.models.properties import decoder_layers
from specalign.models.regression import Samples, Sums, accumulate, relative_error, solve
from specalign.models.states import states_entering

Batch = tuple[Tensor, ...]
"""(input_ids, attention_mask) [B, T], right-padded."""
NORMS = ("pre_feedforward_layernorm", "post_attention_layernorm")
"""What reads x before the MLP: Gemma 2 and 3; Llama and its kin."""
PAIRS = 4
"""Rotary frequencies, the fastest, of which self-attention is made."""
SHARPNESS = 16.0
"""Attention score of an entry with itself, of the first query of each key; that with the entry before is about 0.8 of
it. The others' rise by half of it each, so that no two queries have the same gradient."""


@dataclass(frozen=True)
class Fit:
    """Weighted mean squared error relative to what had to be reached, of x and of what the output head reads."""

    attended: float
    output: float


@torch.no_grad()
def fit_head(
    head: EagleHead,
    teacher: PreTrainedModel,
    batches: Iterable[Batch],
    *,
    ridge: float = 1e-3,
    progress: Callable[[], None] = lambda: None,
) -> Fit:
    """Fit a new head in place. ``progress`` is called once a batch and pass: four times for each.

    Samples weigh 1 / |target|^2; sums and solutions are in float64. The teacher's states wait in files of the cache
    folder, which are deleted at the end.
    """
    cache_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="head-", dir=cache_dir()) as scratch:
        data: list[tuple[Batch, Path]] = []
        for batch in batches:
            data.append((batch, Path(scratch) / f"{len(data)}.safetensors"))
            save_file(_observed(teacher, head, batch), data[-1][1])
            progress()
        assert data, "no batches"
        stream = _Stream(head, data, progress)
        attended = _fit_attended(stream, ridge)
        _attend_to_itself(stream, ridge)
        _copy_mlp(head, decoder_layers(teacher)[-1])
        return Fit(attended, _fit_mlp(stream, ridge))


@dataclass(frozen=True)
class _Entries:
    """The unpadded entries of one batch."""

    ids: Tensor
    """[B, T - 1]: of entry t token t + 1."""
    kept: Tensor
    """[B, T - 1] True where there is a token t + 1."""
    read: Tensor
    """[B, T - 1, k * h]."""
    attended: Tensor
    """[n, h] x at token t + 1, of the unpadded ones."""
    final: Tensor
    """[n, h] what leaves the teacher's last layer there."""


@dataclass(frozen=True)
class _Stream:
    """The batches, read anew for each pass."""

    head: EagleHead
    data: list[tuple[Batch, Path]]
    progress: Callable[[], None]

    @property
    def n_samples(self) -> int:
        """Each weighs one where the whole target is to be reached."""
        return sum(int(mask[:, 1:].sum()) for (_, mask), _ in self.data)

    def __iter__(self) -> Iterator[_Entries]:
        for (ids, mask), path in self.data:
            with safe_open(path, framework="pt", device=str(ids.device)) as file:
                tensors = {name: file.get_tensor(name).to(self.head.dtype) for name in file.keys()}  # noqa: SIM118
            kept = mask[:, 1:].bool()
            yield _Entries(
                ids[:, 1:],
                kept,
                tensors["read"][:, :-1],
                tensors["attended"][:, 1:][kept],
                tensors["final"][:, 1:][kept],
            )
            self.progress()


def _observed(teacher: PreTrainedModel, head: EagleHead, batch: Batch) -> dict[str, Tensor]:
    """[B, T, *] what the head reads, what the last layer's MLP does, and what leaves that layer."""
    stack = decoder_layers(teacher)
    norm = next(module for name in NORMS if (module := getattr(stack[-1], name, None)) is not None)
    caught: list[Tensor] = []
    handle = norm.register_forward_pre_hook(lambda _module, args: caught.append(args[0]))
    try:
        with states_entering(teacher, (*head.config.reads, len(stack))) as states:
            hidden_states(teacher, input_ids=batch[0], attention_mask=batch[1])
    finally:
        handle.remove()
    read = torch.cat([states[layer] for layer in head.config.reads], dim=-1)
    return {"read": read, "attended": caught[-1], "final": states[len(stack)].clone()}


def _layer(head: EagleHead) -> Any:
    return head.layers[0]


def _exact(tensor: Tensor) -> Tensor:
    return tensor.to(float64_device(tensor.device)).double()


def _embedded(head: EagleHead, entries: _Entries) -> Tensor:
    """[n, h] what the layer reads of the embedding."""
    return _layer(head).input_layernorm(head.embed_tokens(entries.ids[entries.kept]))


def _summed(stream: Iterable[Samples]) -> Sums:
    sums: Sums | None = None
    for samples in stream:
        sums = accumulate(sums, samples, directions=False)
    assert sums is not None
    return sums


def _sample(inner: Tensor, wanted: Tensor, present: Tensor | None = None) -> Samples:
    """``inner`` [n, f] is to give ``wanted`` - ``present`` [n, h], weighted by 1 / |wanted|^2."""
    a, b = _exact(inner), _exact(wanted)
    weight = b.square().sum(-1, keepdim=True).clamp(min=1e-24).reciprocal()
    missing = b if present is None else b - _exact(present)
    nothing = torch.zeros_like(b)
    return Samples(a, nothing, nothing, missing, weight)


def _fit_attended(stream: _Stream, ridge: float) -> float:
    """fc, and value and output of the attention as a map of the entry's own embedding; the relative error."""
    head, attention = stream.head, _layer(stream.head).self_attn
    joined = (
        _sample(torch.cat([entries.read[entries.kept], _embedded(head, entries)], -1), entries.attended)
        for entries in stream
    )
    sums = _summed(joined)
    n_read, d = head.fc.in_features, attention.head_dim
    whole = solve(sums, ridge)
    n_keys = attention.v_proj.out_features
    embedding_map = whole[n_read:].T  # [h, h]
    scatter = embedding_map @ sums.gram[n_read:, n_read:] @ embedding_map.T
    directions = torch.linalg.eigh(scatter).eigenvectors.flip(-1)[:, :n_keys]  # those that matter most first
    reduced = directions.T @ embedding_map
    part = sums.gram[:n_read, n_read:] @ (directions @ reduced).T
    rest = Sums(sums.gram[:n_read, :n_read], sums.cross[:n_read] - part, sums.size, sums.error)
    fc = solve(rest, ridge)
    _copy(head.fc.weight, fc.T)
    attention.v_proj.weight.zero_()
    _copy(attention.v_proj.weight[: len(reduced), : head.config.layer.hidden_size], reduced)
    shared = attention.num_key_value_groups
    blocks = directions.split(d, dim=1)
    attention.o_proj.weight.zero_()
    for place, block in enumerate(blocks):
        for query in range(place * shared, (place + 1) * shared):
            _copy(attention.o_proj.weight[:, query * d : query * d + block.shape[1]], block / shared)
    return relative_error(torch.cat([fc, (directions @ reduced).T]), sums)


def _attend_to_itself(stream: _Stream, ridge: float) -> None:
    """Add to the drawn queries and keys what makes entries attend to themselves."""
    layer = _layer(stream.head)
    attention = layer.self_attn
    gram: Tensor | None = None
    total: Tensor | None = None
    for entries in stream:
        normed = layer.hidden_norm(stream.head.project(entries.read[entries.kept]))
        both = _exact(torch.cat([_embedded(stream.head, entries), normed], -1))
        gram = both.T @ both if gram is None else gram + both.T @ both
        total = both.sum(0) if total is None else total + both.sum(0)
    assert gram is not None
    assert total is not None
    damped = gram.clone()
    damped.diagonal().add_(ridge * gram.diagonal().mean())
    constant = torch.linalg.solve(damped, total)  # its product with an input is about 1
    d, shared = attention.head_dim, attention.num_key_value_groups
    for weight, sharpness in (
        (attention.k_proj.weight, [SHARPNESS] * (attention.k_proj.out_features // d)),
        (attention.q_proj.weight, [SHARPNESS * (1 + (q % shared) / 2) ** 2 for q in _queries(attention)]),
    ):
        for place, sharp in enumerate(sharpness):
            size = (sharp * d**0.5 / PAIRS) ** 0.5
            rows = weight[place * d : place * d + min(PAIRS, d // 2)]
            rows.add_((size * constant).to(rows).expand_as(rows))


def _queries(attention: Any) -> range:
    return range(attention.q_proj.out_features // attention.head_dim)


def _copy_mlp(head: EagleHead, last: nn.Module) -> None:
    """The norm and the first two matrices of the teacher's last MLP, where it has such; else they stay as drawn."""
    ours = _layer(head)
    norm = next(module for name in NORMS if (module := getattr(last, name, None)) is not None)
    ours.post_attention_layernorm.weight.copy_(norm(torch.ones_like(ours.post_attention_layernorm.weight)))
    modules = dict(last.named_modules())
    for name in ("gate_proj", "up_proj"):
        theirs, own = modules.get(f"mlp.{name}"), getattr(ours.mlp, name)
        if isinstance(theirs, nn.Linear) and theirs.weight.shape == own.weight.shape:
            own.weight.copy_(theirs.weight)


def _fit_mlp(stream: _Stream, ridge: float) -> float:
    """The MLP's last matrix, on what the head's own attention gives; the relative error of the output."""
    mlp = _layer(stream.head).mlp
    mlp.down_proj.weight.zero_()
    inner: list[Tensor] = []
    handle = mlp.down_proj.register_forward_pre_hook(lambda _module, args: inner.append(args[0]))
    try:
        sums = _summed(_mlp_samples(stream, inner))
    finally:
        handle.remove()
    solution = solve(sums, ridge)
    _copy(mlp.down_proj.weight, solution.T)
    return relative_error(solution, sums) * float(sums.size) / stream.n_samples


def _mlp_samples(stream: _Stream, inner: list[Tensor]) -> Iterator[Samples]:
    for entries in stream:
        n = entries.ids.shape[1]
        positions = torch.arange(n, device=entries.ids.device).expand_as(entries.ids)
        inner.clear()
        attended = stream.head(
            entries.ids, stream.head.project(entries.read), position_ids=positions, attention_mask=None
        )
        yield _sample(inner[-1][entries.kept], entries.final, attended[entries.kept])


def _copy(weight: Tensor, value: Tensor) -> None:
    weight.copy_(value.to(weight.device, weight.dtype))
