"""specalign-train export: a drafter in the form that serving engines draft with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Interval
from safetensors.torch import save_file
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from tyro.conf import arg

from specalign import folders
from specalign.config import STRICT, checked, load_config, parse_flags
from specalign.data import Prompt, load_examples
from specalign.decoding import generate, make_stepper
from specalign.errors import UserError
from specalign.files import write_json
from specalign.models.eagle import is_head, load_head, read_head_config
from specalign.models.load import empty_model, load_model, load_tokenizer, resolve_model
from specalign.models.mask_token import masks_of
from specalign.models.servable import Blocked, block, is_blocked, response_states, verified
from specalign.models.sglang import sglang_config, sglang_weights
from specalign.models.vocabulary import load_draft_vocabulary
from specalign.provenance import weights_sha256
from specalign.ranges import Output
from specalign.terminal import say
from specalign.training.config import TrainConfig
from specalign.training.folder import PROVENANCE, RECIPE, put, read_provenance, write_model
from specalign.training.prompts import columns, encoded
from specalign.training.recipe import resolve, with_prompt

PROGRAM = "specalign-train export"
N_TOKENS = 64
"""Tokens of each response whose states are looked at."""
BATCH = 16


@dataclass(frozen=True)
class ExportConfig:
    """Write a drafter as serving engines draft with it: the target's rows, of which no untrained one can win.

    A head on the target's states, which vLLM serves as training left it, is written under SGLang's names.
    """

    output: Output = Path()
    """Folder of the exported drafter."""
    target: str = ""
    """The model that it drafts for; empty: the teacher that it was trained with."""
    prompts: Annotated[int, Interval(ge=2, le=4096), arg(metavar="2..4096")] = 128
    """Prompts of the training data on whose states the rows are made, and as many others that verify them."""
    overwrite: bool = False
    """Remove the files that an earlier export wrote into the output folder, and write them again."""
    __pydantic_config__ = STRICT


def main(words: Sequence[str]) -> None:
    """Run the command line."""
    export(*parse(words))


def parse(words: Sequence[str]) -> tuple[str, ExportConfig]:
    """The student and the flags; raises UserError for a wrong one."""
    names = list(takewhile(lambda word: not word.startswith("-"), words))
    description = ExportConfig.__doc__ or ""
    flags = parse_flags(
        ExportConfig, words[len(names) :], default=ExportConfig(), program=PROGRAM, description=description
    )
    if len(names) != 1:
        raise UserError("export takes one STUDENT before its flags: a student folder, or any model name")
    if flags.output == ExportConfig().output:
        raise UserError("export needs --output: the folder of the exported drafter")
    return names[0], checked(flags)


def export(student: str, options: ExportConfig) -> Path:
    """Write the drafter with the target's width and untrained rows that cannot win; say what was done."""
    source = Path(resolve_model(student))
    if is_head(student):
        return _export_head(student, source, options)
    config = _recipe(source)
    target = options.target or (config.teacher.model if (source / RECIPE).is_file() else "")
    if not target:
        raise UserError(f"{student} was not trained here: name the model that it drafts for (--target)")
    width = _width(target)
    tokenizer = load_tokenizer(student)
    kept = load_draft_vocabulary(source)
    model = load_model(student, dtype=_dtype(empty_model(str(source)).config))
    _require_exportable(student, model, width, kept)
    with folders.hold(options.output, PROGRAM):
        _claim(options, source)
        before = int(model.config.get_text_config().vocab_size)
        found = _made_servable(model, tokenizer, kept, width, config, options.prompts)
        write_model(options.output, model, tokenizer, None)
        _record(options.output, student, source, {"target": target, **asdict(found)})
    say(_last_line(options.output, before, width, found))
    return options.output


def _export_head(student: str, source: Path, options: ExportConfig) -> Path:
    """Write a head under SGLang's names."""
    config = read_head_config(student)
    target = options.target or ((config.speculators_config or {}).get("verifier") or {}).get("name_or_path", "")
    if not target:
        raise UserError(f"{student} names no target (verifier): name the model that it drafts for (--target)")
    fields = sglang_config(config, int(empty_model(target).config.get_text_config().num_hidden_layers))
    tensors = sglang_weights(load_head(student, dtype=_dtype(config)))
    tokenizer = load_tokenizer(student)

    def save(partial: Path) -> None:
        save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
        tokenizer.save_pretrained(partial)
        write_json(partial / "config.json", fields)

    with folders.hold(options.output, PROGRAM):
        _claim(options, source)
        put(options.output, save)
        _record(options.output, student, source, {"target": target, "names": "SGLang"})
    say(f"{options.output}: {len(tensors)} tensors under SGLang's names")
    return options.output


