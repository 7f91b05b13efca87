"""The weights of a GGUF file as safetensors, one tensor in memory at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, ReaderTensor, dequantize
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
    load_gguf_checkpoint,
)

from specalign.files import write_json
from specalign.models.weights import require_fit

SHARD_BYTES = 640 * 2**20
"""Weights that are gathered before they are written; a larger tensor is a file of its own."""
ROWS = 4096
"""Rows that are de-quantised at a time."""
HEAD, EMBEDDING = "output.weight", "token_embd.weight"
LAYER = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True)
class HeadTie:
    """How the output head of a file stands to its embedding."""

    difference: float
    """|head - embedding| / |head|, Frobenius norms of the first de-quantised rows that differ; 0: the same numbers."""
    kinds: tuple[str, str]
    """Types of head and embedding."""

    def __str__(self) -> str:
        if not self.difference:
            return "its output.weight is its embedding: tied, so that it is there once"
        head, embedding = self.kinds
        return (
            f"its output.weight ({head}) and token_embd.weight ({embedding}) differ by {self.difference:.1%}: kept "
            "apart, since tying them would change what the file computes"
        )


def write_weights(
    path: Path, folder: Path, advance: Callable[[int], None]
) -> tuple[PreTrainedModel, HeadTie | None]:
    """Write float32 shards of ``path`` into ``folder``, with their index; the model is returned without weights.

    A head of its own that holds the embedding's very numbers is left out and tied; None where the file has no such
    head. ``advance`` is told the elements done. Raises UserError where the tensors are not those of the model.
    """
    reader = GGUFReader(path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    parsed = load_gguf_checkpoint(path)
    tie = head_tie(tensors)
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    if tie and not tie.difference:
        config.tie_word_embeddings = True
        advance(int(tensors.pop(HEAD).n_elements))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    kind = TENSOR_PROCESSORS.get(reader.fields["general.architecture"].contents(), TensorProcessor)
    written = _write_shards(folder, _weights(tensors, model, kind(config=parsed["config"]), advance))
    require_fit(str(path), _report(model, written))
    return model, tie


def n_elements(path: Path) -> int:
    """Of all tensors of a file."""
    return sum(int(tensor.n_elements) for tensor in GGUFReader(path).tensors)


def head_tie(tensors: dict[str, ReaderTensor]) -> HeadTie | None:
    """Compare head and embedding until some rows differ; None where there is no head, or one of another shape."""
    if HEAD not in tensors or EMBEDDING not in tensors:
        return None
    head, embedding = tensors[HEAD], tensors[EMBEDDING]
    if list(head.shape) != list(embedding.shape):
        return None
    kinds = head.tensor_type.name, embedding.tensor_type.name
    if kinds[0] == kinds[1] and np.array_equal(head.data, embedding.data):
        return HeadTie(0.0, kinds)
    for ours, theirs in zip(_parts(head), _parts(embedding), strict=True):
        if not np.array_equal(ours, theirs):
            return HeadTie(float(np.linalg.norm(ours - theirs) / np.linalg.norm(ours)), kinds)
    return HeadTie(0.0, kinds)


def _weights(
    tensors: dict[str, ReaderTensor], model: PreTrainedModel, processor: Any, advance: Callable[[int], None]
) -> Iterator[tuple[str, Tensor]]:
    """(Name, float32 weight) of each parameter, layer by layer: what a processor merges, it merges within one."""
    names = get_gguf_hf_weights_map(model, processor)
    merged: dict[str, Tensor] = {}
    layer = -1
    for tensor in sorted(tensors.values(), key=_layer):
        if _layer(tensor) != layer:
            yield from merged.items()
            merged.clear()
            layer = _layer(tensor)
        facts = {"tensor_key_mapping": names, "parsed_parameters": {"tensors": merged}}
        found = processor.process(weights=dequantised(tensor), name=tensor.name, **facts)
        if found.name in names:
            yield names[found.name], torch.from_numpy(np.array(found.weights, dtype=np.float32))
        advance(int(tensor.n_elements))
    yield from merged.items()


def _layer(tensor: ReaderTensor) -> int:
    found = LAYER.match(tensor.name)
    return int(found[1]) if found else -1


def dequantised(tensor: ReaderTensor) -> np.ndarray:
    """The whole tensor in float32, with little memory beside it."""
    parts = _parts(tensor)
    first = next(parts)
    whole = np.empty((len(tensor.data), *first.shape[1:]), np.float32)
    whole[: len(first)] = first
    begin = len(first)
    for part in parts:
        whole[begin : begin + len(part)] = part
        begin += len(part)
    return whole


def _parts(tensor: ReaderTensor) -> Iterator[np.ndarray]:
    for begin in range(0, len(tensor.data), ROWS):
        yield dequantize(tensor.data[begin : begin + ROWS], tensor.tensor_type)


def _write_shards(folder: Path, weights: Iterator[tuple[str, Tensor]]) -> dict[str, torch.Size]:
    """Write them as they come, then the index that says which file has which; a single file needs none.

    Returns their shapes.
    """
    shapes: dict[str, torch.Size] = {}
    places: dict[str, str] = {}
    shard: dict[str, Tensor] = {}
    size = 0

    def write() -> None:
        name = f"model-{len(set(places.values())) + 1:05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        places.update(dict.fromkeys(shard, name))
        shard.clear()

    for name, weight in weights:
        if shard and size + weight.nbytes > SHARD_BYTES:
            write()
            size = 0
        shard[name] = weight.contiguous()
        shapes[name] = weight.shape
        size += weight.nbytes
    if shard:
        write()
    if len(set(places.values())) == 1:
        (folder / next(iter(places.values()))).rename(folder / "model.safetensors")
        return shapes
    total = sum(4 * shape.numel() for shape in shapes.values())
    write_json(
        folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": places}
    )
    return shapes


def _report(model: PreTrainedModel, written: dict[str, torch.Size]) -> dict[str, Any]:
    """As transformers' ``output_loading_info``."""
    wanted = {key: weight.shape for key, weight in model.state_dict().items()}
    missing = wanted.keys() - written.keys() - set(model.all_tied_weights_keys)
    common = wanted.keys() & written.keys()
    return {
        "missing_keys": missing,
        "unexpected_keys": written.keys() - wanted.keys(),
        "mismatched_keys": [(key, written[key], wanted[key]) for key in common if written[key] != wanted[key]],
        "error_msgs": [],
    }