def _require_exportable(student: str, model: PreTrainedModel, width: int, kept: Any) -> None:
    if model.config.is_encoder_decoder:
        raise UserError("engines serve decoder-only drafters; this model is an encoder-decoder")
    masks = masks_of(model.config)
    if masks and masks.token >= width:
        raise UserError(
            f"{student} cannot be exported: its mask token {masks.token} lies beyond the target's {width:,} rows, and "
            "engines refuse a wider drafter"
        )
    if kept is None and model.config.get_text_config().vocab_size == width:
        raise UserError(
            f"{student} needs no export: it drafts with its full head, as wide as the target's ({width:,} rows)"
        )


def _made_servable(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    kept: torch.Tensor | None,
    width: int,
    config: TrainConfig,
    n_prompts: int,
) -> Blocked:
    """On states of one half of the prompts; verified on the other half's."""
    if not is_blocked(width, model.config.get_text_config().vocab_size, kept).any():
        block(model, width, kept, torch.empty(0))
        return Blocked(0, 0.0, 0.0, 0)
    texts = _texts(model, kept, _prompts(config, tokenizer, 2 * n_prompts))
    states = [response_states(model, half) for half in (texts[: len(texts) // 2], texts[len(texts) // 2 :])]
    return verified(model, block(model, width, kept, states[0]), states[1])


def _texts(
    model: PreTrainedModel, kept: torch.Tensor | None, prompts: Sequence[Prompt]
) -> list[tuple[list[int], list[int]]]:
    """What the drafter itself writes after the prompts, sampled at temperature 1."""
    stepper = make_stepper(model, ids=kept)
    generator = torch.Generator(model.device).manual_seed(0)
    texts: list[tuple[list[int], list[int]]] = []
    for start in range(0, len(prompts), BATCH):
        rows = [prompt.input_ids for prompt in prompts[start : start + BATCH]]
        found = generate(stepper, None, rows, temperature=1.0, max_new_tokens=N_TOKENS, generator=generator)
        texts += [(list(row), new) for row, new in zip(rows, found.token_ids, strict=True) if new]
    return texts


def _prompts(config: TrainConfig, tokenizer: PreTrainedTokenizerBase, n: int) -> list[Prompt]:
    data = config.data
    examples = load_examples(
        data.source,
        "train",
        columns=columns(data),
        limit=n,
        skip_bad_rows=data.skip_bad_rows,
    )
    if len(examples) < 2:
        raise UserError(f"data set {data.source!r} has one row only: the rows are verified on others")
    return encoded(data, examples, tokenizer)


def _recipe(source: Path) -> TrainConfig:
    """The training's own config, for its data and its teacher; the defaults' for a model from elsewhere."""
    config = load_config(TrainConfig, source / RECIPE) if (source / RECIPE).is_file() else None
    return with_prompt(config or resolve(TrainConfig(), None, None))


def _width(target: str) -> int:
    return int(empty_model(target).config.get_text_config().vocab_size)


def _dtype(config: PreTrainedConfig) -> torch.dtype:
    """As it is stored; float32 where that is not known."""
    stored = getattr(config, "dtype", None)
    return stored if isinstance(stored, torch.dtype) else torch.float32


def _claim(options: ExportConfig, source: Path) -> None:
    inputs = {"STUDENT": str(source), "--target": options.target}
    if options.overwrite:
        folders.clear(options.output, inputs)
    if not folders.is_empty(options.output):
        raise UserError(f"{options.output} is not empty; {folders.advice(options.output, inputs)}")
    folders.begin(options.output)


def _record(output: Path, student: str, source: Path, facts: Mapping[str, Any]) -> None:
    """The training's provenance, and what was exported how."""
    made = read_provenance(source) if source.is_dir() else {}
    own = {"student": student, "weights_sha256": weights_sha256(source) if source.is_dir() else "", **facts}
    folders.add(output / PROVENANCE)
    write_json(output / PROVENANCE, {**made, "status": "complete", "exported": own})


def _last_line(output: Path, before: int, width: int, found: Blocked) -> str:
    line = f"{output}: {before:,} rows" + ("" if before == width else f" are {width:,}, as the target's")
    if not found.n_rows:
        return line
    return (
        f"{line}; {found.n_rows:,} untrained ones cannot win (mass {found.mean_mass:.1e}, at most "
        f"{found.largest_mass:.1e}, at {found.n_states:,} held-out states)"
    )
